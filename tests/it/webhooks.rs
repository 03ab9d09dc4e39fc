//! `POST /webhooks/stripe`, and what an operator sees of it: believed only if it is signed, applied
//! once however often, at once, late or in pieces it comes, and kept where nothing can be made of it.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    harness::{
        Answer, Backend, Client, Options, Proxy, Server, Stopwatch, all_of, both, eventually, postgres,
        shape, storm, unix_now,
    },
    stripe_events::{
        Event, Purchase, Shape, Shop, assert_nothing_granted, credits, deliver, deliver_with, fresh,
        hex_signature, plan_and_status, repository, signature, stripes_library,
    },
    stripe_server::WEBHOOK_SECRET,
};

/// The types that are acted on.
const HANDLED: [&str; 14] = [
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "invoice.paid",
    "invoice.payment_failed",
    "charge.refunded",
    "charge.dispute.created",
    "charge.dispute.closed",
];

fn now() -> i64 {
    unix_now() / 1_000
}

/// Asserts that whoever wrote into the log did not panic while doing so.
#[track_caller]
fn assert_no_panic(server: &Server) {
    let output = server.output().all();
    assert!(!output.contains("panicked"), "{output}");
}

/// What is in the books of everything that an event could bring.
async fn granted(backend: &Backend) -> Vec<Option<String>> {
    backend.texts("SELECT reference FROM credit_grants UNION ALL SELECT id FROM subscriptions").await
}

// --- Signatures --------------------------------------------------------------------------------

