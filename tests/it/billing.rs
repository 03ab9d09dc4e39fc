//! Checkout and portal, against a stand-in for Stripe.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    harness::{
        Answer, Backend, Client, Options, Server, Stopwatch, both, eventually, postgres, shape, storm,
        usage_cents,
    },
    stripe_events::ask_program,
    stripe_server::{Asked, SECRET_KEY, StripeServer, Trouble, error},
};

const CUSTOMERS: &str = "/v1/customers";
const SESSIONS: &str = "/v1/checkout/sessions";
const PORTAL: &str = "/v1/billing_portal/sessions";

async fn with_stripe(backend: &Backend) -> (Server, StripeServer) {
    let stripe = StripeServer::start().await;
    (Server::start(stripe.sells_for(Options::on(backend))).await, stripe)
}

async fn checkout(client: &Client, body: Value) -> Answer {
    client.post("/v1/billing/checkout", body).await
}

async fn checkout_once(client: &Client, key: &str, body: Value) -> Answer {
    let call = client.call("POST", "/v1/billing/checkout").json(&body);
    call.header("Idempotency-Key", key).send().await
}

#[track_caller]
fn session(answer: &Answer) -> String {
    let body = answer.expect(200);
    shape(&body, &["url", "session_id"]);
    assert!(body["url"].as_str().unwrap().starts_with("https://checkout.example/"), "{body}");
    body["session_id"].as_str().unwrap().to_owned()
}

/// One text of each purchase, in the order in which they were made.
async fn purchases(backend: &Backend, column: &str) -> Vec<Option<String>> {
    backend.texts(&format!("SELECT CAST({column} AS TEXT) FROM purchases ORDER BY id")).await
}

both!(a_purchase_is_written_before_stripe_hears_of_it);
async fn a_purchase_is_written_before_stripe_hears_of_it(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    let gate = watch::Sender::new(false);
    stripe.next(SESSIONS, Trouble::Gate(gate.clone()));
    let client = customer.client();
    let asking = tokio::spawn(async move { checkout(&client, json!({"plan": "pro"})).await });
    stripe.wait_for(SESSIONS, 1).await;
    let asked = stripe.asked(SESSIONS).remove(0);
    let known = stripe.asked(CUSTOMERS).remove(0);
    for (column, value) in [
        ("id", Some(asked.field("client_reference_id"))),
        ("account_id", Some(&customer.account_id)),
        ("customer_id", Some(asked.field("customer"))),
        ("plan", Some("pro")),
        ("credits", None),
        ("amount_cents", Some("1000")),
        ("currency", Some("usd")),
        ("status", Some("open")),
        ("session_id", None),
    ] {
        assert_eq!(purchases(&backend, column).await, [value.map(str::to_owned)], "{column}");
    }
    gate.send_replace(true);
    let session = session(&asking.await.unwrap());
    assert_eq!(purchases(&backend, "session_id").await, [Some(session)]);
    assert_eq!(known.field("name"), "acme");
    assert_eq!(known.field("metadata[account_id]"), customer.account_id);
    assert!(known.key() != asked.key() && asked.key().contains(asked.field("client_reference_id")));
    assert_eq!(asked.headers["authorization"], format!("Bearer {SECRET_KEY}"));
}

