//! Budgets: what an account, one of its keys, or one spell may cost in a calendar window.
//!
//! A budget is only its limits. What was spent is in the ledger whether there is a budget or not
//! (`ledger::apply`), so a budget counts what its window had spent before it was made, and deleting
//! one and making it again forgets nothing. Every change locks the account's row, as every cast
//! does: the next cast, on whichever replica, reads the new limits.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

use crate::{
    clock::Time,
    id::{AccountId, BudgetId, KeyId},
    money::Nanos,
    plan,
    store::{Db, Rows, StoreError, Tx, binds, statements},
    window::Period,
};

/// What a budget counts: everything of its account, or only one key's or one spell's.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    Account,
    Key(KeyId),
    Spell(String),
}

impl Scope {
    pub fn covers(&self, key: &KeyId, spell: &str) -> bool {
        match self {
            Scope::Account => true,
            Scope::Key(one) => one == key,
            Scope::Spell(one) => one == spell,
        }
    }

    /// The key and the spell it narrows to.
    pub fn parts(&self) -> (Option<&str>, Option<&str>) {
        match self {
            Scope::Account => (None, None),
            Scope::Key(key) => (Some(key.as_str()), None),
            Scope::Spell(spell) => (None, Some(spell)),
        }
    }

    fn parse(text: &str) -> Option<Scope> {
        match text.split_once(':') {
            None if text == "account" => Some(Scope::Account),
            Some(("key", key)) => Some(Scope::Key(key.into())),
            Some(("spell", spell)) => Some(Scope::Spell(spell.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scope::Account => f.write_str("account"),
            Scope::Key(key) => write!(f, "key:{key}"),
            Scope::Spell(spell) => write!(f, "spell:{spell}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    pub id: BudgetId,
    pub account: AccountId,
    pub scope: Scope,
    pub period: Period,
    pub limits: Limits,
    pub created_at: Time,
    pub updated_at: Time,
}

/// What a change of a budget sets; it sets all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    pub soft: Option<Nanos>,
    pub hard: Option<Nanos>,
    /// In cents.
    pub notify_thresholds: Vec<i64>,
    /// Only an admin may change it.
    pub locked: bool,
}

/// What came of a change.
#[derive(Debug)]
pub enum Change {
    Made(Budget),
    Replaced(Budget),
    Deleted,
    /// There is none.
    Missing,
    /// It is locked, and the caller is no admin.
    Locked,
    /// There is no such account.
    NoAccount,
}

statements! {
    LOCK_ACCOUNT = "SELECT id FROM accounts WHERE id = $1 {for_update}";
    BUDGETS_OF_ACCOUNTS = "
        SELECT id, account_id, scope, period, soft_limit, hard_limit, notify_thresholds, locked,
               created_at, updated_at
        FROM budgets
        WHERE account_id IN (SELECT given.value ->> 0 FROM {rows})
        ORDER BY account_id, updated_at DESC, change_id DESC";
    // Each version of a plan has windows of its own: those of another did not see what was spent
    // meanwhile.
    BUDGETS_AND_PLANS = concat!("
        SELECT id, account_id, scope, period, soft_limit, hard_limit, notify_thresholds, locked,
               created_at, updated_at
        FROM budgets
        WHERE account_id IN (SELECT given.value ->> 0 FROM {rows})
        UNION ALL
        SELECT 'plan/' || accounts.id || '/' || plans.version, accounts.id, 'account', 'monthly',
               CAST(NULL AS BIGINT), plans.hard_limit_cents * 10000000, '[]', true,
               CAST(0 AS BIGINT), CAST(0 AS BIGINT)
        FROM accounts JOIN plans ON ", plan::is_accounts!(), "
        WHERE accounts.id IN (SELECT given.value ->> 0 FROM {rows}) AND plans.hard_limit_cents IS NOT NULL
          AND NOT EXISTS (SELECT 1 FROM budgets WHERE budgets.account_id = accounts.id
                          AND budgets.scope = 'account' AND budgets.period = 'monthly')");
    PUT_BUDGET = "
        INSERT INTO budgets (id, account_id, scope, period, soft_limit, hard_limit,
                             notify_thresholds, locked, created_at, updated_at, change_id)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9, $10)
        ON CONFLICT (account_id, scope, period) DO UPDATE SET
            soft_limit = excluded.soft_limit, hard_limit = excluded.hard_limit,
            notify_thresholds = excluded.notify_thresholds, locked = excluded.locked,
            updated_at = excluded.updated_at, change_id = excluded.change_id";
    DELETE_BUDGET = "DELETE FROM budgets WHERE id = $1";
    DELETE_WINDOWS = "DELETE FROM balances WHERE account_id = $1 AND kind = 'window' AND budget_id = $2";
}

#[derive(sqlx::FromRow)]
struct BudgetRow {
    id: String,
    account_id: String,
    scope: String,
    period: String,
    soft_limit: Option<i64>,
    hard_limit: Option<i64>,
    notify_thresholds: String,
    locked: bool,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<BudgetRow> for Budget {
    type Error = StoreError;

    fn try_from(row: BudgetRow) -> Result<Budget, StoreError> {
        // A row that makes no sense is a limit that can't be known: nothing is spent on a guess.
        let unreadable = || StoreError::Refused(format!("budget {} can't be read", row.id));
        Ok(Budget {
            scope: Scope::parse(&row.scope).ok_or_else(unreadable)?,
            period: Period::parse(&row.period).ok_or_else(unreadable)?,
            limits: Limits {
                soft: row.soft_limit.map(Nanos),
                hard: row.hard_limit.map(Nanos),
                notify_thresholds: serde_json::from_str(&row.notify_thresholds).map_err(|_| unreadable())?,
                locked: row.locked,
            },
            created_at: Time(row.created_at),
            updated_at: Time(row.updated_at),
            account: row.account_id.into(),
            id: row.id.into(),
        })
    }
}

/// The budgets of these accounts; within an account the one set last comes first.
pub async fn of_accounts(
    tx: &mut Tx,
    accounts: impl IntoIterator<Item = &AccountId>,
) -> Result<Vec<Budget>, StoreError> {
    let accounts = Rows::of(accounts.into_iter().map(AccountId::as_str));
    let rows: Vec<BudgetRow> = tx.all(&BUDGETS_OF_ACCOUNTS, binds![accounts]).await?;
    rows.into_iter().map(Budget::try_from).collect()
}

/// All that limits these accounts: their budgets, and for who has no monthly budget for all that it
/// spends, the limit that its plan brings for that. To be asked under the accounts' locks, or in a snapshot.
pub async fn in_force(
    tx: &mut Tx,
    accounts: impl IntoIterator<Item = &AccountId>,
) -> Result<Vec<Budget>, StoreError> {
    let accounts = Rows::of(accounts.into_iter().map(AccountId::as_str));
    let rows: Vec<BudgetRow> = tx.all(&BUDGETS_AND_PLANS, binds![accounts]).await?;
    rows.into_iter().map(Budget::try_from).collect()
}

/// The limits in force of some accounts, each with the version that it was read under. Whoever holds the
/// accounts' locks compares it with the version of now, so that no change is missed.
#[derive(Default)]
pub struct Known(HashMap<AccountId, (String, Arc<[Budget]>)>);

/// How many accounts' limits are kept before they are forgotten and read anew.
const MAX_KNOWN: usize = 10_000;

impl Known {
    /// What is known of these accounts' limits, if all of it is.
    pub fn of(&self, accounts: &BTreeSet<AccountId>) -> Option<HashMap<AccountId, Arc<[Budget]>>> {
        accounts.iter().map(|account| Some((account.clone(), self.0.get(account)?.1.clone()))).collect()
    }

    /// The version under which an account's limits are known.
    pub fn version_of(&self, account: &AccountId) -> Option<&str> {
        self.0.get(account).map(|(version, _)| version.as_str())
    }

    /// Whether the limits that are known are those of these versions.
    pub fn are(&self, versions: &[(AccountId, String)]) -> bool {
        versions
            .iter()
            .all(|(account, version)| self.0.get(account).is_some_and(|(known, _)| known == version))
    }

    /// Reads the limits of those whose version is another one. A version has been read before its limits:
    /// should they be newer already, the next comparison tells.
    pub async fn learn(&mut self, tx: &mut Tx, versions: Vec<(AccountId, String)>) -> Result<(), StoreError> {
        if self.0.len() + versions.len() > MAX_KNOWN {
            self.0.clear();
        }
        let other = |of: &(AccountId, String)| !self.are(std::slice::from_ref(of));
        let versions: Vec<(AccountId, String)> = versions.into_iter().filter(other).collect();
        let mut read: HashMap<AccountId, Vec<Budget>> = HashMap::new();
        for budget in in_force(tx, versions.iter().map(|(account, _)| account)).await? {
            read.entry(budget.account.clone()).or_default().push(budget);
        }
        for (account, version) in versions {
            let budgets = read.remove(&account).unwrap_or_default();
            self.0.insert(account, (version, budgets.into()));
        }
        Ok(())
    }
}

/// The budgets of one account, the one set last first.
pub async fn of_account(db: &Db, account: &AccountId) -> Result<Vec<Budget>, StoreError> {
    let rows: Vec<BudgetRow> = db.all(&BUDGETS_OF_ACCOUNTS, binds![Rows::of([account.as_str()])]).await?;
    rows.into_iter().map(Budget::try_from).collect()
}

/// Makes the account's budget of that scope and period, or replaces all of its limits. `admin`
/// tells whether a locked one may be changed.
pub async fn put(
    db: &Db,
    account: &AccountId,
    scope: Scope,
    period: Period,
    limits: Limits,
    admin: bool,
    now: Time,
) -> Result<Change, StoreError> {
    let mut tx = db.begin().await?;
    let Some(mut budgets) = locked_budgets(&mut tx, account).await? else {
        return tx.rollback().await.map(|()| Change::NoAccount);
    };
    budgets.retain(|budget| budget.scope == scope && budget.period == period);
    let existing = budgets.pop();
    if existing.as_ref().is_some_and(|budget| budget.limits.locked) && !admin {
        return tx.rollback().await.map(|()| Change::Locked);
    }
    let (id, created_at) = match &existing {
        Some(budget) => (budget.id.clone(), budget.created_at),
        None => (BudgetId::fresh(), now),
    };
    let values = binds![
        &id,
        account,
        scope.to_string(),
        period.as_str(),
        limits.soft,
        limits.hard,
        serde_json::Value::from(limits.notify_thresholds.clone()).to_string(),
        limits.locked,
        now,
        // Ids grow with time, so of two changes in one millisecond the later one comes first.
        &BudgetId::fresh(),
    ];
    tx.execute(&PUT_BUDGET, values).await?;
    plan::forget_windows(&mut tx, account).await?;
    tx.commit().await?;
    let budget = Budget { id, account: account.clone(), scope, period, limits, created_at, updated_at: now };
    Ok(if existing.is_some() { Change::Replaced(budget) } else { Change::Made(budget) })
}

/// Deletes the first of the account's budgets that `chosen` takes, the one set last coming first.
pub async fn delete(
    db: &Db,
    account: &AccountId,
    chosen: impl Fn(&Budget) -> bool,
    admin: bool,
) -> Result<Change, StoreError> {
    let mut tx = db.begin().await?;
    let Some(budgets) = locked_budgets(&mut tx, account).await? else {
        return tx.rollback().await.map(|()| Change::NoAccount);
    };
    let Some(budget) = budgets.into_iter().find(chosen) else {
        return tx.rollback().await.map(|()| Change::Missing);
    };
    if budget.limits.locked && !admin {
        return tx.rollback().await.map(|()| Change::Locked);
    }
    tx.execute(&DELETE_BUDGET, binds![&budget.id]).await?;
    tx.execute(&DELETE_WINDOWS, binds![account, &budget.id]).await?;
    plan::forget_windows(&mut tx, account).await?;
    tx.commit().await?;
    Ok(Change::Deleted)
}

/// The account's budgets under its row's lock; `None` if there is no such account.
async fn locked_budgets(tx: &mut Tx, account: &AccountId) -> Result<Option<Vec<Budget>>, StoreError> {
    let locked: Option<(String,)> = tx.optional(&LOCK_ACCOUNT, binds![account]).await?;
    match locked {
        Some(_) => of_accounts(tx, [account]).await.map(Some),
        None => Ok(None),
    }
}