both!(what_stripes_library_signs_is_believed);
async fn what_stripes_library_signs_is_believed(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let mut events = Vec::new();
    for shape in Shape::BOTH {
        for name in shape.names() {
            let mode =
                if name.ends_with(".payment") { json!({"credits": 70}) } else { json!({"plan": "pro"}) };
            let purchase = match name.strip_prefix("checkout.session.completed.") {
                Some(_) => shop.checkout(&shop.customer().await.client(), mode).await.shaped(shape),
                None => Purchase::somebody_elses().shaped(shape),
            };
            let kind = name.trim_end_matches(".payment").trim_end_matches(".subscription");
            events.push(purchase.event(if kind.starts_with("checkout") { kind } else { &name }, 0));
        }
    }
    let purchase = shop.checkout(&customer, json!({"credits": 70})).await;
    events
        .push(purchase.paid().with("/data/object/cancel_url", json!("https://shop.example/żółć?\u{1F4B8}")));
    let signing = events.iter().map(|event| json!({"payload": event.body, "secret": WEBHOOK_SECRET}));
    let headers = stripes_library("sign.mjs", signing.collect()).await;
    for (event, header) in events.iter().zip(&headers) {
        let answer = deliver_with(shop.server.anonymous(), Some(header), event.body.as_bytes()).await;
        assert_eq!(answer.expect(200), json!({"received": true}));
    }
    assert_eq!(credits(&customer).await, 70);
    assert_eq!(granted(&backend).await.len(), 5, "three sessions of credits and two of a plan");
    // At the edge of what is believed, and over it.
    for (age, status) in [(290, 200), (-290, 200), (310, 400), (-310, 400), (86_400, 400)] {
        let event = purchase.paid();
        let line = json!({"payload": event.body, "secret": WEBHOOK_SECRET, "timestamp": now() - age});
        let header = stripes_library("sign.mjs", vec![line]).await.remove(0);
        let answer = deliver_with(shop.server.anonymous(), Some(&header), event.body.as_bytes()).await;
        assert_eq!(answer.status, status, "{age} seconds old: {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_signatures_are_good_to_stripes_library() {
    let mut lines = Vec::new();
    for shape in Shape::BOTH {
        for name in ["invoice.paid", "charge.refunded", "customer.subscription.updated"] {
            let event = Purchase::somebody_elses().shaped(shape).event(name, 0);
            let header = signature(WEBHOOK_SECRET, now(), event.body.as_bytes());
            lines.push(json!({"payload": event.body, "header": header, "secret": WEBHOOK_SECRET}));
        }
    }
    let good = lines.len();
    let Event { body, .. } = Purchase::somebody_elses().paid();
    let by = |secret: &str, at: i64| signature(secret, at, body.as_bytes());
    let header = by(WEBHOOK_SECRET, now());
    lines.extend([
        json!({"payload": format!("{body} "), "header": header, "secret": WEBHOOK_SECRET}),
        json!({"payload": body, "header": by("whsec_other", now()), "secret": WEBHOOK_SECRET}),
        json!({"payload": body, "header": by(WEBHOOK_SECRET, now() - 310), "secret": WEBHOOK_SECRET}),
    ]);
    let verdicts = stripes_library("verify.mjs", lines).await;
    for (number, verdict) in verdicts.iter().enumerate() {
        let expected = if number < good { "ok" } else { "err " };
        assert!(verdict.starts_with(expected), "{number}: {verdict}");
    }
}

/// Headers that are no good signature of `body`, each with what is wrong with it.
fn bad_signatures(body: &[u8]) -> Vec<(&'static str, Option<String>)> {
    let now = now();
    let hex = hex_signature(WEBHOOK_SECRET, now, body);
    let good = format!("t={now},v1={hex}");
    let some = |header: String| Some(header);
    vec![
        ("missing", None),
        ("empty", some(String::new())),
        ("garbage", some("nonsense".to_owned())),
        ("commas", some(",,,".to_owned())),
        ("an equals sign", some("=".to_owned())),
        ("a time alone", some(format!("t={now}"))),
        ("a signature alone", some(format!("v1={hex}"))),
        ("the hex alone", some(hex.clone())),
        ("another secret", some(signature("whsec_forged", now, body))),
        ("the empty secret", some(signature("", now, body))),
        ("of another body", some(signature(WEBHOOK_SECRET, now, b"{}"))),
        ("of another time", some(format!("t={},v1={hex}", now - 1))),
        ("of the body without the time", some(format!("t={now},v1={}", bare_signature(body)))),
        ("too old", some(signature(WEBHOOK_SECRET, now - 310, body))),
        ("very old", some(signature(WEBHOOK_SECRET, 0, body))),
        ("from the future", some(signature(WEBHOOK_SECRET, now + 310, body))),
        ("before 1970", some(signature(WEBHOOK_SECRET, -now, body))),
        ("of the end of time", some(signature(WEBHOOK_SECRET, i64::MAX, body))),
        ("in milliseconds", some(signature(WEBHOOK_SECRET, now * 1_000, body))),
        ("of no time", some(format!("t=,v1={hex}"))),
        ("of a time in words", some(format!("t=now,v1={hex}"))),
        ("with a sign", some(format!("t=+{now},v1={hex}"))),
        ("of another scheme alone", some(format!("t={now},v0={hex}"))),
        ("of a later scheme alone", some(format!("t={now},v2={hex}"))),
        ("in capital V", some(format!("t={now},V1={hex}"))),
        ("cut short", some(format!("t={now},v1={}", &hex[..62]))),
        ("cut short by half a byte", some(format!("t={now},v1={}", &hex[..63]))),
        ("its first byte", some(format!("t={now},v1={}", &hex[..2]))),
        ("empty hex", some(format!("t={now},v1="))),
        ("too long", some(format!("t={now},v1={hex}00"))),
        ("not hex", some(format!("t={now},v1={}zz", &hex[..62]))),
        ("in quotes", some(format!("t={now},v1=\"{hex}\""))),
        ("of two times", some(format!("t={now},{good}"))),
        ("of an old and a new time", some(format!("t={},{good}", now - 310))),
        ("of a time behind it too", some(format!("{good},t={now}"))),
        ("split by semicolons", some(format!("t={now};v1={hex}"))),
    ]
}

/// An HMAC of the body alone.
fn bare_signature(body: &[u8]) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(WEBHOOK_SECRET.as_bytes()).unwrap();
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

both!(a_bad_signature_is_400_and_changes_nothing);
async fn a_bad_signature_is_400_and_changes_nothing(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let event = shop.checkout(&customer, json!({"credits": 70})).await.paid();
    let body = event.body.as_bytes();
    let anonymous = shop.server.anonymous();
    for (wrong, header) in bad_signatures(body) {
        let answer = deliver_with(anonymous, header.as_deref(), body).await;
        assert_eq!(answer.status, 400, "{wrong}: {answer}");
        answer.expect_error(400);
        assert!(!answer.text.contains(WEBHOOK_SECRET), "{wrong}: {answer}");
    }
    let good = signature(WEBHOOK_SECRET, now(), body);
    for altered in [
        event.body.replace("70", "7000"),
        format!("{} ", event.body),
        format!(" {}", event.body),
        event.body.replace('\n', "\r\n"),
        serde_json::from_str::<Value>(&event.body).unwrap().to_string(),
        String::new(),
    ] {
        let answer = deliver_with(anonymous, Some(&good), altered.as_bytes()).await;
        answer.expect_error(400);
    }
    // A good key is no signature.
    let call = shop.server.admin().call("POST", "/webhooks/stripe");
    call.body("application/json", event.body.clone()).send().await.expect_error(400);
    let not_ascii = anonymous.call("POST", "/webhooks/stripe").body("application/json", event.body.clone());
    not_ascii.header_bytes("Stripe-Signature", b"t=1,v1=\xff").send().await.expect_error(400);
    assert_nothing_granted(&customer, "nothing that was signed").await;
    assert_eq!(all_of(&shop.server.admin(), "/v1/webhooks?status=all").await, [] as [Value; 0]);
    // The same event, signed.
    shop.tell(&event).await;
    assert_eq!(credits(&customer).await, 70);
    assert_no_panic(&shop.server);
}

both!(any_of_several_signatures_will_do);
async fn any_of_several_signatures_will_do(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let mut expected = 0;
    for form in [
        "t={t},v1={good}",
        "t={t},v1={bad},v1={good}",
        "t={t},v1={good},v1={bad}",
        "t={t},v1={bad},v1={bad},v1=zz,v1=,v1={good}",
        "v1={good},t={t}",
        "t={t},v0={bad},v1={good},v2={bad}",
        "t={t},v1={good},v0={good}",
        "t={t}, v1={good}",
        "t={t},scheme=of=the=future,v1={good}",
        "t={t},v1={GOOD}",
    ] {
        let event = shop.checkout(&customer, json!({"credits": 10})).await.paid();
        let at = now();
        let good = hex_signature(WEBHOOK_SECRET, at, event.body.as_bytes());
        let bad = hex_signature("whsec_rotated_away", at, event.body.as_bytes());
        let header = form.replace("{t}", &at.to_string()).replace("{good}", &good).replace("{bad}", &bad);
        let header = header.replace("{GOOD}", &good.to_ascii_uppercase());
        let answer = deliver_with(shop.server.anonymous(), Some(&header), event.body.as_bytes()).await;
        assert_eq!(answer.expect(200), json!({"received": true}), "{form}");
        expected += 10;
        assert_eq!(credits(&customer).await, expected, "{form}");
    }
}

both!(while_a_secret_is_rotated_both_are_good_and_then_the_old_one_is_not);
async fn while_a_secret_is_rotated_both_are_good_and_then_the_old_one_is_not(backend: Backend) {
    let mut shop = Shop::open_with(Options::on(&backend)).await;
    let customer = shop.customer().await;
    let purchase = shop.checkout(&customer, json!({"credits": 10})).await;
    let statuses = async |server: &Server, secrets: [&str; 2]| {
        let mut statuses = Vec::new();
        for secret in secrets {
            let event = purchase.paid();
            let header = signature(secret, now(), event.body.as_bytes());
            let answer = deliver_with(server.anonymous(), Some(&header), event.body.as_bytes()).await;
            statuses.push(answer.status);
        }
        statuses
    };
    for (secrets, expected) in [
        ("whsec_old", [200, 400]),
        ("whsec_new,whsec_old", [200, 200]),
        (" whsec_old , whsec_new ", [200, 200]),
        ("whsec_new", [400, 200]),
    ] {
        assert!(shop.server.terminate(Duration::from_secs(15)).await.success());
        let options = shop.stripe.sells_for(Options::on(&backend)).var("STRIPE_WEBHOOK_SECRET", secrets);
        shop.server = Server::start(options).await;
        assert_eq!(statuses(&shop.server, ["whsec_old", "whsec_new"]).await, expected, "{secrets}");
        let output = shop.server.output().all();
        assert!(!output.contains("whsec_"), "a secret was logged: {output}");
    }
}

// --- What is signed and odd --------------------------------------------------------------------

/// Stripe's own example of each of its objects; `None` where that file is not here.
fn stripes_fixtures() -> Option<Vec<(String, Value)>> {
    let path = std::env::var("TEST_STRIPE_FIXTURES").map(PathBuf::from);
    let path = path.unwrap_or_else(|_| repository().join("../shared/stripe/fixtures.json"));
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("Stripe's fixtures are not at {}: what they would show is left out", path.display());
        return None;
    };
    let fixtures: Value = serde_json::from_str(&text).unwrap();
    let resources = fixtures["resources"].as_object().unwrap();
    assert!(resources.len() >= 176, "only {} fixtures", resources.len());
    Some(resources.iter().map(|(name, object)| (name.clone(), object.clone())).collect())
}

both!(stripes_own_objects_in_any_event_are_taken_and_grant_nothing);
async fn stripes_own_objects_in_any_event_are_taken_and_grant_nothing(backend: Backend) {
    let Some(fixtures) = stripes_fixtures() else { return };
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    shop.checkout(&customer, json!({"plan": "pro"})).await;
    shop.checkout(&customer, json!({"credits": 100})).await;
    let mut events = Vec::new();
    for (_, object) in &fixtures {
        for kind in HANDLED.into_iter().chain(["made.up.by.nobody"]) {
            events.push(Event::about(kind, object));
        }
    }
    // And each as the object of the event that Stripe itself would put it into.
    events.extend(fixtures.iter().map(|(name, object)| Event::about(&format!("{name}.updated"), object)));
    let total = events.len();
    let signing = events.iter().map(|event| json!({"payload": event.body, "secret": WEBHOOK_SECRET}));
    let headers = stripes_library("sign.mjs", signing.collect()).await;
    assert_eq!(headers.len(), total);
    let client = shop.server.anonymous().clone();
    storm(8, total, move |number| {
        let (client, event, header) = (client.clone(), events[number].clone(), headers[number].clone());
        async move {
            let answer = deliver_with(&client, Some(&header), event.body.as_bytes()).await;
            assert_eq!(answer.expect(200), json!({"received": true}), "{}", event.body);
        }
    })
    .await;
    assert_nothing_granted(&customer, "all of Stripe's fixtures").await;
    assert_eq!(granted(&backend).await, []);
    assert_eq!(shop.server.metric("stripe_webhook_total").await, total as f64);
    assert_no_panic(&shop.server);
}

both!(odd_bodies_that_are_signed_are_refused_without_harm);
async fn odd_bodies_that_are_signed_are_refused_without_harm(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let purchase = shop.checkout(&customer, json!({"credits": 100})).await;
    let paid = purchase.paid();
    let (deep_lists, deep_objects) = ("[".repeat(500), r#"{"a":"#.repeat(500));
    let long = "x".repeat(10_000);
    let with = |field: &str, value: &str| {
        let mut body: Value = serde_json::from_str(&paid.anew().body).unwrap();
        body[field] = json!("PUT HERE");
        body.to_string().replace("\"PUT HERE\"", value)
    };
    let mut bodies: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b" ".to_vec(),
        b"{}".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"true".to_vec(),
        b"\"evt_1\"".to_vec(),
        b"0".to_vec(),
        b"{".to_vec(),
        b"\0".to_vec(),
        b"\xff\xfe{}".to_vec(),
        b"\xef\xbb\xbf{}".to_vec(),
        [b"{\"id\":\"evt_\xc3\x28\",\"type\":\"a\"}".as_slice(), b""].concat(),
        deep_lists.clone().into_bytes(),
        format!("{deep_lists}{}", "]".repeat(500)).into_bytes(),
        format!("{deep_objects}1{}", "}".repeat(500)).into_bytes(),
        paid.body.as_bytes()[..paid.body.len() / 2].to_vec(),
        format!("{}{}", paid.body, paid.body).into_bytes(),
        r#"{"$serde_json::private::RawValue":"[[[["}"#.into(),
        r#"{"$serde_json::private::Number":"1"}"#.into(),
    ];
    for id in [
        "null",
        "1",
        "\"\"",
        "[]",
        "\"a b\"",
        "\"a\\u0000b\"",
        "\"\\ud83d\"",
        "\"ż\"",
        &format!("\"{long}\""),
    ] {
        bodies.push(with("id", id).into_bytes());
    }
    for kind in ["null", "7", "\"\"", "[\"invoice.paid\"]", "\"invoice.paid\\u0000\"", &format!("\"{long}\"")]
    {
        bodies.push(with("type", kind).into_bytes());
    }
    for data in [
        "null",
        "[]",
        "{}",
        "\"object\"",
        "{\"object\":null}",
        "{\"object\":[]}",
        "{\"object\":7}",
        "{\"object\":\"cs_1\"}",
        "{\"object\":{}}",
        &format!("{{\"object\":{deep_lists}{}}}", "]".repeat(500)),
        &format!("{{\"object\":{{\"customer\":{deep_objects}1{}}}}}", "}".repeat(500)),
    ] {
        bodies.push(with("data", data).into_bytes());
    }
    for body in bodies {
        let answer = deliver(shop.server.anonymous(), &body).await;
        assert!([200, 400].contains(&answer.status), "{answer}");
        assert_nothing_granted(&customer, &String::from_utf8_lossy(&body)).await;
    }
    for (over, status) in [(0, 400), (1, 413)] {
        let body = vec![b' '; (1 << 20) + over];
        deliver(shop.server.anonymous(), &body).await.expect_error(status);
    }
    assert_eq!(granted(&backend).await, []);
    assert_no_panic(&shop.server);
}

both!(an_event_that_does_not_say_well_when_it_happened_is_taken_all_the_same);
async fn an_event_that_does_not_say_well_when_it_happened_is_taken_all_the_same(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let times = [
        "null",
        "-1",
        "0",
        "1e3",
        "1e999",
        "99999999999999999999999999",
        "\"2026-01-01\"",
        "[]",
        "1.5",
        "true",
    ];
    for (number, created) in times.into_iter().enumerate() {
        let event = shop.checkout(&customer, json!({"credits": 10})).await.paid();
        let mut body: Value = serde_json::from_str(&event.body).unwrap();
        body["created"] = json!("PUT HERE");
        let body = body.to_string().replace("\"PUT HERE\"", created);
        assert_eq!(deliver(shop.server.anonymous(), body.as_bytes()).await.status, 200, "{created}");
        assert_eq!(credits(&customer).await, 10 * (number as i64 + 1), "{created}");
    }
    let event = shop.checkout(&customer, json!({"credits": 10})).await.paid();
    let mut body: Value = serde_json::from_str(&event.body).unwrap();
    body.as_object_mut().unwrap().remove("created");
    deliver(shop.server.anonymous(), body.to_string().as_bytes()).await.expect(200);
    assert_eq!(credits(&customer).await, 110);
    let listed = all_of(&shop.server.admin(), "/v1/webhooks?status=all").await;
    assert_eq!(listed.len(), 11);
}

/// Values that a field of Stripe's would hardly have.
fn odd_values() -> Vec<Value> {
    vec![
        json!(null),
        json!(true),
        json!(-1),
        json!(i64::MIN),
        json!(i64::MAX),
        json!(u64::MAX),
        json!(0.5),
        serde_json::from_str("1e400").unwrap(),
        serde_json::from_str("123456789012345678901234567890").unwrap(),
        json!(""),
        json!("a\u{0}b"),
        json!("x".repeat(10_000)),
        json!("1000"),
        json!([]),
        json!([[null], {}, "cus_1"]),
        json!({}),
        json!({"id": {"id": {"id": 5}}}),
        json!({"data": 7}),
    ]
}

/// The JSON pointers of all that stands in `value`, itself left out.
fn pointers(value: &Value, at: &str, into: &mut Vec<String>) {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, inner)| (name.clone(), inner)).collect(),
        Value::Array(items) => items.iter().enumerate().map(|(at, inner)| (at.to_string(), inner)).collect(),
        _ => vec![],
    };
    for (name, inner) in inner {
        let path = format!("{at}/{name}");
        pointers(inner, &path, into);
        into.push(path);
    }
}

