//! The ledger on real databases: random requests in random batches, and what must hold after each.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    apply::apply, balance::BalanceId, decide::HoldState, request::*, spent_in_window, writer::Ledger,
};
use crate::{
    budget::{self, Limits, Scope},
    clock::Time,
    id::{AccountId, CastId, HoldId, KeyId},
    money::Nanos,
    store::{Db, Statement, binds, testing::each_backend},
    telemetry::Metrics,
    window::Period,
};

pub(super) const NOON: Time = Time(1_763_726_400_000);
pub(super) const DAY: i64 = 24 * 60 * 60 * 1_000;

pub(super) static ADD_ACCOUNT: Statement =
    Statement::new("INSERT INTO accounts (id, name, suspended, created_at) VALUES ($1, 'a', false, 0)");
static SPEND: Statement = Statement::new(
    "SELECT b.id, b.posted, b.pending, b.calls, CAST(COALESCE(SUM(e.amount), 0) AS BIGINT),
            CAST(COALESCE(SUM(CASE WHEN e.cause = 'reversal' AND e.reference LIKE 'cast%' THEN -1
                                   WHEN e.cause IS NULL OR e.cause IN ('lost', 'reversal') THEN 0 ELSE 1 END), 0) AS BIGINT)
     FROM balances b LEFT JOIN entries e ON e.balance_id = b.id
     WHERE b.kind = 'spend' GROUP BY b.id, b.posted, b.pending, b.calls",
);
static WINDOWS: Statement =
    Statement::new("SELECT budget_id, starts_at, posted, pending, calls FROM balances WHERE kind = 'window'");
static OPEN_HOLDS: Statement =
    Statement::new("SELECT account_id, key_id, spell, began_at, amount FROM holds WHERE state = 'open'");
static CASTS: Statement = Statement::new(
    "SELECT status, CAST(COUNT(*) AS BIGINT), CAST(COALESCE(SUM(cost), 0) AS BIGINT) FROM casts GROUP BY status",
);

/// Small, seeded, and good enough to shuffle requests.
pub(super) struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Everything the books promise about themselves, recomputed from lines and holds.
pub(super) async fn check(db: &Db, accounts: &[AccountId]) {
    let mut pending: HashMap<String, i64> = HashMap::new();
    for (account, key, spell, began_at, amount) in
        db.all::<(String, String, String, i64, i64)>(&OPEN_HOLDS, vec![]).await.unwrap()
    {
        let balance = BalanceId::spend(&account.into(), &key.into(), &spell, Time(began_at));
        if amount == 0 {
            continue; // what holds nothing needs no balance
        }
        *pending.entry(balance.to_string()).or_default() += amount;
    }
    for (id, posted, held, calls, lines, count) in
        db.all::<(String, i64, i64, i64, i64, i64)>(&SPEND, vec![]).await.unwrap()
    {
        assert_eq!(posted, lines, "{id}: posted is what its lines say");
        assert_eq!(calls, count, "{id}: a call a line");
        assert_eq!(held, pending.remove(&id).unwrap_or(0), "{id}: pending is what its holds hold");
    }
    assert!(pending.is_empty(), "held on no balance: {pending:?}");
    let windows = db.all::<(String, i64, i64, i64, i64)>(&WINDOWS, vec![]).await.unwrap();
    let mut tx = db.begin_read().await.unwrap();
    for account in accounts {
        for budget in budget::of_accounts(&mut tx, [account]).await.unwrap() {
            for (_, start, posted, held, calls) in windows.iter().filter(|row| row.0 == budget.id.as_str()) {
                let window = budget.period.window(Time(*start));
                let spent = spent_in_window(&mut tx, account, window, budget.scope.parts()).await.unwrap();
                assert_eq!(
                    (spent.posted.0, spent.pending.0, spent.calls),
                    (*posted, *held, *calls),
                    "{} {:?} from {start}",
                    budget.scope,
                    budget.period
                );
            }
        }
    }
    tx.rollback().await.unwrap();
    assert_eq!(super::audit::audit(db).await.unwrap().drifts, []);
}

