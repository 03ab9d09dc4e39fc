//! Spells: registered by admins, run at an upstream, and never paid for when they fail.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{
    Answer, Backend, Options, Server, Stopwatch, Upstream, all_casts, all_of, both, eventually, names,
    usage_cents,
};

async fn with_upstream(backend: &Backend) -> (Server, Upstream) {
    (Server::start(Options::on(backend).with_upstreams()).await, Upstream::start().await)
}

/// A failed cast's answer: its code, and its id, under which it is recorded as having cost nothing.
async fn assert_failed(client: &crate::harness::Client, answer: &Answer, status: u16, code: &str) {
    let body = answer.expect_code(status, code);
    let id = body["id"].as_str().unwrap_or_else(|| panic!("no id: {answer}"));
    let cast = client.get(&format!("/v1/casts/{id}")).await.expect(200);
    assert_eq!((&cast["status"], &cast["error_code"]), (&json!("FAILED"), &json!(code)), "{cast}");
    assert_eq!(cast["cost_cents"], 0);
    let failed = all_of(client, "/v1/casts?status=FAILED&limit=1000").await;
    assert!(names(&failed, "id").contains(&id.to_owned()), "{id} in {failed:?}");
}

both!(a_spell_is_made_with_201_replaced_with_200_and_listed);
async fn a_spell_is_made_with_201_replaced_with_200_and_listed(backend: Backend) {
    let (server, upstream) = with_upstream(&backend).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    let listed = async || all_of(&customer, "/v1/spells?limit=1000").await;
    assert_eq!(names(&listed().await, "name"), ["echo"], "echo is there from the start");
    let dear = json!({"kind": "echo", "price": {"flat_cents": 3}});
    admin.put("/v1/spells/dear", dear).await.expect(201);
    assert_eq!(customer.cast("dear", json!(null)).await.expect(200)["cost_cents"], 3);
    let dearer = json!({"kind": "echo", "price": {"flat_cents": 5}});
    admin.put("/v1/spells/dear", dearer).await.expect(200);
    assert_eq!(customer.cast("dear", json!(null)).await.expect(200)["cost_cents"], 5);
    admin.put("/v1/spells/post", upstream.spell("/json")).await.expect(201);
    let spells = listed().await;
    let mut found = names(&spells, "name");
    found.sort();
    assert_eq!(found, ["dear", "echo", "post"]);
    let dear = spells.iter().find(|spell| spell["name"] == "dear").unwrap();
    assert_eq!((&dear["kind"], &dear["price"]["flat_cents"]), (&json!("echo"), &json!(5)));
    assert_eq!(all_of(&customer, "/v1/spells?limit=1").await.len(), 3);
}

both!(a_deleted_spell_can_no_longer_be_cast);
async fn a_deleted_spell_can_no_longer_be_cast(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    admin.put("/v1/spells/brief", json!({"kind": "echo"})).await.expect(201);
    let cast = customer.cast("brief", json!(null)).await.expect(200);
    let deleted = admin.delete("/v1/spells/brief").await;
    assert_eq!((deleted.status, deleted.text.as_str()), (204, ""));
    customer.cast("brief", json!(null)).await.expect_error(404);
    admin.delete("/v1/spells/brief").await.expect_error(404);
    // What was cast stays in the books.
    customer.get(&format!("/v1/casts/{}", cast["id"].as_str().unwrap())).await.expect(200);
    assert_eq!(usage_cents(&customer.usage("").await), (1, 1, 0));
    admin.put("/v1/spells/brief", json!({"kind": "echo"})).await.expect(201);
    customer.cast("brief", json!(null)).await.expect(200);
}

both!(a_bad_spell_is_400_and_the_old_one_stands);
async fn a_bad_spell_is_400_and_the_old_one_stands(backend: Backend) {
    let (server, upstream) = with_upstream(&backend).await;
    let admin = server.admin();
    admin.put("/v1/spells/good", upstream.spell("/json")).await.expect(201);
    let before = admin.get("/v1/spells").await.expect(200);
    for bad in [
        json!({}),
        json!({"kind": "ritual"}),
        json!({"kind": null}),
        json!({"kind": 1}),
        json!({"kind": "http"}),
        json!({"kind": "http", "url": "not a url"}),
        json!({"kind": "http", "url": ""}),
        json!({"kind": "http", "url": "file:///etc/passwd"}),
        json!({"kind": "http", "url": "ftp://example.com/"}),
        json!({"kind": "http", "url": 5}),
        json!({"kind": "http", "url": upstream.url("/json"), "timeout_ms": 0}),
        json!({"kind": "http", "url": upstream.url("/json"), "timeout_ms": -1}),
        json!({"kind": "http", "url": upstream.url("/json"), "timeout_ms": 1.5}),
        json!({"kind": "http", "url": upstream.url("/json"), "timeout_ms": "100"}),
        json!({"kind": "http", "url": upstream.url("/json"), "headers": {"bad name": "x"}}),
        json!({"kind": "http", "url": upstream.url("/json"), "headers": {"x": "a\r\nInjected: yes"}}),
        json!({"kind": "http", "url": upstream.url("/json"), "headers": {"x": 5}}),
        json!({"kind": "http", "url": upstream.url("/json"), "headers": ["x"]}),
        json!({"kind": "http", "url": upstream.url("/json"), "method": "GET"}),
        json!({"kind": "echo", "price": {"flat_cents": -1}}),
        json!({"kind": "echo", "price": {"flat_cents": 1.0}}),
        json!({"kind": "echo", "price": {"flat_cents": "3"}}),
        json!({"kind": "echo", "price": {"flat_cents": 900_000_000_001_i64}}),
        json!({"kind": "echo", "price": {"flat": 3}}),
        json!({"kind": "echo", "price": 3}),
        json!({"kind": "echo", "pay_from": "pocket"}),
    ] {
        admin.put("/v1/spells/good", bad.clone()).await.expect_error(400);
        admin.put("/v1/spells/fresh", bad).await.expect_error(400);
    }
    assert_eq!(admin.get("/v1/spells").await.expect(200), before);
}

