//! Plans: what can be subscribed to, for how much, and what it brings. One catalogue for what
//! Stripe sells and for quotas.
//!
//! A plan is never deleted, since purchases and subscriptions name it; each change gives it another
//! `version`. The plan of accounts without a subscription is marked in its row, so that every
//! replica and every statement agrees on which one that is. How its units were defined is kept for
//! each time they changed, since a user's current window goes on with what it began with
//! (`quota::terms`).
//!
//! # Failure behavior
//!
//! Each change is one transaction, and may be repeated. A default that names no plan is no reason
//! not to start: accounts without a subscription then go by the server's own rate, with no limits of
//! a plan.

mod definition;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::{
    clock::Time,
    id::{AccountId, PlanVersion},
    store::{Db, StoreError, Tx, binds, statements},
    window::Period,
};

pub use definition::{Definition, Edit, MAX_PRICE_CENTS, Terms, could_be_code, currency};

/// A plan, as it goes out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub code: String,
    #[serde(flatten)]
    pub terms: Terms,
    pub created_at: Time,
    pub updated_at: Time,
}

/// How often a plan's price is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Interval {
    Day,
    Week,
    Month,
    Year,
}

impl Interval {
    const ALL: [Interval; 4] = [Interval::Day, Interval::Week, Interval::Month, Interval::Year];

    /// As it stands in requests, in the database and at Stripe.
    pub fn as_str(self) -> &'static str {
        match self {
            Interval::Day => "day",
            Interval::Week => "week",
            Interval::Month => "month",
            Interval::Year => "year",
        }
    }

    pub fn parse(name: &str) -> Option<Interval> {
        Interval::ALL.into_iter().find(|interval| interval.as_str() == name)
    }
}

/// What came of stating a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Made(Plan),
    Replaced(Plan),
    /// Another plan is sold at that price of Stripe's, which tells the two apart by nothing else.
    PriceTaken(String),
}

/// What came of changing parts of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edited {
    Done(Plan),
    /// There is no plan of that code.
    Absent,
    /// What would come of it can't be so: a sentence.
    Invalid(String),
}

/// The condition by which a row of `plans` is the plan of the row of `accounts` beside it.
macro_rules! is_accounts {
    () => {
        "(plans.code = accounts.plan OR (accounts.plan IS NULL AND plans.is_default))"
    };
}
pub(crate) use is_accounts;

/// The columns that [`PlanRow`] reads.
macro_rules! plan_columns {
    () => {
        "code, name, price_cents, currency, billing_interval, stripe_price_id, included_credits,
         rate_limit_per_minute, hard_limit_cents, period, limits, created_at, updated_at"
    };
}