both!(what_is_sold_is_what_stripe_is_told);
async fn what_is_sold_is_what_stripe_is_told(backend: Backend) {
    let stripe = StripeServer::start().await;
    let options = stripe.sells_for(Options::on(&backend)).var("BILLING_CURRENCY", "EUR");
    let options = options.var("CREDIT_PRICE_CENTS", 3).var("PUBLIC_URL", "https://pay.example/app/");
    let server = Server::start(options).await;
    let customer = server.customer("acme").await;
    session(&customer.call("POST", "/v1/billing/checkout").send().await);
    session(&checkout(&customer, json!({})).await);
    for asked in stripe.asked(SESSIONS) {
        assert_eq!((asked.method.as_str(), asked.field("mode")), ("POST", "subscription"));
        assert_eq!(asked.field("line_items[0][price_data][currency]"), "eur");
        assert_eq!(asked.field("line_items[0][price_data][unit_amount]"), "1000");
        assert_eq!(asked.field("line_items[0][price_data][recurring][interval]"), "month");
        assert_eq!(asked.field("line_items[0][price_data][product_data][name]"), "Pro");
        assert_eq!(asked.field("line_items[0][quantity]"), "1");
        let purchase = asked.field("client_reference_id");
        assert_eq!(asked.field("metadata[purchase_id]"), purchase);
        assert_eq!(asked.field("subscription_data[metadata][purchase_id]"), purchase);
        assert_eq!(
            asked.field("success_url"),
            "https://pay.example/app/billing/return?checkout=success&session_id={CHECKOUT_SESSION_ID}"
        );
        assert_eq!(asked.field("cancel_url"), "https://pay.example/app/billing/return?checkout=canceled");
    }
    let plan =
        json!({"name": "Team", "price_cents": 5_000, "stripe_price_id": "price_team", "currency": "usd"});
    server.admin().put("/v1/plans/team", plan).await.expect(201);
    let back = json!({"plan": "team", "success_url": "http://localhost:3000/{CHECKOUT_SESSION_ID}",
                      "cancel_url": "https://shop.example/?a=b#c"});
    session(&checkout(&customer, back).await);
    let asked = stripe.asked(SESSIONS).remove(2);
    assert_eq!(asked.field("line_items[0][price]"), "price_team");
    assert_eq!(asked.field("success_url"), "http://localhost:3000/{CHECKOUT_SESSION_ID}");
    assert_eq!(asked.field("cancel_url"), "https://shop.example/?a=b#c");
    assert!(!asked.form.keys().any(|name| name.contains("price_data")), "{asked:?}");

    session(&checkout(&customer, json!({"credits": 1_000})).await);
    let asked = stripe.asked(SESSIONS).remove(3);
    assert_eq!(asked.field("mode"), "payment");
    assert_eq!(asked.field("line_items[0][price_data][unit_amount]"), "3000");
    assert_eq!(asked.field("line_items[0][price_data][product_data][name]"), "1000 credits");
    assert_eq!(asked.field("payment_intent_data[metadata][purchase_id]"), asked.field("client_reference_id"));
    let texts = |texts: [&str; 4]| texts.map(|text| (!text.is_empty()).then(|| text.to_owned()));
    assert_eq!(purchases(&backend, "plan").await, texts(["pro", "pro", "team", ""]));
    assert_eq!(purchases(&backend, "credits").await, texts(["", "", "", "1000"]));
    assert_eq!(purchases(&backend, "amount_cents").await, texts(["1000", "1000", "5000", "3000"]));
    assert_eq!(purchases(&backend, "currency").await, texts(["eur", "eur", "usd", "eur"]));
    assert_eq!(stripe.asked(CUSTOMERS).len(), 1);
}

both!(of_24_checkouts_at_once_one_makes_the_customer);
async fn of_24_checkouts_at_once_one_makes_the_customer(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    let client = customer.client();
    let answers = storm(24, 24, move |_| {
        let client = client.clone();
        async move { checkout(&client, json!({"credits": 5})).await }
    })
    .await;
    let sessions: BTreeSet<String> = answers.iter().map(session).collect();
    assert_eq!(sessions.len(), 24);
    assert_eq!(stripe.asked(CUSTOMERS).len(), 1);
    let customers: BTreeSet<String> =
        stripe.asked(SESSIONS).iter().map(|asked| asked.field("customer").to_owned()).collect();
    assert_eq!(customers.len(), 1);
}

postgres!(replicas_make_one_customer_between_them);
async fn replicas_make_one_customer_between_them(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let other = Server::start(stripe.sells_for(Options::on(&backend))).await;
    let customer = server.customer("acme").await;
    let clients = [customer.client(), customer.at(other.anonymous())];
    let answers = storm(8, 8, move |number| {
        let client = clients[number % 2].clone();
        async move { checkout(&client, json!({"credits": 5})).await }
    })
    .await;
    answers.iter().for_each(|answer| drop(session(answer)));
    let keys: BTreeSet<String> = stripe.asked(CUSTOMERS).iter().map(|asked| asked.key().to_owned()).collect();
    assert_eq!(keys.len(), 1);
    let customers: BTreeSet<Option<String>> = purchases(&backend, "customer_id").await.into_iter().collect();
    assert_eq!(customers.len(), 1);
    let known = backend.texts("SELECT customer_id FROM stripe_customers").await;
    assert_eq!(known.into_iter().collect::<BTreeSet<_>>(), customers);
}

