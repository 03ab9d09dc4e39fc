//! What models' tokens cost: open to read, changed by admins and other services, at once.

use serde_json::{Value, json};

use crate::harness::{Answer, Backend, Client, Options, Server, both, postgres, shape, storm};

const TOKEN: &str = "a-token-that-only-services-have-0123456789";
const PRICING: &str = "/api/billing/pricing";

/// A server, and a client with its service key.
async fn start(backend: &Backend) -> (Server, Client) {
    let server = Server::start(Options::on(backend).var("SERVICE_TOKEN", TOKEN)).await;
    let service = server.anonymous().with_header("X-Internal-Key", TOKEN);
    (server, service)
}

/// The body of an error in this surface's shape.
#[track_caller]
fn refused(answer: &Answer, status: u16, code: &str) -> String {
    let body = answer.expect(status);
    shape(&body, &["error"]);
    shape(&body["error"], &["code", "message"]);
    assert_eq!(body["error"]["code"], code, "{answer}");
    body["error"]["message"].as_str().unwrap().to_owned()
}

fn price(price_per_m_token: i64, category: &str) -> Value {
    json!({"price_per_m_token": price_per_m_token, "category": category})
}

fn at_the_start() -> Value {
    json!({
        "gemini-2.0-flash": price(45, "quick"),
        "gemini-2.0-pro": price(70, "quick"),
        "gemini-2.5-flash": price(250, "quick"),
        "gemini-2.5-pro": price(1010, "think"),
        "gpt-5-mini": price(200, "quick"),
    })
}

both!(prices_are_open_to_all);
async fn prices_are_open_to_all(backend: Backend) {
    let (server, _) = start(&backend).await;
    for client in
        [server.anonymous().clone(), server.anonymous().with_key("no-key-of-anyone"), server.admin()]
    {
        assert_eq!(client.get(PRICING).await.expect(200), at_the_start());
        let one = client.get(&format!("{PRICING}/gemini-2.5-pro")).await.expect(200);
        shape(&one, &["model_id", "price_per_m_token", "category", "updated_at", "history"]);
        assert_eq!((&one["price_per_m_token"], &one["category"]), (&json!(1010), &json!("think")));
        assert_eq!(one["history"].as_array().unwrap().len(), 1);
        shape(&one["history"][0], &["price_per_m_token", "category", "created_at"]);
    }
    let anonymous = server.anonymous();
    assert_eq!(anonymous.call("HEAD", PRICING).send().await.expect(200), Value::Null);
    for nowhere in ["none", "a%00", "a%0Ab", "gemini-2.5-pro/x", &"x".repeat(201)] {
        refused(&anonymous.get(&format!("{PRICING}/{nowhere}")).await, 404, "NOT_FOUND");
    }
    refused(&anonymous.get(&format!("{PRICING}?x=1")).await, 400, "BAD_REQUEST");
    refused(&anonymous.post(PRICING, json!({})).await, 405, "METHOD_NOT_ALLOWED");
    // What is not open still is not.
    refused(&anonymous.get("/api/billing/balance").await, 403, "FORBIDDEN");
    refused(&anonymous.get("/api/billing/nothing").await, 403, "FORBIDDEN");
}

both!(a_price_is_made_and_replaced_and_its_past_is_kept);
async fn a_price_is_made_and_replaced_and_its_past_is_kept(backend: Backend) {
    let (mut server, service) = start(&backend).await;
    let (admin, anonymous) = (server.admin(), server.anonymous().clone());
    let path = format!("{PRICING}/vendor/a%20model");
    let made = admin.put(&path, price(1, "quick")).await.expect(201);
    shape(&made, &["model_id", "price_per_m_token", "category", "updated_at"]);
    assert_eq!((&made["model_id"], &made["price_per_m_token"]), (&json!("vendor/a model"), &json!(1)));
    assert_eq!(anonymous.get(PRICING).await.expect(200)["vendor/a model"], price(1, "quick"));

    let replaced = service.put(&path, price(1_000_000_000, "think")).await.expect(200);
    assert_eq!(
        admin.put(&path, price(1_000_000_000, "think")).await.expect(200),
        replaced,
        "nothing changed"
    );
    let entry = |answer: &Value| {
        let mut entry =
            price(answer["price_per_m_token"].as_i64().unwrap(), answer["category"].as_str().unwrap());
        entry["created_at"] = answer["updated_at"].clone();
        entry
    };
    let mut shown = replaced.clone();
    shown["history"] = json!([entry(&replaced), entry(&made)]);
    assert_eq!(anonymous.get(&path).await.expect(200), shown);

    admin.put(&format!("{PRICING}/gpt-5-mini"), price(201, "think")).await.expect(200);
    server.kill9();
    server.restart().await;
    let mut all = at_the_start();
    all["gpt-5-mini"] = price(201, "think");
    all["vendor/a model"] = price(1_000_000_000, "think");
    assert_eq!(anonymous.get(PRICING).await.expect(200), all);
}