statements! {
    ON_PLAN = concat!("
        SELECT plans.code, COALESCE(accounts.plan_since, accounts.created_at)
        FROM accounts LEFT JOIN plans ON ", is_accounts!(), " WHERE accounts.id = $1");
    SWITCH = "UPDATE accounts SET plan = $2, plan_since = $3 WHERE id = $1";
    FORGET_WINDOWS = "
        DELETE FROM balances WHERE account_id = $1 AND kind = 'window' AND budget_id LIKE 'plan/%'";
    PLAN = concat!("SELECT ", plan_columns!(), " FROM plans WHERE code = $1");
    LOCK_PLAN = concat!("SELECT ", plan_columns!(), " FROM plans WHERE code = $1 {for_update}");
    PLANS = concat!("SELECT ", plan_columns!(), " FROM plans WHERE code > $1 ORDER BY code LIMIT $2");
    INSERT_PLAN = "
        INSERT INTO plans (code, name, price_cents, currency, billing_interval, stripe_price_id,
                           included_credits, rate_limit_per_minute, hard_limit_cents, period, limits,
                           is_default, version, created_at, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $14)
        ON CONFLICT (code) DO NOTHING";
    REPLACE_PLAN = "
        UPDATE plans
        SET name = $2, price_cents = $3, currency = $4, billing_interval = $5, stripe_price_id = $6,
            included_credits = $7, rate_limit_per_minute = $8, hard_limit_cents = $9, period = $10,
            limits = $11, version = $12, updated_at = $13
        WHERE code = $1
        RETURNING created_at";
    SOLD_AT_PRICE = "SELECT code FROM plans WHERE stripe_price_id = $1 AND code <> $2";
    // In the order of their codes, so that replicas that start at once can't deadlock.
    LOCK_PLANS = "SELECT code FROM plans ORDER BY code {for_update}";
    CLEAR_DEFAULT = "UPDATE plans SET is_default = false, version = $2 WHERE is_default AND code <> $1";
    SET_DEFAULT = "UPDATE plans SET is_default = true, version = $2 WHERE code = $1 AND NOT is_default";
    // Of that plan, or of all. Later than the last one, also where this clock is behind the one that
    // told when that was.
    RECORD_UNITS = "
        INSERT INTO plan_versions (code, version, period, limits, created_at)
        SELECT plans.code, plans.version, plans.period, plans.limits,
               CASE WHEN last.created_at >= $2 THEN last.created_at + 1 ELSE $2 END
        FROM plans LEFT JOIN plan_versions AS last
            ON last.code = plans.code
            AND last.created_at = (SELECT MAX(created_at) FROM plan_versions WHERE code = plans.code)
        WHERE plans.code = COALESCE($1, plans.code)
          AND (last.code IS NULL OR last.period <> plans.period OR last.limits <> plans.limits)";
}

#[derive(sqlx::FromRow)]
struct PlanRow {
    code: String,
    name: String,
    price_cents: i64,
    currency: String,
    billing_interval: String,
    stripe_price_id: Option<String>,
    included_credits: i64,
    rate_limit_per_minute: Option<i64>,
    hard_limit_cents: Option<i64>,
    period: String,
    limits: String,
    created_at: i64,
    updated_at: i64,
}

impl TryFrom<PlanRow> for Plan {
    type Error = StoreError;

    fn try_from(row: PlanRow) -> Result<Plan, StoreError> {
        let unreadable = || StoreError::Refused(format!("plan {} can't be read", row.code));
        let rate = row.rate_limit_per_minute.map(u32::try_from).transpose();
        let terms = Terms {
            price_cents: row.price_cents,
            interval: Interval::parse(&row.billing_interval).ok_or_else(unreadable)?,
            included_credits: row.included_credits,
            rate_limit_per_minute: rate.map_err(|_| unreadable())?,
            hard_limit_cents: row.hard_limit_cents,
            period: Period::parse(&row.period).ok_or_else(unreadable)?,
            limits: serde_json::from_str(&row.limits).map_err(|_| unreadable())?,
            name: row.name,
            currency: row.currency,
            stripe_price_id: row.stripe_price_id,
        };
        let (created_at, updated_at) = (Time(row.created_at), Time(row.updated_at));
        Ok(Plan { code: row.code, terms, created_at, updated_at })
    }
}

/// The plan of that code.
pub async fn get(db: &Db, code: &str) -> Result<Option<Plan>, StoreError> {
    if !could_be_code(code) {
        return Ok(None);
    }
    let row: Option<PlanRow> = db.optional(&PLAN, binds![code]).await?;
    row.map(Plan::try_from).transpose()
}

/// Up to `limit` plans by code, beginning after `after`.
pub async fn list(db: &Db, after: Option<&str>, limit: i64) -> Result<Vec<Plan>, StoreError> {
    // No code is empty, so all of them come after the empty one.
    let rows: Vec<PlanRow> = db.all(&PLANS, binds![after.unwrap_or_default(), limit]).await?;
    rows.into_iter().map(Plan::try_from).collect()
}

/// Makes the plan, or replaces all of it. `default_code` is the default plan's.
pub async fn put(
    db: &Db,
    code: &str,
    terms: Terms,
    default_code: &str,
    now: Time,
) -> Result<Change, StoreError> {
    let mut tx = begin(db, code, default_code).await?;
    if let Some(price) = &terms.stripe_price_id {
        let taken: Option<(String,)> = tx.optional(&SOLD_AT_PRICE, binds![price, code]).await?;
        if let Some((other,)) = taken {
            return tx.rollback().await.map(|()| Change::PriceTaken(other));
        }
    }
    // First as a new one, so that of two who make it at once one learns that it replaced.
    let made = match tx.execute(&INSERT_PLAN, new_row(code, &terms, now)).await {
        Ok(made) => made > 0,
        Err(error) => return price_taken_meanwhile(db, code, &terms, error).await,
    };
    let created_at = match made {
        true => now,
        false => match replace(&mut tx, code, &terms, now).await {
            Ok(created_at) => created_at,
            Err(error) => return price_taken_meanwhile(db, code, &terms, error).await,
        },
    };
    finish(tx, code, default_code, now).await?;
    let plan = Plan { code: code.to_owned(), terms, created_at, updated_at: now };
    Ok(if made { Change::Made(plan) } else { Change::Replaced(plan) })
}

/// Makes the plan; `None`, and nothing is changed, where there is one of that code. `terms` name no
/// price of Stripe's. `default_code` is the default plan's.
pub async fn create(
    db: &Db,
    code: &str,
    terms: Terms,
    default_code: &str,
    now: Time,
) -> Result<Option<Plan>, StoreError> {
    let mut tx = begin(db, code, default_code).await?;
    if tx.execute(&INSERT_PLAN, new_row(code, &terms, now)).await? == 0 {
        return tx.rollback().await.map(|()| None);
    }
    finish(tx, code, default_code, now).await?;
    Ok(Some(Plan { code: code.to_owned(), terms, created_at: now, updated_at: now }))
}

/// Changes what `edit` names of a plan. Of two edits at once the second one keeps what the first one
/// changed, unless it names it too.
pub async fn edit(db: &Db, code: &str, edit: Edit, now: Time) -> Result<Edited, StoreError> {
    if !could_be_code(code) {
        return Ok(Edited::Absent);
    }
    let mut tx = db.begin().await?;
    let row: Option<PlanRow> = tx.optional(&LOCK_PLAN, binds![code]).await?;
    let Some(plan) = row.map(Plan::try_from).transpose()? else {
        return tx.rollback().await.map(|()| Edited::Absent);
    };
    if plan.terms.stripe_price_id.is_some() && edit.reprices(&plan.terms) {
        let problem = "The plan is sold at its price at Stripe: change both by PUT /v1/plans.".to_owned();
        return tx.rollback().await.map(|()| Edited::Invalid(problem));
    }
    let terms = match edit.onto(plan.terms) {
        Ok(terms) => terms,
        Err(problem) => return tx.rollback().await.map(|()| Edited::Invalid(problem)),
    };
    replace(&mut tx, code, &terms, now).await?;
    tx.execute(&RECORD_UNITS, binds![code, now]).await?;
    tx.commit().await?;
    Ok(Edited::Done(Plan { terms, updated_at: now, ..plan }))
}

/// A transaction in which the plan may be made.
async fn begin(db: &Db, code: &str, default_code: &str) -> Result<Tx, StoreError> {
    let mut tx = db.begin().await?;
    if code == default_code {
        // As whoever marks the default does, before its own row.
        let _: Vec<(String,)> = tx.all(&LOCK_PLANS, binds![]).await?;
    }
    Ok(tx)
}

/// Writes all of a plan that is there. Gives when it was made.
async fn replace(tx: &mut Tx, code: &str, terms: &Terms, now: Time) -> Result<Time, StoreError> {
    let mut values = binds![code];
    values.extend(columns(terms));
    values.extend(binds![&PlanVersion::fresh(), now]);
    tx.one::<(i64,)>(&REPLACE_PLAN, values).await.map(|(created_at,)| Time(created_at))
}

async fn finish(mut tx: Tx, code: &str, default_code: &str, now: Time) -> Result<(), StoreError> {
    tx.execute(&RECORD_UNITS, binds![code, now]).await?;
    if code == default_code {
        mark_default(&mut tx, default_code).await?;
    }
    tx.commit().await
}

/// What it means that a plan could not be written: that another one took its price at Stripe since
/// that was looked for, or that something is wrong.
async fn price_taken_meanwhile(
    db: &Db,
    code: &str,
    terms: &Terms,
    error: StoreError,
) -> Result<Change, StoreError> {
    if let (StoreError::Duplicate(_), Some(price)) = (&error, &terms.stripe_price_id) {
        let taken: Option<(String,)> = db.optional(&SOLD_AT_PRICE, binds![price, code]).await?;
        if let Some((other,)) = taken {
            return Ok(Change::PriceTaken(other));
        }
    }
    Err(error)
}

/// Marks the default plan, and no other: as after any change, what accounts without a subscription
/// spent before counts anew.
async fn mark_default(tx: &mut Tx, code: &str) -> Result<Vec<(String,)>, StoreError> {
    let codes = tx.all(&LOCK_PLANS, binds![]).await?;
    for statement in [&CLEAR_DEFAULT, &SET_DEFAULT] {
        tx.execute(statement, binds![code, &PlanVersion::fresh()]).await?;
    }
    Ok(codes)
}

/// Puts the account on the plan `to`, or on the default one, from now on. Under the lock of the account's
/// row, which every cast takes.
pub async fn switch(tx: &mut Tx, account: &AccountId, to: Option<&str>, now: Time) -> Result<(), StoreError> {
    let (before, since) = on(tx, account).await?;
    tx.execute(&SWITCH, binds![account, to, now]).await?;
    let (after, _) = on(tx, account).await?;
    match before == after {
        // The windows of its units go on, also where it was on it for want of another.
        true => drop(tx.execute(&SWITCH, binds![account, to, since]).await?),
        false => forget_windows(tx, account).await?,
    }
    Ok(())
}

/// The account's plan in force, if there is any, and since when it is.
async fn on(tx: &mut Tx, account: &AccountId) -> Result<(Option<String>, i64), StoreError> {
    tx.one(&ON_PLAN, binds![account]).await
}

/// The code of the account's plan in force.
pub async fn of_account(db: &Db, account: &AccountId) -> Result<Option<String>, StoreError> {
    let row: Option<(Option<String>, i64)> = db.optional(&ON_PLAN, binds![account]).await?;
    Ok(row.and_then(|(code, _)| code))
}

/// Forgets the windows of the hard limit that the account's plan brings: called under the account's lock
/// by whatever makes that limit apply or not, since nothing counts on them meanwhile. The next cast
/// sums them up anew.
pub async fn forget_windows(tx: &mut Tx, account: &AccountId) -> Result<(), StoreError> {
    tx.execute(&FORGET_WINDOWS, binds![account]).await?;
    Ok(())
}

/// Makes the plans that there are from the start, where they are absent, and marks the default one.
/// Any number of replicas may do so at once.
pub async fn seed(db: &Db, default_code: &str, currency: &str, now: Time) -> Result<(), StoreError> {
    let mut tx = db.begin().await?;
    for (code, terms) in at_the_start(currency) {
        tx.execute(&INSERT_PLAN, new_row(code, &terms, now)).await?;
    }
    let codes = mark_default(&mut tx, default_code).await?;
    // Also what a replica of a version before this one changed without recording it.
    tx.execute(&RECORD_UNITS, binds![None::<&str>, now]).await?;
    tx.commit().await?;
    if !codes.iter().any(|(code,)| code == default_code) {
        tracing::warn!(
            "BILLING_PLAN_DEFAULT names no plan: accounts without a subscription have none until it is made"
        );
    }
    Ok(())
}

fn at_the_start(currency: &str) -> [(&'static str, Terms); 3] {
    let terms = |name: &str, price_cents, limits: &[(&str, i64)]| Terms {
        name: name.to_owned(),
        price_cents,
        currency: currency.to_owned(),
        interval: Interval::Month,
        stripe_price_id: None,
        included_credits: 0,
        rate_limit_per_minute: None,
        hard_limit_cents: None,
        period: Period::Monthly,
        limits: limits.iter().map(|(action, units)| ((*action).to_owned(), *units)).collect(),
    };
    [
        ("free", terms("Free", 0, &[("chat_tokens", 100), ("tpl_run", 20)])),
        ("pro", terms("Pro", 1_000, &[])),
        ("pro_month", terms("Pro, monthly", 1_000, &[("chat_tokens", 10_000), ("tpl_run", 200)])),
    ]
}

fn new_row(code: &str, terms: &Terms, now: Time) -> Vec<crate::store::Value> {
    let mut values = binds![code];
    values.extend(columns(terms));
    values.extend(binds![false, &PlanVersion::fresh(), now]);
    values
}

/// What an admin states, in the order of the columns.
fn columns(terms: &Terms) -> Vec<crate::store::Value> {
    let limits = terms.limits.iter().map(|(action, units)| (action.as_str(), *units));
    binds![
        &terms.name,
        terms.price_cents,
        &terms.currency,
        terms.interval.as_str(),
        terms.stripe_price_id.clone(),
        terms.included_credits,
        terms.rate_limit_per_minute.map(i64::from),
        terms.hard_limit_cents,
        terms.period.as_str(),
        serde_json::Value::from_iter(limits).to_string(),
    ]
}
