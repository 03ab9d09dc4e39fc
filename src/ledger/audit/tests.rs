//! The audit on both databases: what kept its books agrees, and whatever is tampered with is named.

use std::sync::Arc;

use super::*;
use crate::{
    budget::{self, Limits, Scope},
    clock::{Clock, Time},
    id::{AccountId, CastId, HoldId},
    identity::account,
    ledger::{
        Action, Answer, BalanceId, Fund, GrantTo, HeldFor, Ledger, NewHold, OnLost, Outcome, Record, Request,
        Spending, TakeFrom, Transfer, Undone, sweeper,
    },
    money::Nanos,
    plan::{self, Definition},
    quota::{self, Metered},
    store::{Statement, binds, testing::each_backend},
    telemetry::Metrics,
    wallet::{
        Allocation, Grant, PaidFor, Payment, Reversal, ReversalStatus, allocate, consume, grant,
        pricing::prices, reset, reverse,
    },
    window::Period,
};

const NOON: Time = Time(1_763_726_400_000);
const CENT: Nanos = Nanos(10_000_000);
const FLASH: &str = "gemini-2.0-flash";

static IDS: Statement = Statement::new("SELECT id FROM balances WHERE kind = $1 ORDER BY id");
static ADD_LINE: Statement = Statement::new(
    "INSERT INTO entries (reference, cause, balance_id, amount, created_at) VALUES ('foreign', $1, $2, $3, 0)",
);

struct House {
    db: Db,
    ledger: Ledger,
    account: AccountId,
}

impl House {
    /// An account with 1,000 credits and the first plans.
    async fn open(db: &Db) -> House {
        plan::seed(db, "free", "usd", Time(1)).await.unwrap();
        let account = account::create(db, "a".to_owned(), None, Time(1)).await.unwrap().id;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let house = House { db: db.clone(), ledger, account };
        house.buy("pi_1", 1_000).await;
        house
    }

