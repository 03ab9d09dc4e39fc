//! Budgets: made, replaced, read, deleted; their scopes, periods and refusals.

use jiff::{Timestamp, civil::Weekday, tz::TimeZone};
use serde_json::{Value, json};

use crate::harness::{Backend, Client, Options, Server, both, names, shape, usage_cents};

const USAGE: [&str; 10] = [
    "user_id",
    "period",
    "window_start",
    "window_end",
    "total_calls",
    "total_cost_cents",
    "reserved_cents",
    "remaining_cents",
    "soft_limit_cents",
    "hard_limit_cents",
];

fn hard(period: &str, cents: i64) -> Value {
    json!({"period": period, "hard_limit_cents": cents})
}

async fn cast_times(client: &Client, times: usize) {
    for _ in 0..times {
        client.echo().await.expect(200);
    }
}

both!(a_budget_is_made_with_201_and_replaced_with_200);
async fn a_budget_is_made_with_201_and_replaced_with_200(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.get("/v1/budgets").await.expect_code(404, "budget_not_found");
    let body = json!({
        "period": "monthly", "soft_limit_cents": 80, "hard_limit_cents": 100, "notify_thresholds": [50, 90]
    });
    let made = customer.post("/v1/budgets", body.clone()).await.expect(201);
    for (field, value) in body.as_object().unwrap() {
        assert_eq!(&made[field], value, "{field} of {made}");
    }
    assert_eq!(customer.get("/v1/budgets").await.expect(200)["hard_limit_cents"], 100);
    let replaced = customer.post("/v1/budgets", hard("monthly", 7)).await.expect(200);
    assert_eq!(replaced["hard_limit_cents"], 7);
    assert_eq!(replaced["soft_limit_cents"], Value::Null, "the whole budget is replaced");
    assert!(replaced["notify_thresholds"].as_array().is_none_or(Vec::is_empty), "{replaced}");
    let read = customer.get("/v1/budgets").await.expect(200);
    assert_eq!((&read["hard_limit_cents"], &read["soft_limit_cents"]), (&json!(7), &Value::Null));
    customer.post("/v1/budgets", hard("daily", 7)).await.expect(201);
    let put = customer.put("/v1/budgets", hard("daily", 9)).await.expect(200);
    assert_eq!((&put["period"], &put["hard_limit_cents"]), (&json!("daily"), &json!(9)));
}