both!(what_may_pass_is_tried_again_with_the_same_key);
async fn what_may_pass_is_tried_again_with_the_same_key(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    let busy = error("api_error", None, None);
    for (path, troubles) in [
        (CUSTOMERS, [Trouble::Status(500, busy.clone()), Trouble::Drop]),
        (SESSIONS, [Trouble::Status(429, busy.clone()), Trouble::Drop]),
    ] {
        troubles.into_iter().for_each(|trouble| stripe.next(path, trouble));
    }
    let first = session(&checkout(&customer, json!({})).await);
    for path in [CUSTOMERS, SESSIONS] {
        let asked = stripe.asked(path);
        let keys: BTreeSet<&str> = asked.iter().map(|asked| asked.key()).collect();
        assert_eq!((asked.len(), keys.len()), (3, 1), "{path}");
    }
    stripe.next(
        SESSIONS,
        Trouble::Status(409, error("idempotency_error", Some("idempotency_key_in_use"), None)),
    );
    assert_ne!(session(&checkout(&customer, json!({})).await), first);
    assert_eq!(stripe.asked(CUSTOMERS).len(), 3, "no other customer");
}

both!(stripe_failing_is_502_and_touches_no_cast);
async fn stripe_failing_is_502_and_touches_no_cast(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    stripe.always(CUSTOMERS, Some(Trouble::Status(500, error("api_error", None, None))));
    let failed = checkout(&customer, json!({})).await;
    failed.expect_code(502, "stripe_error");
    assert_eq!((stripe.asked(CUSTOMERS).len(), stripe.asked(SESSIONS).len()), (3, 0));
    assert_eq!(purchases(&backend, "id").await, []);
    stripe.always(CUSTOMERS, None);
    for (status, body, tries) in [
        (500, error("api_error", None, None), 3),
        (503, json!("not even an error"), 3),
        (400, error("invalid_request_error", Some("parameter_invalid"), Some("line_items")), 1),
        (401, error("invalid_request_error", None, None), 1),
        (200, json!({"id": "cs_without_an_address"}), 1),
        (200, json!("no session"), 3),
    ] {
        let before = stripe.asked(SESSIONS).len();
        stripe.always(SESSIONS, Some(Trouble::Status(status, body)));
        let failed = checkout(&customer, json!({})).await;
        failed.expect_code(502, "stripe_error");
        assert!(!failed.text.contains(SECRET_KEY), "{failed}");
        let asked = stripe.asked(SESSIONS).split_off(before);
        assert!(asked.len() <= tries, "{} times for a {status}", asked.len());
        if status != 200 {
            assert_eq!(asked.len(), tries, "for a {status}");
        }
    }
    customer.echo().await.expect(200);
    assert!(!server.output().all().contains(SECRET_KEY), "the secret key is in the log");
    stripe.always(SESSIONS, None);
    session(&checkout(&customer, json!({})).await);
}

both!(stripe_not_answering_is_502_within_seconds_and_casts_go_on);
async fn stripe_not_answering_is_502_within_seconds_and_casts_go_on(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    stripe.always(CUSTOMERS, Some(Trouble::Hang));
    let clock = Stopwatch::start();
    let client = customer.client();
    let asking = tokio::spawn(async move { checkout(&client, json!({})).await });
    stripe.wait_for(CUSTOMERS, 1).await;
    let casts = Stopwatch::start();
    for _ in 0..20 {
        customer.echo().await.expect(200);
    }
    casts.assert_under(Duration::from_secs(2), "20 casts while Stripe does not answer");
    asking.await.unwrap().expect_code(502, "stripe_error");
    clock.assert_under(Duration::from_secs(10), "the answer");
    assert_eq!(usage_cents(&customer.usage("").await), (20, 20, 0));
    stripe.always(CUSTOMERS, None);
    session(&checkout(&customer, json!({})).await);
    stripe.always(PORTAL, Some(Trouble::Hang));
    let clock = Stopwatch::start();
    customer.post("/v1/billing/portal", json!({})).await.expect_code(502, "stripe_error");
    clock.assert_under(Duration::from_secs(10), "the portal's answer");
}

