//! Casts: what is answered, what is recorded, and in which order things are refused.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::harness::{Backend, Options, Server, all_casts, all_of, both, names, usage_cents};

both!(echo_gives_the_payload_back_and_says_what_it_cost);
async fn echo_gives_the_payload_back_and_says_what_it_cost(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let cast = customer.cast("echo", json!({"hello": ["world", 1]})).await.expect(200);
    assert!(!cast["id"].as_str().unwrap().is_empty(), "{cast}");
    assert_eq!(cast["status"], "COMPLETED");
    assert_eq!(cast["result"], json!({"hello": ["world", 1]}));
    assert!(cast.as_object().unwrap().contains_key("error_code"), "{cast}");
    assert_eq!(cast["error_code"], Value::Null);
    assert_eq!(cast["cost_cents"], 1);
    let at = cast["created_at"].as_str().unwrap();
    assert!(at.ends_with('Z') && at.parse::<jiff::Timestamp>().is_ok(), "{at} is not RFC 3339 in UTC");
}

both!(echo_gives_back_every_kind_of_payload_unchanged);
async fn echo_gives_back_every_kind_of_payload_unchanged(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    for payload in [
        r#""words""#,
        "[]",
        "{}",
        "0",
        "-0.5",
        "1.10",
        "true",
        "123456789012345678901234567890",
        r#"{"b":1,"a":{"":[[],{}]},"€":"\u20ac 😀 \u202E \uFFFF"}"#,
    ] {
        let body = format!(r#"{{"spell_name":"echo","payload":{payload}}}"#);
        let cast = customer.call("POST", "/v1/cast").body("application/json", body).send().await.expect(200);
        assert_eq!(cast["result"], serde_json::from_str::<Value>(payload).unwrap());
    }
}

both!(a_cast_costs_what_its_spell_says_or_else_the_default);
async fn a_cast_costs_what_its_spell_says_or_else_the_default(backend: Backend) {
    let server = Server::start(Options::on(&backend).var("COST_PER_CAST_CENTS", 7)).await;
    let admin = server.admin();
    admin.put("/v1/spells/dear", json!({"kind": "echo", "price": {"flat_cents": 30}})).await.expect(201);
    admin.put("/v1/spells/free", json!({"kind": "echo", "price": {"flat_cents": 0}})).await.expect(201);
    let customer = server.customer("acme").await;
    for (spell, cents) in [("echo", 7), ("dear", 30), ("free", 0)] {
        assert_eq!(customer.cast(spell, json!(null)).await.expect(200)["cost_cents"], cents, "{spell}");
    }
    assert_eq!(usage_cents(&customer.usage("").await), (3, 37, 0));
}

both!(every_cast_is_listed_once_over_any_pages);
async fn every_cast_is_listed_once_over_any_pages(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let mut cast = Vec::new();
    for number in 0..25 {
        let answer = customer.cast("echo", json!(number)).await.expect(200);
        cast.push(answer["id"].as_str().unwrap().to_owned());
    }
    let expected: BTreeSet<String> = cast.iter().cloned().collect();
    assert_eq!(expected.len(), 25);
    for limit in [1, 7, 24, 25, 26, 1000] {
        let listed = all_of(&customer, &format!("/v1/casts?limit={limit}")).await;
        assert_eq!(listed.len(), 25, "limit={limit}");
        assert_eq!(names(&listed, "id").into_iter().collect::<BTreeSet<_>>(), expected, "limit={limit}");
    }
    let first_page = customer.get("/v1/casts?limit=7").await.expect(200);
    assert_eq!(first_page["data"].as_array().unwrap().len(), 7);
    assert!(first_page["next_cursor"].is_string(), "{first_page}");
    for _ in 0..30 {
        customer.echo().await.expect(200);
    }
    let by_default = customer.get("/v1/casts").await.expect(200);
    assert_eq!(by_default["data"].as_array().unwrap().len(), 50, "a page has 50 where nothing is said");
}

both!(casts_are_found_by_status_key_and_spell);
async fn casts_are_found_by_status_key_and_spell(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    admin.put("/v1/spells/other", json!({"kind": "echo"})).await.expect(201);
    let one = server.customer("acme").await;
    let two = one.another_key(&admin, json!({})).await;
    for (customer, spell, times) in [(&one, "echo", 3), (&one, "other", 2), (&two, "echo", 1)] {
        for _ in 0..times {
            customer.cast(spell, json!(null)).await.expect(200);
        }
    }
    for (query, count) in [
        (String::new(), 6),
        ("&status=COMPLETED".to_owned(), 6),
        ("&status=FAILED".to_owned(), 0),
        ("&spell=echo".to_owned(), 4),
        ("&spell=nothing_like_it".to_owned(), 0),
        (format!("&key_id={}", one.key_id), 5),
        (format!("&key_id={}", two.key_id), 1),
        (format!("&key_id={}&spell=other&status=COMPLETED", one.key_id), 2),
    ] {
        let found = all_of(&one, &format!("/v1/casts?limit=1000{query}")).await;
        assert_eq!(found.len(), count, "{query}");
    }
}

both!(one_cast_is_read_by_its_owner_alone);
async fn one_cast_is_read_by_its_owner_alone(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    let cast = acme.echo().await.expect(200);
    let path = format!("/v1/casts/{}", cast["id"].as_str().unwrap());
    let read = acme.get(&path).await.expect(200);
    for field in ["id", "status", "error_code", "created_at", "cost_cents"] {
        assert_eq!(read[field], cast[field], "{field}");
    }
    other.get(&path).await.expect_error(404);
    acme.get("/v1/casts/cast_that_never_was").await.expect_error(404);
    assert!(all_casts(&other).await.is_empty());
    assert_eq!(all_casts(&acme).await.len(), 1);
    let as_admin = server.admin().get(&format!("/v1/casts?account_id={}", acme.account_id)).await.expect(200);
    assert_eq!(names(as_admin["data"].as_array().unwrap(), "id"), names(&[read], "id"));
}

both!(refusals_come_in_order_suspended_then_unknown_then_limit_then_rate);
async fn refusals_come_in_order_suspended_then_unknown_then_limit_then_rate(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    let slow = customer.another_key(&admin, json!({"rate_limit_per_minute": 1})).await;
    slow.echo().await.expect(200);
    slow.echo().await.expect_code(429, "rate_limited");
    customer.limit("monthly", 1).await;
    slow.echo().await.expect_code(402, "budget_exceeded");
    slow.cast("no_such_spell", json!(null)).await.expect_error(404);
    let account = format!("/v1/accounts/{}", customer.account_id);
    admin.patch(&account, json!({"suspended": true})).await.expect(200);
    slow.cast("no_such_spell", json!(null)).await.expect_code(403, "account_suspended");
    slow.echo().await.expect_code(403, "account_suspended");
}

both!(what_is_refused_is_not_cast);
async fn what_is_refused_is_not_cast(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.limit("daily", 0).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
    customer.cast("no_such_spell", json!(null)).await.expect_error(404);
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 0));
    let completed = all_of(&customer, "/v1/casts?limit=1000&status=COMPLETED").await;
    assert!(completed.is_empty(), "{completed:?}");
}

