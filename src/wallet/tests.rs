//! Credits and tokens on the real books: figures to the unit, and at the same time.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;

use super::{
    pricing::{Category, Price, prices},
    transactions::Transaction,
    *,
};
use crate::{
    clock::Time,
    id::AccountId,
    identity::account,
    ledger::{self, Action, BalanceId, Fund, GrantTo, Ledger, Outcome, Request, Transfer},
    money::Nanos,
    store::{Db, binds, statements, testing::each_backend},
    telemetry::Metrics,
};

const CENT: Nanos = Nanos(10_000_000);
const FLASH: &str = "gemini-2.0-flash";
const NOW: Time = Time(1_800_000_000_000);

statements! {
    LINES = "
        SELECT cause, CAST(SUM(amount) AS BIGINT) FROM entries WHERE balance_id = $1 GROUP BY cause";
}

struct Purse {
    db: Db,
    ledger: Ledger,
    account: AccountId,
    prices: BTreeMap<String, Price>,
}

impl Purse {
    async fn with(db: &Db, credits: i64) -> Purse {
        let account = account::create(db, "a".to_owned(), None, NOW).await.unwrap().id;
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        let mut tx = db.begin().await.unwrap();
        let paid = Grant {
            paid_for: PaidFor::Transaction(account.to_string()),
            account: account.clone(),
            credits,
            credit_value: CENT,
            amount_cents: 0,
            payment: Payment::default(),
        };
        grant(&mut tx, &paid, "test", NOW).await.unwrap();
        tx.commit().await.unwrap();
        Purse { db: db.clone(), ledger, account, prices: prices(db).await.unwrap() }
    }

    /// Another replica on the same wallet.
    fn elsewhere(&self) -> Purse {
        let (ledger, _) = Ledger::start(self.db.clone(), Arc::new(Metrics::new()));
        Purse { db: self.db.clone(), ledger, account: self.account.clone(), prices: self.prices.clone() }
    }

    async fn allocate(&self, list: &[(&str, i64)]) -> Result<(), Refused> {
        let list =
            list.iter().map(|(model, credits)| Allocation { model: (*model).to_owned(), credits: *credits });
        let list: Vec<Allocation> = list.collect();
        allocate(&self.ledger, &self.account, &list, &self.prices, CENT, NOW).await.unwrap()
    }

    async fn consume(&self, model: &str, tokens: i64) -> Result<i64, Refused> {
        consume(&self.ledger, &self.account, model, tokens, NOW).await.unwrap()
    }

    async fn held(&self) -> (i64, Vec<(String, i64)>) {
        let held = held(&self.db, &self.account).await.unwrap();
        (held.credits.0 / CENT.0, held.tokens.into_iter().collect())
    }

    async fn transactions(&self) -> Vec<(i64, String, i64)> {
        let lines = transactions::list(&self.db, &self.account, None, 1_000).await.unwrap();
        lines.into_iter().map(|Transaction { id, kind, amount, .. }| (id, kind, amount)).collect()
    }

    /// What the ledger's lines say of a balance, by cause.
    async fn lines(&self, balance: &BalanceId) -> BTreeMap<String, i64> {
        let rows: Vec<(String, i64)> = self.db.all(&LINES, binds![balance.as_str()]).await.unwrap();
        rows.into_iter().collect()
    }
}