both!(every_field_of_every_object_may_be_odd);
async fn every_field_of_every_object_may_be_odd(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    // Known as far as its customer, so that it is looked at, and never paid for.
    let plan = shop.checkout(&customer, json!({"plan": "pro"})).await;
    let unpaid = Purchase::somebody_elses().but(json!({"customer": plan.id("customer"), "amount": 77}));
    let mut events = Vec::new();
    for shape in Shape::BOTH {
        let purchase = unpaid.clone().shaped(shape);
        for name in shape.names() {
            let template = match name.strip_prefix("checkout.session.completed.") {
                Some("subscription") => purchase.clone().subscribing().paid(),
                Some(_) => purchase.paid(),
                None => purchase.event(&name, 0),
            };
            let whole: Value = serde_json::from_str(&template.body).unwrap();
            let mut paths = Vec::new();
            pointers(&whole["data"]["object"], "/data/object", &mut paths);
            for (number, path) in paths.iter().enumerate() {
                let odd = &odd_values()[number % odd_values().len()];
                events.push(template.anew().with(path, odd.clone()));
            }
            for odd in odd_values() {
                let mut changed = whole.clone();
                for (_, value) in changed["data"]["object"].as_object_mut().unwrap() {
                    *value = odd.clone();
                }
                events.push(Event { id: template.id.clone(), body: changed.to_string() }.anew());
            }
        }
    }
    assert!(events.len() > 1_500, "only {} events", events.len());
    let client = shop.server.anonymous().clone();
    storm(8, events.len(), move |number| {
        let (client, event) = (client.clone(), events[number].clone());
        async move {
            let answer = event.deliver(&client).await;
            assert!(answer.status < 500, "{answer}");
        }
    })
    .await;
    assert_nothing_granted(&customer, "odd events").await;
    assert_eq!(backend.texts("SELECT reference FROM credit_grants").await, []);
    assert_no_panic(&shop.server);
}

