//! `/v1/cast` and what was cast.

use actix_web::{
    HttpMessage, HttpRequest, HttpResponse, ResponseError,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    AppState,
    caller::show_rate,
    error::{ApiError, Code},
    extract::{Body, NoQuery, Page, Query, id_of},
};
use crate::{
    cast::{
        Admission, Admitted, Failure, Finished,
        history::{self, CastRow, Filter},
    },
    clock::Time,
    id::{CastId, HoldId},
    identity::{Caller, KeyScope},
    ledger::{Answer, Keyed, Limit, Refusal},
    money::Nanos,
    spell::upstream::UpstreamError,
};

#[derive(Deserialize)]
pub struct CastBody {
    pub spell_name: String,
    pub payload: Option<Value>,
}

/// `POST /v1/cast`
pub async fn cast(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    _: NoQuery,
    body: Body<CastBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Cast)?;
    let keyed = idempotency_key(&request, &body.raw)?;
    let CastBody { spell_name, payload } = body.value;
    let payload = payload.unwrap_or(Value::Null);
    let cast = state.pipeline.cast(&caller, &spell_name, payload, keyed, render).await;
    Ok(respond(cast?))
}

/// As it is sent, without a tree of values in between: every cast passes here.
#[derive(Serialize)]
struct Completed<'a> {
    id: &'a CastId,
    status: &'static str,
    spell_name: &'a str,
    result: &'a Value,
    error_code: Option<&'static str>,
    created_at: Time,
    cost_cents: i64,
    cost_usd: String,
}

/// The answer to a cast that ran.
fn render(finished: &Finished) -> Answer {
    let code = match &finished.result {
        Ok(result) => {
            let completed = Completed {
                id: &finished.id,
                status: "COMPLETED",
                spell_name: &finished.spell,
                result,
                error_code: None,
                created_at: finished.created_at,
                cost_cents: finished.cost.cents_rounded_up(),
                cost_usd: finished.cost.to_usd(),
            };
            match serde_json::to_string(&completed) {
                Ok(body) => return Answer { status: 200, body },
                Err(_) => Code::Internal,
            }
        }
        Err(UpstreamError::Failed(_)) => Code::UpstreamFailed,
        Err(UpstreamError::TimedOut) => Code::UpstreamTimeout,
    };
    let error = match &finished.result {
        Err(UpstreamError::Failed(what)) => {
            ApiError::new(code, format!("{} ({what})", code.sentence().trim_end_matches('.')))
        }
        _ => ApiError::from(code),
    };
    Answer { status: code.status(), body: error.with("id", finished.id.as_str()).body() }
}

/// What an idempotency key is told whose cast was charged, and its answer lost.
pub fn lost(cast: &HoldId) -> Answer {
    let message = "The cast was charged, as its spell states, and its answer was lost.";
    let error = ApiError::new(Code::UpstreamFailed, message).with("id", cast.as_str());
    Answer { status: error.code.status(), body: error.body() }
}

/// The request's `Idempotency-Key`, with a hash of everything that makes it the same request.
///
/// Errors: 400 if it is no 1 to 255 visible ASCII characters.
pub fn idempotency_key(request: &HttpRequest, body: &[u8]) -> Result<Option<Keyed>, ApiError> {
    let Some(key) = request.headers().get("idempotency-key") else { return Ok(None) };
    let visible =
        |key: &&str| (1..=255).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic());
    let key = key.to_str().ok().filter(visible);
    let key =
        key.ok_or_else(|| ApiError::invalid("`Idempotency-Key` must be 1 to 255 visible ASCII characters."))?;
    let mut hash = Sha256::new();
    hash.update(request.path().as_bytes());
    hash.update([0]);
    hash.update(body);
    Ok(Some(Keyed { key: key.to_owned(), request_hash: hex::encode(hash.finalize()) }))
}

/// The answer to a request that wanted to spend, whatever it came to, with how the rate stands.
pub fn respond(Admitted { admission, standing }: Admitted<Answer>) -> HttpResponse {
    let mut response = match admission {
        Admission::Admitted(answer) => answered(answer),
        Admission::Replayed(answer) => replayed(answer),
        Admission::RateLimited => {
            ApiError::rate_limited(standing.map_or(1, |standing| standing.retry_after_seconds))
                .error_response()
        }
        other => refused(other).error_response(),
    };
    if let Some(standing) = &standing {
        show_rate(&mut response, standing);
    }
    response
}

/// Middleware for what is limited: an answer that came before the rate was asked, a 400 or a 404,
/// shows how it stands as well, with nothing taken.
pub async fn always_show_rate<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let limited = request.method() == Method::POST;
    let caller = request.extensions().get::<Caller>().cloned().filter(|_| limited);
    let state = request.app_data::<web::Data<AppState>>().cloned();
    let mut response = next.call(request).await?;
    if let (Some(caller), Some(state)) = (caller, state)
        && !response.headers().contains_key("ratelimit-limit")
        && let Some(standing) = state.pipeline.standing(&caller).await
    {
        show_rate(response.response_mut(), &standing);
    }
    Ok(response)
}