both!(a_bad_request_changes_nothing_and_asks_nobody);
async fn a_bad_request_changes_nothing_and_asks_nobody(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    for bad in [
        json!({"plan": "pro", "credits": 1}),
        json!({"plan": "none"}),
        json!({"plan": ""}),
        json!({"plan": "a b\n"}),
        json!({"plan": 5}),
        json!({"plan": "free"}),
        json!({"credits": 0}),
        json!({"credits": -1}),
        json!({"credits": 100_000_000}),
        json!({"credits": i64::MAX}),
        json!({"credits": 5.0}),
        json!({"credits": "5"}),
        json!({"plan": "pro", "plam": 1}),
        json!({"success_url": "http://example.com"}),
        json!({"success_url": "javascript:alert(1)"}),
        json!({"success_url": ""}),
        json!({"cancel_url": "https://user@example.com"}),
        json!({"cancel_url": "/back"}),
        json!({"cancel_url": format!("https://example.com/{}", "a".repeat(2_048))}),
        json!([]),
    ] {
        checkout(&customer, bad).await.expect_code(400, "invalid_request");
    }
    let call = || customer.call("POST", "/v1/billing/checkout");
    call().body("application/json", "{").send().await.expect_error(400);
    call().body("text/plain", "{}").send().await.expect_error(415);
    call().json(&json!({})).header("Idempotency-Key", "a b").send().await.expect_error(400);
    customer.post("/v1/billing/checkout?x=1", json!({})).await.expect_error(400);
    for bad in [json!({"return_url": "http://example.com"}), json!({"return_url": 1}), json!({"url": "x"})] {
        customer.post("/v1/billing/portal", bad).await.expect_error(400);
    }
    assert_eq!(purchases(&backend, "id").await, []);
    assert_eq!(backend.texts("SELECT key FROM idempotency_keys").await, []);
    assert_eq!(stripe.all_asked(), 0);
}

both!(amounts_that_stripe_does_not_charge_are_400);
async fn amounts_that_stripe_does_not_charge_are_400(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    let refused = error("invalid_request_error", Some("amount_too_small"), None);
    stripe.next(SESSIONS, Trouble::Status(400, refused));
    checkout_once(&customer, "k", json!({"credits": 1})).await.expect_code(400, "invalid_request");
    assert_eq!(purchases(&backend, "status").await, [Some("failed".to_owned())]);
    // It was refused, so the key may come again, also with another body.
    session(&checkout_once(&customer, "k", json!({"credits": 100})).await);
}

both!(while_a_subscription_runs_no_other_is_sold);
async fn while_a_subscription_runs_no_other_is_sold(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let (customer, other) = (server.customer("acme").await, server.customer("other").await);
    backend
        .execute(&format!(
            "INSERT INTO subscriptions (id, account_id, status, status_at, status_rank, object_at,
                                        cancel_at_period_end, invoice_at, created_at)
             VALUES ('sub_1', '{}', 'active', 1, 2, 1, false, 0, 1)",
            customer.account_id
        ))
        .await;
    for status in ["active", "trialing", "past_due"] {
        backend.execute(&format!("UPDATE subscriptions SET status = '{status}'")).await;
        checkout_once(&customer, "k", json!({})).await.expect_code(409, "subscription_active");
        checkout(&customer, json!({"plan": "pro"})).await.expect_code(409, "subscription_active");
    }
    assert_eq!(stripe.all_asked(), 0);
    session(&checkout(&customer, json!({"credits": 5})).await);
    session(&checkout(&other, json!({})).await);
    for status in ["canceled", "incomplete_expired", "incomplete"] {
        backend.execute(&format!("UPDATE subscriptions SET status = '{status}'")).await;
        session(&checkout(&customer, json!({})).await);
    }
    // What was refused before Stripe was asked is not kept.
    session(&checkout_once(&customer, "k", json!({})).await);
}

both!(a_replay_gives_the_first_answer_and_sells_once);
async fn a_replay_gives_the_first_answer_and_sells_once(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    let first = checkout_once(&customer, "k", json!({"credits": 5})).await;
    session(&first);
    assert!(!first.headers.contains_key("idempotent-replayed"));
    for _ in 0..3 {
        let again = checkout_once(&customer, "k", json!({"credits": 5})).await;
        assert_eq!((again.status, &again.text), (200, &first.text));
        assert_eq!(again.header("idempotent-replayed"), "true");
    }
    checkout_once(&customer, "k", json!({"credits": 6})).await.expect_code(422, "idempotency_key_reused");
    // One name space with casts.
    customer.cast_once("k", "echo", json!(1)).await.expect_code(422, "idempotency_key_reused");
    customer.cast_once("cast", "echo", json!(1)).await.expect(200);
    checkout_once(&customer, "cast", json!({})).await.expect_code(422, "idempotency_key_reused");
    assert_eq!((purchases(&backend, "id").await.len(), stripe.asked(SESSIONS).len()), (1, 1));
    let other = server.customer("other").await;
    assert_ne!(checkout_once(&other, "k", json!({"credits": 5})).await.expect(200), first.body());
}

