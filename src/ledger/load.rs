//! What a batch of requests touches, read from the books under its accounts' locks.
//!
//! Spend is kept per (account, key, spell, day) in `spend` balances, with a ledger line for each
//! change. A budget's window is the sum of the spend it covers; it is summed up once, when the
//! first cast meets it, and moves along from then on. Prepaid credits are one balance of an account.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{
    balance::{Balance, BalanceId, Leg},
    decide::{Books, Hold},
    hold::{HoldRow, StoredHold, hold_columns},
    idempotency::{self, KnownKey},
    request::{Action, NewHold, Request, Spending, Undone},
    write::Writes,
};
use crate::{
    budget::{self, Budget},
    clock::Time,
    id::{AccountId, HoldId, KeyId},
    money::{Nanos, sum_of_halves},
    store::{Rows, StoreError, Tx, Value, binds, statements},
    window::{self, Window},
};

statements! {
    LOCK_ACCOUNTS = "
        SELECT id, suspended FROM accounts WHERE id IN (SELECT given.value ->> 0 FROM {rows})
        ORDER BY id {for_update}";
    HOLDS = concat!("SELECT ", hold_columns!(), " FROM holds
        WHERE id IN (SELECT given.value ->> 0 FROM {rows})");
    BALANCES = "
        SELECT id, granted, posted, pending, calls FROM balances
        WHERE id IN (SELECT given.value ->> 0 FROM {rows})";
    SPENT_IN_WINDOW = "
        SELECT CAST(COALESCE(SUM(posted / 1000000000), 0) AS BIGINT),
               CAST(COALESCE(SUM(posted % 1000000000), 0) AS BIGINT),
               CAST(COALESCE(SUM(pending / 1000000000), 0) AS BIGINT),
               CAST(COALESCE(SUM(pending % 1000000000), 0) AS BIGINT),
               CAST(COALESCE(SUM(calls), 0) AS BIGINT)
        FROM balances
        WHERE account_id = $1 AND kind = 'spend' AND starts_at >= $2 AND starts_at < $3
          AND (CAST($4 AS TEXT) IS NULL OR key_id = $4) AND (CAST($5 AS TEXT) IS NULL OR spell = $5)";
}

/// What was spent and held in a window, and by how many calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    pub posted: Nanos,
    pub pending: Nanos,
    pub calls: i64,
}

/// Sums up `account`'s spend in `window`, narrowed to one key or spell where given.
pub async fn spent_in_window(
    tx: &mut Tx,
    account: &AccountId,
    window: Window,
    (key, spell): (Option<&str>, Option<&str>),
) -> Result<Spent, StoreError> {
    let end = window.end.unwrap_or(Time(i64::MAX));
    let values = binds![account, window.start, end, key, spell];
    let (billions, rest, pending_billions, pending_rest, calls): (i64, i64, i64, i64, i64) =
        tx.one(&SPENT_IN_WINDOW, values).await?;
    Ok(Spent {
        posted: Nanos(sum_of_halves(billions, rest)),
        pending: Nanos(sum_of_halves(pending_billions, pending_rest)),
        calls,
    })
}

/// What a balance is of, for the row that holds it and for the refusal that names it.
#[derive(Clone)]
pub(super) enum Subject {
    Spend { account: AccountId, key: KeyId, spell: String, day: Time },
    Window { budget: Budget, window: Window },
    Credits { account: AccountId },
}

/// The part of the books that a batch touches, and what it will write back.
pub(super) struct Working {
    pub suspended: HashMap<AccountId, bool>,
    budgets: HashMap<AccountId, Vec<Budget>>,
    pub subjects: BTreeMap<BalanceId, Subject>,
    /// The balances as they were loaded, to write back only those that changed.
    pub loaded: HashMap<BalanceId, Balance>,
    pub books: Books,
    pub holds: HashMap<HoldId, HoldRow>,
    pub keys: HashMap<(AccountId, String), KnownKey>,
    pub changed_holds: BTreeSet<HoldId>,
    pub writes: Writes,
}

/// What is spent, as far as it decides which balances it counts on.
#[derive(Clone, Copy)]
struct Counted<'a> {
    account: &'a AccountId,
    key: &'a KeyId,
    spell: &'a str,
    at: Time,
    from_credits: bool,
}

impl<'a> Counted<'a> {
    fn of(request: &'a Request, spending: &'a Spending) -> Counted<'a> {
        let Spending { key, spell, from_credits, .. } = spending;
        Counted { account: &request.account, key, spell, at: request.at, from_credits: *from_credits }
    }

    fn by(hold: &'a HoldRow) -> Counted<'a> {
        let HoldRow { account, key, spell, began_at, from_credits, .. } = hold;
        Counted { account, key, spell, at: *began_at, from_credits: *from_credits }
    }
}

