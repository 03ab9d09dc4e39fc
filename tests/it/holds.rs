//! Holds: money set aside for code that runs elsewhere. Each ends once.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Answer, Backend, Client, Customer, Options, Server, all_of, both, eventually, names, shape, unix_now,
    usage_cents,
};

/// How far the server's idea of the time, which is the database's, may be from the test's.
const CLOCK_SLACK_MS: i64 = 1_000;

async fn hold(client: &Client, body: Value) -> String {
    let hold = client.post("/v1/holds", body).await.expect(201);
    hold["id"].as_str().unwrap().to_owned()
}

async fn settle(client: &Client, id: &str, amount_cents: i64) -> Answer {
    client.post(&format!("/v1/holds/{id}/settle"), json!({"amount_cents": amount_cents})).await
}

/// Waits for a hold's money to come back.
async fn until_nothing_is_held(customer: &Customer, limit: Duration) {
    eventually(limit, "what was held comes back", || async {
        (customer.usage("").await["reserved_cents"] == 0).then_some(())
    })
    .await;
}

#[track_caller]
fn milliseconds(time: &Value) -> i64 {
    let text = time.as_str().unwrap();
    assert!(text.ends_with('Z'), "{text} is not in UTC");
    text.parse::<jiff::Timestamp>().unwrap().as_millisecond()
}

both!(a_hold_sets_money_aside_for_300_seconds_or_as_long_as_asked);
async fn a_hold_sets_money_aside_for_300_seconds_or_as_long_as_asked(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    for (body, seconds) in [
        (json!({"amount_cents": 40}), 300),
        (json!({"amount_cents": 40, "ttl_seconds": null}), 300),
        (json!({"amount_cents": 40, "ttl_seconds": 1_000}), 1_000),
        (json!({"amount_cents": 40, "ttl_seconds": 604_800}), 604_800),
    ] {
        let before = unix_now();
        let hold = customer.post("/v1/holds", body).await.expect(201);
        let after = unix_now();
        shape(&hold, &["id", "amount_cents", "expires_at"]);
        assert_eq!(hold["amount_cents"], 40);
        let expires_at = milliseconds(&hold["expires_at"]);
        let expected = before + seconds * 1000 - CLOCK_SLACK_MS..=after + seconds * 1000 + CLOCK_SLACK_MS;
        assert!(expected.contains(&expires_at), "{expires_at} in {expected:?}");
    }
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 160));
    let listed = all_of(&customer, "/v1/holds?limit=3").await;
    assert_eq!(listed.len(), 4);
    assert!(listed.iter().all(|hold| hold["amount_cents"] == 40), "{listed:?}");
}

both!(held_money_counts_until_it_is_settled_and_the_rest_comes_back);
async fn held_money_counts_until_it_is_settled_and_the_rest_comes_back(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 10).await;
    let id = hold(&customer, json!({"amount_cents": 8})).await;
    let too_much = customer.post("/v1/holds", json!({"amount_cents": 3})).await;
    let refusal = too_much.expect_code(402, "budget_exceeded");
    for (field, value) in [("spent_cents", 0), ("reserved_cents", 8), ("requested_cents", 3)] {
        assert_eq!(refusal[field], value, "{field} of {refusal}");
    }
    let usage = customer.usage("").await;
    assert_eq!((usage_cents(&usage), &usage["remaining_cents"]), ((0, 0, 8), &json!(2)));
    settle(&customer, &id, 5).await.expect(200);
    let usage = customer.usage("").await;
    assert_eq!((usage_cents(&usage), &usage["remaining_cents"]), ((1, 5, 0), &json!(5)));
    hold(&customer, json!({"amount_cents": 5})).await;
}

both!(a_dropped_hold_costs_nothing);
async fn a_dropped_hold_costs_nothing(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 10).await;
    let id = hold(&customer, json!({"amount_cents": 10})).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
    let dropped = customer.delete(&format!("/v1/holds/{id}")).await;
    assert_eq!((dropped.status, dropped.text.as_str()), (204, ""));
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 0));
    customer.echo().await.expect(200);
}

