//! Closing on both databases: whatever leaves, whenever, and whoever else is at it, the books add up and say
//! the same of what was spent.

use std::sync::Arc;

use super::*;
use crate::{
    budget::{self, Limits, Scope},
    id::{CastId, HoldId},
    ledger::{
        Action, NewHold, OnLost, Outcome, Request, Spending,
        apply::apply,
        audit::audit,
        tests::{ADD_ACCOUNT, Dice},
        usage::{Grouping, usage},
    },
    store::{Statement, despite_conflicts, testing::each_backend},
    window::Period,
};

const NOON: Time = Time(1_763_726_400_000);
const DAY: i64 = 24 * 60 * 60 * 1_000;
/// After all that these tests do.
const END: Time = Time(NOON.0 + 1_000 * DAY);

static ADD_CREDITS: Statement = Statement::new(
    "INSERT INTO balances (id, account_id, kind, granted, posted, pending, calls)
     VALUES ('credits/' || $1, $1, 'credits', 1000000, 0, 0, 0)",
);
static ADD_PURCHASE: Statement = Statement::new(
    "INSERT INTO entries (reference, cause, balance_id, amount, created_at)
     VALUES ('purchase/' || $1, 'purchase', 'credits/' || $1, 1000000, 0)",
);
static ADD_GRANT: Statement = Statement::new(
    "INSERT INTO credit_grants (reference, account_id, credits, credit_value, standing, amount_cents, created_at)
     VALUES ('purchase/' || $1, $1, 1000000, 1, 1000000, 1, 0)",
);
static COUNTS: Statement = Statement::new(
    "SELECT CAST((SELECT COUNT(*) FROM casts) AS BIGINT), CAST((SELECT COUNT(*) FROM holds) AS BIGINT),
            CAST((SELECT COUNT(*) FROM entries WHERE cause NOT IN ('closing', 'purchase')) AS BIGINT),
            CAST((SELECT COUNT(*) FROM entries WHERE cause = 'closing') AS BIGINT)",
);
static STILL_OLD: Statement = Statement::new(
    "SELECT id FROM casts WHERE created_at < $1 AND finished_at < $1
     UNION ALL SELECT id FROM holds WHERE began_at < $1 AND ended_at < $1 AND held_for = 'external'",
);
static WAIT_FOR_TURN: Statement =
    Statement::new("SELECT closing FROM retention WHERE name = 'entries' {for_update}");
static BALANCES: Statement = Statement::new(
    "SELECT id, granted, posted, pending, calls FROM balances WHERE kind <> 'window' ORDER BY id",
);

async fn open(db: &Db, count: usize) -> Vec<AccountId> {
    let accounts: Vec<AccountId> = (0..count).map(|n| AccountId::from(format!("acct_{n}"))).collect();
    for account in &accounts {
        for statement in [&ADD_ACCOUNT, &ADD_CREDITS, &ADD_PURCHASE, &ADD_GRANT] {
            db.execute(statement, binds![account]).await.unwrap();
        }
        let limits = Limits { soft: None, hard: None, notify_thresholds: Vec::new(), locked: false };
        budget::put(db, account, Scope::Account, Period::Weekly, limits, true, NOON).await.unwrap();
    }
    accounts
}

fn spending(nanos: i64, spell: &str, from_credits: bool) -> Spending {
    Spending { key: "key_a".into(), spell: spell.to_owned(), amount: Nanos(nanos), from_credits }
}

fn charge(account: &AccountId, at: Time, spending: Spending) -> Request {
    let action = Action::Charge { cast: CastId::fresh(), spending, kept: None };
    Request { account: account.clone(), at, action }
}

fn hold(account: &AccountId, at: Time, spending: Spending, held_for: HeldFor) -> (HoldId, Request) {
    let id = match held_for {
        HeldFor::Cast => HoldId::from(CastId::fresh().as_str()),
        HeldFor::External => HoldId::fresh(),
    };
    let hold = NewHold {
        id: id.clone(),
        held_for,
        spending,
        expires_at: Time(at.0 + DAY / 2),
        on_lost: OnLost::Charge,
        keyed: None,
        answer: None,
    };
    (id, Request { account: account.clone(), at, action: Action::Hold(hold) })
}

fn post(account: &AccountId, at: Time, hold: &HoldId, held_for: HeldFor, nanos: i64) -> Request {
    let action = Action::Post { hold: hold.clone(), held_for, amount: Nanos(nanos), answer: None };
    Request { account: account.clone(), at, action }
}

