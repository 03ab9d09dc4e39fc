//! What is in our books of all that Stripe has too, in short reads of a page each: no transaction is open
//! while Stripe is asked.

use std::collections::{HashMap, HashSet};

use super::super::event::Event;
use crate::{
    clock::Time,
    store::{Db, Rows, StoreError, binds, statements},
};

/// How many rows are read at a time.
pub const PAGE: i64 = 500;
/// How many events, whose bodies may be long.
const EVENTS: i64 = 50;

macro_rules! purchase {
    () => {
        "SELECT purchases.id AS id, customer_id, plan, purchases.credits AS credits,
               purchases.amount_cents AS amount_cents, currency, included_credits, status, session_id,
               subscription_id, credit_grants.credits AS granted
        FROM purchases LEFT JOIN credit_grants ON credit_grants.reference = 'purchase/' || purchases.id"
    };
}

macro_rules! grant {
    () => {
        "SELECT reference, credits, standing, amount_cents, payment_intent, charge_id, invoice_id FROM credit_grants"
    };
}

macro_rules! back {
    () => {
        "SELECT id, payment_intent, amount_cents, status FROM reversals"
    };
}

statements! {
    PURCHASES = concat!(purchase!(), " WHERE purchases.id IN (SELECT given.value ->> 0 FROM {rows})");
    PAID_PURCHASES = concat!(purchase!(), "
        WHERE purchases.id > $1 AND purchases.created_at >= $2
          AND (status = 'paid' OR credit_grants.reference IS NOT NULL)
        ORDER BY purchases.id LIMIT $3");
    CUSTOMERS = "
        SELECT DISTINCT customer_id FROM purchases
        WHERE customer_id IN (SELECT given.value ->> 0 FROM {rows})";
    PRICES = "SELECT stripe_price_id, code FROM plans WHERE stripe_price_id IS NOT NULL";
    GRANTS = concat!(grant!(), " WHERE reference IN (SELECT given.value ->> 0 FROM {rows})");
    NEXT_GRANTS = concat!(grant!(), "
        WHERE reference > $1 AND created_at >= $2 ORDER BY reference LIMIT $3");
    // In two parts, each by its indexes.
    GRANTS_OF = concat!(grant!(), " WHERE payment_intent = $2 OR invoice_id = $3
        UNION ", grant!(), " WHERE charge_id IN (SELECT given.value ->> 0 FROM {rows})");
    BACK = concat!(back!(), " WHERE id IN (SELECT given.value ->> 0 FROM {rows})");
    BACK_OF = concat!(back!(), " WHERE payment_intent = $1 OR charge_id = $2 OR invoice_id = $3");
    NEXT_BACK = concat!(back!(), "
        WHERE id > $1 AND (event_at >= $2 OR status = 'open') ORDER BY id LIMIT $3");
    UNSETTLED_EVENTS = "
        SELECT id, status, received_at, body FROM webhook_events
        WHERE source = 'stripe' AND status IN ('received', 'failed', 'kept')
          AND (received_at, id) > ($1, $2)
        ORDER BY received_at, id LIMIT $3";
    // By time, since no index knows who was dismissed: so many events a page, whatever became of them.
    DISMISSED_EVENTS = "
        SELECT id, status, received_at, CASE WHEN status = 'dismissed' THEN body ELSE '' END AS body
        FROM webhook_events
        WHERE source = 'stripe' AND (received_at, id) > ($1, $2)
        ORDER BY received_at, id LIMIT $3";
    STATUSES = "
        SELECT id, status FROM webhook_events
        WHERE source = 'stripe' AND id IN (SELECT given.value ->> 0 FROM {rows})";
}

/// A purchase, and what it was granted.
#[derive(Clone, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Purchase {
    pub id: String,
    pub customer_id: String,
    pub plan: Option<String>,
    pub credits: Option<i64>,
    pub amount_cents: i64,
    pub currency: String,
    pub included_credits: i64,
    pub status: String,
    pub session_id: Option<String>,
    pub subscription_id: Option<String>,
    pub granted: Option<i64>,
}

/// Credits that were paid for.
#[derive(Clone, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Grant {
    pub reference: String,
    pub credits: i64,
    pub standing: i64,
    pub amount_cents: i64,
    pub payment_intent: Option<String>,
    pub charge_id: Option<String>,
    pub invoice_id: Option<String>,
}

/// Money that went back, or may.
#[derive(Clone, Debug, Default, PartialEq, Eq, sqlx::FromRow)]
pub struct Back {
    pub id: String,
    pub payment_intent: Option<String>,
    pub amount_cents: i64,
    pub status: String,
}

impl Back {
    /// How much of the payment it takes away.
    pub fn taken(&self) -> i64 {
        if self.status == "won" { 0 } else { self.amount_cents }
    }
}

#[derive(sqlx::FromRow)]
struct EventRow {
    id: String,
    status: String,
    received_at: i64,
    body: String,
}

/// Those of `ids` that are there, by their ids.
pub async fn purchases(
    db: &Db,
    ids: impl IntoIterator<Item = &String>,
) -> Result<HashMap<String, Purchase>, StoreError> {
    let rows: Vec<Purchase> = db.scan(&PURCHASES, binds![Rows::of(ids)]).await?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row)).collect())
}

