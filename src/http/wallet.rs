//! `/api/billing`: what prepaid credits are left. Errors here have a shape of their own:
//! `{"error":{"code","message"}}`, the code being the status in words. Callers are known by a key of
//! ours, or as users of another service by its token.

use actix_web::{
    Error, HttpResponse, ResponseError,
    body::{self, BoxBody, EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{StatusCode, header::CONTENT_LENGTH},
    middleware::Next,
    web,
};
use serde_json::{Value, json};

use super::{
    AppState, caller,
    error::{ApiError, Code},
    extract::NoQuery,
};
use crate::{
    identity::{Caller, KeyScope},
    wallet,
};

/// `GET /api/billing/health`, open to all: this part lives.
pub async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok", "service": "billing" }))
}

/// `GET /api/billing/balance`
pub async fn balance(
    state: web::Data<AppState>,
    caller: Caller,
    _: NoQuery,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Read)?;
    let held = wallet::held(&state.db, &caller.account).await?;
    let credits = held.credits.0 / state.config.billing.credit_price.0;
    Ok(HttpResponse::Ok().json(json!({ "credits": credits, "allocated_tokens": held.tokens })))
}

/// Middleware for routes that need a caller: who shows nothing to be known by is told so.
pub async fn identify<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let shown = ["authorization", "x-api-key", "x-internal-key"];
    if shown.iter().any(|name| request.headers().contains_key(*name)) {
        return caller::identify_with_tokens(request, next).await;
    }
    let refusal = ApiError::new(Code::Forbidden, "Not authenticated").error_response();
    Ok(request.into_response(refusal).map_into_right_body())
}

/// Middleware, outside of all others: every error goes out in this surface's shape.
pub async fn own_errors<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    // Refusals come as responses too, and to keep a clone of the request would make routing it panic.
    reshaped(next.call(request).await?.map_into_boxed_body()).await
}

async fn reshaped(response: ServiceResponse<BoxBody>) -> Result<ServiceResponse<BoxBody>, Error> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return Ok(response);
    }
    let (request, response) = response.into_parts();
    let (mut head, body) = response.into_parts();
    let body = body::to_bytes(body).await.unwrap_or_default();
    let told: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = told["message"].as_str().unwrap_or_else(|| reason(status));
    let code = reason(status).to_ascii_uppercase().replace(' ', "_");
    let body = json!({ "error": { "code": code, "message": message } }).to_string();
    head.headers_mut().remove(CONTENT_LENGTH);
    Ok(ServiceResponse::new(request, head.set_body(BoxBody::new(body))))
}

fn reason(status: StatusCode) -> &'static str {
    status.canonical_reason().unwrap_or("error")
}
