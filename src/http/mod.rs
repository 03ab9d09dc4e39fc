//! The outside: routes in one table, errors in one table, a file per surface.

mod accounts;
mod billing;
mod budgets;
mod caller;
pub mod casts;
mod credits;
pub mod error;
pub mod extract;
mod health;
mod holds;
mod internal;
mod keys;
mod plans;
mod pricing;
mod quota;
mod request_id;
mod spells;
mod state;
mod usage;
mod wallet;
mod webhooks;

use actix_web::{
    HttpResponse, Resource, ResponseError, Route, guard,
    http::header::{ALLOW, HeaderValue},
    middleware,
    web::{self, delete, patch, post, put, resource, scope},
};

use error::{ApiError, Code};
pub use request_id::log_requests;
pub use state::AppState;

/// Every route of the platform.
pub fn routes(config: &mut web::ServiceConfig) {
    config
        // A path that is no UTF-8 names nothing.
        .app_data(web::PathConfig::default().error_handler(|_, _| ApiError::from(Code::NotFound).into()))
        .service(at("/healthz", "GET, HEAD").route(get().to(health::health)))
        .service(at("/health", "GET, HEAD").route(get().to(health::health)))
        .service(at("/ready", "GET, HEAD").route(get().to(health::ready)))
        .service(at("/metrics", "GET, HEAD").route(get().to(health::metrics)))
        .service(at("/billing/return", "GET, HEAD").route(get().to(billing::returned)))
        .service(at("/webhooks/stripe", "POST").route(post().to(webhooks::of_stripe)))
        .service(
            scope("/v1")
                .wrap(middleware::from_fn(caller::identify))
                .service(
                    at("/cast", "POST")
                        .wrap(middleware::from_fn(casts::always_show_rate))
                        .route(post().to(casts::cast)),
                )
                .service(at("/casts", "GET, HEAD").route(get().to(casts::list)))
                .service(at("/casts/{id}", "GET, HEAD").route(get().to(casts::get)))
                .service(
                    at("/holds", "POST, GET, HEAD")
                        .wrap(middleware::from_fn(casts::always_show_rate))
                        .route(post().to(holds::create))
                        .route(get().to(holds::list)),
                )
                .service(
                    at("/holds/{id}", "GET, HEAD, DELETE")
                        .route(get().to(holds::get))
                        .route(delete().to(holds::void)),
                )
                .service(at("/holds/{id}/settle", "POST").route(post().to(holds::settle)))
                .service(at("/holds/{id}/extend", "POST").route(post().to(holds::extend)))
                .service(
                    at("/budgets", "POST, PUT, GET, HEAD, DELETE")
                        .route(post().to(budgets::post))
                        .route(put().to(budgets::put))
                        .route(get().to(budgets::get))
                        .route(delete().to(budgets::delete)),
                )
                .service(at("/budgets/usage", "GET, HEAD").route(get().to(budgets::usage)))
                .service(at("/usage", "GET, HEAD").route(get().to(usage::get)))
                .service(
                    at("/keys", "POST, GET, HEAD").route(post().to(keys::create)).route(get().to(keys::list)),
                )
                .service(
                    at("/keys/{id}", "GET, HEAD, DELETE")
                        .route(get().to(keys::get))
                        .route(delete().to(keys::revoke)),
                )
                .service(at("/keys/{id}/rotate", "POST").route(post().to(keys::rotate)))
                .service(
                    at("/accounts", "POST, GET, HEAD")
                        .route(post().to(accounts::create))
                        .route(get().to(accounts::list)),
                )
                .service(
                    at("/accounts/{id}", "GET, HEAD, PATCH")
                        .route(get().to(accounts::get))
                        .route(patch().to(accounts::update)),
                )
                .service(at("/spells", "GET, HEAD").route(get().to(spells::list)))
                .service(
                    at("/spells/{name:.+}", "GET, HEAD, PUT, DELETE")
                        .route(get().to(spells::get))
                        .route(put().to(spells::put))
                        .route(delete().to(spells::delete)),
                )
                .service(at("/billing", "GET, HEAD").route(get().to(billing::get)))
                .service(at("/billing/checkout", "POST").route(post().to(billing::checkout)))
                .service(at("/billing/portal", "POST").route(post().to(billing::portal)))
                .service(at("/plans", "GET, HEAD").route(get().to(plans::list)))
                .service(
                    at("/plans/{code}", "GET, HEAD, PUT")
                        .route(get().to(plans::get))
                        .route(put().to(plans::put)),
                )
                .service(at("/webhooks", "GET, HEAD").route(get().to(webhooks::list)))
                .service(at("/webhooks/{id}", "GET, HEAD").route(get().to(webhooks::get)))
                .service(at("/webhooks/{id}/replay", "POST").route(post().to(webhooks::replay)))
                .service(at("/webhooks/{id}/dismiss", "POST").route(post().to(webhooks::dismiss)))
                .default_service(web::to(not_found)),
        )
        .service(
            scope("/api/billing")
                .wrap(middleware::from_fn(wallet::own_errors))
                // Open to all; what needs a caller comes after.
                .service(at("/health", "GET, HEAD").route(get().to(wallet::health)))
                .service(at("/pricing", "GET, HEAD").route(get().to(pricing::list)))
                .service(
                    at("/pricing/{model:.+}", "GET, HEAD, PUT")
                        .route(get().to(pricing::get))
                        .route(put().to(pricing::put).wrap(middleware::from_fn(wallet::identify))),
                )
                .service(
                    scope("")
                        .wrap(middleware::from_fn(wallet::identify))
                        .service(at("/balance", "GET, HEAD").route(get().to(wallet::balance)))
                        .service(
                            at("/balance/category/{category}", "GET, HEAD")
                                .route(get().to(credits::category)),
                        )
                        .service(at("/credits/add", "POST").route(post().to(credits::add)))
                        .service(at("/credits/allocate", "POST").route(post().to(credits::allocate)))
                        .service(at("/tokens/consume", "POST").route(post().to(credits::consume)))
                        .service(at("/transactions", "GET, HEAD").route(get().to(credits::list)))
                        .service(at("/reset", "POST").route(post().to(credits::reset)))
                        .default_service(web::to(not_found)),
                ),
        )
        .service(at("/internal/billing/webhook/payment", "POST").route(post().to(webhooks::of_payment)))
        .service(
            // Before the scope below, which begins in the same way and takes what is left.
            scope("/internal/billing/quota")
                .wrap(middleware::from_fn(internal::for_services))
                .service(at("/check/{user_id:.+}", "GET, HEAD").route(get().to(quota::check)))
                .service(at("/receipts/{user_id:.+}", "GET, HEAD").route(get().to(quota::receipts)))
                .service(at("/debit", "POST").route(post().to(quota::debit)))
                .service(at("/credit", "POST").route(post().to(quota::credit)))
                .default_service(web::to(not_found)),
        )
        .service(
            // For other services and for admins: each handler takes an `Admin`.
            scope("/internal/billing")
                .wrap(middleware::from_fn(caller::identify))
                .service(at("/dead-letters", "GET, HEAD").route(get().to(webhooks::dead_letters)))
                .service(
                    at("/dead-letters/{id}/replay", "POST").route(post().to(webhooks::replay_dead_letter)),
                )
                .service(
                    at("/plans", "GET, HEAD, POST")
                        .route(get().to(plans::list_for_services))
                        .route(post().to(plans::create)),
                )
                .service(
                    at("/plans/{code}", "GET, HEAD, PUT")
                        .route(get().to(plans::get_for_services))
                        .route(put().to(plans::edit)),
                )
                .default_service(web::to(not_found)),
        )
        .default_service(web::to(not_found));
}

async fn not_found() -> Result<HttpResponse, ApiError> {
    Err(Code::NotFound.into())
}

/// A path, and the methods that it takes: what others are told.
fn at(path: &str, allowed: &'static str) -> Resource {
    let refuse = move || async move {
        let mut response = ApiError::from(Code::MethodNotAllowed).error_response();
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
        response
    };
    resource(path).default_service(web::to(refuse))
}

/// GET, and HEAD, which is answered without the body.
fn get() -> Route {
    web::route().guard(guard::Any(guard::Get()).or(guard::Head()))
}