both!(of_many_at_once_with_one_key_one_is_sold);
async fn of_many_at_once_with_one_key_one_is_sold(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    let client = customer.client();
    let answers = storm(16, 16, move |_| {
        let client = client.clone();
        async move { checkout_once(&client, "k", json!({"credits": 5})).await }
    })
    .await;
    let mut sessions = BTreeSet::new();
    for answer in &answers {
        match answer.status {
            200 => drop(sessions.insert(session(answer))),
            _ => drop(answer.expect_code(409, "in_progress")),
        }
    }
    assert_eq!((sessions.len(), stripe.asked(SESSIONS).len()), (1, 1));
    assert_eq!(purchases(&backend, "id").await.len(), 1);
}

both!(a_failure_is_kept_under_its_key);
async fn a_failure_is_kept_under_its_key(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    for path in [CUSTOMERS, SESSIONS] {
        let customer = server.customer("acme").await;
        stripe.always(path, Some(Trouble::Status(500, error("api_error", None, None))));
        let failed = checkout_once(&customer, "k", json!({"credits": 5})).await;
        failed.expect_code(502, "stripe_error");
        stripe.always(path, None);
        let asked = stripe.all_asked();
        let again = checkout_once(&customer, "k", json!({"credits": 5})).await;
        assert_eq!((again.status, &again.text), (502, &failed.text));
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(stripe.all_asked(), asked);
        session(&checkout_once(&customer, "another", json!({"credits": 5})).await);
    }
}

both!(who_hangs_up_has_bought_all_the_same);
async fn who_hangs_up_has_bought_all_the_same(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    let gate = watch::Sender::new(false);
    stripe.next(SESSIONS, Trouble::Gate(gate.clone()));
    let call = customer.call("POST", "/v1/billing/checkout").json(&json!({}));
    let call = call.header("Idempotency-Key", "k").hang_up_after(Duration::from_millis(500));
    assert!(call.try_send().await.is_err());
    stripe.wait_for(SESSIONS, 1).await;
    checkout_once(&customer, "k", json!({})).await.expect_code(409, "in_progress");
    // An event that is faster than Stripe's answer: what it said stands.
    backend.execute("UPDATE purchases SET status = 'paid'").await;
    gate.send_replace(true);
    let stored = eventually(Duration::from_secs(10), "the session is stored", || async {
        purchases(&backend, "session_id").await.remove(0)
    })
    .await;
    assert_eq!(purchases(&backend, "status").await, [Some("paid".to_owned())]);
    let again = checkout_once(&customer, "k", json!({})).await;
    assert_eq!(session(&again), stored);
    assert_eq!(again.header("idempotent-replayed"), "true");
}

both!(what_a_crash_left_is_gone_on_with);
async fn what_a_crash_left_is_gone_on_with(backend: Backend) {
    let (mut server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    stripe.next(SESSIONS, Trouble::Hang);
    let client = customer.client();
    let asking = tokio::spawn(async move {
        let call = client.call("POST", "/v1/billing/checkout").json(&json!({}));
        call.header("Idempotency-Key", "k").try_send().await.is_err()
    });
    stripe.wait_for(SESSIONS, 1).await;
    server.kill9();
    assert!(asking.await.unwrap());
    server.restart().await;
    checkout_once(&customer, "k", json!({})).await.expect_code(409, "in_progress");
    // Half a minute later.
    backend.execute("UPDATE idempotency_keys SET expires_at = expires_at - 31000").await;
    checkout_once(&customer, "k", json!({"plan": "pro"})).await.expect_code(422, "idempotency_key_reused");
    let client = customer.client();
    let answers = storm(4, 4, move |_| {
        let client = client.clone();
        async move { checkout_once(&client, "k", json!({})).await }
    })
    .await;
    let sold: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 200).collect();
    assert!(!sold.is_empty());
    for answer in &answers {
        if answer.status != 200 {
            answer.expect_code(409, "in_progress");
        }
    }
    let asked = stripe.asked(SESSIONS);
    let keys: BTreeSet<&str> = asked.iter().map(|asked| asked.key()).collect();
    assert_eq!((asked.len(), keys.len()), (2, 1), "asked again with the same key");
    assert_eq!(purchases(&backend, "session_id").await, [Some(session(sold[0]))]);
}

