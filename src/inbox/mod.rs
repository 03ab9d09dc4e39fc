//! The inbox: events that others tell us, each applied once.
//!
//! An event whose signature is good is stored before anything is made of it, and marked as applied in
//! the transaction of its effect. What failed, and what was paid but matches nothing of ours, stays
//! listed until an operator has seen to it. So does what nobody vouches for, where its source keeps
//! that, up to a bound.
//!
//! # Failure behavior
//!
//! If applying fails, nothing of it happened, the event is marked as failed, and its sender is told to
//! send it again. A process that dies in between leaves the event stored, and not applied. After a
//! commit whose outcome is unknown the sender is told to send it again as well, which then finds the
//! event applied or applies it.

mod receiver;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::{
    clock::Time,
    store::{Db, Rows, StoreError, Tx, binds, despite_conflicts, statements},
};

pub use receiver::Inbox;

/// Whose events they are; each is applied one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Stripe,
    Payment,
}

/// What the ids of the payment service's events begin with: we make them. Stripe makes its own.
pub const PAYMENT_IDS: &str = "pay_";

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Stripe => "stripe",
            Source::Payment => "payment",
        }
    }

    /// Whose event that id is of, if there is one.
    pub fn of(id: &str) -> Source {
        match id.starts_with(PAYMENT_IDS) {
            true => Source::Payment,
            false => Source::Stripe,
        }
    }
}

/// The type of events that nobody vouches for.
const UNVERIFIED: &str = "unverified";

/// How many of those are kept of a source while they are open: anybody can send them.
const MAX_UNVERIFIED: i64 = 1_000;

/// What an event's effect was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Applied(String),
    /// It is none of our business.
    Ignored(String),
    /// It was paid, and matches nothing of ours, or not as it was sold: for an operator to see to.
    Kept(String),
    /// It is not valid, or can't be done as things are: it stays listed as failed.
    Refused(String),
}

impl Verdict {
    /// Its name in the books and in metrics.
    pub fn status(&self) -> &'static str {
        match self {
            Verdict::Applied(_) => "applied",
            Verdict::Ignored(_) => "ignored",
            Verdict::Kept(_) => "kept",
            Verdict::Refused(_) => "failed",
        }
    }

    fn detail(&self) -> &str {
        match self {
            Verdict::Applied(detail)
            | Verdict::Ignored(detail)
            | Verdict::Kept(detail)
            | Verdict::Refused(detail) => detail,
        }
    }
}

/// What became of one delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    First(Verdict),
    /// It was applied before; nothing changed.
    Again,
}

/// An event as it came.
#[derive(Clone, Debug)]
pub struct Incoming {
    pub id: String,
    pub kind: String,
    /// When it happened, as its sender says.
    pub created_at: Time,
    pub body: String,
    /// Where it is to be checked again at a replay.
    pub signature: Option<String>,
}

/// An event as operators see it.
#[derive(Clone, Debug, Serialize)]
pub struct StoredEvent {
    pub id: String,
    pub source: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub detail: Option<String>,
    pub attempts: i64,
    pub created_at: Time,
    pub received_at: Time,
    pub done_at: Option<Time>,
}

macro_rules! event_columns {
    () => {
        "id, source, type AS kind, status, detail, attempts, created_at, received_at, done_at"
    };
}

/// Events that are done with and have their body: an index has them. What an operator dismissed keeps its own, since
/// the comparison with Stripe reads what it was about.
macro_rules! old_bodies {
    () => {
        "body <> '' AND status IN ('applied', 'ignored')"
    };
}

