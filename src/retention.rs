//! Retention: what is older than so many days leaves, so that the books can grow for years.
//!
//! Casts, ended holds and their lines leave by closings (`ledger::closing`), and so do the bodies of events that
//! are done with (`inbox`). What was spent by day, key and spell stays, and what was bought.
//!
//! # Failure behavior
//!
//! A pass is many small transactions, of less at a time if they take long, with a pause after each for as long as
//! it kept others from writing, so that casts have the database to themselves half of the time. One that fails ends
//! the casts' and holds' part of the pass, and the next pass goes on where it ended. Any number of replicas may
//! begin a pass: on PostgreSQL who meets another's ends theirs, on SQLite they take turns, a transaction at a time.
//!
//! Which day it is the database says, at each pass. On PostgreSQL a server whose own clock is wrong so removes
//! nothing early; SQLite's clock is the machine's own, and a machine that is days ahead removes as much too early.

use std::{fmt, sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{task::JoinHandle, time::Instant};

use crate::{
    clock::Time,
    inbox,
    ledger::closing::{self, Left, Of, Step},
    store::{Db, StoreError},
    telemetry::Metrics,
    window::{day_of, midnight},
};

/// The shortest that anything is kept: above a month, so that nothing which still moves can leave.
pub const LEAST_DAYS: u16 = 35;

/// How often a server looks for what has become old. It finds something once a day.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// Within which time of its start a server does so first, and how soon again after a failure.
const FIRST_WITHIN: Duration = Duration::from_secs(10);
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// How long a transaction should take, and how many casts the first one lets leave. None takes fewer: what a
/// busy server casts must leave faster than it comes.
const BRIEF: Duration = Duration::from_millis(25);
const LEAST: usize = 100;
/// The shortest pause between two transactions.
const BREATH: Duration = Duration::from_millis(5);

const DAY_MS: i64 = 24 * 60 * 60 * 1_000;

/// What left, or would leave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    pub casts: u64,
    pub holds: u64,
    /// Lines that closings stand for now.
    pub entries: u64,
    /// Bodies of events.
    pub bodies: u64,
    /// Casts and holds that are old and stay.
    pub stay: u64,
    /// Another pass is at it, and this one has ended.
    pub another: bool,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Removed { casts, holds, entries, bodies, .. } = self;
        write!(f, "{casts} casts, {holds} holds, {entries} lines, {bodies} bodies of events")
    }
}

impl From<Left> for Removed {
    fn from(left: Left) -> Removed {
        let Left { casts, holds, entries } = left;
        Removed { casts, holds, entries, ..Removed::default() }
    }
}

/// 00:00 UTC of the day that lies `days` before `now`: what is older leaves.
pub fn line(now: Time, days: u16) -> Time {
    Time(midnight(day_of(now)).0 - i64::from(days) * DAY_MS)
}

/// Lets all leave that is older than `before`, unless another pass is at it.
pub async fn pass(db: &Db, before: Time, metrics: &Metrics) -> Result<Removed, StoreError> {
    let mut removed = Removed::default();
    let closed = close(db, before, metrics, &mut removed).await;
    // Whatever is wrong with the casts, bodies are another matter.
    if !removed.another {
        forget_bodies(db, before, metrics, &mut removed).await?;
    }
    closed.map(|()| removed)
}

async fn close(db: &Db, before: Time, metrics: &Metrics, removed: &mut Removed) -> Result<(), StoreError> {
    let mut most = LEAST;
    // The ids of holds for code that runs elsewhere begin so; those of casts lie before.
    for (of, first) in [(Of::Casts, ""), (Of::Holds, "hold_")] {
        let mut after = Some(first.to_owned());
        while let Some(from) = after {
            let Some(Step { left, stay, worked, next }) = closing::step(db, of, &from, before, most).await?
            else {
                removed.another = true;
                return Ok(());
            };
            // Less at a time where the database is slow.
            most = if worked > 2 * BRIEF {
                most / 2
            } else if worked < BRIEF {
                most * 2
            } else {
                most
            };
            most = most.clamp(LEAST, closing::AT_A_TIME);
            let Left { casts, holds, entries } = left;
            for (table, count) in [("casts", casts), ("holds", holds), ("entries", entries)] {
                metrics.retention_removed.with_label_values(&[table]).inc_by(count);
            }
            removed.casts += casts;
            removed.holds += holds;
            removed.entries += entries;
            removed.stay += stay;
            after = next;
            tracing::debug!(?of, casts, holds, entries, ?worked, "a step of a pass");
            tokio::time::sleep(worked.max(BREATH)).await;
        }
    }
    Ok(())
}

async fn forget_bodies(
    db: &Db,
    before: Time,
    metrics: &Metrics,
    removed: &mut Removed,
) -> Result<(), StoreError> {
    loop {
        let begun = Instant::now();
        let bodies = inbox::forget_bodies(db, before).await?;
        metrics.retention_removed.with_label_values(&["webhook_events"]).inc_by(bodies);
        removed.bodies += bodies;
        if bodies < inbox::BODIES_AT_A_TIME {
            return Ok(());
        }
        tokio::time::sleep(begun.elapsed().max(BREATH)).await;
    }
}

/// How much older than `before` is: what a pass would remove at most.
pub async fn count(db: &Db, before: Time) -> Result<Removed, StoreError> {
    let mut tx = db.begin_long_read().await?;
    let left = closing::count(&mut tx, before).await?;
    let bodies = inbox::count_bodies(&mut tx, before).await?;
    tx.rollback().await?;
    Ok(Removed { bodies, ..left.into() })
}

/// Passes every hour, for the first time at a random moment soon, until the task is aborted.
pub fn start(db: Db, metrics: Arc<Metrics>, days: u16) -> JoinHandle<()> {
    tokio::spawn(async move {
        // Without randomness the replicas come at once, and all but one go again.
        let share = getrandom::u32().unwrap_or(u32::MAX);
        tokio::time::sleep(FIRST_WITHIN.mul_f64(f64::from(share) / f64::from(u32::MAX))).await;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let passed = async {
                let before = line(db.now().await?, days);
                Ok::<_, StoreError>((before, pass(&db, before, &metrics).await?))
            };
            match passed.await {
                Ok((before, removed @ Removed { another: true, .. })) => {
                    tracing::debug!(%before, ?removed, "another pass is at it");
                }
                Ok((before, Removed { casts, holds, entries, bodies, stay, .. })) => {
                    tracing::info!(%before, casts, holds, entries, bodies, stay, "what is old has left");
                }
                Err(error) => {
                    tracing::warn!(%error, "not all that is old has left; the next pass goes on");
                    ticks.reset_after(AGAIN_AFTER);
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_a_midnight() {
        let at = |text: &str| Time::parse(text).unwrap();
        for (now, days, expected) in [
            ("2026-11-21T23:59:59.999Z", 35, "2026-10-17T00:00:00Z"),
            ("2026-11-22T00:00:00Z", 35, "2026-10-18T00:00:00Z"),
            ("2028-03-01T12:00:00Z", 366, "2027-03-01T00:00:00Z"),
        ] {
            assert_eq!(line(at(now), days), at(expected), "{days} days before {now}");
        }
    }
}