both!(put_makes_a_budget_where_there_is_none);
async fn put_makes_a_budget_where_there_is_none(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.put("/v1/budgets", hard("weekly", 2)).await.expect(200);
    cast_times(&customer, 2).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(null_is_as_absent_in_a_budget);
async fn null_is_as_absent_in_a_budget(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let body = json!({
        "period": "monthly", "soft_limit_cents": null, "hard_limit_cents": null, "notify_thresholds": null
    });
    let budget = customer.post("/v1/budgets", body).await.expect(201);
    assert_eq!(budget["hard_limit_cents"], Value::Null);
    cast_times(&customer, 3).await;
    let usage = customer.usage("").await;
    assert_eq!((usage_cents(&usage), &usage["remaining_cents"]), ((3, 3, 0), &Value::Null));
}

both!(a_deleted_budget_is_gone);
async fn a_deleted_budget_is_gone(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.delete("/v1/budgets").await.expect_error(404);
    customer.limit("monthly", 0).await;
    customer.limit("daily", 0).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!(customer.delete("/v1/budgets?period=monthly").await.status, 204);
    customer.get("/v1/budgets?period=monthly").await.expect_code(404, "budget_not_found");
    customer.delete("/v1/budgets?period=monthly").await.expect_error(404);
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!(refusal["period"], "daily");
    assert_eq!(customer.delete("/v1/budgets").await.status, 204);
    customer.get("/v1/budgets").await.expect_code(404, "budget_not_found");
    customer.echo().await.expect(200);
}

both!(usage_says_what_is_spent_and_what_is_left);
async fn usage_says_what_is_spent_and_what_is_left(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let body = json!({"period": "daily", "soft_limit_cents": 4, "hard_limit_cents": 10});
    customer.post("/v1/budgets", body).await.expect(201);
    cast_times(&customer, 3).await;
    customer.post("/v1/holds", json!({"amount_cents": 2})).await.expect(201);
    let usage = customer.usage("").await;
    shape(&usage, &USAGE);
    assert_eq!(usage["user_id"], customer.account_id.as_str());
    assert_eq!(usage["period"], "daily");
    assert_eq!(usage_cents(&usage), (3, 3, 2));
    assert_eq!(usage["remaining_cents"], 5);
    assert_eq!((&usage["soft_limit_cents"], &usage["hard_limit_cents"]), (&json!(4), &json!(10)));
}

both!(usage_without_a_budget_is_this_months_without_limits);
async fn usage_without_a_budget_is_this_months_without_limits(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    cast_times(&customer, 2).await;
    let usage = customer.usage("").await;
    shape(&usage, &USAGE);
    assert_eq!((&usage["period"], usage_cents(&usage)), (&json!("monthly"), (2, 2, 0)));
    for field in ["remaining_cents", "soft_limit_cents", "hard_limit_cents"] {
        assert_eq!(usage[field], Value::Null, "{field}");
    }
}

both!(windows_are_the_calendars_in_utc);
async fn windows_are_the_calendars_in_utc(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let cast = customer.echo().await.expect(200);
    let now: Timestamp = cast["created_at"].as_str().unwrap().parse().unwrap();
    for (period, longest_days) in [("daily", 1), ("weekly", 7), ("monthly", 31), ("yearly", 366)] {
        customer.limit(period, 100).await;
        let usage = customer.usage(&format!("?period={period}")).await;
        assert_eq!((&usage["period"], usage_cents(&usage)), (&json!(period), (1, 1, 0)));
        let time = |field: &str| {
            let text = usage[field].as_str().unwrap();
            assert!(text.ends_with('Z'), "{text} is not in UTC");
            text.parse::<Timestamp>().unwrap()
        };
        let (start, end) = (time("window_start"), time("window_end"));
        assert!(start <= now && now < end, "{now} in {usage}");
        let hours = end.duration_since(start).as_hours();
        assert!(hours <= longest_days * 24 && hours >= longest_days * 24 * 9 / 10, "{usage}");
        for edge in [start, end] {
            let edge = edge.to_zoned(TimeZone::UTC);
            assert_eq!((edge.hour(), edge.minute(), edge.second()), (0, 0, 0), "{usage}");
            match period {
                "weekly" => assert_eq!(edge.weekday(), Weekday::Monday, "{usage}"),
                "monthly" => assert_eq!(edge.day(), 1, "{usage}"),
                "yearly" => assert_eq!((edge.month(), edge.day()), (1, 1), "{usage}"),
                _ => {}
            }
        }
    }
    customer.limit("lifetime", 100).await;
    let usage = customer.usage("?period=lifetime").await;
    assert_eq!((&usage["window_end"], usage_cents(&usage)), (&Value::Null, (1, 1, 0)));
}

both!(every_period_refuses_at_its_limit_and_names_itself);
async fn every_period_refuses_at_its_limit_and_names_itself(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    for period in ["daily", "weekly", "monthly", "yearly", "lifetime"] {
        let customer = server.customer(period).await;
        customer.post("/v1/budgets", hard(period, 2)).await.expect(201);
        cast_times(&customer, 2).await;
        let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
        assert_eq!((&refusal["period"], &refusal["scope"]), (&json!(period), &json!("account")));
        let usage = customer.usage("").await;
        assert_eq!(refusal["resets_at"], usage["window_end"], "{refusal}");
        assert_eq!(refusal["resets_at"].is_null(), period == "lifetime", "{refusal}");
    }
}

both!(a_refusal_carries_the_figures);
async fn a_refusal_carries_the_figures(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let price = json!({"kind": "echo", "price": {"flat_cents": 4}});
    server.admin().put("/v1/spells/dear", price).await.expect(201);
    let customer = server.customer("acme").await;
    customer.limit("monthly", 10).await;
    cast_times(&customer, 5).await;
    customer.post("/v1/holds", json!({"amount_cents": 2})).await.expect(201);
    let refusal = customer.cast("dear", json!(null)).await.expect_code(402, "budget_exceeded");
    for (field, value) in [
        ("period", json!("monthly")),
        ("scope", json!("account")),
        ("hard_limit_cents", json!(10)),
        ("spent_cents", json!(5)),
        ("reserved_cents", json!(2)),
        ("requested_cents", json!(4)),
    ] {
        assert_eq!(refusal[field], value, "{field} of {refusal}");
    }
    assert!(refusal["resets_at"].as_str().unwrap().parse::<Timestamp>().is_ok(), "{refusal}");
    cast_times(&customer, 3).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(a_hard_limit_of_0_refuses_all_that_costs);
async fn a_hard_limit_of_0_refuses_all_that_costs(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let free = json!({"kind": "echo", "price": {"flat_cents": 0}});
    server.admin().put("/v1/spells/free", free).await.expect(201);
    let customer = server.customer("acme").await;
    customer.limit("monthly", 0).await;
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["hard_limit_cents"], &refusal["requested_cents"]), (&json!(0), &json!(1)));
    customer.cast("free", json!(null)).await.expect(200);
    let usage = customer.usage("").await;
    assert_eq!((usage_cents(&usage), &usage["remaining_cents"]), ((1, 0, 0), &json!(0)));
}

