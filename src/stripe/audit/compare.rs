//! What Stripe has against what we have, one subject at a time: pure, so that each difference is told in a test
//! of its own.
//!
//! Only what is settled on one side is held against the other. A Checkout that is not paid and a purchase that
//! is not either agree, whatever each calls it.

use std::{collections::HashMap, fmt};

use serde::Serialize;

use super::{
    here::{self, Grant, Purchase},
    there::{self, Back, Invoice, Session},
};
use crate::{
    stripe::subscription::{Known, word_of},
    wallet,
};

/// Something that we have otherwise than Stripe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What it is, and its id.
    pub subject: String,
    /// What of it.
    pub what: &'static str,
    pub stored: String,
    /// As it follows from what Stripe has.
    pub expected: String,
    /// Why it is no drift: its event is `under way`, or `kept`, `failed` or `dismissed` here, or it is still
    /// `changing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<&'static str>,
    /// The ids of Stripe's objects whose events would explain it.
    #[serde(skip)]
    pub about: Vec<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { subject, what, stored, expected, open, .. } = self;
        write!(f, "{subject}: {what} is {stored}, at Stripe {expected}")?;
        match open {
            None => Ok(()),
            Some("under way") => write!(f, "; no drift: its event is under way"),
            Some("changing") => write!(f, "; no drift: it changes while it is looked at"),
            Some(status) => write!(f, "; no drift: its event is {status}, see spell-platform webhooks list"),
        }
    }
}

/// What neither side has.
const NONE: &str = "none";

/// Collects the differences of one subject.
struct Differences {
    subject: String,
    about: Vec<String>,
    found: Vec<Difference>,
}

impl Differences {
    fn of(kind: &str, id: &str, about: impl IntoIterator<Item = String>) -> Differences {
        let about = about.into_iter().collect();
        Differences { subject: format!("{kind}/{id}"), about, found: Vec::new() }
    }

    fn tell(&mut self, what: &'static str, stored: impl fmt::Display, expected: impl fmt::Display) {
        let (subject, about) = (self.subject.clone(), self.about.clone());
        let (stored, expected) = (stored.to_string(), expected.to_string());
        if stored != expected {
            self.found.push(Difference { subject, what, stored, expected, open: None, about });
        }
    }
}

fn or_none(text: Option<&str>) -> &str {
    text.unwrap_or(NONE)
}

/// Whether an id looks like one that we gave to a purchase: the account at Stripe may be others' too.
pub fn is_a_purchase(named: &str) -> bool {
    named.starts_with("pur_")
}

/// A purchase against its Checkout. `invoiced`: the Checkout's invoice has its grant here, by which the amount
/// was judged already, against the price at Stripe instead of against the purchase.
pub fn purchase(
    id: &str,
    here: Option<&Purchase>,
    there: Option<&Session>,
    invoiced: bool,
) -> Vec<Difference> {
    let about = there.into_iter().flat_map(|session| [Some(session.id.clone()), session.invoice.clone()]);
    let mut differences = Differences::of("purchase", id, about.flatten());
    match (here, there) {
        (None, Some(session)) if session.is_paid() => {
            differences.tell("status", NONE, "paid");
        }
        (Some(here), Some(session)) if session.is_paid() => {
            differences.tell("customer", &here.customer_id, or_none(session.customer.as_deref()));
            differences.tell("session", or_none(here.session_id.as_deref()), &session.id);
            if !invoiced {
                let amount = session.amount_cents.map_or(NONE.to_owned(), |cents| cents.to_string());
                differences.tell("amount_cents", here.amount_cents, amount);
                differences.tell("currency", &here.currency, or_none(session.currency.as_deref()));
            }
            differences.tell("status", &here.status, "paid");
            match here.credits {
                Some(credits) => differences.tell("credits granted", here.granted.unwrap_or(0), credits),
                None => {
                    let (stored, expected) =
                        (here.subscription_id.as_deref(), session.subscription.as_deref());
                    differences.tell("subscription", or_none(stored), or_none(expected));
                }
            }
        }
        (Some(here), there) => {
            // After a trial, or whatever else made nothing due at first, an invoice paid it.
            let by_invoice = here.plan.is_some()
                && there.is_some_and(|session| session.payment_status == "no_payment_required");
            let said = there.map_or(NONE, |session| match session.status.as_str() {
                "complete" => &session.payment_status,
                status => status,
            });
            if here.status == "paid" && !by_invoice {
                differences.tell("status", "paid", said);
            }
            if let Some(granted) = here.granted {
                differences.tell("credits granted", granted, 0);
            }
        }
        (None, _) => {}
    }
    differences.found
}

