//! Tokens per model: what credits are turned into, and what calls consume.
//!
//! An allocation takes its credits and grants its tokens in one transfer of the ledger, which also keeps
//! the tokens of a category, over all of its models, below what an account may hold. So no order of
//! allocations and consumptions, however many at once, makes a balance negative or passes a capacity.
//!
//! # Failure behavior
//!
//! Whatever is refused changed nothing. What the ledger can't answer in time is undone or, where it says
//! so, was not begun.

use std::collections::BTreeMap;

use super::pricing::{self, Category, Price};
use crate::{
    clock::Time,
    id::{AccountId, TransferId},
    ledger::{
        self, Action, CapOver, Fund, GrantTo, Ledger, LedgerError, Outcome, Record, Request, Short, Shortage,
        TakeFrom, Transfer,
    },
    money::Nanos,
    store::{Db, StoreError, binds, statements},
};

statements! {
    // Credits are of no model.
    HELD = "
        SELECT unit, granted, posted, pending FROM balances
        WHERE account_id = $1 AND kind IN ('credits', 'tokens')";
    LOCK_ACCOUNT = "SELECT id FROM accounts WHERE id = $1 {for_update}";
}

/// Credits for tokens of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub model: String,
    pub credits: i64,
}

/// What an account holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub credits: Nanos,
    /// Of every model that something was ever allocated to.
    pub tokens: BTreeMap<String, i64>,
}

/// Why nothing was allocated or consumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    UnknownModel(String),
    /// So few credits make no token of that model.
    NoToken {
        model: String,
        credits: i64,
    },
    /// In credits.
    InsufficientCredits {
        required: i64,
        balance: i64,
    },
    /// In tokens.
    InsufficientTokens {
        model: String,
        required: i64,
        available: i64,
    },
    OverCapacity {
        category: Category,
        held: i64,
        asked: i64,
        capacity: i64,
    },
    Suspended,
    /// A total would not fit its integer.
    OutOfRange,
}

#[derive(sqlx::FromRow)]
struct HeldRow {
    unit: Option<String>,
    granted: Option<i64>,
    posted: i64,
    pending: i64,
}

/// What the account holds.
pub async fn held(db: &Db, account: &AccountId) -> Result<Held, StoreError> {
    let rows: Vec<HeldRow> = db.all(&HELD, binds![account]).await?;
    Ok(Held::of(rows))
}

impl Held {
    fn of(rows: Vec<HeldRow>) -> Held {
        let mut held = Held::default();
        for HeldRow { unit, granted, posted, pending } in rows {
            let left = granted.unwrap_or(0).saturating_sub(posted).saturating_sub(pending).max(0);
            match unit {
                Some(model) => drop(held.tokens.insert(model, left)),
                None => held.credits = Nanos(left),
            }
        }
        held
    }
}

/// Turns credits, of which one is worth `credit_value`, into tokens at the `prices` of now: all of the
/// list or none.
pub async fn allocate(
    ledger: &Ledger,
    account: &AccountId,
    allocations: &[Allocation],
    prices: &BTreeMap<String, Price>,
    credit_value: Nanos,
    now: Time,
) -> Result<Result<(), Refused>, LedgerError> {
    let Exchange { transfer, categories } = match exchange(allocations, prices, credit_value) {
        Ok(exchange) => exchange,
        Err(refused) => return Ok(Err(refused)),
    };
    let request = Request { account: account.clone(), at: now, action: Action::Transfer(transfer) };
    Ok(match ledger.ask(request).await? {
        Outcome::Moved(_) => Ok(()),
        Outcome::Short(Shortage { what: Short::Take { available, .. }, .. }) => {
            // The sum has fitted before, worth as much.
            let required = allocations.iter().map(|allocation| allocation.credits).sum();
            Err(Refused::InsufficientCredits { required, balance: available / credit_value.0 })
        }
        Outcome::Short(Shortage { what: Short::Cap { position, held }, .. }) => {
            let (category, asked) = categories[position];
            Err(Refused::OverCapacity { category, held, asked, capacity: category.capacity() })
        }
        Outcome::Suspended => Err(Refused::Suspended),
        _ => Err(Refused::OutOfRange),
    })
}

/// An allocation as the ledger is asked for it, and the tokens it asks for by category, in the order of
/// the transfer's caps.
struct Exchange {
    transfer: Transfer,
    categories: Vec<(Category, i64)>,
}

