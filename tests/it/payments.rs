//! `POST /internal/billing/webhook/payment`, and what an admin sees of it: believed only if it is
//! signed or comes from the service itself, credited once, and kept with the reason where it can't be.

use std::{sync::LazyLock, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use rsa::{
    RsaPrivateKey,
    pkcs1::EncodeRsaPublicKey,
    pkcs1v15::SigningKey,
    pkcs8::{EncodePublicKey, LineEnding},
    rand_core::OsRng,
    sha2::Sha256,
    signature::{SignatureEncoding, Signer},
};
use serde_json::{Value, json};

use crate::harness::{
    ADMIN_KEY, Answer, Backend, Client, Options, Server, all_of, both, postgres, shape, spawn_bare, storm,
};

const HOOK: &str = "/internal/billing/webhook/payment";
const LETTERS: &str = "/internal/billing/dead-letters";
const SERVICE: &str = "the-service-token-of-the-tests";

static KEY: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::new(&mut OsRng, 2_048).unwrap());
static NEXT_KEY: LazyLock<RsaPrivateKey> = LazyLock::new(|| RsaPrivateKey::new(&mut OsRng, 2_048).unwrap());

fn pem(key: &RsaPrivateKey) -> String {
    key.to_public_key().to_public_key_pem(LineEnding::LF).unwrap()
}

fn sign(key: &RsaPrivateKey, body: &[u8]) -> String {
    STANDARD.encode(SigningKey::<Sha256>::new(key.clone()).sign(body).to_bytes())
}

fn options(backend: &Backend) -> Options {
    Options::on(backend).var("SERVICE_TOKEN", SERVICE).var("PAYMENT_WEBHOOK_PUBLIC_KEY", pem(&KEY))
}

/// The order `id`, with these changes.
fn order(id: &str, changes: Value) -> String {
    let mut body = json!({
        "order_id": id, "user_id": "user_1", "plan_code": "pro_month", "units_chat": 50, "units_tpl": 3,
        "amount": 9.90, "currency": "USD", "payment_status": "succeeded",
    });
    for (field, value) in changes.as_object().unwrap() {
        body[field] = value.clone();
    }
    body.to_string()
}

async fn deliver_with(client: &Client, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
    let call = client.call("POST", HOOK).body("text/plain", body);
    headers.iter().fold(call, |call, (name, value)| call.header(name, value)).send().await
}

/// Delivers what the payment service signed.
async fn deliver(client: &Client, body: &str) -> Answer {
    deliver_with(client, &[("x-signature", &sign(&KEY, body.as_bytes()))], body).await
}

async fn letters(server: &Server) -> Vec<Value> {
    all_of(&server.admin(), &format!("{LETTERS}?limit=1000")).await
}

async fn replay(server: &Server, letter: &Value) -> Value {
    let path = format!("{LETTERS}/{}/replay", letter["id"].as_str().unwrap());
    server.admin().call("POST", &path).send().await.expect(200)
}

/// What the user has: chat, tpl, plan.
async fn left(server: &Server, user: &str) -> (i64, i64, String) {
    let service = server.anonymous().with_header("x-internal-key", SERVICE);
    let left = service.get(&format!("/internal/billing/quota/check/{user}")).await.expect(200);
    let number = |field: &str| left[field].as_i64().unwrap();
    (number("remain_chat"), number("remain_tpl"), left["plan_code"].as_str().unwrap().to_owned())
}

fn free() -> (i64, i64, String) {
    (100, 20, "free".to_owned())
}

fn paid() -> (i64, i64, String) {
    (10_050, 203, "pro_month".to_owned())
}

async fn receipts(backend: &Backend) -> Vec<Option<String>> {
    backend
        .texts("SELECT order_id || ' ' || amount || ' ' || currency || ' ' || status FROM quota_receipts")
        .await
}

