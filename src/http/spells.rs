//! `/v1/spells`: what can be cast, with prices; and, for admins, what is behind it.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{
    AppState,
    caller::Admin,
    error::{ApiError, Code},
    extract::{Body, NoQuery, Page, Query, decode},
};
use crate::{
    clock::Time,
    identity::{Caller, KeyScope},
    ledger::OnLost,
    spell::{self, Change, Definition, Kind, MASK, Spell},
};

#[derive(Deserialize)]
pub struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// A spell as it goes out.
#[derive(Serialize)]
struct SpellView<'a> {
    name: &'a str,
    kind: &'static str,
    price: PriceView,
    on_lost: OnLost,
    #[serde(skip_serializing_if = "Option::is_none")]
    pay_from: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<BTreeMap<&'a str, &'static str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
    created_at: Option<Time>,
    updated_at: Option<Time>,
}

#[derive(Serialize)]
struct PriceView {
    flat_cents: i64,
    flat_usd: String,
}

impl<'a> SpellView<'a> {
    /// Where a spell leads is the admin's business.
    fn new(spell: &'a Spell, for_admin: bool) -> SpellView<'a> {
        let (url, headers, timeout_ms) = match &spell.kind {
            Kind::Echo => (None, None, None),
            Kind::Http { url, header_names, timeout, .. } => {
                let headers = header_names.iter().map(|name| (name.as_str(), MASK)).collect();
                (Some(spell::masked(url).into()), Some(headers), u64::try_from(timeout.as_millis()).ok())
            }
        };
        SpellView {
            name: &spell.name,
            kind: spell.kind.as_str(),
            price: PriceView { flat_cents: spell.price.cents_rounded_up(), flat_usd: spell.price.to_usd() },
            on_lost: spell.on_lost,
            pay_from: spell.from_credits.then_some("credits"),
            url: url.filter(|_| for_admin),
            headers: headers.filter(|_| for_admin),
            timeout_ms,
            created_at: spell.created_at,
            updated_at: spell.updated_at,
        }
    }
}

/// `GET /v1/spells`
pub async fn list(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<PageQuery>,
) -> Result<HttpResponse, ApiError> {
    may_look(&caller)?;
    let page = Page::new(query.limit.as_deref(), query.cursor, "")?;
    let spells = state.spells.list(page.cursor.as_deref(), page.limit + 1).await?;
    let admin = caller.is_admin();
    let views = spells.iter().map(|spell| SpellView::new(spell, admin)).collect();
    Ok(HttpResponse::Ok().json(page.answer(views, |view| view.name.to_owned())))
}

/// `GET /v1/spells/{name}`
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    name: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    may_look(&caller)?;
    let spell = state.spells.get(&name).await?.ok_or(Code::SpellNotFound)?;
    Ok(HttpResponse::Ok().json(SpellView::new(&spell, caller.is_admin())))
}

/// `PUT /v1/spells/{name}`
pub async fn put(
    state: web::Data<AppState>,
    _: Admin,
    name: web::Path<String>,
    _: NoQuery,
    body: Body<Map<String, Value>>,
) -> Result<HttpResponse, ApiError> {
    // First, because of a kind that is not there no field is known, and that would not be the point.
    if let Some(Value::String(kind)) = body.value.get("kind") {
        spell::check_kind(kind).map_err(refused)?;
    }
    let definition: Definition = decode(&body.raw)?;
    match state.spells.put(&name, definition, state.clock.now()).await? {
        Change::Made(spell) => Ok(HttpResponse::Created().json(SpellView::new(&spell, true))),
        Change::Replaced(spell) => Ok(HttpResponse::Ok().json(SpellView::new(&spell, true))),
        Change::Refused(problem) => Err(refused(problem)),
    }
}

/// `DELETE /v1/spells/{name}`. For `echo` it brings the built-in back, which itself is not to be
/// deleted: where no row overrides it, this is a 404 as for any other spell that nobody stated.
pub async fn delete(
    state: web::Data<AppState>,
    _: Admin,
    name: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    match state.spells.delete(&name).await? {
        true => Ok(HttpResponse::NoContent().finish()),
        false => Err(Code::SpellNotFound.into()),
    }
}

/// Who may read, and who casts and therefore needs to know what there is.
fn may_look(caller: &Caller) -> Result<(), ApiError> {
    match caller.may(KeyScope::Cast) {
        true => Ok(()),
        false => Ok(caller.require(KeyScope::Read)?),
    }
}

fn refused(problem: String) -> ApiError {
    ApiError::invalid(format!("{problem}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::money::Nanos;
    use reqwest::header::{HeaderName, HeaderValue};
    use serde_json::json;
    use std::time::Duration;

    #[test]
    fn only_admins_see_where_a_spell_leads_and_nobody_sees_a_secret() {
        let spell = Spell {
            name: "some".to_owned(),
            price: Nanos(10_000_001),
            on_lost: OnLost::Charge,
            from_credits: true,
            kind: Kind::Http {
                url: "https://a.example/x?key=hidden".parse().unwrap(),
                headers: vec![(HeaderName::from_static("x-key"), HeaderValue::from_static("hidden"))],
                header_names: vec!["X-Key".to_owned()],
                timeout: Duration::from_secs(2),
            },
            created_at: Some(Time(0)),
            updated_at: None,
        };
        let mut shown = json!({
            "name": "some", "kind": "http", "price": {"flat_cents": 2, "flat_usd": "0.010000001"},
            "on_lost": "charge", "pay_from": "credits", "url": "https://a.example/x?***", "headers": {"X-Key": "***"},
            "timeout_ms": 2_000, "created_at": "1970-01-01T00:00:00.000Z", "updated_at": null,
        });
        assert_eq!(serde_json::to_value(SpellView::new(&spell, true)).unwrap(), shown);
        let fields = shown.as_object_mut().unwrap();
        fields.shift_remove("url");
        fields.shift_remove("headers");
        assert_eq!(serde_json::to_value(SpellView::new(&spell, false)).unwrap(), shown);
    }
}
