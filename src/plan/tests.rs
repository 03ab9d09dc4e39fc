//! The catalogue on both databases.

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
        let plan =
            Plan { code: "team".to_owned(), terms: full.clone(), created_at: Time(1), updated_at: Time(1) };
        assert_eq!(made, Change::Made(plan.clone()));
        assert_eq!(get(&db, "team").await.unwrap(), Some(plan));
        let first = version(&db, "team").await;

        let taken = put(&db, "other", full.clone(), "free", Time(2)).await.unwrap();
        assert_eq!(taken, Change::PriceTaken("team".to_owned()));
        assert_eq!(get(&db, "other").await.unwrap(), None);

        let Change::Replaced(plan) = put(&db, "team", terms("Team"), "free", Time(3)).await.unwrap() else {
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

#[tokio::test(flavor = "multi_thread")]
async fn of_those_who_make_a_plan_at_once_one_does() {
    each_backend(|db| async move {
        for code in ["team", "free"] {
            let made = (1..=8).map(|number| create(&db, code, units(Period::Daily, number), "free", Time(5)));
            let made = futures_util::future::join_all(made).await;
            let mut made: Vec<Plan> = made.into_iter().filter_map(Result::unwrap).collect();
            let plan = made.pop().unwrap();
            assert_eq!(made, [], "{code}");
            assert_eq!(get(&db, code).await.unwrap().as_ref(), Some(&plan));
            assert_eq!(recorded(&db, code).await, [(Period::Daily, plan.terms.limits["tpl_run"], Time(5))]);
        }
        assert_eq!(defaults(&db).await, ["free"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn edits_at_once_keep_what_they_do_not_name() {
    each_backend(|db| async move {
        let before = Terms { included_credits: 5, ..units(Period::Daily, 1) };
        let made = create(&db, "team", before.clone(), "free", Time(1)).await.unwrap().unwrap();
        let limits = |units| Some(BTreeMap::from([("images".to_owned(), Some(units))]));
        let edits = [
            Edit { name: Some("Renamed".to_owned()), ..Edit::default() },
            Edit { price_cents: Some(7), ..Edit::default() },
            Edit { period: Some("monthly".to_owned()), ..Edit::default() },
            Edit { limits: limits(3), ..Edit::default() },
        ];
        let edits = edits.map(|changed| edit(&db, "team", changed, Time(2)));
        for edited in futures_util::future::join_all(edits).await {
            assert!(matches!(edited, Ok(Edited::Done(_))), "{edited:?}");
        }
        let after = Terms {
            name: "Renamed".to_owned(),
            price_cents: 7,
            period: Period::Monthly,
            limits: BTreeMap::from([("images".to_owned(), 3), ("tpl_run".to_owned(), 1)]),
            ..before
        };
        let plan = Plan { terms: after, updated_at: Time(2), ..made };
        assert_eq!(get(&db, "team").await.unwrap().as_ref(), Some(&plan));
        assert_eq!(recorded(&db, "team").await.len(), 3, "as it was made, its period and its limits");

        let invalid = edit(&db, "team", Edit { limits: limits(-1), ..Edit::default() }, Time(3)).await;
        assert!(matches!(invalid, Ok(Edited::Invalid(_))), "{invalid:?}");
        for nothing in ["none", "", "a\0"] {
            assert_eq!(edit(&db, nothing, Edit::default(), Time(3)).await.unwrap(), Edited::Absent);
        }
        assert_eq!(get(&db, "team").await.unwrap(), Some(plan));
    })
    .await;
}
