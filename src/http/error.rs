//! Every error a caller can get, in one table: its code, its status, and the sentence that goes out
//! unless the place that refuses knows a better one.
//!
//! A code is a promise to other people's programs. The snapshot test makes a changed one visible.

use std::fmt;

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use serde_json::{Map, Value};

use crate::{ledger::LedgerError, store::StoreError};

macro_rules! codes {
    ($($name:ident $status:literal $code:literal $sentence:literal;)+) => {
        /// The public error codes.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($name),+ }

        impl Code {
            pub const ALL: &[Code] = &[$(Code::$name),+];

            /// The code as it goes out in `error`.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$name => $code),+ }
            }

            /// The HTTP status it goes out with.
            pub fn status(self) -> u16 {
                match self { $(Code::$name => $status),+ }
            }

            /// What it says where nothing more exact is known.
            pub fn sentence(self) -> &'static str {
                match self { $(Code::$name => $sentence),+ }
            }
        }
    };
}

codes! {
    InvalidRequest 400 "invalid_request" "The request is not valid.";
    InvalidSignature 400 "invalid_signature" "The event is not signed by one of this server's secrets.";
    Unauthorized 401 "unauthorized" "Send a valid API key as `Authorization: Bearer <key>` or `x-api-key`.";
    BudgetExceeded 402 "budget_exceeded" "This would pass a hard limit of a budget.";
    InsufficientCredits 402 "insufficient_credits" "The account's credits do not pay for this; buy some by POST /v1/billing/checkout.";
    QuotaExceeded 402 "quota_exceeded" "The user has not as many units left.";
    Forbidden 403 "forbidden" "This key may not do that.";
    AccountSuspended 403 "account_suspended" "The account is suspended; ask its administrator.";
    BudgetLocked 403 "budget_locked" "This budget is locked; only an admin may change it.";
    NotFound 404 "not_found" "There is nothing here.";
    SpellNotFound 404 "spell_not_found" "There is no spell of that name; GET /v1/spells lists them.";
    BudgetNotFound 404 "budget_not_found" "There is no such budget.";
    PlanNotFound 404 "plan_not_found" "There is no plan of that code; GET /v1/plans lists them.";
    CustomerNotFound 404 "customer_not_found" "This account has not bought anything yet, so there is nothing to manage.";
    MethodNotAllowed 405 "method_not_allowed" "This path does not take that method.";
    InProgress 409 "in_progress" "The first request with this Idempotency-Key is still running.";
    HoldEnded 409 "hold_ended" "The hold had already ended in another way.";
    SubscriptionActive 409 "subscription_active" "The account has a subscription already; change or cancel it in the portal.";
    ReferenceReused 409 "reference_reused" "This `ref` or `order_id` came with other content before.";
    PurchaseKnown 409 "purchase_known" "This transaction was turned into credits before; nothing was added.";
    PlanExists 409 "plan_exists" "There is a plan of that code already; PUT changes it.";
    BodyTooLarge 413 "body_too_large" "The body is larger than this server takes.";
    UnsupportedMediaType 415 "unsupported_media_type" "Send the body as `Content-Type: application/json`.";
    IdempotencyKeyReused 422 "idempotency_key_reused" "This Idempotency-Key came with another request before.";
    RateLimited 429 "rate_limited" "Too many requests; wait as long as `Retry-After` says.";
    Internal 500 "internal" "Something went wrong on our side; nothing was charged.";
    WebhookFailed 500 "webhook_failed" "The event could not be applied now, and nothing of it was; send it again.";
    UpstreamFailed 502 "upstream_failed" "The spell's upstream failed; nothing was charged.";
    ProviderUnavailable 502 "provider_unavailable" "The purchase's provider can't be asked right now; nothing was added. Try again.";
    StripeError 502 "stripe_error" "Stripe failed. Try again, with another Idempotency-Key if there was one.";
    BillingDisabled 503 "billing_disabled" "Billing is switched off on this server.";
    DatabaseUnavailable 503 "database_unavailable" "The database does not answer. Try again, with the same Idempotency-Key if there was one.";
    KeysUnavailable 503 "keys_unavailable" "The keys that tokens are checked with can't be had now. Try again.";
    CastUnsettled 503 "cast_unsettled" "The spell ran and is being booked; do not repeat it, look it up by its id.";
    Overloaded 503 "overloaded" "Too many requests are waiting; nothing was charged. Try again.";
    UpstreamTimeout 504 "upstream_timeout" "The spell's upstream took too long; nothing was charged.";
}

/// An error on its way out: a code, a sentence, and fields that a program can act on.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub code: Code,
    pub message: String,
    pub fields: Map<String, Value>,
    /// Seconds, where waiting helps.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// The code with a sentence of its own.
    pub fn new(code: Code, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), fields: Map::new(), retry_after: None }
    }

    /// 400 with this sentence.
    pub fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(Code::InvalidRequest, message)
    }

    /// 429, saying after how many seconds to come back.
    pub fn rate_limited(seconds: u64) -> ApiError {
        let error = ApiError::from(Code::RateLimited).with("retry_after", seconds);
        ApiError { retry_after: Some(seconds), ..error }
    }

    /// Adds a field to the body.
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> ApiError {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    /// The body: `{"error", "message", …}`.
    pub fn body(&self) -> String {
        let mut body = Map::new();
        body.insert("error".to_owned(), self.code.as_str().into());
        body.insert("message".to_owned(), self.message.as_str().into());
        body.extend(self.fields.clone());
        Value::Object(body).to_string()
    }
}

impl From<Code> for ApiError {
    fn from(code: Code) -> ApiError {
        let mut error = ApiError::new(code, code.sentence());
        if matches!(code, Code::DatabaseUnavailable | Code::KeysUnavailable | Code::Overloaded) {
            error.retry_after = Some(1);
        }
        error
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        match error {
            StoreError::Unavailable(_) | StoreError::Conflict(_) => {
                tracing::warn!(%error, "the database did not do its part");
                Code::DatabaseUnavailable.into()
            }
            StoreError::Duplicate(_) | StoreError::Refused(_) => {
                tracing::error!(%error, "the database refused a statement");
                Code::Internal.into()
            }
        }
    }
}

impl From<LedgerError> for ApiError {
    fn from(error: LedgerError) -> ApiError {
        match error {
            LedgerError::Busy => Code::Overloaded.into(),
            LedgerError::Unavailable => Code::DatabaseUnavailable.into(),
            LedgerError::Refused => Code::Internal.into(),
        }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if let Some(seconds) = self.retry_after {
            response.insert_header(("retry-after", seconds.to_string()));
        }
        response.content_type("application/json").body(self.body())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_that_programs_depend_on() {
        let table: Vec<String> =
            Code::ALL.iter().map(|code| format!("{} {}", code.status(), code.as_str())).collect();
        insta::assert_snapshot!(table.join("\n"));
    }
}
