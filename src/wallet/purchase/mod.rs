//! Purchases that were paid elsewhere, verified before they become credits. Who says that they have
//! paid is not believed: Apple's signature is, Google Play's answer, or Stripe's.
//!
//! Verifying says what was bought and by which number its provider knows it. That a purchase becomes
//! credits only once is the ledger's to keep, by that number.
//!
//! # Failure behavior
//!
//! Apple's transactions are verified offline. Google Play and Stripe are asked, within eight seconds;
//! if one does not answer, or not in a way that is understood, the purchase is [`Unverified::Unavailable`]
//! and can be sent again: nothing is granted on a guess. No error and no log line holds a token, a
//! signed transaction, a key, or a URL (Google's has the token in it).

mod apple;
mod book;
mod google;
pub mod settings;
mod stripe;
#[cfg(test)]
pub mod testing;

use std::{collections::BTreeMap, fmt, sync::Arc};

use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::{clock::Clock, config::Billing, stripe::Stripe, wallet::Payment};
pub use book::{Booked, Paid, book, is_known};
use settings::Purchases;

/// Longest `productId` and `transactionId`, in bytes. Both are stored.
const MAX_ID_BYTES: usize = 255;

/// Who vouches for a purchase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    Apple,
    Google,
    Stripe,
}

impl Provider {
    /// As it stands in `wallet_purchases.verified_by`.
    pub fn as_str(self) -> &'static str {
        match self {
            Provider::Apple => "apple",
            Provider::Google => "google",
            Provider::Stripe => "stripe",
        }
    }
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Provider::Apple => "Apple",
            Provider::Google => "Google Play",
            Provider::Stripe => "Stripe",
        })
    }
}

/// What somebody says they have bought: a `purchase_record`.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    pub product_id: String,
    /// The provider's number of the purchase. What was verified has this number.
    pub transaction_id: String,
    proof: Option<Proof>,
}

/// By what the provider can be asked.
#[derive(Clone, PartialEq, Eq)]
enum Proof {
    /// A transaction as StoreKit 2 gives it: a JWS.
    SignedTransaction(String),
    PurchaseToken(String),
    PaymentIntent(String),
}

impl Record {
    /// Reads `productId`, `transactionId` and what proves them; other fields are left alone.
    ///
    /// Errors: a sentence that names the field which is missing or of another type.
    pub fn read(record: &Map<String, Value>) -> Result<Record, String> {
        let text = |name: &str| match record.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(format!("`purchase_record.{name}` must be a string.")),
        };
        let id = |name: &str| match text(name)? {
            Some(id) if (1..=MAX_ID_BYTES).contains(&id.len()) && !id.contains(char::is_control) => Ok(id),
            Some(_) => Err(format!(
                "`purchase_record.{name}` must be 1 to {MAX_ID_BYTES} bytes without control characters."
            )),
            None => Err(format!("`purchase_record.{name}` is missing.")),
        };
        let (product_id, transaction_id) = (id("productId")?, id("transactionId")?);
        let signed = text("signedTransaction")?.or(text("jwsRepresentation")?);
        let (token, intent) = (text("purchaseToken")?, text("paymentIntentId")?);
        let intent = intent.or_else(|| stripe::is_intent(&transaction_id).then(|| transaction_id.clone()));
        let proof = match (signed, token, intent) {
            (Some(signed), ..) => Some(Proof::SignedTransaction(signed)),
            (_, Some(token), _) => Some(Proof::PurchaseToken(token)),
            (.., Some(intent)) => Some(Proof::PaymentIntent(intent)),
            (None, None, None) => None,
        };
        Ok(Record { product_id, transaction_id, proof })
    }
}

/// Whose wallet a purchase is for. The two are name spaces of their own: whoever may choose a user's name
/// elsewhere could choose an account's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'a> {
    /// A JWT's subject.
    User(&'a str),
    /// The account of an API key.
    Account(&'a str),
}

/// A purchase that its provider vouches for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub transaction_id: String,
    pub product_id: String,
    pub verified_by: Provider,
    /// What was paid for; as many as were asked for.
    pub credits: i64,
    /// Where money can come back from that a webhook tells of: Stripe's payment intent.
    pub payment: Payment,
    /// What was paid, in the billing currency; 0 where the provider does not tell it in that.
    pub amount_cents: i64,
}

