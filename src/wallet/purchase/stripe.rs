//! Stripe's payments that an app took by itself, with a payment intent of its own server: Stripe is
//! asked whether it was paid, how much, and for whom.
//!
//! # Failure behavior
//!
//! As [`crate::stripe`] says: an answer or an error within seconds. That Stripe knows no such payment
//! is about the payment; anything else is [`Unverified::Unavailable`].

use super::{Owner, Provider, Record, Unverified, Verified};
use crate::{
    config::Billing,
    money::{NANOS_PER_CENT, Nanos},
    stripe::{PaymentIntent, Stripe, StripeError},
    wallet::Payment,
};

/// Longest id of a payment intent; Stripe's have 27 characters.
const MAX_ID_BYTES: usize = 255;

/// Payments, and what a credit costs there.
pub(super) struct Payments {
    stripe: Stripe,
    price: Price,
}

struct Price {
    credit: Nanos,
    currency: String,
}

/// Whether it looks like a payment intent's id.
pub(super) fn is_intent(id: &str) -> bool {
    id.len() <= MAX_ID_BYTES
        && id.strip_prefix("pi_").is_some_and(|rest| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        })
}

impl Payments {
    pub fn new(stripe: Stripe, billing: &Billing) -> Payments {
        Payments { stripe, price: Price { credit: billing.credit_price, currency: billing.currency.clone() } }
    }

    /// Asks about the payment intent, and verifies that it paid for so many credits of this user.
    pub async fn verify(
        &self,
        record: &Record,
        intent: &str,
        credits: i64,
        owner: Owner<'_>,
    ) -> Result<Verified, Unverified> {
        if !is_intent(intent) {
            return Err(invalid("`paymentIntentId` is no id of a payment intent"));
        }
        if record.transaction_id != intent {
            return Err(Unverified::Mismatch(format!(
                "The payment's `transactionId` is `{intent}`, not `{}`.",
                record.transaction_id
            )));
        }
        let paid = self.stripe.payment_intent(intent).await.map_err(|error| silent(&error))?;
        judge(&paid, &self.price, record, credits, owner)
    }
}

fn silent(error: &StripeError) -> Unverified {
    match error {
        StripeError::Failed { status: Some(400 | 404), .. } => invalid("Stripe knows no such payment"),
        error => {
            tracing::warn!(%error, "Stripe could not be asked about a purchase");
            Unverified::Unavailable(Provider::Stripe)
        }
    }
}

fn invalid(why: &str) -> Unverified {
    Unverified::Invalid(format!("The payment is not taken: {why}."))
}

