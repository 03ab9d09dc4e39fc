//! `/internal/billing/quota`: what a user has left of an action's units, for other services only.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use super::{
    AppState,
    error::{ApiError, Code},
    extract::{Body, NoQuery, Page, Query},
};
use crate::{
    identity::{Caller, could_be_user},
    quota::{self, Effect, Left, MAX_UNITS, Metered, Order, receipt},
};

#[derive(Deserialize)]
pub struct DebitBody {
    user_id: String,
    action: String,
    units: i64,
    #[serde(rename = "ref")]
    reference: String,
}

#[derive(Deserialize)]
pub struct CreditBody {
    order_id: String,
    user_id: String,
    plan_code: String,
    units_chat: i64,
    units_tpl: i64,
}

#[derive(Deserialize)]
pub struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /internal/billing/quota/check/{user_id}`
pub async fn check(
    state: web::Data<AppState>,
    _: Caller,
    user_id: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    let account = state.identity.account_of_user(user(&user_id)?).await?;
    let effect = quota::check(&state.ledger, &account, state.clock.now()).await?;
    let Made { left, .. } = done(&state, &user_id, effect)?;
    Ok(HttpResponse::Ok().json(json!({
        "remain_chat": left.chat,
        "remain_tpl": left.template,
        "plan_code": left.plan,
        "resets_at": left.resets_at,
    })))
}

/// `POST /internal/billing/quota/debit`
pub async fn debit(
    state: web::Data<AppState>,
    _: Caller,
    _: NoQuery,
    body: Body<DebitBody>,
) -> Result<HttpResponse, ApiError> {
    let debited = debited(&state, &body.value).await;
    let count = |result| state.metrics.quota_debits.with_label_values(&[result]).inc();
    match &debited {
        Ok(made) if !made.first => {}
        Ok(_) => count("ok"),
        Err(_) => count("fail"),
    }
    Ok(HttpResponse::Ok().json(answer(&debited?.left)))
}

async fn debited(state: &AppState, body: &DebitBody) -> Result<Made, ApiError> {
    let DebitBody { user_id, action, units, reference } = body;
    let action = Metered::parse(action).ok_or_else(|| {
        let known = Metered::ALL.map(|action| format!("`{}`", action.as_str())).join(" or ");
        ApiError::invalid(format!("`action` must be {known}."))
    })?;
    let units = amount("units", *units, 1)?;
    let account = state.identity.account_of_user(user(user_id)?).await?;
    let reference = name("ref", reference)?;
    let effect = quota::debit(&state.ledger, &account, action, units, reference, state.clock.now()).await?;
    match effect {
        Effect::Exceeded(left) => {
            show(state, user_id, &left);
            Err(exceeded(action, units, &left))
        }
        effect => done(state, user_id, effect),
    }
}

fn exceeded(action: Metered, units: i64, left: &Left) -> ApiError {
    let remaining = left.of(action);
    let message = format!("{units} units of {} were asked for, and {remaining} are left.", action.as_str());
    ApiError::new(Code::QuotaExceeded, message)
        .with("action", action.as_str())
        .with("requested", units)
        .with("remaining", remaining)
        .with("remain_chat", left.chat)
        .with("remain_tpl", left.template)
        .with("plan_code", left.plan.clone())
        .with("resets_at", left.resets_at.map(|at| at.to_string()))
}

/// `POST /internal/billing/quota/credit`
pub async fn credit(
    state: web::Data<AppState>,
    _: Caller,
    _: NoQuery,
    body: Body<CreditBody>,
) -> Result<HttpResponse, ApiError> {
    let CreditBody { order_id, user_id, plan_code, units_chat, units_tpl } = body.value;
    name("order_id", &order_id)?;
    let order = Order {
        units_chat: amount("units_chat", units_chat, 0)?,
        units_tpl: amount("units_tpl", units_tpl, 0)?,
        order_id,
        plan_code,
        payment: None,
    };
    let account = state.identity.account_of_user(user(&user_id)?).await?;
    let effect = quota::credit(&state.db, &account, &order, state.clock.now()).await?;
    let made = done(&state, &user_id, effect)?;
    state.metrics.quota_credits.inc_by(u64::from(made.first));
    Ok(HttpResponse::Ok().json(answer(&made.left)))
}

/// `GET /internal/billing/quota/receipts/{user_id}`
pub async fn receipts(
    state: web::Data<AppState>,
    _: Caller,
    user_id: web::Path<String>,
    Query(query): Query<PageQuery>,
) -> Result<HttpResponse, ApiError> {
    let account = state.identity.account_of_user(user(&user_id)?).await?;
    let page = Page::new(query.limit.as_deref(), query.cursor, "rcpt_")?;
    let receipts = receipt::list(&state.db, &account, page.cursor.as_deref(), page.limit + 1).await?;
    Ok(HttpResponse::Ok().json(page.answer(receipts, |receipt| receipt.id.to_string())))
}

/// What a debit and a credit answer.
pub fn answer(left: &Left) -> serde_json::Value {
    json!({
        "success": true,
        "remain_chat": left.chat,
        "remain_tpl": left.template,
        "plan_code": left.plan,
    })
}

/// An effect that was made, now or when it was first asked for.
struct Made {
    left: Left,
    first: bool,
}

/// Errors: what an effect that was not made is answered with.
fn done(state: &AppState, user_id: &str, effect: Effect) -> Result<Made, ApiError> {
    match effect {
        Effect::Done(left) => {
            show(state, user_id, &left);
            Ok(Made { left, first: true })
        }
        Effect::Repeated(left) => Ok(Made { left, first: false }),
        Effect::Reused => Err(Code::ReferenceReused.into()),
        Effect::Exceeded(_) => Err(Code::QuotaExceeded.into()),
        Effect::Suspended => Err(Code::AccountSuspended.into()),
        Effect::NoAccount => Err(Code::DatabaseUnavailable.into()),
        Effect::NoPlan => Err(ApiError::invalid("`plan_code` names no plan.")),
        Effect::OutOfRange => Err(ApiError::invalid("The units would not fit the user's total.")),
    }
}

/// Shows in the metrics what is left.
pub fn show(state: &AppState, user_id: &str, left: &Left) {
    let own = state.config.metrics_per_user.then_some(user_id);
    state.metrics.show_quota(own, left.chat, left.template);
}

fn user(user_id: &str) -> Result<&str, ApiError> {
    match could_be_user(user_id) {
        true => Ok(user_id),
        false => Err(ApiError::invalid("`user_id` must be 1 to 255 bytes without control characters.")),
    }
}

fn name<'a>(field: &str, given: &'a str) -> Result<&'a str, ApiError> {
    match quota::could_be_name(given) {
        true => Ok(given),
        false => {
            Err(ApiError::invalid(format!("`{field}` must be 1 to 200 bytes without control characters.")))
        }
    }
}

fn amount(field: &str, given: i64, least: i64) -> Result<i64, ApiError> {
    match (least..=MAX_UNITS).contains(&given) {
        true => Ok(given),
        false => Err(ApiError::invalid(format!("`{field}` must be from {least} to {MAX_UNITS}."))),
    }
}