async fn book(db: &Db, requests: &[Request]) -> Vec<Outcome> {
    let booked = despite_conflicts(async || {
        let mut tx = db.begin().await?;
        let applied = apply(&mut tx, &requests.iter().collect::<Vec<_>>()).await?;
        tx.commit().await?;
        Ok(applied.outcomes)
    });
    booked.await.unwrap()
}

/// Walks through everything, unless another walk is at it; gives how much left, and how much stays.
async fn walk(db: &Db, before: Time) -> (Left, u64) {
    let (mut left, mut stay) = (Left::default(), 0);
    for (of, first) in [(Of::Casts, ""), (Of::Holds, "hold_")] {
        let mut after = Some(first.to_owned());
        while let Some(from) = after {
            let Some(step) = step(db, of, &from, before, 7).await.unwrap() else { return (left, stay) };
            left.casts += step.left.casts;
            left.holds += step.left.holds;
            left.entries += step.left.entries;
            stay += step.stay;
            after = step.next;
        }
    }
    (left, stay)
}

/// Casts, holds, lines and closings that are there.
async fn counts(db: &Db) -> (i64, i64, i64, i64) {
    db.one(&COUNTS, vec![]).await.unwrap()
}

/// What an account is told that it spent, by day, key and spell, and every balance but windows.
async fn told(db: &Db, accounts: &[AccountId]) -> String {
    let by = Grouping { day: true, key: true, spell: true };
    let mut told = String::new();
    for account in accounts {
        told += &format!("{:?}\n", usage(db, account, (Time(0), END), by, 1_000, 0).await.unwrap());
    }
    let balances: Vec<(String, Option<i64>, i64, i64, i64)> = db.all(&BALANCES, vec![]).await.unwrap();
    format!("{told}{balances:?}")
}

async fn drifts(db: &Db) -> Vec<String> {
    audit(db).await.unwrap().drifts.iter().map(ToString::to_string).collect()
}

