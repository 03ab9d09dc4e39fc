//! Plans: one catalogue that everybody reads and admins change.

use serde_json::{Value, json};

use crate::harness::{Backend, Client, Options, Server, all_of, both, names, postgres, shape, storm};

const TOKEN: &str = "a-token-that-only-services-have-0123456789";
const INTERNAL: &str = "/internal/billing/plans";

const FIELDS: [&str; 13] = [
    "code",
    "name",
    "price_cents",
    "currency",
    "interval",
    "stripe_price_id",
    "included_credits",
    "rate_limit_per_minute",
    "hard_limit_cents",
    "period",
    "limits",
    "created_at",
    "updated_at",
];

both!(the_first_plans_are_there_from_the_start);
async fn the_first_plans_are_there_from_the_start(backend: Backend) {
    let mut server = Server::start(Options::on(&backend).var("BILLING_CURRENCY", "EUR")).await;
    let customer = server.customer("acme").await;
    let plans = all_of(&customer, "/v1/plans?limit=1").await;
    assert_eq!(names(&plans, "code"), ["free", "pro", "pro_month"]);
    for plan in &plans {
        shape(plan, &FIELDS);
        assert_eq!(
            customer.get(&format!("/v1/plans/{}", plan["code"].as_str().unwrap())).await.body(),
            *plan
        );
    }
    let [free, pro, pro_month] = &plans[..] else { panic!("three of them") };
    assert_eq!((&free["price_cents"], &free["period"]), (&json!(0), &json!("monthly")));
    assert_eq!(free["limits"], json!({"chat_tokens": 100, "tpl_run": 20}));
    assert_eq!((&pro["name"], &pro["price_cents"]), (&json!("Pro"), &json!(1_000)));
    assert_eq!((&pro["currency"], &pro["interval"]), (&json!("eur"), &json!("month")));
    assert_eq!((&pro_month["name"], &pro_month["price_cents"]), (&json!("Pro, monthly"), &json!(1_000)));
    assert_eq!(pro_month["limits"], json!({"chat_tokens": 10_000, "tpl_run": 200}));

    let changed = json!({"name": "Pro", "price_cents": 2_000});
    server.admin().put("/v1/plans/pro", changed).await.expect(200);
    server.kill9();
    server.restart().await;
    assert_eq!(
        customer.get("/v1/plans/pro").await.expect(200)["price_cents"],
        2_000,
        "it is no default again"
    );
}

both!(an_admin_makes_a_plan_and_replaces_all_of_it);
async fn an_admin_makes_a_plan_and_replaces_all_of_it(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let (admin, customer) = (server.admin(), server.customer("acme").await);
    let stated = json!({
        "name": "Żółć", "price_cents": 99_999_999, "currency": "EUR", "interval": "year",
        "stripe_price_id": "price_1", "included_credits": 500, "rate_limit_per_minute": 120,
        "hard_limit_cents": 0, "period": "daily", "limits": {"tpl_run": 0, "chat_tokens": 1_000_000},
    });
    let made = admin.put("/v1/plans/Team-1.b_2", stated.clone()).await.expect(201);
    shape(&made, &FIELDS);
    for (field, value) in stated.as_object().unwrap() {
        let wanted = if field == "currency" { &json!("eur") } else { value };
        assert_eq!(&made[field], wanted, "{field} of {made}");
    }
    assert_eq!(customer.get("/v1/plans/Team-1.b_2").await.expect(200), made);

    let replaced = json!({"name": "Team", "price_cents": 5, "currency": null});
    let replaced = admin.put("/v1/plans/Team-1.b_2", replaced).await.expect(200);
    assert_eq!((&replaced["name"], &replaced["currency"]), (&json!("Team"), &json!("usd")));
    assert_eq!((&replaced["stripe_price_id"], &replaced["limits"]), (&Value::Null, &json!({})));
    assert_eq!((&replaced["rate_limit_per_minute"], &replaced["interval"]), (&Value::Null, &json!("month")));
    assert_eq!(replaced["created_at"], made["created_at"]);
    assert_eq!(all_of(&customer, "/v1/plans?limit=2").await.len(), 4);
}

