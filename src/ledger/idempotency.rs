//! `Idempotency-Key`s: the first answer to a request, kept with its effect for 24 hours.
//!
//! The row is written in the transaction of what the request did, under its account's lock, so a
//! key can't be there without its effect or its effect without the key.

use std::time::Duration;

use super::request::{Answer, Keyed, Outcome};
use crate::{
    clock::Time,
    id::{AccountId, PurchaseId},
    store::{Db, Rows, StoreError, Tx, binds, statements},
};

/// How long a purchase may take before another request with its key goes on with it: longer than one
/// that lives takes.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(30);

/// How long an answer is kept.
pub(super) const KEPT_FOR: Duration = Duration::from_secs(24 * 60 * 60);

statements! {
    KNOWN_KEYS = "
        SELECT account_id, key, request_hash, status, answer
        FROM idempotency_keys
        WHERE (account_id, key) IN (SELECT given.value ->> 0, given.value ->> 1 FROM {rows})
          AND expires_at > $2";
    PURCHASE_KEY = "
        SELECT account_id, key, request_hash, status, answer, hold_id, purchase_id, expires_at
        FROM idempotency_keys
        WHERE account_id = $1 AND key = $2 AND expires_at > $3";
    PUT_PURCHASE_KEY = "
        INSERT INTO idempotency_keys (account_id, key, request_hash, purchase_id, status, answer, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (account_id, key) DO UPDATE SET
            request_hash = excluded.request_hash, hold_id = NULL, purchase_id = excluded.purchase_id,
            status = excluded.status, answer = excluded.answer, expires_at = excluded.expires_at";
    ANSWER_PURCHASE_KEY = "
        UPDATE idempotency_keys SET status = $4, answer = $5
        WHERE account_id = $1 AND key = $2 AND purchase_id = $3";
    DROP_PURCHASE_KEY = "
        DELETE FROM idempotency_keys
        WHERE account_id = $1 AND key = $2 AND purchase_id = $3 AND status IS NULL";
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

/// A key that a purchase made: what a purchase needs to know of it beside what all do.
#[derive(sqlx::FromRow)]
struct PurchaseKeyRow {
    #[sqlx(flatten)]
    known: KeyRow,
    hold_id: Option<String>,
    purchase_id: Option<String>,
    expires_at: i64,
}

impl PurchaseKeyRow {
    /// The purchase, if it came with this request and was never heard of again.
    fn abandoned(&self, keyed: &Keyed, now: Time) -> Option<PurchaseId> {
        let begun = Time(self.expires_at.saturating_sub(i64::try_from(KEPT_FOR.as_millis()).unwrap_or(0)));
        let left = self.known.request_hash == keyed.request_hash
            && self.known.status.is_none()
            && self.hold_id.is_none()
            && begun.plus(ABANDONED_AFTER) <= now;
        self.purchase_id.clone().filter(|_| left).map(PurchaseId::from)
    }

    fn outcome_for(self, keyed: &Keyed) -> Outcome {
        KnownKey::from(self.known).outcome_for(keyed)
    }
}

/// What came of claiming a key for a purchase.
#[derive(Debug, PartialEq, Eq)]
pub enum Claim {
    Claimed,
    /// It is claimed again, for the purchase whose maker was never heard of again.
    Abandoned(PurchaseId),
    Known(Outcome),
}

/// As [`earlier`], for a purchase: one that was abandoned counts as unknown, since it is gone on with.
pub async fn earlier_purchase(
    db: &Db,
    account: &AccountId,
    keyed: &Keyed,
    now: Time,
) -> Result<Option<Outcome>, StoreError> {
    let row: Option<PurchaseKeyRow> = db.optional(&PURCHASE_KEY, binds![account, &keyed.key, now]).await?;
    let row = row.filter(|row| row.abandoned(keyed, now).is_none());
    Ok(row.map(|row| row.outcome_for(keyed)))
}

/// Claims the key for a purchase that is about to be written, in its transaction and under the lock
/// of the account's row.
pub async fn claim(
    tx: &mut Tx,
    account: &AccountId,
    keyed: &Keyed,
    purchase: &PurchaseId,
    now: Time,
) -> Result<Claim, StoreError> {
    let row: Option<PurchaseKeyRow> = tx.optional(&PURCHASE_KEY, binds![account, &keyed.key, now]).await?;
    let abandoned = row.as_ref().and_then(|row| row.abandoned(keyed, now));
    if let (Some(row), None) = (row, &abandoned) {
        return Ok(Claim::Known(row.outcome_for(keyed)));
    }
    let claimed_for = abandoned.as_ref().unwrap_or(purchase);
    put(tx, account, keyed, Some(claimed_for), None, now).await?;
    Ok(abandoned.map_or(Claim::Claimed, Claim::Abandoned))
}

/// Ends a purchase's claim with the answer that is kept, or by forgetting the key.
pub async fn end_claim(
    tx: &mut Tx,
    account: &AccountId,
    keyed: &Keyed,
    purchase: &PurchaseId,
    kept: Option<&Answer>,
) -> Result<(), StoreError> {
    let mut values = binds![account, &keyed.key, purchase];
    match kept {
        Some(answer) => {
            values.extend(binds![i64::from(answer.status), &answer.body]);
            tx.execute(&ANSWER_PURCHASE_KEY, values).await?;
        }
        None => {
            tx.execute(&DROP_PURCHASE_KEY, values).await?;
        }
    }
    Ok(())
}

/// Keeps an answer that has no other effect, unless the key is known: then what it is told. Under the
/// lock of the account's row.
pub async fn keep(
    tx: &mut Tx,
    account: &AccountId,
    keyed: &Keyed,
    answer: &Answer,
    now: Time,
) -> Result<Option<Outcome>, StoreError> {
    let row: Option<PurchaseKeyRow> = tx.optional(&PURCHASE_KEY, binds![account, &keyed.key, now]).await?;
    if let Some(row) = row {
        return Ok(Some(row.outcome_for(keyed)));
    }
    put(tx, account, keyed, None, Some(answer), now).await?;
    Ok(None)
}

async fn put(
    tx: &mut Tx,
    account: &AccountId,
    keyed: &Keyed,
    purchase: Option<&PurchaseId>,
    answer: Option<&Answer>,
    now: Time,
) -> Result<(), StoreError> {
    let values = binds![
        account,
        &keyed.key,
        &keyed.request_hash,
        purchase.map(PurchaseId::as_str),
        answer.map(|answer| i64::from(answer.status)),
        answer.map(|answer| answer.body.as_str()),
        now.plus(KEPT_FOR),
    ];
    tx.execute(&PUT_PURCHASE_KEY, values).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::each_backend;

    fn keyed(hash: &str) -> Keyed {
        Keyed { key: "k".to_owned(), request_hash: hash.to_owned() }
    }

    async fn claimed(db: &Db, hash: &str, purchase: &PurchaseId, now: Time) -> Claim {
        let mut tx = db.begin().await.unwrap();
        let claim = claim(&mut tx, &"acct_1".into(), &keyed(hash), purchase, now).await.unwrap();
        tx.commit().await.unwrap();
        claim
    }

    async fn ended(db: &Db, purchase: &PurchaseId, kept: Option<&Answer>) {
        let mut tx = db.begin().await.unwrap();
        end_claim(&mut tx, &"acct_1".into(), &keyed("h"), purchase, kept).await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_purchases_key_is_claimed_once_until_it_is_abandoned_or_ended() {
        each_backend(|db| async move {
            let account = AccountId::from("acct_1");
            let [first, second] = [PurchaseId::fresh(), PurchaseId::fresh()];
            let (begun, late) = (Time(1_000), Time(1_000).plus(ABANDONED_AFTER));
            assert_eq!(claimed(&db, "h", &first, begun).await, Claim::Claimed);
            let early = Time(late.0 - 1);
            assert_eq!(claimed(&db, "h", &second, early).await, Claim::Known(Outcome::InProgress));
            assert_eq!(claimed(&db, "other", &second, late).await, Claim::Known(Outcome::KeyReused));
            let looked = earlier_purchase(&db, &account, &keyed("h"), early).await.unwrap();
            assert_eq!(looked, Some(Outcome::InProgress));
            assert_eq!(earlier_purchase(&db, &account, &keyed("h"), late).await.unwrap(), None);

            // Who goes on with it has as long as the first had.
            assert_eq!(claimed(&db, "h", &second, late).await, Claim::Abandoned(first.clone()));
            assert_eq!(claimed(&db, "h", &second, late).await, Claim::Known(Outcome::InProgress));

            let answer = Answer { status: 200, body: "{}".to_owned() };
            ended(&db, &second, Some(&answer)).await;
            assert_eq!(claimed(&db, "h", &second, late).await, Claim::Known(Outcome::InProgress), "not its");
            ended(&db, &first, Some(&answer)).await;
            let replayed = Outcome::Replayed(answer.clone());
            let much_later = late.plus(ABANDONED_AFTER);
            assert_eq!(claimed(&db, "h", &second, much_later).await, Claim::Known(replayed.clone()));
            ended(&db, &first, None).await;
            assert_eq!(
                claimed(&db, "h", &second, much_later).await,
                Claim::Known(replayed),
                "it is answered"
            );

            let expired = late.plus(KEPT_FOR);
            assert_eq!(claimed(&db, "other", &second, expired).await, Claim::Claimed);
            ended(&db, &second, None).await;
            assert_eq!(earlier_purchase(&db, &account, &keyed("other"), expired).await.unwrap(), None);

            let mut tx = db.begin().await.unwrap();
            assert_eq!(keep(&mut tx, &account, &keyed("h"), &answer, expired).await.unwrap(), None);
            let again = keep(&mut tx, &account, &keyed("h"), &answer, expired).await.unwrap();
            assert_eq!(again, Some(Outcome::Replayed(answer)));
            tx.rollback().await.unwrap();
        })
        .await;
    }
}