both!(odd_values_where_they_matter_grant_nothing);
async fn odd_values_where_they_matter_grant_nothing(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let bought = shop.checkout(&customer, json!({"credits": 1_000})).await;
    let plan = shop.checkout(&customer, json!({"plan": "pro"})).await;
    for odd in odd_values() {
        for field in ["amount_total", "currency", "customer", "id", "payment_status"] {
            for purchase in [&bought, &plan] {
                let event = purchase.paid().with(&format!("/data/object/{field}"), odd.clone());
                let answer = event.deliver(shop.server.anonymous()).await;
                assert!(answer.status < 500, "{answer}");
                assert_nothing_granted(&customer, &event.body).await;
            }
        }
        for field in ["currency", "customer"] {
            for shape in Shape::BOTH {
                let event = plan.clone().shaped(shape).event("invoice.paid", 0);
                let event = event.with(&format!("/data/object/{field}"), odd.clone());
                let answer = event.deliver(shop.server.anonymous()).await;
                assert!(answer.status < 500, "{answer}");
                assert_nothing_granted(&customer, &event.body).await;
            }
        }
        let invoice = plan.event("invoice.paid", 0);
        let invoice = invoice.with("/data/object/total", odd.clone());
        let invoice = invoice.with("/data/object/amount_paid", odd.clone());
        let answer = invoice.deliver(shop.server.anonymous()).await;
        assert!(answer.status < 500, "{answer}");
        assert_nothing_granted(&customer, &invoice.body).await;
    }
    assert_no_panic(&shop.server);
}

// --- At once -----------------------------------------------------------------------------------

/// Delivers each event to the servers in turn, `times` times in all, with all of it at once.
async fn deliver_at_once(servers: &[Client], events: &[Event], times: usize) -> Vec<Answer> {
    let deliveries = (0..times).map(|number| {
        let (client, event) =
            (servers[number % servers.len()].clone(), events[number % events.len()].clone());
        tokio::spawn(async move { event.deliver(&client).await })
    });
    let deliveries: Vec<_> = deliveries.collect();
    let mut answers = Vec::new();
    for delivery in deliveries {
        answers.push(delivery.await.unwrap());
    }
    answers
}

async fn one_grant_of_24_deliveries(shop: &Shop, servers: &[Client]) {
    for shape in Shape::BOTH {
        for round in 1..=3 {
            let customer = shop.customer().await;
            let purchase = shop.checkout(&customer, json!({"credits": 1_000})).await.shaped(shape);
            let event = purchase.paid();
            for answer in deliver_at_once(servers, std::slice::from_ref(&event), 24).await {
                assert_eq!(answer.expect(200), json!({"received": true}));
            }
            assert_eq!(credits(&customer).await, 1_000, "round {round}");
            let stored = shop.server.admin().get(&format!("/v1/webhooks/{}", event.id)).await.expect(200);
            assert_eq!((&stored["status"], &stored["attempts"]), (&json!("applied"), &json!(1)));
        }
    }
}

