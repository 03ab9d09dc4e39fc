//! What a batch of requests touches, read from the books under its accounts' locks.
//!
//! Spend is kept per (account, key, spell, day) in `spend` balances, with a ledger line for each
//! change. A budget's window is the sum of the spend it covers; it is summed up once, when the
//! first cast meets it, and moves along from then on. Prepaid credits, a model's tokens and bought units
//! are a balance each; so is what a plan allows in a window, which begins with the first use of it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    balance::{Balance, BalanceId, Leg},
    decide::{Books, Hold},
    hold::{HoldRow, StoredHold, hold_columns},
    idempotency::{self, KnownKey},
    known::Known,
    reference::References,
    request::{Action, Fund, NewHold, Once, PlanStanding, Request, Spending, Undone},
    subject::Subject,
    write::Writes,
};
use crate::{
    budget::{self, Budget},
    clock::Time,
    id::{AccountId, HoldId, KeyId},
    money::{Nanos, sum_of_halves},
    plan,
    quota::{self, PlanOf},
    store::{Db, Rows, StoreError, Tx, Value, binds, statements},
    window::{self, Window},
};

/// The version of the limits in force: another one after each change of the account's budgets or of its plan.
macro_rules! limits_version {
    () => {
        concat!(
            "accounts.limits_version || '/' || COALESCE((SELECT version FROM plans WHERE ",
            plan::is_accounts!(),
            "), '')"
        )
    };
}
pub(super) use limits_version;

