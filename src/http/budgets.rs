//! `/v1/budgets`: limits, and how much of them is used.

use actix_web::{HttpResponse, web};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    AppState,
    error::{ApiError, Code},
    extract::{Body, Page, Query},
};
use crate::{
    budget::{self, Budget, Change, Limits, Scope},
    identity::{Caller, KeyScope},
    ledger,
    money::{MAX_CENTS, Nanos},
    window::Period,
};

/// The most thresholds one budget may have.
const MAX_THRESHOLDS: usize = 50;

#[derive(Deserialize)]
pub struct BudgetBody {
    period: String,
    soft_limit_cents: Option<i64>,
    hard_limit_cents: Option<i64>,
    notify_thresholds: Option<Vec<i64>>,
    locked: Option<bool>,
}

#[derive(Deserialize)]
pub struct ScopeQuery {
    key_id: Option<String>,
    spell: Option<String>,
}

#[derive(Deserialize)]
pub struct BudgetQuery {
    key_id: Option<String>,
    spell: Option<String>,
    period: Option<String>,
}

#[derive(Deserialize)]
pub struct BudgetsQuery {
    key_id: Option<String>,
    spell: Option<String>,
    period: Option<String>,
    all: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `POST /v1/budgets`: 201 for a new budget, 200 for one that was there and is replaced.
pub async fn post(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<ScopeQuery>,
    body: Body<BudgetBody>,
) -> Result<HttpResponse, ApiError> {
    let (budget, made) = put_budget(&state, &caller, query, body.value).await?;
    let mut response = if made { HttpResponse::Created() } else { HttpResponse::Ok() };
    Ok(response.json(budget_json(&budget)))
}

/// `PUT /v1/budgets`: 200, whether it was there or not.
pub async fn put(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<ScopeQuery>,
    body: Body<BudgetBody>,
) -> Result<HttpResponse, ApiError> {
    let (budget, _) = put_budget(&state, &caller, query, body.value).await?;
    Ok(HttpResponse::Ok().json(budget_json(&budget)))
}

async fn put_budget(
    state: &AppState,
    caller: &Caller,
    query: ScopeQuery,
    body: BudgetBody,
) -> Result<(Budget, bool), ApiError> {
    caller.require(KeyScope::Budgets)?;
    let period = period(&body.period)?;
    let limits = limits(&body)?;
    if body.locked.is_some_and(|locked| locked) && !caller.is_admin() {
        return Err(ApiError::new(Code::Forbidden, "Only an admin may lock a budget."));
    }
    let scope = scope(query.key_id, query.spell)?;
    require_known(state, caller, &scope).await?;
    let (admin, now) = (caller.is_admin(), state.clock.now());
    match budget::put(&state.db, &caller.account, scope, period, limits, admin, now).await? {
        Change::Made(budget) => Ok((budget, true)),
        Change::Replaced(budget) => Ok((budget, false)),
        Change::Locked => Err(Code::BudgetLocked.into()),
        Change::Deleted | Change::Missing | Change::NoAccount => Err(Code::NotFound.into()),
    }
}

/// `GET /v1/budgets`: the budget that is named, or the one set last; with `all=true`, all of them.
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<BudgetsQuery>,
) -> Result<HttpResponse, ApiError> {
    caller
        .require(KeyScope::Read)
        .or_else(|refused| caller.require(KeyScope::Budgets).map_err(|_| refused))?;
    let BudgetsQuery { key_id, spell, period, all, limit, cursor } = query;
    let page = Page::new(limit.as_deref(), cursor, "bud_")?;
    let every_scope = key_id.is_none() && spell.is_none();
    let period_only = period.as_deref().map(self::period).transpose()?;
    let chosen = chosen(BudgetQuery { key_id, spell, period })?;
    let budgets = budget::of_account(&state.db, &caller.account).await?;
    if flag("all", all.as_deref())? {
        let of_period = |budget: &Budget| period_only.is_none_or(|period| period == budget.period);
        let wanted = |budget: &&Budget| chosen(budget) || (every_scope && of_period(budget));
        let after = |budget: &&Budget| page.cursor.as_deref() != Some(budget.id.as_str());
        let mut rest = budgets.iter().filter(wanted);
        if page.cursor.is_some() {
            rest.by_ref().take_while(after).for_each(drop);
        }
        let rows: Vec<Value> = rest.map(budget_json).take(page.limit as usize + 1).collect();
        let id = |row: &Value| row["id"].as_str().unwrap_or_default().to_owned();
        return Ok(HttpResponse::Ok().json(page.answer(rows, id)));
    }
    let budget = budgets.iter().find(|budget| chosen(budget)).ok_or(Code::BudgetNotFound)?;
    Ok(HttpResponse::Ok().json(budget_json(budget)))
}

/// `DELETE /v1/budgets`
pub async fn delete(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<BudgetQuery>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Budgets)?;
    let chosen = chosen(query)?;
    match budget::delete(&state.db, &caller.account, chosen, caller.is_admin()).await? {
        Change::Deleted => Ok(HttpResponse::NoContent().finish()),
        Change::Locked => Err(Code::BudgetLocked.into()),
        _ => Err(Code::BudgetNotFound.into()),
    }
}

