//! How the process is: alive, ready, measured. Open to everyone.

use actix_web::{HttpResponse, web};
use serde_json::{Value, json};

use super::{
    AppState,
    error::{ApiError, Code},
};

/// `GET /healthz`, `GET /health`: the process lives.
pub async fn health() -> HttpResponse {
    HttpResponse::Ok().json(json!({ "status": "ok", "version": env!("CARGO_PKG_VERSION") }))
}

/// `GET /ready`: 200 while the database answers. Redis and Stripe are reported, and are no failure.
pub async fn ready(state: web::Data<AppState>) -> HttpResponse {
    let (database, redis) = futures_util::future::join(state.db.now(), state.limiter.ping()).await;
    let redis = match redis {
        None => "not configured".to_owned(),
        Some(Ok(())) => "ok".to_owned(),
        Some(Err(_)) => "unavailable".to_owned(),
    };
    let stripe = match state.config.billing.missing().as_slice() {
        [] => "configured".to_owned(),
        [half] => format!("{half} is not set"),
        _ => "not configured".to_owned(),
    };
    let mut body = json!({ "status": "ok", "database": "ok", "redis": redis, "stripe": stripe });
    match database {
        // Without the first admin's key nobody could be told from a stranger.
        Ok(_) if state.identity.is_ready() => HttpResponse::Ok().json(body),
        _ => {
            body["status"] = Value::from("unavailable");
            body["database"] = Value::from("unavailable");
            body["error"] = Value::from(Code::DatabaseUnavailable.as_str());
            body["message"] = Value::from("The database does not answer, or is still being set up.");
            HttpResponse::ServiceUnavailable().json(body)
        }
    }
}

/// `GET /metrics`, in Prometheus' text format.
pub async fn metrics(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let in_use = i64::try_from(state.db.connections_in_use()).unwrap_or(i64::MAX);
    state.metrics.db_pool_in_use.set(in_use);
    let text = state.metrics.render().map_err(|error| {
        tracing::error!(%error, "the metrics can't be written");
        ApiError::from(Code::Internal)
    })?;
    Ok(HttpResponse::Ok().content_type("text/plain; version=0.0.4; charset=utf-8").body(text))
}
