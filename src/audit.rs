//! The audits that servers make by themselves: every so often each process recomputes the books
//! ([`crate::ledger::audit`]), and one of the replicas compares them with Stripe's ([`crate::stripe::audit`]), where
//! a secret key lets it. What differs is logged and counted.
//!
//! The books come to the same on every replica, and reading them costs nobody else anything. Stripe bounds how often
//! an account may ask, and each reading of its lists takes from what Checkout needs. So who compares takes a turn
//! before: a row that tells when it was taken, by the database's clock.
//!
//! # Failure behavior
//!
//! What can't be read is a warning in the log and counts nothing: it says nothing about the books. A comparison that
//! fails gives its turn back, so that any replica's next tick tries again: at most once per replica and interval, and
//! no tick is put forward for it. A process that ends in the middle leaves its turn taken until it is due again. No
//! transaction is open while Stripe is asked, and the task ends at any moment that it is aborted.
//!
//! A turn that was taken by a clock which has jumped back since lies in the future. It counts for no longer than
//! another, so that comparisons stop for two intervals at the most.

use std::{fmt, sync::Arc, time::Duration};

use tokio::task::JoinHandle;

use crate::{
    clock::Time,
    ledger::audit as books,
    store::{Db, StoreError, binds, statements},
    stripe::{self, Stripe, audit as comparison},
    telemetry::Metrics,
};

/// How many differences a server writes into its log at a time.
const MOST_LOGGED: usize = 100;
/// The turn to compare with Stripe.
const COMPARISON: &str = "stripe";

statements! {
    // It counts on both sides of its time. Who waited here for another to take it asked for the time before that one
    // wrote theirs, which then lies ahead a little, and must not take it as well.
    TAKE_TURN = "
        INSERT INTO turns (name, taken_at) VALUES ($1, $2)
        ON CONFLICT (name) DO UPDATE SET taken_at = excluded.taken_at
        WHERE turns.taken_at NOT BETWEEN excluded.taken_at - $3 AND excluded.taken_at + $3";
    GIVE_TURN_BACK = "DELETE FROM turns WHERE name = $1 AND taken_at = $2";
}

/// Audits `every` so often, for the first time at a random moment within that, so that replicas do not all come at
/// once; until the task is aborted.
pub fn start(db: Db, stripe: Option<Stripe>, metrics: Arc<Metrics>, every: Duration) -> JoinHandle<()> {
    tokio::spawn(async move {
        // Without randomness the replicas come at once, which is slower and nothing worse.
        let share = getrandom::u32().unwrap_or(u32::MAX);
        tokio::time::sleep(every.mul_f64(f64::from(share) / f64::from(u32::MAX))).await;
        let mut ticks = tokio::time::interval(every);
        // One that takes longer than `every` is not followed by those it left out.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match books::audit(&db).await {
                Ok(report) => tell("the books", &report, report.drifts.iter(), &metrics),
                Err(error) => tracing::warn!(%error, "the books could not be audited"),
            }
            let Some(stripe) = &stripe else { continue };
            match compare_in_turn(&db, stripe, every).await {
                Ok(Some(report)) => {
                    let drifts = report.differences.iter().filter(|difference| difference.open.is_none());
                    tell("the books and Stripe's", &report, drifts, &metrics);
                }
                Ok(None) => tracing::debug!("another has compared the books with Stripe's"),
                Err(error) => tracing::warn!(%error, "the books could not be compared with Stripe's"),
            }
        }
    })
}

/// `None`: another has had this turn.
async fn compare_in_turn(
    db: &Db,
    stripe: &Stripe,
    every: Duration,
) -> Result<Option<comparison::Report>, stripe::Failure> {
    let Some(taken_at) = take_turn(db, every).await? else { return Ok(None) };
    let compared = comparison::compare(stripe, None).await;
    if compared.is_err() {
        // If not even that can be done, the next turn is due in an interval.
        let _ = db.execute(&GIVE_TURN_BACK, binds![COMPARISON, taken_at]).await;
    }
    compared.map(Some)
}

/// When the turn was taken; `None`: it is not due. It is a little sooner than after `every`, so that who has had it
/// finds it due at their next tick, however long it took them to come here.
async fn take_turn(db: &Db, every: Duration) -> Result<Option<Time>, StoreError> {
    let now = db.now().await?;
    let counts_for = Time(0).plus(every * 9 / 10);
    let taken = db.execute(&TAKE_TURN, binds![COMPARISON, now, counts_for]).await? > 0;
    Ok(taken.then_some(now))
}

