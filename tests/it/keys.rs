//! API keys: shown once, listed without their secret, rotated, expired, scoped, revoked.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Backend, Options, Server, all_of, both, eventually, names, shape, unix_now};

/// How soon every replica has to refuse a key that was taken away, and some slack to ask.
const REVOKED_WITHIN: Duration = Duration::from_millis(1_300);

/// How far the server's idea of the time, which is the database's, may be from the test's.
const CLOCK_SLACK_MS: i64 = 1_000;

both!(a_new_key_shows_its_secret_this_once);
async fn a_new_key_shows_its_secret_this_once(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let made = customer.post("/v1/keys", json!({"name": "ci 🔑"})).await;
    let key = made.expect(201);
    shape(&key, &["id", "name", "prefix", "api_key"]);
    assert_eq!(key["name"], "ci 🔑");
    let secret = key["api_key"].as_str().unwrap();
    assert!(secret.starts_with("sk_live_") && secret.len() >= 8 + 32, "{} characters", secret.len());
    let prefix = key["prefix"].as_str().unwrap();
    assert!(secret.starts_with(prefix) && prefix.len() < 20, "{prefix}");
    customer.with_key(secret).echo().await.expect(200);

    let list = customer.get("/v1/keys").await;
    assert!(!list.text.contains(secret) && !list.text.contains(&customer.key), "a list shows a secret");
    let body = list.expect(200);
    shape(&body, &["data", "next_cursor"]);
    let listed = body["data"].as_array().unwrap();
    assert_eq!(listed.len(), 2);
    let ours = listed.iter().find(|listed| listed["id"] == key["id"]).unwrap();
    for field in ["id", "name", "prefix", "created_at", "last_used_at"] {
        assert!(ours.as_object().unwrap().contains_key(field), "no {field} in {ours}");
    }
    assert!(ours.get("api_key").is_none(), "{ours}");
    assert_eq!((&ours["name"], &ours["prefix"]), (&key["name"], &key["prefix"]));
    assert!(ours["created_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
}

both!(two_keys_are_never_the_same);
async fn two_keys_are_never_the_same(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let one = customer.post("/v1/keys", json!({"name": "same"})).await.expect(201);
    let two = customer.post("/v1/keys", json!({"name": "same"})).await.expect(201);
    assert_ne!(one["id"], two["id"]);
    assert_ne!(one["api_key"], two["api_key"]);
    let listed = all_of(&customer, "/v1/keys?limit=1").await;
    assert_eq!(listed.len(), 3, "over pages of one");
}

both!(a_key_comes_as_bearer_or_as_x_api_key_on_every_route);
async fn a_key_comes_as_bearer_or_as_x_api_key_on_every_route(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let anonymous = server.anonymous();
    for caller in [
        anonymous.with_key(&customer.key),
        anonymous.with_header("authorization", &format!("bearer {}", customer.key)),
        anonymous.with_header("x-api-key", &customer.key),
        anonymous.with_header("X-API-Key", &customer.key),
    ] {
        caller.echo().await.expect(200);
        caller.get("/v1/keys").await.expect(200);
        caller.get("/v1/spells").await.expect(200);
        caller.usage("").await;
    }
}

both!(no_key_or_a_wrong_one_is_401);
async fn no_key_or_a_wrong_one_is_401(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let anonymous = server.anonymous();
    let nearly = format!("{}x", customer.key);
    let upper = customer.key.to_uppercase();
    for caller in [
        anonymous.clone(),
        anonymous.with_key("sk_live_0000000000000000000000000000000000000000"),
        anonymous.with_key(&nearly),
        anonymous.with_key(&customer.key[..customer.key.len() - 1]),
        anonymous.with_key(&upper),
        anonymous.with_key(&customer.key_id),
        anonymous.with_key(""),
        anonymous.with_header("authorization", &customer.key),
        anonymous.with_header("authorization", &format!("Basic {}", customer.key)),
        anonymous.with_header("x-api-key", ""),
        anonymous.with_header("x-internal-key", "no service has this token"),
        anonymous.with_header("x-internal-key", ""),
    ] {
        caller.echo().await.expect_error(401);
        caller.get("/v1/keys").await.expect_error(401);
        caller.post("/v1/holds", json!({"amount_cents": 1})).await.expect_error(401);
        caller.get("/v1/budgets/usage").await.expect_error(401);
        caller.get("/v1/accounts").await.expect_error(401);
    }
}

both!(a_deleted_key_is_401_within_a_second_and_others_work_on);
async fn a_deleted_key_is_401_within_a_second_and_others_work_on(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let doomed = customer.another_key(&server.admin(), json!({})).await;
    doomed.echo().await.expect(200);
    let deleted = customer.delete(&format!("/v1/keys/{}", doomed.key_id)).await;
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    eventually(REVOKED_WITHIN, "the deleted key is refused", || async {
        (doomed.echo().await.status == 401).then_some(())
    })
    .await;
    doomed.get("/v1/keys").await.expect_error(401);
    customer.echo().await.expect(200);
    let listed = all_of(&customer, "/v1/keys?limit=1000").await;
    assert!(!names(&listed, "id").contains(&doomed.key_id), "{listed:?}");
    customer.delete("/v1/keys/key_that_never_was").await.expect_error(404);
}

both!(a_key_may_delete_itself);
async fn a_key_may_delete_itself(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    assert_eq!(customer.delete(&format!("/v1/keys/{}", customer.key_id)).await.status, 204);
    eventually(REVOKED_WITHIN, "the key that deleted itself is refused", || async {
        (customer.echo().await.status == 401).then_some(())
    })
    .await;
}

both!(a_rotated_key_has_a_new_secret_and_loses_the_old_one_at_once);
async fn a_rotated_key_has_a_new_secret_and_loses_the_old_one_at_once(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let spare = customer.another_key(&server.admin(), json!({})).await;
    spare.echo().await.expect(200);
    let rotated = customer.post(&format!("/v1/keys/{}/rotate", spare.key_id), json!({})).await.expect(200);
    let secret = rotated["api_key"].as_str().unwrap();
    assert!(secret.starts_with("sk_live_") && secret != spare.key);
    assert_eq!(rotated["id"], spare.key_id.as_str(), "the key stays the same key");
    customer.with_key(secret).echo().await.expect(200);
    eventually(REVOKED_WITHIN, "the old secret is refused", || async {
        (spare.echo().await.status == 401).then_some(())
    })
    .await;
    let listed = customer.get("/v1/keys").await;
    assert!(!listed.text.contains(secret), "a list shows a secret");
    assert_eq!(listed.expect(200)["data"].as_array().unwrap().len(), 2, "rotating makes no key");
    // What both secrets cast is one key's.
    let casts = customer.get(&format!("/v1/casts?key_id={}", spare.key_id)).await.expect(200);
    assert_eq!(casts["data"].as_array().unwrap().len(), 2);
}

both!(a_rotated_key_keeps_its_old_secret_for_the_grace);
async fn a_rotated_key_keeps_its_old_secret_for_the_grace(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let path = format!("/v1/keys/{}/rotate", customer.key_id);
    let asked_at = unix_now();
    let rotated = customer.post(&path, json!({"grace_seconds": 3})).await.expect(200);
    let renewed = customer.with_key(rotated["api_key"].as_str().unwrap());
    let old = customer.echo().await;
    assert!(
        old.status == 200 || unix_now() - asked_at >= 3_000 - CLOCK_SLACK_MS,
        "the old secret within its grace: {old}"
    );
    renewed.echo().await.expect(200);
    eventually(Duration::from_secs(4) + REVOKED_WITHIN, "the old secret is refused", || async {
        (customer.echo().await.status == 401).then_some(())
    })
    .await;
    assert!(unix_now() - asked_at >= 3_000 - CLOCK_SLACK_MS, "the grace was cut short");
    renewed.echo().await.expect(200);
}

both!(a_key_works_until_it_expires);
async fn a_key_works_until_it_expires(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    let at = |ms: i64| jiff::Timestamp::from_millisecond(ms).unwrap().to_string();
    let later = customer.another_key(&admin, json!({"expires_at": at(unix_now() + 3_600_000)})).await;
    later.echo().await.expect(200);
    let expires_at = unix_now() + 3_000;
    let soon = customer.another_key(&admin, json!({"expires_at": at(expires_at)})).await;
    let early = soon.echo().await;
    assert!(early.status == 200 || unix_now() >= expires_at - CLOCK_SLACK_MS, "before it expires: {early}");
    eventually(Duration::from_secs(4) + REVOKED_WITHIN, "the expired key is refused", || async {
        (soon.echo().await.status == 401).then_some(())
    })
    .await;
    assert!(unix_now() >= expires_at - CLOCK_SLACK_MS, "it expired too early");
    later.echo().await.expect(200);
    // One that had expired before it was made is refused, now or on its first use.
    let past = json!({"name": "late", "expires_at": "2001-01-01T00:00:00Z"});
    let past = customer.post("/v1/keys", past).await;
    match past.status {
        201 => {
            let secret = past.body()["api_key"].as_str().unwrap().to_owned();
            customer.with_key(&secret).echo().await.expect_error(401);
        }
        _ => drop(past.expect_error(400)),
    }
}

both!(an_offset_in_expires_at_is_understood);
async fn an_offset_in_expires_at_is_understood(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let body = json!({"name": "abroad", "expires_at": "2999-06-01T12:00:00+09:00"});
    let key = customer.post("/v1/keys", body).await.expect(201);
    let listed = all_of(&customer, "/v1/keys?limit=1000").await;
    let listed = listed.iter().find(|listed| listed["id"] == key["id"]).unwrap();
    let expires_at: jiff::Timestamp = listed["expires_at"].as_str().unwrap().parse().unwrap();
    assert_eq!(expires_at.to_string(), "2999-06-01T03:00:00Z");
}

both!(a_key_with_scopes_may_do_nothing_else);
async fn a_key_with_scopes_may_do_nothing_else(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    let caster = customer.another_key(&admin, json!({"scopes": ["cast"]})).await;
    caster.echo().await.expect(200);
    for (method, path, body) in [
        ("GET", "/v1/keys".to_owned(), Value::Null),
        ("POST", "/v1/keys".to_owned(), json!({"name": "more"})),
        ("DELETE", format!("/v1/keys/{}", customer.key_id), Value::Null),
        ("POST", format!("/v1/keys/{}/rotate", customer.key_id), json!({})),
        ("POST", "/v1/budgets".to_owned(), json!({"period": "monthly", "hard_limit_cents": 1})),
        ("PUT", "/v1/budgets".to_owned(), json!({"period": "monthly", "hard_limit_cents": 1})),
        ("DELETE", "/v1/budgets".to_owned(), Value::Null),
        ("POST", "/v1/accounts".to_owned(), json!({"name": "more"})),
    ] {
        let call = caster.call(method, &path);
        let call = if body.is_null() { call } else { call.json(&body) };
        call.send().await.expect_error(403);
    }
    // Nothing of it happened.
    customer.echo().await.expect(200);
    customer.get("/v1/budgets").await.expect_code(404, "budget_not_found");
    assert_eq!(all_of(&customer, "/v1/keys?limit=1000").await.len(), 2);

    for wrong in [json!(["no_such_scope"]), json!(["cast", "no_such_scope"]), json!([])] {
        customer.post("/v1/keys", json!({"name": "wrong", "scopes": wrong})).await.expect_error(400);
    }
}

both!(a_key_cannot_make_a_key_that_may_do_more_than_itself);
async fn a_key_cannot_make_a_key_that_may_do_more_than_itself(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let wider = customer.post("/v1/keys", json!({"name": "wider", "scopes": ["admin"]})).await;
    assert!([400, 403].contains(&wider.status), "{wider}");
    let elsewhere = server.customer("other").await;
    let body = json!({"name": "intruder", "account_id": elsewhere.account_id});
    let intruder = customer.post("/v1/keys", body).await;
    assert!([403, 404].contains(&intruder.status), "{intruder}");
    assert_eq!(all_of(&elsewhere, "/v1/keys?limit=1000").await.len(), 1);
}

both!(another_accounts_key_is_not_found);
async fn another_accounts_key_is_not_found(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    let path = format!("/v1/keys/{}", other.key_id);
    acme.delete(&path).await.expect_error(404);
    acme.post(&format!("{path}/rotate"), json!({})).await.expect_error(404);
    other.echo().await.expect(200);
    let listed = all_of(&acme, "/v1/keys?limit=1000").await;
    assert_eq!(names(&listed, "id"), [acme.key_id.as_str()]);
}

both!(an_admin_names_the_account_in_the_query_and_nobody_else_may);
async fn an_admin_names_the_account_in_the_query_and_nobody_else_may(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    let at_acme = format!("?account_id={}", acme.account_id);
    let keys = admin.get(&format!("/v1/keys{at_acme}")).await.expect(200);
    assert_eq!(names(keys["data"].as_array().unwrap(), "id"), [acme.key_id.as_str()]);
    let budget = json!({"period": "monthly", "hard_limit_cents": 1});
    admin.post(&format!("/v1/budgets{at_acme}"), budget.clone()).await.expect(201);
    acme.echo().await.expect(200);
    acme.echo().await.expect_code(402, "budget_exceeded");
    let usage = admin.get(&format!("/v1/budgets/usage{at_acme}")).await.expect(200);
    assert_eq!(usage["total_cost_cents"], 1);
    for (method, path) in [
        ("GET", "/v1/keys"),
        ("GET", "/v1/casts"),
        ("GET", "/v1/budgets"),
        ("GET", "/v1/budgets/usage"),
        ("DELETE", "/v1/budgets"),
        ("GET", "/v1/holds"),
        ("GET", "/v1/usage"),
    ] {
        let refused = other.call(method, &format!("{path}{at_acme}")).send().await;
        assert!([403, 404].contains(&refused.status), "{refused}");
        refused.expect_error(refused.status);
    }
    let refused = other.put(&format!("/v1/budgets{at_acme}"), budget).await;
    assert!([403, 404].contains(&refused.status), "{refused}");
    let acme_pays =
        other.call("POST", &format!("/v1/cast{at_acme}")).json(&json!({"spell_name": "echo", "payload": 1}));
    let refused = acme_pays.send().await;
    assert!([403, 404].contains(&refused.status), "{refused}");
    admin.get("/v1/keys?account_id=acct_that_never_was").await.expect_error(404);
}

both!(an_admin_who_names_no_account_reaches_keys_of_all);
async fn an_admin_who_names_no_account_reaches_keys_of_all(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    let path = format!("/v1/keys/{}", acme.key_id);
    let rotate = format!("{path}/rotate");
    let at_other = format!("?account_id={}", other.account_id);
    assert_eq!(admin.get(&path).await.expect(200)["id"], acme.key_id.as_str());
    // Whoever names an account means that one.
    admin.get(&format!("{path}{at_other}")).await.expect_error(404);
    admin.delete(&format!("{path}{at_other}")).await.expect_error(404);
    admin.post(&format!("{rotate}{at_other}"), json!({})).await.expect_error(404);
    other.get(&path).await.expect_error(404);
    other.delete(&path).await.expect_error(404);
    other.post(&rotate, json!({})).await.expect_error(404);
    acme.echo().await.expect(200);
    let rotated = admin.post(&rotate, json!({})).await.expect(200);
    let renewed = acme.with_key(rotated["api_key"].as_str().unwrap());
    renewed.echo().await.expect(200);
    assert_eq!(admin.delete(&path).await.status, 204);
    renewed.echo().await.expect_error(401);
    admin.get(&path).await.expect_error(404);
}

both!(the_last_use_of_a_key_is_shown_at_once_and_written_in_time);
async fn the_last_use_of_a_key_is_shown_at_once_and_written_in_time(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let unused = customer.another_key(&server.admin(), json!({})).await;
    customer.echo().await.expect(200);
    let last_use = |keys: &[Value], id: &str| {
        keys.iter().find(|key| key["id"] == id).map(|key| key["last_used_at"].clone()).unwrap()
    };
    let keys = all_of(&customer, "/v1/keys?limit=1000").await;
    assert!(last_use(&keys, &unused.key_id).is_null(), "it was never used");
    let used: jiff::Timestamp = last_use(&keys, &customer.key_id).as_str().unwrap().parse().unwrap();
    assert!((unix_now() - used.as_millisecond()).abs() < 120_000, "{used}");
    let one = customer.get(&format!("/v1/keys/{}", customer.key_id)).await.expect(200);
    assert!(!one["last_used_at"].is_null(), "{one}");
    let written = format!("SELECT CAST(last_used_at AS TEXT) FROM api_keys WHERE id = '{}'", customer.key_id);
    eventually(Duration::from_secs(90), "the last use is written", || async {
        backend.texts(&written).await.remove(0)
    })
    .await;
}