both!(a_soft_limit_refuses_nothing);
async fn a_soft_limit_refuses_nothing(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.post("/v1/budgets", json!({"period": "monthly", "soft_limit_cents": 1})).await.expect(201);
    cast_times(&customer, 4).await;
    let usage = customer.usage("").await;
    assert_eq!((&usage["soft_limit_cents"], &usage["remaining_cents"]), (&json!(1), &Value::Null));
}

both!(every_budget_that_covers_a_cast_must_have_room);
async fn every_budget_that_covers_a_cast_must_have_room(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    admin.put("/v1/spells/other", json!({"kind": "echo"})).await.expect(201);
    let one = server.customer("acme").await;
    let two = one.another_key(&admin, json!({})).await;
    one.post("/v1/budgets", hard("monthly", 8)).await.expect(201);
    let on_key = format!("/v1/budgets?key_id={}", one.key_id);
    let made = one.post(&on_key, hard("daily", 3)).await.expect(201);
    assert_eq!(made["scope"], format!("key:{}", one.key_id));
    let made = one.post("/v1/budgets?spell=echo", hard("weekly", 5)).await.expect(201);
    assert_eq!(made["scope"], "spell:echo");
    let other = || json!({"spell_name": "other", "payload": null});

    cast_times(&one, 3).await;
    let refusal = one.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["scope"], &refusal["period"]), (&made_scope(&one.key_id), &json!("daily")));
    one.post("/v1/cast", other()).await.expect_code(402, "budget_exceeded");
    cast_times(&two, 2).await;
    let refusal = two.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["scope"], &refusal["period"]), (&json!("spell:echo"), &json!("weekly")));
    for _ in 0..3 {
        two.post("/v1/cast", other()).await.expect(200);
    }
    let refusal = two.post("/v1/cast", other()).await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["scope"], &refusal["period"]), (&json!("account"), &json!("monthly")));

    // Each counts what is its own.
    assert_eq!(usage_cents(&two.usage("").await), (8, 8, 0));
    assert_eq!(usage_cents(&two.usage(&format!("?key_id={}", one.key_id)).await), (3, 3, 0));
    let of_spell = two.usage("?spell=echo").await;
    assert_eq!((usage_cents(&of_spell), &of_spell["period"]), ((5, 5, 0), &json!("weekly")));
    // What has no budget can be asked for too.
    assert_eq!(usage_cents(&two.usage("?spell=other").await), (3, 3, 0));
    assert_eq!(usage_cents(&two.usage(&format!("?key_id={}", two.key_id)).await), (5, 5, 0));
    // A scope's budget is not the account's.
    assert_eq!(one.get("/v1/budgets").await.expect(200)["scope"], "account");
    assert_eq!(one.get(&on_key).await.expect(200)["hard_limit_cents"], 3);
    assert_eq!(one.delete(&on_key).await.status, 204);
    one.get(&on_key).await.expect_code(404, "budget_not_found");
    assert_eq!(one.get("/v1/budgets?spell=echo").await.expect(200)["hard_limit_cents"], 5);
}

fn made_scope(key_id: &str) -> Value {
    json!(format!("key:{key_id}"))
}

both!(another_accounts_key_has_no_budget_of_mine);
async fn another_accounts_key_has_no_budget_of_mine(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    for method in ["POST", "PUT"] {
        let call = acme.call(method, &format!("/v1/budgets?key_id={}", other.key_id));
        call.json(&hard("monthly", 0)).send().await.expect_error(404);
    }
    other.echo().await.expect(200);
    acme.echo().await.expect(200);
}

