//! Quotas: what a user of another service has left of an action, debited and credited by that service.

use jiff::{Timestamp, ToSpan, civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use crate::{
    harness::{
        ADMIN_KEY, Answer, Backend, Client, Options, Server, all_of, both, postgres, shape, storm, unix_now,
    },
    metrics::assert_promtool_agrees,
    users::{House, SERVICE_TOKEN, token},
};

const QUOTA: &str = "/internal/billing/quota";

pub async fn check(service: &Client, user: &str) -> Value {
    let path = format!("{QUOTA}/check/{}", user.replace(' ', "%20"));
    let left = service.get(&path).await.expect(200);
    shape(&left, &["remain_chat", "remain_tpl", "plan_code", "resets_at"]);
    left
}

/// What is left of chat and of templates, and the plan.
async fn left(service: &Client, user: &str) -> (i64, i64, String) {
    figures(&check(service, user).await)
}

fn figures(answer: &Value) -> (i64, i64, String) {
    let number = |field: &str| answer[field].as_i64().unwrap_or_else(|| panic!("{field} of {answer}"));
    (number("remain_chat"), number("remain_tpl"), answer["plan_code"].as_str().unwrap().to_owned())
}

pub fn debiting(user: &str, action: &str, units: i64, reference: &str) -> Value {
    json!({"user_id": user, "action": action, "units": units, "ref": reference})
}

pub async fn debit(service: &Client, user: &str, action: &str, units: i64, reference: &str) -> Answer {
    service.post(&format!("{QUOTA}/debit"), debiting(user, action, units, reference)).await
}

fn crediting(order: &str, user: &str, plan: &str, chat: i64, tpl: i64) -> Value {
    json!({"order_id": order, "user_id": user, "plan_code": plan, "units_chat": chat, "units_tpl": tpl})
}

async fn credit(service: &Client, order: &str, user: &str, plan: &str, chat: i64, tpl: i64) -> Answer {
    service.post(&format!("{QUOTA}/credit"), crediting(order, user, plan, chat, tpl)).await
}

/// What a debit or a credit that was made answers.
#[track_caller]
fn done(answer: &Answer) -> (i64, i64, String) {
    let body = answer.expect(200);
    shape(&body, &["success", "remain_chat", "remain_tpl", "plan_code"]);
    assert_eq!(body["success"], true);
    figures(&body)
}

fn free(chat: i64, tpl: i64) -> (i64, i64, String) {
    (chat, tpl, "free".to_owned())
}

/// In UTC. No test runs across midnight.
fn today() -> Date {
    Timestamp::from_millisecond(unix_now()).unwrap().to_zoned(TimeZone::UTC).date()
}

/// The first of next month, as it is told.
fn next_month() -> String {
    let first = today().first_of_month().checked_add(1.month()).unwrap();
    format!("{first}T00:00:00")
}

both!(the_documented_calls_are_answered_as_documented);
async fn the_documented_calls_are_answered_as_documented(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    let first = check(&service, "user-1").await;
    assert_eq!((&first["remain_chat"], &first["remain_tpl"]), (&json!(100), &json!(20)));
    assert_eq!(first["plan_code"], "free");
    let resets_at = first["resets_at"].as_str().unwrap();
    assert!(resets_at.starts_with(&next_month()) && resets_at.ends_with('Z'), "{first}");

    let debited = debit(&service, "user-1", "chat_tokens", 46, "r-1").await;
    assert_eq!(debited.text, r#"{"success":true,"remain_chat":54,"remain_tpl":20,"plan_code":"free"}"#);
    assert_eq!(done(&debit(&service, "user-1", "tpl_run", 1, "r-2").await), free(54, 19));
    let mut now = first.clone();
    (now["remain_chat"], now["remain_tpl"]) = (json!(54), json!(19));
    assert_eq!(check(&service, "user-1").await, now);
    // The same again is the first answer, to the byte.
    assert_eq!(debit(&service, "user-1", "chat_tokens", 46, "r-1").await.text, debited.text);
    assert_eq!(check(&service, "user-1").await, now);

    // Its units are added to what remains, and its plan's own begin at once.
    let credited = credit(&service, "o-1", "user-1", "pro_month", 500, 10).await;
    assert_eq!(
        credited.text,
        r#"{"success":true,"remain_chat":10500,"remain_tpl":210,"plan_code":"pro_month"}"#
    );
    assert_eq!(credit(&service, "o-1", "user-1", "pro_month", 500, 10).await.text, credited.text);
    let now = check(&service, "user-1").await;
    assert_eq!(figures(&now), (10_500, 210, "pro_month".to_owned()));
    assert_eq!(now["resets_at"], first["resets_at"]);
    // Others have what they had.
    assert_eq!(left(&service, "user-2").await, free(100, 20));
}

both!(what_is_not_left_is_402_and_takes_nothing);
async fn what_is_not_left_is_402_and_takes_nothing(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    debit(&service, "ann", "chat_tokens", 46, "r-1").await.expect(200);
    for (action, units, remaining) in
        [("chat_tokens", 55, 54), ("chat_tokens", 1_000_000_000_000_000, 54), ("tpl_run", 21, 20)]
    {
        let refusal = debit(&service, "ann", action, units, "r-2").await.expect_code(402, "quota_exceeded");
        let fields = [
            "error",
            "message",
            "action",
            "requested",
            "remaining",
            "remain_chat",
            "remain_tpl",
            "plan_code",
            "resets_at",
        ];
        shape(&refusal, &fields);
        assert_eq!((&refusal["requested"], &refusal["remaining"]), (&json!(units), &json!(remaining)));
        assert_eq!((refusal["action"].as_str(), figures(&refusal)), (Some(action), free(54, 20)));
        assert!(refusal["resets_at"].as_str().unwrap().starts_with(&next_month()), "{refusal}");
        assert_eq!(left(&service, "ann").await, free(54, 20));
    }
    // What was refused did not use its name up.
    assert_eq!(done(&debit(&service, "ann", "chat_tokens", 54, "r-2").await), free(0, 20));
    debit(&service, "ann", "chat_tokens", 1, "r-3").await.expect_code(402, "quota_exceeded");
    // The same name again is its first answer, though there is nothing left.
    assert_eq!(done(&debit(&service, "ann", "chat_tokens", 46, "r-1").await), free(54, 20));
    credit(&service, "o-1", "ann", "free", 1, 0).await.expect(200);
    assert_eq!(done(&debit(&service, "ann", "chat_tokens", 1, "r-3").await), free(0, 20));
}

both!(names_are_one_space_for_all_users_and_effects);
async fn names_are_one_space_for_all_users_and_effects(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    debit(&service, "ann", "chat_tokens", 10, "n-1").await.expect(200);
    credit(&service, "n-2", "ann", "free", 5, 6).await.expect(200);
    let stands = left(&service, "ann").await;
    assert_eq!(stands, free(95, 26));
    let debits = format!("{QUOTA}/debit");
    let credits = format!("{QUOTA}/credit");
    for (path, body) in [
        (&debits, debiting("ann", "chat_tokens", 11, "n-1")),
        (&debits, debiting("ann", "tpl_run", 10, "n-1")),
        (&debits, debiting("bob", "chat_tokens", 10, "n-1")),
        (&debits, debiting("ann", "chat_tokens", 10, "n-2")),
        (&debits, debiting("ann", "chat_tokens", 1_000_000, "n-1")),
        (&credits, crediting("n-1", "ann", "free", 10, 0)),
        (&credits, crediting("n-2", "ann", "free", 5, 7)),
        (&credits, crediting("n-2", "ann", "free", 6, 6)),
        (&credits, crediting("n-2", "ann", "pro_month", 5, 6)),
        (&credits, crediting("n-2", "bob", "free", 5, 6)),
        (&credits, crediting("n-2", "bob", "no such plan", 5, 6)),
    ] {
        service.post(path, body).await.expect_code(409, "reference_reused");
    }
    assert_eq!(left(&service, "ann").await, stands);
    assert_eq!(left(&service, "bob").await, free(100, 20));
    // Names are as they are written.
    for name in ["N-1", "n-1 ", "n–1"] {
        debit(&service, "bob", "tpl_run", 1, name).await.expect(200);
    }
    assert_eq!(left(&service, "bob").await, free(100, 17));
}

both!(credited_units_are_used_after_the_plans_own_and_stay);
async fn credited_units_are_used_after_the_plans_own_and_stay(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    debit(&service, "ann", "chat_tokens", 60, "r-1").await.expect(200);
    assert_eq!(done(&credit(&service, "o-1", "ann", "free", 30, 0).await), free(70, 20));
    // 40 of the plan's own and 10 of those that were credited.
    assert_eq!(done(&debit(&service, "ann", "chat_tokens", 50, "r-2").await), free(20, 20));
    let pro = |chat, tpl| (chat, tpl, "pro_month".to_owned());
    assert_eq!(done(&credit(&service, "o-2", "ann", "pro_month", 0, 0).await), pro(10_020, 200));
    assert_eq!(done(&debit(&service, "ann", "chat_tokens", 10_000, "r-3").await), pro(20, 200));
    assert_eq!(done(&credit(&service, "o-3", "ann", "pro_month", 1, 0).await), pro(21, 200));
    assert_eq!(done(&debit(&service, "ann", "chat_tokens", 21, "r-4").await), pro(0, 200));
}

both!(a_daily_plan_begins_anew_tomorrow_and_a_change_of_it_waits_for_that);
async fn a_daily_plan_begins_anew_tomorrow_and_a_change_of_it_waits_for_that(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    let plan =
        |chat: i64| json!({"name": "Day", "period": "daily", "limits": {"chat_tokens": chat, "tpl_run": 1}});
    let mut made = plan(10);
    made["code"] = json!("day");
    (made["price_cents"], made["currency"]) = (json!(100), json!("usd"));
    service.post("/internal/billing/plans", made).await.expect(201);
    assert_eq!(done(&credit(&service, "o-1", "ann", "day", 5, 0).await), (15, 1, "day".to_owned()));
    let tomorrow = today().tomorrow().unwrap();
    let stands = check(&service, "ann").await;
    assert!(stands["resets_at"].as_str().unwrap().starts_with(&format!("{tomorrow}T00:00:00")), "{stands}");
    service.put("/internal/billing/plans/day", plan(1_000)).await.expect(200);
    assert_eq!(check(&service, "ann").await, stands);
    // Who comes onto it now has it as it is now.
    assert_eq!(done(&credit(&service, "o-2", "bob", "day", 0, 0).await), (1_000, 1, "day".to_owned()));
}

both!(only_the_service_key_opens_quotas);
async fn only_the_service_key_opens_quotas(backend: Backend) {
    let house = House::open(&backend).await;
    let (anyone, customer) = (house.server.anonymous(), house.server.customer("acme").await);
    let callers = [
        anyone.clone(),
        anyone.with_header("X-Internal-Key", "wrong"),
        anyone.with_header("X-Internal-Key", ""),
        anyone.with_header("X-Internal-Key", ADMIN_KEY),
        anyone.with_header("X-Internal-Key", &customer.key),
        anyone.with_header("X-Internal-Key", &SERVICE_TOKEN[..SERVICE_TOKEN.len() - 1]),
        anyone.with_key(SERVICE_TOKEN),
        anyone.with_header("x-api-key", SERVICE_TOKEN),
        anyone.with_key(&token("ann")),
        customer.client(),
        house.server.admin(),
    ];
    for client in &callers {
        for path in ["check/ann", "receipts/ann", "nowhere"] {
            client.get(&format!("{QUOTA}/{path}")).await.expect_code(401, "unauthorized");
        }
        debit(client, "ann", "chat_tokens", 1, "r-1").await.expect_code(401, "unauthorized");
        credit(client, "o-1", "ann", "free", 1, 1).await.expect_code(401, "unauthorized");
        // Before anything is read.
        client.post(&format!("{QUOTA}/debit"), json!([])).await.expect_code(401, "unauthorized");
    }
    assert_eq!(left(&house.service(), "ann").await, free(100, 20));
    // A rotated service key goes on beside the new one.
    drop(house);
    let both = Options::on(&backend).var("SERVICE_TOKEN", format!("the-next-one-0123456789,{SERVICE_TOKEN}"));
    let server = Server::start(both).await;
    for token in ["the-next-one-0123456789", SERVICE_TOKEN] {
        check(&server.anonymous().with_header("X-Internal-Key", token), "ann").await;
    }
    // Without one there is no way in.
    drop(server);
    let server = Server::start(Options::on(&backend)).await;
    for token in ["", ",", SERVICE_TOKEN] {
        let client = server.anonymous().with_header("X-Internal-Key", token);
        client.get(&format!("{QUOTA}/check/ann")).await.expect_code(401, "unauthorized");
    }
}

both!(any_content_type_is_taken);
async fn any_content_type_is_taken(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    for (number, content_type) in [
        "text/plain",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "nonsense",
        "application/json",
    ]
    .into_iter()
    .enumerate()
    {
        let body = debiting("ann", "chat_tokens", 1, &format!("r-{number}")).to_string();
        let call = service.call("POST", &format!("{QUOTA}/debit")).body(content_type, body);
        assert_eq!(done(&call.send().await), free(99 - number as i64, 20));
        let body = crediting(&format!("o-{number}"), "bob", "free", 1, 0).to_string();
        let call = service.call("POST", &format!("{QUOTA}/credit")).body(content_type, body);
        assert_eq!(done(&call.send().await), free(101 + number as i64, 20));
    }
    let untyped = service.call("POST", &format!("{QUOTA}/debit"));
    let untyped = untyped.untyped(r#"{"user_id":"ann","action":"tpl_run","units":1,"ref":"u"}"#);
    assert_eq!(done(&untyped.send().await), free(95, 19));
}

both!(what_is_not_as_it_should_be_is_400_and_changes_nothing);
async fn what_is_not_as_it_should_be_is_400_and_changes_nothing(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    let with = |mut body: Value, field: &str, value: Value| {
        body[field] = value;
        body
    };
    let (debits, credits) = (format!("{QUOTA}/debit"), format!("{QUOTA}/credit"));
    let huge: Value = serde_json::from_str("170141183460469231731687303715884105728").unwrap();
    let numbers = [
        json!(-1),
        json!(5.0),
        json!(1e2),
        json!("5"),
        json!(true),
        json!([]),
        huge,
        json!(i64::MAX),
        json!(i64::MIN),
        json!(1_000_000_000_000_001_i64),
        json!(null),
    ];
    let long = "x".repeat(256);
    let texts = [json!(""), json!(null), json!(7), json!("a\0"), json!("a\nb"), json!(long)];
    let mut cases = Vec::new();
    let (debited, credited) = (debiting("ann", "chat_tokens", 1, "r"), crediting("o", "ann", "free", 1, 1));
    for number in numbers {
        cases.push((&debits, with(debited.clone(), "units", number.clone())));
        for field in ["units_chat", "units_tpl"] {
            cases.push((&credits, with(credited.clone(), field, number.clone())));
        }
    }
    cases.push((&debits, with(debited.clone(), "units", json!(0))));
    for text in texts {
        for field in ["user_id", "ref", "action"] {
            cases.push((&debits, with(debited.clone(), field, text.clone())));
        }
        for field in ["user_id", "order_id", "plan_code"] {
            cases.push((&credits, with(credited.clone(), field, text.clone())));
        }
    }
    for action in ["chat", "CHAT_TOKENS", "template", "tpl_run "] {
        cases.push((&debits, with(debited.clone(), "action", json!(action))));
    }
    for plan in ["gold", "FREE", "free "] {
        cases.push((&credits, with(credited.clone(), "plan_code", json!(plan))));
    }
    for field in ["amount", "x", "order_id"] {
        cases.push((&debits, with(debited.clone(), field, json!(1))));
    }
    cases.push((&credits, with(credited.clone(), "ref", json!("r"))));
    for body in [json!({}), json!([]), json!("r"), json!(null)] {
        cases.push((&debits, body.clone()));
        cases.push((&credits, body));
    }
    for (path, body) in cases {
        service.post(path, body).await.expect_code(400, "invalid_request");
    }
    for wrong in [&long, "a%00b", "a%0Ab", "ann?x=1"] {
        service.get(&format!("{QUOTA}/check/{wrong}")).await.expect_code(400, "invalid_request");
    }
    let told = service.post(&debits, debiting("ann", "chat", 1, "r")).await.expect_error(400);
    assert_eq!(told["message"], "`action` must be `chat_tokens` or `tpl_run`.");
    let told = service.post(&debits, with(debited.clone(), "unit", json!(1))).await.expect_error(400);
    assert!(told["message"].as_str().unwrap().contains("`unit`"), "{told}");
    let cut = service.call("POST", &debits).body("application/json", r#"{"user_id":"ann","#);
    cut.send().await.expect_code(400, "invalid_request");
    let large = with(debited.clone(), "ref", json!("x".repeat(1_100_000)));
    service.post(&debits, large).await.expect_code(413, "body_too_large");
    assert_eq!(left(&service, "ann").await, free(100, 20));
    // Nor was a name used up.
    service.post(&debits, debited).await.expect(200);
    service.post(&credits, credited).await.expect(200);
    assert_eq!(left(&service, "ann").await, free(100, 21));
}

both!(units_beyond_what_the_books_hold_are_400);
async fn units_beyond_what_the_books_hold_are_400(backend: Backend) {
    const MOST: i64 = 1_000_000_000_000_000;
    let house = House::open(&backend).await;
    let service = house.service();
    // As if many had been credited before.
    credit(&service, "o-0", "ann", "free", MOST, 0).await.expect(200);
    backend
        .execute(&format!("UPDATE balances SET granted = {} WHERE kind = 'credited'", i64::MAX - 150))
        .await;
    credit(&service, "o-1", "ann", "free", 151, 0).await.expect_code(400, "invalid_request");
    credit(&service, "o-1", "ann", "free", MOST, 0).await.expect_code(400, "invalid_request");
    credit(&service, "o-1", "ann", "free", 50, 0).await.expect(200);
    assert_eq!(left(&service, "ann").await, free(i64::MAX, 20), "it is told as far as it can be");
    debit(&service, "ann", "chat_tokens", 150, "r-1").await.expect(200);
    assert_eq!(left(&service, "ann").await, free(i64::MAX - 150, 20));
}

both!(any_name_of_a_user_is_a_user_of_its_own);
async fn any_name_of_a_user_is_a_user_of_its_own(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    let longest = "é".repeat(127);
    let users = [
        "ann",
        "Ann",
        " ann",
        "a/b",
        "a%2Fb",
        "%",
        "株式会社",
        "auth0|5f",
        "a@b.example",
        "..",
        "?",
        "#",
        &longest,
    ];
    for (number, user) in users.into_iter().enumerate() {
        let units = i64::try_from(number).unwrap() + 1;
        assert_eq!(
            done(&debit(&service, user, "chat_tokens", units, &format!("r-{number}")).await),
            free(100 - units, 20)
        );
    }
    for (number, user) in users.into_iter().enumerate() {
        let user: String = user.bytes().map(|byte| format!("%{byte:02X}")).collect();
        // A path's `..` goes away on its way.
        if user != "%2E%2E" {
            assert_eq!(left(&service, &user).await, free(99 - i64::try_from(number).unwrap(), 20), "{user}");
        }
    }
    let accounts = all_of(&house.server.admin(), "/v1/accounts?limit=1000").await;
    for user in users {
        let of_user: Vec<_> = accounts.iter().filter(|account| account["user_id"] == user).collect();
        assert_eq!(of_user.len(), 1, "{user} in {accounts:?}");
    }
}

both!(the_users_of_quotas_are_those_of_the_wallet);
async fn the_users_of_quotas_are_those_of_the_wallet(backend: Backend) {
    let house = House::open(&backend).await;
    debit(&house.service(), "ann", "chat_tokens", 1, "r-1").await.expect(200);
    let account = house.account_of("ann").await;
    house.give("ann", 5).await;
    assert_eq!(house.account_of("ann").await, account);
    assert_eq!(house.user("ann").get("/api/billing/balance").await.expect(200)["credits"], 5);
}

both!(receipts_tell_what_was_credited);
async fn receipts_tell_what_was_credited(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    let path = format!("{QUOTA}/receipts/ann");
    assert_eq!(service.get(&path).await.expect(200), json!({"data": [], "next_cursor": null}));
    for number in 1..=25 {
        credit(&service, &format!("ö/ {number:02}"), "ann", "free", number, 2 * number).await.expect(200);
        credit(&service, &format!("b-{number:02}"), "bob", "pro_month", 1, 1).await.expect(200);
    }
    // Neither what came twice nor what was refused has one.
    credit(&service, "ö/ 25", "ann", "free", 25, 50).await.expect(200);
    credit(&service, "ö/ 25", "ann", "free", 26, 50).await.expect_error(409);
    credit(&service, "ö/ 26", "ann", "gold", 1, 1).await.expect_error(400);
    let receipts = all_of(&service, &format!("{path}?limit=10")).await;
    let orders: Vec<&str> = receipts.iter().map(|receipt| receipt["order_id"].as_str().unwrap()).collect();
    let mut newest_first: Vec<String> = (1..=25).map(|number| format!("ö/ {number:02}")).collect();
    newest_first.reverse();
    assert_eq!(orders, newest_first);
    for receipt in &receipts {
        shape(
            receipt,
            &[
                "id",
                "order_id",
                "plan_code",
                "units_chat",
                "units_tpl",
                "amount",
                "currency",
                "status",
                "created_at",
            ],
        );
        let number: i64 = receipt["order_id"].as_str().unwrap()["ö/ ".len()..].parse().unwrap();
        assert_eq!((&receipt["units_chat"], &receipt["units_tpl"]), (&json!(number), &json!(2 * number)));
        assert_eq!((&receipt["plan_code"], &receipt["status"]), (&json!("free"), &json!("credited")));
        assert_eq!((&receipt["amount"], &receipt["currency"]), (&Value::Null, &Value::Null));
    }
    service.get(&format!("{path}?cursor=x")).await.expect_code(400, "invalid_request");
    service.get(&format!("{path}?limit=0")).await.expect_code(400, "invalid_request");
}

both!(who_is_suspended_is_debited_nothing);
async fn who_is_suspended_is_debited_nothing(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    debit(&service, "ann", "chat_tokens", 10, "r-1").await.expect(200);
    house.suspend("ann", true).await;
    for (action, units) in [("chat_tokens", 1), ("tpl_run", 1), ("chat_tokens", 1_000)] {
        debit(&service, "ann", action, units, "r-2").await.expect_code(403, "account_suspended");
    }
    assert_eq!(left(&service, "ann").await, free(90, 20));
    assert_eq!(left(&service, "ann").await, free(90, 20));
    // What was done before is still told.
    assert_eq!(done(&debit(&service, "ann", "chat_tokens", 10, "r-1").await), free(90, 20));
    debit(&service, "ann", "chat_tokens", 11, "r-1").await.expect_code(409, "reference_reused");
    // And what was paid for is had.
    assert_eq!(done(&credit(&service, "o-1", "ann", "free", 5, 0).await), free(95, 20));
    debit(&service, "bob", "chat_tokens", 1, "r-b").await.expect(200);
    house.suspend("ann", false).await;
    assert_eq!(done(&debit(&service, "ann", "chat_tokens", 1, "r-2").await), free(94, 20));
}

both!(a_restart_forgets_no_answer);
async fn a_restart_forgets_no_answer(backend: Backend) {
    let mut house = House::open(&backend).await;
    let service = house.service();
    let debited = debit(&service, "ann", "chat_tokens", 46, "r-1").await;
    let credited = credit(&service, "o-1", "ann", "pro_month", 7, 7).await;
    debit(&service, "ann", "tpl_run", 3, "r-2").await.expect(200);
    let stands = check(&service, "ann").await;
    for kill in [true, false] {
        if kill {
            house.server.kill9();
        } else {
            assert!(house.server.terminate(std::time::Duration::from_secs(15)).await.success());
        }
        house.server.restart().await;
        assert_eq!(check(&service, "ann").await, stands);
        assert_eq!(debit(&service, "ann", "chat_tokens", 46, "r-1").await.text, debited.text);
        assert_eq!(credit(&service, "o-1", "ann", "pro_month", 7, 7).await.text, credited.text);
        debit(&service, "ann", "chat_tokens", 45, "r-1").await.expect_code(409, "reference_reused");
        assert_eq!(check(&service, "ann").await, stands);
    }
}

/// The value of one series.
async fn series(server: &Server, name: &str) -> Option<f64> {
    let metrics = server.anonymous().get("/metrics").await.expect_metrics();
    metrics.iter().find(|(series, _)| series == name).map(|(_, value)| *value)
}

both!(metrics_tell_of_quotas);
async fn metrics_tell_of_quotas(backend: Backend) {
    for per_user in [false, true] {
        let house = House::open_with(Options::on(&backend).var("METRICS_PER_USER", per_user)).await;
        let (server, service) = (&house.server, house.service());
        let ok = r#"billing_deduct_total{result="ok"}"#;
        let fail = r#"billing_deduct_total{result="fail"}"#;
        for name in [ok, fail, "billing_credit_total"] {
            assert_eq!(series(server, name).await, Some(0.0), "{name} is there from the start");
        }
        let user = format!("user-{per_user} \"a\\b\"");
        debit(&service, &user, "chat_tokens", 46, &format!("{per_user}-1")).await.expect(200);
        debit(&service, &user, "tpl_run", 1, &format!("{per_user}-2")).await.expect(200);
        debit(&service, &user, "tpl_run", 1, &format!("{per_user}-2")).await.expect(200);
        debit(&service, &user, "tpl_run", 20, &format!("{per_user}-3")).await.expect_error(402);
        for number in 0..3 {
            let order = format!("{per_user}-o-{}", number / 2);
            credit(&service, &order, &user, "free", 10, 0).await.expect(200);
        }
        credit(&service, &format!("{per_user}-o-0"), &user, "free", 11, 0).await.expect_error(409);
        assert_eq!(series(server, ok).await, Some(2.0));
        assert_eq!(series(server, fail).await, Some(1.0));
        assert_eq!(series(server, "billing_credit_total").await, Some(2.0), "once an order");
        let shown = if per_user { format!("user-{per_user} \\\"a\\\\b\\\"") } else { String::new() };
        for (kind, units) in [("chat", 74.0), ("template", 19.0)] {
            let name = format!("billing_quota_remaining{{type=\"{kind}\",user_id=\"{shown}\"}}");
            assert_eq!(series(server, &name).await, Some(units), "{name}");
        }
        let metrics = server.anonymous().get("/metrics").await;
        assert_eq!(metrics.text.contains("user-"), per_user, "{metrics}");
        assert_promtool_agrees(&metrics);
    }
}

both!(without_series_per_user_users_make_no_new_ones);
async fn without_series_per_user_users_make_no_new_ones(backend: Backend) {
    let house = House::open(&backend).await;
    let service = house.service();
    let count = async || house.server.anonymous().get("/metrics").await.expect_metrics().len();
    check(&service, "ann").await;
    let before = count().await;
    for number in 0..30 {
        debit(&service, &format!("user {number}"), "chat_tokens", 1, &format!("r-{number}"))
            .await
            .expect(200);
    }
    assert_eq!(count().await, before);
}

/// Twelve times the same credit, at once, at these servers.
async fn assert_credited_once(clients: Vec<Client>) {
    for round in 0..5 {
        let servers = clients.clone();
        let answers = storm(12, 12, move |number| {
            let client = servers[number % servers.len()].clone();
            async move { credit(&client, &format!("o-{round}"), "ann", "pro_month", 10, 1).await }
        })
        .await;
        let expected = (10_000 + 10 * (round + 1), 200 + round + 1, "pro_month".to_owned());
        for answer in &answers {
            assert_eq!(done(answer), expected, "in round {round}");
        }
        assert_eq!(left(&clients[0], "ann").await, expected);
    }
    assert_eq!(all_of(&clients[0], &format!("{QUOTA}/receipts/ann?limit=50")).await.len(), 5);
}

both!(twelve_equal_credits_at_once_are_one);
async fn twelve_equal_credits_at_once_are_one(backend: Backend) {
    let house = House::open(&backend).await;
    assert_credited_once(vec![house.service()]).await;
}

postgres!(twelve_equal_credits_at_once_on_two_replicas_are_one);
async fn twelve_equal_credits_at_once_on_two_replicas_are_one(backend: Backend) {
    let (one, two) = (House::open(&backend).await, House::open(&backend).await);
    assert_credited_once(vec![one.service(), two.service()]).await;
}
