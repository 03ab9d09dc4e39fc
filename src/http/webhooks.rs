//! `/webhooks/stripe` and `/internal/billing/webhook/payment`, where Stripe and the payment service tell
//! us, and `/v1/webhooks` and `/internal/billing/dead-letters`, where an operator sees to what could not
//! be made sense of.

use actix_web::{FromRequest, HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    AppState,
    caller::{self, Admin},
    error::{ApiError, Code},
    extract::{NoQuery, Page, Query, Raw, id_of},
    quota,
};
use crate::{
    clock::Time,
    inbox::{self, Source, StoredEvent},
    payment, stripe,
};

/// `POST /webhooks/stripe`
pub async fn of_stripe(
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
    state.webhooks.stripe.receive(header, &body, secrets).await?;
    Ok(HttpResponse::Ok().json(json!({ "received": true })))
}

impl From<stripe::webhook::Rejected> for ApiError {
    fn from(rejected: stripe::webhook::Rejected) -> ApiError {
        use stripe::webhook::Rejected;
        match rejected {
            Rejected::Signature(invalid) => not_believed(&invalid),
            Rejected::NoEvent(problem) => ApiError::invalid(problem),
            // Whatever it is, Stripe is to send the event again.
            Rejected::Store(_) => Code::WebhookFailed.into(),
        }
    }
}

/// `POST /internal/billing/webhook/payment`: open to who shows the service key or signs the body. Who
/// signs it has to sign it well.
pub async fn of_payment(
    state: web::Data<AppState>,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    const NO_KEY: &str =
        "Send a service key of this server as `X-Internal-Key`, or sign the body in `X-Signature`.";
    let service = match caller::service(request.headers(), &state.config.service_tokens) {
        Ok(service) => service,
        Err(problem) => return Ok(caller::refuse(&request, problem).await),
    };
    let signature = request.headers().get("x-signature");
    let signature = signature.map(|value| String::from_utf8_lossy(value.as_bytes()));
    match &signature {
        None if service.is_none() => return Ok(caller::refuse(&request, NO_KEY).await),
        Some(_) if state.config.payment_webhook_keys.is_empty() => {
            state.metrics.payment_webhooks.with_label_values(&["disabled"]).inc();
            let message = "Signatures of the payment service can't be checked on this server: \
                           PAYMENT_WEBHOOK_PUBLIC_KEY is not set.";
            return Err(ApiError::new(Code::BillingDisabled, message));
        }
        _ => {}
    }
    let Raw(body) = Raw::from_request(&request, &mut body.into_inner()).await?;
    let credited = state.webhooks.payment.receive(signature.as_deref().map(str::trim), &body).await?;
    if credited.now {
        quota::show(&state, &credited.user_id, &credited.left);
    }
    Ok(HttpResponse::Ok().json(quota::answer(&credited.left)))
}

impl From<payment::webhook::Rejected> for ApiError {
    fn from(rejected: payment::webhook::Rejected) -> ApiError {
        use payment::webhook::Rejected;
        match rejected {
            Rejected::Signature(invalid) => not_believed(&invalid),
            Rejected::Refused(problem) => ApiError::invalid(problem),
            // Whatever it is, it is to be sent again.
            Rejected::Store(_) => Code::WebhookFailed.into(),
        }
    }
}

fn not_believed(why: &dyn std::fmt::Display) -> ApiError {
    ApiError::new(Code::InvalidSignature, format!("The event is not believed: {why}."))
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
    _: Admin,
    Query(query): Query<EventsQuery>,
) -> Result<HttpResponse, ApiError> {
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
    let events = page_of(&state, None, &statuses, &page).await?;
    Ok(HttpResponse::Ok().json(page.answer(events, cursor)))
}