fn judge(
    paid: &PaymentIntent,
    price: &Price,
    record: &Record,
    credits: i64,
    owner: Owner<'_>,
) -> Result<Verified, Unverified> {
    if paid.id != record.transaction_id {
        return Err(Unverified::Unavailable(Provider::Stripe));
    }
    // Who pays through our own Checkout gets the credits by its webhook, and would get them here a
    // second time, since that grant is known by the purchase and not by the payment. Such a payment
    // names the purchase and no user. So it takes a user in the metadata, which only the owner of the
    // secret key can write there, and no purchase.
    if paid.metadata.contains_key("purchase_id") {
        return Err(invalid("it was made in this server's Checkout, which adds its credits by itself"));
    }
    let (named, name, missing) = match owner {
        Owner::User(user) => (paid.metadata.get("user_id"), user, "its metadata has no `user_id`"),
        Owner::Account(id) => (paid.metadata.get("account_id"), id, "its metadata has no `account_id`"),
    };
    match named {
        Some(of) if of == name => {}
        Some(_) => return Err(invalid("it is another user's")),
        None => return Err(invalid(missing)),
    }
    if paid.status != "succeeded" {
        return Err(invalid("it has not succeeded"));
    }
    if paid.was_reversed() {
        return Err(invalid("it was refunded or is disputed"));
    }
    if !paid.currency.eq_ignore_ascii_case(&price.currency) {
        return Err(Unverified::Mismatch(format!(
            "The payment is in {}, and credits are sold in {}.",
            paid.currency, price.currency
        )));
    }
    let each = price.credit.0 / NANOS_PER_CENT;
    if credits < 1 || credits.checked_mul(each) != Some(paid.amount_received) {
        return Err(Unverified::Mismatch(format!(
            "The payment of {} cents does not pay for exactly {credits} credits of {each} cents.",
            paid.amount_received
        )));
    }
    Ok(Verified {
        transaction_id: paid.id.clone(),
        product_id: record.product_id.clone(),
        verified_by: Provider::Stripe,
        credits,
        payment: Payment { intent: Some(paid.id.clone()), ..Payment::default() },
        amount_cents: paid.amount_received,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        clock::{Clock, Time},
        store::Db,
        wallet::purchase::testing::{Server, billing},
    };

    const USER: &str = "user|7";

    fn paid() -> Value {
        json!({
            "id": "pi_1", "object": "payment_intent", "status": "succeeded", "amount": 300,
            "amount_received": 300, "currency": "usd", "metadata": {"user_id": USER, "cart": "9"},
            "latest_charge": {"id": "ch_1", "amount_refunded": 0, "disputed": false},
        })
    }

    fn with(field: &str, value: Value) -> Value {
        let mut payment = paid();
        payment[field] = value;
        payment
    }

    fn payments(base: &str) -> Payments {
        let billing = billing(Some(base));
        // Nothing that is asked here asks it.
        let db = Db::open("postgres://nobody@127.0.0.1:1/none").unwrap();
        let stripe = Stripe::new(&billing, db, Clock::manual(Time(0))).unwrap().unwrap();
        Payments::new(stripe, &billing)
    }

    fn record(transaction_id: &str) -> Record {
        Record { product_id: "web".to_owned(), transaction_id: transaction_id.to_owned(), proof: None }
    }

    async fn verify(base: &str, credits: i64) -> Result<Verified, Unverified> {
        payments(base).verify(&record("pi_1"), "pi_1", credits, Owner::User(USER)).await
    }

    async fn told(payment: Value) -> Result<Verified, Unverified> {
        verify(&Server::start(move |_| (200, payment.to_string())).await.base, 100).await
    }

    fn refused(outcome: Result<Verified, Unverified>, why: &str) {
        match outcome {
            Err(Unverified::Invalid(sentence)) => assert!(sentence.contains(why), "{why}: {sentence}"),
            other => panic!("{why}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_payment_that_stripe_took_for_this_user_is_taken() {
        let server = Server::start(|_| (200, paid().to_string())).await;
        let verified = Verified {
            transaction_id: "pi_1".to_owned(),
            product_id: "web".to_owned(),
            verified_by: Provider::Stripe,
            credits: 100,
            payment: Payment { intent: Some("pi_1".to_owned()), ..Payment::default() },
            amount_cents: 300,
        };
        assert_eq!(verify(&server.base, 100).await, Ok(verified));
        let asked = server.asked("GET").remove(0);
        assert!(asked.starts_with("GET /v1/payment_intents/pi_1?expand"), "{asked}");
        assert!(asked.contains("=latest_charge HTTP"), "{asked}");
        assert!(asked.to_ascii_lowercase().contains("\r\nauthorization: bearer sk_test_hunter2"), "{asked}");
        for charge in [Value::Null, json!("ch_1"), json!({"id": "ch_1"})] {
            assert!(told(with("latest_charge", charge)).await.is_ok());
        }
    }

    #[tokio::test]
    async fn only_what_succeeded_for_this_user_and_stays_paid_is_taken() {
        for (field, value, why) in [
            ("status", json!("processing"), "not succeeded"),
            ("status", json!("requires_capture"), "not succeeded"),
            ("metadata", json!({}), "no `user_id`"),
            ("metadata", json!({"user_id": "user|8"}), "another user's"),
            ("metadata", json!({"user_id": ""}), "another user's"),
            ("metadata", json!({"account_id": USER}), "no `user_id`"),
            ("metadata", json!({"purchase_id": "pur_1"}), "Checkout"),
            ("metadata", json!({"purchase_id": "pur_1", "user_id": USER}), "Checkout"),
            ("latest_charge", json!({"amount_refunded": 1}), "refunded"),
            ("latest_charge", json!({"amount_refunded": 300, "disputed": false}), "refunded"),
            ("latest_charge", json!({"disputed": true}), "disputed"),
        ] {
            refused(told(with(field, value)).await, why);
        }
    }

    #[tokio::test]
    async fn the_amount_is_that_of_the_credits() {
        for (field, value, sentence) in [
            (
                "amount_received",
                json!(299),
                "The payment of 299 cents does not pay for exactly 100 credits of 3 cents.",
            ),
            (
                "amount_received",
                json!(30_000),
                "The payment of 30000 cents does not pay for exactly 100 credits of 3 cents.",
            ),
            ("currency", json!("jpy"), "The payment is in jpy, and credits are sold in usd."),
        ] {
            assert_eq!(told(with(field, value)).await, Err(Unverified::Mismatch(sentence.to_owned())));
        }
        let server = Server::start(|_| (200, with("amount_received", json!(0)).to_string())).await;
        for credits in [0, -100, i64::MAX, i64::MIN] {
            assert!(matches!(verify(&server.base, credits).await, Err(Unverified::Mismatch(_))), "{credits}");
        }
    }

    #[tokio::test]
    async fn no_id_leads_to_another_path_or_is_of_another_transaction() {
        let server = Server::start(|_| (200, paid().to_string())).await;
        let payments = payments(&server.base);
        for id in ["pi_", "pi_../customers", "pi_1?x", "ch_1", "", "pi_\u{e9}", &format!("pi_{:0255}", 1)] {
            refused(payments.verify(&record(id), id, 100, Owner::User(USER)).await, "no id");
        }
        let other = payments.verify(&record("pi_2"), "pi_1", 100, Owner::User(USER)).await.unwrap_err();
        let told = "The payment's `transactionId` is `pi_1`, not `pi_2`.".to_owned();
        assert_eq!(other, Unverified::Mismatch(told));
        assert!(server.asked("GET").is_empty());
    }

    #[tokio::test]
    async fn a_stripe_that_fails_says_nothing_about_the_payment() {
        const UNAVAILABLE: Result<Verified, Unverified> = Err(Unverified::Unavailable(Provider::Stripe));
        let error = json!({"error": {"type": "invalid_request_error", "code": "resource_missing"}});
        for (status, body) in [
            (500, error.to_string()),
            (401, error.to_string()),
            (429, error.to_string()),
            (503, String::new()),
            (302, paid().to_string()),
            (200, String::new()),
            (200, "{".to_owned()),
            (200, "{}".to_owned()),
            (200, with("id", json!("pi_2")).to_string()),
            (200, with("amount_received", json!("300")).to_string()),
            (200, with("amount_received", json!(300.5)).to_string()),
            (200, with("metadata", json!([])).to_string()),
        ] {
            let answer = body.clone();
            let server = Server::start(move |_| (status, answer.clone())).await;
            assert_eq!(verify(&server.base, 100).await, UNAVAILABLE, "{status} {body}");
        }
        assert_eq!(verify("http://127.0.0.1:1", 100).await, UNAVAILABLE);
        assert_eq!(silent(&StripeError::TimedOut), Unverified::Unavailable(Provider::Stripe));
        let server = Server::start(move |_| (404, error.to_string())).await;
        refused(verify(&server.base, 100).await, "knows no such payment");
    }
}