    async fn buy(&self, intent: &str, credits: i64) {
        let mut tx = self.db.begin().await.unwrap();
        let paid = Grant {
            paid_for: PaidFor::Transaction(intent.to_owned()),
            account: self.account.clone(),
            credits,
            credit_value: CENT,
            amount_cents: credits,
            payment: Payment { intent: Some(intent.to_owned()), ..Payment::default() },
        };
        grant(&mut tx, &paid, "bought", NOON).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn take_back(&self, intent: &str, amount_cents: i64, status: ReversalStatus) {
        let mut tx = self.db.begin().await.unwrap();
        let payment = Payment { intent: Some(intent.to_owned()), ..Payment::default() };
        let back = Reversal { id: format!("back_{intent}"), payment, amount_cents, status, at: NOON };
        assert!(reverse(&mut tx, &back, status_name(status), NOON).await.unwrap());
        tx.commit().await.unwrap();
    }

    async fn ask(&self, action: Action) -> Outcome {
        self.ledger.ask(Request { account: self.account.clone(), at: NOON, action }).await.unwrap()
    }

    fn spending(&self, nanos: i64, from_credits: bool) -> Spending {
        Spending { key: "key_a".into(), spell: "echo".to_owned(), amount: Nanos(nanos), from_credits }
    }

    async fn charge(&self, nanos: i64, from_credits: bool) -> CastId {
        let (cast, spending) = (CastId::fresh(), self.spending(nanos, from_credits));
        let charge = Action::Charge { cast: cast.clone(), spending, kept: None };
        assert_eq!(self.ask(charge).await, Outcome::Done);
        cast
    }

    async fn hold(&self, nanos: i64, from_credits: bool, held_for: HeldFor, on_lost: OnLost) -> HoldId {
        let id = HoldId::fresh();
        let hold = NewHold {
            id: id.clone(),
            held_for,
            spending: self.spending(nanos, from_credits),
            expires_at: Time(NOON.0 + 1_000),
            on_lost,
            keyed: None,
            answer: None,
        };
        assert_eq!(self.ask(Action::Hold(hold)).await, Outcome::Done);
        id
    }

    async fn ids(&self, kind: &str) -> Vec<String> {
        let ids: Vec<(String,)> = self.db.all(&IDS, binds![kind]).await.unwrap();
        ids.into_iter().map(|(id,)| id).collect()
    }

    async fn limit(&self, scope: Scope, period: Period) {
        let limits = Limits { soft: None, hard: Some(CENT), notify_thresholds: Vec::new(), locked: false };
        budget::put(&self.db, &self.account, scope, period, limits, true, NOON).await.unwrap();
    }

    async fn order(&self, plan: &str, order: &str) {
        let order = quota::Order {
            order_id: order.to_owned(),
            plan_code: plan.to_owned(),
            units_chat: 5,
            units_tpl: 0,
            payment: None,
        };
        let credited = quota::credit(&self.db, &self.account, &order, NOON).await.unwrap();
        assert!(matches!(credited, quota::Effect::Done(_)), "{credited:?}");
    }

    async fn debit(&self, units: i64, name: &str) {
        let debited = quota::debit(&self.ledger, &self.account, Metered::Chat, units, name, NOON).await;
        assert!(matches!(debited, Ok(quota::Effect::Done(_))), "{debited:?}");
    }

    async fn turn_into_tokens(&self, credits: i64) {
        let list = [Allocation { model: FLASH.to_owned(), credits }];
        let prices = prices(&self.db).await.unwrap();
        allocate(&self.ledger, &self.account, &list, &prices, CENT, NOON).await.unwrap().unwrap();
    }

    /// A transfer with an effect of every kind, which nobody was answered.
    async fn transfer_and_undo(&self) {
        let transfer = Transfer {
            reference: "txn_unanswered".to_owned(),
            grants: vec![GrantTo { cause: "allocated", to: Fund::Tokens(FLASH.to_owned()), amount: 7 }],
            takes: vec![TakeFrom { cause: "allocation", from: vec![Fund::Credits], amount: CENT.0 }],
            records: vec![Record { kind: "allocation", amount: 1, model: Some(FLASH.to_owned()) }],
            ..Transfer::default()
        };
        let undo = Action::Undo(Undone::Transfer(transfer.clone()));
        for action in [Action::Transfer(transfer), undo] {
            assert!(matches!(self.ask(action).await, Outcome::Moved(_)));
        }
    }

    /// Some of everything, of which a hold from credits stays open.
    async fn live(&self) {
        self.limit(Scope::Account, Period::Daily).await;
        self.limit(Scope::Key("key_a".into()), Period::Lifetime).await;
        self.charge(5, false).await;
        self.charge(7, true).await;
        let cast = self.charge(3, false).await;
        let undone = Undone::Charge { cast, spending: self.spending(3, false) };
        assert_eq!(self.ask(Action::Undo(undone)).await, Outcome::Done);
        for (held_for, on_lost) in [
            (HeldFor::Cast, OnLost::Release),
            (HeldFor::Cast, OnLost::Charge),
            (HeldFor::External, OnLost::Release),
            (HeldFor::External, OnLost::Charge),
        ] {
            let settled = self.hold(20, true, held_for, on_lost).await;
            let late = self.hold(20, false, held_for, on_lost).await;
            let voided = self.hold(20, true, held_for, on_lost).await;
            self.hold(20, true, held_for, on_lost).await;
            let post = |hold: HoldId, amount| Action::Post { hold, held_for, amount, answer: None };
            assert!(matches!(self.ask(post(settled, Nanos(30))).await, Outcome::Hold(_)));
            let void = Action::Void { hold: voided, held_for, error_code: None, answer: None };
            assert!(matches!(self.ask(void).await, Outcome::Hold(_)));
            let lost = |_: &HoldId| Answer { status: 502, body: "lost".to_owned() };
            let clock = Clock::manual(Time(NOON.0 + 1_000));
            sweeper::sweep(&self.db, &clock, &self.ledger, lost).await.unwrap();
            let posted_late = matches!(self.ask(post(late, Nanos(11))).await, Outcome::Hold(_));
            assert_eq!(posted_late, on_lost == OnLost::Release, "what was charged has ended");
        }
        self.buy("pi_2", 100).await;
        self.take_back("pi_2", 40, ReversalStatus::Refunded).await;
        self.buy("pi_3", 100).await;
        for status in [ReversalStatus::Open, ReversalStatus::Won] {
            self.take_back("pi_3", 100, status).await;
        }
        self.turn_into_tokens(100).await;
        consume(&self.ledger, &self.account, FLASH, 50_000, NOON).await.unwrap().unwrap();
        self.transfer_and_undo().await;
        self.debit(60, "call-1").await;
        self.order("pro_month", "order-1").await;
        self.debit(70, "call-2").await;
        self.order("free", "order-2").await;
        self.debit(45, "call-3").await;
        self.hold(9, true, HeldFor::External, OnLost::Release).await;
    }
}

fn status_name(status: ReversalStatus) -> &'static str {
    if status == ReversalStatus::Won { "won" } else { "back" }
}