async fn counted(server: &Server, result: &str) -> f64 {
    let metrics = server.anonymous().get("/metrics").await.expect_metrics();
    let series = format!("payment_webhook_total{{result=\"{result}\"}}");
    metrics.into_iter().find(|(name, _)| *name == series).unwrap_or_else(|| panic!("no {series}")).1
}

both!(a_paid_order_is_credited_once_and_answers_the_same_each_time);
async fn a_paid_order_is_credited_once_and_answers_the_same_each_time(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    for result in ["applied", "duplicate", "refused", "bad_signature", "dropped", "failed", "disabled"] {
        assert_eq!(counted(&server, result).await, 0.0, "{result}");
    }
    let body = order("ord_1", json!({"customer": {"any": ["thing"]}}));
    let first = deliver(server.anonymous(), &body).await.expect(200);
    let answer = json!({"success": true, "remain_chat": 10_050, "remain_tpl": 203, "plan_code": "pro_month"});
    assert_eq!(first, answer);
    assert_eq!(left(&server, "user_1").await, paid());
    // Used meanwhile: the answer stays the first one.
    let service = server.anonymous().with_header("x-internal-key", SERVICE);
    let debit = json!({"user_id": "user_1", "action": "chat_tokens", "units": 40, "ref": "r1"});
    service.post("/internal/billing/quota/debit", debit).await.expect(200);
    assert_eq!(deliver(server.anonymous(), &body).await.expect(200), first);
    // The same order in other bytes, and from the service itself.
    let pretty = serde_json::to_string_pretty(&serde_json::from_str::<Value>(&body).unwrap()).unwrap();
    assert_eq!(deliver(server.anonymous(), &pretty).await.expect(200), first);
    assert_eq!(deliver_with(&service, &[], body.clone()).await.expect(200), first);
    let credit = json!({"order_id": "ord_1", "user_id": "user_1", "plan_code": "pro_month",
        "units_chat": 50, "units_tpl": 3});
    assert_eq!(service.post("/internal/billing/quota/credit", credit).await.expect(200), first);
    assert_eq!(left(&server, "user_1").await.0, 10_010);
    assert_eq!(receipts(&backend).await, [Some("ord_1 9.9 usd succeeded".to_owned())]);
    assert_eq!((counted(&server, "applied").await, counted(&server, "duplicate").await), (1.0, 3.0));
    assert_eq!(server.metric("billing_credit_total").await, 1.0);
    assert_eq!(letters(&server).await, Vec::<Value>::new());
}

both!(the_same_delivery_12_times_at_once_is_credited_once);
async fn the_same_delivery_12_times_at_once_is_credited_once(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    one_credit_of_12_deliveries(&backend, &[&server]).await;
}

postgres!(the_same_delivery_12_times_at_once_over_two_replicas_is_credited_once);
async fn the_same_delivery_12_times_at_once_over_two_replicas_is_credited_once(backend: Backend) {
    let (one, other) = (Server::start(options(&backend)).await, Server::start(options(&backend)).await);
    one_credit_of_12_deliveries(&backend, &[&one, &other]).await;
}

async fn one_credit_of_12_deliveries(backend: &Backend, servers: &[&Server]) {
    let body = order("ord_1", json!({}));
    let signature = sign(&KEY, body.as_bytes());
    let clients: Vec<Client> = servers.iter().map(|server| server.anonymous().clone()).collect();
    let answers = storm(12, 12, move |number| {
        let (client, body, signature) =
            (clients[number % clients.len()].clone(), body.clone(), signature.clone());
        async move { deliver_with(&client, &[("x-signature", &signature)], body).await }
    });
    for answer in answers.await {
        assert_eq!(answer.expect(200)["remain_chat"], 10_050, "{answer}");
    }
    assert_eq!(left(servers[0], "user_1").await, paid());
    assert_eq!(receipts(backend).await.len(), 1);
}

