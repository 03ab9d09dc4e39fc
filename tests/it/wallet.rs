//! The wallet: credits that are added by those who may, turned into tokens of models, and consumed.

use serde_json::{Value, json};

use crate::{
    harness::{Answer, Backend, Client, Options, both, postgres, shape},
    pricing::refused,
    stripe_events::Shop,
    users::{House, consumed, lines},
};

/// What says that somebody bought something; nobody but an admin or a service is believed that.
pub fn purchase(transaction: &str) -> Value {
    json!({"productId": "credits.1000", "transactionId": transaction})
}

pub fn addition(credits: i64, transaction: &str, user: Option<&str>) -> Value {
    json!({"credits": credits, "purchase_record": purchase(transaction), "user_id": user})
}

pub const ADD: &str = "/api/billing/credits/add";
const ALLOCATE: &str = "/api/billing/credits/allocate";
const BALANCE: &str = "/api/billing/balance";

pub async fn allocate(client: &Client, allocations: &[(&str, i64)]) -> Answer {
    let list = allocations.iter().map(|(model, credits)| json!({"model_id": model, "credits": credits}));
    client.post(ALLOCATE, json!({"allocations": list.collect::<Vec<_>>()})).await
}

async fn consume(client: &Client, model: &str, input: i64, output: i64) -> Answer {
    let body = json!({"model_id": model, "input_tokens": input, "output_tokens": output});
    client.post("/api/billing/tokens/consume", body).await
}

pub async fn balance(client: &Client) -> Value {
    client.get(BALANCE).await.expect(200)
}

pub fn holding(credits: i64, tokens: Value) -> Value {
    json!({"credits": credits, "allocated_tokens": tokens})
}

