//! `/v1/usage`: where the money went.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    AppState,
    error::ApiError,
    extract::{Page, Query},
};
use crate::{
    clock::Time,
    identity::{Caller, KeyScope},
    ledger::usage::{Grouping, Usage, usage},
    window::{self, Period},
};

#[derive(Deserialize)]
pub struct UsageQuery {
    from: Option<String>,
    to: Option<String>,
    by: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /v1/usage`: whole days in UTC; this month where nothing is said.
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<UsageQuery>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let page = Page::new(query.limit.as_deref(), query.cursor, "")?;
    let offset = page.cursor.as_deref().unwrap_or("0").parse::<u32>();
    let offset = offset.map_err(|_| ApiError::invalid("`cursor` is none that a list gave out."))?;
    let (from, to) = span(query.from.as_deref(), query.to.as_deref(), state.clock.now())?;
    let by = grouping(query.by.as_deref())?;
    let rows = usage(&state.db, &caller.account, (from, to), by, page.limit + 1, i64::from(offset)).await?;
    let rows: Vec<Value> = rows.iter().map(|row| usage_json(row, by)).collect();
    let next = i64::from(offset) + page.limit;
    Ok(HttpResponse::Ok().json(page.answer(rows, |_| next.to_string())))
}

/// The days that are meant, from the first to before the last: a date in `to` is counted in, a time
/// ends where it stands, at the end of its day. Where one end is missing, the other's month has it.
fn span(from: Option<&str>, to: Option<&str>, now: Time) -> Result<(Time, Time), ApiError> {
    let from = from.map(|text| moment("from", text)).transpose()?;
    let to = to.map(|text| moment("to", text)).transpose()?;
    let end_of_day = |at: Time| Period::Daily.window(at).end.unwrap_or(at);
    let end = to.map(|to| match to {
        Moment::Date(day) => end_of_day(day),
        Moment::Time(at) => end_of_day(Time(at.0 - 1)),
    });
    let start = from.map(|(Moment::Date(at) | Moment::Time(at))| Period::Daily.window(at).start);
    let (start, end) = match (start, end) {
        (Some(start), Some(end)) => (start, end),
        (Some(start), None) => (start, Period::Monthly.window(start.max(now)).end.unwrap_or(start)),
        (None, Some(end)) => (Period::Monthly.window(Time(end.0 - 1)).start, end),
        (None, None) => {
            let month = Period::Monthly.window(now);
            (month.start, month.end.unwrap_or(month.start))
        }
    };
    match start < end {
        true => Ok((start, end)),
        false => Err(ApiError::invalid("`from` must be before `to`.")),
    }
}

enum Moment {
    /// 00:00 UTC of a day that was named as a whole.
    Date(Time),
    Time(Time),
}

fn moment(field: &str, text: &str) -> Result<Moment, ApiError> {
    let date = text.parse::<jiff::civil::Date>().ok().filter(|_| text.len() == 10);
    let date = date.map(|date| Moment::Date(window::midnight(date)));
    date.or_else(|| Time::parse(text).map(Moment::Time)).ok_or_else(|| {
        ApiError::invalid(format!("`{field}` must be a date (2026-01-31) or an RFC 3339 time."))
    })
}

fn grouping(by: Option<&str>) -> Result<Grouping, ApiError> {
    let mut grouping = Grouping::default();
    for part in by.unwrap_or("day").split(',') {
        match part.trim() {
            "day" => grouping.day = true,
            "key" => grouping.key = true,
            "spell" => grouping.spell = true,
            _ => return Err(ApiError::invalid("`by` must name day, key or spell, separated by commas.")),
        }
    }
    Ok(grouping)
}

fn usage_json(usage: &Usage, by: Grouping) -> Value {
    let mut row = Map::new();
    if by.day {
        row.insert("day".to_owned(), usage.day.map(|day| window::day_of(day).to_string()).into());
    }
    if by.key {
        row.insert("key_id".to_owned(), usage.key.clone().into());
    }
    if by.spell {
        row.insert("spell".to_owned(), usage.spell.clone().filter(|spell| !spell.is_empty()).into());
    }
    row.insert("calls".to_owned(), usage.calls.into());
    row.insert("cost_cents".to_owned(), usage.cost.cents_rounded_up().into());
    row.insert("cost_usd".to_owned(), json!(usage.cost.to_usd()));
    Value::Object(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_is_whole_days() {
        let now = Time::parse("2026-11-21T12:00:00Z").unwrap();
        let days = |from, to| {
            let (from, to) = span(from, to, now).map_err(|error| error.message)?;
            Ok::<_, String>(format!("{} {}", window::day_of(from), window::day_of(to)))
        };
        for (from, to, expected) in [
            (None, None, "2026-11-01 2026-12-01"),
            (Some("2026-11-20"), Some("2026-11-21"), "2026-11-20 2026-11-22"),
            (Some("2026-11-20T00:00:00Z"), Some("2026-11-21T00:00:00Z"), "2026-11-20 2026-11-21"),
            (Some("2026-11-20T23:59:00Z"), Some("2026-11-21T00:00:01Z"), "2026-11-20 2026-11-22"),
            (Some("2026-12-05"), None, "2026-12-05 2027-01-01"),
            (Some("2026-09-05"), None, "2026-09-05 2026-12-01"),
            (None, Some("2026-10-31"), "2026-10-01 2026-11-01"),
        ] {
            assert_eq!(days(from, to).as_deref(), Ok(expected), "{from:?} {to:?}");
        }
        assert!(days(Some("2026-11-22"), Some("2026-11-20")).is_err());
        assert!(days(Some("yesterday"), None).is_err());
    }
}
