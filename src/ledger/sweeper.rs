//! Ends the holds that nobody ended, and forgets what was only kept for a time.
//!
//! # Failure behavior
//!
//! The sweeper only reads which holds are due; each ends through the writer, like any other, so any
//! number of replicas may sweep at once. It sweeps only while it knows the database's time: a
//! replica whose own clock is wrong must not expire other people's holds early.

use std::time::Duration;

use tokio::{task::JoinHandle, time::interval};

use super::{
    hold,
    request::{Action, Answer, Request},
    writer::Ledger,
};
use crate::{
    clock::{Clock, Time},
    id::HoldId,
    store::{Db, StoreError, binds, statements},
};

/// How often due holds are looked for: how long an expired hold may go on to block.
const EVERY: Duration = Duration::from_millis(500);
/// How often the clock is set by the database's, and what was kept for a time is forgotten.
const TIDY_EVERY: u32 = 40;
/// How long a batch's id may still be asked for.
const BATCHES_KEPT: i64 = 60 * 60 * 1_000;

statements! {
    FORGET_KEYS = "
        DELETE FROM idempotency_keys WHERE (account_id, key) IN
            (SELECT account_id, key FROM idempotency_keys WHERE expires_at <= $1 ORDER BY expires_at LIMIT 1000)";
    FORGET_BATCHES = "
        DELETE FROM batches WHERE id IN
            (SELECT id FROM batches WHERE created_at <= $1 ORDER BY created_at LIMIT 1000)";
}

/// Starts sweeping, until the task is aborted. `lost` puts into words that a cast was charged and
/// its answer lost.
pub fn start(db: Db, clock: Clock, ledger: Ledger, lost: fn(&HoldId) -> Answer) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = interval(EVERY);
        let mut knows_the_time = false;
        let mut rounds = 0u32;
        loop {
            ticks.tick().await;
            if rounds.is_multiple_of(TIDY_EVERY) || !knows_the_time {
                knows_the_time = follow(&db, &clock).await.is_ok();
            }
            if knows_the_time {
                let swept = async {
                    sweep(&db, &clock, &ledger, lost).await?;
                    if rounds.is_multiple_of(TIDY_EVERY) { forget(&db, clock.now()).await } else { Ok(()) }
                };
                if let Err(error) = swept.await {
                    tracing::debug!(%error, "sweeping waits for the database");
                }
                rounds = rounds.wrapping_add(1);
            }
        }
    })
}

/// The longest round trip that still tells the time.
const PROMPT: Duration = Duration::from_millis(200);

/// Sets the clock by the database's, as exactly as the round trip allows.
pub async fn follow(db: &Db, clock: &Clock) -> Result<(), StoreError> {
    let asked = tokio::time::Instant::now();
    let told = db.now().await?;
    match asked.elapsed() {
        took if took <= PROMPT => {
            clock.follow(told.plus(took / 2));
            Ok(())
        }
        _ => Err(StoreError::Unavailable("it told the time too slowly to go by".to_owned())),
    }
}

/// Ends every hold that is due.
pub async fn sweep(
    db: &Db,
    clock: &Clock,
    ledger: &Ledger,
    lost: fn(&HoldId) -> Answer,
) -> Result<(), StoreError> {
    let at = clock.now();
    let due = hold::due(db, at).await?;
    let ends = due.into_iter().map(|(hold, account)| {
        let action = Action::Expire { answer: lost(&hold), hold };
        ledger.settle(Request { account, at, action })
    });
    for end in futures_util::future::join_all(ends).await {
        if let Err(error) = end {
            tracing::debug!(%error, "a hold will be ended at the next sweep");
        }
    }
    Ok(())
}

/// A thousand rows a statement, so that no backlog is too long for one, or in the way of casts.
async fn forget(db: &Db, now: Time) -> Result<(), StoreError> {
    while db.execute(&FORGET_BATCHES, binds![Time(now.0 - BATCHES_KEPT)]).await? == 1_000 {}
    while db.execute(&FORGET_KEYS, binds![now]).await? == 1_000 {}
    Ok(())
}
