//! The way to Stripe: requests built by its typed builders, sent with an idempotency key and tried
//! again with the same one. Of the answers only what is needed is read, so that another version of
//! Stripe's API, with other fields, is understood as well.
//!
//! # Failure behavior
//!
//! An attempt ends within [`ATTEMPT_WITHIN`], and all of them by their caller's deadline. What may
//! pass (no connection, no answer, 409, 429, a server error) is tried again; what Stripe refuses is
//! not. Errors and logs hold neither the secret key nor more of Stripe's answer than its error's
//! type, code, parameter and message.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use backon::{ExponentialBuilder, Retryable};
use miniserde::{Deserialize, json::Value};
use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use stripe::{ApiErrors, ClientBuilder, IdempotencyKey, RequestStrategy, StripeRequest};
use stripe_billing::billing_portal_session::CreateBillingPortalSession;
use stripe_checkout::checkout_session::CreateCheckoutSession;
use stripe_client_core::{RequestBuilder, StripeMethod};
use stripe_core::customer::CreateCustomer;
use tokio::time::{Instant, timeout};
use url::Url;

/// How long one attempt may take.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(4);

/// How often it is tried again.
const RETRIES: usize = 2;

/// How long an attempt may take to read a page of what Stripe has, and how often it is tried again.
const PAGE_WITHIN: Duration = Duration::from_secs(20);
const PAGE_RETRIES: usize = 4;

const INVOICE_PAYMENTS: &str = "/invoice_payments";

/// What has less than this left is not tried again: the answer would come too late.
const WORTH_TRYING: Duration = Duration::from_millis(500);

/// Why Stripe did not do its part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StripeError {
    #[error("{what}")]
    Failed {
        /// A sentence for people, without secrets.
        what: String,
        /// Of Stripe's answer, if there was one.
        status: Option<u16>,
    },
    #[error("Stripe did not answer in time")]
    TimedOut,
    #[error("Stripe does not charge so little at once")]
    TooLittle,
    #[error("Stripe does not charge so much at once")]
    TooMuch,
    /// Deleted at Stripe, or another mode's or another Stripe account's.
    #[error("Stripe does not know the customer")]
    NoSuchCustomer,
    #[error("Stripe takes the e-mail address for none")]
    NoSuchEmail,
}

impl StripeError {
    fn failed(what: &str) -> StripeError {
        StripeError::Failed { what: what.to_owned(), status: None }
    }

    /// Whether Stripe said no, and would say it again: nothing was made.
    pub fn is_final(&self) -> bool {
        match self {
            StripeError::Failed { status, .. } => status.is_some_and(|status| !may_pass(status)),
            StripeError::TimedOut => false,
            _ => true,
        }
    }
}

fn may_pass(status: u16) -> bool {
    matches!(status, 409 | 424 | 429 | 500..)
}

/// A Checkout session: its id, and where its customer pays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: String,
    pub url: String,
}

/// A payment, as far as it is looked at.
#[derive(Debug, Deserialize)]
pub struct PaymentIntent {
    pub id: String,
    pub status: String,
    /// What has come, in the currency's smallest unit.
    pub amount_received: i64,
    pub currency: String,
    pub metadata: BTreeMap<String, String>,
    /// The charge that paid it: whole, as it is asked for, or its id.
    latest_charge: Option<Value>,
}

impl PaymentIntent {
    /// Whether any of it went back, or may: a payment has succeeded all the same.
    pub fn was_reversed(&self) -> bool {
        let Some(Value::Object(charge)) = &self.latest_charge else { return false };
        let refunded = match charge.get("amount_refunded") {
            Some(Value::Number(amount)) => amount.to_string() != "0",
            _ => false,
        };
        refunded || matches!(charge.get("disputed"), Some(Value::Bool(true)))
    }
}

/// What is to be told whole instead of by its id.
#[derive(Serialize)]
struct Expand {
    expand: [&'static str; 1],
}

#[derive(Deserialize)]
struct Customer {
    id: String,
}

#[derive(Deserialize)]
struct OpenSession {
    id: String,
    url: Option<String>,
}

#[derive(Deserialize)]
struct Portal {
    url: String,
}

/// What payments of invoices are looked for.
#[derive(Serialize)]
struct Filter<'a> {
    payment: InvoicePayments<'a>,
}

#[derive(Serialize)]
struct InvoicePayments<'a> {
    #[serde(rename = "type")]
    of: &'static str,
    payment_intent: &'a str,
}

impl Filter<'_> {
    fn of(intent: &str) -> Filter<'_> {
        Filter { payment: InvoicePayments { of: "payment_intent", payment_intent: intent } }
    }
}

#[derive(Deserialize)]
struct List {
    data: Vec<InvoicePayment>,
}

impl List {
    fn invoice(self) -> Option<String> {
        self.data.into_iter().next().and_then(|payment| payment.invoice)
    }
}

#[derive(Deserialize)]
struct InvoicePayment {
    invoice: Option<String>,
}

