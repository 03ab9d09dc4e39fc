//! The inbox: events that others tell us, each applied once.
//!
//! An event whose signature is good is stored before anything is made of it, and marked as applied in
//! the transaction of its effect. What failed, and what was paid but matches nothing of ours, stays
//! listed until an operator has seen to it.
//!
//! # Failure behavior
//!
//! If applying fails, nothing of it happened, the event is marked as failed, and its sender is told to
//! send it again. A process that dies in between leaves the event stored, and not applied. After a
//! commit whose outcome is unknown the sender is told to send it again as well, which then finds the
//! event applied or applies it.

use serde::Serialize;

use crate::{
    clock::Time,
    store::{Db, Rows, StoreError, Tx, binds, statements},
};

/// How often applying is tried when other transactions are in the way.
const ATTEMPTS: u32 = 3;

/// Whose events they are; each is applied one at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Stripe,
}

impl Source {
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Stripe => "stripe",
        }
    }
}

/// What an event's effect was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Applied(String),
    /// It is none of our business.
    Ignored(String),
    /// It was paid, and matches nothing of ours, or not as it was sold: for an operator to see to.
    Kept(String),
}

impl Verdict {
    /// Its name in the books and in metrics.
    pub fn status(&self) -> &'static str {
        match self {
            Verdict::Applied(_) => "applied",
            Verdict::Ignored(_) => "ignored",
            Verdict::Kept(_) => "kept",
        }
    }

    fn detail(&self) -> &str {
        match self {
            Verdict::Applied(detail) | Verdict::Ignored(detail) | Verdict::Kept(detail) => detail,
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

statements! {
    STORE = "
        INSERT INTO webhook_events (source, id, type, created_at, received_at, body, status, attempts)
        VALUES ($1, $2, $3, $4, $5, $6, 'received', 0) ON CONFLICT (source, id) DO NOTHING";
    LOCK_SOURCE = "SELECT name FROM webhook_sources WHERE name = $1 {for_update}";
    STATUS = "SELECT status FROM webhook_events WHERE source = $1 AND id = $2";
    BODY = "SELECT body FROM webhook_events WHERE source = $1 AND id = $2";
    DONE = "
        UPDATE webhook_events SET status = $3, detail = $4, done_at = $5, attempts = attempts + 1
        WHERE source = $1 AND id = $2";
    FAILED = "
        UPDATE webhook_events SET status = 'failed', detail = $3, attempts = attempts + 1
        WHERE source = $1 AND id = $2 AND status IN ('received', 'failed')";
    DISMISS = "
        UPDATE webhook_events SET status = 'dismissed', done_at = $3
        WHERE source = $1 AND id = $2 AND status IN ('received', 'failed', 'kept')";
    EVENTS = concat!("SELECT ", event_columns!(), " FROM webhook_events
        WHERE status IN (SELECT given.value ->> 0 FROM {rows}) AND (received_at, id) < ($2, $3)
        ORDER BY received_at DESC, id DESC LIMIT $4");
    // By an index of its own, since all but a few events are applied or ignored.
    OPEN_EVENTS = concat!("SELECT ", event_columns!(), " FROM webhook_events
        WHERE status IN ('received', 'failed', 'kept') AND (received_at, id) < ($1, $2)
        ORDER BY received_at DESC, id DESC LIMIT $3");
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
pub async fn store(db: &Db, source: Source, event: &Incoming, now: Time) -> Result<(), StoreError> {
    let Incoming { id, kind, created_at, body } = event;
    db.execute(&STORE, binds![source.as_str(), id, kind, *created_at, now, body]).await?;
    Ok(())
}

/// A stored event's body.
pub async fn body(db: &Db, source: Source, id: &str) -> Result<Option<String>, StoreError> {
    let row: Option<(String,)> = db.optional(&BODY, binds![source.as_str(), id]).await?;
    Ok(row.map(|(body,)| body))
}

/// Applies a stored event by `effect`, unless that was done before.
/// `None`: there is no such event. One that was ignored, kept or dismissed is
/// tried again only if `again`.
pub async fn apply(
    db: &Db,
    source: Source,
    id: &str,
    again: bool,
    now: Time,
    effect: impl AsyncFn(&mut Tx) -> Result<Verdict, StoreError>,
) -> Result<Option<Delivery>, StoreError> {
    let mut attempt = 1;
    loop {
        match attempt_to_apply(db, source, id, again, now, &effect).await {
            Err(StoreError::Conflict(_)) if attempt < ATTEMPTS => attempt += 1,
            Err(error) => {
                // Should this fail too, the event stays as it was, and is sent again all the same.
                let _ = db.execute(&FAILED, binds![source.as_str(), id, error.to_string()]).await;
                return Err(error);
            }
            done => return done,
        }
    }
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
    let event: Option<(String,)> = tx.optional(&STATUS, binds![source.as_str(), id]).await?;
    let Some((status,)) = event else {
        return tx.rollback().await.map(|()| None);
    };
    let seen_to = matches!(status.as_str(), "ignored" | "kept" | "dismissed");
    if status == "applied" || (seen_to && !again) {
        return tx.rollback().await.map(|()| Some(Delivery::Again));
    }
    let verdict = effect(&mut tx).await?;
    tx.execute(&DONE, binds![source.as_str(), id, verdict.status(), verdict.detail(), now]).await?;
    tx.commit().await?;
    Ok(Some(Delivery::First(verdict)))
}

/// Waits until nobody applies an event of that source, and keeps others from it until `tx` ends.
pub async fn lock(tx: &mut Tx, source: Source) -> Result<(), StoreError> {
    let _: (String,) = tx.one(&LOCK_SOURCE, binds![source.as_str()]).await?;
    Ok(())
}

/// Takes an event off the operator's list without applying it: it was seen to in another way. `None`:
/// there is none of that id. What was applied or ignored stays so.
pub async fn dismiss(
    db: &Db,
    source: Source,
    id: &str,
    now: Time,
) -> Result<Option<StoredEvent>, StoreError> {
    db.execute(&DISMISS, binds![source.as_str(), id, now]).await?;
    get(db, source, id).await
}

/// Every status that an event can have.
pub const STATUSES: [&str; 6] = ["received", "applied", "ignored", "kept", "failed", "dismissed"];

/// What an operator has to see to: events that failed, that were never applied, and that were kept.
pub const OPEN: [&str; 3] = ["received", "failed", "kept"];

/// The events in one of `statuses` that came before those of the cursor `before`, the last one first.
pub async fn list(
    db: &Db,
    statuses: &[&str],
    before: Option<(Time, &str)>,
    limit: i64,
) -> Result<Vec<StoredEvent>, StoreError> {
    let (at, id) = before.unwrap_or((Time(i64::MAX), ""));
    let rows: Vec<EventRow> = match statuses == OPEN {
        true => db.scan(&OPEN_EVENTS, binds![at, id, limit]).await?,
        false => db.scan(&EVENTS, binds![Rows::of(statuses), at, id, limit]).await?,
    };
    Ok(rows.into_iter().map(StoredEvent::from).collect())
}

/// One event.
pub async fn get(db: &Db, source: Source, id: &str) -> Result<Option<StoredEvent>, StoreError> {
    let row: Option<EventRow> = db.optional(&STORED, binds![source.as_str(), id]).await?;
    Ok(row.map(StoredEvent::from))
}
