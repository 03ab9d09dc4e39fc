//! Accounts: made, listed and suspended by admins, and by nobody else.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Backend, Options, Server, all_of, both, eventually, names, usage_cents};

const TOKEN: &str = "a-token-that-only-services-have-0123456789";

both!(an_admin_makes_and_lists_accounts);
async fn an_admin_makes_and_lists_accounts(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let plain = admin.post("/v1/accounts", json!({"name": "Plain"})).await.expect(201);
    assert_eq!(plain["name"], "Plain");
    let body = json!({"name": "Żółć 株式会社", "email": "billing@example.com"});
    let odd = admin.post("/v1/accounts", body).await.expect(201);
    assert_eq!(odd["name"], "Żółć 株式会社");
    let listed = all_of(&admin, "/v1/accounts?limit=1").await;
    let ids = names(&listed, "id");
    for account in [&plain, &odd] {
        assert_eq!(ids.iter().filter(|id| account["id"] == id.as_str()).count(), 1, "{account} in {ids:?}");
    }
    for wrong in [json!({}), json!({"name": 5}), json!({"name": "x", "email": 5}), json!({"name": null})] {
        admin.post("/v1/accounts", wrong).await.expect_error(400);
    }
    assert_eq!(all_of(&admin, "/v1/accounts?limit=1000").await.len(), listed.len());
}

both!(who_is_no_admin_may_not_do_what_admins_do);
async fn who_is_no_admin_may_not_do_what_admins_do(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let own = format!("/v1/accounts/{}", customer.account_id);
    customer.post("/v1/accounts", json!({"name": "more"})).await.expect_error(403);
    customer.get("/v1/accounts").await.expect_error(403);
    customer.patch(&own, json!({"suspended": false})).await.expect_error(403);
    customer.put("/v1/spells/mine", json!({"kind": "echo"})).await.expect_error(403);
    customer
        .put("/v1/spells/echo", json!({"kind": "echo", "price": {"flat_cents": 0}}))
        .await
        .expect_error(403);
    customer.delete("/v1/spells/echo").await.expect_error(403);
    // Whatever the body says.
    for (method, path) in [
        ("POST", "/v1/accounts"),
        ("PATCH", own.as_str()),
        ("PUT", "/v1/spells/mine"),
        ("PUT", "/v1/plans/mine"),
        ("POST", "/internal/billing/plans"),
        ("PUT", "/api/billing/pricing/mine"),
        ("POST", "/api/billing/reset"),
    ] {
        for call in [
            customer.call(method, path),
            customer.call(method, path).json(&json!({})),
            customer.call(method, path).json(&json!({"nobody": "knows"})),
            customer.call(method, path).body("application/json", "{"),
        ] {
            assert_eq!(call.send().await.status, 403, "{method} {path}");
        }
    }
    assert_eq!(customer.echo().await.expect(200)["cost_cents"], 1);
}

both!(a_suspended_account_casts_nothing_until_it_is_let_go);
async fn a_suspended_account_casts_nothing_until_it_is_let_go(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    let second_key = acme.another_key(&admin, json!({})).await;
    let hold = acme.post("/v1/holds", json!({"amount_cents": 2})).await.expect(201);
    let path = format!("/v1/accounts/{}", acme.account_id);
    let suspended = admin.patch(&path, json!({"suspended": true})).await.expect(200);
    assert_eq!((&suspended["id"], &suspended["suspended"]), (&json!(acme.account_id), &json!(true)));
    for key in [&acme, &second_key] {
        key.echo().await.expect_code(403, "account_suspended");
        key.post("/v1/holds", json!({"amount_cents": 1})).await.expect_code(403, "account_suspended");
    }
    other.echo().await.expect(200);
    // It still sees its books, and what it spent elsewhere is still booked.
    assert_eq!(usage_cents(&acme.usage("").await), (0, 0, 2));
    let settle = format!("/v1/holds/{}/settle", hold["id"].as_str().unwrap());
    acme.post(&settle, json!({"amount_cents": 2})).await.expect(200);
    let let_go = admin.patch(&path, json!({"suspended": false})).await.expect(200);
    assert_eq!(let_go["suspended"], false);
    acme.echo().await.expect(200);
    assert_eq!(usage_cents(&acme.usage("").await), (2, 3, 0));
    admin.patch("/v1/accounts/acct_that_never_was", json!({"suspended": true})).await.expect_error(404);
    for wrong in [json!({"suspended": "yes"}), json!({"suspended": 1}), json!({"suspend": true})] {
        admin.patch(&path, wrong).await.expect_error(400);
    }
    acme.echo().await.expect(200);
}

both!(a_service_token_acts_as_an_admin);
async fn a_service_token_acts_as_an_admin(backend: Backend) {
    let tokens = format!("an-older-token-being-rotated-out-0123,{TOKEN}");
    let options = Options::on(&backend).var("SERVICE_TOKEN", tokens).var("RATE_LIMIT_PER_MINUTE", 2);
    let server = Server::start(options).await;
    for token in [TOKEN, "an-older-token-being-rotated-out-0123"] {
        let service = server.anonymous().with_header("X-Internal-Key", token);
        let account = service.post("/v1/accounts", json!({"name": "made by a service"})).await.expect(201);
        let account_id = account["id"].as_str().unwrap();
        let key = service.post("/v1/keys", json!({"name": "k", "account_id": account_id})).await.expect(201);
        let customer = server.anonymous().with_key(key["api_key"].as_str().unwrap());
        customer.echo().await.expect(200);
        // The service key has no rate: it casts for the account beyond any.
        let body = json!({"spell_name": "echo", "payload": null});
        for _ in 0..6 {
            service.post(&format!("/v1/cast?account_id={account_id}"), body.clone()).await.expect(200);
        }
        let usage = service.get(&format!("/v1/budgets/usage?account_id={account_id}")).await.expect(200);
        assert_eq!(usage_cents(&usage), (7, 7, 0));
    }
    for wrong in
        ["a-token-that-only-services-have-012345678", "", &format!("{TOKEN},"), &TOKEN.to_uppercase()]
    {
        let stranger = server.anonymous().with_header("X-Internal-Key", wrong);
        stranger.get("/v1/accounts").await.expect_error(401);
    }
}

both!(without_a_service_token_nobody_comes_in_by_one);
async fn without_a_service_token_nobody_comes_in_by_one(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    for token in ["", ",", " ", TOKEN] {
        server.anonymous().with_header("X-Internal-Key", token).get("/v1/accounts").await.expect_error(401);
    }
}

both!(an_admins_own_key_is_rotated_like_any_other);
async fn an_admins_own_key_is_rotated_like_any_other(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let keys = admin.get("/v1/keys").await.expect(200);
    let keys: Vec<Value> = keys["data"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 1, "the first admin has one key: {keys:?}");
    let path = format!("/v1/keys/{}/rotate", keys[0]["id"].as_str().unwrap());
    let rotated = admin.post(&path, json!({})).await.expect(200);
    let renewed = admin.with_key(rotated["api_key"].as_str().unwrap());
    renewed.get("/v1/accounts").await.expect(200);
    eventually(Duration::from_millis(1_300), "the old admin's secret is refused", || async {
        (admin.get("/v1/accounts").await.status == 401).then_some(())
    })
    .await;
}