#[derive(Clone)]
pub(super) struct Client {
    inner: stripe::Client,
    secret: Arc<SecretString>,
}

impl Client {
    pub fn new(secret: &SecretString, api_base: Option<&Url>) -> Result<Client, String> {
        // The whole process agrees on one provider; whoever installed one before has done our work.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = ClientBuilder::new(secret.expose_secret());
        let builder = match api_base {
            // The path of a request is put right behind it.
            Some(base) => builder.url(format!("{}/", base.as_str().trim_end_matches('/'))),
            None => builder,
        };
        // Its error may show what it was given.
        let inner = builder.build().map_err(|_| "STRIPE_SECRET_KEY or STRIPE_API_BASE can't be used")?;
        Ok(Client { inner, secret: Arc::new(secret.clone()) })
    }

    /// Makes a customer; its id.
    pub async fn create_customer(
        &self,
        request: &CreateCustomer,
        key: &str,
        deadline: Instant,
    ) -> Result<String, StripeError> {
        let customer: Customer = self.call(request, key, deadline).await?;
        Ok(customer.id)
    }

    pub async fn create_session(
        &self,
        request: &CreateCheckoutSession,
        key: &str,
        deadline: Instant,
    ) -> Result<Session, StripeError> {
        let OpenSession { id, url } = self.call(request, key, deadline).await?;
        // A session that is open has one.
        let url = url.ok_or_else(|| StripeError::failed("Stripe opened no session that could be paid"))?;
        Ok(Session { id, url })
    }

    /// Makes a portal session; its address.
    pub async fn create_portal(
        &self,
        customer: &str,
        return_url: &str,
        deadline: Instant,
    ) -> Result<String, StripeError> {
        let request = CreateBillingPortalSession::new().customer(customer).return_url(return_url);
        let key = format!("portal/{}", uuid::Uuid::now_v7().simple());
        let portal: Portal = self.call(&request, &key, deadline).await?;
        Ok(portal.url)
    }

    /// The invoice that a payment paid, if it paid one.
    pub async fn invoice_of(&self, intent: &str) -> Result<Option<String>, StripeError> {
        let request = RequestBuilder::new(StripeMethod::Get, INVOICE_PAYMENTS).query(&Filter::of(intent));
        Ok(self.look_up::<List>(request).await?.invoice())
    }

    /// The same, for who has time.
    pub async fn read_invoice_of(&self, intent: &str) -> Result<Option<String>, StripeError> {
        Ok(self.read::<List>(INVOICE_PAYMENTS, &Filter::of(intent)).await?.invoice())
    }

    /// The payment intent of that id, which is put into the path as it is.
    pub async fn payment_intent(&self, id: &str) -> Result<PaymentIntent, StripeError> {
        let request = RequestBuilder::new(StripeMethod::Get, format!("/payment_intents/{id}"));
        self.look_up(request.query(&Expand { expand: ["latest_charge"] })).await
    }

    /// Asks once for what changes nothing.
    async fn look_up<T: Deserialize>(&self, request: RequestBuilder) -> Result<T, StripeError> {
        let sent = request.customize::<T>().send(&self.inner);
        match timeout(ATTEMPT_WITHIN, sent).await {
            Ok(answer) => answer.map_err(|error| self.understand(error)),
            Err(_) => Err(StripeError::TimedOut),
        }
    }

