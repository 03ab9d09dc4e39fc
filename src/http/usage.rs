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

/// `GET /v1/usage`: whole days in UTC, both ends included; this month where nothing is said.
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<UsageQuery>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let page = Page::new(query.limit.as_deref(), query.cursor)?;
    let offset = page.cursor.as_deref().unwrap_or("0").parse::<u32>();
    let offset = offset.map_err(|_| ApiError::invalid("`cursor` is none that a list gave out."))?;
    let month = Period::Monthly.window(state.clock.now());
    let from = query.from.as_deref().map(|text| day("from", text)).transpose()?.unwrap_or(month.start);
    let last = query.to.as_deref().map(|text| day("to", text)).transpose()?;
    let to = last.map(|last| Period::Daily.window(last).end).unwrap_or(month.end).unwrap_or(Time(i64::MAX));
    if from >= to {
        return Err(ApiError::invalid("`from` must not be after `to`."));
    }
    let by = grouping(query.by.as_deref())?;
    let rows = usage(&state.db, &caller.account, (from, to), by, page.limit + 1, i64::from(offset)).await?;
    let rows: Vec<Value> = rows.iter().map(|row| usage_json(row, by)).collect();
    let next = i64::from(offset) + page.limit;
    Ok(HttpResponse::Ok().json(page.answer(rows, |_| next.to_string())))
}

/// 00:00 UTC of the day that `text` names, as a date or a time.
fn day(field: &str, text: &str) -> Result<Time, ApiError> {
    let date = text.parse::<jiff::civil::Date>().ok().filter(|_| text.len() == 10);
    match date.or_else(|| Time::parse(text).map(window::day_of)) {
        Some(date) => Ok(window::midnight(date)),
        None => Err(ApiError::invalid(format!("`{field}` must be a date (2026-01-31) or an RFC 3339 time."))),
    }
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