fn exchange(
    allocations: &[Allocation],
    prices: &BTreeMap<String, Price>,
    credit_value: Nanos,
) -> Result<Exchange, Refused> {
    let mut credits: i64 = 0;
    let mut tokens_by_category: BTreeMap<Category, i64> = BTreeMap::new();
    let mut transfer = Transfer { reference: TransferId::fresh().to_string(), ..Transfer::default() };
    for Allocation { model, credits: of_them } in allocations {
        let price = prices.get(model).ok_or_else(|| Refused::UnknownModel(model.clone()))?;
        let tokens = pricing::tokens(*of_them, price.price_per_m_token).ok_or(Refused::OutOfRange)?;
        if tokens == 0 {
            return Err(Refused::NoToken { model: model.clone(), credits: *of_them });
        }
        credits = credits.checked_add(*of_them).ok_or(Refused::OutOfRange)?;
        let asked = tokens_by_category.entry(price.category).or_default();
        *asked = asked.checked_add(tokens).ok_or(Refused::OutOfRange)?;
        let (to, model) = (Fund::Tokens(model.clone()), Some(model.clone()));
        transfer.grants.push(GrantTo { cause: "allocated", to, amount: tokens });
        transfer.records.push(Record { kind: "allocation", amount: *of_them, model });
    }
    let amount = credits.checked_mul(credit_value.0).ok_or(Refused::OutOfRange)?;
    transfer.takes.push(TakeFrom { cause: "allocation", from: vec![Fund::Credits], amount });
    let categories: Vec<(Category, i64)> = tokens_by_category.into_iter().collect();
    transfer.caps = categories.iter().map(|(category, _)| capacity(*category, prices)).collect();
    Ok(Exchange { transfer, categories })
}

/// The most tokens that an account may hold of a category, over all of its models.
fn capacity(category: Category, prices: &BTreeMap<String, Price>) -> CapOver {
    let models = prices.iter().filter(|(_, price)| price.category == category);
    CapOver {
        over: models.map(|(model, _)| Fund::Tokens(model.clone())).collect(),
        most: category.capacity(),
    }
}

/// Spends tokens of a model; gives how many are left.
pub async fn consume(
    ledger: &Ledger,
    account: &AccountId,
    model: &str,
    tokens: i64,
    now: Time,
) -> Result<Result<i64, Refused>, LedgerError> {
    let fund = Fund::Tokens(model.to_owned());
    let transfer = Transfer {
        reference: TransferId::fresh().to_string(),
        takes: vec![TakeFrom { cause: "consumption", from: vec![fund.clone()], amount: tokens }],
        records: vec![Record { kind: "consumption", amount: tokens, model: Some(model.to_owned()) }],
        tell: vec![fund.clone()],
        ..Transfer::default()
    };
    let request = Request { account: account.clone(), at: now, action: Action::Transfer(transfer) };
    Ok(match ledger.ask(request).await? {
        Outcome::Moved(standing) => Ok(standing.left_of(&[fund])),
        Outcome::Short(Shortage { standing, .. }) => Err(Refused::InsufficientTokens {
            model: model.to_owned(),
            required: tokens,
            available: standing.left_of(&[fund]),
        }),
        Outcome::Suspended => Err(Refused::Suspended),
        _ => Err(Refused::OutOfRange),
    })
}

/// Empties the wallet: what is left of its credits and of every model's tokens is taken back. What is
/// owed, or held by a cast that runs, stays so.
pub async fn reset(db: &Db, account: &AccountId, now: Time) -> Result<(), StoreError> {
    db.effect(async || {
        let mut tx = db.begin().await?;
        let _: Vec<(String,)> = tx.all(&LOCK_ACCOUNT, binds![account]).await?;
        let left = Held::of(tx.all(&HELD, binds![account]).await?);
        let tokens = left.tokens.into_iter().map(|(model, left)| (Fund::Tokens(model), left));
        let all = tokens.chain([(Fund::Credits, left.credits.0)]).filter(|(_, left)| *left > 0);
        let grants = all.map(|(to, left)| GrantTo { cause: "emptied", to, amount: -left }).collect();
        let transfer = Transfer { reference: TransferId::fresh().to_string(), grants, ..Transfer::default() };
        let request = Request { account: account.clone(), at: now, action: Action::Transfer(transfer) };
        match ledger::apply(&mut tx, &[&request]).await?.wrote {
            true => tx.commit().await,
            false => tx.rollback().await,
        }
    })
    .await
}