both!(a_forged_delivery_is_400_grants_nothing_and_is_a_dead_letter);
async fn a_forged_delivery_is_400_grants_nothing_and_is_a_dead_letter(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    let body = order("ord_1", json!({}));
    let good = sign(&KEY, body.as_bytes());
    let forged = [
        ("by another key", sign(&NEXT_KEY, body.as_bytes())),
        ("of another body", sign(&KEY, order("ord_2", json!({})).as_bytes())),
        ("of nothing", sign(&KEY, b"")),
        ("empty", String::new()),
        ("no base64", "~~~".to_owned()),
        ("cut short", good[..good.len() - 8].to_owned()),
        ("doubled", format!("{good}{good}")),
    ];
    for (what, signature) in &forged {
        let answer = deliver_with(server.anonymous(), &[("x-signature", signature)], body.clone()).await;
        assert_eq!(answer.status, 400, "{what}: {answer}");
        shape(&answer.expect_code(400, "invalid_signature"), &["error", "message"]);
    }
    // Also from the service itself: who signs has to sign well.
    let service = server.anonymous().with_header("x-internal-key", SERVICE);
    let answer = deliver_with(&service, &[("x-signature", "bm8=")], body.clone()).await;
    answer.expect_code(400, "invalid_signature");
    // A header that is no text.
    let odd = server.anonymous().call("POST", HOOK).body("text/plain", body.clone());
    odd.header_bytes("x-signature", b"\xff\xfe").send().await.expect_code(400, "invalid_signature");

    assert_eq!(left(&server, "user_1").await, free());
    assert_eq!(receipts(&backend).await.len(), 0);
    let listed = letters(&server).await;
    assert_eq!(listed.len(), forged.len() + 2);
    for letter in &listed {
        assert!(letter["reason"].as_str().unwrap().contains("not believed"), "{letter}");
        assert!(letter["id"].as_str().unwrap().starts_with("pay_"), "{letter}");
        assert_eq!((letter["status"].as_str(), letter["source"].as_str()), (Some("failed"), Some("payment")));
    }
    // A replay helps none of them.
    for letter in &listed {
        let replayed = replay(&server, letter).await;
        assert_eq!((&replayed["status"], &replayed["attempts"]), (&json!("failed"), &json!(1)), "{replayed}");
    }
    assert_eq!(letters(&server).await.len(), listed.len());
    assert_eq!(left(&server, "user_1").await, free());
    // And none of them is in the way of the true one.
    deliver(server.anonymous(), &body).await.expect(200);
    assert_eq!(left(&server, "user_1").await, paid());
}

both!(what_is_well_signed_and_wrong_is_400_and_a_dead_letter_with_its_reason);
async fn what_is_well_signed_and_wrong_is_400_and_a_dead_letter_with_its_reason(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    deliver(server.anonymous(), &order("ord_1", json!({}))).await.expect(200);
    let wrong = [
        (order("ord_2", json!({"plan_code": "no_such_plan"})), "no_such_plan"),
        (order("ord_2", json!({"payment_status": "pending"})), "payment_status"),
        (order("ord_2", json!({"units_chat": -1})), "units_chat"),
        (order("ord_2", json!({"units_tpl": null})), "units_tpl"),
        (order("ord_2", json!({"amount": "many"})), "amount"),
        (order("ord_2", json!({"user_id": ""})), "user_id"),
        (order("ord_2", json!({"units_chat": 5})).replace(":5,", ":5.0,"), "units_chat"),
        (order("ord_1", json!({"units_chat": 51})), "ord_1"),
        (order("ord_1", json!({"user_id": "user_2"})), "ord_1"),
        (order("ord_1", json!({"amount": 10})), "ord_1"),
        ("not JSON".to_owned(), "JSON"),
        (String::new(), "JSON"),
        ("[]".to_owned(), "object"),
        ("{\"a\":".repeat(200) + "1" + &"}".repeat(200), "128"),
        (order("ord_2", json!({})).replace("user_1", "a\\u0000"), "NUL"),
    ];
    for (body, reason) in &wrong {
        let error = deliver(server.anonymous(), body).await.expect_code(400, "invalid_request");
        shape(&error, &["error", "message"]);
        assert!(error["message"].as_str().unwrap().contains(reason), "{reason}: {error}");
    }
    let listed = letters(&server).await;
    assert_eq!(listed.len(), wrong.len());
    for (letter, (_, reason)) in listed.iter().rev().zip(&wrong) {
        assert!(letter["reason"].as_str().unwrap().contains(reason), "{reason}: {letter}");
    }
    assert_eq!((left(&server, "user_1").await, left(&server, "user_2").await), (paid(), free()));
    assert_eq!(receipts(&backend).await.len(), 1);
    assert_eq!(counted(&server, "refused").await, wrong.len() as f64);
    // The same wrong delivery again is the same letter.
    deliver(server.anonymous(), &wrong[0].0).await.expect_error(400);
    assert_eq!(letters(&server).await.len(), wrong.len());
}