    /// Asks for what changes nothing, for who has time: tried again for longer than a buyer would wait.
    pub async fn read<T: Deserialize>(&self, path: &str, query: &impl Serialize) -> Result<T, StripeError> {
        let attempt = || async {
            let request = RequestBuilder::new(StripeMethod::Get, path).query(query);
            let sent = request.customize::<T>().send(&self.inner);
            match timeout(PAGE_WITHIN, sent).await {
                Ok(answer) => answer.map_err(|error| self.understand(error)),
                Err(_) => Err(StripeError::TimedOut),
            }
        };
        let pauses = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(500))
            .with_max_delay(Duration::from_secs(4))
            .with_max_times(PAGE_RETRIES)
            .with_jitter();
        attempt.retry(pauses).when(|error| !error.is_final()).await
    }

    /// Sends the request until it is answered, refused, or not worth trying any more.
    async fn call<T: Deserialize>(
        &self,
        request: &impl StripeRequest,
        key: &str,
        deadline: Instant,
    ) -> Result<T, StripeError> {
        let key = IdempotencyKey::new(key).map_err(|_| StripeError::failed("the request has no key"))?;
        let attempt = || async {
            let left = deadline.saturating_duration_since(Instant::now());
            let strategy = RequestStrategy::Idempotent(key.clone());
            let sent = request.build().customize::<T>().request_strategy(strategy).send(&self.inner);
            match timeout(left.min(ATTEMPT_WITHIN), sent).await {
                Ok(answer) => answer.map_err(|error| self.understand(error)),
                Err(_) => Err(StripeError::TimedOut),
            }
        };
        let pauses = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(1))
            .with_max_times(RETRIES)
            .with_jitter();
        attempt
            .retry(pauses)
            .when(|error| !error.is_final() && Instant::now() + WORTH_TRYING < deadline)
            .notify(|error, _| tracing::info!(%error, "Stripe is asked again"))
            .await
    }

    fn understand(&self, error: stripe::StripeError) -> StripeError {
        match error {
            stripe::StripeError::Stripe(error, status) => self.refused(&error, status),
            stripe::StripeError::Timeout => StripeError::TimedOut,
            stripe::StripeError::JSONDeserialize(_) => StripeError::failed("Stripe's answer can't be read"),
            stripe::StripeError::ClientError(_) => StripeError::failed("Stripe can't be reached"),
            stripe::StripeError::ConfigError(_) => StripeError::failed("the request can't be sent to Stripe"),
        }
    }

    fn refused(&self, error: &ApiErrors, status: u16) -> StripeError {
        let (code, param) = (error.code.as_ref().map(|code| code.as_str()), error.param.as_deref());
        let message = error.message.as_deref().unwrap_or_default();
        let message = message.replace(self.secret.expose_secret(), "***");
        let kind = error.type_.as_str();
        tracing::warn!(status, kind, code, param, message, "Stripe refused a request");
        match (code, param) {
            (Some("amount_too_small"), _) => StripeError::TooLittle,
            (Some("amount_too_large"), _) => StripeError::TooMuch,
            // Our own first attempt, which did not answer in time, is still at it.
            (Some("idempotency_key_in_use"), _) => StripeError::TimedOut,
            (Some("resource_missing"), Some("customer")) => StripeError::NoSuchCustomer,
            (_, Some("email")) if status == 400 => StripeError::NoSuchEmail,
            _ => {
                let code = code.map(|code| format!(", code {code}")).unwrap_or_default();
                StripeError::Failed { what: format!("Stripe answered {status}{code}"), status: Some(status) }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(base: &str) -> Client {
        Client::new(&"sk_test_hunter2".to_owned().into(), Some(&base.parse().unwrap())).unwrap()
    }

    async fn fail(base: &str, within: Duration) -> StripeError {
        let deadline = Instant::now() + within;
        client(base).create_customer(&CreateCustomer::new(), "key", deadline).await.unwrap_err()
    }

    #[tokio::test]
    async fn an_https_address_where_nobody_listens_is_a_failure_and_no_panic() {
        for base in ["https://127.0.0.1:1/", "http://127.0.0.1:1/base"] {
            let error = fail(base, Duration::from_secs(5)).await;
            assert_eq!(error, StripeError::failed("Stripe can't be reached"), "{base}");
            assert!(!error.is_final());
        }
    }

    #[tokio::test]
    async fn who_speaks_no_tls_is_a_failure_and_no_panic() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            use tokio::io::AsyncWriteExt;
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            }
        });
        assert_eq!(fail(&base, Duration::from_secs(5)).await, StripeError::failed("Stripe can't be reached"));
    }

    #[tokio::test]
    async fn whoever_does_not_answer_is_given_up_at_the_deadline() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
        let begun = Instant::now();
        assert_eq!(fail(&base, Duration::from_millis(700)).await, StripeError::TimedOut);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        drop(listener);
    }

    #[test]
    fn what_stripe_refuses_is_told_by_its_code_and_never_with_the_key() {
        let refused = |error: &str| {
            #[derive(Deserialize)]
            struct Answer {
                error: Box<ApiErrors>,
            }
            let Answer { error } = miniserde::json::from_str(error).unwrap();
            client("http://127.0.0.1:1").understand(stripe::StripeError::Stripe(error, 400))
        };
        for (error, meant) in [
            (
                r#"{"error":{"type":"invalid_request_error","code":"amount_too_small"}}"#,
                StripeError::TooLittle,
            ),
            (r#"{"error":{"type":"invalid_request_error","code":"amount_too_large"}}"#, StripeError::TooMuch),
            (
                r#"{"error":{"type":"invalid_request_error","code":"resource_missing","param":"customer"}}"#,
                StripeError::NoSuchCustomer,
            ),
            (
                r#"{"error":{"type":"invalid_request_error","code":"email_invalid","param":"email"}}"#,
                StripeError::NoSuchEmail,
            ),
        ] {
            assert_eq!(refused(error), meant);
            assert!(meant.is_final());
        }
        let odd = r#"{"error":{"type":"of_the_future","code":"new","message":"not sk_test_hunter2"}}"#;
        let odd = refused(odd);
        assert_eq!(odd.to_string(), "Stripe answered 400, code new");
        assert!(odd.is_final() && !format!("{odd:?}").contains("hunter2"));
    }

    #[test]
    fn what_may_pass_is_no_last_word() {
        for (status, last) in [(400, true), (401, true), (402, true), (404, true), (409, false), (429, false)]
        {
            let error = StripeError::Failed { what: String::new(), status: Some(status) };
            assert_eq!(error.is_final(), last, "{status}");
        }
        assert!(!StripeError::TimedOut.is_final() && !StripeError::failed("").is_final());
    }
}