/// An invoice against what it brought. `subscription` and `purchase` are those that it is of, where we have them.
pub fn invoice(
    id: &str,
    grant: Option<&Grant>,
    subscription: Option<&Known>,
    purchase: Option<&Purchase>,
    there: Option<&Invoice>,
) -> Vec<Difference> {
    let mut differences = Differences::of("invoice", id, [id.to_owned()]);
    let paid = there.and_then(|invoice| Some((invoice, invoice.paid_cents?)));
    let names_us = |invoice: &Invoice| {
        subscription.is_some() || purchase.is_some() || invoice.purchase.as_deref().is_some_and(is_a_purchase)
    };
    match (grant, paid) {
        (None, Some((invoice, cents))) if names_us(invoice) => {
            differences.tell("paid_cents, granted for", 0, cents);
        }
        (Some(grant), Some((invoice, cents))) => {
            differences.tell("paid_cents, granted for", grant.amount_cents, cents);
            let sold = purchase.filter(|_| invoice.is_first);
            if let Some(sold) = sold
                && subscription.is_none_or(|known| known.plan == sold.plan)
            {
                differences.tell("credits granted", grant.credits, sold.included_credits);
            }
        }
        (Some(grant), None) => differences.tell("paid_cents, granted for", grant.amount_cents, 0),
        (None, _) => {}
    }
    differences.found
}

/// A subscription against Stripe's. `purchase` is the one that began it; `plans` are the catalogue's by price.
pub fn subscription(
    id: &str,
    here: Option<&Known>,
    purchase: Option<&Purchase>,
    there: Option<&there::Subscription>,
    plans: &HashMap<String, String>,
) -> Vec<Difference> {
    // What is not paid as it was sold is not in force here, and that Checkout's event tells why.
    let unpaid = purchase.filter(|purchase| purchase.status != "paid");
    let about = [Some(id.to_owned()), unpaid.and_then(|purchase| purchase.session_id.clone())];
    let mut differences = Differences::of("subscription", id, about.into_iter().flatten());
    let expected = there.map_or(NONE, |there| word_of(&there.status));
    let (Some(here), Some(there)) = (here, there) else {
        let names_us = |there: &there::Subscription| {
            purchase.is_some() || there.purchase.as_deref().is_some_and(is_a_purchase)
        };
        match (here, there) {
            (Some(here), _) if here.status != "canceled" => differences.tell("status", here.status, NONE),
            (None, Some(there)) if names_us(there) && !matches!(expected, "canceled" | "inactive") => {
                differences.tell("status", NONE, expected);
            }
            _ => {}
        }
        return differences.found;
    };
    if !here.waits_for_money || expected == "canceled" {
        differences.tell("status", here.status, expected);
    }
    if expected == "canceled" {
        return differences.found;
    }
    if let Some(plan) = there.price.as_ref().and_then(|price| plans.get(price)) {
        differences.tell("plan", or_none(here.plan.as_deref()), plan);
    }
    if let Some(end) = there.period_end {
        let stored = here.current_period_end.map_or(NONE.to_owned(), |end| end.to_string());
        differences.tell("current_period_end", stored, end);
    }
    differences.tell("cancel_at_period_end", here.cancel_at_period_end, there.cancels);
    if let (Some(purchase), Some(customer)) = (purchase, &there.customer) {
        differences.tell("customer", &purchase.customer_id, customer);
    }
    differences.found
}

/// One of the things that went back of a payment of ours, or may: as it is known here, and as Stripe has it.
pub fn back(id: &str, here: Option<&here::Back>, there: Option<&Back>) -> Vec<Difference> {
    let kind = if id.starts_with("ch_") || id.starts_with("py_") { "charge" } else { "dispute" };
    let mut differences = Differences::of(kind, id, [id.to_owned()]);
    let refunds = |status: Option<&str>| status.unwrap_or("refunded") == "refunded";
    let (stored, expected) = (here.map(|back| back.status.as_str()), there.map(|back| back.status.as_str()));
    if refunds(stored) && refunds(expected) {
        let amount = (here.map_or(0, |back| back.amount_cents), there.map_or(0, |back| back.amount_cents));
        differences.tell("amount_refunded", amount.0, amount.1);
    } else {
        differences.tell("status", or_none(stored), or_none(expected));
        if let (Some(here), Some(there)) = (here, there) {
            differences.tell("amount_cents", here.amount_cents, there.amount_cents);
        }
    }
    differences.found
}

/// What stands of a grant, if so much of its payment went back: for each, its id and what it takes away.
pub fn standing(grant: &Grant, taken: &HashMap<String, i64>) -> Vec<Difference> {
    let mut differences = Differences::of("grant", &grant.reference, taken.keys().cloned());
    let reversed = taken.values().fold(0i64, |sum, taken| sum.saturating_add(*taken));
    let expected = wallet::standing(grant.credits, grant.amount_cents, reversed);
    differences.tell("credits standing", grant.standing, expected);
    differences.found
}