/// Why a purchase is not believed. Each is a sentence for who sent it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// The record names nothing that a provider could vouch for.
    #[error(
        "The purchase can't be verified: `purchase_record` needs a `signedTransaction` of Apple, a \
         `purchaseToken` of Google Play or a `paymentIntentId` of Stripe."
    )]
    NotVerifiable,
    /// The server lacks what it takes to verify purchases of this provider.
    #[error("This server is not set up to verify purchases of {0}.")]
    SwitchedOff(Provider),
    /// What was sent proves no purchase that is paid, this app's and the caller's.
    #[error("{0}")]
    Invalid(String),
    /// There is such a purchase, and it is another one than the record or `credits` say.
    #[error("{0}")]
    Mismatch(String),
    /// The provider did not answer, or not in a way that is understood. It may, later.
    #[error("{0} can't be asked about the purchase right now; nothing was added. Try again.")]
    Unavailable(Provider),
}

/// The credits that the products of the app stores give, by their ids there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Products(BTreeMap<String, i64>);

impl Products {
    /// What one of this product gives.
    fn each(&self, product: &str) -> Result<i64, Unverified> {
        self.0.get(product).copied().ok_or_else(|| {
            Unverified::Mismatch(format!("The product `{product}` gives no credits on this server."))
        })
    }

    /// The credits that so many of this product give, which must be those that are asked for.
    fn credits(&self, product: &str, quantity: i64, asked: i64) -> Result<i64, Unverified> {
        match self.each(product)?.checked_mul(quantity) {
            Some(given) if given == asked => Ok(given),
            given => Err(Unverified::Mismatch(format!(
                "The purchase of {quantity} × `{product}` gives {} credits, not {asked}.",
                given.map_or("too many".to_owned(), |given| given.to_string())
            ))),
        }
    }
}

/// Verifies purchases. Clones share what was learned.
#[derive(Clone)]
pub struct Verifier(Arc<Parts>);

struct Parts {
    clock: Clock,
    products: Products,
    apple: Option<apple::Settings>,
    google: Option<google::Client>,
    stripe: Option<stripe::Payments>,
    turns: Semaphore,
}

/// How many purchases are verified at once: a provider's allowance is shared with what else asks it.
const AT_ONCE: usize = 8;

impl Verifier {
    /// `stripe` is the way to Stripe, `None` where its key is absent; `billing` says what a credit
    /// costs there.
    ///
    /// # Errors
    ///
    /// When the system's certificate authorities can't be loaded, by which Google is recognized.
    pub fn new(
        purchases: &Purchases,
        billing: &Billing,
        stripe: Option<Stripe>,
        clock: Clock,
    ) -> Result<Verifier, reqwest::Error> {
        let google = purchases.google.clone().map(|settings| google::Client::new(settings, clock.clone()));
        Ok(Verifier(Arc::new(Parts {
            clock,
            products: purchases.products.clone(),
            apple: purchases.apple.clone(),
            google: google.transpose()?,
            stripe: stripe.map(|stripe| stripe::Payments::new(stripe, billing)),
            turns: Semaphore::new(AT_ONCE),
        })))
    }

    /// Verifies that the record is of a purchase that was paid, of so many credits, and not somebody
    /// else's than `owner`'s. Only a few are verified at once.
    ///
    /// # Errors
    ///
    /// See [`Unverified`].
    pub async fn verify(
        &self,
        record: &Record,
        credits: i64,
        owner: Owner<'_>,
    ) -> Result<Verified, Unverified> {
        let Parts { clock, products, apple, google, stripe, turns } = &*self.0;
        let _turn = turns.acquire().await;
        match record.proof.as_ref().ok_or(Unverified::NotVerifiable)? {
            Proof::SignedTransaction(jws) => {
                let apple = apple.as_ref().ok_or(Unverified::SwitchedOff(Provider::Apple))?;
                apple::verify(apple, products, record, jws, credits, clock.now())
            }
            Proof::PurchaseToken(token) => {
                let google = google.as_ref().ok_or(Unverified::SwitchedOff(Provider::Google))?;
                google.verify(products, record, token, credits, owner).await
            }
            Proof::PaymentIntent(intent) => {
                let stripe = stripe.as_ref().ok_or(Unverified::SwitchedOff(Provider::Stripe))?;
                stripe.verify(record, intent, credits, owner).await
            }
        }
    }

