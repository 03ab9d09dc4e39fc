//! What is told of each difference, and of what is none.

use std::{collections::HashMap, str::FromStr};

use super::{
    Since,
    compare::{Difference, back, invoice, purchase, standing, subscription},
    here::{self, Grant, Purchase},
    there::{self, Back, Invoice, Session},
};
use crate::{clock::Time, stripe::subscription::Known};

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
        assert_eq!(compared(Some(&here), Some(&there)), is(&format!("status is active, at Stripe {ours}")));
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
        ("ch_1", None, Some(theirs(5, "refunded")), Some("charge/ch_1: amount_refunded is 0, at Stripe 5")),
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
    let is = |stand: i64| vec![format!("grant/purchase/pur_1: credits standing is 500, at Stripe {stand}")];
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

#[test]
fn a_time_is_a_day_a_moment_or_all() {
    for (text, since) in [
        ("all", Ok(None)),
        ("1970-01-02", Ok(Some(Time(86_400_000)))),
        ("1970-01-02T01:00:00+01:00", Ok(Some(Time(86_400_000)))),
        ("1969-12-31", Err(())),
        ("yesterday", Err(())),
        ("", Err(())),
        ("2026-02-30", Err(())),
    ] {
        let read = Since::from_str(text).map(|Since(since)| since).map_err(drop);
        assert_eq!(read, since, "{text}");
    }
}