both!(once_its_plan_is_made_a_dead_letter_is_credited_by_its_replay_once);
async fn once_its_plan_is_made_a_dead_letter_is_credited_by_its_replay_once(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    let body = order("ord_1", json!({"plan_code": "team"}));
    deliver(server.anonymous(), &body).await.expect_error(400);
    let [letter] = letters(&server).await.try_into().unwrap();
    assert_eq!(replay(&server, &letter).await["status"], "failed");
    let plan = json!({"name": "Team", "price_cents": 0, "limits": {"chat_tokens": 7, "tpl_run": 1}});
    server.admin().put("/v1/plans/team", plan).await.expect(201);
    let replayed = replay(&server, &letter).await;
    assert_eq!((&replayed["status"], &replayed["reason"]), (&json!("applied"), &Value::Null), "{replayed}");
    assert_eq!(replay(&server, &letter).await["status"], "applied");
    assert_eq!(left(&server, "user_1").await, (57, 4, "team".to_owned()));
    assert_eq!(deliver(server.anonymous(), &body).await.expect(200)["remain_chat"], 57);
    assert_eq!(left(&server, "user_1").await, (57, 4, "team".to_owned()));
    assert_eq!(letters(&server).await, Vec::<Value>::new());
}

both!(while_a_key_is_rotated_both_are_good_and_what_came_early_can_be_replayed);
async fn while_a_key_is_rotated_both_are_good_and_what_came_early_can_be_replayed(backend: Backend) {
    let mut server = Server::start(options(&backend)).await;
    let early = order("ord_early", json!({}));
    let signature = sign(&NEXT_KEY, early.as_bytes());
    let answer = deliver_with(server.anonymous(), &[("x-signature", &signature)], early.clone()).await;
    answer.expect_code(400, "invalid_signature");
    let [letter] = letters(&server).await.try_into().unwrap();
    assert_eq!(replay(&server, &letter).await["status"], "failed");
    assert!(server.terminate(Duration::from_secs(15)).await.success());

    let next = NEXT_KEY.to_public_key().to_pkcs1_pem(LineEnding::LF).unwrap();
    let keys = format!("{}{next}", pem(&KEY)).replace('\n', "\\n");
    let server = Server::start(options(&backend).var("PAYMENT_WEBHOOK_PUBLIC_KEY", keys)).await;
    assert_eq!(replay(&server, &letter).await["status"], "applied");
    for (id, key) in [("ord_1", &KEY), ("ord_2", &NEXT_KEY)] {
        let body = order(id, json!({}));
        let signature = sign(key, body.as_bytes());
        deliver_with(server.anonymous(), &[("x-signature", &signature)], body).await.expect(200);
    }
    let answer = deliver_with(server.anonymous(), &[("x-signature", &signature)], early).await;
    assert_eq!(answer.expect(200)["remain_chat"], 10_050, "the first answer");
    assert_eq!(left(&server, "user_1").await, (10_150, 209, "pro_month".to_owned()));
}