/// `GET /v1/budgets/usage`: of the budget that is named, or the one set last; without one, of this
/// month.
pub async fn usage(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<BudgetQuery>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let wanted = query.period.as_deref().map(period).transpose()?;
    let scope = scope(query.key_id.clone(), query.spell.clone())?;
    let chosen = chosen(query)?;
    let mut books = state.db.begin_read().await?;
    let budgets = budget::of_accounts(&mut books, [&caller.account]).await?;
    let budget = budgets.into_iter().find(|budget| chosen(budget));
    let period = budget.as_ref().map(|budget| budget.period).or(wanted).unwrap_or(Period::Monthly);
    let window = period.window(state.clock.now());
    let spent = ledger::spent_in_window(&mut books, &caller.account, window, scope.parts()).await?;
    books.rollback().await?;
    let hard = budget.as_ref().and_then(|budget| budget.limits.hard);
    let taken = spent.posted.0.saturating_add(spent.pending.0);
    let remaining = hard.map(|hard| Nanos(hard.0.saturating_sub(taken).max(0)).cents_rounded_down());
    Ok(HttpResponse::Ok().json(json!({
        "user_id": caller.account,
        "period": period,
        "window_start": window.start,
        "window_end": window.end,
        "total_calls": spent.calls,
        "total_cost_cents": spent.posted.cents_rounded_up(),
        "reserved_cents": spent.pending.cents_rounded_up(),
        "remaining_cents": remaining,
        "soft_limit_cents": budget.as_ref().and_then(|budget| budget.limits.soft).map(Nanos::cents_rounded_up),
        "hard_limit_cents": hard.map(Nanos::cents_rounded_up),
    })))
}

fn flag(name: &str, given: Option<&str>) -> Result<bool, ApiError> {
    match given {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(ApiError::invalid(format!("`{name}` must be true or false."))),
    }
}

fn period(name: &str) -> Result<Period, ApiError> {
    Period::parse(name)
        .ok_or_else(|| ApiError::invalid("`period` must be daily, weekly, monthly, yearly or lifetime."))
}

fn scope(key_id: Option<String>, spell: Option<String>) -> Result<Scope, ApiError> {
    match (key_id, spell) {
        (None, None) => Ok(Scope::Account),
        (Some(key), None) => Ok(Scope::Key(key.into())),
        (None, Some(spell)) => Ok(Scope::Spell(spell)),
        (Some(_), Some(_)) => Err(ApiError::invalid("A budget is of one key or of one spell, not of both.")),
    }
}

/// A new budget of a key or spell that is not there would never count anything. One that exists may
/// be changed also when its key was revoked or its spell deleted.
async fn require_known(state: &AppState, caller: &Caller, scope: &Scope) -> Result<(), ApiError> {
    let budgets = budget::of_account(&state.db, &caller.account).await?;
    if budgets.iter().any(|budget| budget.scope == *scope) {
        return Ok(());
    }
    match scope {
        Scope::Account => Ok(()),
        Scope::Key(key) => match state.identity.has_key(&caller.account, key).await? {
            true => Ok(()),
            false => Err(ApiError::new(Code::NotFound, "There is no such key in this account.")),
        },
        Scope::Spell(spell) => match state.spells.find(spell).await? {
            Some(_) => Ok(()),
            None => Err(Code::SpellNotFound.into()),
        },
    }
}

/// Which budgets a query means: those of its scope, and of its period if it names one.
fn chosen(query: BudgetQuery) -> Result<impl Fn(&Budget) -> bool, ApiError> {
    let period = query.period.as_deref().map(period).transpose()?;
    let scope = scope(query.key_id, query.spell)?;
    Ok(move |budget: &Budget| budget.scope == scope && period.is_none_or(|period| period == budget.period))
}

fn limits(body: &BudgetBody) -> Result<Limits, ApiError> {
    let cents = |field: &str, cents: i64| {
        Nanos::from_cents(cents)
            .ok_or_else(|| ApiError::invalid(format!("`{field}` must be from 0 to {MAX_CENTS}.")))
    };
    let soft = body.soft_limit_cents.map(|limit| cents("soft_limit_cents", limit)).transpose()?;
    let hard = body.hard_limit_cents.map(|limit| cents("hard_limit_cents", limit)).transpose()?;
    if let (Some(soft), Some(hard)) = (soft, hard)
        && soft > hard
    {
        return Err(ApiError::invalid("`soft_limit_cents` must not be greater than `hard_limit_cents`."));
    }
    let thresholds = body.notify_thresholds.clone().unwrap_or_default();
    if thresholds.len() > MAX_THRESHOLDS {
        return Err(ApiError::invalid(format!(
            "`notify_thresholds` may name {MAX_THRESHOLDS} amounts at most."
        )));
    }
    for threshold in &thresholds {
        cents("notify_thresholds", *threshold)?;
    }
    Ok(Limits { soft, hard, notify_thresholds: thresholds, locked: body.locked.unwrap_or(false) })
}

fn budget_json(budget: &Budget) -> Value {
    let (key, spell) = budget.scope.parts();
    json!({
        "id": budget.id,
        "account_id": budget.account,
        "scope": budget.scope.to_string(),
        "key_id": key,
        "spell": spell,
        "period": budget.period,
        "soft_limit_cents": budget.limits.soft.map(Nanos::cents_rounded_up),
        "hard_limit_cents": budget.limits.hard.map(Nanos::cents_rounded_up),
        "notify_thresholds": budget.limits.notify_thresholds,
        "locked": budget.limits.locked,
        "created_at": budget.created_at,
        "updated_at": budget.updated_at,
    })
}