both!(the_same_event_by_24_deliveries_at_once_is_one_grant);
async fn the_same_event_by_24_deliveries_at_once_is_one_grant(backend: Backend) {
    let shop = Shop::open(&backend).await;
    one_grant_of_24_deliveries(&shop, &[shop.server.anonymous().clone()]).await;
    let text = shop.server.anonymous().get("/metrics").await;
    let counted: BTreeMap<String, f64> = text.expect_metrics().into_iter().collect();
    let of = |result: &str| {
        counted[&format!("stripe_webhook_total{{result=\"{result}\",type=\"checkout.session.completed\"}}")]
    };
    assert_eq!((of("applied"), of("duplicate")), (6.0, 138.0));
}

postgres!(the_same_event_by_24_deliveries_over_two_replicas_is_one_grant);
async fn the_same_event_by_24_deliveries_over_two_replicas_is_one_grant(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let other = Server::start(shop.stripe.sells_for(Options::on(&backend))).await;
    let servers = [shop.server.anonymous().clone(), other.anonymous().clone()];
    one_grant_of_24_deliveries(&shop, &servers).await;
}

async fn one_state_of_all_events_at_once(shop: &Shop, servers: &[Client]) {
    let plan = json!({"name": "Pro", "price_cents": 1_000, "included_credits": 250});
    shop.server.admin().put("/v1/plans/pro", plan).await.expect(200);
    for round in 0..6 {
        for shape in Shape::BOTH {
            let customer = shop.customer().await;
            let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await.shaped(shape);
            let events = purchase.told_of_subscribing([0; 4]);
            for answer in deliver_at_once(servers, &events, 4 + 4 * (round % 3)).await {
                answer.expect(200);
            }
            let active = ("pro".to_owned(), "active".to_owned());
            assert_eq!(plan_and_status(&customer).await, active, "{shape:?}");
            assert_eq!(credits(&customer).await, 250, "{shape:?}");
        }
    }
    assert_eq!(shop.open_events().await, []);
}

both!(all_events_of_a_purchase_at_once_come_to_one_state);
async fn all_events_of_a_purchase_at_once_come_to_one_state(backend: Backend) {
    let shop = Shop::open(&backend).await;
    one_state_of_all_events_at_once(&shop, &[shop.server.anonymous().clone()]).await;
}

postgres!(all_events_of_a_purchase_at_once_over_two_replicas_come_to_one_state);
async fn all_events_of_a_purchase_at_once_over_two_replicas_come_to_one_state(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let other = Server::start(shop.stripe.sells_for(Options::on(&backend))).await;
    let servers =
        [shop.server.anonymous().clone(), other.anonymous().clone(), shop.server.anonymous().clone()];
    one_state_of_all_events_at_once(&shop, &servers).await;
}

both!(while_stripe_tells_much_casts_go_on);
async fn while_stripe_tells_much_casts_go_on(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let events: Vec<Event> = (0..200).map(|_| Purchase::somebody_elses().paid()).collect();
    let client = shop.server.anonymous().clone();
    let telling = tokio::spawn(storm(100, events.len(), move |number| {
        let (client, event) = (client.clone(), events[number].clone());
        async move { event.deliver(&client).await.status }
    }));
    while !telling.is_finished() {
        customer.echo().await.expect(200);
    }
    let statuses = telling.await.unwrap();
    // Who waits too long is told to send it again.
    assert!(statuses.iter().all(|status| [200, 500].contains(status)), "{statuses:?}");
}

// --- What an operator sees ---------------------------------------------------------------------

const EVENT_FIELDS: [&str; 9] =
    ["id", "source", "type", "status", "detail", "attempts", "created_at", "received_at", "done_at"];

