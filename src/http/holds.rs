//! `/v1/holds`: money set aside for code that runs elsewhere.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    AppState,
    casts::{idempotency_key, respond},
    error::{ApiError, Code},
    extract::{Body, NoQuery, OptionalBody, Page, Query, id_of},
};
use crate::{
    id::HoldId,
    identity::{Caller, KeyScope},
    ledger::{Action, Answer, HeldFor, HoldRow, HoldState, Outcome, Request, hold},
    money::{MAX_CENTS, Nanos},
};

/// How long a hold lives where nothing is said, and at most, in seconds.
const DEFAULT_TTL: i64 = 300;
const MAX_TTL: i64 = 604_800;

#[derive(Deserialize)]
pub struct NewHoldBody {
    amount_cents: i64,
    ttl_seconds: Option<i64>,
    spell: Option<String>,
}

#[derive(Deserialize)]
pub struct SettleBody {
    amount_cents: i64,
}

#[derive(Deserialize)]
pub struct ExtendBody {
    ttl_seconds: Option<i64>,
}

#[derive(Deserialize)]
pub struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `POST /v1/holds`
pub async fn create(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    _: NoQuery,
    body: Body<NewHoldBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Cast)?;
    let keyed = idempotency_key(&request, &body.raw)?;
    let NewHoldBody { amount_cents, ttl_seconds, spell } = body.value;
    let (amount, ttl) = (amount(amount_cents)?, ttl(ttl_seconds)?);
    let render = |id: &HoldId, expires_at| {
        let body = json!({ "id": id, "amount_cents": amount_cents, "expires_at": expires_at });
        Answer { status: 201, body: body.to_string() }
    };
    let held = state.pipeline.hold(&caller, spell.as_deref(), amount, ttl, keyed, render).await;
    Ok(respond(held?))
}

/// `GET /v1/holds`
pub async fn list(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<PageQuery>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let page = Page::new(query.limit.as_deref(), query.cursor, "hold_")?;
    let rows = hold::list(&state.db, &caller.account, page.cursor.as_deref(), page.limit + 1).await?;
    let rows: Vec<Value> = rows.iter().map(hold_json).collect();
    let id = |row: &Value| row["id"].as_str().unwrap_or_default().to_owned();
    Ok(HttpResponse::Ok().json(page.answer(rows, id)))
}

/// `GET /v1/holds/{id}`
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    id: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let row = hold::get(&state.db, &caller.account, &hold_id(id)?).await?;
    Ok(HttpResponse::Ok().json(hold_json(&row.ok_or_else(no_hold)?)))
}

/// `POST /v1/holds/{id}/settle`
pub async fn settle(
    state: web::Data<AppState>,
    caller: Caller,
    id: web::Path<String>,
    _: NoQuery,
    body: Body<SettleBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Cast)?;
    let (hold, held_for) = (hold_id(id)?, HeldFor::External);
    let amount = amount(body.value.amount_cents)?;
    let ended = end(&state, &caller, Action::Post { hold, held_for, amount, answer: None }).await?;
    Ok(HttpResponse::Ok().json(hold_json(&ended)))
}

/// `POST /v1/holds/{id}/extend`
pub async fn extend(
    state: web::Data<AppState>,
    caller: Caller,
    id: web::Path<String>,
    _: NoQuery,
    body: OptionalBody<ExtendBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Cast)?;
    let expires_at = state.clock.now().plus(ttl(body.value.ttl_seconds)?);
    let (hold, held_for) = (hold_id(id)?, HeldFor::External);
    let extended = end(&state, &caller, Action::Extend { hold, held_for, expires_at }).await?;
    Ok(HttpResponse::Ok().json(hold_json(&extended)))
}

/// `DELETE /v1/holds/{id}`
pub async fn void(
    state: web::Data<AppState>,
    caller: Caller,
    id: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Cast)?;
    let (hold, held_for) = (hold_id(id)?, HeldFor::External);
    end(&state, &caller, Action::Void { hold, held_for, error_code: None, answer: None }).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn end(state: &AppState, caller: &Caller, action: Action) -> Result<HoldRow, ApiError> {
    let request = Request { account: caller.account.clone(), at: state.clock.now(), action };
    match state.ledger.settle(request).await? {
        Outcome::Hold(hold) => Ok(hold),
        Outcome::EndedOtherwise(hold) => {
            let ended = state_name(&hold);
            Err(ApiError::new(Code::HoldEnded, format!("The hold had already ended: {ended}."))
                .with("ended", ended)
                .with("hold", hold_json(&hold)))
        }
        Outcome::OutOfRange => Err(ApiError::invalid("The amount would not fit the account's totals.")),
        _ => Err(no_hold()),
    }
}

fn hold_id(path: web::Path<String>) -> Result<HoldId, ApiError> {
    id_of(path.into_inner()).ok_or_else(no_hold)
}

fn no_hold() -> ApiError {
    ApiError::new(Code::NotFound, "There is no such hold.")
}

fn amount(cents: i64) -> Result<Nanos, ApiError> {
    Nanos::from_cents(cents)
        .ok_or_else(|| ApiError::invalid(format!("`amount_cents` must be from 0 to {MAX_CENTS}.")))
}

fn ttl(seconds: Option<i64>) -> Result<Duration, ApiError> {
    match seconds.unwrap_or(DEFAULT_TTL) {
        seconds @ 1..=MAX_TTL => Ok(Duration::from_secs(seconds.unsigned_abs())),
        _ => Err(ApiError::invalid(format!("`ttl_seconds` must be from 1 to {MAX_TTL}."))),
    }
}

fn state_name(hold: &HoldRow) -> &'static str {
    match hold.state {
        HoldState::Open => "open",
        HoldState::Posted { .. } => "settled",
        HoldState::Voided => "voided",
        HoldState::Expired => "expired",
    }
}

fn hold_json(hold: &HoldRow) -> Value {
    let (settled, late) = match hold.state {
        HoldState::Posted { amount, late } => (Some(Nanos(amount)), late),
        _ => (None, false),
    };
    json!({
        "id": hold.id,
        "status": state_name(hold),
        "amount_cents": hold.amount.cents_rounded_up(),
        "settled_cents": settled.map(Nanos::cents_rounded_up),
        "overrun": settled.is_some_and(|settled| settled > hold.amount),
        "late": late,
        "key_id": hold.key,
        "spell": Some(&hold.spell).filter(|spell| !spell.is_empty()),
        "created_at": hold.began_at,
        "expires_at": hold.expires_at,
        "ended_at": hold.ended_at,
    })
}
