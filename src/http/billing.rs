//! `/v1/billing`: what an account is on, where its customers buy and manage what they bought, and the
//! page to which they return.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::oneshot;

use super::{
    AppState,
    casts::{answered, idempotency_key, replayed},
    error::{ApiError, Code},
    extract::{NoQuery, OptionalBody},
};
use crate::{
    identity::{Caller, KeyScope},
    ledger::Answer,
    plan,
    stripe::{
        Bought, Failure, Order, Sale, Session, Stripe, StripeError, customer_of, return_url,
        subscription::{self, Standing},
    },
    wallet,
};

/// The plan that is sold to who names nothing.
const DEFAULT_PAID_PLAN: &str = "pro";

#[derive(Deserialize)]
pub struct CheckoutBody {
    plan: Option<String>,
    credits: Option<i64>,
    success_url: Option<String>,
    cancel_url: Option<String>,
}

#[derive(Deserialize)]
pub struct PortalBody {
    return_url: Option<String>,
}

enum Wanted {
    Plan(String),
    Credits(Sale),
}

/// `GET /v1/billing`
pub async fn get(state: web::Data<AppState>, caller: Caller, _: NoQuery) -> Result<HttpResponse, ApiError> {
    caller.require_any(&[KeyScope::Read, KeyScope::Billing])?;
    let Standing { status, plan, current_period_end, cancel_at_period_end, .. } =
        subscription::standing(&state.db, &caller.account).await?;
    let customer = customer_of(&state.db, &caller.account).await?;
    // Without a subscription: the default one, or what an order that was paid elsewhere put it on.
    let plan = match plan {
        None => plan::of_account(&state.db, &caller.account).await?,
        subscribed => subscribed,
    };
    let credits = wallet::credits(&state.db, &caller.account).await?;
    let price = state.config.billing.credit_price.0;
    Ok(HttpResponse::Ok().json(json!({
        "plan": plan.as_ref().unwrap_or(&state.config.billing.default_plan),
        "status": status,
        "current_period_end": current_period_end,
        "cancel_at_period_end": cancel_at_period_end,
        "stripe_customer_id": customer,
        "credits": credits.available.0 / price,
        // Up: what is owed is not forgiven in parts of a credit.
        "credits_owed": credits.owed.0 / price + i64::from(credits.owed.0 % price != 0),
    })))
}

/// `POST /v1/billing/checkout`
pub async fn checkout(
    state: web::Data<AppState>,
    caller: Caller,
    request: HttpRequest,
    _: NoQuery,
    body: OptionalBody<CheckoutBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Billing)?;
    let keyed = idempotency_key(&request, &body.raw)?;
    let CheckoutBody { plan, credits, success_url, cancel_url } = body.value;
    let billing = &state.config.billing;
    let wanted = match (plan, credits) {
        (Some(_), Some(_)) => {
            return Err(ApiError::invalid("Buy either a `plan` or `credits`, not both at once."));
        }
        (None, Some(credits)) => Wanted::Credits(
            Sale::of_credits(credits, billing.credit_price, &billing.currency).map_err(ApiError::invalid)?,
        ),
        (plan, None) => Wanted::Plan(plan.unwrap_or_else(|| DEFAULT_PAID_PLAN.to_owned())),
    };
    let back = |field: &str, given: Option<String>, bought| match given {
        Some(url) => return_url::checked(field, url).map_err(ApiError::invalid),
        None => Ok(return_url::after_checkout(&billing.public_url, bought)),
    };
    let success_url = back("success_url", success_url, true)?;
    let cancel_url = back("cancel_url", cancel_url, false)?;
    let stripe = enabled(&state)?.clone();
    if let Some(earlier) = stripe.earlier(&caller.account, keyed.as_ref()).await? {
        return respond(earlier);
    }
    let sale = match wanted {
        Wanted::Credits(sale) => sale,
        Wanted::Plan(code) => {
            let plan = plan::get(&state.db, &code).await?.ok_or_else(|| no_plan(&code))?;
            Sale::of_plan(plan, billing.credit_price).map_err(ApiError::invalid)?
        }
    };
    let order = Order { account: caller.account, sale, success_url, cancel_url, keyed };
    // Once Stripe may have heard of the purchase, what it says has to be written, also if nobody
    // waits for it any more.
    let (tell, told) = oneshot::channel();
    let sell = async move {
        stripe.sell(order, render, |bought| drop(tell.send(bought))).await;
    };
    state.pipeline.tasks.spawn_on(sell, &state.pipeline.runtime);
    respond(told.await.map_err(|_| Code::Internal)??)
}