both!(a_flood_of_forged_deliveries_is_kept_up_to_a_bound_and_holds_up_no_true_one);
async fn a_flood_of_forged_deliveries_is_kept_up_to_a_bound_and_holds_up_no_true_one(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    let client = server.anonymous().clone();
    let forge = move |number: usize| {
        let client = client.clone();
        async move {
            deliver_with(&client, &[("x-signature", "Zm9yZ2Vk")], format!("{{\"n\":{number}}}")).await.status
        }
    };
    let flood = tokio::spawn(storm(8, 1_100, forge));
    for number in 0..10 {
        deliver(server.anonymous(), &order(&format!("ord_{number}"), json!({}))).await.expect(200);
    }
    let statuses = flood.await.unwrap();
    assert!(statuses.iter().all(|status| *status == 400), "{statuses:?}");
    assert_eq!(letters(&server).await.len(), 1_000);
    assert_eq!(
        (counted(&server, "bad_signature").await, counted(&server, "dropped").await),
        (1_000.0, 100.0)
    );
    assert_eq!(left(&server, "user_1").await, (10_500, 230, "pro_month".to_owned()));
    // What is well signed and wrong is kept all the same.
    deliver(server.anonymous(), &order("ord_x", json!({"plan_code": "none"}))).await.expect_error(400);
    assert_eq!(letters(&server).await.len(), 1_001);
}

both!(large_bodies_are_kept_only_if_they_are_well_signed);
async fn large_bodies_are_kept_only_if_they_are_well_signed(backend: Backend) {
    let server = Server::start(options(&backend).var("MAX_BODY_BYTES", 200_000)).await;
    let large = order("ord_1", json!({"plan_code": "none", "note": "x".repeat(70_000)}));
    let forged = [("x-signature", "Zm9yZ2Vk")];
    deliver_with(server.anonymous(), &forged, large.clone()).await.expect_code(400, "invalid_signature");
    assert_eq!(letters(&server).await.len(), 0);
    deliver(server.anonymous(), &large).await.expect_code(400, "invalid_request");
    assert_eq!(letters(&server).await.len(), 1);
    let fine = order("ord_2", json!({"note": "x".repeat(150_000)}));
    deliver(server.anonymous(), &fine).await.expect(200);
    let too_large = order("ord_3", json!({"note": "x".repeat(200_001)}));
    deliver(server.anonymous(), &too_large).await.expect_code(413, "body_too_large");
    // Who is nobody is told that first.
    deliver_with(server.anonymous(), &[], too_large).await.expect_code(401, "unauthorized");
    assert_eq!(left(&server, "user_1").await, paid());
}

both!(who_shows_neither_the_service_key_nor_a_signature_is_401);
async fn who_shows_neither_the_service_key_nor_a_signature_is_401(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    let customer = server.customer("acme").await;
    let body = order("ord_1", json!({}));
    let good = sign(&KEY, body.as_bytes());
    for headers in [
        &[] as &[(&str, &str)],
        &[("x-internal-key", "wrong")],
        &[("x-internal-key", "wrong"), ("x-signature", &good)],
        &[("x-internal-key", ADMIN_KEY)],
        &[("authorization", &format!("Bearer {ADMIN_KEY}"))],
        &[("x-api-key", &customer.key)],
    ] {
        let answer = deliver_with(server.anonymous(), headers, body.clone()).await;
        answer.expect_code(401, "unauthorized");
    }
    assert_eq!(left(&server, "user_1").await, free());
    assert_eq!(letters(&server).await.len(), 0, "what is 401 is not kept");
    let both = [("x-internal-key", SERVICE), ("x-signature", &good)];
    deliver_with(server.anonymous(), &both, body).await.expect(200);
    assert_eq!(left(&server, "user_1").await, paid());

    // What is wrong is a dead letter from the service itself, too, and is replayed without a signature.
    let service = [("x-internal-key", SERVICE)];
    let body = order("ord_2", json!({"plan_code": "team"}));
    deliver_with(server.anonymous(), &service, body).await.expect_code(400, "invalid_request");
    let [letter] = letters(&server).await.try_into().unwrap();
    server.admin().put("/v1/plans/team", json!({"name": "Team", "price_cents": 0})).await.expect(201);
    assert_eq!(replay(&server, &letter).await["status"], "applied");
    let methods = server.anonymous().get(HOOK).await;
    assert_eq!((methods.status, methods.header("allow")), (405, "POST"));
}