pub(super) fn answered(answer: Answer) -> HttpResponse {
    let status = StatusCode::from_u16(answer.status).unwrap_or_default();
    HttpResponse::build(status).content_type("application/json").body(answer.body)
}

/// An idempotency key's first answer, marked as one.
pub(super) fn replayed(answer: Answer) -> HttpResponse {
    let mut response = answered(answer);
    let (name, value) = ("idempotent-replayed", HeaderValue::from_static("true"));
    response.headers_mut().insert(HeaderName::from_static(name), value);
    response
}

fn refused(admission: Admission<Answer>) -> ApiError {
    match admission {
        Admission::Refused(refusal) => over_the_limit(&refusal),
        Admission::RateLimited => Code::RateLimited.into(),
        Admission::Suspended => Code::AccountSuspended.into(),
        Admission::NoSuchSpell => Code::SpellNotFound.into(),
        Admission::KeyReused => Code::IdempotencyKeyReused.into(),
        Admission::InProgress => Code::InProgress.into(),
        Admission::NoSuchAccount => Code::NotFound.into(),
        Admission::OutOfRange => ApiError::invalid("The amount would not fit the account's totals."),
        Admission::Admitted(_) | Admission::Replayed(_) => Code::Internal.into(),
    }
}

/// The 402, with the figures that a program needs to act on it.
fn over_the_limit(refusal: &Refusal) -> ApiError {
    let Refusal { granted, spent, reserved, requested, .. } = refusal;
    let (reserved, requested) = (reserved.cents_rounded_up(), requested.cents_rounded_up());
    match &refusal.limit {
        Limit::Budget { scope, period, resets_at } => {
            let (limit, spent) = (granted.cents_rounded_down(), spent.cents_rounded_up());
            let message = format!(
                "The {} budget of {scope} has a hard limit of {limit} cents, of which {spent} are spent and \
                 {reserved} reserved; this asks for {requested} more.",
                period.as_str(),
            );
            ApiError::new(Code::BudgetExceeded, message)
                .with("period", period.as_str())
                .with("scope", scope.to_string())
                .with("hard_limit_cents", limit)
                .with("spent_cents", spent)
                .with("reserved_cents", reserved)
                .with("requested_cents", requested)
                .with("resets_at", resets_at.map(|at| at.to_string()))
        }
        Limit::Credits => {
            let left = Nanos(granted.0.saturating_sub(spent.0));
            let (left, owed) = (left.0.max(0), left.0.min(0).saturating_neg());
            let (left, owed) = (Nanos(left).cents_rounded_down(), Nanos(owed).cents_rounded_up());
            let message = match owed {
                0 => format!(
                    "The account's credits pay for {left} cents, of which {reserved} are reserved; this asks \
                     for {requested}."
                ),
                owed => {
                    format!("The account owes credits worth {owed} cents; this asks for {requested} more.")
                }
            };
            ApiError::new(Code::InsufficientCredits, message)
                .with("credits_cents", left)
                .with("reserved_cents", reserved)
                .with("requested_cents", requested)
                .with("owed_cents", owed)
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        match failure {
            Failure::Ledger(error) => error.into(),
            Failure::Store(error) => error.into(),
            Failure::Unsettled(cast) => ApiError::from(Code::CastUnsettled).with("id", cast.as_str()),
        }
    }
}

#[derive(Deserialize)]
pub struct CastsQuery {
    status: Option<String>,
    key_id: Option<String>,
    spell: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /v1/casts`
pub async fn list(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<CastsQuery>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let page = Page::new(query.limit.as_deref(), query.cursor, "cast_")?;
    let known = |status: &str| ["PENDING", "COMPLETED", "FAILED"].contains(&status);
    let status = query.status.map(|status| status.to_ascii_uppercase());
    if status.as_deref().is_some_and(|status| !known(status)) {
        return Err(ApiError::invalid("`status` must be PENDING, COMPLETED or FAILED."));
    }
    let filter =
        Filter { status: status.as_deref(), key: query.key_id.as_deref(), spell: query.spell.as_deref() };
    let before = page.cursor.as_deref();
    let rows = history::list(&state.db, &caller.account, filter, before, page.limit + 1).await?;
    let mut answer = page.answer(rows.iter().map(|row| row.id.as_str()).collect(), |id| (*id).to_owned());
    answer["data"] = rows.iter().take(page.limit as usize).map(cast_json).collect();
    Ok(HttpResponse::Ok().json(answer))
}

/// `GET /v1/casts/{id}`
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    id: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let no_cast = || ApiError::new(Code::NotFound, "There is no such cast.");
    let id: CastId = id_of(id.into_inner()).ok_or_else(no_cast)?;
    let row = history::get(&state.db, &caller.account, &id).await?.ok_or_else(no_cast)?;
    Ok(HttpResponse::Ok().json(cast_json(&row)))
}

fn cast_json(row: &CastRow) -> Value {
    json!({
        "id": row.id,
        "status": row.status,
        "spell_name": row.spell,
        "key_id": row.key,
        "error_code": row.error_code,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "cost_cents": row.cost.cents_rounded_up(),
        "cost_usd": row.cost.to_usd(),
    })
}