both!(an_upstreams_json_is_the_result_and_text_is_kept_as_text);
async fn an_upstreams_json_is_the_result_and_text_is_kept_as_text(backend: Backend) {
    let (server, upstream) = with_upstream(&backend).await;
    let admin = server.admin();
    admin.put("/v1/spells/post", upstream.spell("/json")).await.expect(201);
    admin.put("/v1/spells/words", upstream.spell("/text")).await.expect(201);
    let customer = server.customer("acme").await;
    let payload = json!({"deep": [1, {"x": "ÿ"}], "n": null});
    let cast = customer.cast("post", payload.clone()).await.expect(200);
    assert_eq!(cast["result"], json!({"you_sent": payload, "call": 1}));
    assert_eq!((&cast["status"], &cast["cost_cents"]), (&json!("COMPLETED"), &json!(1)));
    let cast = customer.cast("words", json!(1)).await.expect(200);
    assert_eq!(cast["result"], "plain words");
    assert_eq!(usage_cents(&customer.usage("").await), (2, 2, 0));
}

both!(an_upstream_is_sent_the_spells_headers_which_nobody_reads_back);
async fn an_upstream_is_sent_the_spells_headers_which_nobody_reads_back(backend: Backend) {
    let (server, upstream) = with_upstream(&backend).await;
    let admin = server.admin();
    let spell = json!({
        "kind": "http", "url": upstream.url("/headers"),
        "headers": {"Authorization": "Bearer hunter2-upstream", "X-Other": "hunter2-other"}
    });
    let customer = server.customer("acme").await;
    let made = admin.put("/v1/spells/secretive", spell).await;
    made.expect(201);
    for answer in [made, admin.get("/v1/spells").await, customer.get("/v1/spells").await] {
        assert!(!answer.text.contains("hunter2"), "a secret comes back: {answer}");
    }
    let cast = customer.cast("secretive", json!({"a": 1})).await.expect(200);
    let sent = &cast["result"];
    assert_eq!(sent["authorization"], "Bearer hunter2-upstream", "{sent}");
    assert_eq!(sent["x-other"], "hunter2-other", "{sent}");
    assert!(sent["content-type"].as_str().unwrap().starts_with("application/json"), "{sent}");
    assert!(!sent.to_string().contains(&customer.key), "the caller's key went to the upstream: {sent}");
    assert!(!server.output().all().contains("hunter2"), "a secret is in the log");
}

both!(a_failing_upstream_is_502_recorded_and_costs_nothing);
async fn a_failing_upstream_is_502_recorded_and_costs_nothing(backend: Backend) {
    let (server, upstream) = with_upstream(&backend).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    customer.limit("monthly", 1).await;
    for path in ["/fail", "/hangup", "/garbage", "/huge", "/redirect", "/missing"] {
        let name = path.trim_start_matches('/');
        admin.put(&format!("/v1/spells/{name}"), upstream.spell(path)).await.expect(201);
        let answer = customer.cast(name, json!(1)).await;
        assert_failed(&customer, &answer, 502, "upstream_failed").await;
        assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 0), "{path}");
    }
    assert_eq!(upstream.calls("/json"), 0, "a redirect was followed");
    let nobody = json!({"kind": "http", "url": "http://127.0.0.1:1/"});
    admin.put("/v1/spells/nobody", nobody).await.expect(201);
    let answer = customer.cast("nobody", json!(1)).await;
    assert_failed(&customer, &answer, 502, "upstream_failed").await;
    customer.echo().await.expect(200);
}

both!(a_slow_upstream_is_504_recorded_and_costs_nothing);
async fn a_slow_upstream_is_504_recorded_and_costs_nothing(backend: Backend) {
    let (server, upstream) = with_upstream(&backend).await;
    let slow = json!({"kind": "http", "url": upstream.url("/gate"), "timeout_ms": 300});
    server.admin().put("/v1/spells/slow", slow).await.expect(201);
    let customer = server.customer("acme").await;
    let answer = customer.cast("slow", json!(1)).await;
    assert_failed(&customer, &answer, 504, "upstream_timeout").await;
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 0));
}