both!(a_bad_plan_is_400_and_the_old_one_stands);
async fn a_bad_plan_is_400_and_the_old_one_stands(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let taken = json!({"name": "Taken", "price_cents": 1, "stripe_price_id": "price_taken"});
    admin.put("/v1/plans/taken", taken).await.expect(201);
    let before = admin.get("/v1/plans").await.expect(200);
    let with = |field: &str, value: Value| {
        let mut plan = json!({"name": "Pro", "price_cents": 1});
        plan[field] = value;
        plan
    };
    let mut bad = vec![json!({}), json!({"name": "Pro"}), json!({"price_cents": 1}), json!([])];
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("a\nb")),
        ("name", json!("x".repeat(201))),
        ("name", json!(5)),
        ("price_cents", json!(-1)),
        ("price_cents", json!(100_000_000)),
        ("price_cents", json!(5.0)),
        ("price_cents", json!("5")),
        ("currency", json!("dollars")),
        ("interval", json!("hour")),
        ("stripe_price_id", json!("plan_1")),
        ("stripe_price_id", json!("price_taken")),
        ("included_credits", json!(-1)),
        ("rate_limit_per_minute", json!(0)),
        ("hard_limit_cents", json!(900_000_000_001_i64)),
        ("period", json!("weekly")),
        ("limits", json!({"chat_tokens": -1})),
        ("limits", json!({"chat_tokens": 1.5})),
        ("limits", json!({"Chat": 1})),
        ("limits", json!([])),
        ("prise_cents", json!(1)),
        ("code", json!("other")),
        ("code", json!(5)),
    ] {
        bad.push(with(field, value));
    }
    for bad in bad {
        admin.put("/v1/plans/pro", bad.clone()).await.expect_error(400);
        admin.put("/v1/plans/new", bad).await.expect_error(400);
    }
    let long = format!("/v1/plans/{}", "a".repeat(65));
    for path in ["/v1/plans/a%20b", "/v1/plans/%C3%A9", "/v1/plans/a%00", &long, "/v1/plans/pro?x=1"] {
        admin.put(path, with("name", json!("Pro"))).await.expect_error(400);
    }
    assert_eq!(admin.get("/v1/plans").await.expect(200), before);
    for nowhere in ["/v1/plans/none", "/v1/plans/a%20b", "/v1/plans/a%00"] {
        admin.get(nowhere).await.expect_code(404, "plan_not_found");
    }
    // A body may repeat the path's code.
    assert_eq!(admin.put("/v1/plans/new", with("code", json!("new"))).await.expect(201)["code"], "new");
}

both!(who_is_no_admin_reads_plans_and_changes_none);
async fn who_is_no_admin_reads_plans_and_changes_none(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let (admin, customer) = (server.admin(), server.customer("acme").await);
    let plan = json!({"name": "Pro", "price_cents": 0});
    customer.put("/v1/plans/pro", plan.clone()).await.expect_error(403);
    server.anonymous().put("/v1/plans/pro", plan).await.expect_error(401);
    server.anonymous().get("/v1/plans").await.expect_error(401);
    for (scope, status) in [("read", 200), ("billing", 200), ("cast", 403), ("keys", 403)] {
        let key = customer.another_key(&admin, json!({"scopes": [scope]})).await;
        key.get("/v1/plans").await.expect(status);
        key.get("/v1/plans/pro").await.expect(status);
    }
    assert_eq!(customer.get("/v1/plans/pro").await.expect(200)["price_cents"], 1_000);
}