pub(super) fn charge(account: &AccountId, at: Time, key: &str, spell: &str, nanos: i64) -> Request {
    let spending =
        Spending { key: key.into(), spell: spell.to_owned(), amount: Nanos(nanos), from_credits: false };
    let action = Action::Charge { cast: CastId::fresh(), spending, kept: None };
    Request { account: account.clone(), at, action }
}

pub(super) fn hold(
    account: &AccountId,
    at: Time,
    key: &str,
    spell: &str,
    nanos: i64,
    ttl: i64,
) -> (HoldId, Request) {
    let id = HoldId::fresh();
    let spending =
        Spending { key: key.into(), spell: spell.to_owned(), amount: Nanos(nanos), from_credits: false };
    let action = Action::Hold(NewHold {
        id: id.clone(),
        held_for: HeldFor::External,
        spending,
        expires_at: Time(at.0 + ttl),
        on_lost: OnLost::Release,
        keyed: None,
        answer: None,
    });
    (id, Request { account: account.clone(), at, action })
}

fn lost() -> Answer {
    Answer { status: 502, body: "lost".to_owned() }
}

fn hard(nanos: i64) -> Limits {
    Limits { soft: None, hard: Some(Nanos(nanos)), notify_thresholds: Vec::new(), locked: false }
}

pub(super) async fn accounts(db: &Db, count: usize) -> Vec<AccountId> {
    let accounts: Vec<_> = (0..count).map(|n| AccountId::from(format!("acct_{n}"))).collect();
    for account in &accounts {
        db.execute(&ADD_ACCOUNT, binds![account]).await.unwrap();
    }
    accounts
}

pub(super) async fn put(db: &Db, account: &AccountId, scope: Scope, period: Period, nanos: i64) {
    budget::put(db, account, scope, period, hard(nanos), true, NOON).await.unwrap();
}