both!(a_bad_price_is_400_and_the_old_one_stands);
async fn a_bad_price_is_400_and_the_old_one_stands(backend: Backend) {
    let (server, service) = start(&backend).await;
    let admin = server.admin();
    for bad in [
        json!({}),
        json!([]),
        json!({"price_per_m_token": 1}),
        json!({"category": "quick"}),
        price(0, "quick"),
        price(-1, "quick"),
        price(1_000_000_001, "quick"),
        price(1, "slow"),
        price(1, "QUICK"),
        price(1, "quick\0"),
        json!({"price_per_m_token": 1.0, "category": "quick"}),
        json!({"price_per_m_token": "1", "category": "quick"}),
        json!({"price_per_m_token": 1, "category": null}),
        json!({"price_per_m_token": 1, "category": "quick", "model_id": "gpt-5-mini"}),
    ] {
        for (client, model) in [(&admin, "gpt-5-mini"), (&service, "new")] {
            let answer = client.put(&format!("{PRICING}/{model}"), bad.clone()).await;
            assert!(refused(&answer, 400, "BAD_REQUEST").len() > 5, "{answer}");
        }
    }
    for model in ["a%00", "a%0Ab", "%C2%85", &"x".repeat(201), &"%C3%A9".repeat(101), "new?x=1"] {
        let answer = admin.put(&format!("{PRICING}/{model}"), price(1, "quick")).await;
        refused(&answer, 400, "BAD_REQUEST");
    }
    let untyped =
        admin.call("PUT", &format!("{PRICING}/new")).body("text/plain", price(1, "quick").to_string());
    refused(&untyped.send().await, 415, "UNSUPPORTED_MEDIA_TYPE");
    assert_eq!(admin.get(PRICING).await.expect(200), at_the_start());
}

both!(only_admins_and_services_change_a_price);
async fn only_admins_and_services_change_a_price(backend: Backend) {
    let (server, _) = start(&backend).await;
    let (anonymous, customer) = (server.anonymous(), server.customer("acme").await);
    let billing = customer.another_key(&server.admin(), json!({"scopes": ["billing", "read"]})).await;
    let path = format!("{PRICING}/gpt-5-mini");
    let told = refused(&anonymous.put(&path, price(1, "quick")).await, 403, "FORBIDDEN");
    assert_eq!(told, "Not authenticated");
    for client in [customer.client(), billing.client()] {
        refused(&client.put(&path, price(1, "quick")).await, 403, "FORBIDDEN");
    }
    for client in [anonymous.with_key("no-key-of-anyone"), anonymous.with_header("x-internal-key", "wrong")] {
        refused(&client.put(&path, price(1, "quick")).await, 401, "UNAUTHORIZED");
    }
    assert_eq!(anonymous.get(PRICING).await.expect(200), at_the_start());
}

postgres!(a_change_acts_at_once_on_every_replica_and_none_is_lost);
async fn a_change_acts_at_once_on_every_replica_and_none_is_lost(backend: Backend) {
    let ((one, _), (other, _)) = (start(&backend).await, start(&backend).await);
    for credits in 1..=5 {
        one.admin().put(&format!("{PRICING}/m"), price(credits, "quick")).await;
        assert_eq!(other.anonymous().get(PRICING).await.expect(200)["m"], price(credits, "quick"));
    }
    let admins = [one.admin(), other.admin()];
    let statuses = storm(20, 40, move |number| {
        let admin = admins[number % 2].clone();
        async move {
            let price = price(i64::try_from(number).unwrap() + 1, "think");
            admin.put(&format!("{PRICING}/raced"), price).await.status
        }
    })
    .await;
    assert_eq!(statuses.iter().filter(|status| **status == 201).count(), 1, "{statuses:?}");
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 39, "{statuses:?}");
    let raced = other.anonymous().get(&format!("{PRICING}/raced")).await.expect(200);
    let history = raced["history"].as_array().unwrap();
    assert_eq!(history[0]["price_per_m_token"], raced["price_per_m_token"]);
    let mut kept: Vec<_> = history.iter().map(|entry| entry["price_per_m_token"].as_i64().unwrap()).collect();
    kept.sort_unstable();
    assert_eq!(kept, (1..=40).collect::<Vec<_>>());
}
