//! A request's id, given back as `X-Request-Id` and written beside what is logged about it.

use std::time::Instant;

use actix_web::{
    Error,
    body::MessageBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{HeaderName, HeaderValue},
    middleware::Next,
};

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Takes the caller's id where it is 1 to 128 visible ASCII characters, and makes one otherwise;
/// logs each request's end, at `info` if it failed on our side and at `debug` if not. The query is
/// left out: it may hold what should not be written down.
pub async fn log_requests(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let began = Instant::now();
    let visible = |id: &&HeaderValue| {
        (1..=128).contains(&id.len()) && id.as_bytes().iter().all(|byte| byte.is_ascii_graphic())
    };
    let id = request.headers().get(&HEADER).filter(visible).cloned().or_else(made);
    let mut response = next.call(request).await?;
    let status = response.status().as_u16();
    let seen = (response.request().method().as_str(), response.request().path(), began.elapsed().as_micros());
    let request_id = id.as_ref().and_then(|id| id.to_str().ok()).unwrap_or_default();
    match status {
        500.. => {
            tracing::info!(request_id, method = seen.0, path = seen.1, status, micros = seen.2, "failed")
        }
        _ => tracing::debug!(request_id, method = seen.0, path = seen.1, status, micros = seen.2, "answered"),
    }
    if let Some(id) = id {
        response.headers_mut().insert(HEADER, id);
    }
    Ok(response)
}

fn made() -> Option<HeaderValue> {
    format!("req_{}", uuid::Uuid::now_v7().simple()).parse().ok()
}