/// Random charges, holds, ends, budget changes and deletions, over days: after every batch the books
/// agree with themselves, no limit that stood still was passed, and no refusal was false.
#[tokio::test(flavor = "multi_thread")]
async fn random_batches_keep_the_books() {
    each_backend(|db| async move {
        let mut dice = Dice(0x5eed_1234_abcd);
        let accounts = accounts(&db, 3).await;
        let (keys, spells) = (["key_a", "key_b"], ["echo", "draw"]);
        let mut at = NOON;
        let mut holds: Vec<(AccountId, HoldId)> = Vec::new();
        for round in 0..120 {
            at = Time(at.0 + dice.roll(DAY as u64 / 3) as i64);
            if round % 4 == 0 {
                let account = &accounts[dice.roll(3) as usize];
                let scope = match dice.roll(4) {
                    0 | 1 => Scope::Account,
                    2 => Scope::Key(KeyId::from(keys[dice.roll(2) as usize])),
                    _ => Scope::Spell(spells[dice.roll(2) as usize].to_owned()),
                };
                let period = Period::ALL[dice.roll(5) as usize];
                if dice.roll(4) == 0 {
                    let chosen = |b: &budget::Budget| b.scope == scope && b.period == period;
                    budget::delete(&db, account, chosen, true).await.unwrap();
                } else {
                    put(&db, account, scope, period, dice.roll(400) as i64).await;
                }
            }
            let mut requests = Vec::new();
            for _ in 0..dice.roll(24) + 1 {
                let account = &accounts[dice.roll(3) as usize];
                let (key, spell) = (keys[dice.roll(2) as usize], spells[dice.roll(2) as usize]);
                let nanos = dice.roll(9) as i64;
                match dice.roll(6) {
                    0 | 1 => requests.push(charge(account, at, key, spell, nanos)),
                    2 => {
                        let (id, request) =
                            hold(account, at, key, spell, nanos, 1 + dice.roll(DAY as u64) as i64);
                        holds.push((account.clone(), id));
                        requests.push(request);
                    }
                    _ if holds.is_empty() => {}
                    end => {
                        let (account, hold) = holds[dice.roll(holds.len() as u64) as usize].clone();
                        let held_for = HeldFor::External;
                        let action = match end {
                            3 => Action::Post { hold, held_for, amount: Nanos(nanos), answer: None },
                            4 => Action::Void { hold, held_for, error_code: None, answer: None },
                            _ => Action::Expire { hold, answer: lost() },
                        };
                        requests.push(Request { account, at, action });
                    }
                }
            }
            let mut tx = db.begin().await.unwrap();
            let batch: Vec<&Request> = requests.iter().collect();
            let applied = apply(&mut tx, &batch).await.unwrap();
            tx.commit().await.unwrap();
            for outcome in &applied.outcomes {
                if let Outcome::Refused(refusal) = outcome {
                    let taken = refusal.spent.0 + refusal.reserved.0 + refusal.requested.0;
                    assert!(taken > refusal.granted.0, "a false refusal: {refusal:?}");
                }
            }
            check(&db, &accounts).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn casts_that_run_at_once_stop_exactly_at_the_limit() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        put(&db, &accounts[0], Scope::Account, Period::Daily, 100).await;
        put(&db, &accounts[0], Scope::Key("key_a".into()), Period::Monthly, 60).await;
        let metrics = Arc::new(Metrics::new());
        // Two writers on one database, as two replicas are.
        let (first, _) = Ledger::start(db.clone(), metrics.clone());
        let (second, _) = Ledger::start(db.clone(), metrics);
        let asks = (0..400).map(|n| {
            let ledger = if n % 2 == 0 { first.clone() } else { second.clone() };
            let request = charge(&accounts[0], NOON, if n % 4 < 2 { "key_a" } else { "key_b" }, "echo", 1);
            tokio::spawn(async move { ledger.ask(request).await.unwrap() })
        });
        let mut done = 0;
        for ask in asks.collect::<Vec<_>>() {
            match ask.await.unwrap() {
                Outcome::Done => done += 1,
                Outcome::Refused(refusal) => assert!(refusal.spent.0 + 1 > refusal.granted.0),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(done, 100);
        check(&db, &accounts).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_counts_what_was_spent_and_held_before_it_was_made() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        let account = &accounts[0];
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let ask = |request| ledger.ask(request);
        assert_eq!(ask(charge(account, NOON, "key_a", "echo", 40)).await, Ok(Outcome::Done));
        let (id, request) = hold(account, NOON, "key_a", "echo", 30, DAY);
        assert_eq!(ask(request).await, Ok(Outcome::Done));
        for _ in 0..2 {
            put(&db, account, Scope::Account, Period::Daily, 80).await;
            let refused = ask(charge(account, NOON, "key_b", "draw", 11)).await.unwrap();
            let Outcome::Refused(refusal) = refused else { panic!("{refused:?}") };
            assert_eq!((refusal.spent, refusal.reserved), (Nanos(40), Nanos(30)));
            budget::delete(&db, account, |_| true, false).await.unwrap();
        }
        // A hold that was taken before the budget settles on it.
        put(&db, account, Scope::Account, Period::Daily, 80).await;
        assert_eq!(ask(charge(account, NOON, "key_b", "draw", 0)).await, Ok(Outcome::Done));
        let (hold, held_for) = (id, HeldFor::External);
        let post = Action::Post { hold, held_for, amount: Nanos(35), answer: None };
        ask(Request { account: account.clone(), at: NOON, action: post }).await.unwrap();
        assert_eq!(ask(charge(account, NOON, "key_a", "echo", 5)).await, Ok(Outcome::Done));
        assert!(matches!(ask(charge(account, NOON, "key_a", "echo", 1)).await, Ok(Outcome::Refused(_))));
        check(&db, &accounts).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_belongs_to_the_window_it_began_in() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        let account = &accounts[0];
        put(&db, account, Scope::Account, Period::Daily, 10).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let (hold, request) = hold(account, NOON, "key_a", "echo", 10, 2 * DAY);
        assert_eq!(ledger.ask(request).await, Ok(Outcome::Done));
        let tomorrow = Time(NOON.0 + DAY);
        assert_eq!(ledger.ask(charge(account, tomorrow, "key_a", "echo", 10)).await, Ok(Outcome::Done));
        let action = Action::Post { hold, held_for: HeldFor::External, amount: Nanos(10), answer: None };
        ledger.ask(Request { account: account.clone(), at: tomorrow, action }).await.unwrap();
        // A replica whose clock is a day behind still counts in its own day, which is full as well.
        for at in [NOON, tomorrow] {
            let more = ledger.ask(charge(account, at, "key_a", "echo", 1)).await;
            assert!(matches!(more, Ok(Outcome::Refused(_))), "{more:?}");
        }
        check(&db, &accounts).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_idempotency_key_is_one_charge() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let keyed = |hash: &str| Keyed { key: "k".to_owned(), request_hash: hash.to_owned() };
        let request = |hash: &str| {
            let mut request = charge(&accounts[0], NOON, "key_a", "echo", 3);
            if let Action::Charge { kept, cast, .. } = &mut request.action {
                *kept = Some((keyed(hash), Answer { status: 200, body: format!("\"{cast}\"") }));
            }
            request
        };
        let asks: Vec<_> = (0..64)
            .map(|_| {
                let (ledger, request) = (ledger.clone(), request("one"));
                tokio::spawn(async move { ledger.ask(request).await.unwrap() })
            })
            .collect();
        let mut outcomes = Vec::new();
        for ask in asks {
            outcomes.push(ask.await.unwrap());
        }
        assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Done).count(), 1);
        let answers: std::collections::HashSet<_> = outcomes
            .iter()
            .filter_map(|outcome| match outcome {
                Outcome::Replayed(answer) => Some(answer.body.clone()),
                _ => None,
            })
            .collect();
        assert_eq!(answers.len(), 1);
        assert_eq!(ledger.ask(request("another")).await, Ok(Outcome::KeyReused));
        let later = Time(NOON.0 + DAY + 1);
        let again = Request { at: later, ..request("another") };
        assert_eq!(ledger.ask(again).await, Ok(Outcome::Done), "after 24 hours the key is free");
        check(&db, &accounts).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_was_answered_is_undone() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        put(&db, &accounts[0], Scope::Account, Period::Daily, 10).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let request = charge(&accounts[0], NOON, "key_a", "echo", 4);
        let Action::Charge { cast, spending, .. } = &request.action else { unreachable!() };
        let charged = Undone::Charge { cast: cast.clone(), spending: spending.clone() };
        assert_eq!(ledger.ask(request.clone()).await, Ok(Outcome::Done));
        let keyed = Some(Keyed { key: "k".to_owned(), request_hash: "h".to_owned() });
        let (id, mut held) = hold(&accounts[0], NOON, "key_a", "echo", 6, DAY);
        if let Action::Hold(hold) = &mut held.action {
            hold.keyed = keyed.clone();
        }
        assert_eq!(ledger.ask(held.clone()).await, Ok(Outcome::Done));
        assert_eq!(ledger.ask(held.clone()).await, Ok(Outcome::InProgress));
        for undone in [charged, Undone::Hold { id }] {
            let undo = Request { account: accounts[0].clone(), at: NOON, action: Action::Undo(undone) };
            assert!(matches!(ledger.ask(undo).await, Ok(Outcome::Done | Outcome::Hold(_))));
        }
        check(&db, &accounts).await;
        let rows = db.all::<(String, i64, i64)>(&CASTS, vec![]).await.unwrap();
        assert_eq!(rows, [("FAILED".to_owned(), 1, 0)]);
        if let Action::Hold(hold) = &mut held.action {
            hold.id = HoldId::fresh();
            hold.spending.amount = Nanos(10);
        }
        assert_eq!(ledger.ask(held).await, Ok(Outcome::Done), "there is room again, and the key is free");
        check(&db, &accounts).await;
    })
    .await;
}

/// A caller who was told nothing may find its hold in a list and settle it, before the lane learns that it
/// is there: that was answered.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_settled_and_answered_is_not_undone() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let (id, held) = hold(&accounts[0], NOON, "key_a", "echo", 10, 1_000);
        assert_eq!(ledger.ask(held).await, Ok(Outcome::Done));
        let of_account = |action| Request { account: accounts[0].clone(), at: NOON, action };
        let (hold, held_for) = (id.clone(), HeldFor::External);
        let settle = Action::Post { hold, held_for, amount: Nanos(7), answer: None };
        assert!(matches!(ledger.ask(of_account(settle)).await, Ok(Outcome::Hold(_))));
        let undo = Action::Undo(Undone::Hold { id });
        let Ok(Outcome::EndedOtherwise(row)) = ledger.ask(of_account(undo)).await else {
            panic!("what was answered was undone")
        };
        assert_eq!(row.state, HoldState::Posted { amount: 7, late: false });
        check(&db, &accounts).await;
    })
    .await;
}