both!(a_plans_rate_is_in_force_at_the_next_cast);
async fn a_plans_rate_is_in_force_at_the_next_cast(backend: Backend) {
    let server = Server::start(Options::on(&backend).var("RATE_LIMIT_PER_MINUTE", 600)).await;
    let (admin, customer) = (server.admin(), server.customer("acme").await);
    let own = customer.another_key(&admin, json!({"rate_limit_per_minute": 70})).await;
    assert_eq!(customer.echo().await.number_in("ratelimit-limit"), 600);
    for rate in [Some(900), Some(30), None] {
        let plan = json!({"name": "Free", "price_cents": 0, "rate_limit_per_minute": rate});
        admin.put("/v1/plans/free", plan).await.expect(200);
        assert_eq!(customer.echo().await.number_in("ratelimit-limit"), rate.unwrap_or(600));
        assert_eq!(
            own.echo().await.number_in("ratelimit-limit"),
            70,
            "a key's own rate is before its plan's"
        );
        let plan = json!({"name": "Pro", "price_cents": 1, "rate_limit_per_minute": 5});
        admin.put("/v1/plans/pro", plan).await.expect(200);
        assert_eq!(customer.echo().await.number_in("ratelimit-limit"), rate.unwrap_or(600), "not its plan");
    }
    // A plan's rate is no limit of the key's own, which it could not hand on.
    let plan = json!({"name": "Free", "price_cents": 0, "rate_limit_per_minute": 30});
    admin.put("/v1/plans/free", plan).await.expect(200);
    let key = json!({"name": "another", "rate_limit_per_minute": 1_000});
    customer.post("/v1/keys", key).await.expect(201);
}

both!(the_default_plan_is_the_configured_one);
async fn the_default_plan_is_the_configured_one(backend: Backend) {
    let options =
        Options::on(&backend).var("BILLING_PLAN_DEFAULT", "starter").var("RATE_LIMIT_PER_MINUTE", 600);
    let mut server = Server::start(options).await;
    let (admin, customer) = (server.admin(), server.customer("acme").await);
    assert!(server.output().all().contains("BILLING_PLAN_DEFAULT"), "it names no plan yet");
    assert_eq!(customer.echo().await.number_in("ratelimit-limit"), 600);
    let plan = json!({"name": "Starter", "price_cents": 0, "rate_limit_per_minute": 42});
    admin.put("/v1/plans/starter", plan).await.expect(201);
    assert_eq!(customer.echo().await.number_in("ratelimit-limit"), 42);
    server.kill9();
    server.restart().await;
    assert_eq!(customer.echo().await.number_in("ratelimit-limit"), 42);
    assert_eq!(server.output().all().matches("BILLING_PLAN_DEFAULT").count(), 1);
}

postgres!(replicas_that_start_at_once_make_each_plan_once);
async fn replicas_that_start_at_once_make_each_plan_once(backend: Backend) {
    let mut servers: Vec<Server> = (0..3).map(|_| Server::spawn(Options::on(&backend))).collect();
    for server in &mut servers {
        server.wait_until_ready().await;
        let plans = all_of(&server.admin(), "/v1/plans?limit=9").await;
        assert_eq!(names(&plans, "code"), ["free", "pro", "pro_month"]);
    }
}

/// A server, and a client with its service key.
async fn start_for_services(backend: &Backend) -> (Server, Client) {
    let server = Server::start(Options::on(backend).var("SERVICE_TOKEN", TOKEN)).await;
    let service = server.anonymous().with_header("X-Internal-Key", TOKEN);
    (server, service)
}

fn team() -> Value {
    json!({
        "code": "team", "name": "Team", "period": "daily", "limits": {"chat_tokens": 500, "tpl_run": 5},
        "price_cents": 2_500, "currency": "EUR",
    })
}