statements! {
    // Where the database locks rows at all.
    LOCK_ACCOUNTS = "
        SELECT id FROM accounts WHERE id IN (SELECT given.value ->> 0 FROM {rows})
        ORDER BY id {for_update}";
    VERSIONS = concat!("
        SELECT id, ", limits_version!(), " FROM accounts
        WHERE id IN (SELECT given.value ->> 0 FROM {rows})");
    HOLDS = concat!("SELECT ", hold_columns!(), " FROM holds
        WHERE id IN (SELECT given.value ->> 0 FROM {rows})");
    // And the accounts, with the versions of their limits, in a statement that begins once they are locked: the
    // one that locks them sees plans as they were before it waited.
    BALANCES = concat!("
        SELECT id, granted, posted, pending, calls, CAST(NULL AS BOOLEAN) AS suspended,
               CAST(NULL AS TEXT) AS version
        FROM balances WHERE id IN (SELECT given.value ->> 0 FROM {rows})
        UNION ALL
        SELECT accounts.id, CAST(NULL AS BIGINT), CAST(0 AS BIGINT), CAST(0 AS BIGINT), CAST(0 AS BIGINT),
               suspended, ", limits_version!(), "
        FROM accounts WHERE accounts.id IN (SELECT given.value ->> 0 FROM {rows2})");
    LAST_RECORDS = "
        SELECT account_id, MAX(id) FROM wallet_transactions
        WHERE account_id IN (SELECT given.value ->> 0 FROM {rows}) GROUP BY account_id";
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

/// The part of the books that a batch touches, and what it will write back.
#[derive(Default)]
pub(super) struct Working {
    pub suspended: HashMap<AccountId, bool>,
    budgets: HashMap<AccountId, Arc<[Budget]>>,
    plans: HashMap<AccountId, PlanOf>,
    pub subjects: BTreeMap<BalanceId, Subject>,
    /// Which balances something counts on: under load most of a batch is alike.
    counted_on: HashMap<Alike, Arc<[BalanceId]>>,
    /// The balances as they were loaded, to write back only those that changed.
    pub loaded: HashMap<BalanceId, Balance>,
    /// Those of them that have no row yet.
    pub unstored: BTreeSet<BalanceId>,
    pub books: Books,
    pub holds: HashMap<HoldId, HoldRow>,
    pub keys: HashMap<(AccountId, String), KnownKey>,
    /// Windows of a plan that nothing was taken from yet, and what it allows in them.
    pub unopened: HashMap<BalanceId, i64>,
    /// The number of the last line of an account's wallet.
    pub last_records: HashMap<AccountId, i64>,
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

/// What counts on the same balances: who spends on what, on which day (every window begins with one), and
/// whether credits pay for it.
type Alike = (AccountId, KeyId, String, i64, bool);

const DAY_MS: i64 = 86_400_000;

impl<'a> Counted<'a> {
    fn alike(&self) -> Alike {
        let Counted { account, key, spell, at, from_credits } = *self;
        (account.clone(), key.clone(), spell.to_owned(), at.0.div_euclid(DAY_MS), from_credits)
    }

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
    /// Of an account alone, as its version.
    suspended: Option<bool>,
    version: Option<String>,
}

impl Working {
    /// Begins a transaction, and loads what `requests` touch.
    pub async fn begin(
        db: &Db,
        requests: &[&Request],
        limits: &mut budget::Known,
    ) -> Result<(Tx, Working), StoreError> {
        let mut tx = db.begin().await?;
        // Before any account is locked: see `reference`.
        let references = References::claim(&mut tx, named(requests), latest(requests)).await?;
        let working = Working::load_all(&mut tx, requests, references, limits).await?;
        Ok((tx, working))
    }

    /// Loads what `requests` touch, none of which may have a name.
    pub async fn load(tx: &mut Tx, requests: &[&Request]) -> Result<Working, StoreError> {
        Working::load_all(tx, requests, References::default(), &mut budget::Known::default()).await
    }

    /// What `requests` touch, as it is known, if all of it is and they only charge.
    pub fn recall(requests: &[&Request], known: &Known) -> Option<Working> {
        let only_charge = |request: &&Request| {
            matches!(request.action, Action::Probe(_) | Action::Charge { kept: None, .. })
        };
        if !requests.iter().all(only_charge) {
            return None;
        }
        let accounts: BTreeSet<AccountId> = requests.iter().map(|request| request.account.clone()).collect();
        let mut working = Working { budgets: known.limits.of(&accounts)?, ..Working::default() };
        working.suspended = accounts.into_iter().map(|account| (account, false)).collect();
        working.name_all(requests);
        for (id, subject) in std::mem::take(&mut working.subjects) {
            let mut balance = known.balances_of(subject.account())?.get(&id)?.clone();
            if let Subject::Window { budget, .. } = &subject {
                balance.granted = budget.limits.hard.map(|limit| limit.0);
            }
            working.take_in(id, subject, balance);
        }
        Some(working)
    }

    async fn load_all(
        tx: &mut Tx,
        requests: &[&Request],
        references: References,
        limits: &mut budget::Known,
    ) -> Result<Working, StoreError> {
        let asked: BTreeSet<&str> = requests.iter().map(|request| request.account.as_str()).collect();
        let locked: Option<Vec<(String,)>> =
            tx.lock(&LOCK_ACCOUNTS, binds![Rows::of(asked.iter().copied())]).await?;
        let accounts: BTreeSet<AccountId> = match locked {
            // One that comes to be after this was not there when its turn came, and is in no lock.
            Some(locked) => locked.into_iter().map(|(id,)| id.into()).collect(),
            None => asked.into_iter().map(AccountId::from).collect(),
        };
        let on_plans = requests.iter().filter(|request| request.action.asks_for_a_plan());
        let on_plans: BTreeSet<&AccountId> = on_plans.map(|request| &request.account).collect();
        let mut working = Working {
            plans: quota::plans_of(tx, on_plans, latest(requests)).await?,
            writes: Writes::with(references),
            ..Working::default()
        };
        working.load_holds(tx, requests).await?;
        working.load_balances(tx, requests, &accounts, limits).await?;
        working.load_keys(tx, requests).await?;
        working.load_records(tx, requests).await?;
        Ok(working)
    }

    async fn load_holds(&mut self, tx: &mut Tx, requests: &[&Request]) -> Result<(), StoreError> {
        let named = Rows::of(requests.iter().filter_map(|request| match &request.action {
            Action::Post { hold, .. }
            | Action::Void { hold, .. }
            | Action::Expire { hold, .. }
            | Action::Undo(Undone::Hold { id: hold })
            | Action::Extend { hold, .. } => Some(hold.as_str()),
            Action::Probe(_) | Action::Charge { .. } | Action::Hold(_) => None,
            Action::Undo(_) | Action::Transfer(_) => None,
        }));
        if named.is_empty() {
            return Ok(());
        }
        let rows: Vec<StoredHold> = tx.all(&HOLDS, binds![named]).await?;
        self.holds = rows.into_iter().map(HoldRow::from).map(|hold| (hold.id.clone(), hold)).collect();
        Ok(())
    }

    async fn load_balances(
        &mut self,
        tx: &mut Tx,
        requests: &[&Request],
        accounts: &BTreeSet<AccountId>,
        limits: &mut budget::Known,
    ) -> Result<(), StoreError> {
        // Transfers are under no budget.
        let limited = requests.iter().filter(|request| !matches!(request.action, Action::Transfer(_)));
        let limited = limited.map(|request| &request.account).filter(|account| accounts.contains(*account));
        let mut limited: BTreeSet<AccountId> = limited.cloned().collect();
        let all = Rows::of(accounts.iter().map(AccountId::as_str));
        let (spent_from, mut stored) = loop {
            let Some(budgets) = limits.of(&limited) else {
                let asked = Rows::of(limited.iter().map(AccountId::as_str));
                let versions: Vec<(String, String)> = tx.all(&VERSIONS, binds![asked]).await?;
                let versions: HashMap<AccountId, String> =
                    versions.into_iter().map(|(account, version)| (account.into(), version)).collect();
                // Whoever has no account has no limits either.
                limited.retain(|account| versions.contains_key(account));
                limits.learn(tx, versions.into_iter().collect()).await?;
                continue;
            };
            self.budgets = budgets;
            self.suspended.clear();
            self.subjects.clear();
            self.counted_on.clear();
            let spent_from = self.name_all(requests);
            let ids = Rows::of(self.subjects.keys().map(BalanceId::as_str));
            let rows: Vec<BalanceRow> = tx.all(&BALANCES, binds![ids, &all]).await?;
            let (mut stored, mut versions) = (HashMap::new(), Vec::new());
            for mut row in rows {
                let Some((suspended, version)) = row.suspended.zip(row.version.take()) else {
                    stored.insert(BalanceId::from(row.id.clone()), row);
                    continue;
                };
                let account = AccountId::from(row.id);
                if limited.contains(&account) {
                    versions.push((account.clone(), version));
                }
                self.suspended.insert(account, suspended);
            }
            match limits.are(&versions) {
                true => break (spent_from, stored),
                // They changed since, and other windows count.
                false => limits.learn(tx, versions).await?,
            }
        };
        for (id, subject) in std::mem::take(&mut self.subjects) {
            let row = stored.remove(&id);
            let is_stored = row.is_some();
            let balance = match (&subject, row) {
                (Subject::Spend { .. }, Some(row)) => row.into_balance(None, true),
                (Subject::Spend { .. }, None) => Balance { journaled: true, ..Balance::default() },
                (
                    Subject::Credits { .. }
                    | Subject::Tokens { .. }
                    | Subject::Quota { .. }
                    | Subject::Credited { .. },
                    row,
                ) => match row {
                    Some(row) => {
                        let granted = row.granted.unwrap_or(0);
                        row.into_balance(Some(granted), true)
                    }
                    None => {
                        self.unopened.extend(subject.opening(&id));
                        Balance { granted: Some(0), journaled: true, ..Balance::default() }
                    }
                },
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
            if !is_stored {
                self.unstored.insert(id.clone());
            }
            self.take_in(id, subject, balance);
        }
        for hold in self.holds.values() {
            let legs = self.legs(Counted::by(hold), hold.amount);
            let hold_in_books = Hold { legs, expires_at: hold.expires_at, state: hold.state };
            self.books.holds.insert(hold.id.clone(), hold_in_books);
        }
        Ok(())
    }

    fn take_in(&mut self, id: BalanceId, subject: Subject, balance: Balance) {
        self.loaded.insert(id.clone(), balance.clone());
        self.books.balances.insert(id.clone(), balance);
        self.subjects.insert(id, subject);
    }

    /// Names every balance that the requests touch; gives those that something may be spent from.
    fn name_all(&mut self, requests: &[&Request]) -> BTreeSet<BalanceId> {
        let mut spent_from = BTreeSet::new();
        for request in requests {
            match &request.action {
                Action::Probe(spending)
                | Action::Charge { spending, .. }
                | Action::Hold(NewHold { spending, .. }) => {
                    spent_from.extend(self.name_balances(Counted::of(request, spending)).iter().cloned());
                }
                Action::Undo(Undone::Charge { spending, .. }) => {
                    self.name_balances(Counted::of(request, spending));
                }
                Action::Transfer(transfer) | Action::Undo(Undone::Transfer(transfer)) => {
                    for fund in transfer.funds() {
                        self.name_fund(request, fund);
                    }
                }
                Action::Post { hold, .. }
                | Action::Void { hold, .. }
                | Action::Expire { hold, .. }
                | Action::Undo(Undone::Hold { id: hold })
                | Action::Extend { hold, .. } => {
                    if let Some(hold) = self.holds.get(hold).cloned() {
                        self.name_balances(Counted::by(&hold));
                    }
                }
            }
        }
        spent_from
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

    async fn load_records(&mut self, tx: &mut Tx, requests: &[&Request]) -> Result<(), StoreError> {
        let recorded = requests.iter().filter(
            |request| matches!(&request.action, Action::Transfer(transfer) if !transfer.records.is_empty()),
        );
        let accounts: BTreeSet<&str> = recorded.map(|request| request.account.as_str()).collect();
        if !accounts.is_empty() {
            let last: Vec<(String, i64)> = tx.all(&LAST_RECORDS, binds![Rows::of(accounts)]).await?;
            self.last_records = last.into_iter().map(|(account, id)| (account.into(), id)).collect();
        }
        Ok(())
    }

    /// Names the balances that this counts on, and gives them in the order of [`Working::balances_of`].
    fn name_balances(&mut self, counted: Counted) -> Arc<[BalanceId]> {
        let alike = counted.alike();
        if let Some(known) = self.counted_on.get(&alike) {
            return known.clone();
        }
        let (ids, subjects): (Vec<_>, Vec<_>) = self.balances_of(counted).unzip();
        let ids: Arc<[BalanceId]> = ids.into();
        for (id, subject) in ids.iter().zip(subjects) {
            self.subjects.entry(id.clone()).or_insert(subject);
        }
        self.counted_on.insert(alike, ids.clone());
        ids
    }

    /// The balances that this counts on: its spend first, then every window that covers it, then the
    /// credits that pay for it.
    fn balances_of(&self, counted: Counted) -> impl Iterator<Item = (BalanceId, Subject)> {
        let Counted { account, key, spell, at, from_credits } = counted;
        let day = window::midnight(window::day_of(at));
        let subject =
            Subject::Spend { account: account.clone(), key: key.clone(), spell: spell.to_owned(), day };
        let spend = (BalanceId::spend(account, key, spell, at), subject);
        let budgets = self.budgets.get(account).into_iter().flat_map(|budgets| budgets.iter());
        let covering = budgets.filter(move |budget| budget.scope.covers(key, spell));
        let windows = covering.map(move |budget| {
            let window = budget.period.window(at);
            (BalanceId::window(&budget.id, window.start), Subject::Window { budget: budget.clone(), window })
        });
        let credits = from_credits
            .then(|| (BalanceId::credits(account), Subject::Credits { account: account.clone() }));
        std::iter::once(spend).chain(windows).chain(credits)
    }

    /// The balance of a fund. `None`: the account has no plan to allow it.
    pub fn fund(&self, request: &Request, fund: &Fund) -> Option<(BalanceId, Subject)> {
        let account = request.account.clone();
        Some(match fund {
            Fund::Credits => (BalanceId::credits(&account), Subject::Credits { account }),
            Fund::Tokens(model) => {
                (BalanceId::tokens(&account, model), Subject::Tokens { account, model: model.clone() })
            }
            Fund::Credited(action) => {
                (BalanceId::credited(&account, action), Subject::Credited { account, action: action.clone() })
            }
            Fund::Plan(action) => {
                let plan = self.plans.get(&account)?;
                let (terms, window) = plan.in_force(request.at)?;
                let id = BalanceId::quota(&account, &plan.code, terms.period, window.start, action);
                let units = terms.limits.get(action).copied().unwrap_or(0);
                (id, Subject::Quota { account, action: action.clone(), start: window.start, units })
            }
        })
    }

    fn name_fund(&mut self, request: &Request, fund: &Fund) {
        if let Some((id, subject)) = self.fund(request, fund) {
            self.subjects.entry(id).or_insert(subject);
        }
    }

    /// How the request's account is on its plan.
    pub fn plan_standing(&self, request: &Request) -> Option<PlanStanding> {
        let plan = self.plans.get(&request.account)?;
        let (_, window) = plan.in_force(request.at)?;
        Some(PlanStanding { code: plan.code.clone(), resets_at: window.end.map_or(i64::MAX, |end| end.0) })
    }

    /// `amount` on each loaded balance that this counts on, in the order of [`Working::balances_of`].
    fn legs(&self, counted: Counted, amount: Nanos) -> Vec<Leg> {
        let ids = self.counted_on.get(&counted.alike()).cloned();
        let ids = ids.unwrap_or_else(|| self.balances_of(counted).map(|(id, _)| id).collect());
        let loaded = ids.iter().filter(|id| self.subjects.contains_key(*id));
        loaded.map(|id| Leg { balance: id.clone(), amount: amount.0 }).collect()
    }

    pub fn legs_of(&self, request: &Request, spending: &Spending) -> Vec<Leg> {
        self.legs(Counted::of(request, spending), spending.amount)
    }
}

/// The names that requests come with.
fn named<'a>(requests: &'a [&Request]) -> impl Iterator<Item = (&'a AccountId, &'a Once)> {
    requests.iter().filter_map(|request| match &request.action {
        Action::Transfer(transfer) => Some((&request.account, transfer.once.as_ref()?)),
        _ => None,
    })
}

fn latest(requests: &[&Request]) -> Time {
    requests.iter().map(|request| request.at).max().unwrap_or_default()
}

impl BalanceRow {
    fn into_balance(self, granted: Option<i64>, journaled: bool) -> Balance {
        Balance { granted, posted: self.posted, pending: self.pending, calls: self.calls, journaled }
    }
}
