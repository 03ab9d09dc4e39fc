//! `/internal/billing`: what other services of the same house use.
//!
//! # Failure behavior
//!
//! Who does not show the service key is refused with 401 before anything is read, an admin's key or
//! not, and pays for it like for any other 401 (see [`super::caller`]).

use actix_web::{
    Error, HttpMessage, ResponseError,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    middleware::Next,
    web,
};

use super::{AppState, caller, error::ApiError};

/// What a 401 says to who shows no service key.
const NO_KEY: &str = "Send a service key of this server as `X-Internal-Key`.";

/// Middleware for routes that only other services use: the service key and nothing else opens them.
/// Routes that are open to admins too are behind [`caller::identify`] instead.
pub async fn for_services<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let tokens = request.app_data::<web::Data<AppState>>().map(|state| &state.config.service_tokens);
    let service = caller::service(request.headers(), tokens.map_or(&[], Vec::as_slice));
    let problem = match service {
        // Users are named here, not accounts.
        Ok(Some(_)) if !matches!(caller::named_account(request.query_string()), Ok(None)) => {
            let refusal = ApiError::invalid("Unknown parameter `account_id`.").error_response();
            return Ok(request.into_response(refusal).map_into_right_body());
        }
        Ok(Some(service)) => {
            request.extensions_mut().insert(service);
            return next.call(request).await.map(ServiceResponse::map_into_left_body);
        }
        Ok(None) => NO_KEY,
        Err(problem) => problem,
    };
    let refusal = caller::refuse(request.request(), problem).await;
    Ok(request.into_response(refusal).map_into_right_body())
}