both!(the_documented_calls_are_answered_to_the_byte);
async fn the_documented_calls_are_answered_to_the_byte(backend: Backend) {
    let house = House::open(&backend).await;
    let (ann, service) = (house.user("ann"), house.service());
    let says = async |answer: Answer, status: u16, text: &str| {
        assert_eq!((answer.status, answer.text.as_str()), (status, text), "{answer}");
        assert_eq!(answer.header("content-type"), "application/json");
    };
    says(
        house.server.anonymous().get("/api/billing/health").await,
        200,
        r#"{"status":"ok","service":"billing"}"#,
    )
    .await;
    let nobody = r#"{"error":{"code":"FORBIDDEN","message":"Not authenticated"}}"#;
    for (method, path) in [("GET", BALANCE), ("POST", ALLOCATE), ("GET", "/api/billing/transactions")] {
        says(house.server.anonymous().call(method, path).send().await, 403, nobody).await;
    }
    says(ann.get(BALANCE).await, 200, r#"{"credits":0,"allocated_tokens":{}}"#).await;
    says(
        allocate(&ann, &[("gemini-2.0-flash", 100)]).await,
        400,
        r#"{"error":{"code":"BAD_REQUEST","message":"Insufficient credits. Required: 100P, balance: 0P"}}"#,
    )
    .await;
    says(
        service.post(ADD, addition(1_000, "t-1", Some("ann"))).await,
        200,
        r#"{"success":true,"new_balance":1000}"#,
    )
    .await;
    says(
        allocate(&ann, &[("gemini-2.0-flash", 100)]).await,
        200,
        r#"{"success":true,"message":"Successfully allocated 100 credits to 1 model(s)"}"#,
    )
    .await;
    says(ann.get(BALANCE).await, 200, r#"{"credits":900,"allocated_tokens":{"gemini-2.0-flash":2222222}}"#)
        .await;
    let quick = "/api/billing/balance/category/quick";
    says(ann.get(quick).await, 200, r#"{"category":"quick","total_tokens":2222222}"#).await;
    says(
        consume(&ann, "gemini-2.0-flash", 30_000, 20_000).await,
        200,
        r#"{"success":true,"remaining_tokens":2172222}"#,
    )
    .await;
    says(ann.get(quick).await, 200, r#"{"category":"quick","total_tokens":2172222}"#).await;
    let think = ann.get("/api/billing/balance/category/think").await;
    says(think, 200, r#"{"category":"think","total_tokens":0}"#).await;
    refused(&ann.get("/api/billing/balance/category/slow").await, 400, "BAD_REQUEST");

    let list = ann.get("/api/billing/transactions").await.expect(200);
    shape(&list, &["transactions", "next_cursor"]);
    assert_eq!(list["next_cursor"], Value::Null);
    let lines = list["transactions"].as_array().unwrap();
    let told: Vec<_> = lines.iter().map(|line| (&line["type"], &line["amount"], &line["model_id"])).collect();
    let model = json!("gemini-2.0-flash");
    assert_eq!(
        told,
        [
            (&json!("consumption"), &json!(50_000), &model),
            (&json!("allocation"), &json!(100), &model),
            (&json!("purchase"), &json!(1_000), &Value::Null),
        ]
    );
    for line in lines {
        shape(line, &["id", "type", "amount", "model_id", "created_at"]);
        assert!(
            line["id"].is_i64() && line["created_at"].as_str().is_some_and(|at| at.ends_with('Z')),
            "{line}"
        );
    }
}

both!(who_likes_japanese_best_is_told_in_japanese_what_is_missing);
async fn who_likes_japanese_best_is_told_in_japanese_what_is_missing(backend: Backend) {
    let house = House::open(&backend).await;
    let ann = house.user("ann");
    house.give("ann", 30).await;
    for (liked, told) in [
        ("ja", "クレジットが不足しています。必要: 100P, 残高: 30P"),
        ("ja-JP, en;q=0.8", "クレジットが不足しています。必要: 100P, 残高: 30P"),
        ("en, ja;q=0.9", "Insufficient credits. Required: 100P, balance: 30P"),
        ("*", "Insufficient credits. Required: 100P, balance: 30P"),
    ] {
        let body = json!({"allocations": [{"model_id": "gpt-5-mini", "credits": 100}]});
        let answer = ann.call("POST", ALLOCATE).header("Accept-Language", liked).json(&body).send().await;
        assert_eq!(refused(&answer, 400, "BAD_REQUEST"), told, "{liked}");
    }
}

both!(what_can_not_be_allocated_is_told_with_its_figures_and_changes_nothing);
async fn what_can_not_be_allocated_is_told_with_its_figures_and_changes_nothing(backend: Backend) {
    let house = House::open(&backend).await;
    let ann = house.user("ann");
    house.give("ann", 3_000).await;
    let list = [("gemini-2.0-flash", 45), ("gpt-5-mini", 200), ("gemini-2.0-flash", 45)];
    let told = allocate(&ann, &list).await.expect(200);
    assert_eq!(told["message"], "Successfully allocated 290 credits to 2 model(s)");
    allocate(&ann, &[("gemini-2.5-pro", 505)]).await.expect(200);
    let held = holding(
        2_205,
        json!({"gemini-2.0-flash": 2_000_000, "gemini-2.5-pro": 500_000, "gpt-5-mini": 1_000_000}),
    );
    assert_eq!(balance(&ann).await, held);
    house.set_price("exact", 1_000_000, "quick").await;
    for (allocations, told) in [
        (vec![("gpt-5-mini", 100), ("gpt-6", 1)], "Unknown model: gpt-6"),
        (vec![("gpt-5-mini", 100), ("GPT-5-mini", 1)], "Unknown model: GPT-5-mini"),
        (vec![("", 1)], "Unknown model: "),
        (vec![("gpt-5-mini", 0)], "`allocations[0].credits` must be at least 1, and is 0."),
        (
            vec![("gpt-5-mini", 1), ("gpt-5-mini", -5)],
            "`allocations[1].credits` must be at least 1, and is -5.",
        ),
        (
            vec![("gemini-2.5-pro", 506)],
            "Over the capacity of think tokens. Held: 500000, asked for: 500990, capacity: 1000000",
        ),
        // Over all models of the category, within one list too.
        (
            vec![("gpt-5-mini", 200), ("gemini-2.0-flash", 45), ("gemini-2.0-pro", 1)],
            "Over the capacity of quick tokens. Held: 3000000, asked for: 2014285, capacity: 5000000",
        ),
        (
            vec![("gpt-5-mini", 200), ("gemini-2.0-flash", 45), ("exact", 1)],
            "Over the capacity of quick tokens. Held: 3000000, asked for: 2000001, capacity: 5000000",
        ),
        (vec![("exact", 2_206)], "Insufficient credits. Required: 2206P, balance: 2205P"),
        (
            vec![("exact", 2_205), ("gemini-2.5-pro", 1)],
            "Insufficient credits. Required: 2206P, balance: 2205P",
        ),
        (vec![("gpt-5-mini", i64::MAX)], "The amounts would not fit the account's totals."),
        (vec![("gemini-2.5-pro", i64::MAX)], "The amounts would not fit the account's totals."),
        (vec![], "`allocations` must name 1 to 100 models."),
    ] {
        let answer = allocate(&ann, &allocations).await;
        assert_eq!(refused(&answer, 400, "BAD_REQUEST"), told, "{allocations:?}");
        assert_eq!(balance(&ann).await, held, "{allocations:?}");
    }
    assert_eq!(lines(&ann).await.len(), 5, "an allocation is a line for each of its list");
    // Filled to the last token, and not one further.
    allocate(&ann, &[("gpt-5-mini", 200), ("gemini-2.0-flash", 45)]).await.expect(200);
    refused(&allocate(&ann, &[("exact", 1)]).await, 400, "BAD_REQUEST");
    assert_eq!(ann.get("/api/billing/balance/category/quick").await.expect(200)["total_tokens"], 5_000_000);
    assert_eq!(ann.get("/api/billing/balance/category/think").await.expect(200)["total_tokens"], 500_000);
    assert_eq!(consumed(&consume(&ann, "gpt-5-mini", 1, 0).await), 1_999_999);
    allocate(&ann, &[("exact", 1)]).await.expect(200);
}

both!(credits_that_make_no_token_are_kept);
async fn credits_that_make_no_token_are_kept(backend: Backend) {
    let house = House::open(&backend).await;
    let ann = house.user("ann");
    house.give("ann", 10).await;
    house.set_price("dear", 1_000_000_000, "quick").await;
    let told = refused(&allocate(&ann, &[("dear", 10)]).await, 400, "BAD_REQUEST");
    assert_eq!(told, "10 credits are too few for a token of dear.");
    // Nor does a model appear by what was refused.
    refused(&consume(&ann, "gpt-5-mini", 1, 0).await, 400, "BAD_REQUEST");
    refused(&allocate(&ann, &[("gpt-5-mini", 11)]).await, 400, "BAD_REQUEST");
    assert_eq!(balance(&ann).await, holding(10, json!({})));
}

both!(what_can_not_be_consumed_is_told_with_its_figures_and_changes_nothing);
async fn what_can_not_be_consumed_is_told_with_its_figures_and_changes_nothing(backend: Backend) {
    let house = House::open(&backend).await;
    let ann = house.user("ann");
    house.give("ann", 1).await;
    allocate(&ann, &[("gpt-5-mini", 1)]).await.expect(200);
    let amounts = |input: i64, output: i64| {
        format!(
            "`input_tokens` and `output_tokens` must not be negative, and together at least 1; they are \
             {input} and {output}."
        )
    };
    for (model, input, output, told) in [
        (
            "gpt-5-mini",
            4_000,
            1_001,
            "Insufficient tokens of gpt-5-mini. Required: 5001, available: 5000".into(),
        ),
        ("gemini-2.5-pro", 0, 1, "Insufficient tokens of gemini-2.5-pro. Required: 1, available: 0".into()),
        ("gpt-6", 1, 1, "Unknown model: gpt-6".into()),
        ("gpt-5-mini", 0, 0, amounts(0, 0)),
        ("gpt-5-mini", -1, 1_000, amounts(-1, 1_000)),
        ("gpt-5-mini", 1_000, -1, amounts(1_000, -1)),
        ("gpt-5-mini", i64::MAX, 1, amounts(i64::MAX, 1)),
        (
            "gpt-5-mini",
            i64::MAX,
            0,
            format!("Insufficient tokens of gpt-5-mini. Required: {}, available: 5000", i64::MAX),
        ),
    ] {
        let answer = consume(&ann, model, input, output).await;
        assert_eq!(refused(&answer, 400, "BAD_REQUEST"), told);
        assert_eq!(balance(&ann).await, holding(0, json!({"gpt-5-mini": 5_000})));
    }
    assert_eq!(consumed(&consume(&ann, "gpt-5-mini", 0, 5_000).await), 0);
    refused(&consume(&ann, "gpt-5-mini", 1, 0).await, 400, "BAD_REQUEST");
    // It stays there, at 0.
    assert_eq!(balance(&ann).await, holding(0, json!({"gpt-5-mini": 0})));
    assert_eq!(lines(&ann).await.len(), 3);
}

/// Changes a price at one of two and allocates at the other.
async fn assert_a_price_acts_at_once(here: &House, there: &House) {
    here.give("ann", 1_000).await;
    let ann = there.user("ann");
    let mut tokens = 0;
    for price in [45, 46, 1_000, 999, 45] {
        here.set_price("gemini-2.0-flash", price, "quick").await;
        allocate(&ann, &[("gemini-2.0-flash", 1)]).await.expect(200);
        tokens += 1_000_000 / price;
        assert_eq!(balance(&ann).await["allocated_tokens"]["gemini-2.0-flash"], tokens);
    }
    // What is held goes with its model to another category.
    here.set_price("gemini-2.0-flash", 45, "think").await;
    for (category, total) in [("think", tokens), ("quick", 0)] {
        let told = ann.get(&format!("/api/billing/balance/category/{category}")).await.expect(200);
        assert_eq!(told, json!({"category": category, "total_tokens": total}));
    }
    let over = allocate(&ann, &[("gemini-2.0-flash", 45)]).await;
    assert!(refused(&over, 400, "BAD_REQUEST").contains(&format!("Held: {tokens}, asked for: 1000000")));
    // A model that nobody had heard of can be had from the moment it has a price.
    refused(&allocate(&ann, &[("new", 1)]).await, 400, "BAD_REQUEST");
    here.set_price("new", 500_000, "quick").await;
    allocate(&ann, &[("new", 1)]).await.expect(200);
    assert_eq!(balance(&ann).await["allocated_tokens"]["new"], 2);
}

both!(a_price_acts_on_the_next_allocation);
async fn a_price_acts_on_the_next_allocation(backend: Backend) {
    let house = House::open(&backend).await;
    assert_a_price_acts_at_once(&house, &house).await;
}

postgres!(a_price_acts_on_the_next_allocation_of_another_replica);
async fn a_price_acts_on_the_next_allocation_of_another_replica(backend: Backend) {
    let (one, two) = (House::open(&backend).await, House::open(&backend).await);
    assert_a_price_acts_at_once(&one, &two).await;
}

both!(transactions_are_listed_page_by_page_newest_first);
async fn transactions_are_listed_page_by_page_newest_first(backend: Backend) {
    let house = House::open(&backend).await;
    let (ann, bob) = (house.user("ann"), house.user("bob"));
    for credits in 1..=25 {
        house.give("ann", credits).await;
        house.give("bob", 1_000 + credits).await;
    }
    let page = async |cursor: Option<&str>| {
        let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        ann.get(&format!("/api/billing/transactions?limit=10{cursor}")).await.expect(200)
    };
    let mut seen: Vec<Value> = Vec::new();
    let mut cursor: Option<String> = None;
    for length in [10, 10, 5] {
        let list = page(cursor.as_deref()).await;
        shape(&list, &["transactions", "next_cursor"]);
        let lines = list["transactions"].as_array().unwrap();
        assert_eq!(lines.len(), length);
        seen.extend(lines.iter().cloned());
        cursor = list["next_cursor"].as_str().map(str::to_owned);
        assert_eq!(cursor.is_some(), length == 10, "{list}");
        if seen.len() == 10 {
            // What comes meanwhile shifts no page.
            house.give("ann", 99).await;
        }
    }
    let amounts: Vec<i64> = seen.iter().map(|line| line["amount"].as_i64().unwrap()).collect();
    assert_eq!(amounts, (1..=25).rev().collect::<Vec<_>>());
    let ids: Vec<i64> = seen.iter().map(|line| line["id"].as_i64().unwrap()).collect();
    assert!(ids.is_sorted_by(|newer, older| newer > older), "{ids:?}");
    let times: Vec<&str> = seen.iter().map(|line| line["created_at"].as_str().unwrap()).collect();
    assert!(times.is_sorted_by(|newer, older| newer >= older), "{times:?}");
    assert_eq!(lines(&bob).await.len(), 25);
    // Without a limit it is 50; another's page is no way into theirs.
    assert_eq!(
        ann.get("/api/billing/transactions").await.expect(200)["transactions"].as_array().unwrap().len(),
        26
    );
    for wrong in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "limit=5.0",
        "cursor=",
        "cursor=x",
        "cursor=-1",
        "cursor=0",
        "page=2",
        "limit=1&limit=2",
    ] {
        let answer = ann.get(&format!("/api/billing/transactions?{wrong}")).await;
        refused(&answer, 400, "BAD_REQUEST");
    }
}

both!(a_wallet_is_emptied_by_admins_where_that_is_allowed);
async fn a_wallet_is_emptied_by_admins_where_that_is_allowed(backend: Backend) {
    const RESET: &str = "/api/billing/reset";
    let house = House::open(&backend).await;
    house.give("ann", 100).await;
    for client in [house.server.admin(), house.service()] {
        let told = refused(&client.post(RESET, json!({"user_id": "ann"})).await, 403, "FORBIDDEN");
        assert!(told.contains("ALLOW_WALLET_RESET"), "{told}");
    }
    drop(house);

    let house = House::open_with(Options::on(&backend).var("ALLOW_WALLET_RESET", "true")).await;
    let (ann, bob, customer) = (house.user("ann"), house.user("bob"), house.server.customer("acme").await);
    house.give("bob", 7).await;
    allocate(&ann, &[("gpt-5-mini", 20), ("gemini-2.5-pro", 20)]).await.expect(200);
    let held = balance(&ann).await;
    assert_eq!(held["credits"], 60);
    for client in [&ann, &customer.client()] {
        refused(&client.post(RESET, json!({})).await, 403, "FORBIDDEN");
        refused(&client.post(RESET, json!({"user_id": "ann"})).await, 403, "FORBIDDEN");
        refused(&client.call("POST", RESET).send().await, 403, "FORBIDDEN");
    }
    refused(&house.server.anonymous().post(RESET, json!({})).await, 403, "FORBIDDEN");
    assert_eq!(balance(&ann).await, held);
    let done = json!({"success": true});
    for _ in 0..2 {
        assert_eq!(house.server.admin().post(RESET, json!({"user_id": "ann"})).await.expect(200), done);
        assert_eq!(balance(&ann).await, holding(0, json!({"gemini-2.5-pro": 0, "gpt-5-mini": 0})));
    }
    refused(&consume(&ann, "gpt-5-mini", 1, 0).await, 400, "BAD_REQUEST");
    assert_eq!(balance(&bob).await, holding(7, json!({})));
    house.give("ann", 5).await;
    assert_eq!(balance(&ann).await["credits"], 5);
    let path = format!("{RESET}?account_id={}", house.account_of("bob").await);
    assert_eq!(house.service().call("POST", &path).send().await.expect(200), done);
    assert_eq!(balance(&bob).await, holding(0, json!({})));
    refused(&house.server.admin().post(RESET, json!({"user": "ann"})).await, 400, "BAD_REQUEST");
    refused(&house.server.admin().post(&path, json!({"user_id": "ann"})).await, 400, "BAD_REQUEST");
    assert_eq!(balance(&ann).await["credits"], 5);
}

both!(wallets_are_apart);
async fn wallets_are_apart(backend: Backend) {
    let house = House::open(&backend).await;
    let (ann, bob) = (house.user("ann"), house.user("bob"));
    let customer = house.server.customer("ann").await;
    // Who is called like an account is somebody else.
    let sneak = house.user(&customer.account_id);
    house.give("ann", 100).await;
    let path = format!("{ADD}?account_id={}", customer.account_id);
    house.service().post(&path, addition(500, "t-1", None)).await.expect(200);
    allocate(&ann, &[("gpt-5-mini", 10)]).await.expect(200);
    allocate(&customer, &[("gpt-5-mini", 20)]).await.expect(200);
    for nothing in [&bob, &sneak] {
        assert_eq!(balance(nothing).await, holding(0, json!({})));
        assert_eq!(lines(nothing).await, Vec::<Value>::new());
        refused(&consume(nothing, "gpt-5-mini", 1, 0).await, 400, "BAD_REQUEST");
    }
    assert_eq!(balance(&ann).await, holding(90, json!({"gpt-5-mini": 50_000})));
    assert_eq!(balance(&customer).await, holding(480, json!({"gpt-5-mini": 100_000})));
    let anns = house.account_of("ann").await;
    for other in [&bob, &sneak, &customer.client()] {
        for path in ["balance", "balance/category/quick", "transactions"] {
            let answer = other.get(&format!("/api/billing/{path}?account_id={anns}")).await;
            refused(&answer, 404, "NOT_FOUND");
        }
        let path = format!("/api/billing/tokens/consume?account_id={anns}");
        let body = json!({"model_id": "gpt-5-mini", "input_tokens": 1, "output_tokens": 0});
        refused(&other.post(&path, body).await, 404, "NOT_FOUND");
        let body = json!({"allocations": [{"model_id": "gpt-5-mini", "credits": 1}]});
        refused(&other.post(&format!("{ALLOCATE}?account_id={anns}"), body).await, 404, "NOT_FOUND");
    }
    // An admin may.
    let seen = house.server.admin().get(&format!("{BALANCE}?account_id={anns}")).await.expect(200);
    assert_eq!(seen, balance(&ann).await);
}

both!(who_is_suspended_sees_the_wallet_and_spends_nothing);
async fn who_is_suspended_sees_the_wallet_and_spends_nothing(backend: Backend) {
    let house = House::open(&backend).await;
    let ann = house.user("ann");
    house.give("ann", 100).await;
    allocate(&ann, &[("gpt-5-mini", 10)]).await.expect(200);
    house.suspend("ann", true).await;
    refused(&allocate(&ann, &[("gpt-5-mini", 10)]).await, 403, "FORBIDDEN");
    refused(&consume(&ann, "gpt-5-mini", 1, 0).await, 403, "FORBIDDEN");
    assert_eq!(balance(&ann).await, holding(90, json!({"gpt-5-mini": 50_000})));
    assert_eq!(lines(&ann).await.len(), 2);
    // What was paid for is had all the same.
    house.give("ann", 1).await;
    house.suspend("ann", false).await;
    assert_eq!(consumed(&consume(&ann, "gpt-5-mini", 1, 0).await), 49_999);
    assert_eq!(balance(&ann).await["credits"], 91);
}

both!(a_key_that_is_confined_does_what_its_scopes_say);
async fn a_key_that_is_confined_does_what_its_scopes_say(backend: Backend) {
    let house = House::open(&backend).await;
    let (admin, customer) = (house.server.admin(), house.server.customer("acme").await);
    let path = format!("{ADD}?account_id={}", customer.account_id);
    house.service().post(&path, addition(100, "t-1", None)).await.expect(200);
    for (scopes, reads, spends) in [
        (json!(["read"]), true, false),
        (json!(["cast"]), false, true),
        (json!(["billing"]), false, true),
        (json!(["read", "billing"]), true, true),
        (json!(["keys", "budgets"]), false, false),
    ] {
        let key = customer.another_key(&admin, json!({"scopes": scopes})).await;
        for path in ["balance", "balance/category/quick", "transactions"] {
            let answer = key.get(&format!("/api/billing/{path}")).await;
            assert_eq!(answer.status, if reads { 200 } else { 403 }, "{scopes}: {answer}");
        }
        for answer in [allocate(&key, &[("gpt-5-mini", 1)]).await, consume(&key, "gpt-5-mini", 1, 0).await] {
            assert_eq!(answer.status, if spends { 200 } else { 403 }, "{scopes}: {answer}");
            if !spends {
                assert!(refused(&answer, 403, "FORBIDDEN").contains("scope"), "{answer}");
            }
        }
        refused(&key.post(ADD, addition(1, "t-2", None)).await, 403, "FORBIDDEN");
    }
    assert_eq!(balance(&customer).await, holding(97, json!({"gpt-5-mini": 14_997})));
}

both!(what_is_not_as_it_should_be_is_400_and_changes_nothing);
async fn what_is_not_as_it_should_be_is_400_and_changes_nothing(backend: Backend) {
    let house = House::open(&backend).await;
    let (ann, service) = (house.user("ann"), house.service());
    house.give("ann", 100).await;
    let record = purchase("t-1");
    let one = |credits: Value| json!({"allocations": [{"model_id": "gpt-5-mini", "credits": credits}]});
    let tokens = |input: Value| json!({"model_id": "gpt-5-mini", "input_tokens": input, "output_tokens": 1});
    let add = |credits: Value| json!({"user_id": "ann", "credits": credits, "purchase_record": record});
    let huge = "170141183460469231731687303715884105728";
    let huge: Value = serde_json::from_str(huge).unwrap();
    let mut cases = Vec::new();
    for wrong in [json!(5.0), json!(1e2), json!("5"), json!(true), json!(null), json!([5]), huge] {
        cases.push((&ann, ALLOCATE, one(wrong.clone())));
        cases.push((&ann, "/api/billing/tokens/consume", tokens(wrong.clone())));
        cases.push((&service, ADD, add(wrong)));
    }
    for wrong in [json!(0), json!(-5), json!(1_000_000_001), json!(i64::MAX), json!(i64::MIN)] {
        cases.push((&service, ADD, add(wrong)));
    }
    for (path, body) in [
        (ALLOCATE, json!({})),
        (ALLOCATE, json!({"allocations": {}})),
        (ALLOCATE, json!({"allocations": [[]]})),
        (ALLOCATE, json!({"allocations": [{"model_id": "gpt-5-mini", "credits": 1, "price": 1}]})),
        (ALLOCATE, json!({"allocations": [{"model_id": "gpt-5-mini", "credits": 1}], "user_id": "bob"})),
        (ALLOCATE, json!({"allocations": [{"model_id": "gpt-5-mini\0", "credits": 1}]})),
        (ALLOCATE, json!({"allocations": vec![json!({"model_id": "gpt-5-mini", "credits": 1}); 101]})),
        ("/api/billing/tokens/consume", json!({"model_id": "gpt-5-mini", "input_tokens": 1})),
        ("/api/billing/tokens/consume", json!({"model_id": 7, "input_tokens": 1, "output_tokens": 1})),
        (
            "/api/billing/tokens/consume",
            json!({"model_id": "gpt-5-mini", "input_tokens": 1, "output_tokens": 1, "x": 1}),
        ),
        (ADD, json!({"credits": 1, "user_id": "ann"})),
        (ADD, json!({"credits": 1, "user_id": "ann", "purchase_record": "t-1"})),
        (ADD, json!({"credits": 1, "user_id": "ann", "purchase_record": {"productId": "p"}})),
        (ADD, json!({"credits": 1, "user_id": "ann", "purchase_record": {"transactionId": "t-1"}})),
        (
            ADD,
            json!({"credits": 1, "user_id": "ann", "purchase_record": {"productId": "p", "transactionId": 1}}),
        ),
        (
            ADD,
            json!({"credits": 1, "user_id": "ann", "purchase_record": {"productId": "p", "transactionId": ""}}),
        ),
        (ADD, json!({"credits": 1, "user_id": "a\u{1}", "purchase_record": record})),
        (ADD, json!({"credits": 1, "user_id": 7, "purchase_record": record})),
        (ADD, json!({"credits": 1, "user_id": "ann", "purchase_record": record, "verified": true})),
    ] {
        cases.push((if path == ADD { &service } else { &ann }, path, body));
    }
    for (client, path, body) in cases {
        let told = refused(&client.post(path, body.clone()).await, 400, "BAD_REQUEST");
        assert!(told.len() > 5, "{body}: {told}");
    }
    let untyped = ann.call("POST", ALLOCATE).body("text/plain", one(json!(1)).to_string());
    refused(&untyped.send().await, 415, "UNSUPPORTED_MEDIA_TYPE");
    let long = json!({"allocations": [], "x": "y".repeat(1_100_000)});
    assert_eq!(ann.post(ALLOCATE, long).await.status, 413);
    let told = refused(&ann.post(ALLOCATE, json!({"allocation": []})).await, 400, "BAD_REQUEST");
    assert!(told.contains("`allocation`"), "{told}");
    assert_eq!(balance(&ann).await, holding(100, json!({})));
    assert_eq!(lines(&ann).await.len(), 1);
    // A record may hold whatever its provider put there.
    let mut free = record.clone();
    free["nested"] = json!({"deep": [1, 2.5, null, {"x": "y"}]});
    free["quantity"] = json!(1.0);
    let body = json!({"user_id": "ann", "credits": 1, "purchase_record": free});
    assert_eq!(service.post(ADD, body).await.expect(200)["new_balance"], 101);
}

both!(what_stripe_sells_is_allocated_and_cast_from_one_wallet);
async fn what_stripe_sells_is_allocated_and_cast_from_one_wallet(backend: Backend) {
    let shop = Shop::open(&backend).await;
    let customer = shop.customer().await;
    shop.sell_credits(&customer, 1_000).await;
    allocate(&customer, &[("gemini-2.0-flash", 100)]).await.expect(200);
    assert_eq!(balance(&customer).await, holding(900, json!({"gemini-2.0-flash": 2_222_222})));
    let spell = json!({"kind": "echo", "price": {"flat_cents": 300}, "pay_from": "credits"});
    shop.server.admin().put("/v1/spells/paid", spell).await.expect(201);
    for left in [600, 300, 0] {
        customer.cast("paid", json!(1)).await.expect(200);
        assert_eq!(balance(&customer).await["credits"], left);
    }
    customer.cast("paid", json!(1)).await.expect_code(402, "insufficient_credits");
    let told = refused(&allocate(&customer, &[("gemini-2.0-flash", 1)]).await, 400, "BAD_REQUEST");
    assert_eq!(told, "Insufficient credits. Required: 1P, balance: 0P");
    // What was allocated is no credit any more, and no cast takes it.
    assert_eq!(balance(&customer).await, holding(0, json!({"gemini-2.0-flash": 2_222_222})));
    let told: Vec<(Value, Value)> =
        lines(&customer).await.iter().map(|line| (line["type"].clone(), line["amount"].clone())).collect();
    assert_eq!(told, [(json!("allocation"), json!(100)), (json!("purchase"), json!(1_000))]);
    // Another key of the account has the same wallet.
    let another = customer.another_key(&shop.server.admin(), json!({})).await;
    assert_eq!(consumed(&consume(&another, "gemini-2.0-flash", 222_222, 0).await), 2_000_000);
    assert_eq!(balance(&customer).await, holding(0, json!({"gemini-2.0-flash": 2_000_000})));
}