both!(another_service_makes_a_plan_once);
async fn another_service_makes_a_plan_once(backend: Backend) {
    let (server, service) = start_for_services(&backend).await;
    let made = service.post(INTERNAL, team()).await.expect(201);
    shape(&made, &FIELDS);
    for (field, value) in team().as_object().unwrap() {
        let wanted = if field == "currency" { &json!("eur") } else { value };
        assert_eq!(&made[field], wanted, "{field} of {made}");
    }
    assert_eq!((&made["interval"], &made["stripe_price_id"]), (&json!("month"), &Value::Null));

    let mut other = team();
    other["price_cents"] = json!(1);
    for again in [team(), other] {
        service.post(INTERNAL, again.clone()).await.expect_code(409, "plan_exists");
        server.admin().post(INTERNAL, again).await.expect_code(409, "plan_exists");
    }
    for path in [&format!("{INTERNAL}/team"), "/v1/plans/team"] {
        assert_eq!(service.get(path).await.expect(200), made, "one catalogue, and nothing was changed");
    }
    let path = format!("{INTERNAL}?limit=2");
    assert_eq!(names(&all_of(&service, &path).await, "code"), ["free", "pro", "pro_month", "team"]);
    assert_eq!(service.get(INTERNAL).await.expect(200), service.get("/v1/plans").await.expect(200));

    let free = json!({"code": "free", "name": "Free", "period": "daily", "limits": {}, "price_cents": 0});
    service.post(INTERNAL, free).await.expect_code(409, "plan_exists");
    let minimal = json!({"code": "min", "name": "Min", "period": "monthly", "limits": {}, "price_cents": 0});
    let untyped = service.call("POST", INTERNAL).body("text/plain", minimal.to_string()).send().await;
    assert_eq!(untyped.expect(201)["currency"], "usd");
}

postgres!(of_many_who_make_a_plan_on_all_replicas_one_does);
async fn of_many_who_make_a_plan_on_all_replicas_one_does(backend: Backend) {
    let ((_one, first), (_other, second)) =
        (start_for_services(&backend).await, start_for_services(&backend).await);
    let services = [first.clone(), second];
    let answers = storm(20, 40, move |number| {
        let service = services[number % 2].clone();
        let mut plan = team();
        plan["price_cents"] = json!(number);
        async move { service.post(INTERNAL, plan).await }
    })
    .await;
    let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 201);
    assert_eq!((made.len(), refused.len()), (1, 39));
    for refused in refused {
        refused.expect_code(409, "plan_exists");
    }
    assert_eq!(first.get("/v1/plans/team").await.expect(200), made[0].body());
}

both!(another_service_changes_what_it_names_of_a_plan);
async fn another_service_changes_what_it_names_of_a_plan(backend: Backend) {
    let (server, service) = start_for_services(&backend).await;
    let path = format!("{INTERNAL}/team");
    service.put(&path, team()).await.expect_code(404, "plan_not_found");
    let full = json!({
        "name": "Team", "price_cents": 2_500, "currency": "eur", "interval": "year", "stripe_price_id": "price_1",
        "included_credits": 500, "rate_limit_per_minute": 120, "hard_limit_cents": 900, "period": "monthly",
        "limits": {"chat_tokens": 1, "images": 7},
    });
    let mut wanted = server.admin().put("/v1/plans/team", full).await.expect(201);
    let mut edited = |edit: Value, changes: Value| {
        for (field, value) in changes.as_object().unwrap() {
            wanted[field] = value.clone();
        }
        let (service, path, mut wanted) = (service.clone(), path.clone(), wanted.clone());
        async move {
            let edited = service.put(&path, edit).await.expect(200);
            wanted["updated_at"] = edited["updated_at"].clone();
            assert_eq!(edited, wanted);
            assert_eq!(service.get("/v1/plans/team").await.expect(200), wanted);
        }
    };
    let limits = json!({"chat_tokens": 500, "images": 7, "tpl_run": 5});
    let changes = json!({"period": "daily", "limits": limits});
    edited(team(), changes).await;
    edited(json!({}), json!({})).await;
    edited(json!({"name": "Crew", "limits": null}), json!({"name": "Crew"})).await;
    let limits = json!({"chat_tokens": 500, "images": 7, "tpl_run": 6});
    edited(json!({"limits": {"tpl_run": 6, "chat_tokens": null}}), json!({"limits": limits})).await;
    // At Stripe it has another price then, and whoever buys it would have paid what it does not cost.
    for edit in [json!({"price_cents": 2_501}), json!({"currency": "usd"})] {
        service.put(&path, edit).await.expect_code(400, "invalid_request");
    }
    server.admin().put("/v1/plans/crew", json!({"name": "Crew", "price_cents": 1})).await.expect(201);
    let edit = json!({"price_cents": 3, "currency": "EUR"});
    let edited = service.put(&format!("{INTERNAL}/crew"), edit).await.expect(200);
    assert_eq!((&edited["price_cents"], &edited["currency"]), (&json!(3), &json!("eur")));
}