both!(a_customer_that_stripe_forgot_is_made_again);
async fn a_customer_that_stripe_forgot_is_made_again(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    session(&checkout(&customer, json!({})).await);
    let gone = stripe.asked(SESSIONS)[0].field("customer").to_owned();
    stripe.delete(&gone);
    customer.post("/v1/billing/portal", json!({})).await.expect_code(404, "customer_not_found");
    let client = customer.client();
    let answers = storm(6, 6, move |_| {
        let client = client.clone();
        async move { checkout(&client, json!({"credits": 5})).await }
    })
    .await;
    answers.iter().for_each(|answer| drop(session(answer)));
    let keys: BTreeSet<String> = stripe.asked(CUSTOMERS).iter().map(|asked| asked.key().to_owned()).collect();
    assert_eq!((keys.len(), stripe.asked(CUSTOMERS).len()), (2, 2));
    let known = backend.texts("SELECT customer_id FROM stripe_customers").await;
    assert_ne!(known, [Some(gone)]);
    assert_eq!(purchases(&backend, "customer_id").await.split_off(1), vec![known[0].clone(); 6]);
    customer.post("/v1/billing/portal", json!({})).await.expect(200);
}

both!(an_address_that_stripe_takes_for_none_is_left_out);
async fn an_address_that_stripe_takes_for_none_is_left_out(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let admin = server.admin();
    for (email, bad) in [("billing@example.com", false), ("odd@localhost", true)] {
        let account = admin.post("/v1/accounts", json!({"name": "acme", "email": email})).await.expect(201);
        if bad {
            let refused = error("invalid_request_error", Some("email_invalid"), Some("email"));
            stripe.next(CUSTOMERS, Trouble::Status(400, refused));
        }
        let path = format!("/v1/billing/checkout?account_id={}", account["id"].as_str().unwrap());
        session(&admin.post(&path, json!({})).await);
        let asked = stripe.asked(CUSTOMERS).pop().unwrap();
        assert_eq!(asked.form.get("email").map(String::as_str), (!bad).then_some(email));
        assert_eq!(asked.field("metadata[account_id]"), account["id"]);
    }
}

both!(the_portal_is_for_who_bought);
async fn the_portal_is_for_who_bought(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let customer = server.customer("acme").await;
    customer.post("/v1/billing/portal", json!({})).await.expect_code(404, "customer_not_found");
    assert_eq!(stripe.all_asked(), 0);
    session(&checkout(&customer, json!({})).await);
    let portal = customer.call("POST", "/v1/billing/portal").send().await.expect(200);
    shape(&portal, &["url"]);
    assert!(portal["url"].as_str().unwrap().starts_with("https://portal.example/"));
    let back = json!({"return_url": "https://shop.example/account"});
    stripe.next(PORTAL, Trouble::Status(500, error("api_error", None, None)));
    customer.post("/v1/billing/portal", back).await.expect(200);
    let [first, failed, again] = stripe.asked(PORTAL).try_into().unwrap();
    assert_eq!(first.field("customer"), stripe.asked(SESSIONS)[0].field("customer"));
    assert_eq!(first.field("return_url"), format!("http://127.0.0.1:{}/", server.port()));
    assert_eq!(failed.field("return_url"), "https://shop.example/account");
    assert_eq!(failed.key(), again.key());
    assert_ne!(first.key(), failed.key());
    stripe.always(PORTAL, Some(Trouble::Status(400, error("invalid_request_error", None, None))));
    customer.post("/v1/billing/portal", json!({})).await.expect_code(502, "stripe_error");
}