statements! {
    STORE = "
        INSERT INTO webhook_events
            (source, id, type, created_at, received_at, body, signature, status, attempts)
        VALUES ($1, $2, $3, $4, $5, $6, $7, 'received', 0) ON CONFLICT (source, id) DO NOTHING";
    // Replicas that store at the same moment don't see each other's rows: there may be a few more than
    // the bound, at most one for each of them.
    STORE_UNVERIFIED = "
        INSERT INTO webhook_events
            (source, id, type, created_at, received_at, body, signature, status, detail, attempts)
        SELECT $1, $2, $3, $4, $5, $6, $7, 'failed', $8, 0
        WHERE (SELECT COUNT(*) FROM webhook_events
            WHERE status IN ('received', 'failed', 'kept') AND source = $1 AND type = $3) < $9
        ON CONFLICT (source, id) DO NOTHING";
    VOUCH = "UPDATE webhook_events SET type = $3 WHERE source = $1 AND id = $2 AND type = $4";
    LOCK_SOURCE = "SELECT name FROM webhook_sources WHERE name = $1 {for_update}";
    // Locked, so that the body does not leave while the event is applied.
    STATUS = "
        SELECT status, body = '' FROM webhook_events WHERE source = $1 AND id = $2 {for_update}";
    CONTENT = "SELECT body, signature, status FROM webhook_events WHERE source = $1 AND id = $2";
    DONE = "
        UPDATE webhook_events SET status = $3, detail = $4, done_at = $5, attempts = attempts + 1
        WHERE source = $1 AND id = $2";
    FAILED = "
        UPDATE webhook_events SET status = 'failed', detail = $3, attempts = attempts + 1
        WHERE source = $1 AND id = $2 AND status IN ('received', 'failed')";
    REMOVE_UNVERIFIED = "
        DELETE FROM webhook_events
        WHERE source = $1 AND id = $2 AND type = $3 AND status IN ('received', 'failed', 'kept')";
    DISMISS = "
        UPDATE webhook_events SET status = 'dismissed', done_at = $3
        WHERE source = $1 AND id = $2 AND status IN ('received', 'failed', 'kept')";
    EVENTS = concat!("SELECT ", event_columns!(), " FROM webhook_events
        WHERE status IN (SELECT given.value ->> 0 FROM {rows}) AND (received_at, id) < ($2, $3)
            AND (CAST($5 AS TEXT) IS NULL OR source = $5)
        ORDER BY received_at DESC, id DESC LIMIT $4");
    // By an index of its own, since all but a few events are applied or ignored.
    OPEN_EVENTS = concat!("SELECT ", event_columns!(), " FROM webhook_events
        WHERE status IN ('received', 'failed', 'kept') AND (received_at, id) < ($1, $2)
            AND (CAST($4 AS TEXT) IS NULL OR source = $4)
        ORDER BY received_at DESC, id DESC LIMIT $3");
    // The row stays, so that a late duplicate is known. What is asked twice is asked again of a row that was
    // waited for: an operator's replay may have opened the event.
    FORGET_BODIES = concat!("
        UPDATE webhook_events SET body = '', signature = NULL WHERE (source, id) IN (
            SELECT source, id FROM webhook_events WHERE ", old_bodies!(), " AND received_at < $1 AND done_at < $1
            ORDER BY received_at, id LIMIT $2) AND ", old_bodies!());
    COUNT_BODIES = concat!("
        SELECT CAST(COUNT(*) AS BIGINT) FROM webhook_events
        WHERE ", old_bodies!(), " AND received_at < $1 AND done_at < $1");
    STORED = concat!("SELECT ", event_columns!(), " FROM webhook_events WHERE source = $1 AND id = $2");
}

#[derive(sqlx::FromRow)]
struct EventRow {
    id: String,
    source: String,
    kind: String,
    status: String,
    detail: Option<String>,
    attempts: i64,
    created_at: i64,
    received_at: i64,
    done_at: Option<i64>,
}

impl From<EventRow> for StoredEvent {
    fn from(row: EventRow) -> StoredEvent {
        StoredEvent {
            id: row.id,
            source: row.source,
            kind: row.kind,
            status: row.status,
            detail: row.detail,
            attempts: row.attempts,
            created_at: Time(row.created_at),
            received_at: Time(row.received_at),
            done_at: row.done_at.map(Time),
        }
    }
}

/// Keeps the event, if it is not there yet.
async fn store(db: &Db, source: Source, event: &Incoming, now: Time) -> Result<(), StoreError> {
    let Incoming { id, kind, created_at, body, signature } = event;
    let values = binds![source.as_str(), id, kind, *created_at, now, body, signature.clone()];
    db.execute(&STORE, values).await?;
    Ok(())
}

/// Keeps an event that nobody vouches for, as failed and with the reason `why`, if it is not there yet
/// and not too many are. Gives whether it is there now.
async fn store_unverified(
    db: &Db,
    source: Source,
    event: &Incoming,
    why: &str,
    now: Time,
) -> Result<bool, StoreError> {
    let Incoming { id, created_at, body, signature, .. } = event;
    let (source, at, signed) = (source.as_str(), *created_at, signature.clone());
    let values = binds![source, id, UNVERIFIED, at, now, body, signed, why, MAX_UNVERIFIED];
    Ok(db.execute(&STORE_UNVERIFIED, values).await? == 1 || get(db, id).await?.is_some())
}

/// Gives an event that nobody vouched for the type `kind`: its signature turned out to be good.
pub async fn vouch(tx: &mut Tx, source: Source, id: &str, kind: &str) -> Result<(), StoreError> {
    tx.execute(&VOUCH, binds![source.as_str(), id, kind, UNVERIFIED]).await?;
    Ok(())
}

/// What a stored event came with. `None`: it has left.
pub type Content = Option<(String, Option<String>)>;

/// Whether an event had a body that has left. One that is open may have come without.
fn has_left(is_empty: bool, status: &str) -> bool {
    is_empty && !OPEN.contains(&status)
}

/// What a replay comes to of an event whose body has left.
fn without_body() -> Verdict {
    Verdict::Refused("it has no body: that leaves after RETENTION_DAYS".to_owned())
}

/// A stored event's body and signature.
async fn content(db: &Db, source: Source, id: &str) -> Result<Option<Content>, StoreError> {
    let row: Option<(String, Option<String>, String)> =
        db.optional(&CONTENT, binds![source.as_str(), id]).await?;
    Ok(row
        .map(|(body, signature, status)| (!has_left(body.is_empty(), &status)).then_some((body, signature))))
}

/// Applies a stored event by `effect`, unless that was done before.
/// `None`: there is no such event. One that was ignored, kept or dismissed is
/// tried again only if `again`.
async fn apply(
    db: &Db,
    source: Source,
    id: &str,
    again: bool,
    now: Time,
    effect: impl AsyncFn(&mut Tx) -> Result<Verdict, StoreError>,
) -> Result<Option<Delivery>, StoreError> {
    let done = despite_conflicts(async || attempt_to_apply(db, source, id, again, now, &effect).await);
    let done = done.await;
    if let Err(error) = &done {
        // Should this fail too, the event stays as it was, and is sent again all the same.
        let _ = db.execute(&FAILED, binds![source.as_str(), id, error.to_string()]).await;
    }
    done
}

async fn attempt_to_apply(
    db: &Db,
    source: Source,
    id: &str,
    again: bool,
    now: Time,
    effect: &impl AsyncFn(&mut Tx) -> Result<Verdict, StoreError>,
) -> Result<Option<Delivery>, StoreError> {
    let mut tx = db.begin().await?;
    lock(&mut tx, source).await?;
    let event: Option<(String, bool)> = tx.optional(&STATUS, binds![source.as_str(), id]).await?;
    let Some((status, is_empty)) = event else {
        return tx.rollback().await.map(|()| None);
    };
    let seen_to = matches!(status.as_str(), "ignored" | "kept" | "dismissed");
    if status == "applied" || (seen_to && !again) {
        return tx.rollback().await.map(|()| Some(Delivery::Again));
    }
    if has_left(is_empty, &status) {
        // What is to be applied was read before, and has left since.
        return tx.rollback().await.map(|()| Some(Delivery::First(without_body())));
    }
    let verdict = effect(&mut tx).await?;
    if seen_to && matches!(verdict, Verdict::Refused(_)) {
        // It stays seen to.
        return tx.rollback().await.map(|()| Some(Delivery::First(verdict)));
    }
    let done_at = Some(now).filter(|_| !matches!(verdict, Verdict::Refused(_)));
    tx.execute(&DONE, binds![source.as_str(), id, verdict.status(), verdict.detail(), done_at]).await?;
    tx.commit().await?;
    Ok(Some(Delivery::First(verdict)))
}

/// Waits until nobody applies an event of that source, and keeps others from it until `tx` ends.
pub async fn lock(tx: &mut Tx, source: Source) -> Result<(), StoreError> {
    let _: (String,) = tx.one(&LOCK_SOURCE, binds![source.as_str()]).await?;
    Ok(())
}

/// Takes an event off the operator's list without applying it: it was seen to in another way. `None`:
/// there is none of that id. What was applied or ignored stays so. What nobody vouched for is removed: should
/// it come again once it is believed, it is taken as new.
pub async fn dismiss(db: &Db, id: &str, now: Time) -> Result<Option<StoredEvent>, StoreError> {
    let source = Source::of(id).as_str();
    let event = get(db, id).await?;
    if db.execute(&REMOVE_UNVERIFIED, binds![source, id, UNVERIFIED]).await? > 0 {
        let dismissed = |event| StoredEvent { status: "dismissed".to_owned(), done_at: Some(now), ..event };
        return Ok(event.map(dismissed));
    }
    db.execute(&DISMISS, binds![source, id, now]).await?;
    get(db, id).await
}

/// How many bodies leave in one transaction: each may have a megabyte.
pub const BODIES_AT_A_TIME: u64 = 20;

/// Lets the bodies of some events leave that were done with before `before`; gives of how many.
pub async fn forget_bodies(db: &Db, before: Time) -> Result<u64, StoreError> {
    let _turn = db.turn().await;
    db.execute(&FORGET_BODIES, binds![before, BODIES_AT_A_TIME as i64]).await
}

/// How many bodies [`forget_bodies`] would let leave in the end.
pub async fn count_bodies(tx: &mut Tx, before: Time) -> Result<u64, StoreError> {
    let (count,): (i64,) = tx.one(&COUNT_BODIES, binds![before]).await?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Every status that an event can have.
pub const STATUSES: [&str; 6] = ["received", "applied", "ignored", "kept", "failed", "dismissed"];

/// What an operator has to see to: events that failed, that were never applied, and that were kept.
pub const OPEN: [&str; 3] = ["received", "failed", "kept"];

/// The events of one source, or of all, in one of `statuses` that came before those of the cursor
/// `before`, the last one first.
pub async fn list(
    db: &Db,
    source: Option<Source>,
    statuses: &[&str],
    before: Option<(Time, &str)>,
    limit: i64,
) -> Result<Vec<StoredEvent>, StoreError> {
    let (at, id) = before.unwrap_or((Time(i64::MAX), ""));
    let source = source.map(Source::as_str);
    let rows: Vec<EventRow> = match statuses == OPEN {
        true => db.scan(&OPEN_EVENTS, binds![at, id, limit, source]).await?,
        false => db.scan(&EVENTS, binds![Rows::of(statuses), at, id, limit, source]).await?,
    };
    Ok(rows.into_iter().map(StoredEvent::from).collect())
}

/// One event.
pub async fn get(db: &Db, id: &str) -> Result<Option<StoredEvent>, StoreError> {
    let row: Option<EventRow> = db.optional(&STORED, binds![Source::of(id).as_str(), id]).await?;
    Ok(row.map(StoredEvent::from))
}