both!(what_another_service_states_wrongly_of_a_plan_is_400);
async fn what_another_service_states_wrongly_of_a_plan_is_400(backend: Backend) {
    let (_server, service) = start_for_services(&backend).await;
    let before = service.get(INTERNAL).await.expect(200);
    let with = |field: &str, value: Value| {
        let mut plan = team();
        plan[field] = value;
        plan
    };
    for field in ["code", "name", "period", "limits", "price_cents"] {
        service.post(INTERNAL, with(field, Value::Null)).await.expect_error(400);
    }
    for (field, value) in [
        ("name", json!("")),
        ("name", json!("a\nb")),
        ("period", json!("weekly")),
        ("period", json!("Daily")),
        ("limits", json!([])),
        ("limits", json!({"chat_tokens": -1})),
        ("limits", json!({"chat_tokens": 1.0})),
        ("limits", json!({"Chat": 1})),
        ("price_cents", json!(-1)),
        ("price_cents", json!(100_000_000)),
        ("price_cents", json!("5")),
        ("currency", json!("dollars")),
        ("interval", json!("month")),
        ("code", json!("")),
        ("code", json!("a b")),
        ("code", json!("a\0")),
        ("code", json!("x".repeat(65))),
    ] {
        let bad = with(field, value);
        service.post(INTERNAL, bad.clone()).await.expect_error(400);
        service.put(&format!("{INTERNAL}/pro"), bad).await.expect_error(400);
    }
    service.put(&format!("{INTERNAL}/pro"), with("code", json!("team"))).await.expect_error(400);
    service.post(&format!("{INTERNAL}?x=1"), team()).await.expect_error(400);
    service.call("POST", INTERNAL).body("application/json", "{").send().await.expect_error(400);
    for nowhere in ["none", "a%20b", "a%00"] {
        service.get(&format!("{INTERNAL}/{nowhere}")).await.expect_code(404, "plan_not_found");
        service.put(&format!("{INTERNAL}/{nowhere}"), json!({})).await.expect_code(404, "plan_not_found");
    }
    assert_eq!(service.get(INTERNAL).await.expect(200), before);
}

both!(plans_for_services_are_for_services_and_admins);
async fn plans_for_services_are_for_services_and_admins(backend: Backend) {
    let (server, _) = start_for_services(&backend).await;
    let (anonymous, customer) = (server.anonymous(), server.customer("acme").await);
    let reader = customer.another_key(&server.admin(), json!({"scopes": ["read", "billing"]})).await;
    let one = format!("{INTERNAL}/pro");
    for (client, status) in [
        (anonymous.clone(), 401),
        (anonymous.with_key("no-key-of-anyone"), 401),
        (anonymous.with_header("x-internal-key", "no service has this token"), 401),
        (customer.client(), 403),
        (reader.client(), 403),
    ] {
        client.get(INTERNAL).await.expect_error(status);
        client.get(&one).await.expect_error(status);
        client.post(INTERNAL, team()).await.expect_error(status);
        client.put(&one, json!({"price_cents": 0})).await.expect_error(status);
    }
    assert_eq!(server.admin().get(&one).await.expect(200)["price_cents"], 1_000);
    server.admin().put(&one, json!({"price_cents": 5})).await.expect(200);
    server.admin().post(INTERNAL, team()).await.expect(201);
}