both!(a_401_of_the_webhook_counts_against_its_address);
async fn a_401_of_the_webhook_counts_against_its_address(backend: Backend) {
    let server = Server::start(options(&backend).var("RATE_LIMIT_ANON_PER_MINUTE", 3)).await;
    let body = order("ord_1", json!({}));
    for status in [401, 401, 401, 429] {
        let answer = deliver_with(server.anonymous(), &[], body.clone()).await;
        assert_eq!(answer.status, status, "{answer}");
        answer.header("ratelimit-remaining");
    }
    let quota = server.anonymous().get("/internal/billing/quota/check/user_1").await;
    quota.expect_code(429, "rate_limited");
    // Neither signatures nor the service key are held up by that.
    deliver_with(server.anonymous(), &[("x-signature", "bm8=")], body.clone()).await.expect_error(400);
    deliver(server.anonymous(), &body).await.expect(200);
}

both!(without_a_public_key_signatures_are_503_and_the_service_itself_is_taken);
async fn without_a_public_key_signatures_are_503_and_the_service_itself_is_taken(backend: Backend) {
    let server = Server::start(options(&backend).without("PAYMENT_WEBHOOK_PUBLIC_KEY")).await;
    let body = order("ord_1", json!({}));
    let error = deliver(server.anonymous(), &body).await.expect_code(503, "billing_disabled");
    assert!(error["message"].as_str().unwrap().contains("PAYMENT_WEBHOOK_PUBLIC_KEY"), "{error}");
    deliver_with(server.anonymous(), &[], body.clone()).await.expect_code(401, "unauthorized");
    assert_eq!(counted(&server, "disabled").await, 1.0);
    assert_eq!(letters(&server).await.len(), 0);
    deliver_with(server.anonymous(), &[("x-internal-key", SERVICE)], body).await.expect(200);
    assert_eq!(left(&server, "user_1").await, paid());
}

both!(dead_letters_are_an_admins_and_the_services);
async fn dead_letters_are_an_admins_and_the_services(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    let customer = server.customer("acme").await;
    for number in 0..3 {
        let body = order(&format!("ord_{number}"), json!({"plan_code": "none"}));
        deliver(server.anonymous(), &body).await.expect_error(400);
    }
    let letter = letters(&server).await.remove(0);
    let id = letter["id"].as_str().unwrap();
    let replay = format!("{LETTERS}/{id}/replay");
    customer.get(LETTERS).await.expect_code(403, "forbidden");
    customer.call("POST", &replay).send().await.expect_code(403, "forbidden");
    server.anonymous().get(LETTERS).await.expect_code(401, "unauthorized");
    server.anonymous().with_header("x-internal-key", "wrong").get(LETTERS).await.expect_error(401);

    let service = server.anonymous().with_header("x-internal-key", SERVICE);
    let page = service.get(&format!("{LETTERS}?limit=2")).await.expect(200);
    shape(&page, &["data", "next_cursor"]);
    assert_eq!((page["data"].as_array().unwrap().len(), page["next_cursor"].is_string()), (2, true));
    assert_eq!(all_of(&service, &format!("{LETTERS}?limit=2")).await.len(), 3);
    service.get(&format!("{LETTERS}?status=all")).await.expect_code(400, "invalid_request");
    service.call("POST", &replay).send().await.expect(200);
    for unknown in ["pay_none", "evt_none", "%00", "é"] {
        let path = format!("{LETTERS}/{unknown}/replay");
        service.call("POST", &path).send().await.expect_code(404, "not_found");
    }
    // They are among all events, and are seen to there as well.
    let admin = server.admin();
    assert_eq!(all_of(&admin, "/v1/webhooks?limit=2").await.len(), 3);
    let event = admin.get(&format!("/v1/webhooks/{id}")).await.expect(200);
    assert_eq!((&event["source"], &event["detail"]), (&json!("payment"), &letter["reason"]));
    admin.call("POST", &format!("/v1/webhooks/{id}/replay")).send().await.expect(200);
    let dismissed = admin.call("POST", &format!("/v1/webhooks/{id}/dismiss")).send().await.expect(200);
    assert_eq!(dismissed["status"], "dismissed");
    assert_eq!(letters(&server).await.len(), 2);
}

