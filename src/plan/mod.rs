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

use serde::Serialize;

use crate::{
    clock::Time,
    id::PlanVersion,
    store::{Db, StoreError, Tx, binds, statements},
    window::Period,
};

pub use definition::{Definition, MAX_PRICE_CENTS, Terms, could_be_code, currency};

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
    PLAN = concat!("SELECT ", plan_columns!(), " FROM plans WHERE code = $1");
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
    let mut tx = db.begin().await?;
    if code == default_code {
        // As whoever marks the default does, before its own row.
        let _: Vec<(String,)> = tx.all(&LOCK_PLANS, binds![]).await?;
    }
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
        false => {
            let mut values = binds![code];
            values.extend(columns(&terms));
            values.extend(binds![&PlanVersion::fresh(), now]);
            match tx.one::<(i64,)>(&REPLACE_PLAN, values).await {
                Ok((created_at,)) => Time(created_at),
                Err(error) => return price_taken_meanwhile(db, code, &terms, error).await,
            }
        }
    };
    tx.execute(&RECORD_UNITS, binds![code, now]).await?;
    if code == default_code {
        mark_default(&mut tx, default_code).await?;
    }
    tx.commit().await?;
    let plan = Plan { code: code.to_owned(), terms, created_at, updated_at: now };
    Ok(if made { Change::Made(plan) } else { Change::Replaced(plan) })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{quota, store::testing::each_backend};
    use std::collections::BTreeMap;

    statements! {
        DEFAULTS = "SELECT code FROM plans WHERE is_default";
        VERSION = "SELECT version FROM plans WHERE code = $1";
        LIMIT_UNSEEN = "UPDATE plans SET limits = '{}' WHERE code = $1";
    }

    fn terms(name: &str) -> Terms {
        Terms { name: name.to_owned(), ..at_the_start("eur")[1].1.clone() }
    }

    async fn defaults(db: &Db) -> Vec<String> {
        let rows: Vec<(String,)> = db.all(&DEFAULTS, binds![]).await.unwrap();
        rows.into_iter().map(|(code,)| code).collect()
    }

    async fn version(db: &Db, code: &str) -> String {
        db.one::<(String,)>(&VERSION, binds![code]).await.unwrap().0
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_start_makes_what_is_absent_and_marks_one_default() {
        each_backend(|db| async move {
            futures_util::future::join_all((0..4).map(|_| seed(&db, "free", "usd", Time(1))))
                .await
                .into_iter()
                .for_each(|seeded| seeded.unwrap());
            assert_eq!(defaults(&db).await, ["free"]);
            let [free, pro, pro_month] = list(&db, None, 9).await.unwrap().try_into().unwrap();
            assert_eq!((free.code.as_str(), free.terms.price_cents), ("free", 0));
            assert_eq!(
                free.terms.limits,
                BTreeMap::from([("chat_tokens".to_owned(), 100), ("tpl_run".to_owned(), 20)])
            );
            assert_eq!((pro.code.as_str(), pro.terms.price_cents), ("pro", 1_000));
            assert_eq!((pro.terms.currency.as_str(), pro.terms.interval), ("usd", Interval::Month));
            assert_eq!((pro_month.code.as_str(), pro_month.terms.price_cents), ("pro_month", 1_000));
            assert_eq!(
                pro_month.terms.limits,
                BTreeMap::from([("chat_tokens".to_owned(), 10_000), ("tpl_run".to_owned(), 200)])
            );

            // What an admin changed stays; the default moves with the configuration, and may be missing.
            put(&db, "pro", terms("Professional"), "free", Time(2)).await.unwrap();
            let changed = version(&db, "pro").await;
            seed(&db, "pro", "eur", Time(3)).await.unwrap();
            assert_eq!(defaults(&db).await, ["pro"]);
            assert_eq!(get(&db, "pro").await.unwrap().unwrap().terms, terms("Professional"));
            let marked = version(&db, "pro").await;
            assert_ne!(marked, changed, "what accounts without a subscription spent before counts anew");
            seed(&db, "pro", "eur", Time(3)).await.unwrap();
            assert_eq!(version(&db, "pro").await, marked);
            seed(&db, "later", "eur", Time(4)).await.unwrap();
            assert_eq!(defaults(&db).await, [""; 0]);
            put(&db, "later", terms("Later"), "later", Time(5)).await.unwrap();
            assert_eq!(defaults(&db).await, ["later"]);
            // Replicas of two configurations: one plan is the default, whichever was said last.
            seed(&db, "free", "eur", Time(6)).await.unwrap();
            assert_eq!(defaults(&db).await, ["free"]);
            put(&db, "later", terms("Later"), "later", Time(7)).await.unwrap();
            assert_eq!(defaults(&db).await, ["later"]);
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_plan_is_made_once_and_then_replaced_whole() {
        each_backend(|db| async move {
            let full = Terms {
                stripe_price_id: Some("price_1".to_owned()),
                included_credits: 5,
                rate_limit_per_minute: Some(1_000_000_000),
                hard_limit_cents: Some(0),
                period: Period::Daily,
                limits: BTreeMap::from([("tpl_run".to_owned(), 7)]),
                ..terms("Team")
            };
            let made = put(&db, "team", full.clone(), "free", Time(1)).await.unwrap();
            let plan = Plan {
                code: "team".to_owned(),
                terms: full.clone(),
                created_at: Time(1),
                updated_at: Time(1),
            };
            assert_eq!(made, Change::Made(plan.clone()));
            assert_eq!(get(&db, "team").await.unwrap(), Some(plan));
            let first = version(&db, "team").await;

            let taken = put(&db, "other", full.clone(), "free", Time(2)).await.unwrap();
            assert_eq!(taken, Change::PriceTaken("team".to_owned()));
            assert_eq!(get(&db, "other").await.unwrap(), None);

            let Change::Replaced(plan) = put(&db, "team", terms("Team"), "free", Time(3)).await.unwrap()
            else {
                panic!("it was there");
            };
            assert_eq!((plan.created_at, plan.updated_at), (Time(1), Time(3)));
            assert_eq!(get(&db, "team").await.unwrap(), Some(plan));
            assert!(version(&db, "team").await > first);
            assert_eq!(put(&db, "other", full, "free", Time(4)).await.unwrap(), {
                let plan = get(&db, "other").await.unwrap().unwrap();
                Change::Made(plan)
            });

            let page = list(&db, None, 1).await.unwrap();
            assert_eq!(page[0].code, "other");
            assert_eq!(list(&db, Some("other"), 9).await.unwrap()[0].code, "team");
            for nothing in ["", "none", "no plan", "a\0"] {
                assert_eq!(get(&db, nothing).await.unwrap(), None, "{nothing:?}");
            }
        })
        .await;
    }

    /// How the plan's units were defined, and when.
    async fn recorded(db: &Db, code: &str) -> Vec<(Period, i64, Time)> {
        let mut tx = db.begin_read().await.unwrap();
        let mut versions = quota::terms::versions(&mut tx, &[code], Time(0)).await.unwrap();
        let versions = versions.remove(code).unwrap_or_default().into_iter();
        versions.map(|v| (v.period, v.limits.get("tpl_run").copied().unwrap_or(0), v.from)).collect()
    }

    fn units(period: Period, tpl_run: i64) -> Terms {
        Terms { period, limits: BTreeMap::from([("tpl_run".to_owned(), tpl_run)]), ..terms("Units") }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_change_of_a_plans_units_is_recorded_in_order() {
        each_backend(|db| async move {
            use Period::{Daily, Monthly};
            let put = async |terms, now| drop(put(&db, "team", terms, "free", now).await.unwrap());
            put(units(Daily, 5), Time(10)).await;
            put(Terms { price_cents: 7, ..units(Daily, 5) }, Time(20)).await;
            assert_eq!(recorded(&db, "team").await, [(Daily, 5, Time(10))], "its price is no unit");
            put(units(Monthly, 5), Time(30)).await;
            put(units(Monthly, 6), Time(30)).await;
            put(units(Daily, 5), Time(25)).await;
            let all =
                [(Daily, 5, Time(10)), (Monthly, 5, Time(30)), (Monthly, 6, Time(31)), (Daily, 5, Time(32))];
            assert_eq!(recorded(&db, "team").await, all, "no later change has an earlier time");

            for _ in 0..2 {
                seed(&db, "free", "usd", Time(40)).await.unwrap();
                assert_eq!(recorded(&db, "free").await, [(Monthly, 20, Time(40))]);
                assert_eq!(recorded(&db, "pro_month").await, [(Monthly, 200, Time(40))]);
            }
            assert_eq!(recorded(&db, "team").await, all);
            db.execute(&LIMIT_UNSEEN, binds!["team"]).await.unwrap();
            seed(&db, "free", "usd", Time(50)).await.unwrap();
            assert_eq!(recorded(&db, "team").await.last(), Some(&(Daily, 0, Time(50))));
        })
        .await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn changes_at_once_are_recorded_one_after_the_other() {
        each_backend(|db| async move {
            let puts = (1..=8).map(|number| put(&db, "team", units(Period::Daily, number), "free", Time(5)));
            let puts = futures_util::future::join_all(puts).await;
            assert!(puts.iter().all(Result::is_ok), "{puts:?}");
            let recorded = recorded(&db, "team").await;
            let times: Vec<i64> = recorded.iter().map(|(_, _, from)| from.0).collect();
            assert_eq!(times, (5..13).collect::<Vec<_>>());
            let last = get(&db, "team").await.unwrap().unwrap().terms.limits["tpl_run"];
            assert_eq!(recorded.last().map(|(_, units, _)| *units), Some(last));
        })
        .await;
    }
}
