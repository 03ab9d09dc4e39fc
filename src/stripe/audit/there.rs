//! What Stripe has: its lists, a page at a time, and one object by its id. Only read, and of each object
//! only what is compared.
//!
//! # Failure behavior
//!
//! What Stripe can't tell now is asked for again for some seconds, then it is an error. An answer that can't be
//! understood is one too: a list of which a part was passed over would look like books that agree.

use miniserde::{
    Deserialize,
    json::{Number, Value},
};
use serde::Serialize;

use super::super::{
    client::{Client, StripeError},
    event::{HANDLED, Object},
    invoice,
};
use crate::clock::Time;

/// How many objects are asked for at a time: the most that Stripe gives.
const PAGE: u8 = 100;

/// Which objects of a list are wanted.
#[derive(Clone, Default, Serialize)]
pub struct Which<'a> {
    limit: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<Since>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    customer: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_intent: Option<&'a str>,
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    types: &'a [&'a str],
    #[serde(skip_serializing_if = "<[&str]>::is_empty")]
    expand: &'a [&'a str],
    #[serde(skip_serializing_if = "Option::is_none")]
    starting_after: Option<String>,
}

#[derive(Clone, Copy, Serialize)]
struct Since {
    gte: i64,
}

#[derive(Serialize)]
struct Nothing {}

#[derive(Deserialize)]
struct Page {
    data: Vec<Value>,
    has_more: bool,
}

/// A list of Stripe's, from its newest object on.
pub struct List<'a> {
    path: &'static str,
    which: Which<'a>,
    more: bool,
}

impl<'a> List<'a> {
    fn of(path: &'static str, which: Which<'a>) -> List<'a> {
        List { path, which: Which { limit: PAGE, ..which }, more: true }
    }

    /// The Checkouts that were completed.
    pub fn completed_sessions(since: Time) -> List<'a> {
        List::of(
            "/checkout/sessions",
            Which { created: made(since), status: Some("complete"), ..Which::default() },
        )
    }

    /// A customer's Checkouts.
    pub fn sessions_of(customer: &'a str) -> List<'a> {
        List::of("/checkout/sessions", Which { customer: Some(customer), ..Which::default() })
    }

    pub fn paid_invoices(since: Time) -> List<'a> {
        List::of("/invoices", Which { created: made(since), status: Some("paid"), ..Which::default() })
    }

    /// All that did not end, however old they are.
    pub fn subscriptions() -> List<'a> {
        List::of("/subscriptions", Which::default())
    }

    /// Each with the charge that it is of.
    pub fn refunds(since: Time) -> List<'a> {
        List::of("/refunds", Which { created: made(since), expand: &["data.charge"], ..Which::default() })
    }

    pub fn disputes(since: Time) -> List<'a> {
        List::of("/disputes", Which { created: made(since), ..Which::default() })
    }

    pub fn charges_of(payment_intent: &'a str) -> List<'a> {
        List::of("/charges", Which { payment_intent: Some(payment_intent), ..Which::default() })
    }

    pub fn disputes_of(payment_intent: &'a str) -> List<'a> {
        List::of("/disputes", Which { payment_intent: Some(payment_intent), ..Which::default() })
    }

    /// The events that are acted on.
    pub fn events(since: Time) -> List<'a> {
        List::of("/events", Which { created: made(since), types: &HANDLED, ..Which::default() })
    }

    /// The next page, or `None` after the last one.
    pub async fn next(&mut self, client: &Client) -> Result<Option<Vec<Object>>, StripeError> {
        if !self.more {
            return Ok(None);
        }
        let page: Page = client.read(self.path, &self.which).await?;
        let page_objects = page.data.into_iter().map(object).collect::<Vec<_>>();
        self.which.starting_after = page_objects.last().and_then(|last| last.id("id"));
        self.more = page.has_more;
        match self.more && self.which.starting_after.is_none() {
            true => Err(unreadable("a list")),
            false => Ok(Some(page_objects)),
        }
    }

    /// All of it, for a list of what belongs to one thing. Of one that Stripe does not know there is nothing.
    pub async fn all(mut self, client: &Client) -> Result<Vec<Object>, StripeError> {
        let mut all = Vec::new();
        loop {
            match self.next(client).await {
                Ok(Some(page)) => all.extend(page),
                Ok(None) => return Ok(all),
                Err(error) if all.is_empty() && is_missing(&error) => return Ok(all),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether Stripe says that it has no such thing.
fn is_missing(error: &StripeError) -> bool {
    match error {
        StripeError::Failed { status: Some(404), .. } | StripeError::NoSuchCustomer => true,
        StripeError::Failed { status: Some(400), what } => what.ends_with("code resource_missing"),
        _ => false,
    }
}

fn made(since: Time) -> Option<Since> {
    (since.0 > 0).then_some(Since { gte: since.0 / 1_000 })
}

/// The object of that id in the list `path`; `None`: Stripe has none.
pub async fn find(client: &Client, path: &str, id: &str) -> Result<Option<Object>, StripeError> {
    // It is put into the path as it is.
    if !id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') || id.is_empty() {
        return Ok(None);
    }
    match client.read::<Value>(&format!("{path}/{id}"), &Nothing {}).await {
        Ok(found) => Ok(Some(object(found))),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn unreadable(what: &str) -> StripeError {
    StripeError::Failed { what: format!("Stripe's answer can't be read: {what}"), status: None }
}

/// async-stripe reads JSON with a library of its own; all else here looks at an [`Object`].
fn object(value: Value) -> Object {
    fn plain(value: Value) -> serde_json::Value {
        match value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(truth) => truth.into(),
            Value::Number(Number::U64(number)) => number.into(),
            Value::Number(Number::I64(number)) => number.into(),
            Value::Number(Number::F64(number)) => number.into(),
            Value::String(text) => text.into(),
            Value::Array(items) => items.into_iter().map(plain).collect(),
            Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, plain(value))).collect(),
        }
    }
    Object::new(plain(value))
}

/// A Checkout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Session {
    pub id: String,
    /// The purchase that it names.
    pub purchase: Option<String>,
    pub customer: Option<String>,
    pub status: String,
    pub payment_status: String,
    pub amount_cents: Option<i64>,
    pub currency: Option<String>,
    pub subscription: Option<String>,
    pub invoice: Option<String>,
}

impl Session {
    pub fn read(session: &Object) -> Result<Session, StripeError> {
        let purchase = session.text("client_reference_id").or(session.text("metadata/purchase_id"));
        Ok(Session {
            id: session.id("id").ok_or_else(|| unreadable("a Checkout session"))?,
            purchase: purchase.map(str::to_owned),
            customer: session.id("customer"),
            status: word(session, "status")?,
            payment_status: word(session, "payment_status")?,
            amount_cents: session.cents("amount_total"),
            currency: session.currency("currency"),
            subscription: session.id("subscription"),
            invoice: session.id("invoice"),
        })
    }

    pub fn is_paid(&self) -> bool {
        self.status == "complete" && self.payment_status == "paid"
    }
}

fn word(object: &Object, path: &str) -> Result<String, StripeError> {
    object.text(path).map(str::to_owned).ok_or_else(|| unreadable(path))
}

/// An invoice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invoice {
    pub id: String,
    pub subscription: Option<String>,
    /// The purchase that its subscription names.
    pub purchase: Option<String>,
    /// What was paid for a period that began with it; `None`: it brings nothing.
    pub paid_cents: Option<i64>,
    /// Whether it is a subscription's first.
    pub is_first: bool,
}

