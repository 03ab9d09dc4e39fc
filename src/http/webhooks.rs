//! `/webhooks/stripe`, where Stripe tells us, and `/v1/webhooks`, where an operator sees to what could
//! not be made sense of.

use actix_web::{HttpRequest, HttpResponse, web};
use serde::Deserialize;
use serde_json::json;

use super::{
    AppState,
    error::{ApiError, Code},
    extract::{NoQuery, Page, Query, Raw, id_of},
};
use crate::{
    clock::Time,
    identity::{Caller, KeyScope},
    inbox::{self, Source, StoredEvent},
    stripe::webhook::Rejected,
};

/// `POST /webhooks/stripe`
pub async fn stripe(
    state: web::Data<AppState>,
    request: HttpRequest,
    Raw(body): Raw,
) -> Result<HttpResponse, ApiError> {
    let secrets = &state.config.billing.webhook_secrets;
    if secrets.is_empty() {
        state.metrics.stripe_webhooks.with_label_values(&["other", "disabled"]).inc();
        let message = "Stripe's webhooks are switched off on this server: STRIPE_WEBHOOK_SECRET is not set.";
        return Err(ApiError::new(Code::BillingDisabled, message));
    }
    let header = request.headers().get("stripe-signature").and_then(|header| header.to_str().ok());
    state.webhook.receive(header, &body, secrets).await?;
    Ok(HttpResponse::Ok().json(json!({ "received": true })))
}

impl From<Rejected> for ApiError {
    fn from(rejected: Rejected) -> ApiError {
        match rejected {
            Rejected::Signature(invalid) => {
                ApiError::new(Code::InvalidSignature, format!("The event is not believed: {invalid}."))
            }
            Rejected::NoEvent(problem) => ApiError::invalid(problem),
            // Whatever it is, Stripe is to send the event again.
            Rejected::Store(_) => Code::WebhookFailed.into(),
        }
    }
}

#[derive(Deserialize)]
pub struct EventsQuery {
    status: Option<String>,
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /v1/webhooks`: what an operator has to see to, or with `?status=` what has that status.
pub async fn list(
    state: web::Data<AppState>,
    caller: Caller,
    Query(query): Query<EventsQuery>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Admin)?;
    let statuses = match query.status.as_deref() {
        None => inbox::OPEN.to_vec(),
        Some("all") => inbox::STATUSES.to_vec(),
        Some(one) if inbox::STATUSES.contains(&one) => vec![one],
        Some(_) => {
            let known = inbox::STATUSES.join(", ");
            return Err(ApiError::invalid(format!("`status` must be all or one of {known}.")));
        }
    };
    let page = Page::new(query.limit.as_deref(), query.cursor, "")?;
    let before = page.cursor.as_deref().map(|cursor| {
        let parts = cursor.split_once('/').and_then(|(at, id)| Some((Time(at.parse().ok()?), id)));
        parts.ok_or_else(|| ApiError::invalid("`cursor` is none that a list gave out."))
    });
    let events = inbox::list(&state.db, &statuses, before.transpose()?, page.limit + 1).await?;
    let cursor = |event: &StoredEvent| format!("{}/{}", event.received_at.0, event.id);
    Ok(HttpResponse::Ok().json(page.answer(events, cursor)))
}

/// `GET /v1/webhooks/{id}`
pub async fn get(
    state: web::Data<AppState>,
    caller: Caller,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Admin)?;
    let id: String = id_of(path.into_inner()).ok_or_else(no_event)?;
    let event = inbox::get(&state.db, Source::Stripe, &id).await?.ok_or_else(no_event)?;
    Ok(HttpResponse::Ok().json(event))
}

/// `POST /v1/webhooks/{id}/replay`: applies the event once more, unless it was applied; 200 with what
/// became of it.
pub async fn replay(
    state: web::Data<AppState>,
    caller: Caller,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Admin)?;
    let id: String = id_of(path.into_inner()).ok_or_else(no_event)?;
    state.webhook.replay(&id).await?.ok_or_else(no_event)?;
    let event = inbox::get(&state.db, Source::Stripe, &id).await?.ok_or_else(no_event)?;
    Ok(HttpResponse::Ok().json(event))
}

/// `POST /v1/webhooks/{id}/dismiss`: takes the event off the list without applying it.
pub async fn dismiss(
    state: web::Data<AppState>,
    caller: Caller,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Admin)?;
    let id: String = id_of(path.into_inner()).ok_or_else(no_event)?;
    let event = inbox::dismiss(&state.db, Source::Stripe, &id, state.clock.now()).await?;
    Ok(HttpResponse::Ok().json(event.ok_or_else(no_event)?))
}

fn no_event() -> ApiError {
    ApiError::new(Code::NotFound, "There is no such event.")
}