/// Random casts and holds over months, ended in every way and late, while passes go on, two at once now and
/// then, or break off: after every step the books add up, and what leaves changes nothing that is told.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_leaves_the_books_add_up_and_say_the_same() {
    each_backend(|db| async move {
        let mut dice = Dice(0xc105_1234_abcd);
        let accounts = open(&db, 3).await;
        let mut at = NOON;
        let mut holds: Vec<(AccountId, HoldId, HeldFor)> = Vec::new();
        let (mut all, mut late) = (Left::default(), 0);
        for round in 0..60 {
            at = Time(at.0 + dice.roll(DAY as u64) as i64);
            let mut undone = Vec::new();
            let mut requests = Vec::new();
            for _ in 0..dice.roll(20) + 1 {
                let account = &accounts[dice.roll(3) as usize];
                let spending =
                    spending(dice.roll(9) as i64, ["echo", "draw"][dice.roll(2) as usize], dice.roll(3) == 0);
                let held_for = [HeldFor::Cast, HeldFor::External][dice.roll(2) as usize];
                match dice.roll(6) {
                    0 | 1 => {
                        let request = charge(account, at, spending.clone());
                        if let (Action::Charge { cast, .. }, 0) = (&request.action, dice.roll(4)) {
                            let cast = cast.clone();
                            let charge = crate::ledger::Undone::Charge { cast, spending };
                            let action = Action::Undo(charge);
                            undone.push(Request { account: account.clone(), at, action });
                        }
                        requests.push(request);
                    }
                    2 => {
                        let (id, request) = hold(account, at, spending, held_for);
                        holds.push((account.clone(), id, held_for));
                        requests.push(request);
                    }
                    _ if holds.is_empty() => {}
                    end => {
                        let chosen = dice.roll(holds.len() as u64) as usize;
                        let (account, hold, held_for) = holds[chosen].clone();
                        let lost = crate::ledger::Answer { status: 502, body: "lost".to_owned() };
                        let action = match end {
                            3 => post(&account, at, &hold, held_for, spending.amount.0).action,
                            4 => Action::Void { hold, held_for, error_code: None, answer: None },
                            _ => Action::Expire { hold, answer: lost },
                        };
                        requests.push(Request { account, at, action });
                    }
                }
            }
            let before = Time(at.0 - dice.roll(20 * DAY as u64) as i64);
            if round % 5 == 4 {
                // While a pass goes on, holds settle and casts are charged. But no cast lives for so long that its
                // own process could settle it while it leaves.
                requests.retain(|request| {
                    !matches!(request.action, Action::Post { held_for: HeldFor::Cast, .. })
                });
                let (booked, first, second) =
                    tokio::join!(book(&db, &requests), walk(&db, before), walk(&db, before));
                late += booked.iter().filter(|outcome| matches!(outcome, Outcome::Hold(_))).count();
                for (left, _) in [first, second] {
                    all.casts += left.casts;
                    all.holds += left.holds;
                    all.entries += left.entries;
                }
            } else {
                book(&db, &requests).await;
                let before_it_left = told(&db, &accounts).await;
                // One that breaks off in the middle leaves nothing behind.
                let ids: Vec<(String, i64)> = db.all(&OLDEST_CASTS, binds!["", 500_i64]).await.unwrap();
                let ids: Vec<&str> = ids.iter().map(|(id, _)| id.as_str()).collect();
                let mut tx = db.begin().await.unwrap();
                close_in(&mut tx, Of::Casts, &ids, before).await.unwrap();
                drop(tx);
                // PostgreSQL may take a moment to see that its client is gone.
                let mut tx = db.begin().await.unwrap();
                let _: (bool,) = tx.one(&WAIT_FOR_TURN, vec![]).await.unwrap();
                tx.rollback().await.unwrap();
                let (left, stay) = walk(&db, before).await;
                all.casts += left.casts;
                all.holds += left.holds;
                all.entries += left.entries;
                assert_eq!(told(&db, &accounts).await, before_it_left);
                let still: Vec<(String,)> = db.all(&STILL_OLD, binds![before]).await.unwrap();
                assert_eq!(still, [], "whatever agrees and has ended leaves");
                assert!(stay < 300, "only what has not ended stays: {stay}");
            }
            book(&db, &undone).await;
            assert_eq!(drifts(&db).await, Vec::<String>::new(), "round {round}");
        }
        assert!(all.casts > 100 && all.holds > 50 && all.entries > 150 && late > 0, "{all:?} {late}");
        let (.., closings) = counts(&db).await;
        assert!((10..all.entries as i64).contains(&closings), "{closings} stand for {all:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_balance_keeps_one_closing_which_what_comes_late_joins() {
    each_backend(|db| async move {
        let accounts = open(&db, 1).await;
        let account = &accounts[0];
        let (id, held) = hold(account, NOON, spending(20, "echo", true), HeldFor::External);
        book(&db, &[charge(account, NOON, spending(5, "echo", true)), held]).await;
        // The hold is open, and stays with what it holds.
        let hour = 60 * 60 * 1_000;
        let (one, two) = (Time(NOON.0 + hour), Time(NOON.0 + 2 * hour));
        let (left, stay) = walk(&db, one).await;
        assert_eq!((left, stay), (Left { casts: 1, holds: 0, entries: 2 }, 1));
        assert_eq!(counts(&db).await, (0, 1, 0, 2), "a closing of the spend, and one of the credits");
        // It is settled on a day that was closed.
        let settled = book(&db, &[post(account, one, &id, HeldFor::External, 7)]).await;
        assert!(matches!(settled.as_slice(), [Outcome::Hold(_)]), "{settled:?}");
        assert_eq!(counts(&db).await, (0, 1, 2, 2));
        assert_eq!(drifts(&db).await, Vec::<String>::new());
        let before = told(&db, &accounts).await;
        assert_eq!(walk(&db, one).await, (Left::default(), 1), "it ended too lately");
        let (left, stay) = walk(&db, two).await;
        assert_eq!((left, stay), (Left { casts: 0, holds: 1, entries: 2 }, 0));
        assert_eq!(counts(&db).await, (0, 0, 0, 2));
        assert_eq!((told(&db, &accounts).await, drifts(&db).await), (before, vec![]));
        assert_eq!(walk(&db, END).await, (Left::default(), 0), "there is nothing left");
        // Nobody can settle it once more.
        let again = book(&db, &[post(account, two, &id, HeldFor::External, 7)]).await;
        assert_eq!(again, [Outcome::NoHold]);
    })
    .await;
}

/// What is tampered with before a pass stays in sight after it, and what is tampered with after it shows.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_hides_no_drift() {
    each_backend(|db| async move {
        let accounts = open(&db, 1).await;
        let account = &accounts[0];
        let charges: Vec<Request> =
            [1, 2, 4].into_iter().map(|nanos| charge(account, NOON, spending(nanos, "echo", false))).collect();
        book(&db, &charges).await;
        let (id, held) = hold(account, NOON, spending(8, "echo", false), HeldFor::External);
        book(&db, &[held, post(account, NOON, &id, HeldFor::External, 8)]).await;
        let spend = BalanceId::spend(account, &"key_a".into(), "echo", NOON).to_string();
        let by_casts = format!("{spend}: posted, by casts and settled holds is");
        let closed = "INSERT INTO entries (reference, cause, balance_id, amount, created_at)
                      SELECT 'closing/' || (created_at / 86400000) || '/0', 'closing', balance_id, amount, created_at FROM entries WHERE amount = 2";
        for (tampering, named) in [
            ("UPDATE casts SET cost = 3 WHERE cost = 2", vec![format!("{by_casts} 15, should be 16")]),
            ("DELETE FROM casts WHERE cost = 2", vec![format!("{by_casts} 15, should be 13")]),
            ("UPDATE holds SET posted = 9", vec![format!("{by_casts} 15, should be 16")]),
            (
                "UPDATE casts SET spell = 'draw' WHERE cost = 2",
                vec![format!("{by_casts} 15, should be 13"), "posted, by casts and settled holds is 0, should be 2".into()],
            ),
            ("UPDATE balances SET posted = 14 WHERE kind = 'spend'", vec![
                format!("{spend}: posted is 14, should be 15"),
                format!("{by_casts} 14, should be 15"),
            ]),
            // It stands for a line that is there, whose cast is as well.
            (closed, vec![format!("{spend}: posted is 15, should be 17"), format!("{by_casts} 15, should be 17")]),
        ] {
            let mut tx = db.begin().await.unwrap();
            tx.execute(Box::leak(Box::new(Statement::new(tampering))), vec![]).await.unwrap();
            for moment in ["before", "after"] {
                let drifts = crate::ledger::audit::audit_in(&mut tx).await.unwrap().drifts;
                let drifts: Vec<String> = drifts.iter().map(ToString::to_string).collect();
                for named in &named {
                    assert!(drifts.iter().any(|drift| drift.ends_with(named)), "{moment} {tampering}: {drifts:?}");
                }
                let ids: Vec<(String, i64)> = tx.all(&OLDEST_CASTS, binds!["", 9_i64]).await.unwrap();
                let ids: Vec<&str> = ids.iter().map(|(id, _)| id.as_str()).collect();
                close_in(&mut tx, Of::Casts, &ids, END).await.unwrap();
                close_in(&mut tx, Of::Holds, &[id.as_str()], END).await.unwrap();
            }
            tx.rollback().await.unwrap();
        }
        let (left, stay) = walk(&db, END).await;
        assert_eq!((left, stay), (Left { casts: 3, holds: 1, entries: 4 }, 0));
        assert_eq!(drifts(&db).await, Vec::<String>::new());
        for (tampering, expected) in [
            ("UPDATE balances SET posted = 14 WHERE kind = 'spend'", vec!["posted is 14, should be 15"]),
            (
                "INSERT INTO entries SELECT reference || '/1', cause, balance_id, 1, created_at FROM entries WHERE cause = 'closing'",
                vec!["posted is 15, should be 16", "closings is 2, should be 1"],
            ),
            (
                "INSERT INTO entries SELECT 'mine', cause, balance_id, 0, created_at FROM entries WHERE cause = 'closing'",
                vec!["closings is 2, should be 1"],
            ),
            // Left behind, or put back.
            (
                "INSERT INTO casts (id, account_id, key_id, spell, status, cost, created_at, finished_at)
                 SELECT 'cast_0', account_id, key_id, spell, 'COMPLETED', 4, starts_at, starts_at FROM balances
                 WHERE kind = 'spend'",
                vec!["posted, by casts and settled holds is 15, should be 19"],
            ),
            ("UPDATE retention SET closing = true", vec!["entries: leave to remove lines is 1, should be 0"]),
        ] {
            let mut tx = db.begin().await.unwrap();
            let touched = tx.execute(Box::leak(Box::new(Statement::new(tampering))), vec![]).await.unwrap();
            assert_eq!(touched, 1, "{tampering}");
            let drifts = crate::ledger::audit::audit_in(&mut tx).await.unwrap().drifts;
            let drifts: Vec<String> = drifts.iter().map(ToString::to_string).collect();
            for named in expected {
                assert!(drifts.iter().any(|drift| drift.ends_with(named)), "{tampering}: {drifts:?}");
            }
            tx.rollback().await.unwrap();
        }
    })
    .await;
}

/// No statement removes or changes a line, in whatever state the books are; only inside a transaction that says
/// that it closes may those leave for which a closing stands.
#[tokio::test(flavor = "multi_thread")]
async fn lines_leave_in_no_other_way() {
    each_backend(|db| async move {
        let accounts = open(&db, 1).await;
        let account = &accounts[0];
        let (id, held) = hold(account, NOON, spending(3, "echo", true), HeldFor::External);
        book(&db, &[charge(account, NOON, spending(5, "echo", true)), held]).await;
        walk(&db, END).await;
        book(
            &db,
            &[
                post(account, Time(NOON.0 + 1), &id, HeldFor::External, 3),
                charge(account, Time(NOON.0 + DAY), spending(5, "echo", true)),
            ],
        )
        .await;
        assert_eq!(counts(&db).await, (1, 1, 4, 2));
        let forbidden = [
            "DELETE FROM entries",
            "DELETE FROM entries WHERE cause = 'closing'",
            "DELETE FROM entries WHERE cause = 'post'",
            "DELETE FROM entries WHERE cause = 'charge'",
            "DELETE FROM entries WHERE cause = 'purchase'",
            "UPDATE entries SET amount = amount + 1",
            "UPDATE entries SET cause = 'closing'",
        ];
        for text in forbidden {
            let refused = db.execute(Box::leak(Box::new(Statement::new(text))), vec![]).await;
            assert!(matches!(refused, Err(StoreError::Refused(_))), "{text}: {refused:?}");
        }
        if db.backend() == crate::store::Backend::Postgres {
            let truncated = db.execute(&Statement::new("TRUNCATE entries"), vec![]).await;
            assert!(matches!(truncated, Err(StoreError::Refused(_))), "{truncated:?}");
        }
        // Also while lines are closed: what is not old, what no later closing stands for, and what is no cast's.
        for text in forbidden {
            let mut tx = db.begin().await.unwrap();
            tx.execute(&BEGIN_CLOSING, binds![Time(NOON.0 + DAY)]).await.unwrap();
            let refused = tx.execute(Box::leak(Box::new(Statement::new(text))), vec![]).await;
            assert!(matches!(refused, Err(StoreError::Refused(_))), "{text}: {refused:?}");
        }
        let before = drifts(&db).await;
        assert_eq!((before, counts(&db).await), (vec![], (1, 1, 4, 2)));
    })
    .await;
}

/// The clock of the process that made the ids may be off: what is found late leaves at a later pass.
#[tokio::test(flavor = "multi_thread")]
async fn many_leave_in_steps_and_what_is_new_stays() {
    each_backend(|db| async move {
        let accounts = open(&db, 2).await;
        let ledger_metrics = Arc::new(crate::telemetry::Metrics::new());
        for day in 0..4 {
            let at = Time(NOON.0 + day * DAY);
            let of_day: Vec<Request> =
                (0..400).map(|n| charge(&accounts[n % 2], at, spending(1, "echo", n % 4 < 2))).collect();
            book(&db, &of_day).await;
        }
        let before = told(&db, &accounts).await;
        let line = Time(NOON.0 + 2 * DAY);
        let would = crate::retention::count(&db, line).await.unwrap();
        let (one, two) = tokio::join!(
            crate::retention::pass(&db, line, &ledger_metrics),
            crate::retention::pass(&db, line, &ledger_metrics)
        );
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!((one.casts + two.casts, one.entries + two.entries), (800, 1_200));
        assert_eq!((one.stay, two.stay), (0, 0), "what the other pass removed does not stay");
        assert!(!(one.another && two.another), "one of them goes on to the end");
        assert_eq!((would.casts, would.entries), (800, 1_200));
        assert_eq!(counts(&db).await, (800, 0, 1_200, 8), "two days of two accounts, and of their credits");
        assert_eq!((told(&db, &accounts).await, drifts(&db).await), (before, vec![]));
        let counted = |table| ledger_metrics.retention_removed.with_label_values(&[table]).get();
        assert_eq!((counted("casts"), counted("holds"), counted("entries")), (800, 0, 1_200));
    })
    .await;
}

static OLDEST: Statement = Statement::new("SELECT id, created_at FROM casts ORDER BY id LIMIT $1");
static PLANT: Statement = Statement::new(
    "INSERT INTO entries (reference, cause, balance_id, amount, created_at) VALUES ($1, 'closing', $2, 1, $3)",
);
static ADD_EVENT: Statement = Statement::new(
    "INSERT INTO webhook_events (source, id, type, created_at, received_at, body, status, attempts, done_at)
     VALUES ('stripe', 'evt_1', 'x', $1, $1, 'the body', 'ignored', 1, $1)",
);

/// Two passes at once: one goes on, and what it removed does not stay for the other.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_meets_another_pass_ends_their_own() {
    each_backend(|db| async move {
        let accounts = open(&db, 1).await;
        let metrics = crate::telemetry::Metrics::new();
        let casts: Vec<Request> =
            (0..9).map(|_| charge(&accounts[0], NOON, spending(1, "echo", false))).collect();
        book(&db, &casts).await;
        db.execute(&ADD_EVENT, binds![NOON]).await.unwrap();
        if db.backend() == crate::store::Backend::Postgres {
            let mut other = db.begin().await.unwrap();
            let _: (bool,) = other.one(&TAKE_TURN, vec![]).await.unwrap();
            let removed = crate::retention::pass(&db, END, &metrics).await.unwrap();
            assert_eq!(removed, crate::retention::Removed { another: true, ..Default::default() });
            other.rollback().await.unwrap();
        }
        let ids: Vec<(String, i64)> = db.all(&OLDEST, binds![9_i64]).await.unwrap();
        let ids: Vec<&str> = ids.iter().map(|(id, _)| id.as_str()).collect();
        let removed = crate::retention::pass(&db, END, &metrics).await.unwrap();
        assert_eq!((removed.casts, removed.bodies, removed.stay, removed.another), (9, 1, 0, false));
        // Who had seen the same casts, and comes after it.
        let late = close(&db, Of::Casts, &ids, END).await.unwrap().unwrap();
        assert_eq!((late.left, late.stay), (Left::default(), 0));
    })
    .await;
}