impl Invoice {
    pub fn read(object: &Object) -> Result<Invoice, StripeError> {
        let brings = word(object, "status")? == "paid" && invoice::begins_a_period(object);
        Ok(Invoice {
            id: object.id("id").ok_or_else(|| unreadable("an invoice"))?,
            subscription: invoice::subscription_of(object),
            purchase: invoice::names_purchase(object).map(str::to_owned),
            paid_cents: invoice::amount(object).filter(|cents| brings && *cents > 0),
            is_first: object.text("billing_reason") == Some("subscription_create"),
        })
    }
}

/// A subscription.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscription {
    pub id: String,
    pub customer: Option<String>,
    pub purchase: Option<String>,
    /// Stripe's word.
    pub status: String,
    pub price: Option<String>,
    pub period_end: Option<Time>,
    pub cancels: bool,
}

impl Subscription {
    pub fn read(object: &Object) -> Result<Subscription, StripeError> {
        Ok(Subscription {
            id: object.id("id").ok_or_else(|| unreadable("a subscription"))?,
            customer: object.id("customer"),
            purchase: object.text("metadata/purchase_id").map(str::to_owned),
            status: word(object, "status")?,
            price: object.id("items/data/0/price").or(object.id("plan")),
            period_end: object.time("current_period_end").or(object.time("items/data/0/current_period_end")),
            cancels: object.is_true("cancel_at_period_end"),
        })
    }
}

/// What went back of a payment, or may: a charge's refunds, or a dispute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Back {
    /// The charge's id, or the dispute's.
    pub id: String,
    pub payment_intent: Option<String>,
    pub charge: Option<String>,
    /// A dispute names none.
    pub customer: Option<String>,
    /// Where the API is of before March 2025.
    pub invoice: Option<String>,
    pub amount_cents: i64,
    /// As `reversals` has it.
    pub status: String,
}

impl Back {
    pub fn of_charge(charge: &Object) -> Result<Back, StripeError> {
        let id = charge.id("id").ok_or_else(|| unreadable("a charge"))?;
        let refunded = charge.cents("amount_refunded").ok_or_else(|| unreadable("amount_refunded"))?;
        Ok(Back {
            charge: Some(id.clone()),
            id,
            payment_intent: charge.id("payment_intent"),
            customer: charge.id("customer"),
            invoice: charge.id("invoice"),
            amount_cents: refunded,
            status: "refunded".to_owned(),
        })
    }

    pub fn of_dispute(dispute: &Object) -> Result<Back, StripeError> {
        let status = match word(dispute, "status")?.as_str() {
            "won" | "warning_closed" | "prevented" => "won",
            "lost" => "lost",
            _ => "open",
        };
        Ok(Back {
            id: dispute.id("id").ok_or_else(|| unreadable("a dispute"))?,
            payment_intent: dispute.id("payment_intent"),
            charge: dispute.id("charge"),
            customer: None,
            invoice: None,
            amount_cents: dispute.cents("amount").ok_or_else(|| unreadable("amount"))?,
            status: status.to_owned(),
        })
    }

    /// How much of the payment it takes away.
    pub fn taken(&self) -> i64 {
        if self.status == "won" { 0 } else { self.amount_cents }
    }
}

/// An event that Stripe has sent, or is about to.
pub struct Sent {
    pub id: String,
    /// The id of the object that it is about.
    pub about: String,
}

impl Sent {
    pub fn read(event: &Object) -> Result<Sent, StripeError> {
        let id = event.id("id").ok_or_else(|| unreadable("an event"))?;
        Ok(Sent { id, about: event.id("data/object").unwrap_or_default() })
    }
}
