//! `Idempotency-Key`: one effect, one charge, one answer, however often it is asked for.

use std::{collections::BTreeSet, time::Duration};

use serde_json::json;

use crate::harness::{Backend, Options, Server, Upstream, both, eventually, storm, usage_cents};

both!(a_replay_gives_the_first_answer_and_is_charged_once);
async fn a_replay_gives_the_first_answer_and_is_charged_once(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 1).await;
    let first = customer.cast_once("once", "echo", json!({"n": [1, 2.50]})).await;
    first.expect(200);
    // Though nothing is left to spend.
    for _ in 0..5 {
        let again = customer.cast_once("once", "echo", json!({"n": [1, 2.50]})).await;
        assert_eq!((again.status, &again.text), (200, &first.text));
    }
    assert_eq!(usage_cents(&customer.usage("").await), (1, 1, 0));
    customer.cast_once("twice", "echo", json!({"n": [1, 2.50]})).await.expect_code(402, "budget_exceeded");
}

both!(of_64_at_once_with_one_key_one_is_charged);
async fn of_64_at_once_with_one_key_one_is_charged(backend: Backend) {
    let server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    server.admin().put("/v1/spells/post", upstream.spell("/json")).await.expect(201);
    let customer = server.customer("acme").await;
    for spell in ["echo", "post"] {
        let client = customer.client();
        let answers = storm(64, 64, move |_| {
            let client = client.clone();
            async move { client.cast_once(&format!("the-one-{spell}"), spell, json!(1)).await }
        })
        .await;
        let mut given = BTreeSet::new();
        for answer in &answers {
            match answer.status {
                200 => drop(given.insert(&answer.text)),
                _ => drop(answer.expect_code(409, "in_progress")),
            }
        }
        assert_eq!(given.len(), 1, "one answer for all: {given:?}");
        let settled = customer.cast_once(&format!("the-one-{spell}"), spell, json!(1)).await;
        assert_eq!((settled.status, &settled.text), (200, *given.first().unwrap()));
    }
    assert_eq!(upstream.calls("/json"), 1);
    assert_eq!(usage_cents(&customer.usage("").await), (2, 2, 0));
}

both!(while_the_first_runs_the_same_key_is_409_in_progress);
async fn while_the_first_runs_the_same_key_is_409_in_progress(backend: Backend) {
    let server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    server.admin().put("/v1/spells/gate", upstream.spell("/gate")).await.expect(201);
    let customer = server.customer("acme").await;
    let client = customer.client();
    let first = tokio::spawn(async move { client.cast_once("slow", "gate", json!(1)).await });
    upstream.wait_for_calls("/gate", 1).await;
    customer.cast_once("slow", "gate", json!(1)).await.expect_code(409, "in_progress");
    customer.cast_once("slow", "gate", json!(2)).await.expect_error(422);
    upstream.open_gate();
    let first = first.await.unwrap();
    first.expect(200);
    let again = customer.cast_once("slow", "gate", json!(1)).await;
    assert_eq!((again.status, &again.text), (200, &first.text));
    assert_eq!(upstream.calls("/gate"), 1);
    assert_eq!(usage_cents(&customer.usage("").await), (1, 1, 0));
}

both!(another_body_under_the_same_key_is_422);
async fn another_body_under_the_same_key_is_422(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    server.admin().put("/v1/spells/other", json!({"kind": "echo"})).await.expect(201);
    let customer = server.customer("acme").await;
    let first = customer.cast_once("k", "echo", json!({"a": 1})).await;
    first.expect(200);
    customer.cast_once("k", "echo", json!({"a": 2})).await.expect_error(422);
    customer.cast_once("k", "other", json!({"a": 1})).await.expect_error(422);
    let on_holds = customer.call("POST", "/v1/holds").json(&json!({"amount_cents": 1}));
    on_holds.header("Idempotency-Key", "k").send().await.expect_error(422);
    let again = customer.cast_once("k", "echo", json!({"a": 1})).await;
    assert_eq!((again.status, &again.text), (200, &first.text));
    assert_eq!(usage_cents(&customer.usage("").await), (1, 1, 0));
}