/// `POST /v1/billing/portal`
pub async fn portal(
    state: web::Data<AppState>,
    caller: Caller,
    _: NoQuery,
    body: OptionalBody<PortalBody>,
) -> Result<HttpResponse, ApiError> {
    caller.require(KeyScope::Billing)?;
    let back = match body.value.return_url {
        Some(url) => return_url::checked("return_url", url).map_err(ApiError::invalid)?,
        None => state.config.billing.public_url.to_string(),
    };
    let url = enabled(&state)?.portal(&caller.account, &back).await?.ok_or(Code::CustomerNotFound)?;
    Ok(HttpResponse::Ok().json(json!({ "url": url })))
}

/// `GET /billing/return`: where Checkout sends people back to. Whether they paid is Stripe's to tell
/// us, not theirs, so the page promises nothing.
pub async fn returned(request: HttpRequest) -> HttpResponse {
    let canceled = request.query_string().split('&').any(|pair| pair == "checkout=canceled");
    let (title, text) = match canceled {
        true => ("Nothing was bought", "You left the checkout, and nothing was bought."),
        false => ("Thank you", "Thank you, your purchase is being confirmed. You may close this page."),
    };
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <h1>{title}</h1>\n<p>{text}</p>\n</html>\n"
    );
    HttpResponse::Ok()
        .content_type("text/html; charset=utf-8")
        .insert_header((header::CACHE_CONTROL, "no-store"))
        .insert_header((header::CONTENT_SECURITY_POLICY, "default-src 'none'"))
        .insert_header((header::REFERRER_POLICY, "no-referrer"))
        .insert_header((header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
        .body(page)
}

fn enabled(state: &AppState) -> Result<&Stripe, ApiError> {
    state.stripe.as_ref().ok_or_else(|| Code::BillingDisabled.into())
}

fn no_plan(code: &str) -> ApiError {
    match plan::could_be_code(code) {
        true => ApiError::invalid(format!("There is no plan `{code}`; GET /v1/plans lists them.")),
        false => ApiError::invalid("`plan` must be the code of a plan; GET /v1/plans lists them."),
    }
}

/// The answer to what Stripe said.
fn render(opened: &Result<Session, StripeError>) -> Answer {
    match opened {
        Ok(Session { id, url }) => {
            Answer { status: 200, body: json!({ "url": url, "session_id": id }).to_string() }
        }
        Err(error) => {
            let error = ApiError::from(error.clone());
            Answer { status: error.code.status(), body: error.body() }
        }
    }
}

fn respond(bought: Bought) -> Result<HttpResponse, ApiError> {
    match bought {
        Bought::Answered(answer) => Ok(answered(answer)),
        Bought::Replayed(answer) => Ok(replayed(answer)),
        Bought::KeyReused => Err(Code::IdempotencyKeyReused.into()),
        Bought::InProgress => Err(Code::InProgress.into()),
        Bought::SubscriptionActive => Err(Code::SubscriptionActive.into()),
        Bought::NoAccount => Err(super::caller::no_account()),
    }
}

impl From<StripeError> for ApiError {
    fn from(error: StripeError) -> ApiError {
        match error {
            StripeError::TooLittle | StripeError::TooMuch => ApiError::invalid(format!("{error}.")),
            StripeError::TimedOut
            | StripeError::Failed { .. }
            | StripeError::NoSuchCustomer
            | StripeError::NoSuchEmail => {
                ApiError::new(Code::StripeError, format!("{} ({error})", Code::StripeError.sentence()))
            }
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> ApiError {
        match failure {
            Failure::Stripe(error) => error.into(),
            Failure::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_stripe_says_has_its_code() {
        let failed = StripeError::Failed { what: "Stripe answered 500".to_owned(), status: Some(500) };
        for (error, status, code) in [
            (failed, 502, "stripe_error"),
            (StripeError::NoSuchCustomer, 502, "stripe_error"),
            (StripeError::TimedOut, 502, "stripe_error"),
            (StripeError::TooLittle, 400, "invalid_request"),
            (StripeError::TooMuch, 400, "invalid_request"),
        ] {
            let answer = render(&Err(error.clone()));
            assert_eq!(answer.status, status, "{error}");
            assert!(answer.body.contains(&format!(r#""error":"{code}""#)), "{}", answer.body);
        }
        let session = Session { id: "cs_1".to_owned(), url: "https://pay".to_owned() };
        let answer = render(&Ok(session));
        assert_eq!(answer.body, r#"{"url":"https://pay","session_id":"cs_1"}"#);
    }
}