#[tokio::test(flavor = "multi_thread")]
async fn books_that_everything_was_written_to_agree() {
    each_backend(|db| async move {
        let house = House::open(&db).await;
        house.live().await;
        let report = audit(&db).await.unwrap();
        assert_eq!(report.drifts, []);
        assert!(report.balances >= 8, "{report}");
        assert_eq!(report.skipped, 0);
        reset(&db, &house.account, NOON).await.unwrap();
        assert_eq!(audit(&db).await.unwrap().drifts, []);
    })
    .await;
}

/// A balance, what of it, and how much more of that is stored than should be.
type Named<'a> = (&'a str, &'a str, i128);

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_tampered_with_is_named() {
    each_backend(|db| async move {
        let house = House::open(&db).await;
        house.live().await;
        let account = &house.account;
        let spend = BalanceId::spend(account, &"key_a".into(), "echo", NOON).to_string();
        let credits = BalanceId::credits(account).to_string();
        let tokens = BalanceId::tokens(account, FLASH).to_string();
        let chat = BalanceId::credited(account, "chat_tokens").to_string();
        let quotas = house.ids("quota").await;
        let [free, _] = &*quotas else { panic!("one window of each plan") };
        let windows = house.ids("window").await;
        let [daily, lifetime] = &*windows else { panic!("one window of each budget: {windows:?}") };
        let by_casts = "posted, by casts and settled holds";
        let by_grants = "granted, by what stands of its grants";
        // A statement, and what has to be named then.
        let tampered: Vec<(&'static str, Vec<Named>)> = vec![
            ("UPDATE balances SET posted = posted + 1 WHERE kind = 'credits'", vec![(&credits, "posted", 1)]),
            (
                "UPDATE balances SET granted = granted - 2 WHERE kind = 'tokens'",
                vec![(&tokens, "granted", -2)],
            ),
            ("UPDATE balances SET pending = 0 WHERE kind = 'credits'", vec![(&credits, "pending", -9)]),
            (
                "UPDATE balances SET pending = pending + 1 WHERE kind = 'tokens'",
                vec![(&tokens, "pending", 1)],
            ),
            ("UPDATE balances SET posted = posted - 1 WHERE kind = 'credited'", vec![(&chat, "posted", -1)]),
            (
                "UPDATE balances SET granted = granted + 1 WHERE kind = 'quota' AND id LIKE '%/free/%'",
                vec![(free, "granted", 1)],
            ),
            (
                "UPDATE balances SET pending = pending + 1 WHERE kind = 'window' AND starts_at = 0",
                vec![(lifetime, "pending", 1)],
            ),
            (
                "UPDATE balances SET posted = posted - 2 WHERE kind = 'window' AND starts_at <> 0",
                vec![(daily, "posted", -2)],
            ),
            (
                "UPDATE balances SET posted = posted + 1 WHERE kind = 'spend'",
                vec![
                    (&spend, "posted", 1),
                    (&spend, by_casts, 1),
                    (daily, "posted", -1),
                    (lifetime, "posted", -1),
                ],
            ),
            (
                "DELETE FROM balances WHERE kind = 'tokens'",
                vec![
                    (&tokens, "posted", -50_000),
                    (&tokens, "granted", -2_222_222),
                    (&tokens, "lines without a balance", 4),
                ],
            ),
            (
                "UPDATE holds SET amount = 8 WHERE state = 'open'",
                vec![(&credits, "pending", 1), (&spend, "pending", 1)],
            ),
            (
                "UPDATE holds SET state = 'voided' WHERE state = 'open'",
                vec![(&credits, "pending", 9), (&spend, "pending", 9)],
            ),
            ("UPDATE casts SET cost = cost - 1 WHERE cost = 7", vec![(&spend, by_casts, 1)]),
            (
                "UPDATE holds SET posted = posted + 1 WHERE posted = 11 AND held_for = 'external'",
                vec![(&spend, by_casts, -1)],
            ),
            (
                "UPDATE credit_grants SET standing = standing + 1 WHERE payment_intent = 'pi_2'",
                vec![(&credits, by_grants, i128::from(-CENT.0))],
            ),
            (
                "UPDATE wallet_transactions SET amount = amount + 1 WHERE type = 'consumption'",
                vec![(&tokens, "tokens consumed, by transactions", 1)],
            ),
            (
                "UPDATE balances SET posted = 9223372036854775807 WHERE kind = 'tokens'",
                vec![(&tokens, "posted", i128::from(i64::MAX) - 50_000)],
            ),
        ];
        for (tampering, expected) in tampered {
            let mut tx = db.begin().await.unwrap();
            let statement = Box::leak(Box::new(Statement::new(tampering)));
            assert!(tx.execute(statement, vec![]).await.unwrap() > 0, "{tampering}");
            assert_named(&mut tx, tampering, &expected).await;
        }
        let (nowhere, max) = ("tokens/nobody/x", i128::from(i64::MAX));
        for (cause, balance, amount, expected) in [
            ("charge", &*spend, 4, vec![(&*spend, "posted", -4)]),
            ("purchase", &credits, 4, vec![(&credits, "granted", -4), (&credits, by_grants, 4)]),
            ("purchase", &spend, 4, vec![(&spend, "granted", -4)]),
            ("debit", &chat, i64::MAX, vec![(&chat, "posted", -max)]),
            ("mischief", &chat, 4, vec![(&chat, "posted", -4), (&chat, "lines of an unknown cause", 1)]),
            (
                "allocated",
                nowhere,
                4,
                vec![(nowhere, "granted", -4), (nowhere, "lines without a balance", 1)],
            ),
            (
                "allocation",
                &credits,
                4,
                vec![(&credits, "posted", -4), ("foreign", "allocations, by transactions", -1)],
            ),
        ] {
            let mut tx = db.begin().await.unwrap();
            tx.execute(&ADD_LINE, binds![cause, balance, amount]).await.unwrap();
            assert_named(&mut tx, cause, &expected).await;
        }
        assert_eq!(audit(&db).await.unwrap().drifts, [], "all of it was rolled back");
    })
    .await;
}

/// Audits inside `tx`, and rolls it back.
async fn assert_named(tx: &mut Tx, tampering: &str, expected: &[Named<'_>]) {
    let drifts = audit_in(tx).await.unwrap().drifts;
    let named = drifts.iter().map(|drift| (&*drift.subject, drift.what, drift.stored - drift.expected));
    assert_eq!(named.collect::<Vec<_>>(), expected, "{tampering}");
}

/// An order may put an account on another plan and back: what it spent meanwhile counts on its first plan's
/// limit.
#[tokio::test(flavor = "multi_thread")]
async fn the_window_of_a_plans_limit_misses_nothing_while_another_plan_is_in_force() {
    each_backend(|db| async move {
        let house = House::open(&db).await;
        let definition =
            Definition { name: "Limited".to_owned(), hard_limit_cents: Some(1), ..Definition::default() };
        plan::put(&db, "limited", definition.terms("usd").unwrap(), "free", NOON).await.unwrap();
        for (plan, order) in [("limited", "order-1"), ("free", "order-2"), ("limited", "order-3")] {
            house.order(plan, order).await;
            house.charge(5, false).await;
            assert_eq!(audit(&db).await.unwrap().drifts, [], "on {plan}");
        }
    })
    .await;
}