both!(keys_are_the_accounts_own);
async fn keys_are_the_accounts_own(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    let colleague = acme.another_key(&server.admin(), json!({})).await;
    let first = acme.cast_once("shared", "echo", json!(1)).await;
    let strangers = other.cast_once("shared", "echo", json!(1)).await;
    assert_ne!(first.expect(200)["id"], strangers.expect(200)["id"]);
    other.cast_once("theirs", "echo", json!("secret")).await.expect(200);
    acme.cast_once("theirs", "echo", json!("guess")).await.expect(200);
    let colleagues = colleague.cast_once("shared", "echo", json!(1)).await;
    assert_eq!(colleagues.text, first.text, "two keys of one account share them");
    assert_eq!(usage_cents(&acme.usage("").await), (2, 2, 0));
    assert_eq!(usage_cents(&other.usage("").await), (2, 2, 0));
}

both!(what_was_refused_before_it_ran_is_not_kept);
async fn what_was_refused_before_it_ran_is_not_kept(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    customer.limit("monthly", 0).await;
    customer.cast_once("over", "echo", json!(1)).await.expect_code(402, "budget_exceeded");
    customer.cast_once("unknown", "later", json!(1)).await.expect_error(404);
    let malformed =
        customer.call("POST", "/v1/cast").body("application/json", "{").header("Idempotency-Key", "bad");
    malformed.send().await.expect_error(400);
    let account = format!("/v1/accounts/{}", customer.account_id);
    admin.patch(&account, json!({"suspended": true})).await.expect(200);
    customer.cast_once("suspended", "echo", json!(1)).await.expect_code(403, "account_suspended");

    customer.limit("monthly", 100).await;
    admin.put("/v1/spells/later", json!({"kind": "echo"})).await.expect(201);
    admin.patch(&account, json!({"suspended": false})).await.expect(200);
    customer.cast_once("over", "echo", json!(1)).await.expect(200);
    customer.cast_once("unknown", "later", json!(1)).await.expect(200);
    customer.cast_once("bad", "echo", json!(1)).await.expect(200);
    customer.cast_once("suspended", "echo", json!(1)).await.expect(200);
    assert_eq!(usage_cents(&customer.usage("").await), (4, 4, 0));
}

both!(what_was_over_the_rate_is_not_kept);
async fn what_was_over_the_rate_is_not_kept(backend: Backend) {
    let server = Server::start(Options::on(&backend).var("RATE_LIMIT_PER_MINUTE", 20)).await;
    let customer = server.customer("acme").await;
    let mut number = 0;
    let refused = loop {
        let answer = customer.cast_once(&number.to_string(), "echo", json!(1)).await;
        if answer.status != 200 {
            break answer;
        }
        number += 1;
        assert!(number < 1_000, "no rate");
    };
    let seconds = refused.expect_code(429, "rate_limited")["retry_after"].as_u64().unwrap();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    customer.cast_once(&number.to_string(), "echo", json!(1)).await.expect(200);
}

both!(a_failed_upstreams_answer_is_kept);
async fn a_failed_upstreams_answer_is_kept(backend: Backend) {
    let server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    let admin = server.admin();
    admin.put("/v1/spells/fail", upstream.spell("/fail")).await.expect(201);
    let slow = json!({"kind": "http", "url": upstream.url("/gate"), "timeout_ms": 200});
    admin.put("/v1/spells/slow", slow).await.expect(201);
    let customer = server.customer("acme").await;
    for (spell, path, status, code) in
        [("fail", "/fail", 502, "upstream_failed"), ("slow", "/gate", 504, "upstream_timeout")]
    {
        let first = customer.cast_once(spell, spell, json!(1)).await;
        first.expect_code(status, code);
        for _ in 0..3 {
            let again = customer.cast_once(spell, spell, json!(1)).await;
            assert_eq!((again.status, again.body()["id"].clone()), (status, first.body()["id"].clone()));
        }
        assert_eq!(upstream.calls(path), 1, "{path}");
    }
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 0));
}

