//! Two processes on one PostgreSQL are one platform.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;

use crate::harness::{
    Backend, Client, Options, Server, Stopwatch, Upstream, all_of, eventually, names, postgres, storm,
    usage_cents,
};

/// What the contract gives every replica to hear of a key's end, and some slack to ask.
const HEARD_WITHIN: Duration = Duration::from_millis(1_300);

async fn two_of(options: Options) -> (Server, Server) {
    tokio::join!(Server::start(options.clone()), Server::start(options))
}

/// Asks until the other replica answers so.
async fn until_status(client: &Client, status: u16, what: &str) {
    eventually(HEARD_WITHIN, what, || async { (client.echo().await.status == status).then_some(()) }).await;
}

postgres!(a_key_deleted_on_one_is_refused_on_the_other_within_a_second);
async fn a_key_deleted_on_one_is_refused_on_the_other_within_a_second(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend)).await;
    let customer = one.customer("acme").await;
    for _ in 0..3 {
        let doomed = customer.another_key(&one.admin(), json!({})).await.at(two.anonymous());
        // In use on the other, so that it is known there.
        for _ in 0..20 {
            doomed.echo().await.expect(200);
        }
        let keys = all_of(&customer, "/v1/keys?limit=1000").await;
        let doomed_id = names(&keys, "id").into_iter().find(|id| *id != customer.key_id).unwrap();
        assert_eq!(customer.delete(&format!("/v1/keys/{doomed_id}")).await.status, 204);
        until_status(&doomed, 401, "the deleted key is refused on the other replica").await;
        doomed.get("/v1/keys").await.expect_error(401);
    }
}

postgres!(a_key_rotated_on_one_is_refused_on_the_other_and_the_new_one_taken);
async fn a_key_rotated_on_one_is_refused_on_the_other_and_the_new_one_taken(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend)).await;
    let customer = one.customer("acme").await;
    let old = customer.at(two.anonymous());
    old.echo().await.expect(200);
    let rotated = customer.post(&format!("/v1/keys/{}/rotate", customer.key_id), json!({})).await.expect(200);
    two.anonymous().with_key(rotated["api_key"].as_str().unwrap()).echo().await.expect(200);
    until_status(&old, 401, "the old secret is refused on the other replica").await;
}

postgres!(a_key_made_on_one_is_taken_on_the_other_at_once);
async fn a_key_made_on_one_is_taken_on_the_other_at_once(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend)).await;
    for number in 0..10 {
        let customer = one.customer(&format!("customer {number}")).await;
        customer.at(two.anonymous()).echo().await.expect(200);
    }
}

postgres!(a_budget_changed_on_one_acts_on_the_next_cast_on_the_other);
async fn a_budget_changed_on_one_acts_on_the_next_cast_on_the_other(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend)).await;
    let here = one.customer("acme").await;
    let there = here.at(two.anonymous());
    for round in 0..10 {
        let spent = usage_cents(&there.usage("").await).1;
        here.limit("monthly", spent).await;
        let refusal = there.echo().await.expect_code(402, "budget_exceeded");
        assert_eq!(refusal["hard_limit_cents"], spent, "in round {round}");
        here.limit("monthly", spent + 1).await;
        there.echo().await.expect(200);
        here.echo().await.expect_code(402, "budget_exceeded");
        assert_eq!(here.delete("/v1/budgets").await.status, 204);
        there.echo().await.expect(200);
    }
}

postgres!(an_account_suspended_on_one_casts_nothing_on_the_other);
async fn an_account_suspended_on_one_casts_nothing_on_the_other(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend)).await;
    let customer = one.customer("acme").await;
    let there = customer.at(two.anonymous());
    there.echo().await.expect(200);
    let path = format!("/v1/accounts/{}", customer.account_id);
    one.admin().patch(&path, json!({"suspended": true})).await.expect(200);
    until_status(&there, 403, "the suspended account is refused on the other replica").await;
    one.admin().patch(&path, json!({"suspended": false})).await.expect(200);
    until_status(&there, 200, "the account casts again on the other replica").await;
}

postgres!(a_spell_put_on_one_is_cast_on_the_other);
async fn a_spell_put_on_one_is_cast_on_the_other(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend)).await;
    let customer = one.customer("acme").await;
    let there = customer.at(two.anonymous());
    let priced = |cents: i64| json!({"kind": "echo", "price": {"flat_cents": cents}});
    one.admin().put("/v1/spells/fresh", priced(2)).await.expect(201);
    let heard = |cents: i64| {
        let there = there.clone();
        async move {
            let answer = there.cast("fresh", json!(1)).await;
            (answer.status == 200 && answer.body()["cost_cents"] == cents).then_some(())
        }
    };
    eventually(HEARD_WITHIN, "the new spell is known", || heard(2)).await;
    one.admin().put("/v1/spells/fresh", priced(5)).await.expect(200);
    eventually(HEARD_WITHIN, "the new price is known", || heard(5)).await;
    one.admin().delete("/v1/spells/fresh").await;
    eventually(HEARD_WITHIN, "the spell is gone", || async {
        (there.cast("fresh", json!(1)).await.status == 404).then_some(())
    })
    .await;
}