#[derive(sqlx::FromRow)]
struct BalanceRow {
    id: String,
    granted: Option<i64>,
    posted: i64,
    pending: i64,
    calls: i64,
}

impl Working {
    pub async fn load(tx: &mut Tx, requests: &[&Request]) -> Result<Working, StoreError> {
        let accounts: BTreeSet<&AccountId> = requests.iter().map(|request| &request.account).collect();
        let known: Vec<(String, bool)> =
            tx.all(&LOCK_ACCOUNTS, binds![Rows::of(accounts.iter().map(|account| account.as_str()))]).await?;
        let mut budgets: HashMap<AccountId, Vec<Budget>> = HashMap::new();
        for budget in budget::in_force(tx, accounts).await? {
            budgets.entry(budget.account.clone()).or_default().push(budget);
        }
        let mut working = Working {
            suspended: known.into_iter().map(|(id, suspended)| (id.into(), suspended)).collect(),
            budgets,
            subjects: BTreeMap::new(),
            loaded: HashMap::new(),
            books: Books::default(),
            holds: HashMap::new(),
            keys: HashMap::new(),
            changed_holds: BTreeSet::new(),
            writes: Writes::default(),
        };
        working.load_holds(tx, requests).await?;
        working.load_balances(tx, requests).await?;
        working.load_keys(tx, requests).await?;
        Ok(working)
    }

    async fn load_holds(&mut self, tx: &mut Tx, requests: &[&Request]) -> Result<(), StoreError> {
        let named = Rows::of(requests.iter().filter_map(|request| match &request.action {
            Action::Post { hold, .. }
            | Action::Void { hold, .. }
            | Action::Expire { hold, .. }
            | Action::Undo { undone: Undone::Hold { id: hold }, .. }
            | Action::Extend { hold, .. } => Some(hold.as_str()),
            Action::Probe(_) | Action::Charge { .. } | Action::Hold(_) => None,
            Action::Undo { .. } | Action::Grant { .. } => None,
        }));
        if named.is_empty() {
            return Ok(());
        }
        let rows: Vec<StoredHold> = tx.all(&HOLDS, binds![named]).await?;
        self.holds = rows.into_iter().map(HoldRow::from).map(|hold| (hold.id.clone(), hold)).collect();
        Ok(())
    }

    async fn load_balances(&mut self, tx: &mut Tx, requests: &[&Request]) -> Result<(), StoreError> {
        let mut spent_from = BTreeSet::new();
        for request in requests {
            match &request.action {
                Action::Probe(spending)
                | Action::Charge { spending, .. }
                | Action::Hold(NewHold { spending, .. }) => {
                    spent_from.extend(self.name_balances(Counted::of(request, spending)));
                }
                Action::Undo { undone: Undone::Charge { spending, .. }, .. } => {
                    self.name_balances(Counted::of(request, spending));
                }
                Action::Grant { .. } => drop(self.name_credits(&request.account)),
                Action::Post { hold, .. }
                | Action::Void { hold, .. }
                | Action::Expire { hold, .. }
                | Action::Undo { undone: Undone::Hold { id: hold }, .. }
                | Action::Extend { hold, .. } => {
                    if let Some(hold) = self.holds.get(hold).cloned() {
                        self.name_balances(Counted::by(&hold));
                    }
                }
            }
        }
        let ids = Rows::of(self.subjects.keys().map(BalanceId::as_str));
        let rows: Vec<BalanceRow> = tx.all(&BALANCES, binds![ids]).await?;
        let mut stored: HashMap<BalanceId, BalanceRow> =
            rows.into_iter().map(|row| (BalanceId::from(row.id.clone()), row)).collect();
        for (id, subject) in std::mem::take(&mut self.subjects) {
            let row = stored.remove(&id);
            let balance = match (&subject, row) {
                (Subject::Spend { .. }, Some(row)) => row.into_balance(None, true),
                (Subject::Spend { .. }, None) => Balance { journaled: true, ..Balance::default() },
                (Subject::Credits { .. }, Some(row)) => {
                    let granted = row.granted.unwrap_or(0);
                    row.into_balance(Some(granted), true)
                }
                (Subject::Credits { .. }, None) => {
                    Balance { granted: Some(0), journaled: true, ..Balance::default() }
                }
                (Subject::Window { budget, .. }, Some(row)) => {
                    row.into_balance(budget.limits.hard.map(|limit| limit.0), false)
                }
                (Subject::Window { budget, window }, None) if spent_from.contains(&id) => {
                    let spent = spent_in_window(tx, &budget.account, *window, budget.scope.parts()).await?;
                    Balance {
                        granted: budget.limits.hard.map(|limit| limit.0),
                        posted: spent.posted.0,
                        pending: spent.pending.0,
                        calls: spent.calls,
                        journaled: false,
                    }
                }
                // A window that no cast has met yet: whoever meets it first will sum it up.
                (Subject::Window { .. }, None) => continue,
            };
            self.loaded.insert(id.clone(), balance.clone());
            self.books.balances.insert(id.clone(), balance);
            self.subjects.insert(id, subject);
        }
        for hold in self.holds.values() {
            let legs = self.legs(Counted::by(hold), hold.amount);
            let hold_in_books = Hold { legs, expires_at: hold.expires_at, state: hold.state };
            self.books.holds.insert(hold.id.clone(), hold_in_books);
        }
        Ok(())
    }

