//! What a lane knows is tried against everything that others may have done meanwhile, on both databases.

use std::{sync::Arc, time::Duration};

use super::*;
use crate::{
    budget::{self, Scope},
    id::{HoldId, KeyId},
    ledger::{
        Action, HeldFor, Ledger, Outcome,
        apply::{apply, commit},
        tests::{DAY, Dice, NOON, accounts, charge, check, hold, put},
        writer::TAKE_FOR_LOST,
    },
    money::Nanos,
    plan,
    store::{Statement, testing::each_backend},
    telemetry::Metrics,
    window::Period,
};

static SUSPEND: Statement = Statement::new("UPDATE accounts SET suspended = true");
static LIMIT_PLANS: Statement = Statement::new("UPDATE plans SET hard_limit_cents = $1");
static SPENT: Statement =
    Statement::new("SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM entries WHERE created_at < $1");
const CENT: i64 = 10_000_000;

/// Another replica, and a lane of this one with what it knows.
struct Two {
    db: Db,
    account: AccountId,
    ledger: Ledger,
    metrics: Arc<Metrics>,
    other: Ledger,
}

impl Two {
    /// With a daily limit of 10 cents, of which 4 are spent, by batches of which the last was a guess.
    async fn warmed(db: &Db) -> Two {
        plan::seed(db, "free", "usd", NOON).await.unwrap();
        let account = accounts(db, 1).await.remove(0);
        put(db, &account, Scope::Account, Period::Daily, 10 * CENT).await;
        let metrics = Arc::new(Metrics::new());
        let (ledger, _) = Ledger::start(db.clone(), metrics.clone());
        let (other, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let two = Two { db: db.clone(), account, ledger, metrics, other };
        for _ in 0..4 {
            assert_eq!(two.charge(1).await, Outcome::Done);
        }
        assert!(two.guesses("right") > 0 && two.guesses("wrong") == 0);
        two
    }

    async fn charge(&self, cents: i64) -> Outcome {
        self.ledger.ask(charge(&self.account, NOON, "key_a", "echo", cents * CENT)).await.unwrap()
    }

    async fn charge_elsewhere(&self, cents: i64) {
        let done = self.other.ask(charge(&self.account, NOON, "key_b", "draw", cents * CENT)).await;
        assert_eq!(done, Ok(Outcome::Done));
    }

    fn guesses(&self, result: &str) -> u64 {
        self.metrics.ledger_guesses.with_label_values(&[result]).get()
    }

    /// The next charge is decided on what is there now.
    async fn charges(&self, cents: i64, expected: &str) {
        let outcome = self.charge(cents).await;
        let met = match &outcome {
            Outcome::Done => "done",
            Outcome::Refused(_) => "refused",
            Outcome::Suspended => "suspended",
            _ => "else",
        };
        assert_eq!(met, expected, "{outcome:?}");
        check(&self.db, std::slice::from_ref(&self.account)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_others_did_the_next_batch_is_decided_on_it() {
    each_backend(|db| async move {
        let two = Two::warmed(&db).await;
        let account = &two.account;
        // 4 of 10 cents are spent.
        two.charge_elsewhere(5).await;
        two.charges(2, "refused").await;
        assert_eq!(two.guesses("wrong"), 1, "it was tried, and nothing came of it");
        two.charges(1, "done").await;
        two.charges(1, "refused").await;
        put(&db, account, Scope::Account, Period::Daily, 20 * CENT).await;
        two.charges(1, "done").await;
        two.charges(1, "done").await;
        two.charges(1, "done").await;
        // 13 of 20: a limit that is lowered, one that comes, and one that goes.
        put(&db, account, Scope::Account, Period::Daily, 13 * CENT).await;
        two.charges(1, "refused").await;
        put(&db, account, Scope::Account, Period::Daily, 100 * CENT).await;
        two.charges(1, "done").await;
        two.charges(1, "done").await;
        put(&db, account, Scope::Key(KeyId::from("key_a")), Period::Lifetime, 0).await;
        two.charges(1, "refused").await;
        let of_key = |budget: &budget::Budget| budget.scope != Scope::Account;
        budget::delete(&db, account, of_key, true).await.unwrap();
        two.charges(1, "done").await;
        two.charges(1, "done").await;
        // 17 of 100: what is held elsewhere.
        let (held, request) = hold(account, NOON, "key_b", "draw", 83 * CENT, DAY);
        assert_eq!(two.other.ask(request).await, Ok(Outcome::Done));
        two.charges(1, "refused").await;
        let (hold, held_for) = (held, HeldFor::External);
        let void = Action::Void { hold, held_for, error_code: None, answer: None };
        two.other.ask(Request { account: account.clone(), at: NOON, action: void }).await.unwrap();
        two.charges(1, "done").await;
        two.charges(1, "done").await;
        // 19 cents: the plan's own limit.
        db.execute(&LIMIT_PLANS, binds![21]).await.unwrap();
        two.charges(1, "done").await;
        two.charges(1, "done").await;
        two.charges(1, "refused").await;
        db.execute(&LIMIT_PLANS, binds![23]).await.unwrap();
        two.charges(1, "done").await;
        let rights = two.guesses("right");
        two.charges(1, "done").await;
        two.charges(1, "refused").await;
        db.execute(&LIMIT_PLANS, binds![99]).await.unwrap();
        for _ in 0..3 {
            two.charges(1, "done").await;
        }
        assert!(two.guesses("right") > rights, "who is alone again guesses again");
        db.execute(&SUSPEND, vec![]).await.unwrap();
        two.charges(1, "suspended").await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_take_turns_do_not_go_on_guessing() {
    each_backend(|db| async move {
        let two = Two::warmed(&db).await;
        put(&db, &two.account, Scope::Account, Period::Daily, 1_000 * CENT).await;
        for _ in 0..20 {
            two.charge_elsewhere(1).await;
            two.charges(1, "done").await;
        }
        assert!(two.guesses("wrong") <= 1, "{} guesses were wrong", two.guesses("wrong"));
    })
    .await;
}

/// A plan's limit changes while a batch waits for its account, and another replica meets the new limit's window in
/// that time: the batch must not book past it.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_waited_does_not_miss_a_window_that_came_meanwhile() {
    each_backend(|db| async move {
        plan::seed(&db, "free", "usd", NOON).await.unwrap();
        db.execute(&LIMIT_PLANS, binds![50]).await.unwrap();
        let account = accounts(&db, 1).await.remove(0);
        let mut known = Known::default();
        for _ in 0..3 {
            book(&db, &mut known, &[charge(&account, NOON, "key_a", "echo", CENT)]).await.unwrap();
        }
        let guessed = charge(&account, NOON, "key_a", "echo", CENT);
        let (id, requests) = (BatchId::fresh(), [&guessed]);
        let (_, _, values) = known.guess(&requests, (&id, NOON)).expect("it is known");
        let mut other = db.begin().await.unwrap();
        other.execute(&LIMIT_PLANS, binds![60]).await.unwrap();
        apply(&mut other, &[&charge(&account, NOON, "key_b", "draw", CENT)]).await.unwrap();
        let waits = tokio::spawn({
            let db = db.clone();
            async move { db.transact(&BOOK_IF_UNCHANGED, values).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waits.is_finished(), "the other one has the account");
        other.commit().await.unwrap();
        assert!(waits.await.unwrap().is_err());
        check(&db, std::slice::from_ref(&account)).await;
    })
    .await;
}

/// Nothing but the balances tells here: the account was locked by the other one, and not changed.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_waited_does_not_book_on_what_was_before() {
    each_backend(|db| async move {
        let account = accounts(&db, 1).await.remove(0);
        put(&db, &account, Scope::Account, Period::Daily, 5 * CENT).await;
        let cents = |cents| charge(&account, NOON, "key_a", "echo", cents * CENT);
        for commits in [true, false] {
            let mut known = Known::default();
            for _ in 0..2 {
                book(&db, &mut known, &[cents(0)]).await.unwrap();
            }
            let (guessed, id) = (cents(1), BatchId::fresh());
            let (_, _, values) = known.guess(&[&guessed], (&id, NOON)).expect("it is known");
            let mut other = db.begin().await.unwrap();
            apply(&mut other, &[&cents(3)]).await.unwrap();
            let waits = tokio::spawn({
                let db = db.clone();
                async move { db.transact(&BOOK_IF_UNCHANGED, values).await }
            });
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert!(!waits.is_finished(), "the other one has the account");
            if commits {
                other.commit().await.unwrap();
                let refused = waits.await.unwrap();
                assert!(matches!(refused, Err(NotDone::Certainly(StoreError::Refused(_)))), "{refused:?}");
            } else {
                other.rollback().await.unwrap();
                waits.await.unwrap().unwrap();
            }
            check(&db, std::slice::from_ref(&account)).await;
        }
    })
    .await;
}

/// A batch whose account stays locked is tried again without those who gave up, and one that never reached the
/// database is not looked for.
#[tokio::test(flavor = "multi_thread")]
async fn what_certainly_did_not_happen_is_neither_a_wrong_guess_nor_unknown() {
    each_backend(|db| async move {
        let account = accounts(&db, 1).await.remove(0);
        let cent = charge(&account, NOON, "key_a", "echo", CENT);
        let mut known = Known::default();
        for _ in 0..2 {
            book(&db, &mut known, &[charge(&account, NOON, "key_a", "echo", CENT)]).await.unwrap();
        }
        let mut other = db.begin().await.unwrap();
        apply(&mut other, &[&charge(&account, NOON, "key_b", "draw", CENT)]).await.unwrap();
        let locked_out = known.book(&db, &[&cent], (&BatchId::fresh(), NOON)).await;
        let Guess::Made(Err(Failure::Store(error))) = locked_out else { panic!("it is locked") };
        assert!(matches!(error, StoreError::Conflict(_) | StoreError::Unavailable(_)), "{error}");
        drop(other);
        let applied = book(&db, &mut known, &[cent]).await.unwrap();
        assert_eq!((applied.guessed, &applied.outcomes[..]), (Some(true), &[Outcome::Done][..]));
        check(&db, std::slice::from_ref(&account)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_was_taken_for_lost_can_not_be_booked_any_more() {
    each_backend(|db| async move {
        let account = accounts(&db, 1).await.remove(0);
        put(&db, &account, Scope::Account, Period::Daily, 100 * CENT).await;
        let mut known = Known::default();
        for _ in 0..3 {
            book(&db, &mut known, &[charge(&account, NOON, "key_a", "echo", CENT)]).await.unwrap();
        }
        let spent = async || db.one::<(i64,)>(&SPENT, binds![Time(i64::MAX)]).await.unwrap().0;
        let late = charge(&account, NOON, "key_a", "echo", CENT);
        let (id, requests) = (BatchId::fresh(), [&late]);
        let (_, _, values) = known.guess(&requests, (&id, NOON)).expect("it is known");
        let lost = async || {
            let mut tx = db.begin().await.unwrap();
            let (lost,): (bool,) = tx.one(&TAKE_FOR_LOST, binds![&id, NOON]).await.unwrap();
            tx.commit().await.unwrap();
            lost
        };
        assert!(lost().await, "nobody has booked it");
        assert!(db.transact(&BOOK_IF_UNCHANGED, values.clone()).await.is_err(), "it comes too late");
        assert!(lost().await, "and stays lost");
        assert_eq!(spent().await, 3 * CENT);
        // The same batch under an id that nobody took; and once it is booked it is not lost.
        let (id, mut values) = (BatchId::fresh(), values);
        values[6] = Value::from(&id);
        db.transact(&BOOK_IF_UNCHANGED, values.clone()).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        let (lost,): (bool,) = tx.one(&TAKE_FOR_LOST, binds![&id, NOON]).await.unwrap();
        tx.commit().await.unwrap();
        assert!(!lost);
        assert!(db.transact(&BOOK_IF_UNCHANGED, values).await.is_err(), "twice is not possible either");
        assert_eq!(spent().await, 4 * CENT);
        check(&db, std::slice::from_ref(&account)).await;
    })
    .await;
}

/// What a lane does with a batch.
async fn book(db: &Db, known: &mut Known, requests: &[Request]) -> Option<Applied> {
    let requests: Vec<&Request> = requests.iter().collect();
    commit(db, &requests, known, (&BatchId::fresh(), NOON)).await.ok()
}

/// Three lanes that know different things, and a thousand batches in random order, over budgets that change: each
/// charge is let in exactly if it has room by a sum of the lines.
#[tokio::test(flavor = "multi_thread")]
async fn lanes_in_any_order_let_in_exactly_what_has_room() {
    each_backend(|db| async move {
        let mut dice = Dice(0x0dd5_0f5e_ed5a);
        let accounts = accounts(&db, 2).await;
        let mut lanes = [Known::default(), Known::default(), Known::default()];
        let mut limits = [None; 2];
        let mut spent = [0; 2];
        let mut holds: [Vec<(HoldId, i64)>; 2] = Default::default();
        let (mut lane, mut guesses) = (0, 0);
        for _ in 0..1_000 {
            let n = dice.roll(2) as usize;
            if dice.roll(25) == 0 {
                limits[n] = Some(spent[n] + dice.roll(40) as i64);
                put(&db, &accounts[n], Scope::Account, Period::Daily, limits[n].unwrap()).await;
            }
            // A lane stays with it for a while, so that it finds itself alone.
            if dice.roll(4) == 0 {
                lane = dice.roll(3) as usize;
            }
            let mut requests = Vec::new();
            for _ in 0..dice.roll(4) + 1 {
                let amount = dice.roll(4) as i64;
                if dice.roll(12) == 0 {
                    let (id, request) = hold(&accounts[n], NOON, "key_b", "draw", amount, DAY);
                    requests.push((amount, Some(id), request));
                } else {
                    requests.push((amount, None, charge(&accounts[n], NOON, "key_a", "echo", amount)));
                }
            }
            let batch: Vec<Request> = requests.iter().map(|(_, _, request)| request.clone()).collect();
            let applied = book(&db, &mut lanes[lane], &batch).await.unwrap();
            guesses += i32::from(applied.guessed == Some(true));
            for ((amount, held, _), outcome) in requests.into_iter().zip(applied.outcomes) {
                let fits = amount == 0 || limits[n].is_none_or(|limit| spent[n] + amount <= limit);
                assert_eq!(outcome == Outcome::Done, fits, "{amount} on {} of {:?}", spent[n], limits[n]);
                if fits {
                    spent[n] += amount;
                    holds[n].extend(held.map(|id| (id, amount)));
                }
            }
            if dice.roll(10) == 0
                && let Some((hold, amount)) = holds[n].pop()
            {
                let action =
                    Action::Void { hold, held_for: HeldFor::External, error_code: None, answer: None };
                let request = Request { account: accounts[n].clone(), at: NOON, action };
                book(&db, &mut lanes[dice.roll(3) as usize], &[request]).await.unwrap();
                spent[n] -= amount;
            }
        }
        assert!(guesses > 100, "only {guesses} batches were booked on what was known");
        check(&db, &accounts).await;
    })
    .await;
}

#[test]
fn what_is_known_is_bounded() {
    let mut known = Known::default();
    for n in 0..=MAX_KNOWN {
        known.accounts.entry(AccountId::from(format!("acct_{n}"))).or_default();
    }
    known.learn(&Working::default());
    assert!(known.accounts.is_empty() && known.balances == 0);
}

#[test]
fn money_in_these_tests_is_in_cents() {
    assert_eq!(Nanos::from_cents(1), Some(Nanos(CENT)));
}