both!(what_was_paid_and_matches_nothing_is_listed_and_replayed);
async fn what_was_paid_and_matches_nothing_is_listed_and_replayed(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let (admin, customer) = (shop.server.admin(), shop.customer().await);
    // A plan that is sold at another price than the catalogue has, until an admin adds that.
    let purchase = shop.checkout(&customer, json!({"plan": "pro"})).await;
    let odd_price = purchase.but(json!({"price": "price_odd", "amount": 777}));
    let kept = [odd_price.event("customer.subscription.created", 0), odd_price.event("invoice.paid", 0)];
    // Told again, they wait for an operator as before.
    for event in kept.iter().chain(&kept) {
        shop.tell(event).await;
    }
    shop.tell(&Event::about("made.up", &json!({}))).await;
    assert_nothing_granted(&customer, "a subscription at another price").await;
    let listed = all_of(&admin, "/v1/webhooks?limit=1").await;
    assert_eq!(listed.len(), 2);
    for (event, listed) in kept.iter().rev().zip(&listed) {
        shape(listed, &EVENT_FIELDS);
        assert_eq!((&listed["id"], &listed["source"]), (&json!(event.id), &json!("stripe")));
        assert_eq!((&listed["status"], &listed["attempts"]), (&json!("kept"), &json!(1)));
        assert!(listed["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{listed}");
        assert_eq!(admin.get(&format!("/v1/webhooks/{}", event.id)).await.expect(200), *listed);
    }
    for (status, count) in [("kept", 2), ("ignored", 1), ("applied", 0), ("failed", 0), ("all", 3)] {
        let listed = all_of(&admin, &format!("/v1/webhooks?status={status}")).await;
        assert_eq!(listed.len(), count, "{status}: {listed:?}");
    }
    admin.get("/v1/webhooks?status=odd").await.expect_error(400);
    admin.get("/v1/webhooks/evt_none").await.expect_error(404);
    admin.post("/v1/webhooks/evt_none/replay", json!({})).await.expect_error(404);

    let replay = async |event: &Event| {
        admin.post(&format!("/v1/webhooks/{}/replay", event.id), json!({})).await.expect(200)
    };
    let again = replay(&kept[0]).await;
    assert_eq!((&again["status"], &again["attempts"]), (&json!("kept"), &json!(2)));
    let plan =
        json!({"name": "Odd", "price_cents": 777, "stripe_price_id": "price_odd", "included_credits": 9});
    admin.put("/v1/plans/odd", plan).await.expect(201);
    for event in &kept {
        for _ in 0..2 {
            let replayed = replay(event).await;
            assert_eq!(replayed["status"], "applied", "{replayed}");
        }
    }
    assert_eq!(credits(&customer).await, 9);
    assert_eq!(shop.open_events().await, []);
}

both!(only_an_admin_sees_and_replays_events);
async fn only_an_admin_sees_and_replays_events(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let kept = Purchase::somebody_elses().paid();
    shop.tell(&kept).await;
    let replay = format!("/v1/webhooks/{}/replay", kept.id);
    let admin = shop.server.admin();
    let billing = customer.another_key(&admin, json!({"scopes": ["billing", "read"]})).await;
    for caller in [&customer, &billing] {
        caller.get("/v1/webhooks").await.expect_error(403);
        caller.get(&format!("/v1/webhooks/{}", kept.id)).await.expect_error(403);
        caller.get("/v1/webhooks/evt_none").await.expect_error(403);
        caller.post(&replay, json!({})).await.expect_error(403);
    }
    let anonymous = shop.server.anonymous();
    anonymous.get("/v1/webhooks").await.expect_error(401);
    anonymous.post(&replay, json!({})).await.expect_error(401);
    assert_eq!(admin.get(&format!("/v1/webhooks/{}", kept.id)).await.expect(200)["attempts"], 1);
}

both!(an_operator_dismisses_what_was_seen_to_and_nobody_else_may);
async fn an_operator_dismisses_what_was_seen_to_and_nobody_else_may(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let (admin, customer) = (shop.server.admin(), shop.customer().await);
    let stranger = Purchase::somebody_elses().paid();
    let bought = shop.checkout(&customer, json!({"credits": 100})).await.paid();
    for event in [&stranger, &bought] {
        shop.tell(event).await;
    }
    let dismiss = |id: &str| format!("/v1/webhooks/{id}/dismiss");
    customer.post(&dismiss(&stranger.id), json!({})).await.expect_code(403, "forbidden");
    admin.post(&dismiss("evt_none"), json!({})).await.expect_code(404, "not_found");
    let dismissed = admin.post(&dismiss(&stranger.id), json!({})).await.expect(200);
    assert_eq!(dismissed["status"], "dismissed");
    let applied = admin.post(&dismiss(&bought.id), json!({})).await.expect(200);
    assert_eq!(applied["status"], "applied", "what was applied stays so");
    assert_eq!(shop.open_events().await, []);
    // Sent again by Stripe, it is as it was.
    shop.tell(&stranger).await;
    assert_eq!(shop.open_events().await, []);
}

both!(the_command_line_lists_and_replays);
async fn the_command_line_lists_and_replays(backend: Backend) {
    let mut shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let mut refunds = Vec::new();
    let mut purchases = Vec::new();
    for _ in 0..3 {
        let purchase = shop.checkout(&customer, json!({"credits": 100})).await;
        let refund = purchase.refunded(40, 5);
        shop.tell(&refund).await;
        refunds.push(refund.id);
        purchases.push(purchase);
    }
    let stranger = Purchase::somebody_elses().paid();
    shop.tell(&stranger).await;
    let operate = async |shop: &Shop, arguments: &[&str], succeeds: bool| {
        let output = shop.server.operate(arguments).await;
        let (said, complained) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        assert_eq!(output.status.success(), succeeds, "{arguments:?}: {said}\n{complained}");
        assert!(!format!("{said}{complained}").contains("panicked"), "{complained}");
        (said, complained)
    };
    let (listed, _) = operate(&shop, &["webhooks", "list"], true).await;
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!(lines.len(), 4, "{listed}");
    for (line, id) in lines.iter().zip(refunds.iter().chain([&stranger.id]).rev()) {
        let columns: Vec<&str> = line.split('\t').collect();
        assert_eq!((columns[1], columns[3], columns[4]), (id.as_str(), "kept", "1"), "{line}");
    }
    // Beside a server that runs, and after what they waited for has come.
    for purchase in &purchases {
        shop.tell(&purchase.paid()).await;
    }
    assert_eq!(credits(&customer).await, 180);
    let (replayed, _) = operate(&shop, &["webhooks", "replay", &refunds[0]], true).await;
    assert_eq!(replayed, format!("{}\tapplied\n", refunds[0]));
    let (again, _) = operate(&shop, &["webhooks", "replay", &refunds[0]], true).await;
    assert!(again.contains("before"), "{again}");
    let (_, missing) = operate(&shop, &["webhooks", "replay", "evt_none"], false).await;
    assert!(missing.contains("evt_none"), "{missing}");
    // And without one.
    assert!(shop.server.terminate(Duration::from_secs(15)).await.success());
    let (replayed, _) = operate(&shop, &["webhooks", "replay", "--all"], true).await;
    assert_eq!(replayed.lines().count(), 3, "{replayed}");
    let (listed, _) = operate(&shop, &["webhooks", "list"], true).await;
    assert!(listed.lines().count() == 1 && listed.contains(&stranger.id), "{listed}");
    let (applied, _) = operate(&shop, &["webhooks", "list", "--status", "applied"], true).await;
    assert_eq!(applied.lines().count(), 6, "{applied}");
    // What was seen to in another way leaves the list, and can still be replayed.
    operate(&shop, &["webhooks", "dismiss", &stranger.id], true).await;
    operate(&shop, &["webhooks", "dismiss", "evt_none"], false).await;
    assert_eq!(operate(&shop, &["webhooks", "list"], true).await.0, "");
    let (replayed, _) = operate(&shop, &["webhooks", "replay", &stranger.id], true).await;
    assert_eq!(replayed, format!("{}\tkept\n", stranger.id));
    operate(&shop, &["webhooks", "list", "--status", "odd"], false).await;
    operate(&shop, &["webhooks", "replay"], false).await;
    operate(&shop, &["webhooks", "replay", "--all", "evt_1"], false).await;
    shop.server.restart().await;
    assert_eq!(credits(&customer).await, 180);
}

// --- What fails --------------------------------------------------------------------------------

/// Delivers an event until it is taken, as Stripe does, also to a server that is not there.
async fn deliver_until_taken(client: &Client, event: &Event) {
    eventually(Duration::from_secs(90), "the event is taken", || async {
        let answer = event.try_deliver(client).await?;
        assert!(answer.status == 200 || answer.status >= 500, "{answer}");
        (answer.status == 200).then_some(())
    })
    .await;
}

both!(a_kill_amid_deliveries_loses_and_doubles_nothing);
async fn a_kill_amid_deliveries_loses_and_doubles_nothing(backend: Backend) {
    let mut shop = Shop::open(&backend).await;
    let plan = json!({"name": "Pro", "price_cents": 1_000, "included_credits": 250});
    shop.server.admin().put("/v1/plans/pro", plan).await.expect(200);
    let mut events = Vec::new();
    let mut expected = Vec::new();
    for number in 0..12 {
        let customer = shop.customer().await;
        let shape = Shape::BOTH[number % 2];
        let mut total = 250;
        let subscribed = shop.checkout(&customer, json!({"plan": "pro"})).await.shaped(shape);
        events.extend(subscribed.told_of_subscribing([0; 4]));
        for bought in 1..=4 {
            let credits = 100 + bought * 10 + number as i64;
            let purchase = shop.checkout(&customer, json!({ "credits": credits })).await.shaped(shape);
            events.push(purchase.paid());
            total += credits;
            if bought == 4 {
                events.push(purchase.refunded(30, 5));
                total -= 30;
            }
        }
        expected.push((customer, total));
    }
    let total = events.len() * 2;
    let taken = Arc::new(AtomicUsize::new(0));
    let (client, count) = (shop.server.anonymous().clone(), taken.clone());
    // Each of them twice: Stripe may well tell again what was taken.
    let sending = tokio::spawn(storm(8, total, move |number| {
        let (client, count, event) = (client.clone(), count.clone(), events[number % events.len()].clone());
        async move {
            deliver_until_taken(&client, &event).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    }));
    for kill in 1..=3 {
        eventually(Duration::from_secs(90), "some events are taken", || async {
            (taken.load(Ordering::Relaxed) >= total * kill / 5).then_some(())
        })
        .await;
        shop.server.kill9();
        shop.server.restart().await;
        assert!(!sending.is_finished(), "the {kill}. kill came too late");
    }
    sending.await.unwrap();
    for (customer, total) in &expected {
        assert_eq!(plan_and_status(customer).await, ("pro".to_owned(), "active".to_owned()));
        assert_eq!(credits(customer).await, *total);
    }
    // A refund may have come before what it was of; that is counted all the same, and left to be seen.
    for (id, status) in shop.open_events().await {
        assert_eq!(status, "kept");
        let replayed = shop.server.admin().post(&format!("/v1/webhooks/{id}/replay"), json!({})).await;
        assert_eq!(replayed.expect(200)["type"], "charge.refunded");
    }
    assert_eq!(shop.open_events().await, []);
    for (customer, total) in &expected {
        assert_eq!(credits(customer).await, *total);
    }
    assert_no_panic(&shop.server);
}

postgres!(without_the_database_a_delivery_is_refused_in_time_and_applied_when_it_comes_again);
async fn without_the_database_a_delivery_is_refused_in_time_and_applied_when_it_comes_again(
    backend: Backend,
) {
    let proxy = Proxy::to(backend.address()).await;
    let options = Options::on(&backend).var("DATABASE_URL", backend.url_through(proxy.port()));
    let shop = Shop::open_with(options).await;
    let customer = shop.customer().await;
    let mut expected = 0;
    for hangs in [false, true, false] {
        let event = shop.checkout(&customer, json!({"credits": 100})).await.paid();
        match hangs {
            true => proxy.hang().await,
            false => proxy.cut().await,
        }
        for _ in 0..2 {
            let watch = Stopwatch::start();
            let answer = event.deliver(shop.server.anonymous()).await;
            assert!((500..600).contains(&answer.status), "{answer}");
            watch.assert_under(Duration::from_millis(3_700), "a delivery without the database");
        }
        // A bad signature is one without a database too.
        deliver_with(shop.server.anonymous(), Some("t=1,v1=00"), b"{}").await.expect_error(400);
        proxy.restore().await;
        let balance = eventually(Duration::from_secs(15), "the balance can be read", || async {
            let answer = customer.get("/api/billing/balance").await;
            (answer.status == 200).then(|| answer.body())
        });
        assert_eq!(balance.await["credits"], expected, "nothing half done");
        deliver_until_taken(shop.server.anonymous(), &event).await;
        expected += 100;
        assert_eq!(credits(&customer).await, expected);
        shop.tell(&event).await;
        assert_eq!(credits(&customer).await, expected);
    }
    assert_eq!(shop.open_events().await, []);
    assert_no_panic(&shop.server);
}

postgres!(without_the_database_many_deliveries_at_once_are_all_refused_in_time);
async fn without_the_database_many_deliveries_at_once_are_all_refused_in_time(backend: Backend) {
    let proxy = Proxy::to(backend.address()).await;
    let options = Options::on(&backend).var("DATABASE_URL", backend.url_through(proxy.port()));
    let shop = Shop::open_with(options).await;
    let customer = shop.customer().await;
    let mut events = Vec::new();
    for _ in 0..20 {
        events.push(shop.checkout(&customer, json!({"credits": 10})).await.paid());
    }
    proxy.hang().await;
    let watch = Stopwatch::start();
    for answer in deliver_at_once(&[shop.server.anonymous().clone()], &events, 40).await {
        assert!((500..600).contains(&answer.status), "{answer}");
    }
    watch.assert_under(Duration::from_millis(3_700), "40 deliveries without the database");
    proxy.restore().await;
    for event in &events {
        deliver_until_taken(shop.server.anonymous(), event).await;
    }
    assert_eq!(credits(&customer).await, 200);
    assert_eq!(shop.open_events().await, []);
}

postgres!(a_database_that_is_cut_amid_deliveries_loses_and_doubles_nothing);
async fn a_database_that_is_cut_amid_deliveries_loses_and_doubles_nothing(backend: Backend) {
    let proxy = Proxy::to(backend.address()).await;
    let options = Options::on(&backend).var("DATABASE_URL", backend.url_through(proxy.port()));
    let shop = Shop::open_with(options).await;
    let customer = shop.customer().await;
    let mut events = Vec::new();
    for _ in 0..60 {
        events.push(shop.checkout(&customer, json!({"credits": 10})).await.paid());
    }
    let taken = Arc::new(AtomicUsize::new(0));
    let (client, count) = (shop.server.anonymous().clone(), taken.clone());
    let sending = tokio::spawn(storm(8, 120, move |number| {
        let (client, count, event) = (client.clone(), count.clone(), events[number % 60].clone());
        async move {
            deliver_until_taken(&client, &event).await;
            count.fetch_add(1, Ordering::Relaxed);
        }
    }));
    for cut in 1..=3 {
        eventually(Duration::from_secs(60), "some events are taken", || async {
            (taken.load(Ordering::Relaxed) >= 120 * cut / 5).then_some(())
        })
        .await;
        proxy.cut().await;
        proxy.restore().await;
    }
    sending.await.unwrap();
    // A connection that nobody used since may still be a broken one.
    eventually(Duration::from_secs(15), "the database is read again", || async {
        for _ in 0..20 {
            if customer.get("/api/billing/balance").await.status != 200 {
                return None;
            }
        }
        Some(())
    })
    .await;
    assert_eq!(credits(&customer).await, 600);
    assert_eq!(shop.open_events().await, []);
    assert_no_panic(&shop.server);
}

both!(an_event_whose_effect_fails_stays_open_until_it_can_be_applied);
async fn an_event_whose_effect_fails_stays_open_until_it_can_be_applied(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    let event = shop.checkout(&customer, json!({"credits": 100})).await.paid();
    // Somebody broke a table.
    backend.execute("ALTER TABLE credit_grants RENAME TO credit_grants_away").await;
    for attempts in 1..=2 {
        let answer = event.deliver(shop.server.anonymous()).await;
        assert!((500..600).contains(&answer.status), "{answer}");
        let stored = shop.server.admin().get(&format!("/v1/webhooks/{}", event.id)).await.expect(200);
        assert_eq!((&stored["status"], &stored["attempts"]), (&json!("failed"), &json!(attempts)));
        assert_eq!(shop.open_events().await, [(event.id.clone(), "failed".to_owned())]);
        assert_nothing_granted(&customer, "an event that failed").await;
    }
    backend.execute("ALTER TABLE credit_grants_away RENAME TO credit_grants").await;
    shop.tell(&event).await;
    assert_eq!(credits(&customer).await, 100);
    assert_eq!(shop.open_events().await, []);
}

// --- Without the secrets -----------------------------------------------------------------------

both!(without_a_secret_what_needs_it_is_503_and_the_rest_works);
async fn without_a_secret_what_needs_it_is_503_and_the_rest_works(backend: Backend) {
    let stripe = crate::stripe_server::StripeServer::start().await;
    let all = stripe.sells_for(Options::on(&backend));
    for (options, sells, hears, named) in [
        (all.clone(), true, true, vec![]),
        (all.clone().without("STRIPE_WEBHOOK_SECRET"), true, false, vec!["STRIPE_WEBHOOK_SECRET"]),
        (all.clone().without("STRIPE_SECRET_KEY"), false, true, vec!["STRIPE_SECRET_KEY"]),
        (
            all.without("STRIPE_SECRET_KEY").without("STRIPE_WEBHOOK_SECRET"),
            false,
            false,
            vec!["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"],
        ),
    ] {
        let mut server = Server::start(options).await;
        let output = server.output().all();
        for name in ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"] {
            let told = output.lines().filter(|line| line.contains(name)).count();
            assert_eq!(told, usize::from(named.contains(&name)), "{name} in {output}");
        }
        let warnings = output.lines().filter(|line| line.contains("STRIPE_")).count();
        assert_eq!(warnings, usize::from(!named.is_empty()), "{output}");
        let customer = server.customer("acme").await;
        customer.echo().await.expect(200);
        assert_nothing_granted(&customer, "nothing").await;
        customer.get("/v1/plans").await.expect(200);
        server.admin().put("/v1/plans/pro", json!({"name": "Pro", "price_cents": 1_000})).await.expect(200);
        let bought = customer.post("/v1/billing/checkout", json!({"credits": 100})).await;
        let portal = customer.post("/v1/billing/portal", json!({})).await;
        match sells {
            true => {
                bought.expect(200);
                portal.expect(200);
            }
            false => {
                bought.expect_code(503, "billing_disabled");
                portal.expect_code(503, "billing_disabled");
            }
        }
        let event = Purchase::somebody_elses().paid();
        let heard = event.deliver(server.anonymous()).await;
        let unsigned = deliver_with(server.anonymous(), None, b"{}").await;
        match hears {
            true => {
                heard.expect(200);
                unsigned.expect_error(400);
            }
            false => {
                heard.expect_code(503, "billing_disabled");
                unsigned.expect_code(503, "billing_disabled");
            }
        }
        assert!(server.terminate(Duration::from_secs(15)).await.success());
    }
}

// --- Metrics -----------------------------------------------------------------------------------

both!(every_delivery_is_counted_by_type_and_result);
async fn every_delivery_is_counted_by_type_and_result(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let counted = async || -> BTreeMap<String, f64> {
        let series = shop.server.anonymous().get("/metrics").await.expect_metrics();
        series.into_iter().filter(|(name, _)| name.starts_with("stripe_webhook_total{")).collect()
    };
    let named =
        |kind: &str, result: &str| format!("stripe_webhook_total{{result=\"{result}\",type=\"{kind}\"}}");
    let at_first = counted().await;
    for kind in HANDLED {
        for result in ["applied", "ignored", "kept", "duplicate", "failed"] {
            assert_eq!(at_first.get(&named(kind, result)), Some(&0.0), "{kind} {result}");
        }
    }
    assert!(at_first.values().all(|value| *value == 0.0), "{at_first:?}");

    let customer = shop.customer().await;
    let purchase = shop.checkout(&customer, json!({"credits": 100})).await;
    let (paid, refunded) = (purchase.paid(), purchase.refunded(10, 1));
    let stranger = Purchase::somebody_elses();
    let odd = Event::about(&fresh("kind"), &json!({}));
    let (kept, ignored) = (stranger.paid(), stranger.event("customer.subscription.updated", 0));
    for event in [&paid, &paid, &paid, &refunded, &kept, &ignored, &odd, &odd] {
        shop.tell(event).await;
    }
    deliver_with(shop.server.anonymous(), None, b"{}").await.expect_error(400);
    deliver(shop.server.anonymous(), b"{}").await.expect_error(400);
    let mut moved: Vec<(String, f64)> =
        counted().await.into_iter().filter(|(_, value)| *value > 0.0).collect();
    moved.sort_by(|one, other| one.0.cmp(&other.0));
    let mut expected = vec![
        (named("checkout.session.completed", "applied"), 1.0),
        (named("checkout.session.completed", "duplicate"), 2.0),
        (named("checkout.session.completed", "kept"), 1.0),
        (named("charge.refunded", "applied"), 1.0),
        (named("customer.subscription.updated", "ignored"), 1.0),
        (named("other", "ignored"), 1.0),
        (named("other", "duplicate"), 1.0),
        (named("other", "bad_signature"), 1.0),
        (named("other", "no_event"), 1.0),
    ];
    expected.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(moved, expected);
    assert_eq!(counted().await.len(), at_first.len(), "no new series");
}
