//! The outside: routes in one table, errors in one table, a file per surface.

mod accounts;
mod budgets;
mod caller;
mod casts;
pub mod error;
pub mod extract;
mod health;
mod holds;
mod keys;
mod request_id;
mod spells;
mod state;
mod usage;

use actix_web::{
    HttpResponse, middleware,
    web::{self, delete, get, patch, post, put, resource, scope},
};

use error::{ApiError, Code};
pub use request_id::log_requests;
pub use state::AppState;

/// Every route of the platform.
pub fn routes(config: &mut web::ServiceConfig) {
    let at = |path: &str| resource(path).default_service(web::to(method_not_allowed));
    config
        // A path that is no UTF-8 names nothing.
        .app_data(web::PathConfig::default().error_handler(|_, _| ApiError::from(Code::NotFound).into()))
        .service(at("/healthz").route(get().to(health::health)))
        .service(at("/health").route(get().to(health::health)))
        .service(at("/ready").route(get().to(health::ready)))
        .service(at("/metrics").route(get().to(health::metrics)))
        .service(at("/webhooks/stripe").route(post().to(health::billing_disabled)))
        .service(
            scope("/v1")
                .wrap(middleware::from_fn(caller::identify))
                .service(at("/cast").route(post().to(casts::cast)))
                .service(at("/casts").route(get().to(casts::list)))
                .service(at("/casts/{id}").route(get().to(casts::get)))
                .service(at("/holds").route(post().to(holds::create)).route(get().to(holds::list)))
                .service(at("/holds/{id}").route(get().to(holds::get)).route(delete().to(holds::void)))
                .service(at("/holds/{id}/settle").route(post().to(holds::settle)))
                .service(at("/holds/{id}/extend").route(post().to(holds::extend)))
                .service(
                    at("/budgets")
                        .route(post().to(budgets::post))
                        .route(put().to(budgets::put))
                        .route(get().to(budgets::get))
                        .route(delete().to(budgets::delete)),
                )
                .service(at("/budgets/usage").route(get().to(budgets::usage)))
                .service(at("/usage").route(get().to(usage::get)))
                .service(at("/keys").route(post().to(keys::create)).route(get().to(keys::list)))
                .service(at("/keys/{id}").route(get().to(keys::get)).route(delete().to(keys::revoke)))
                .service(at("/keys/{id}/rotate").route(post().to(keys::rotate)))
                .service(at("/accounts").route(post().to(accounts::create)).route(get().to(accounts::list)))
                .service(
                    at("/accounts/{id}").route(get().to(accounts::get)).route(patch().to(accounts::update)),
                )
                .service(at("/spells").route(get().to(spells::list)))
                .service(
                    at("/spells/{name:.+}")
                        .route(get().to(spells::get))
                        .route(put().to(spells::put))
                        .route(delete().to(spells::delete)),
                )
                .service(at("/billing").route(get().to(health::billing_disabled)))
                .service(at("/billing/checkout").route(post().to(health::billing_disabled)))
                .service(at("/billing/portal").route(post().to(health::billing_disabled)))
                .service(at("/plans").route(get().to(health::billing_disabled)))
                .service(at("/plans/{code}").route(put().to(health::billing_disabled)))
                .default_service(web::to(not_found)),
        )
        .default_service(web::to(not_found));
}

async fn not_found() -> Result<HttpResponse, ApiError> {
    Err(Code::NotFound.into())
}

async fn method_not_allowed() -> Result<HttpResponse, ApiError> {
    Err(Code::MethodNotAllowed.into())
}