postgres!(an_idempotency_key_is_one_on_both);
async fn an_idempotency_key_is_one_on_both(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    one.admin().put("/v1/spells/post", upstream.spell("/json")).await.expect(201);
    let here = one.customer("acme").await;
    let there = here.at(two.anonymous());
    eventually(HEARD_WITHIN, "the spell is known", || async {
        names(&all_of(&there, "/v1/spells?limit=1000").await, "name")
            .contains(&"post".to_owned())
            .then_some(())
    })
    .await;
    let clients = [here.client(), there.clone()];
    let answers = storm(32, 64, move |number| {
        let client = clients[number % 2].clone();
        async move { client.cast_once("one", "post", json!(1)).await }
    })
    .await;
    let mut given = BTreeSet::new();
    for answer in &answers {
        match answer.status {
            200 => drop(given.insert(&answer.text)),
            _ => drop(answer.expect_code(409, "in_progress")),
        }
    }
    assert_eq!((given.len(), upstream.calls("/json")), (1, 1), "{given:?}");
    assert_eq!(usage_cents(&there.usage("").await), (1, 1, 0));
}

postgres!(a_hold_made_on_one_is_settled_on_the_other);
async fn a_hold_made_on_one_is_settled_on_the_other(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend)).await;
    let here = one.customer("acme").await;
    let there = here.at(two.anonymous());
    let hold = here.post("/v1/holds", json!({"amount_cents": 9})).await.expect(201);
    let path = format!("/v1/holds/{}/settle", hold["id"].as_str().unwrap());
    let first = there.post(&path, json!({"amount_cents": 4})).await;
    first.expect(200);
    assert_eq!(here.post(&path, json!({"amount_cents": 4})).await.text, first.text);
    assert_eq!(usage_cents(&here.usage("").await), (1, 4, 0));
}

postgres!(what_one_held_when_it_was_killed_comes_back_on_the_other);
async fn what_one_held_when_it_was_killed_comes_back_on_the_other(backend: Backend) {
    let (mut one, two) = two_of(Options::on(&backend)).await;
    let here = one.customer("acme").await;
    let there = here.at(two.anonymous());
    here.post("/v1/holds", json!({"amount_cents": 9, "ttl_seconds": 1})).await.expect(201);
    one.kill9();
    eventually(Duration::from_secs(20), "the other sweeps it", || async {
        (there.usage("").await["reserved_cents"] == 0).then_some(())
    })
    .await;
}

postgres!(with_redis_both_count_one_rate);
async fn with_redis_both_count_one_rate(backend: Backend) {
    let (one, two) = two_of(Options::on(&backend).with_redis().var("RATE_LIMIT_PER_MINUTE", 20)).await;
    let here = one.customer("acme").await;
    let clients = [here.client(), here.at(two.anonymous())];
    let watch = Stopwatch::start();
    let answers = storm(16, 80, move |number| {
        let client = clients[number % 2].clone();
        async move { client.echo().await }
    })
    .await;
    let let_in = answers.iter().filter(|answer| answer.status == 200).count() as u128;
    let refilled = watch.elapsed().as_millis() * 20 / 60_000 + 1;
    assert!(let_in >= 20, "{let_in} at 20 a minute over two processes");
    // On a machine so busy that Redis did not answer in time, the processes count on their own.
    if one.metric("redis_errors_total").await + two.metric("redis_errors_total").await == 0.0 {
        assert!(let_in <= 20 + refilled, "{let_in} at 20 a minute over two processes");
    }
}

postgres!(when_one_is_killed_the_other_goes_on);
async fn when_one_is_killed_the_other_goes_on(backend: Backend) {
    let (mut one, two) = two_of(Options::on(&backend)).await;
    let here = one.customer("acme").await;
    let there = here.at(two.anonymous());
    here.limit("monthly", 1_000_000).await;
    let client = here.client();
    let load: Vec<_> = (0..16)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { while client.casting("echo", json!(1)).try_send().await.is_ok() {} })
        })
        .collect();
    eventually(Duration::from_secs(30), "some load", || async {
        (usage_cents(&there.usage("").await).0 > 100).then_some(())
    })
    .await;
    one.kill9();
    // The account that was busy there is not locked here.
    eventually(Duration::from_secs(10), "the other casts", || async {
        (there.echo().await.status == 200).then_some(())
    })
    .await;
    for task in load {
        task.await.unwrap();
    }
    for _ in 0..20 {
        there.echo().await.expect(200);
    }
}
