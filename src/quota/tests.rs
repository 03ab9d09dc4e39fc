//! Quotas on the real books: at the same time, twice, and over the ends of windows.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;

use super::*;
use crate::{
    identity::account,
    plan::{self, Definition},
    store::testing::each_backend,
    telemetry::Metrics,
    window::Period,
};

const CHAT: Metered = Metered::Chat;

struct House {
    db: Db,
    ledger: Ledger,
}

impl House {
    async fn open(db: &Db, at: &str) -> House {
        plan::seed(db, "free", "usd", time(at)).await.unwrap();
        House::again(db)
    }

    /// Another replica on the same database.
    fn again(db: &Db) -> House {
        let (ledger, _) = Ledger::start(db.clone(), Arc::new(Metrics::new()));
        House { db: db.clone(), ledger }
    }

    async fn user(&self, name: &str, at: &str) -> AccountId {
        account::of_user(&self.db, name, time(at)).await.unwrap().id
    }

    async fn left(&self, user: &AccountId, at: Time) -> Left {
        match check(&self.ledger, user, at).await.unwrap() {
            Effect::Done(left) => left,
            other => panic!("{other:?}"),
        }
    }

    async fn debit(&self, user: &AccountId, units: i64, name: &str, at: Time) -> Effect {
        debit(&self.ledger, user, CHAT, units, name, at).await.unwrap()
    }

    async fn credit(&self, user: &AccountId, plan: &str, units: i64, name: &str, at: Time) -> Effect {
        let (order_id, plan_code) = (name.to_owned(), plan.to_owned());
        let order = Order { order_id, plan_code, units_chat: units, units_tpl: 0, payment: None };
        credit(&self.db, user, &order, at).await.unwrap()
    }

    async fn put_plan(&self, code: &str, period: &str, chat: i64, at: Time) {
        let definition = Definition {
            name: code.to_owned(),
            period: Some(period.to_owned()),
            limits: Some(BTreeMap::from([(CHAT.as_str().to_owned(), Some(chat))])),
            ..Definition::default()
        };
        plan::put(&self.db, code, definition.terms("usd").unwrap(), "free", at).await.unwrap();
    }
}

fn time(text: &str) -> Time {
    Time::parse(text).unwrap()
}