fn tokens(of: &[(&str, i64)]) -> Vec<(String, i64)> {
    of.iter().map(|(model, tokens)| ((*model).to_owned(), *tokens)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_documented_flow_comes_out_to_the_unit() {
    each_backend(|db| async move {
        let purse = Purse::with(&db, 1_000).await;
        assert_eq!(purse.held().await, (1_000, vec![]));
        purse.allocate(&[(FLASH, 100)]).await.unwrap();
        assert_eq!(purse.held().await, (900, tokens(&[(FLASH, 2_222_222)])));
        assert_eq!(purse.consume(FLASH, 50_000).await, Ok(2_172_222));
        assert_eq!(purse.consume(FLASH, 2_172_222).await, Ok(0));
        assert_eq!(purse.held().await, (900, tokens(&[(FLASH, 0)])), "a model stays once it was there");
        let expected = [
            (4, "consumption", 2_172_222),
            (3, "consumption", 50_000),
            (2, "allocation", 100),
            (1, "purchase", 1_000),
        ];
        assert_eq!(
            purse.transactions().await,
            expected.map(|(id, kind, amount)| (id, kind.to_owned(), amount))
        );
        let balance = BalanceId::tokens(&purse.account, FLASH);
        let lines = [("allocated".to_owned(), 2_222_222), ("consumption".to_owned(), 2_222_222)];
        assert_eq!(purse.lines(&balance).await, BTreeMap::from(lines));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_changes_nothing_and_says_its_figures() {
    each_backend(|db| async move {
        let purse = Purse::with(&db, 300).await;
        purse.allocate(&[(FLASH, 100)]).await.unwrap();
        let before = (purse.held().await, purse.transactions().await);
        let (model, pro) = (FLASH.to_owned(), "gemini-2.5-pro");
        let quick = |held, asked| {
            Err(Refused::OverCapacity { category: Category::Quick, held, asked, capacity: 5_000_000 })
        };
        let think = Err(Refused::OverCapacity {
            category: Category::Think,
            held: 0,
            asked: 1_003_960,
            capacity: 1_000_000,
        });
        let short = |required, balance| Err(Refused::InsufficientCredits { required, balance });
        for (list, refused) in [
            (vec![(FLASH, 201)], short(201, 200)),
            (vec![(pro, 100), (FLASH, 100), (FLASH, 1)], short(201, 200)),
            (vec![(FLASH, 126)], quick(2_222_222, 2_800_000)),
            // Each would fit by itself.
            (vec![(FLASH, 100), ("gemini-2.0-pro", 40)], quick(2_222_222, 2_793_650)),
            (vec![("nobody's", 1), (FLASH, 1_000)], Err(Refused::UnknownModel("nobody's".to_owned()))),
            (vec![(FLASH, i64::MAX)], Err(Refused::OutOfRange)),
            (vec![(FLASH, 1_000_000_000_000), (pro, i64::MAX / 1_000)], Err(Refused::OutOfRange)),
        ] {
            assert_eq!(purse.allocate(&list).await, refused, "{list:?}");
        }
        let rich = Purse::with(&db, 2_000).await;
        assert_eq!(rich.allocate(&[(pro, 1_014)]).await, think);
        rich.allocate(&[(pro, 1_010)]).await.unwrap();
        assert_eq!(rich.held().await, (990, tokens(&[(pro, 1_000_000)])), "exactly at the capacity");
        let required = 2_222_223;
        assert_eq!(
            purse.consume(FLASH, required).await,
            Err(Refused::InsufficientTokens { model: model.clone(), required, available: 2_222_222 })
        );
        assert_eq!(
            purse.consume(pro, 1).await,
            Err(Refused::InsufficientTokens { model: pro.to_owned(), required: 1, available: 0 })
        );
        account_suspended(&purse, true).await;
        assert_eq!(purse.consume(FLASH, 1).await, Err(Refused::Suspended));
        assert_eq!(purse.allocate(&[(FLASH, 1)]).await, Err(Refused::Suspended));
        account_suspended(&purse, false).await;
        assert_eq!((purse.held().await, purse.transactions().await), before);
        // What is consumed makes room again, for exactly as much.
        purse.consume(FLASH, 22_222).await.unwrap();
        assert_eq!(purse.allocate(&[(FLASH, 126)]).await, Ok(()));
    })
    .await;
}

async fn account_suspended(purse: &Purse, suspended: bool) {
    statements! { SUSPEND = "UPDATE accounts SET suspended = $2 WHERE id = $1"; }
    purse.db.execute(&SUSPEND, binds![&purse.account, suspended]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_same_time_nothing_is_negative_and_nothing_refused_that_fits() {
    each_backend(|db| async move {
        let purse = Purse::with(&db, 10_000).await;
        let both = [purse.elsewhere(), purse.elsewhere()];
        // Room for 2 of 2,222,222; then 45 credits are a million.
        let made = join_all((0..40).map(|n| both[n % 2].allocate(&[(FLASH, 100)]))).await;
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 2);
        let made = join_all((0..200).map(|n| both[n % 2].consume(FLASH, 44_444))).await;
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 100);
        assert_eq!(purse.held().await, (9_800, tokens(&[(FLASH, 44)])));

        // Allocations and consumptions of the same size, each as often: whoever consumes finds what was
        // allocated before it, so that of 60 consumptions as many are made as allocations were.
        let purse = Purse::with(&db, 900).await;
        let both = [purse.elsewhere(), purse.elsewhere()];
        let mixed = join_all((0..120).map(|n| {
            let purse = &both[n % 2];
            async move {
                match n % 4 < 2 {
                    true => purse.allocate(&[(FLASH, 45)]).await.map(|()| 1_000_000),
                    false => purse.consume(FLASH, 1_000_000).await.map(|_| -1_000_000),
                }
            }
        }))
        .await;
        let sum: i64 = mixed.iter().flatten().sum();
        let allocated = mixed.iter().flatten().filter(|amount| **amount > 0).count() as i64;
        assert!((0..=5_000_000).contains(&sum) && (5..=20).contains(&allocated), "{sum} {allocated}");
        assert_eq!(purse.held().await, (900 - 45 * allocated, tokens(&[(FLASH, sum)])));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn credits_that_casts_hold_are_not_allocated() {
    each_backend(|db| async move {
        let purse = Purse::with(&db, 100).await;
        statements! { HOLD = "UPDATE balances SET pending = $2 WHERE id = $1"; }
        let credits = BalanceId::credits(&purse.account);
        db.execute(&HOLD, binds![credits.as_str(), 40 * CENT.0 + 1]).await.unwrap();
        assert_eq!(
            purse.allocate(&[(FLASH, 60)]).await,
            Err(Refused::InsufficientCredits { required: 60, balance: 59 })
        );
        purse.allocate(&[(FLASH, 59)]).await.unwrap();
        assert_eq!(purse.held().await.0, 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_was_answered_is_taken_back() {
    each_backend(|db| async move {
        let purse = Purse::with(&db, 100).await;
        let fund = Fund::Tokens(FLASH.to_owned());
        let transfer = Transfer {
            reference: "txn_1".to_owned(),
            grants: vec![GrantTo { cause: "allocated", to: fund, amount: 2_000_000 }],
            takes: vec![ledger::TakeFrom {
                cause: "allocation",
                from: vec![Fund::Credits],
                amount: 90 * CENT.0,
            }],
            records: vec![ledger::Record { kind: "allocation", amount: 90, model: Some(FLASH.to_owned()) }],
            ..Transfer::default()
        };
        let undo = Action::Undo(ledger::Undone::Transfer(transfer.clone()));
        for (action, held) in [(Action::Transfer(transfer), (10, 2_000_000)), (undo, (100, 0))] {
            let request = Request { account: purse.account.clone(), at: NOW, action };
            assert!(matches!(purse.ledger.ask(request).await.unwrap(), Outcome::Moved(_)));
            assert_eq!(purse.held().await, (held.0, tokens(&[(FLASH, held.1)])));
        }
        assert_eq!(purse.transactions().await.len(), 1, "only the purchase");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_empties_a_wallet_and_keeps_its_books() {
    each_backend(|db| async move {
        let (purse, other) = (Purse::with(&db, 500).await, Purse::with(&db, 7).await);
        purse.allocate(&[(FLASH, 100), ("gpt-5-mini", 100)]).await.unwrap();
        purse.consume(FLASH, 22).await.unwrap();
        reset(&db, &purse.account, NOW).await.unwrap();
        reset(&db, &purse.account, NOW).await.unwrap();
        assert_eq!(purse.held().await, (0, tokens(&[(FLASH, 0), ("gpt-5-mini", 0)])));
        assert_eq!(purse.lines(&BalanceId::tokens(&purse.account, FLASH)).await["emptied"], -2_222_200);
        assert_eq!(other.held().await, (7, vec![]));
        assert!(purse.consume(FLASH, 1).await.is_err());
    })
    .await;
}
