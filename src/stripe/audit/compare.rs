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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Time;

    fn rows(differences: Vec<Difference>) -> Vec<String> {
        differences.iter().map(Difference::to_string).collect()
    }

    fn credits() -> (Purchase, Session) {
        let here = Purchase {
            id: "pur_1".to_owned(),
            customer_id: "cus_1".to_owned(),
            credits: Some(500),
            amount_cents: 1_000,
            currency: "usd".to_owned(),
            status: "paid".to_owned(),
            session_id: Some("cs_1".to_owned()),
            granted: Some(500),
            ..Purchase::default()
        };
        let there = Session {
            id: "cs_1".to_owned(),
            purchase: Some("pur_1".to_owned()),
            customer: Some("cus_1".to_owned()),
            status: "complete".to_owned(),
            payment_status: "paid".to_owned(),
            amount_cents: Some(1_000),
            currency: Some("usd".to_owned()),
            ..Session::default()
        };
        (here, there)
    }

    fn plan() -> (Purchase, Session) {
        let (here, there) = credits();
        let subscription = Some("sub_1".to_owned());
        let here = Purchase {
            plan: Some("pro".to_owned()),
            credits: None,
            granted: None,
            included_credits: 40,
            subscription_id: subscription.clone(),
            ..here
        };
        (here, Session { subscription, invoice: Some("in_1".to_owned()), ..there })
    }

    #[test]
    fn a_purchase_is_paid_on_both_sides_or_on_none() {
        let (here, there) = credits();
        let compared =
            |here: Option<&Purchase>, there: Option<&Session>| rows(purchase("pur_1", here, there, false));
        let is = |what: &str| vec![format!("purchase/pur_1: {what}")];
        assert!(compared(Some(&here), Some(&there)).is_empty());
        assert_eq!(compared(None, Some(&there)), is("status is none, at Stripe paid"));
        let not_granted = Purchase { granted: None, ..here.clone() };
        assert_eq!(compared(Some(&not_granted), Some(&there)), is("credits granted is 0, at Stripe 500"));
        let said = |status: &str, payment_status: &str| {
            let (status, payment_status) = (status.to_owned(), payment_status.to_owned());
            Session { status, payment_status, ..there.clone() }
        };
        let (waits, open) = (said("complete", "unpaid"), said("open", "unpaid"));
        for (there, word) in [(Some(&waits), "unpaid"), (Some(&open), "open"), (None, "none")] {
            let told = compared(Some(&not_granted), there);
            assert_eq!(told, is(&format!("status is paid, at Stripe {word}")));
            assert_eq!(compared(Some(&here), there).len(), 2, "and the credits");
        }
        for status in ["open", "processing", "failed", "expired", "mismatched"] {
            let unpaid = Purchase { status: status.to_owned(), ..not_granted.clone() };
            assert!(compared(Some(&unpaid), Some(&waits)).is_empty(), "{status} is not paid, as Stripe says");
            assert!(compared(Some(&unpaid), None).is_empty());
            let told = compared(Some(&unpaid), Some(&there));
            assert_eq!(told[0], format!("purchase/pur_1: status is {status}, at Stripe paid"));
        }
        assert!(compared(None, Some(&waits)).is_empty() && compared(None, None).is_empty());
    }

    #[test]
    fn a_purchase_was_sold_as_it_was_paid() {
        let (here, there) = credits();
        for (there, what) in [
            (
                Session { customer: Some("cus_2".to_owned()), ..there.clone() },
                "customer is cus_1, at Stripe cus_2",
            ),
            (Session { id: "cs_2".to_owned(), ..there.clone() }, "session is cs_1, at Stripe cs_2"),
            (Session { amount_cents: Some(999), ..there.clone() }, "amount_cents is 1000, at Stripe 999"),
            (Session { amount_cents: None, ..there.clone() }, "amount_cents is 1000, at Stripe none"),
            (Session { currency: Some("eur".to_owned()), ..there.clone() }, "currency is usd, at Stripe eur"),
        ] {
            let told = rows(purchase("pur_1", Some(&here), Some(&there), false));
            assert_eq!(told, [format!("purchase/pur_1: {what}")]);
        }
        let (here, there) = plan();
        assert!(purchase("pur_1", Some(&here), Some(&there), false).is_empty());
        let taxed = Session { amount_cents: Some(1_190), ..there.clone() };
        assert!(purchase("pur_1", Some(&here), Some(&taxed), true).is_empty(), "its invoice was judged");
        assert_eq!(purchase("pur_1", Some(&here), Some(&taxed), false).len(), 1);
        let trial = Session { payment_status: "no_payment_required".to_owned(), ..there.clone() };
        assert!(purchase("pur_1", Some(&here), Some(&trial), false).is_empty(), "an invoice paid it later");
        let other = Session { subscription: Some("sub_2".to_owned()), ..there };
        let told = purchase("pur_1", Some(&here), Some(&other), false);
        assert_eq!(told[0].about, ["cs_1", "in_1"], "whose events would explain it");
        assert_eq!(rows(told), ["purchase/pur_1: subscription is sub_1, at Stripe sub_2"]);
    }

    #[test]
    fn an_invoice_of_ours_brings_its_credits_once_it_is_paid() {
        let (purchase, _) = plan();
        let known = Known { plan: Some("pro".to_owned()), ..Known::default() };
        let grant = Grant { credits: 40, amount_cents: 1_000, ..Grant::default() };
        let paid = Invoice { paid_cents: Some(1_000), is_first: true, ..Invoice::default() };
        let unpaid = Invoice { paid_cents: None, ..paid.clone() };
        let compared = |grant: Option<&Grant>, there: &Invoice| {
            rows(invoice("in_1", grant, Some(&known), Some(&purchase), Some(there)))
        };
        assert!(compared(Some(&grant), &paid).is_empty() && compared(None, &unpaid).is_empty());
        let is = |what: &str| vec![format!("invoice/in_1: {what}")];
        assert_eq!(compared(None, &paid), is("paid_cents, granted for is 0, at Stripe 1000"));
        assert_eq!(compared(Some(&grant), &unpaid), is("paid_cents, granted for is 1000, at Stripe 0"));
        let more = Grant { credits: 41, ..grant.clone() };
        assert_eq!(compared(Some(&more), &paid), is("credits granted is 41, at Stripe 40"));
        let later = Invoice { is_first: false, ..paid.clone() };
        assert!(compared(Some(&more), &later).is_empty(), "the catalogue of then is not known");
        assert!(invoice("in_1", None, None, None, Some(&paid)).is_empty(), "somebody else's");
        let ours = Invoice { purchase: Some("pur_gone".to_owned()), ..paid };
        assert_eq!(invoice("in_1", None, None, None, Some(&ours)).len(), 1, "it names a purchase");
        assert_eq!(invoice("in_1", Some(&grant), None, None, None).len(), 1, "Stripe knows none");
    }

    #[test]
    fn a_subscription_is_as_stripe_says() {
        let (sold, _) = plan();
        let plans = HashMap::from([("price_pro".to_owned(), "pro".to_owned())]);
        let here = Known {
            id: "sub_1".to_owned(),
            status: "active",
            plan: Some("pro".to_owned()),
            current_period_end: Some(Time(5_000)),
            ..Known::default()
        };
        let there = there::Subscription {
            id: "sub_1".to_owned(),
            customer: Some("cus_1".to_owned()),
            purchase: Some("pur_1".to_owned()),
            status: "trialing".to_owned(),
            price: Some("price_pro".to_owned()),
            period_end: Some(Time(5_000)),
            cancels: false,
        };
        let compared = |here: Option<&Known>, there: Option<&there::Subscription>| {
            rows(subscription("sub_1", here, Some(&sold), there, &plans))
        };
        let is = |what: &str| vec![format!("subscription/sub_1: {what}")];
        assert!(compared(Some(&here), Some(&there)).is_empty());
        for (word, ours) in [
            ("past_due", "past_due"),
            ("unpaid", "unpaid"),
            ("paused", "inactive"),
            ("incomplete", "inactive"),
            ("canceled", "canceled"),
            ("incomplete_expired", "canceled"),
        ] {
            let there = there::Subscription { status: word.to_owned(), ..there.clone() };
            assert_eq!(
                compared(Some(&here), Some(&there)),
                is(&format!("status is active, at Stripe {ours}"))
            );
            let here = Known { status: ours, ..here.clone() };
            assert!(compared(Some(&here), Some(&there)).is_empty(), "{word}");
            let waits = Known { status: "inactive", waits_for_money: true, ..here };
            assert_eq!(compared(Some(&waits), Some(&there)).is_empty(), ours != "canceled", "{word}");
        }
        let ended = |status: &str| there::Subscription {
            status: status.to_owned(),
            period_end: Some(Time(9_000)),
            cancels: true,
            ..there.clone()
        };
        let over = Known { status: "canceled", ..here.clone() };
        assert!(compared(Some(&over), Some(&ended("canceled"))).is_empty(), "its period does not matter");
        assert!(compared(Some(&over), None).is_empty());
        assert_eq!(compared(Some(&here), None), is("status is active, at Stripe none"));
        assert_eq!(compared(None, Some(&there)), is("status is none, at Stripe active"));
        assert!(compared(None, Some(&ended("canceled"))).is_empty());
        assert!(subscription("sub_1", None, None, Some(&there), &plans).len() == 1, "it names a purchase");
        let others = there::Subscription { purchase: None, ..there.clone() };
        assert!(subscription("sub_1", None, None, Some(&others), &plans).is_empty());
        for (here, what) in [
            (Known { plan: None, ..here.clone() }, "plan is none, at Stripe pro"),
            (
                Known { current_period_end: Some(Time(1_000)), ..here.clone() },
                "current_period_end is 1970-01-01T00:00:01.000Z, at Stripe 1970-01-01T00:00:05.000Z",
            ),
            (Known { cancel_at_period_end: true, ..here }, "cancel_at_period_end is true, at Stripe false"),
        ] {
            assert_eq!(compared(Some(&here), Some(&there)), is(what));
        }
    }

    #[test]
    fn what_went_back_takes_what_it_paid_for() {
        let theirs =
            |amount_cents, status: &str| Back { amount_cents, status: status.to_owned(), ..Back::default() };
        let ours = |amount_cents, status: &str| here::Back {
            amount_cents,
            status: status.to_owned(),
            ..here::Back::default()
        };
        for (id, here, there, what) in [
            ("ch_1", Some(ours(5, "refunded")), Some(theirs(5, "refunded")), None),
            (
                "ch_1",
                None,
                Some(theirs(5, "refunded")),
                Some("charge/ch_1: amount_refunded is 0, at Stripe 5"),
            ),
            ("ch_1", Some(ours(5, "refunded")), None, Some("charge/ch_1: amount_refunded is 5, at Stripe 0")),
            ("du_1", Some(ours(5, "open")), Some(theirs(5, "open")), None),
            ("du_1", None, Some(theirs(5, "lost")), Some("dispute/du_1: status is none, at Stripe lost")),
            (
                "du_1",
                Some(ours(5, "open")),
                Some(theirs(5, "won")),
                Some("dispute/du_1: status is open, at Stripe won"),
            ),
            (
                "du_1",
                Some(ours(5, "open")),
                Some(theirs(6, "open")),
                Some("dispute/du_1: amount_cents is 5, at Stripe 6"),
            ),
        ] {
            let told = rows(back(id, here.as_ref(), there.as_ref()));
            assert_eq!(told, what.map(str::to_owned).into_iter().collect::<Vec<_>>(), "{here:?} {there:?}");
        }
        let reference = "purchase/pur_1".to_owned();
        let grant = Grant { reference, credits: 500, standing: 500, amount_cents: 1_000, ..Grant::default() };
        let taken = |cents: &[i64]| {
            let each = cents.iter().enumerate().map(|(number, cents)| (format!("ch_{number}"), *cents));
            rows(standing(&grant, &each.collect()))
        };
        assert!(taken(&[]).is_empty() && taken(&[0]).is_empty());
        let is =
            |stand: i64| vec![format!("grant/purchase/pur_1: credits standing is 500, at Stripe {stand}")];
        assert_eq!((taken(&[300]), taken(&[300, 101])), (is(350), is(299)));
        assert_eq!((taken(&[1_000, 1_000]), taken(&[i64::MAX, i64::MAX])), (is(0), is(0)));
    }

    #[test]
    fn what_an_event_explains_says_so() {
        let (here, there) = credits();
        let here = Purchase { status: "open".to_owned(), ..here };
        let mut told = purchase("pur_1", Some(&here), Some(&there), false).remove(0);
        let plain = serde_json::json!({"subject": "purchase/pur_1", "what": "status", "stored": "open",
                                       "expected": "paid"});
        assert_eq!(serde_json::json!(told), plain);
        for (open, sentence) in [
            ("under way", "no drift: its event is under way"),
            ("kept", "no drift: its event is kept, see spell-platform webhooks list"),
            ("changing", "no drift: it changes while it is looked at"),
        ] {
            told.open = Some(open);
            assert!(told.to_string().ends_with(sentence), "{told}");
            assert_eq!(serde_json::json!(told)["open"], open);
        }
    }
}
