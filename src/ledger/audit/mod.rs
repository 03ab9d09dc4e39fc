//! The audit: recomputes every balance from its lines and its open holds, holds what is told elsewhere
//! (casts, wallets' transactions, grants of credits) against the same lines, and names each difference.
//!
//! All of it reads one snapshot. The writer commits a balance together with its lines and holds, so that
//! in any snapshot the books agree, however many replicas write meanwhile; no audit waits for a cast, and
//! no cast for an audit.
//!
//! The lines are found by what they belong to in no index: one by balance would have to be kept by every
//! cast, for the sake of a daily reader. So each check goes through its tables once and lets the database
//! group them, which sorts on disk what does not fit into its memory, and gives only what differs. Pages by
//! balance would need either that index or the whole table per page. Windows alone are recomputed in pages,
//! since a calendar tells where they end, and by the index that a cast sums them up by.
//!
//! Where old casts have left with their lines, closings stand for both (`ledger::closing`): among a balance's lines,
//! and among what its casts cost. So these checks are as exact for days of which nothing else is left.
//!
//! Not checked: how many `calls` are behind a balance; windows that no limit counts on any more, such as
//! those of a plan's earlier version, which nothing moves along; that an allocation's credits are worth what
//! was taken for them, since the value of a credit may have changed; and Stripe's own books, which
//! [`crate::stripe::audit`] compares. Servers do both by themselves ([`crate::audit`]).
//!
//! # Failure behavior
//!
//! An audit that can't be finished is an error, never a clean bill. It ends within an hour per statement.
//! Until it ends, PostgreSQL keeps row versions and SQLite its WAL file, which grow by what is written
//! meanwhile; and a migration that changes one of these tables would wait for it, and casts for that.

mod differences;
#[cfg(test)]
mod tests;
mod windows;

use std::{collections::BTreeSet, fmt};

use serde::Serialize;

use crate::store::{Db, StoreError, Tx, statements};

/// How many differences of one kind are named, and counted.
const MOST: usize = 10_000;

statements! {
    AUDITED = "
        SELECT CAST(COUNT(*) AS BIGINT),
               CAST(COALESCE(SUM(CASE WHEN kind = 'window' THEN 1 ELSE 0 END), 0) AS BIGINT)
        FROM balances";
}

/// Something that is stored otherwise than it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// A balance's id, or the reference of a line, a hold or a cast that belongs to no balance.
    pub subject: String,
    /// What of it.
    pub what: &'static str,
    /// In the balance's unit, or a number of lines. As text in JSON: it may fit no integer there.
    #[serde(serialize_with = "as_text")]
    pub stored: i128,
    #[serde(serialize_with = "as_text")]
    pub expected: i128,
}

fn as_text<S: serde::Serializer>(number: &i128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(number)
}

/// The summary tells how many there are: each is an object of its own.
fn count<S: serde::Serializer>(drifts: &[Drift], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(drifts.len() as u64)
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Drift { subject, what, stored, expected } = self;
        write!(f, "{subject}: {what} is {stored}, should be {expected}")
    }
}

/// What an audit came to.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// How many balances there are.
    pub balances: i64,
    /// How many of them were left out: windows that no limit counts on.
    pub skipped: i64,
    #[serde(serialize_with = "count")]
    pub drifts: Vec<Drift>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { balances, skipped, drifts } = self;
        let of_one_kind = |what| drifts.iter().filter(|drift| drift.what == what).count();
        let kinds: BTreeSet<&str> = drifts.iter().map(|drift| drift.what).collect();
        let bounded = kinds.into_iter().any(|what| of_one_kind(what) >= MOST);
        write!(f, "{balances} balances, {skipped} windows out of use left out: ")?;
        match (drifts.len(), bounded) {
            (0, _) => write!(f, "no drift"),
            (some, false) => write!(f, "drift in {some}"),
            (some, true) => write!(f, "drift in {some} or more"),
        }
    }
}

/// Audits the books as they are at one moment.
pub async fn audit(db: &Db) -> Result<Report, StoreError> {
    let mut tx = db.begin_long_read().await?;
    let report = audit_in(&mut tx).await?;
    tx.rollback().await?;
    Ok(report)
}

pub(super) async fn audit_in(tx: &mut Tx) -> Result<Report, StoreError> {
    let (balances, windows): (i64, i64) = tx.one(&AUDITED, vec![]).await?;
    let mut drifts = differences::all(tx).await?;
    let recomputed = windows::recompute(tx).await?;
    drifts.extend(recomputed.drifts);
    Ok(Report { balances, skipped: windows - recomputed.windows, drifts })
}