both!(what_stripe_is_sent_is_what_it_takes);
async fn what_stripe_is_sent_is_what_it_takes(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let admin = server.admin();
    let plan = json!({"name": "Team & Söhne", "price_cents": 50_000, "currency": "eur", "interval": "year"});
    admin.put("/v1/plans/team", plan).await.expect(201);
    let plan = json!({"name": "Listed", "price_cents": 500, "stripe_price_id": "price_listed"});
    admin.put("/v1/plans/listed", plan).await.expect(201);
    let account = json!({"name": "żółć", "email": "buyer@shop.example"});
    let account = admin.post("/v1/accounts", account).await.expect(201);
    let of_account = format!("?account_id={}", account["id"].as_str().unwrap());
    for order in [
        json!({}),
        json!({"plan": "pro", "success_url": "https://shop.example/?a=b&c={CHECKOUT_SESSION_ID}#d"}),
        json!({"plan": "team", "cancel_url": "http://localhost:3000/ż"}),
        json!({"plan": "listed"}),
        json!({"credits": 1_000}),
        json!({"credits": 1}),
        json!({"credits": 99_999_999}),
    ] {
        session(&admin.post(&format!("/v1/billing/checkout{of_account}"), order).await);
    }
    admin.post(&format!("/v1/billing/portal{of_account}"), json!({})).await.expect(200);
    let sent = stripe.everything_asked().into_iter().map(|asked| {
        let Asked { method, path, headers, body, .. } = asked;
        json!({"method": method, "path": path, "headers": headers, "body": body})
    });
    let sent: Vec<Value> = sent.collect();
    assert_eq!(sent.len(), 1 + 7 + 1, "{sent:?}");
    let check = move || ask_program("python3", &["check_requests.py"], json!(sent).to_string());
    let verdict = tokio::task::spawn_blocking(check).await.unwrap();
    assert_eq!(verdict, "9 requests are as Stripe's description wants them\n");
}

both!(who_may_buy);
async fn who_may_buy(backend: Backend) {
    let (server, stripe) = with_stripe(&backend).await;
    let (admin, customer) = (server.admin(), server.customer("acme").await);
    for (scope, status) in [("billing", 200), ("admin", 200), ("cast", 403), ("read", 403), ("keys", 403)] {
        let key = customer.another_key(&admin, json!({"scopes": [scope]})).await;
        checkout(&key, json!({"credits": 5})).await.expect(status);
        key.post("/v1/billing/portal", json!({})).await.expect(status);
    }
    checkout(server.anonymous(), json!({})).await.expect_error(401);
    let other = server.customer("other").await;
    let path = format!("/v1/billing/checkout?account_id={}", other.account_id);
    customer.post(&path, json!({})).await.expect_error(404);
    session(&admin.post(&path, json!({})).await);
    assert_eq!(stripe.asked(CUSTOMERS).pop().unwrap().field("metadata[account_id]"), other.account_id);
    admin.patch(&format!("/v1/accounts/{}", other.account_id), json!({"suspended": true})).await.expect(200);
    session(&checkout(&other, json!({})).await);
}

both!(the_page_to_come_back_to_echoes_nothing);
async fn the_page_to_come_back_to_echoes_nothing(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    for (query, words) in [
        ("?checkout=success&session_id=cs_<script>", "is being confirmed"),
        ("?checkout=canceled&x=<script>", "nothing was bought"),
        ("", "is being confirmed"),
    ] {
        let page = server.anonymous().get(&format!("/billing/return{query}")).await;
        assert_eq!(page.status, 200, "{page}");
        assert!(page.header("content-type").starts_with("text/html"), "{page}");
        assert!(page.text.contains(words) && !page.text.contains("script"), "{page}");
    }
    server.anonymous().post("/billing/return", json!({})).await.expect_error(405);
}

both!(ready_says_which_half_is_missing);
async fn ready_says_which_half_is_missing(backend: Backend) {
    let stripe = StripeServer::start().await;
    let both = stripe.sells_for(Options::on(&backend));
    for (options, told, sells) in [
        (both.clone(), "configured", true),
        (both.clone().without("STRIPE_SECRET_KEY"), "STRIPE_SECRET_KEY is not set", false),
        (both.clone().without("STRIPE_WEBHOOK_SECRET"), "STRIPE_WEBHOOK_SECRET is not set", true),
        (Options::on(&backend), "not configured", false),
    ] {
        let mut server = Server::start(options).await;
        assert_eq!(server.anonymous().get("/ready").await.expect(200)["stripe"], told);
        let customer = server.customer("acme").await;
        let bought = checkout(&customer, json!({})).await;
        match sells {
            true => drop(session(&bought)),
            false => {
                bought.expect_code(503, "billing_disabled");
                checkout(&customer, json!({"credits": 0})).await.expect_error(400);
                let portal = customer.post("/v1/billing/portal", json!({})).await;
                portal.expect_code(503, "billing_disabled");
            }
        }
        customer.get("/v1/plans").await.expect(200);
        assert!(server.terminate(Duration::from_secs(15)).await.success());
    }
}
