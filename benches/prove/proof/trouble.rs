//! What goes wrong while the clients ask.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{
    books::{Limit, Scope},
    row::Trouble,
    stage::{EDGE, Stage, time_of},
    world::{ACCOUNTS, Dice, World},
};
use crate::stripe_events::Purchase;

const SECOND: Duration = Duration::from_secs(1);

/// Waits that long; whether the load is still on then.
async fn goes_on(over: &CancellationToken, wait: Duration) -> bool {
    over.run_until_cancelled(tokio::time::sleep(wait)).await.is_some()
}

/// Makes trouble until the load is `over`, and gives in a few words what there was of it. The stage is
/// whole again then.
pub async fn make(
    trouble: Trouble,
    stage: &mut Stage,
    world: &World,
    limits: &Mutex<Vec<Limit>>,
    dice: &mut Dice,
    over: &CancellationToken,
) -> String {
    let mut times = 0;
    match trouble {
        Trouble::Nothing | Trouble::Upstreams => {
            over.cancelled().await;
            String::new()
        }
        Trouble::Kills => {
            while goes_on(over, SECOND).await {
                let victim = dice.pick(stage.servers.len());
                let server = &mut stage.servers[victim];
                let port = server.port();
                server.kill9();
                server.restart().await;
                assert_eq!(server.port(), port, "its clients would not find it again");
                times += 1;
            }
            format!("{times} kills")
        }
        Trouble::Redis | Trouble::Cuts => {
            while goes_on(over, SECOND).await {
                if let Some(proxy) = &stage.proxy {
                    proxy.cut().await;
                    tokio::time::sleep(SECOND).await;
                    proxy.restore().await;
                }
                times += 1;
            }
            match trouble {
                Trouble::Cuts => format!("{times} cuts"),
                _ => format!("{times} stops, {} errors", stage.metric("redis_errors_total").await),
            }
        }
        Trouble::Clock => {
            over.cancelled().await;
            let time = time_of(&stage.servers[0]).await;
            assert!(time.as_str() > EDGE, "{time} is not over the edge");
            "day, week, month, year".to_owned()
        }
        Trouble::Limits => {
            while goes_on(over, SECOND / 8).await {
                times += usize::from(change_a_limit(stage, world, limits, dice).await);
            }
            format!("{times} changes")
        }
        Trouble::Webhooks => {
            let mut credits = [0; ACCOUNTS];
            while goes_on(over, SECOND / 12).await {
                let account = dice.pick(ACCOUNTS);
                sell_credits(stage, world, limits, dice, account, &mut credits[account]).await;
                times += 1;
            }
            format!("{times} purchases")
        }
    }
}

async fn change_a_limit(stage: &Stage, world: &World, limits: &Mutex<Vec<Limit>>, dice: &mut Dice) -> bool {
    let (number, limit) = {
        let limits = limits.lock().unwrap();
        let number = dice.pick(limits.len());
        (number, limits[number].clone())
    };
    let cents = (limit.highest_ever() * dice.roll(10, 110) / 100).max(1);
    let doors = stage.doors();
    let client = world.customers[limit.account][0].at(&doors[dice.pick(doors.len())]);
    let asked = Instant::now();
    let changed = world.set(limit.account, limit.scope, limit.period, cents, &client).await;
    if changed {
        limits.lock().unwrap()[number].changed(asked, cents);
    }
    changed
}

/// Has an account buy credits: Stripe tells of each payment three times at once, to any process.
async fn sell_credits(
    stage: &Stage,
    world: &World,
    limits: &Mutex<Vec<Limit>>,
    dice: &mut Dice,
    account: usize,
    credits: &mut i64,
) {
    let bought = dice.roll(10, 60);
    let buyer = &world.customers[account][0];
    let purchase = Purchase::open(&stage.stripe, buyer, json!({ "credits": bought })).await;
    let event = purchase.paid();
    let doors = stage.doors();
    let asked = Instant::now();
    let deliveries = (0..3).map(|number| event.deliver(&doors[number % doors.len()]));
    for delivery in futures_util::future::join_all(deliveries).await {
        delivery.expect(200);
    }
    *credits += bought;
    let mut limits = limits.lock().unwrap();
    let limit = limits.iter_mut().find(|limit| limit.account == account && limit.scope == Scope::Credits);
    limit.unwrap().changed(asked, *credits);
}
