//! `Idempotency-Key`s: the first answer to a request, kept with its effect for 24 hours.
//!
//! The row is written in the transaction of what the request did, under its account's lock, so a
//! key can't be there without its effect or its effect without the key.

use std::time::Duration;

use super::request::{Answer, Keyed, Outcome};
use crate::{
    clock::Time,
    id::AccountId,
    store::{Db, Rows, StoreError, Tx, binds, statements},
};

/// How long an answer is kept.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

statements! {
    KNOWN_KEYS = "
        SELECT account_id, key, request_hash, status, answer
        FROM idempotency_keys
        WHERE (account_id, key) IN (SELECT given.value ->> 0, given.value ->> 1 FROM {rows})
          AND expires_at > $2";
}

#[derive(sqlx::FromRow)]
struct KeyRow {
    account_id: String,
    key: String,
    request_hash: String,
    status: Option<i64>,
    answer: Option<String>,
}

/// What is known of a key: the request it came with and, once that has ended, the answer.
pub(super) struct KnownKey {
    pub request_hash: String,
    pub answer: Option<Answer>,
}

impl KnownKey {
    /// What a request that comes with the key again is told.
    pub fn outcome_for(&self, keyed: &Keyed) -> Outcome {
        match &self.answer {
            _ if self.request_hash != keyed.request_hash => Outcome::KeyReused,
            Some(answer) => Outcome::Replayed(answer.clone()),
            None => Outcome::InProgress,
        }
    }
}

impl From<KeyRow> for KnownKey {
    fn from(row: KeyRow) -> KnownKey {
        let answer = row.status.map(|status| Answer {
            status: u16::try_from(status).unwrap_or(200),
            body: row.answer.unwrap_or_default(),
        });
        KnownKey { request_hash: row.request_hash, answer }
    }
}

/// The keys of `named` (an account and a key a row) that are known at `now`.
pub(super) async fn known(
    tx: &mut Tx,
    named: Rows,
    now: Time,
) -> Result<Vec<((AccountId, String), KnownKey)>, StoreError> {
    let rows: Vec<KeyRow> = tx.all(&KNOWN_KEYS, binds![named, now]).await?;
    let pair = |row: KeyRow| ((row.account_id.clone().into(), row.key.clone()), KnownKey::from(row));
    Ok(rows.into_iter().map(pair).collect())
}

/// What the request is told without running, if its key is known: a look before anything is taken
/// for it. The ledger looks again when it runs.
pub async fn earlier(
    db: &Db,
    account: &AccountId,
    keyed: &Keyed,
    now: Time,
) -> Result<Option<Outcome>, StoreError> {
    let mut named = Rows::default();
    named.push(binds![account, &keyed.key]);
    let row: Option<KeyRow> = db.optional(&KNOWN_KEYS, binds![named, now]).await?;
    Ok(row.map(|row| KnownKey::from(row).outcome_for(keyed)))
}