    /// Tells the provider that a purchase which it vouched for was booked, where it wants to know. A provider who
    /// can't be told is logged: the app may tell it, too.
    pub async fn settle(&self, record: &Record) {
        if let (Some(google), Some(Proof::PurchaseToken(token))) = (&self.0.google, &record.proof) {
            google.consume(&record.product_id, token).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(record: Value) -> Result<Record, String> {
        Record::read(record.as_object().unwrap())
    }

    #[test]
    fn a_record_is_read_with_whatever_else_is_in_it() {
        let proof = |more: Value| {
            let mut record = json!({"productId": "p", "transactionId": "t", "purchaseState": [1]});
            record.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let record = read(record).unwrap();
            assert_eq!(record.product_id, "p");
            record.proof
        };
        let jws = Some(Proof::SignedTransaction("a.b.c".to_owned()));
        assert!(proof(json!({"signedTransaction": "a.b.c"})) == jws);
        assert!(proof(json!({"jwsRepresentation": "a.b.c", "signedTransaction": null})) == jws);
        assert!(proof(json!({"purchaseToken": "t"})) == Some(Proof::PurchaseToken("t".to_owned())));
        let intent = Some(Proof::PaymentIntent("pi_1".to_owned()));
        assert!(proof(json!({"paymentIntentId": "pi_1"})) == intent);
        assert!(proof(json!({"transactionId": "pi_1"})) == intent);
        assert!(proof(json!({"receipt": "x"})).is_none());
    }

    #[test]
    fn a_record_that_can_not_be_read_is_told_by_its_field() {
        for (record, field) in [
            (json!({"transactionId": "t"}), "productId` is missing"),
            (json!({"productId": "p"}), "transactionId` is missing"),
            (json!({"productId": "p", "transactionId": null}), "transactionId` is missing"),
            (json!({"productId": "p", "transactionId": 7}), "transactionId` must be a string"),
            (json!({"productId": "", "transactionId": "t"}), "productId` must be 1 to 255"),
            (json!({"productId": "p", "transactionId": "t".repeat(256)}), "transactionId` must be 1 to 255"),
            (json!({"productId": "p\n", "transactionId": "t"}), "productId` must be 1 to 255"),
            (json!({"productId": "p", "transactionId": "t", "purchaseToken": {}}), "purchaseToken` must"),
        ] {
            let told = read(record).err().unwrap();
            assert!(told.contains(field), "{told}");
        }
    }

    #[test]
    fn the_credits_asked_for_are_those_that_were_bought() {
        let products = Products(BTreeMap::from([("c.100".to_owned(), 100), ("most".to_owned(), i64::MAX)]));
        assert_eq!(products.credits("c.100", 3, 300), Ok(300));
        for (product, quantity, asked, told) in [
            ("c.100", 1, 500, "The purchase of 1 × `c.100` gives 100 credits, not 500."),
            ("c.100", 1, -100, "gives 100 credits, not -100."),
            ("most", 2, 2, "gives too many credits, not 2."),
            ("c.500", 1, 500, "The product `c.500` gives no credits on this server."),
        ] {
            let mismatch = products.credits(product, quantity, asked).unwrap_err();
            assert!(mismatch.to_string().ends_with(told), "{mismatch}");
        }
    }

    #[tokio::test]
    async fn without_its_settings_a_provider_is_switched_off() {
        let billing = testing::billing(None);
        let verifier =
            Verifier::new(&Purchases::default(), &billing, None, Clock::manual(crate::clock::Time(0)))
                .unwrap();
        for (field, outcome) in [
            ("signedTransaction", Unverified::SwitchedOff(Provider::Apple)),
            ("purchaseToken", Unverified::SwitchedOff(Provider::Google)),
            ("paymentIntentId", Unverified::SwitchedOff(Provider::Stripe)),
            ("receipt", Unverified::NotVerifiable),
        ] {
            let record = read(json!({"productId": "p", "transactionId": "t", field: "x"})).unwrap();
            assert_eq!(verifier.verify(&record, 1, Owner::User("user")).await, Err(outcome));
        }
    }
}