both!(the_command_line_sees_to_dead_letters_too);
async fn the_command_line_sees_to_dead_letters_too(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    for (id, plan) in [("ord_1", "team"), ("ord_2", "none")] {
        deliver(server.anonymous(), &order(id, json!({"plan_code": plan}))).await.expect_error(400);
    }
    let operate = async |arguments: &[&str], succeeds: bool| {
        let output = server.operate(arguments).await;
        let said = String::from_utf8(output.stdout).unwrap();
        let complained = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), succeeds, "{arguments:?}: {said}\n{complained}");
        (said, complained)
    };
    let listed = operate(&["webhooks", "list"], true).await.0;
    let ids: Vec<&str> = listed.lines().map(|line| line.split('\t').nth(1).unwrap()).collect();
    let [none, team] = ids[..] else { panic!("{listed}") };
    assert!(listed.contains("\tpayment\tfailed\t1\t") && listed.contains("`none`"), "{listed}");
    server.admin().put("/v1/plans/team", json!({"name": "Team", "price_cents": 0})).await.expect(201);
    let (said, complained) = operate(&["webhooks", "replay", "--all"], false).await;
    assert_eq!(said, format!("{team}\tapplied\n"));
    assert!(complained.contains(none) && complained.contains("`none`"), "{complained}");
    assert_eq!(left(&server, "user_1").await, (50, 3, "team".to_owned()));
    operate(&["webhooks", "dismiss", none], true).await;
    assert_eq!(operate(&["webhooks", "list"], true).await.0, "");
}

both!(without_the_effect_nothing_is_half_done_and_it_is_sent_again);
async fn without_the_effect_nothing_is_half_done_and_it_is_sent_again(backend: Backend) {
    let server = Server::start(options(&backend)).await;
    let body = order("ord_1", json!({}));
    backend.execute("ALTER TABLE quota_receipts RENAME TO away").await;
    deliver(server.anonymous(), &body).await.expect_code(500, "webhook_failed");
    assert_eq!(left(&server, "user_1").await, free());
    let [letter] = letters(&server).await.try_into().unwrap();
    assert_eq!(letter["status"], "failed");
    backend.execute("ALTER TABLE away RENAME TO quota_receipts").await;
    deliver(server.anonymous(), &body).await.expect(200);
    assert_eq!((left(&server, "user_1").await, counted(&server, "failed").await), (paid(), 1.0));
    assert_eq!(letters(&server).await.len(), 0);
}

#[tokio::test]
async fn what_is_no_public_key_stops_the_start_by_its_name() {
    let short = RsaPrivateKey::new(&mut OsRng, 1_024).unwrap();
    for wrong in [pem(&short), "hunter2".to_owned(), pem(&KEY) + "hunter2"] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = spawn_bare(dir.path(), &[("PAYMENT_WEBHOOK_PUBLIC_KEY".to_owned(), wrong)]);
        assert!(!tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap().success());
        let said = std::fs::read_to_string(dir.path().join("stderr")).unwrap();
        assert!(said.contains("PAYMENT_WEBHOOK_PUBLIC_KEY: ") && !said.contains("hunter2"), "{said}");
    }
}