both!(without_a_period_the_budget_that_was_set_last_is_meant);
async fn without_a_period_the_budget_that_was_set_last_is_meant(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let meant = async || {
        let budget = customer.get("/v1/budgets").await.expect(200);
        assert_eq!(budget["period"], customer.usage("").await["period"]);
        budget["period"].as_str().unwrap().to_owned()
    };
    customer.post("/v1/budgets", hard("monthly", 50)).await.expect(201);
    customer.post("/v1/budgets", hard("daily", 40)).await.expect(201);
    assert_eq!(meant().await, "daily");
    customer.post("/v1/budgets", hard("lifetime", 60)).await.expect(201);
    assert_eq!(meant().await, "lifetime");
    customer.put("/v1/budgets", hard("monthly", 51)).await.expect(200);
    assert_eq!(meant().await, "monthly");
    assert_eq!(customer.get("/v1/budgets?period=daily").await.expect(200)["hard_limit_cents"], 40);
    assert_eq!(customer.usage("?period=daily").await["hard_limit_cents"], 40);
    let all = customer.get("/v1/budgets?all=true").await.expect(200);
    shape(&all, &["data", "next_cursor"]);
    let mut periods = names(all["data"].as_array().unwrap(), "period");
    periods.sort();
    assert_eq!(periods, ["daily", "lifetime", "monthly"]);
    assert_eq!(customer.delete("/v1/budgets").await.status, 204);
    assert_eq!(meant().await, "lifetime");
}

both!(a_list_of_budgets_has_all_scopes);
async fn a_list_of_budgets_has_all_scopes(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let empty = customer.get("/v1/budgets?all=true").await.expect(200);
    assert_eq!(empty["data"], json!([]));
    customer.post("/v1/budgets", hard("monthly", 1)).await.expect(201);
    customer.post("/v1/budgets?spell=echo", hard("monthly", 2)).await.expect(201);
    customer.post(&format!("/v1/budgets?key_id={}", customer.key_id), hard("monthly", 3)).await.expect(201);
    let all = customer.get("/v1/budgets?all=true").await.expect(200);
    let mut scopes = names(all["data"].as_array().unwrap(), "scope");
    scopes.sort();
    assert_eq!(scopes, ["account".to_owned(), format!("key:{}", customer.key_id), "spell:echo".to_owned()]);
}

both!(a_budget_counts_what_was_spent_before_it_was_made);
async fn a_budget_counts_what_was_spent_before_it_was_made(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    cast_times(&customer, 4).await;
    customer.post("/v1/holds", json!({"amount_cents": 3})).await.expect(201);
    customer.post("/v1/budgets", hard("monthly", 9)).await.expect(201);
    assert_eq!(usage_cents(&customer.usage("").await), (4, 4, 3));
    cast_times(&customer, 2).await;
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["spent_cents"], &refusal["reserved_cents"]), (&json!(6), &json!(3)));
}