/// The lane may find out about its commit only after another replica took the hold for lost.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_was_answered_is_undone_also_if_it_was_lost_and_charged() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        put(&db, &accounts[0], Scope::Account, Period::Daily, 10).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        for held_for in [HeldFor::External, HeldFor::Cast] {
            let keyed = Keyed { key: "k".to_owned(), request_hash: "h".to_owned() };
            let (id, mut held) = hold(&accounts[0], NOON, "key_a", "echo", 10, 1_000);
            if let Action::Hold(hold) = &mut held.action {
                (hold.held_for, hold.on_lost, hold.keyed) = (held_for, OnLost::Charge, Some(keyed.clone()));
            }
            assert_eq!(ledger.ask(held.clone()).await, Ok(Outcome::Done));
            let clock = crate::clock::Clock::manual(Time(NOON.0 + 1_000));
            super::sweeper::sweep(&db, &clock, &ledger, |_| lost()).await.unwrap();
            assert_eq!(ledger.ask(held).await, Ok(Outcome::Replayed(lost())), "it was charged");
            for _ in 0..2 {
                let undone = Undone::Hold { id: id.clone() };
                let action = Action::Undo(undone);
                let undo = Request { account: accounts[0].clone(), at: NOON, action };
                let Ok(Outcome::Hold(row)) = ledger.ask(undo).await else { panic!("it is not undone") };
                assert_eq!(row.state, HoldState::Voided);
            }
            check(&db, &accounts).await;
        }
        let rows = db.all::<(String, i64, i64)>(&CASTS, vec![]).await.unwrap();
        assert_eq!(rows, [("FAILED".to_owned(), 1, 0)]);
        let again = charge(&accounts[0], NOON, "key_a", "echo", 10);
        assert_eq!(ledger.ask(again).await, Ok(Outcome::Done), "there is room again");
    })
    .await;
}