both!(usage_is_told_by_day_key_and_spell);
async fn usage_is_told_by_day_key_and_spell(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    admin.put("/v1/spells/dear", json!({"kind": "echo", "price": {"flat_cents": 5}})).await.expect(201);
    let one = server.customer("acme").await;
    let two = one.another_key(&admin, json!({})).await;
    let mut day = String::new();
    for (customer, spell, times) in [(&one, "echo", 3), (&one, "dear", 2), (&two, "echo", 1)] {
        for _ in 0..times {
            let cast = customer.cast(spell, json!(null)).await.expect(200);
            day = cast["created_at"].as_str().unwrap()[..10].to_owned();
        }
    }
    let rows = async |query: &str| {
        let usage = one.get(&format!("/v1/usage{query}")).await.expect(200);
        as_sets(usage["data"].as_array().unwrap())
    };
    let plain = one.get("/v1/usage").await.expect(200);
    let total = |field: &str| -> i64 {
        plain["data"].as_array().unwrap().iter().map(|row| row[field].as_i64().unwrap()).sum()
    };
    assert_eq!((total("calls"), total("cost_cents")), (6, 14), "{plain}");
    let by_day = json!({"day": day, "calls": 6, "cost_cents": 14, "cost_usd": "0.14"});
    assert_eq!(rows("?by=day").await, as_sets(&[by_day]));
    let by_spell = [
        json!({"spell": "dear", "calls": 2, "cost_cents": 10, "cost_usd": "0.1"}),
        json!({"spell": "echo", "calls": 4, "cost_cents": 4, "cost_usd": "0.04"}),
    ];
    assert_eq!(rows("?by=spell").await, as_sets(&by_spell));
    let by_key = [
        json!({"key_id": one.key_id, "calls": 5, "cost_cents": 13, "cost_usd": "0.13"}),
        json!({"key_id": two.key_id, "calls": 1, "cost_cents": 1, "cost_usd": "0.01"}),
    ];
    assert_eq!(rows("?by=key").await, as_sets(&by_key));
    let line = |key: &str, spell: &str, calls: i64, cents: i64, usd: &str| json!({"day": day, "key_id": key, "spell": spell, "calls": calls, "cost_cents": cents, "cost_usd": usd});
    let by_all = [
        line(&one.key_id, "echo", 3, 3, "0.03"),
        line(&one.key_id, "dear", 2, 10, "0.1"),
        line(&two.key_id, "echo", 1, 1, "0.01"),
    ];
    assert_eq!(rows("?by=day,key,spell").await, as_sets(&by_all));
    let year: i32 = day[..4].parse().unwrap();
    let (past, future) = (year - 1, year + 1);
    let over_all = rows(&format!("?by=spell&from={past}-01-01T00:00:00Z&to={future}-12-31T00:00:00Z")).await;
    assert_eq!(over_all, as_sets(&by_spell));
    let later = rows(&format!("?by=spell&from={future}-01-01T00:00:00Z&to={future}-12-31T00:00:00Z")).await;
    assert!(later.is_empty(), "{later:?}");
    for wrong in ["?by=moon", "?from=yesterday", "?to=5"] {
        one.get(&format!("/v1/usage{wrong}")).await.expect_error(400);
    }
}

/// Rows in no order, and their fields in none.
fn as_sets(rows: &[Value]) -> BTreeSet<BTreeSet<String>> {
    let fields = |row: &Value| {
        let fields = row.as_object().unwrap().iter();
        fields.map(|(name, value)| format!("{name}={value}")).collect()
    };
    rows.iter().map(fields).collect()
}
