//! `/v1/plans`: what can be subscribed to; and, for admins, what it costs and brings.

use actix_web::{HttpResponse, web};
use serde::Deserialize;

use super::{
    AppState,
    error::{ApiError, Code},
    extract::{Body, NoQuery, Page, Query, name},
};
use crate::{
    identity::{Caller, KeyScope},
    plan::{self, Change, Definition, could_be_code},
};

#[derive(Deserialize)]
pub struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /v1/plans`
pub async fn list(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<PageQuery>,
) -> Result<HttpResponse, ApiError> {
    may_look(&caller)?;
    let page = Page::new(query.limit.as_deref(), query.cursor, "")?;
    let plans = plan::list(&state.db, page.cursor.as_deref(), page.limit + 1).await?;
    Ok(HttpResponse::Ok().json(page.answer(plans, |plan| plan.code.clone())))
}

/// `GET /v1/plans/{code}`
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    code: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    may_look(&caller)?;
    let plan = plan::get(&state.db, &code).await?.ok_or(Code::PlanNotFound)?;
    Ok(HttpResponse::Ok().json(plan))
}

/// `PUT /v1/plans/{code}`: 201 for a new plan, 200 for one that was there and is replaced whole.
pub async fn put(
    state: web::Data<AppState>,
    caller: Caller,
    code: web::Path<String>,
    _: NoQuery,
    body: Body<Definition>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Admin)?;
    if !could_be_code(&code) {
        return Err(ApiError::invalid(
            "A plan's code is 1 to 64 letters from a to z, of either case, digits, `_`, `-` or `.`.",
        ));
    }
    let billing = &state.config.billing;
    let mut terms = body.value.terms(&billing.currency).map_err(ApiError::invalid)?;
    terms.name = name("name", terms.name)?;
    let put = plan::put(&state.db, &code, terms, &billing.default_plan, state.clock.now()).await;
    // Also after a failure, of which it may not be known whether it was one. Keys are looked up with
    // the rate of their account's plan, so that it holds for the next cast.
    state.identity.forget();
    match put? {
        Change::Made(plan) => Ok(HttpResponse::Created().json(plan)),
        Change::Replaced(plan) => Ok(HttpResponse::Ok().json(plan)),
        Change::PriceTaken(other) => {
            Err(ApiError::invalid(format!("The plan `{other}` is sold at that `stripe_price_id` already.")))
        }
    }
}

/// Who may read, and who buys and therefore needs to know what there is.
fn may_look(caller: &Caller) -> Result<(), ApiError> {
    Ok(caller.require_any(&[KeyScope::Read, KeyScope::Billing])?)
}