/// A process whose clock was years behind made ids that sort first, of casts that are new.
#[tokio::test(flavor = "multi_thread")]
async fn ids_of_a_clock_that_was_behind_hide_nothing() {
    each_backend(|db| async move {
        let accounts = open(&db, 1).await;
        let at_2000 = 946_684_800_000_i64;
        let behind: Vec<Request> = (0..AT_A_TIME)
            .map(|n| {
                let mut request = charge(&accounts[0], Time(NOON.0 + 3 * DAY), spending(1, "echo", false));
                if let Action::Charge { cast, .. } = &mut request.action {
                    *cast = CastId::from(format!("cast_{at_2000:012x}70008000{n:012x}"));
                }
                request
            })
            .collect();
        book(&db, &behind).await;
        let old: Vec<Request> =
            (0..3).map(|_| charge(&accounts[0], NOON, spending(1, "echo", false))).collect();
        book(&db, &old).await;
        let line = Time(NOON.0 + 2 * DAY);
        let (left, stay) = walk(&db, line).await;
        assert_eq!((left.casts, left.entries, stay), (3, 3, 0));
        let (casts, ..) = counts(&db).await;
        assert_eq!((casts, drifts(&db).await), (AT_A_TIME as i64, vec![]));
    })
    .await;
}

/// Closings that no pass wrote keep what they stand in the way of, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_closed_keeps_nothing_else() {
    each_backend(|db| async move {
        let accounts = open(&db, 2).await;
        for account in &accounts {
            let casts: Vec<Request> =
                (0..7).map(|_| charge(account, NOON, spending(1, "echo", false))).collect();
            book(&db, &casts).await;
        }
        let spend = BalanceId::spend(&accounts[0], &"key_a".into(), "echo", NOON);
        for name in names(NOON.0 / DAY) {
            db.execute(&PLANT, binds![name, spend.as_str(), NOON]).await.unwrap();
        }
        db.execute(&ADD_EVENT, binds![NOON]).await.unwrap();
        let before = counts(&db).await;
        let (left, stay) = walk(&db, END).await;
        assert_eq!((left.casts, left.entries, stay), (7, 7, 7));
        let (casts, holds, lines, closings) = counts(&db).await;
        assert_eq!((casts + 7, holds, lines + 7, closings - 1), before);
        let metrics = crate::telemetry::Metrics::new();
        let removed = crate::retention::pass(&db, END, &metrics).await.unwrap();
        assert_eq!((removed.casts, removed.stay, removed.bodies), (0, 7, 1));
    })
    .await;
}