both!(who_hangs_up_leaves_no_money_held);
async fn who_hangs_up_leaves_no_money_held(backend: Backend) {
    let (server, upstream) = with_upstream(&backend).await;
    server.admin().put("/v1/spells/gate", upstream.spell("/gate")).await.expect(201);
    let customer = server.customer("acme").await;
    let call = customer.casting("gate", json!(1)).hang_up_after(Duration::from_millis(1_500));
    let impatient = tokio::spawn(call.try_send());
    upstream.wait_for_calls("/gate", 1).await;
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 1));
    assert!(impatient.await.unwrap().is_err());
    upstream.open_gate();
    eventually(Duration::from_secs(60), "nothing is held", || async {
        (customer.usage("").await["reserved_cents"] == 0).then_some(())
    })
    .await;
    // Whether it was finished or given up, the books say one thing.
    let casts = all_casts(&customer).await;
    let completed = casts.iter().filter(|cast| cast["status"] == "COMPLETED").count() as i64;
    assert_eq!(usage_cents(&customer.usage("").await), (completed, completed, 0), "{casts:?}");
}

both!(no_upstream_at_a_private_address_unless_allowed);
async fn no_upstream_at_a_private_address_unless_allowed(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let upstream = Upstream::start().await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    let port = upstream.port();
    for (number, url) in [
        format!("http://127.0.0.1:{port}/json"),
        format!("http://localhost:{port}/json"),
        format!("http://127.1.2.3:{port}/json"),
        format!("http://2130706433:{port}/json"),
        format!("http://0x7f.1:{port}/json"),
        format!("http://0.0.0.0:{port}/json"),
        format!("http://[::1]:{port}/json"),
        format!("http://[::ffff:127.0.0.1]:{port}/json"),
        format!("http://[::ffff:7f00:1]:{port}/json"),
        format!("http://[64:ff9b::7f00:1]:{port}/json"),
        "http://10.0.0.1/".to_owned(),
        "http://172.16.0.1/".to_owned(),
        "http://192.168.0.1/".to_owned(),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://100.64.0.1/".to_owned(),
        "http://[fd00::1]/".to_owned(),
        "http://[fe80::1]/".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let name = format!("private_{number}");
        let spell = json!({"kind": "http", "url": url, "timeout_ms": 10_000});
        let made = admin.put(&format!("/v1/spells/{name}"), spell).await;
        if made.status != 201 {
            made.expect_error(400);
            continue;
        }
        let watch = Stopwatch::start();
        let answer = customer.cast(&name, json!(1)).await;
        assert_eq!(answer.status, 502, "{url}: {answer}");
        assert_failed(&customer, &answer, 502, answer.body()["error"].as_str().unwrap()).await;
        watch.assert_under(Duration::from_secs(9), &format!("refusing {url}"));
    }
    assert_eq!(upstream.all_calls(), 0);
    assert_eq!(usage_cents(&customer.usage("").await), (0, 0, 0));
}

both!(a_spells_price_changes_with_the_next_cast_and_not_for_one_that_runs);
async fn a_spells_price_changes_with_the_next_cast_and_not_for_one_that_runs(backend: Backend) {
    let (server, upstream) = with_upstream(&backend).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    let priced = |cents: i64| {
        let mut spell = upstream.spell("/gate");
        spell["price"] = json!({"flat_cents": cents});
        spell
    };
    admin.put("/v1/spells/gate", priced(3)).await.expect(201);
    let client = customer.client();
    let running = tokio::spawn(async move { client.cast("gate", json!(1)).await });
    upstream.wait_for_calls("/gate", 1).await;
    admin.put("/v1/spells/gate", priced(50)).await.expect(200);
    upstream.open_gate();
    assert_eq!(running.await.unwrap().expect(200)["cost_cents"], 3);
    assert_eq!(customer.cast("gate", json!(1)).await.expect(200)["cost_cents"], 50);
    assert_eq!(usage_cents(&customer.usage("").await), (2, 53, 0));
}

both!(a_strange_spell_name_is_taken_whole_or_refused);
async fn a_strange_spell_name_is_taken_whole_or_refused(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let admin = server.admin();
    let customer = server.customer("acme").await;
    for name in
        ["with-dash", "with_underscore", "with.dot", "UPPER", "über", "a b", "a:b", "😀", &"x".repeat(300)]
    {
        let path: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
        let path = format!("/v1/spells/{}", path.replace('+', "%20"));
        let made = admin.put(&path, json!({"kind": "echo"})).await;
        match made.status {
            201 => {
                customer.cast(name, json!(null)).await.expect(200);
                let listed: Vec<Value> = all_of(&customer, "/v1/spells?limit=1000").await;
                assert!(names(&listed, "name").contains(&name.to_owned()), "{name} in {listed:?}");
                assert_eq!(admin.delete(&path).await.status, 204, "{name}");
            }
            _ => drop(made.expect_error(400)),
        }
    }
}