fn tell<D: fmt::Display>(
    whose: &str,
    report: &impl fmt::Display,
    drifts: impl Iterator<Item = D>,
    metrics: &Metrics,
) {
    let mut count = 0;
    for drift in drifts {
        if count < MOST_LOGGED {
            tracing::error!(%drift, "{whose} do not agree");
        }
        count += 1;
    }
    metrics.ledger_drift.inc_by(count as u64);
    match count {
        0 => tracing::info!(%report, "{whose} agree"),
        _ => tracing::error!(%report, "{whose} do not agree: run spell-platform audit"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        store::testing::each_backend,
        wallet::purchase::testing::{Server, billing},
    };

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    statements! {
        TURN = "SELECT taken_at FROM turns WHERE name = 'stripe'";
        FORGET_TURNS = "DELETE FROM turns";
        MOVE_TURN = "UPDATE turns SET taken_at = taken_at + $1";
    }

    fn stripe(db: &Db, at: &Server) -> Stripe {
        Stripe::new(&billing(Some(&at.base)), db.clone(), Clock::system()).unwrap().unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn of_those_who_come_at_once_one_has_the_turn() {
        each_backend(|db| async move {
            let at_once = || {
                let takes = (0..16).map(|_| {
                    let db = db.clone();
                    tokio::spawn(async move { take_turn(&db, DAY).await.unwrap() })
                });
                futures_util::future::join_all(takes.collect::<Vec<_>>())
            };
            for _ in 0..20 {
                let taken: Vec<Time> = at_once().await.into_iter().filter_map(Result::unwrap).collect();
                assert_eq!(taken.len(), 1, "{taken:?}");
                assert_eq!(db.one::<(i64,)>(&TURN, vec![]).await.unwrap().0, taken[0].0);
                db.execute(&MOVE_TURN, binds![-24 * 60 * 60 * 1_000]).await.unwrap();
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_turn_is_due_after_nine_tenths_of_the_interval_and_when_it_lies_as_far_ahead() {
        const HOUR: i64 = 60 * 60 * 1_000;
        each_backend(|db| async move {
            // How far the turn is moved, which is one of this moment before.
            for (hours, due) in [
                (0, false),
                (-21, false),
                (-22, true),
                (-24, true),
                (-1_000_000, true),
                (21, false),
                (22, true),
                (1_000_000, true),
            ] {
                db.execute(&FORGET_TURNS, vec![]).await.unwrap();
                assert!(take_turn(&db, DAY).await.unwrap().is_some(), "there is none");
                db.execute(&MOVE_TURN, binds![hours * HOUR]).await.unwrap();
                assert_eq!(take_turn(&db, DAY).await.unwrap().is_some(), due, "{hours} hours");
                assert_eq!(take_turn(&db, DAY).await.unwrap(), None, "{hours} hours");
            }
        })
        .await;
    }

    async fn turn(db: &Db) -> Option<i64> {
        db.optional::<(i64,)>(&TURN, vec![]).await.unwrap().map(|(taken_at,)| taken_at)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn two_replicas_that_tick_at_once_read_stripes_lists_once() {
        each_backend(|db| async move {
            let nothing = r#"{"object": "list", "data": [], "has_more": false, "url": "/"}"#;
            let server = Server::start(|_| (200, nothing.to_owned())).await;
            let (one, other) = (stripe(&db, &server), stripe(&db, &server));
            let both = tokio::join!(compare_in_turn(&db, &one, DAY), compare_in_turn(&db, &other, DAY));
            let compared = [both.0.unwrap(), both.1.unwrap()];
            assert_eq!(compared.iter().flatten().count(), 1, "{compared:?}");
            for list in ["checkout/sessions", "invoices", "subscriptions", "refunds", "disputes"] {
                let asked = server.asked(&format!("GET /v1/{list}?"));
                assert_eq!(asked.len(), 1, "{list}: {:?}", server.asked(""));
            }
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_comparison_that_fails_gives_its_turn_back() {
        each_backend(|db| async move {
            let refused = r#"{"error": {"type": "invalid_request_error", "message": "No"}}"#;
            let server = Server::start(|_| (403, refused.to_owned())).await;
            let stripe = stripe(&db, &server);
            for times in 1..=2 {
                let failure = compare_in_turn(&db, &stripe, DAY).await.unwrap_err();
                assert_eq!(failure.to_string(), "Stripe answered 403");
                assert_eq!((turn(&db).await, server.asked("").len()), (None, times));
            }
            // Another's turn is not ours to give.
            let theirs = take_turn(&db, DAY).await.unwrap().unwrap();
            db.execute(&GIVE_TURN_BACK, binds![COMPARISON, theirs.0 - 1]).await.unwrap();
            assert_eq!(turn(&db).await, Some(theirs.0));
        })
        .await;
    }
}