    async fn load_keys(&mut self, tx: &mut Tx, requests: &[&Request]) -> Result<(), StoreError> {
        let mut named = Rows::default();
        let mut oldest = i64::MAX;
        for request in requests {
            if let Some(keyed) = request.action.keyed() {
                named.push([Value::from(request.account.as_str()), Value::from(&keyed.key)]);
                oldest = oldest.min(request.at.0);
            }
        }
        if named.is_empty() {
            return Ok(());
        }
        self.keys = idempotency::known(tx, named, Time(oldest)).await?.into_iter().collect();
        Ok(())
    }

    /// The balances that this counts on: its spend first, then every window that covers it, then the
    /// credits that pay for it.
    fn name_balances(&mut self, counted: Counted) -> Vec<BalanceId> {
        let Counted { account, key, spell, at, from_credits } = counted;
        let spend = BalanceId::spend(account, key, spell, at);
        let day = window::midnight(window::day_of(at));
        self.subjects.entry(spend.clone()).or_insert_with(|| Subject::Spend {
            account: account.clone(),
            key: key.clone(),
            spell: spell.to_owned(),
            day,
        });
        let mut named = vec![spend];
        for budget in self.budgets.get(account).into_iter().flatten() {
            if budget.scope.covers(key, spell) {
                let window = budget.period.window(at);
                let id = BalanceId::window(&budget.id, window.start);
                let subject = || Subject::Window { budget: budget.clone(), window };
                self.subjects.entry(id.clone()).or_insert_with(subject);
                named.push(id);
            }
        }
        if from_credits {
            named.push(self.name_credits(account));
        }
        named
    }

    fn name_credits(&mut self, account: &AccountId) -> BalanceId {
        let id = BalanceId::credits(account);
        self.subjects.entry(id.clone()).or_insert_with(|| Subject::Credits { account: account.clone() });
        id
    }

    /// `amount` on each loaded balance that this counts on, in the order of [`Working::name_balances`].
    fn legs(&self, counted: Counted, amount: Nanos) -> Vec<Leg> {
        let Counted { account, key, spell, at, from_credits } = counted;
        let covering = self.budgets.get(account).into_iter().flatten().filter(|b| b.scope.covers(key, spell));
        let windows = covering.map(|budget| BalanceId::window(&budget.id, budget.period.window(at).start));
        let credits = from_credits.then(|| BalanceId::credits(account));
        std::iter::once(BalanceId::spend(account, key, spell, at))
            .chain(windows)
            .chain(credits)
            .filter(|id| self.subjects.contains_key(id))
            .map(|balance| Leg { balance, amount: amount.0 })
            .collect()
    }

    pub fn legs_of(&self, request: &Request, spending: &Spending) -> Vec<Leg> {
        self.legs(Counted::of(request, spending), spending.amount)
    }
}

impl BalanceRow {
    fn into_balance(self, granted: Option<i64>, journaled: bool) -> Balance {
        Balance { granted, posted: self.posted, pending: self.pending, calls: self.calls, journaled }
    }
}

impl Subject {
    /// The balance's row.
    pub fn row(&self, id: &BalanceId, balance: &Balance) -> Vec<Value> {
        let (account, kind, key, spell, budget, starts_at, granted) = match self {
            Subject::Spend { account, key, spell, day } => {
                (account, "spend", Some(key.as_str()), Some(spell.as_str()), None, Some(*day), None)
            }
            Subject::Window { budget, window } => {
                (&budget.account, "window", None, None, Some(budget.id.as_str()), Some(window.start), None)
            }
            Subject::Credits { account } => (account, "credits", None, None, None, None, balance.granted),
        };
        let Balance { posted, pending, calls, .. } = *balance;
        binds![id.as_str(), account, kind, key, spell, budget, starts_at, granted, posted, pending, calls]
    }
}