fn chat_left(effect: &Effect) -> i64 {
    match effect {
        Effect::Done(left) | Effect::Repeated(left) => left.chat,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plans_units_go_first_and_what_was_bought_stays() {
    each_backend(|db| async move {
        let (november, december) = (time("2026-11-21T00:00:00Z"), time("2026-12-01T00:00:00Z"));
        let house = House::open(&db, "2026-11-01T00:00:00Z").await;
        let user = house.user("u1", "2026-11-20T00:00:00Z").await;
        let left = house.left(&user, november).await;
        assert_eq!((left.chat, left.template, left.plan.as_deref()), (100, 20, Some("free")));
        assert_eq!(left.resets_at, Some(december));

        assert_eq!(chat_left(&house.debit(&user, 46, "r1", november).await), 54);
        assert!(matches!(house.debit(&user, 46, "r1", november).await, Effect::Repeated(left) if left.chat == 54));
        assert_eq!(house.debit(&user, 47, "r1", november).await, Effect::Reused);
        assert!(matches!(house.debit(&user, 55, "r2", november).await, Effect::Exceeded(left) if left.chat == 54));
        // What was refused left its name free.
        assert_eq!(chat_left(&house.debit(&user, 4, "r2", november).await), 50);

        assert_eq!(chat_left(&house.credit(&user, "free", 30, "o1", november).await), 80);
        assert!(matches!(house.credit(&user, "free", 30, "o1", november).await, Effect::Repeated(left) if left.chat == 80));
        assert_eq!(house.credit(&user, "free", 31, "o1", november).await, Effect::Reused);
        assert_eq!(house.credit(&user, "free", 30, "r1", november).await, Effect::Reused);
        assert_eq!(house.debit(&user, 46, "o1", november).await, Effect::Reused);
        assert_eq!(house.credit(&user, "no such plan", 30, "o2", november).await, Effect::NoPlan);

        assert_eq!(chat_left(&house.debit(&user, 60, "r3", november).await), 20);
        // The plan's are new, the 20 that were bought are still there.
        assert_eq!(house.left(&user, december).await.chat, 120);
        assert_eq!(chat_left(&house.debit(&user, 110, "r4", december).await), 10);
        assert_eq!(house.left(&user, time("2027-01-31T23:59:59.999Z")).await.chat, 110);
        // A name stays used, whatever the month.
        assert!(matches!(house.debit(&user, 46, "r1", december).await, Effect::Repeated(left) if left.chat == 54));
        let other = house.user("u2", "2026-11-20T00:00:00Z").await;
        assert_eq!(house.debit(&other, 46, "r1", november).await, Effect::Reused);

        let receipts = receipt::list(&db, &user, None, 9).await.unwrap();
        assert_eq!(receipts.len(), 1);
        assert_eq!((receipts[0].units_chat, receipts[0].status.as_str()), (30, "credited"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_plan_starts_at_once_and_coming_back_renews_nothing() {
    each_backend(|db| async move {
        let at = time("2026-11-21T00:00:00Z");
        let house = House::open(&db, "2026-11-01T00:00:00Z").await;
        let user = house.user("u1", "2026-11-20T00:00:00Z").await;
        house.debit(&user, 90, "r1", at).await;
        let credited = house.credit(&user, "pro_month", 5, "o1", at).await;
        let Effect::Done(left) = credited else { panic!("{credited:?}") };
        assert_eq!((left.chat, left.template, left.plan.as_deref()), (10_005, 200, Some("pro_month")));
        assert_eq!(chat_left(&house.debit(&user, 10_000, "r2", at).await), 5);
        // A second order of the same plan adds its units, and does not start the plan's own anew.
        assert_eq!(chat_left(&house.credit(&user, "pro_month", 1, "o2", at).await), 6);
        assert_eq!(chat_left(&house.credit(&user, "free", 0, "o3", at).await), 16);
        assert_eq!(chat_left(&house.credit(&user, "pro_month", 0, "o4", at).await), 6);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_that_changes_keeps_its_users_windows() {
    each_backend(|db| async move {
        let at = time("2026-11-21T12:00:00Z");
        let house = House::open(&db, "2026-11-01T00:00:00Z").await;
        let [active, idle] =
            [house.user("u1", "2026-11-02T00:00:00Z").await, house.user("u2", "2026-11-02T00:00:00Z").await];
        house.debit(&active, 40, "r1", at).await;
        house.put_plan("free", "daily", 7, at).await;
        let newcomer = house.user("u3", "2026-11-21T12:00:01Z").await;
        for (user, left) in [(&active, 60), (&idle, 100), (&newcomer, 7)] {
            assert_eq!(house.left(user, Time(at.0 + 5_000)).await.chat, left);
        }
        for user in [&active, &idle, &newcomer] {
            assert_eq!(house.left(user, time("2026-12-01T00:00:00Z")).await.chat, 7);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_same_time_every_unit_is_debited_once() {
    each_backend(|db| async move {
        let at = time("2026-11-21T00:00:00Z");
        let house = Arc::new(House::open(&db, "2026-11-01T00:00:00Z").await);
        let replicas = [house.clone(), Arc::new(House::again(&db))];
        let user = house.user("u1", "2026-11-20T00:00:00Z").await;
        assert_eq!(chat_left(&house.credit(&user, "free", 50, "order", at).await), 150);
        // 200 names, each twice, on both replicas: 75 of 2 units fit.
        let tasks = (0..400).map(|n| {
            let (house, user) = (replicas[n % 2].clone(), user.clone());
            tokio::spawn(async move { house.debit(&user, 2, &format!("r{}", n / 2), at).await })
        });
        let mut made = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            if let effect @ (Effect::Done(_) | Effect::Repeated(_)) = task.await.unwrap() {
                made.push(effect);
            }
        }
        let done = made.iter().filter(|effect| matches!(effect, Effect::Done(_))).count();
        assert_eq!((done, house.left(&user, at).await.chat), (75, 0));
        let distinct: BTreeSet<i64> = made.iter().map(chat_left).collect();
        assert_eq!(distinct.len(), 75, "each first answer is another one, and is given again as it was");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_name_at_the_same_time_is_one_effect() {
    each_backend(|db| async move {
        let at = time("2026-11-21T00:00:00Z");
        let replicas = [House::open(&db, "2026-11-01T00:00:00Z").await, House::again(&db)].map(Arc::new);
        for round in 0..8 {
            let users = [
                replicas[0].user(&format!("a{round}"), "2026-11-20T00:00:00Z").await,
                replicas[0].user(&format!("b{round}"), "2026-11-20T00:00:00Z").await,
            ];
            // Of one user a debit and a credit, of another one a debit: all by one name.
            let asked = (0..12).map(|n| {
                let (house, user) = (replicas[n % 2].clone(), users[usize::from(n % 3 == 2)].clone());
                let name = format!("name{round}");
                async move {
                    match n % 3 {
                        1 => house.credit(&user, "free", 10, &name, at).await,
                        _ => house.debit(&user, 10, &name, at).await,
                    }
                }
            });
            let (mut done, mut repeated, mut reused) = (0, 0, 0);
            for effect in join_all(asked).await {
                match effect {
                    Effect::Done(_) => done += 1,
                    Effect::Repeated(_) => repeated += 1,
                    Effect::Reused => reused += 1,
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((done, repeated, reused), (1, 3, 8));
            let mut chats =
                [replicas[0].left(&users[0], at).await.chat, replicas[0].left(&users[1], at).await.chat];
            chats.sort();
            assert!(chats == [90, 100] || chats == [100, 110], "{chats:?}");
        }
    })
    .await;
}

/// What the books should say, kept in the simplest way.
#[derive(Default)]
struct Model {
    versions: BTreeMap<String, Vec<Terms>>,
    plan: String,
    since: Time,
    /// What windows were opened with, and what was used of it.
    windows: BTreeMap<(String, Period, Time), (i64, i64)>,
    credited: i64,
}

impl Model {
    fn window(&self, at: Time) -> ((String, Period, Time), i64, Time) {
        let (terms, window) = terms::in_force(&self.versions[&self.plan], self.since, at).unwrap();
        let key = (self.plan.clone(), terms.period, window.start);
        (key, terms.limits[CHAT.as_str()], window.end.unwrap())
    }

    fn left(&self, at: Time) -> (i64, Time) {
        let (key, units, end) = self.window(at);
        let (granted, used) = self.windows.get(&key).copied().unwrap_or((units, 0));
        (granted - used + self.credited, end)
    }

    fn debit(&mut self, units: i64, at: Time) -> bool {
        if self.left(at).0 < units {
            return false;
        }
        let (key, fresh, _) = self.window(at);
        let (granted, used) = self.windows.entry(key).or_insert((fresh, 0));
        let own = units.min(*granted - *used);
        *used += own;
        self.credited -= units - own;
        true
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_books_go_as_a_model_does_while_time_walks() {
    each_backend(|db| async move {
        for seed in 1..=6u64 {
            let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut below = |most: i64| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                (random % most as u64) as i64
            };
            let start = time("2028-01-28T22:00:00Z");
            let house = House::again(&db);
            let plans = [format!("a{seed}"), format!("b{seed}")];
            let mut model = Model { plan: plans[0].clone(), since: start, ..Model::default() };
            for (plan, (name, period)) in
                plans.iter().zip([("monthly", Period::Monthly), ("daily", Period::Daily)])
            {
                house.put_plan(plan, name, 20, start).await;
                let limits = BTreeMap::from([(CHAT.as_str().to_owned(), 20)]);
                model.versions.insert(plan.clone(), vec![Terms { period, limits, from: start }]);
            }
            let user = account::of_user(&db, &format!("user{seed}"), start).await.unwrap().id;
            house.credit(&user, &plans[0], 0, &format!("{seed}/first"), start).await;
            let mut at = start;
            for step in 0..120 {
                let name = format!("{seed}/{step}");
                // Over midnights, the ends of months and of a February of 29 days, and a little back.
                at = Time(match below(6) {
                    0 => at.0 + below(40 * 86_400_000),
                    1 | 2 => at.0 + below(30 * 3_600_000),
                    3 => (at.0 - below(2_000)).max(start.0),
                    4 => model.left(at).1.0 - below(3),
                    _ => at.0 + below(10_000),
                });
                match below(8) {
                    0 => {
                        let (plan, units) = (plans[below(2) as usize].clone(), below(9));
                        house.credit(&user, &plan, units, &name, at).await;
                        model.credited += units;
                        if plan != model.plan {
                            (model.plan, model.since) = (plan, at);
                        }
                    }
                    1 => {
                        let (plan, units) = (&plans[below(2) as usize], below(30));
                        let period = [Period::Daily, Period::Monthly][below(2) as usize];
                        house.put_plan(plan, period.as_str(), units, at).await;
                        let versions = model.versions.get_mut(plan).unwrap();
                        let last = versions.last().unwrap();
                        let limits = BTreeMap::from([(CHAT.as_str().to_owned(), units)]);
                        if last.period != period || last.limits != limits {
                            let from = at.max(last.from);
                            versions.push(Terms { period, limits, from });
                        }
                    }
                    _ => {
                        let units = 1 + below(12);
                        let effect = house.debit(&user, units, &name, at).await;
                        let made = matches!(effect, Effect::Done(_));
                        assert_eq!(
                            made,
                            model.debit(units, at),
                            "seed {seed}, step {step}: {units} units at {at}"
                        );
                    }
                }
                let left = house.left(&user, at).await;
                let (expected, end) = model.left(at);
                assert_eq!(
                    (left.chat, left.resets_at),
                    (expected, Some(end)),
                    "seed {seed}, step {step} at {at}"
                );
            }
        }
    })
    .await;
}

/// What a budget of its plan says of a month's spend after casts of 1 cent.
async fn cast(house: &House, user: &AccountId, at: Time) -> bool {
    use crate::{
        id::{CastId, KeyId},
        ledger::Spending,
        money::Nanos,
    };
    let (key, spell) = (KeyId::from("key_1"), "echo".to_owned());
    let spending = Spending { key, spell, amount: Nanos(10_000_000), from_credits: false };
    let action = Action::Charge { cast: CastId::fresh(), spending, kept: None };
    let outcome = house.ledger.ask(Request { account: user.clone(), at, action }).await.unwrap();
    matches!(outcome, Outcome::Done)
}

async fn put_limit(house: &House, code: &str, cents: Option<i64>, at: Time) {
    let definition = Definition { name: code.to_owned(), hard_limit_cents: cents, ..Definition::default() };
    plan::put(&house.db, code, definition.terms("usd").unwrap(), "free", at).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn orders_for_other_plans_are_no_way_round_a_plans_hard_limit() {
    each_backend(|db| async move {
        let at = time("2026-11-21T00:00:00Z");
        let house = House::open(&db, "2026-11-01T00:00:00Z").await;
        put_limit(&house, "small", Some(10), at).await;
        put_limit(&house, "large", Some(25), at).await;
        put_limit(&house, "unlimited", None, at).await;
        let user = house.user("u1", "2026-11-20T00:00:00Z").await;
        for (order, (plan, casts, made)) in
            [("small", 8, 8), ("unlimited", 9, 9), ("large", 10, 8), ("small", 1, 0), ("unlimited", 1, 1)]
                .into_iter()
                .enumerate()
        {
            house.credit(&user, plan, 0, &format!("o{order}"), at).await;
            let mut done = 0;
            for _ in 0..casts {
                done += i32::from(cast(&house, &user, at).await);
            }
            assert_eq!(done, made, "order {order} of {plan}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plans_new_limit_holds_for_a_batch_that_waited_with_an_old_view_of_it() {
    statements! {
        HOLD_ACCOUNT = "SELECT id FROM accounts WHERE id = $1 {for_update}";
    }
    each_backend(|db| async move {
        let at = time("2026-11-21T00:00:00Z");
        let replicas = [House::open(&db, "2026-11-01T00:00:00Z").await, House::again(&db)];
        put_limit(&replicas[0], "free", Some(100), at).await;
        // Two whose casts share a lane, and so a batch.
        let mut users = vec![replicas[0].user("u0", "2026-11-20T00:00:00Z").await];
        for n in 1.. {
            let user = replicas[0].user(&format!("u{n}"), "2026-11-20T00:00:00Z").await;
            if replicas[0].ledger.lane_number(&user) == replicas[0].ledger.lane_number(&users[0]) {
                users.push(user);
                break;
            }
        }
        for user in &users {
            assert!(cast(&replicas[0], user, at).await && cast(&replicas[1], user, at).await);
        }
        // Somebody holds the first user's account, and a batch of both waits for it.
        let mut holder = db.begin().await.unwrap();
        let _: Vec<(String,)> = holder.all(&HOLD_ACCOUNT, binds![&users[0]]).await.unwrap();
        let waiting = {
            let house = House::again(&db);
            let users = users.clone();
            tokio::spawn(async move {
                let casts = (0..20).map(|n| cast(&house, &users[n % 2], at));
                join_all(casts).await.into_iter().filter(|done| *done).count()
            })
        };
        if db.backend() == crate::store::Backend::Postgres {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            put_limit(&replicas[0], "free", Some(5), at).await;
            assert!(cast(&replicas[1], &users[1], at).await);
        }
        holder.rollback().await.unwrap();
        waiting.await.unwrap();
        put_limit(&replicas[0], "free", Some(5), at).await;
        for user in &users {
            for house in &replicas {
                while cast(house, user, at).await {}
            }
            let mut tx = db.begin_read().await.unwrap();
            let window = Period::Monthly.window(at);
            let spent = ledger::spent_in_window(&mut tx, user, window, (None, None)).await.unwrap();
            tx.rollback().await.unwrap();
            // On SQLite nobody can change a plan while the batch waits: it comes first, ten to each.
            let most = if db.backend() == crate::store::Backend::Postgres { 5 } else { 12 };
            assert_eq!(spent.posted.0 / 10_000_000, most, "cents that were spent under a limit of 5");
        }
    })
    .await;
}