both!(a_hold_for_a_spell_counts_against_that_spells_budget);
async fn a_hold_for_a_spell_counts_against_that_spells_budget(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let budget = json!({"period": "monthly", "hard_limit_cents": 5});
    customer.post("/v1/budgets?spell=echo", budget).await.expect(201);
    let id = hold(&customer, json!({"amount_cents": 5, "spell": "echo"})).await;
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["scope"], &refusal["reserved_cents"]), (&json!("spell:echo"), &json!(5)));
    hold(&customer, json!({"amount_cents": 5})).await;
    settle(&customer, &id, 4).await.expect(200);
    assert_eq!(usage_cents(&customer.usage("?spell=echo").await), (1, 4, 0));
    customer.echo().await.expect(200);
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(the_same_end_again_gives_the_first_answer);
async fn the_same_end_again_gives_the_first_answer(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let id = hold(&customer, json!({"amount_cents": 8})).await;
    let first = settle(&customer, &id, 5).await;
    first.expect(200);
    for _ in 0..3 {
        let again = settle(&customer, &id, 5).await;
        assert_eq!((again.status, &again.text), (200, &first.text));
    }
    assert_eq!(usage_cents(&customer.usage("").await), (1, 5, 0));
    let dropped = hold(&customer, json!({"amount_cents": 8})).await;
    for _ in 0..3 {
        assert_eq!(customer.delete(&format!("/v1/holds/{dropped}")).await.status, 204);
    }
    assert_eq!(usage_cents(&customer.usage("").await), (1, 5, 0));
}

both!(a_different_end_is_409_and_names_the_first);
async fn a_different_end_is_409_and_names_the_first(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let settled = hold(&customer, json!({"amount_cents": 8})).await;
    settle(&customer, &settled, 5).await.expect(200);
    for refused in [
        settle(&customer, &settled, 6).await,
        customer.delete(&format!("/v1/holds/{settled}")).await,
        customer.post(&format!("/v1/holds/{settled}/extend"), json!({"ttl_seconds": 60})).await,
    ] {
        let body = refused.expect_error(409).to_string();
        assert!(body.contains("settled") || body.contains("posted"), "the first end is not named: {body}");
    }
    let dropped = hold(&customer, json!({"amount_cents": 8})).await;
    assert_eq!(customer.delete(&format!("/v1/holds/{dropped}")).await.status, 204);
    for refused in [
        settle(&customer, &dropped, 5).await,
        customer.post(&format!("/v1/holds/{dropped}/extend"), json!({"ttl_seconds": 60})).await,
    ] {
        let body = refused.expect_error(409).to_string();
        let named =
            ["void", "released", "deleted", "dropped", "cancel"].iter().any(|word| body.contains(word));
        assert!(named, "the first end is not named: {body}");
    }
    assert_eq!(usage_cents(&customer.usage("").await), (1, 5, 0));
}

both!(more_than_was_held_is_booked_whole_and_marked);
async fn more_than_was_held_is_booked_whole_and_marked(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 10).await;
    let exact = hold(&customer, json!({"amount_cents": 4})).await;
    let exact = settle(&customer, &exact, 4).await.expect(200);
    let id = hold(&customer, json!({"amount_cents": 4})).await;
    let over = settle(&customer, &id, 30).await.expect(200);
    assert!(marks(&over).len() > marks(&exact).len(), "not marked: {over} beside {exact}");
    let usage = customer.usage("").await;
    assert_eq!((usage_cents(&usage), &usage["remaining_cents"]), ((2, 34, 0), &json!(0)));
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["spent_cents"], &refusal["hard_limit_cents"]), (&json!(34), &json!(10)));
}

/// The fields that say yes.
fn marks(value: &Value) -> Vec<&String> {
    value
        .as_object()
        .unwrap()
        .iter()
        .filter(|(_, value)| **value == json!(true))
        .map(|(name, _)| name)
        .collect()
}

both!(an_expired_hold_comes_back_and_a_late_settle_is_booked_and_marked);
async fn an_expired_hold_comes_back_and_a_late_settle_is_booked_and_marked(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 10).await;
    let id = hold(&customer, json!({"amount_cents": 10, "ttl_seconds": 1})).await;
    until_nothing_is_held(&customer, Duration::from_secs(15)).await;
    // Its money is free again, and was never spent.
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 0));
    let punctual = hold(&customer, json!({"amount_cents": 10})).await;
    let punctual = settle(&customer, &punctual, 10).await.expect(200);
    let late = settle(&customer, &id, 7).await;
    let marked = late.expect(200);
    assert!(marks(&marked).len() > marks(&punctual).len(), "not marked: {marked} beside {punctual}");
    assert_eq!(usage_cents(&customer.usage("").await), (2, 17, 0));
    let again = settle(&customer, &id, 7).await;
    assert_eq!((again.status, &again.text), (200, &late.text));
    assert_eq!(usage_cents(&customer.usage("").await), (2, 17, 0));
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(a_hold_is_extended_from_now);
async fn a_hold_is_extended_from_now(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let id = hold(&customer, json!({"amount_cents": 3, "ttl_seconds": 5})).await;
    let path = format!("/v1/holds/{id}/extend");
    for (body, seconds) in
        [(json!({"ttl_seconds": 900}), 900), (json!({"ttl_seconds": 100}), 100), (json!({}), 300)]
    {
        let before = unix_now();
        let extended = customer.post(&path, body).await.expect(200);
        let after = unix_now();
        assert_eq!((&extended["id"], &extended["amount_cents"]), (&json!(id), &json!(3)));
        let expires_at = milliseconds(&extended["expires_at"]);
        let expected = before + seconds * 1000 - CLOCK_SLACK_MS..=after + seconds * 1000 + CLOCK_SLACK_MS;
        assert!(expected.contains(&expires_at), "{expires_at} in {expected:?}");
    }
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 3));
    for bad in [json!({"ttl_seconds": 0}), json!({"ttl_seconds": -5}), json!({"ttl_seconds": 604_801})] {
        customer.post(&path, bad).await.expect_error(400);
    }
}