/// A lane may learn late that its hold is there: the key that it came with may be another's by then.
#[tokio::test(flavor = "multi_thread")]
async fn undoing_a_hold_leaves_a_key_that_another_has_taken_since() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let keyed = Keyed { key: "k".to_owned(), request_hash: "h".to_owned() };
        let (id, mut held) = hold(&accounts[0], NOON, "key_a", "echo", 1, 2 * DAY);
        if let Action::Hold(hold) = &mut held.action {
            hold.keyed = Some(keyed.clone());
        }
        assert_eq!(ledger.ask(held).await, Ok(Outcome::Done));
        let next_day = Time(NOON.0 + DAY + 1);
        let answer = Answer { status: 200, body: "{}".to_owned() };
        let mut charged = charge(&accounts[0], next_day, "key_a", "echo", 1);
        if let Action::Charge { kept, .. } = &mut charged.action {
            *kept = Some((keyed, answer.clone()));
        }
        assert_eq!(ledger.ask(charged.clone()).await, Ok(Outcome::Done), "the key is forgotten after a day");
        let action = Action::Undo(Undone::Hold { id });
        let undo = Request { account: accounts[0].clone(), at: next_day, action };
        assert!(matches!(ledger.ask(undo).await, Ok(Outcome::Hold(_))));
        assert_eq!(ledger.ask(charged).await, Ok(Outcome::Replayed(answer)), "and is the charge's");
        check(&db, &accounts).await;
    })
    .await;
}