both!(deleting_a_budget_and_making_it_again_forgets_nothing);
async fn deleting_a_budget_and_making_it_again_forgets_nothing(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.post("/v1/budgets", hard("daily", 5)).await.expect(201);
    cast_times(&customer, 3).await;
    assert_eq!(customer.delete("/v1/budgets").await.status, 204);
    cast_times(&customer, 1).await;
    customer.post("/v1/budgets", hard("daily", 5)).await.expect(201);
    assert_eq!(usage_cents(&customer.usage("").await), (4, 4, 0));
    cast_times(&customer, 1).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(a_limit_below_what_is_spent_refuses_and_never_errs);
async fn a_limit_below_what_is_spent_refuses_and_never_errs(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.limit("monthly", 100).await;
    cast_times(&customer, 10).await;
    customer.limit("monthly", 4).await;
    let refusal = customer.echo().await.expect_code(402, "budget_exceeded");
    assert_eq!((&refusal["spent_cents"], &refusal["hard_limit_cents"]), (&json!(10), &json!(4)));
    let usage = customer.usage("").await;
    assert_eq!((usage_cents(&usage), &usage["remaining_cents"]), ((10, 10, 0), &json!(0)));
    customer.limit("monthly", 0).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
    customer.limit("monthly", 11).await;
    cast_times(&customer, 1).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(the_largest_limit_is_taken_and_one_cent_more_is_not);
async fn the_largest_limit_is_taken_and_one_cent_more_is_not(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let largest = 900_000_000_000_i64;
    let body = json!({
        "period": "lifetime", "soft_limit_cents": largest, "hard_limit_cents": largest,
        "notify_thresholds": [largest]
    });
    customer.post("/v1/budgets", body).await.expect(201);
    cast_times(&customer, 1).await;
    assert_eq!(customer.usage("").await["remaining_cents"], largest - 1);
    customer.put("/v1/budgets", hard("lifetime", largest + 1)).await.expect_error(400);
    customer.post("/v1/holds", json!({"amount_cents": largest - 1})).await.expect(201);
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(a_bad_budget_is_refused_and_the_old_one_stands);
async fn a_bad_budget_is_refused_and_the_old_one_stands(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let good =
        json!({"period": "monthly", "soft_limit_cents": 3, "hard_limit_cents": 5, "notify_thresholds": [2]});
    customer.post("/v1/budgets", good).await.expect(201);
    let before = customer.get("/v1/budgets?all=true").await.expect(200);
    for bad in [
        r#"{"period":"monthly","soft_limit_cents":6,"hard_limit_cents":5}"#,
        r#"{"period":"monthly","hard_limit_cents":-1}"#,
        r#"{"period":"monthly","soft_limit_cents":-1}"#,
        r#"{"period":"monthly","hard_limit_cents":900000000001}"#,
        r#"{"period":"monthly","soft_limit_cents":900000000001}"#,
        r#"{"period":"monthly","hard_limit_cents":9223372036854775808}"#,
        r#"{"period":"monthly","hard_limit_cents":5.0}"#,
        r#"{"period":"monthly","hard_limit_cents":5.5}"#,
        r#"{"period":"monthly","hard_limit_cents":"5"}"#,
        r#"{"period":"monthly","hard_limit_cents":true}"#,
        r#"{"period":"monthly","hard_limit_cents":[5]}"#,
        r#"{"period":"monthly","hard_limit_cents":5,"notify_thresholds":[-1]}"#,
        r#"{"period":"monthly","hard_limit_cents":5,"notify_thresholds":[1.0]}"#,
        r#"{"period":"monthly","hard_limit_cents":5,"notify_thresholds":3}"#,
        r#"{"period":"hourly","hard_limit_cents":5}"#,
        r#"{"period":"Monthly","hard_limit_cents":5}"#,
        r#"{"period":"","hard_limit_cents":5}"#,
        r#"{"period":null,"hard_limit_cents":5}"#,
        r#"{"hard_limit_cents":5}"#,
        r#"{"period":"monthly","hard_limit_cents":5,"hard_limit":9}"#,
        r#"{"period":"monthly","hard_limit_cents":5,"hard_limit_cents":9}"#,
    ] {
        for method in ["POST", "PUT"] {
            let refused = customer.call(method, "/v1/budgets").body("application/json", bad).send().await;
            refused.expect_error(400);
            let after = customer.get("/v1/budgets?all=true").await.expect(200);
            assert_eq!(after, before, "{method} {bad}");
        }
    }
    cast_times(&customer, 5).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
}

both!(a_locked_budget_is_changed_by_an_admin_alone);
async fn a_locked_budget_is_changed_by_an_admin_alone(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    let path = format!("/v1/budgets?account_id={}", customer.account_id);
    let locked = json!({"period": "monthly", "hard_limit_cents": 2, "locked": true});
    assert_eq!(admin.post(&path, locked).await.expect(201)["locked"], true);
    assert_eq!(customer.get("/v1/budgets").await.expect(200)["locked"], true);
    customer.post("/v1/budgets", hard("monthly", 100)).await.expect_error(403);
    customer.put("/v1/budgets", hard("monthly", 100)).await.expect_error(403);
    customer.delete("/v1/budgets").await.expect_error(403);
    let unlock = json!({"period": "monthly", "hard_limit_cents": 100, "locked": false});
    customer.put("/v1/budgets", unlock.clone()).await.expect_error(403);
    // Its own budgets beside it are its own.
    customer.post("/v1/budgets", hard("daily", 100)).await.expect(201);
    assert_eq!(customer.delete("/v1/budgets?period=daily").await.status, 204);
    cast_times(&customer, 2).await;
    customer.echo().await.expect_code(402, "budget_exceeded");
    admin.put(&path, unlock).await.expect(200);
    customer.put("/v1/budgets", hard("monthly", 3)).await.expect(200);
    cast_times(&customer, 1).await;
    let refused = customer.put("/v1/budgets", json!({"period": "monthly", "locked": true})).await;
    assert!([400, 403].contains(&refused.status), "who is no admin can't lock: {refused}");
}

both!(budgets_of_two_accounts_know_nothing_of_each_other);
async fn budgets_of_two_accounts_know_nothing_of_each_other(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let (acme, other) = (server.customer("acme").await, server.customer("other").await);
    acme.limit("monthly", 1).await;
    other.post("/v1/budgets?spell=echo", hard("monthly", 2)).await.expect(201);
    cast_times(&acme, 1).await;
    cast_times(&other, 2).await;
    acme.echo().await.expect_code(402, "budget_exceeded");
    other.echo().await.expect_code(402, "budget_exceeded");
    other.get("/v1/budgets").await.expect_code(404, "budget_not_found");
    acme.get("/v1/budgets?spell=echo").await.expect_code(404, "budget_not_found");
}