both!(holds_are_made_once_per_key);
async fn holds_are_made_once_per_key(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let client = customer.client();
    let answers = storm(32, 64, move |_| {
        let call = client.call("POST", "/v1/holds").json(&json!({"amount_cents": 9}));
        async move { call.header("Idempotency-Key", "one-hold").send().await }
    })
    .await;
    let mut given = BTreeSet::new();
    for answer in &answers {
        match answer.status {
            201 => drop(given.insert(&answer.text)),
            _ => drop(answer.expect_code(409, "in_progress")),
        }
    }
    assert_eq!(given.len(), 1, "{given:?}");
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 9));
    let other = customer.call("POST", "/v1/holds").json(&json!({"amount_cents": 8}));
    other.header("Idempotency-Key", "one-hold").send().await.expect_error(422);
}

both!(the_first_answer_outlives_the_process);
async fn the_first_answer_outlives_the_process(backend: Backend) {
    let mut server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let first = customer.cast_once("kept", "echo", json!("ünï")).await;
    first.expect(200);
    server.kill9();
    server.restart().await;
    let again = customer.cast_once("kept", "echo", json!("ünï")).await;
    assert_eq!((again.status, &again.text), (200, &first.text));
    assert_eq!(usage_cents(&customer.usage("").await), (1, 1, 0));
}

both!(a_key_whose_first_cast_died_with_the_process_is_not_stuck);
async fn a_key_whose_first_cast_died_with_the_process_is_not_stuck(backend: Backend) {
    let mut server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    let gate = json!({"kind": "http", "url": upstream.url("/gate"), "timeout_ms": 1_000});
    server.admin().put("/v1/spells/gate", gate).await.expect(201);
    let customer = server.customer("acme").await;
    let call = customer.casting("gate", json!(1)).header("Idempotency-Key", "cut-short");
    let cut_short = tokio::spawn(call.try_send());
    upstream.wait_for_calls("/gate", 1).await;
    server.kill9();
    assert!(cut_short.await.unwrap().is_err(), "the process was gone");
    server.restart().await;
    upstream.open_gate();
    // Its hold lives for the upstream's time-out and a grace; then the key is free or has an end.
    let ended = eventually(Duration::from_secs(120), "the key is no longer in progress", || async {
        let answer = customer.cast_once("cut-short", "gate", json!(1)).await;
        (answer.status != 409).then_some(answer)
    })
    .await;
    assert!(ended.status < 500 || [502, 504].contains(&ended.status), "{ended}");
    let completed = i64::from(ended.status == 200);
    assert_eq!(usage_cents(&customer.usage("").await), (completed, completed, 0));
}

both!(odd_idempotency_keys_are_kept_apart_or_refused);
async fn odd_idempotency_keys_are_kept_apart_or_refused(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let mut ids = BTreeSet::new();
    let keys = ["a", "A", "a'", "a\";--", "{}", "0", "a/b", &"x".repeat(255)];
    for key in keys {
        let cast = customer.cast_once(key, "echo", json!(1)).await.expect(200);
        ids.insert(cast["id"].as_str().unwrap().to_owned());
    }
    assert_eq!(ids.len(), keys.len());
    for bad in ["".as_bytes(), "x".repeat(5_000).as_bytes(), b"\xff\xfe", "ключ".as_bytes()] {
        let call = customer.casting("echo", json!(1)).header_bytes("Idempotency-Key", bad);
        call.send().await.expect_error(400);
    }
    let spent = i64::try_from(keys.len()).unwrap();
    assert_eq!(usage_cents(&customer.usage("").await), (spent, spent, 0));
}
