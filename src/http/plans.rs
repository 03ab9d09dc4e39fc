//! `/v1/plans`: what can be subscribed to; and, for admins, what it costs and brings.
//!
//! `/internal/billing/plans`: the same catalogue for other services, which know a plan by less: they make
//! one or change some of it, and what they do not know of it stays.

use std::collections::BTreeMap;

use actix_web::{HttpResponse, web};
use serde::Deserialize;

use super::{
    AppState,
    caller::Admin,
    error::{ApiError, Code},
    extract::{Body, NoQuery, Page, Query, name},
};
use crate::{
    identity::{Caller, KeyScope},
    plan::{self, Change, Definition, Edit, Edited, could_be_code},
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
    _: Admin,
    code: web::Path<String>,
    _: NoQuery,
    body: Body<Definition>,
) -> Result<HttpResponse, ApiError> {
    require_code(&code)?;
    require_same(&code, body.value.code.as_deref())?;
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

/// A plan as other services make it.
#[derive(Deserialize)]
pub struct NewPlan {
    code: String,
    name: String,
    period: String,
    limits: BTreeMap<String, Option<i64>>,
    price_cents: i64,
    currency: Option<String>,
}

/// What other services change of a plan.
#[derive(Deserialize)]
pub struct PlanEdit {
    /// No other than the path's.
    code: Option<String>,
    name: Option<String>,
    period: Option<String>,
    limits: Option<BTreeMap<String, Option<i64>>>,
    price_cents: Option<i64>,
    currency: Option<String>,
}

/// `GET /internal/billing/plans`
pub async fn list_for_services(
    state: web::Data<AppState>,
    Admin(caller): Admin,
    query: Query<PageQuery>,
) -> Result<HttpResponse, ApiError> {
    list(state, caller, query).await
}

/// `GET /internal/billing/plans/{code}`
pub async fn get_for_services(
    state: web::Data<AppState>,
    Admin(caller): Admin,
    code: web::Path<String>,
    query: NoQuery,
) -> Result<HttpResponse, ApiError> {
    get(state, caller, code, query).await
}

/// `POST /internal/billing/plans`: 409 for a code that there is, whose plan stays as it is.
pub async fn create(
    state: web::Data<AppState>,
    _: Admin,
    _: NoQuery,
    body: Body<NewPlan>,
) -> Result<HttpResponse, ApiError> {
    let NewPlan { code, name: plan_name, period, limits, price_cents, currency } = body.value;
    require_code(&code)?;
    let stated = Definition {
        name: name("name", plan_name)?,
        price_cents,
        currency,
        period: Some(period),
        limits: Some(limits),
        ..Definition::default()
    };
    let billing = &state.config.billing;
    let terms = stated.terms(&billing.currency).map_err(ApiError::invalid)?;
    let made = plan::create(&state.db, &code, terms, &billing.default_plan, state.clock.now()).await;
    state.identity.forget();
    let plan = made?.ok_or(Code::PlanExists)?;
    Ok(HttpResponse::Created().json(plan))
}

/// `PUT /internal/billing/plans/{code}`: 404 for a code that there is not.
pub async fn edit(
    state: web::Data<AppState>,
    _: Admin,
    code: web::Path<String>,
    _: NoQuery,
    body: Body<PlanEdit>,
) -> Result<HttpResponse, ApiError> {
    let PlanEdit { code: stated_code, name: plan_name, period, limits, price_cents, currency } = body.value;
    require_same(&code, stated_code.as_deref())?;
    let plan_name = plan_name.map(|text| name("name", text)).transpose()?;
    let edit = Edit { name: plan_name, price_cents, currency, period, limits };
    match plan::edit(&state.db, &code, edit, state.clock.now()).await? {
        Edited::Done(plan) => Ok(HttpResponse::Ok().json(plan)),
        Edited::Absent => Err(Code::PlanNotFound.into()),
        Edited::Invalid(problem) => Err(ApiError::invalid(problem)),
    }
}

/// A body may repeat the path's code, as a plan that was read does.
fn require_same(code: &str, stated: Option<&str>) -> Result<(), ApiError> {
    match stated.is_none_or(|stated| stated == code) {
        true => Ok(()),
        false => Err(ApiError::invalid("`code` must be the path's: a plan keeps its code.")),
    }
}

fn require_code(code: &str) -> Result<(), ApiError> {
    match could_be_code(code) {
        true => Ok(()),
        false => Err(ApiError::invalid(
            "A plan's code is 1 to 64 letters from a to z, of either case, digits, `_`, `-` or `.`.",
        )),
    }
}

/// Who may read, and who buys and therefore needs to know what there is.
fn may_look(caller: &Caller) -> Result<(), ApiError> {
    Ok(caller.require_any(&[KeyScope::Read, KeyScope::Billing])?)
}