/// A request that the database refuses (here: a second cast of the same id) fails alone.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_share_a_transaction_but_no_failure() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 4).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let poison = charge(&accounts[0], NOON, "key_a", "echo", 1);
        assert_eq!(ledger.ask(poison.clone()).await, Ok(Outcome::Done));
        let asks: Vec<_> = (0..200)
            .map(|n| {
                let ledger = ledger.clone();
                let request = if n % 50 == 7 {
                    poison.clone()
                } else {
                    charge(&accounts[n % 4], NOON, "key_b", "echo", 1)
                };
                tokio::spawn(async move { ledger.ask(request).await })
            })
            .collect();
        let (mut done, mut refused) = (0, 0);
        for ask in asks {
            match ask.await.unwrap() {
                Ok(Outcome::Done) => done += 1,
                Err(_) => refused += 1,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((done, refused), (196, 4));
        check(&db, &accounts).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweeper_ends_what_is_due_and_nothing_else() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 2).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let (due, request) = hold(&accounts[0], NOON, "key_a", "echo", 5, 1_000);
        ledger.ask(request).await.unwrap();
        let (later, request) = hold(&accounts[1], NOON, "key_a", "echo", 5, 2_000);
        ledger.ask(request).await.unwrap();
        let clock = crate::clock::Clock::manual(Time(NOON.0 + 1_000));
        for _ in 0..3 {
            super::sweeper::sweep(&db, &clock, &ledger, |_| lost()).await.unwrap();
        }
        let state = async |account, hold| super::hold::get(&db, account, hold).await.unwrap().unwrap().state;
        assert_eq!(state(&accounts[0], &due).await, HoldState::Expired);
        assert_eq!(state(&accounts[1], &later).await, HoldState::Open);
        check(&db, &accounts).await;
    })
    .await;
}

/// What expiry charged was paid for: the same key must not run and pay again.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_cast_frees_its_key_only_if_it_was_not_charged() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        for (key, on_lost, expected) in [
            ("released", OnLost::Release, Outcome::Done),
            ("charged", OnLost::Charge, Outcome::Replayed(lost())),
        ] {
            let request = || {
                let (_, mut request) = hold(&accounts[0], NOON, "key_a", "echo", 5, 1_000);
                if let Action::Hold(hold) = &mut request.action {
                    hold.held_for = HeldFor::Cast;
                    hold.on_lost = on_lost;
                    hold.keyed = Some(Keyed { key: key.to_owned(), request_hash: "h".to_owned() });
                }
                request
            };
            assert_eq!(ledger.ask(request()).await, Ok(Outcome::Done));
            assert_eq!(ledger.ask(request()).await, Ok(Outcome::InProgress));
            let clock = crate::clock::Clock::manual(Time(NOON.0 + 1_000));
            super::sweeper::sweep(&db, &clock, &ledger, |_| lost()).await.unwrap();
            assert_eq!(ledger.ask(request()).await, Ok(expected), "{key}");
        }
        check(&db, &accounts).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_clone_gone_ends_the_lanes_after_what_waited() {
    each_backend(|db| async move {
        let accounts = accounts(&db, 1).await;
        let (ledger, lanes) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let ask = {
            let (ledger, request) = (ledger.clone(), charge(&accounts[0], NOON, "key_a", "echo", 1));
            tokio::spawn(async move { ledger.ask(request).await })
        };
        drop(ledger);
        assert_eq!(ask.await.unwrap(), Ok(Outcome::Done));
        tokio::time::timeout(Duration::from_secs(5), lanes).await.unwrap().unwrap();
    })
    .await;
}
