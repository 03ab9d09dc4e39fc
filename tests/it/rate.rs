//! Rates: per key, and per address where no key is given; the same in the process and in Redis.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Answer, Backend, Client, Customer, Options, Server, Stopwatch, Upstream, usage_cents};

/// A case per database and per place where rates are counted.
macro_rules! everywhere {
    ($($name:ident),+ $(,)?) => {$(
        mod $name {
            use crate::harness::{Backend, Options};

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite_in_process() {
                let backend = Backend::sqlite().await;
                super::$name(Options::on(&backend)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn sqlite_redis() {
                let backend = Backend::sqlite().await;
                super::$name(Options::on(&backend).with_redis()).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres_in_process() {
                let backend = Backend::postgres().await;
                super::$name(Options::on(&backend)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn postgres_redis() {
                let backend = Backend::postgres().await;
                super::$name(Options::on(&backend).with_redis()).await;
            }
        }
    )+};
}

async fn start(options: Options, per_minute: u32) -> Server {
    Server::start(options.var("RATE_LIMIT_PER_MINUTE", per_minute)).await
}

/// Asserts the three headers; what remains.
#[track_caller]
fn remaining(answer: &Answer, limit: u64) -> u64 {
    assert_eq!(answer.number_in("RateLimit-Limit"), limit, "{answer}");
    assert!(answer.number_in("RateLimit-Reset") <= 60, "{answer}");
    let remaining = answer.number_in("RateLimit-Remaining");
    assert!(remaining <= limit, "{answer}");
    remaining
}

/// How many may have been let in beyond one burst meanwhile, at most: what has come back; and on a
/// machine so busy that Redis did not answer in time, one more burst of the process's own.
async fn extra(server: &Server, per_minute: u64, watch: &Stopwatch) -> u64 {
    let fell_back = server.metric("redis_errors_total").await > 0.0;
    let refilled = watch.elapsed().as_millis() as u64 * per_minute / 60_000 + 1;
    refilled + if fell_back { per_minute } else { 0 }
}

/// Casts until the rate says no: how many were let in, and the refusal.
async fn use_up(client: &Client) -> (u64, Answer) {
    for let_in in 0..10_000 {
        let answer = client.echo().await;
        if answer.status == 429 {
            return (let_in, answer);
        }
        answer.expect(200);
    }
    panic!("no rate");
}

everywhere!(the_minutes_allowance_may_come_as_one_burst_and_then_it_is_429);
async fn the_minutes_allowance_may_come_as_one_burst_and_then_it_is_429(options: Options) {
    let server = start(options, 5).await;
    let customer = server.customer("acme").await;
    let watch = Stopwatch::start();
    let mut left = 5;
    for _ in 0..5 {
        let answer = customer.echo().await;
        answer.expect(200);
        let now_left = remaining(&answer, 5);
        assert!(now_left < left + extra(&server, 5, &watch).await, "{now_left} after {left}");
        left = now_left;
    }
    let (more, refused) = use_up(&customer).await;
    assert!(more <= extra(&server, 5, &watch).await, "{more} came through after the burst");
    let body = refused.expect_code(429, "rate_limited");
    assert_eq!(remaining(&refused, 5), 0);
    let retry_after = body["retry_after"].as_u64().unwrap();
    assert_eq!(refused.number_in("Retry-After"), retry_after);
    assert!((1..=12).contains(&retry_after), "{retry_after} s at 5 a minute");
    assert_eq!(usage_cents(&customer.usage("").await).0 as u64, 5 + more, "a 429 is not charged");
}

everywhere!(after_retry_after_there_is_room_again);
async fn after_retry_after_there_is_room_again(options: Options) {
    let server = start(options, 60).await;
    let customer = server.customer("acme").await;
    let (_, refused) = use_up(&customer).await;
    let seconds = refused.expect_code(429, "rate_limited")["retry_after"].as_u64().unwrap();
    assert!((1..=2).contains(&seconds), "{seconds} s at 60 a minute: it refills evenly");
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    customer.echo().await.expect(200);
}

everywhere!(every_answer_to_a_limited_call_tells_the_rate);
async fn every_answer_to_a_limited_call_tells_the_rate(options: Options) {
    let options = options.var("RATE_LIMIT_ANON_PER_MINUTE", 1_000).with_upstreams();
    let server = start(options, 20).await;
    let upstream = Upstream::start().await;
    let admin = server.admin();
    admin.put("/v1/spells/fail", upstream.spell("/fail")).await.expect(201);
    let customer = server.customer("acme").await;
    let expect = |answer: Answer, status: u16| {
        assert_eq!(answer.status, status, "{answer}");
        remaining(&answer, 20);
    };
    expect(customer.echo().await, 200);
    expect(customer.post("/v1/holds", json!({"amount_cents": 1})).await, 201);
    expect(customer.cast("no_such_spell", json!(null)).await, 404);
    expect(customer.cast("fail", json!(null)).await, 502);
    expect(customer.call("POST", "/v1/cast").body("application/json", "{").send().await, 400);
    expect(customer.cast_once("k", "echo", json!(1)).await, 200);
    expect(customer.cast_once("k", "echo", json!(1)).await, 200);
    expect(customer.cast_once("k", "echo", json!(2)).await, 422);
    customer.limit("monthly", 0).await;
    expect(customer.echo().await, 402);
    expect(customer.post("/v1/holds", json!({"amount_cents": 1})).await, 402);
    let account = format!("/v1/accounts/{}", customer.account_id);
    admin.patch(&account, json!({"suspended": true})).await.expect(200);
    expect(customer.echo().await, 403);
    admin.patch(&account, json!({"suspended": false})).await.expect(200);
    customer.limit("monthly", 1_000).await;
    let (_, refused) = use_up(&customer).await;
    expect(refused, 429);
    let refused = customer.post("/v1/holds", json!({"amount_cents": 1})).await;
    if refused.status != 201 {
        expect(refused, 429);
    }
    for answer in [server.anonymous().echo().await, server.anonymous().get("/v1/keys").await] {
        answer.expect_error(401);
        remaining(&answer, 1_000);
    }
}

everywhere!(over_both_limits_it_is_402_and_takes_nothing_from_the_rate);
async fn over_both_limits_it_is_402_and_takes_nothing_from_the_rate(options: Options) {
    let server = start(options, 30).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 5).await;
    let watch = Stopwatch::start();
    let mut left = 30;
    for _ in 0..5 {
        let answer = customer.echo().await;
        answer.expect(200);
        left = remaining(&answer, 30);
    }
    for _ in 0..50 {
        let answer = customer.echo().await;
        answer.expect_code(402, "budget_exceeded");
        assert!(remaining(&answer, 30) >= left, "a 402 took from the rate: {answer}");
    }
    customer.limit("monthly", 1_000).await;
    let (let_in, _) = use_up(&customer).await;
    assert!(let_in >= 25, "only {let_in} of the 25 that were left");
    assert!(let_in <= 25 + extra(&server, 30, &watch).await, "{let_in} is more than the rate");
    // Now over the rate; and when over the limit too, the limit speaks first.
    customer.limit("monthly", 5).await;
    for _ in 0..10 {
        customer.echo().await.expect_code(402, "budget_exceeded");
        let held = customer.post("/v1/holds", json!({"amount_cents": 1})).await;
        held.expect_code(402, "budget_exceeded");
    }
}

everywhere!(refused_at_once_by_both_they_are_402_and_the_allowance_is_whole);
async fn refused_at_once_by_both_they_are_402_and_the_allowance_is_whole(options: Options) {
    let server = start(options, 10).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 0).await;
    let client = customer.client();
    let answers = crate::harness::storm(32, 200, move |_| {
        let client = client.clone();
        async move { client.echo().await }
    })
    .await;
    for answer in &answers {
        answer.expect_code(402, "budget_exceeded");
    }
    customer.limit("monthly", 1_000).await;
    let (let_in, _) = use_up(&customer).await;
    assert!(let_in >= 10, "only {let_in} of 10");
}

everywhere!(a_key_may_have_a_rate_of_its_own_and_keys_share_none);
async fn a_key_may_have_a_rate_of_its_own_and_keys_share_none(options: Options) {
    let server = start(options, 7).await;
    let admin = server.admin();
    let one = server.customer("acme").await;
    let two = one.another_key(&admin, json!({"rate_limit_per_minute": 3})).await;
    let three = one.another_key(&admin, json!({"rate_limit_per_minute": 12})).await;
    for (key, limit) in [(&one, 7), (&two, 3), (&three, 12)] {
        let watch = Stopwatch::start();
        let (let_in, refused) = use_up(key).await;
        assert!(
            (limit..=limit + extra(&server, limit, &watch).await).contains(&let_in),
            "{let_in} at {limit} a minute"
        );
        assert_eq!(remaining(&refused, limit), 0);
    }
    for bad in [json!(0), json!(-1), json!(1.5), json!("7")] {
        let body = json!({"name": "bad", "rate_limit_per_minute": bad});
        one.post("/v1/keys", body).await.expect_error(400);
    }
}

everywhere!(casts_and_holds_share_the_keys_rate);
async fn casts_and_holds_share_the_keys_rate(options: Options) {
    let server = start(options, 6).await;
    let customer = server.customer("acme").await;
    let mut let_in = 0;
    let watch = Stopwatch::start();
    for number in 0..40 {
        let answer = match number % 2 {
            0 => customer.echo().await,
            _ => customer.post("/v1/holds", json!({"amount_cents": 1})).await,
        };
        match answer.status {
            200 | 201 => let_in += 1,
            _ => drop(answer.expect_code(429, "rate_limited")),
        }
    }
    assert!((6..=6 + extra(&server, 6, &watch).await).contains(&let_in), "{let_in} at 6 a minute");
}

everywhere!(a_replay_takes_nothing_from_the_rate);
async fn a_replay_takes_nothing_from_the_rate(options: Options) {
    let server = start(options, 3).await;
    let customer = server.customer("acme").await;
    customer.cast_once("k", "echo", json!(1)).await.expect(200);
    for _ in 0..20 {
        customer.cast_once("k", "echo", json!(1)).await.expect(200);
    }
    let (let_in, _) = use_up(&customer).await;
    assert!(let_in >= 2, "only {let_in} of the 2 that were left");
    // And it is answered when nothing is left.
    customer.cast_once("k", "echo", json!(1)).await.expect(200);
}

everywhere!(refusals_of_strangers_are_limited_by_address_and_keys_are_not);
async fn refusals_of_strangers_are_limited_by_address_and_keys_are_not(options: Options) {
    // An address of its own, since tests share a Redis and come from one machine.
    let [one, two, three] = [random(), random(), random()];
    let address = format!("2001:db8:{one:x}:{two:x}::1");
    let elsewhere = format!("2001:db8:{one:x}:{three:x}::1");
    let options = options.var("RATE_LIMIT_ANON_PER_MINUTE", 4).var("TRUSTED_PROXIES", "127.0.0.1");
    let server = start(options, 1_000).await;
    let customer = server.customer("acme").await;
    let stranger = |key: &str| {
        let call = server.anonymous().with_key(key).call("GET", "/v1/keys");
        call.header("X-Forwarded-For", &address).send()
    };
    let watch = Stopwatch::start();
    let mut refused = 0;
    let over = loop {
        let answer = stranger(&format!("sk_live_{refused:040}")).await;
        match answer.status {
            401 => drop(answer.expect_error(401)),
            _ => break answer,
        }
        remaining(&answer, 4);
        refused += 1;
        assert!(refused < 100, "no limit");
    };
    assert!((4..=4 + extra(&server, 4, &watch).await).contains(&refused), "{refused} at 4 a minute");
    let body = over.expect_code(429, "rate_limited");
    assert_eq!(over.number_in("Retry-After"), body["retry_after"].as_u64().unwrap());
    assert_eq!(remaining(&over, 4), 0);
    // A good key from that address is not held back, on any route.
    for _ in 0..10 {
        let call = customer.casting("echo", json!(1)).header("X-Forwarded-For", &address);
        call.send().await.expect(200);
        customer.call("GET", "/v1/keys").header("X-Forwarded-For", &address).send().await.expect(200);
    }
    // Nor is what needs no key.
    server.anonymous().call("GET", "/healthz").header("X-Forwarded-For", &address).send().await.expect(200);
    // And another address has its own.
    let call = server.anonymous().call("GET", "/v1/keys").header("X-Forwarded-For", &elsewhere);
    call.send().await.expect_error(401);
}

fn random() -> u16 {
    uuid::Uuid::now_v7().as_u128() as u16
}

everywhere!(reads_health_and_metrics_are_not_limited);
async fn reads_health_and_metrics_are_not_limited(options: Options) {
    let server = start(options, 2).await;
    let customer = server.customer("acme").await;
    use_up(&customer).await;
    for _ in 0..20 {
        for path in [
            "/v1/keys",
            "/v1/spells",
            "/v1/casts",
            "/v1/holds",
            "/v1/budgets/usage",
            "/v1/usage",
            "/v1/budgets?all=true",
        ] {
            customer.get(path).await.expect(200);
        }
        for path in ["/healthz", "/health", "/ready", "/metrics"] {
            assert_eq!(server.anonymous().get(path).await.status, 200, "{path}");
        }
        customer.limit("monthly", 1_000).await;
    }
    let key = customer.post("/v1/keys", json!({"name": "k"})).await.expect(201);
    customer.delete(&format!("/v1/keys/{}", key["id"].as_str().unwrap())).await;
}

/// These differ by neither database nor limiter in any way that they could see.
mod forwarded_addresses {
    use super::*;

    async fn statuses(client: &Client, forwarded: &[&str]) -> Vec<u16> {
        let mut statuses = Vec::new();
        for address in forwarded {
            let call = client.call("GET", "/v1/keys").header("X-Forwarded-For", address);
            statuses.push(call.send().await.status);
        }
        statuses
    }

    #[tokio::test]
    async fn are_not_believed_from_who_is_no_trusted_proxy() {
        let backend = Backend::sqlite().await;
        let server = Server::start(Options::on(&backend).var("RATE_LIMIT_ANON_PER_MINUTE", 2)).await;
        let given = statuses(server.anonymous(), &["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"]).await;
        assert_eq!(given[..2], [401, 401]);
        assert!(given.contains(&429), "{given:?}");
    }

    #[tokio::test]
    async fn are_read_from_the_last_one_that_no_trusted_proxy_wrote() {
        let backend = Backend::sqlite().await;
        let options = Options::on(&backend).var("RATE_LIMIT_ANON_PER_MINUTE", 2);
        let server = Server::start(options.var("TRUSTED_PROXIES", "127.0.0.0/8,198.51.100.0/24")).await;
        // Who forges an address in front of its own gains nothing by it.
        let forged = ["192.0.2.1, 192.0.2.9", "192.0.2.2, 192.0.2.9, 198.51.100.7", "192.0.2.3,192.0.2.9"];
        assert_eq!(statuses(server.anonymous(), &forged).await, [401, 401, 429]);
        assert_eq!(statuses(server.anonymous(), &["192.0.2.1", "garbage", ""]).await[0], 401);
    }
}

/// What a customer is told to be left is what it can use.
#[tokio::test]
async fn what_remains_can_be_used() {
    let backend = Backend::sqlite().await;
    let server = start(Options::on(&backend), 9).await;
    let customer: Customer = server.customer("acme").await;
    let left = remaining(&customer.echo().await, 9);
    let (let_in, _) = use_up(&customer).await;
    assert!(let_in >= left, "{let_in} of the {left} promised");
}