both!(an_extended_hold_outlives_its_first_end);
async fn an_extended_hold_outlives_its_first_end(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let id = hold(&customer, json!({"amount_cents": 3, "ttl_seconds": 2})).await;
    hold(&customer, json!({"amount_cents": 5, "ttl_seconds": 2})).await;
    customer.post(&format!("/v1/holds/{id}/extend"), json!({"ttl_seconds": 600})).await.expect(200);
    eventually(Duration::from_secs(15), "the other one expires", || async {
        (customer.usage("").await["reserved_cents"] == 3).then_some(())
    })
    .await;
    settle(&customer, &id, 3).await.expect(200);
    assert_eq!(usage_cents(&customer.usage("").await), (1, 3, 0));
}

both!(another_accounts_hold_is_not_found);
async fn another_accounts_hold_is_not_found(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    let id = hold(&acme, json!({"amount_cents": 5})).await;
    for id in [id.as_str(), "hold_that_never_was"] {
        settle(&other, id, 5).await.expect_error(404);
        other.post(&format!("/v1/holds/{id}/extend"), json!({"ttl_seconds": 1})).await.expect_error(404);
        other.delete(&format!("/v1/holds/{id}")).await.expect_error(404);
    }
    assert!(all_of(&other, "/v1/holds?limit=1000").await.is_empty());
    assert_eq!(names(&all_of(&acme, "/v1/holds?limit=1000").await, "id"), [id]);
    assert_eq!(usage_cents(&acme.usage("").await), (0, 0, 5));
}

both!(another_key_of_the_account_may_end_its_hold);
async fn another_key_of_the_account_may_end_its_hold(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let one = server.customer("acme").await;
    let two = one.another_key(&server.admin(), json!({})).await;
    let id = hold(&one, json!({"amount_cents": 5})).await;
    settle(&two, &id, 5).await.expect(200);
    // It was spent by the key that held it.
    assert_eq!(usage_cents(&one.usage(&format!("?key_id={}", one.key_id)).await), (1, 5, 0));
    assert_eq!(usage_cents(&one.usage(&format!("?key_id={}", two.key_id)).await), (0, 0, 0));
}

both!(a_bad_hold_is_400_and_holds_nothing);
async fn a_bad_hold_is_400_and_holds_nothing(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    for bad in [
        "{}",
        r#"{"amount_cents":null}"#,
        r#"{"amount_cents":-1}"#,
        r#"{"amount_cents":5.0}"#,
        r#"{"amount_cents":"5"}"#,
        r#"{"amount_cents":900000000001}"#,
        r#"{"amount_cents":99999999999999999999}"#,
        r#"{"amount_cents":5,"ttl_seconds":0}"#,
        r#"{"amount_cents":5,"ttl_seconds":-1}"#,
        r#"{"amount_cents":5,"ttl_seconds":604801}"#,
        r#"{"amount_cents":5,"ttl_seconds":1.5}"#,
        r#"{"amount_cents":5,"ttl_seconds":"60"}"#,
        r#"{"amount_cents":5,"ttl":60}"#,
        r#"{"amount_cents":5,"spell":7}"#,
    ] {
        customer.call("POST", "/v1/holds").body("application/json", bad).send().await.expect_error(400);
    }
    let id = hold(&customer, json!({"amount_cents": 5})).await;
    for bad in ["{}", r#"{"amount_cents":-1}"#, r#"{"amount_cents":4.0}"#, r#"{"amount_cents":900000000001}"#]
    {
        let path = format!("/v1/holds/{id}/settle");
        customer.call("POST", &path).body("application/json", bad).send().await.expect_error(400);
    }
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 5));
    settle(&customer, &id, 5).await.expect(200);
}
