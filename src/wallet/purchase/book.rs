//! Books a purchase that is believed: once, whoever comes with it.
//!
//! # Failure behavior
//!
//! The purchase, its credits and its line in the wallet are one transaction. Of several at once one books
//! it; the others are told that it is known.

use super::Verified;
use crate::{
    clock::Time,
    id::AccountId,
    inbox::{self, Source},
    money::Nanos,
    store::{Db, StoreError, binds, statements},
    wallet::{self, Grant, GrantError, PaidFor, Payment},
};

statements! {
    LOCK_ACCOUNT = "SELECT id FROM accounts WHERE id = $1 {for_update}";
    KNOWN = "SELECT transaction_id FROM wallet_purchases WHERE transaction_id = $1";
    ADD_PURCHASE = "
        INSERT INTO wallet_purchases (transaction_id, account_id, product_id, credits, verified_by, created_at)
        VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (transaction_id) DO NOTHING";
}

/// Credits that were paid for elsewhere.
#[derive(Clone, Debug)]
pub struct Paid {
    pub transaction_id: String,
    pub product_id: String,
    pub credits: i64,
    /// Who vouches for it: a provider, an admin or another service.
    pub verified_by: &'static str,
    pub payment: Payment,
    /// What was paid, where a refund may be told of later; otherwise 0.
    pub amount_cents: i64,
}

impl From<Verified> for Paid {
    fn from(verified: Verified) -> Paid {
        let Verified { transaction_id, product_id, verified_by, credits, payment, amount_cents } = verified;
        let verified_by = verified_by.as_str();
        Paid { transaction_id, product_id, credits, verified_by, payment, amount_cents }
    }
}

/// What became of a purchase. Only `Added` changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Booked {
    Added,
    /// The transaction was booked before, for whomever.
    Known,
    /// The account's total would not fit its integer.
    OutOfRange,
}

/// Whether the transaction was booked already.
pub async fn is_known(db: &Db, transaction_id: &str) -> Result<bool, StoreError> {
    let row: Option<(String,)> = db.optional(&KNOWN, binds![transaction_id]).await?;
    Ok(row.is_some())
}

/// Adds what was paid for to the account's credits, of which one is worth `credit_value`.
pub async fn book(
    db: &Db,
    account: &AccountId,
    paid: &Paid,
    credit_value: Nanos,
    now: Time,
) -> Result<Booked, StoreError> {
    let Paid { transaction_id, product_id, credits, verified_by, payment, amount_cents } = paid;
    let grant = Grant {
        paid_for: PaidFor::Transaction(transaction_id.clone()),
        account: account.clone(),
        credits: *credits,
        credit_value,
        amount_cents: *amount_cents,
        payment: payment.clone(),
    };
    db.effect(async || {
        let mut tx = db.begin().await?;
        if *payment != Payment::default() {
            // A refund that Stripe tells of at this moment must find it, or be found by it.
            inbox::lock(&mut tx, Source::Stripe).await?;
        }
        // First of all that names the account: a row that refers to it would hold the account's only in part,
        // and two who each do so wait for each other.
        let _: Vec<(String,)> = tx.all(&LOCK_ACCOUNT, binds![account]).await?;
        let values = binds![transaction_id, account, product_id, *credits, *verified_by, now];
        if tx.execute(&ADD_PURCHASE, values).await? == 0 {
            tx.rollback().await?;
            return Ok(Booked::Known);
        }
        match wallet::grant(&mut tx, &grant, "booked", now).await {
            Ok(()) => tx.commit().await.map(|()| Booked::Added),
            Err(GrantError::Unfit) => tx.rollback().await.map(|()| Booked::OutOfRange),
            Err(GrantError::Store(error)) => Err(error),
        }
    })
    .await
}