/// The page's events, and one more if there are more.
async fn page_of(
    state: &AppState,
    source: Option<Source>,
    statuses: &[&str],
    page: &Page,
) -> Result<Vec<StoredEvent>, ApiError> {
    let before = page.cursor.as_deref().map(|cursor| {
        let parts = cursor.split_once('/').and_then(|(at, id)| Some((Time(at.parse().ok()?), id)));
        parts.ok_or_else(|| ApiError::invalid("`cursor` is none that a list gave out."))
    });
    Ok(inbox::list(&state.db, source, statuses, before.transpose()?, page.limit + 1).await?)
}

fn cursor(event: &StoredEvent) -> String {
    format!("{}/{}", event.received_at.0, event.id)
}

/// `GET /v1/webhooks/{id}`
pub async fn get(
    state: web::Data<AppState>,
    _: Admin,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    let id: String = id_of(path.into_inner()).ok_or_else(no_event)?;
    let event = inbox::get(&state.db, &id).await?.ok_or_else(no_event)?;
    Ok(HttpResponse::Ok().json(event))
}

/// `POST /v1/webhooks/{id}/replay`: applies the event once more, unless it was applied; 200 with what
/// became of it.
pub async fn replay(
    state: web::Data<AppState>,
    _: Admin,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    let id: String = id_of(path.into_inner()).ok_or_else(no_event)?;
    Ok(HttpResponse::Ok().json(replayed(&state, &id).await?))
}

async fn replayed(state: &AppState, id: &str) -> Result<StoredEvent, ApiError> {
    state.webhooks.replay(id).await?.ok_or_else(no_event)?;
    inbox::get(&state.db, id).await?.ok_or_else(no_event)
}

/// `POST /v1/webhooks/{id}/dismiss`: takes the event off the list without applying it.
pub async fn dismiss(
    state: web::Data<AppState>,
    _: Admin,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    let id: String = id_of(path.into_inner()).ok_or_else(no_event)?;
    let event = inbox::dismiss(&state.db, &id, state.clock.now()).await?;
    Ok(HttpResponse::Ok().json(event.ok_or_else(no_event)?))
}

/// An event of the payment service that was not credited.
#[derive(Serialize)]
struct DeadLetter {
    #[serde(flatten)]
    event: StoredEvent,
    /// Why it was not; `None` once it is, or while that is not known.
    reason: Option<String>,
}

impl From<StoredEvent> for DeadLetter {
    fn from(event: StoredEvent) -> DeadLetter {
        let reason = event.detail.clone().filter(|_| inbox::OPEN.contains(&event.status.as_str()));
        DeadLetter { event, reason }
    }
}

#[derive(Deserialize)]
pub struct PageQuery {
    limit: Option<String>,
    cursor: Option<String>,
}

/// `GET /internal/billing/dead-letters`: of the payment service's events those that an operator has to
/// see to.
pub async fn dead_letters(
    state: web::Data<AppState>,
    _: Admin,
    Query(query): Query<PageQuery>,
) -> Result<HttpResponse, ApiError> {
    let page = Page::new(query.limit.as_deref(), query.cursor, "")?;
    let events = page_of(&state, Some(Source::Payment), &inbox::OPEN, &page).await?;
    let letters = events.into_iter().map(DeadLetter::from).collect();
    Ok(HttpResponse::Ok().json(page.answer(letters, |letter| cursor(&letter.event))))
}

/// `POST /internal/billing/dead-letters/{id}/replay`: as `POST /v1/webhooks/{id}/replay`.
pub async fn replay_dead_letter(
    state: web::Data<AppState>,
    _: Admin,
    path: web::Path<String>,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    let id: String = id_of(path.into_inner()).ok_or_else(no_event)?;
    match Source::of(&id) {
        Source::Payment => Ok(HttpResponse::Ok().json(DeadLetter::from(replayed(&state, &id).await?))),
        Source::Stripe => Err(no_event()),
    }
}

fn no_event() -> ApiError {
    ApiError::new(Code::NotFound, "There is no such event.")
}