/// Purchases that count as paid, or were granted, after the one of the id `after`.
pub async fn paid_purchases(db: &Db, after: &str, since: Time) -> Result<Vec<Purchase>, StoreError> {
    db.scan(&PAID_PURCHASES, binds![after, since, PAGE]).await
}

/// Those of `customers` to whom something was sold.
pub async fn customers(
    db: &Db,
    customers: impl IntoIterator<Item = &String>,
) -> Result<HashSet<String>, StoreError> {
    let rows: Vec<(String,)> = db.scan(&CUSTOMERS, binds![Rows::of(customers)]).await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}

/// The plans of the catalogue by their prices at Stripe.
pub async fn plans_by_price(db: &Db) -> Result<HashMap<String, String>, StoreError> {
    let rows: Vec<(String, String)> = db.scan(&PRICES, binds![]).await?;
    Ok(rows.into_iter().collect())
}

/// The grants of those invoices, by the invoices' ids.
pub async fn grants_of_invoices(
    db: &Db,
    invoices: impl IntoIterator<Item = &String>,
) -> Result<HashMap<String, Grant>, StoreError> {
    let references = invoices.into_iter().map(|id| format!("invoice/{id}"));
    let rows: Vec<Grant> = db.scan(&GRANTS, binds![Rows::of(references)]).await?;
    let invoice = |grant: &Grant| grant.reference.trim_start_matches("invoice/").to_owned();
    Ok(rows.into_iter().map(|grant| (invoice(&grant), grant)).collect())
}

/// The grant of that reference.
pub async fn grant(db: &Db, reference: &str) -> Result<Option<Grant>, StoreError> {
    Ok(db.scan(&GRANTS, binds![Rows::of([reference])]).await?.into_iter().next())
}

/// Grants after the one of the reference `after`.
pub async fn next_grants(db: &Db, after: &str, since: Time) -> Result<Vec<Grant>, StoreError> {
    db.scan(&NEXT_GRANTS, binds![after, since, PAGE]).await
}

/// What was granted for a payment, by any of its names.
pub async fn grants_of(
    db: &Db,
    payment_intent: &str,
    invoice: Option<&str>,
    charges: impl IntoIterator<Item = &String>,
) -> Result<Vec<Grant>, StoreError> {
    let invoice = invoice.map(str::to_owned);
    db.scan(&GRANTS_OF, binds![Rows::of(charges), payment_intent, invoice]).await
}

/// What is known to have gone back, by those ids.
pub async fn back(
    db: &Db,
    ids: impl IntoIterator<Item = &String>,
) -> Result<HashMap<String, Back>, StoreError> {
    let rows: Vec<Back> = db.scan(&BACK, binds![Rows::of(ids)]).await?;
    Ok(rows.into_iter().map(|row| (row.id.clone(), row)).collect())
}

/// What is known to have gone back of a payment, by any of its names.
pub async fn back_of(
    db: &Db,
    payment_intent: Option<&str>,
    charge: Option<&str>,
    invoice: Option<&str>,
) -> Result<Vec<Back>, StoreError> {
    db.scan(&BACK_OF, binds![payment_intent, charge, invoice]).await
}

/// What went back since then, or is not decided, after the one of the id `after`.
pub async fn next_back(db: &Db, after: &str, since: Time) -> Result<Vec<Back>, StoreError> {
    db.scan(&NEXT_BACK, binds![after, since, PAGE]).await
}

/// What became of those events, as far as they have come.
pub async fn statuses(
    db: &Db,
    events: impl IntoIterator<Item = &String>,
) -> Result<HashMap<String, String>, StoreError> {
    let rows: Vec<(String, String)> = db.scan(&STATUSES, binds![Rows::of(events)]).await?;
    Ok(rows.into_iter().collect())
}

/// What Stripe's events are about that an operator has to see to, or, if they were received `since` then,
/// has seen to; with their statuses.
pub async fn unsettled(db: &Db, since: Time) -> Result<Vec<(String, String)>, StoreError> {
    let mut unsettled = Vec::new();
    for (statement, since, limit) in [(&UNSETTLED_EVENTS, Time(0), EVENTS), (&DISMISSED_EVENTS, since, PAGE)]
    {
        let mut after = (since, String::new());
        loop {
            let rows: Vec<EventRow> = db.scan(statement, binds![after.0, after.1, limit]).await?;
            let Some(last) = rows.last() else { break };
            after = (Time(last.received_at), last.id.clone());
            // One whose body is gone excuses nothing.
            unsettled.extend(rows.into_iter().filter_map(|row| Some((about(&row.body)?, row.status))));
        }
    }
    Ok(unsettled)
}

/// The id of the object that an event is about.
fn about(body: &str) -> Option<String> {
    Event::parse(body.as_bytes(), Time(0)).ok()?.object.id("id")
}
