//! Bad input on every route: a 4xx that says what is wrong, and nothing changed.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::harness::{Answer, Backend, Client, Options, Server, all_of, both};

/// A route that takes a body, a body that it takes, and what its fields may not be.
struct Route {
    method: &'static str,
    path: String,
    good: Value,
    /// Field and JSON that it can't be.
    bad: Vec<(&'static str, Vec<&'static str>)>,
    /// Whether there may be no body at all.
    optional: bool,
}

const NO_TEXT: [&str; 5] = ["5", "true", "[]", "{}", "1.5"];
const NO_INTEGER: [&str; 11] = [
    "\"5\"",
    "true",
    "[]",
    "{}",
    "5.0",
    "5.5",
    "-1",
    "9223372036854775808",
    "18446744073709551616",
    "99999999999999999999999999999999",
    "1e400",
];

/// Something to act on, owned by the admin that sends everything.
struct Scene {
    server: Server,
    admin: Client,
    routes: Vec<Route>,
}

impl Scene {
    async fn set(options: Options) -> Scene {
        let server = Server::start(options).await;
        let admin = server.admin();
        let account = admin.post("/v1/accounts", json!({"name": "acme"})).await.expect(201);
        let key = admin.post("/v1/keys", json!({"name": "k"})).await.expect(201);
        let hold =
            admin.post("/v1/holds", json!({"amount_cents": 5, "ttl_seconds": 3_600})).await.expect(201);
        admin
            .post("/v1/budgets", json!({"period": "monthly", "hard_limit_cents": 100_000}))
            .await
            .expect(201);
        admin.put("/v1/spells/known", json!({"kind": "echo"})).await.expect(201);
        admin.echo().await.expect(200);
        let id = |value: &Value| value["id"].as_str().unwrap().to_owned();
        let budget = || {
            vec![
                ("period", [&NO_TEXT[..], &["null", "\"hourly\"", "\"\""]].concat()),
                ("hard_limit_cents", NO_INTEGER.to_vec()),
                ("soft_limit_cents", NO_INTEGER.to_vec()),
                (
                    "notify_thresholds",
                    vec!["5", "\"5\"", "{}", "[-1]", "[1.0]", "[\"1\"]", "[null]", "[[1]]"],
                ),
                ("locked", vec!["1", "\"yes\"", "[]"]),
            ]
        };
        let route = |method, path: String, good, bad| Route { method, path, good, bad, optional: false };
        let mut routes = vec![
            route(
                "POST",
                "/v1/keys".to_owned(),
                json!({"name": "new"}),
                vec![
                    ("name", [&NO_TEXT[..], &["null"]].concat()),
                    ("expires_at", vec!["5", "true", "\"tomorrow\"", "\"2030-01-01\"", "\"\"", "[]"]),
                    ("scopes", vec!["5", "\"cast\"", "{}", "[5]", "[null]"]),
                    ("rate_limit_per_minute", [&NO_INTEGER[..], &["0"]].concat()),
                    ("account_id", vec!["5", "[]", "{}"]),
                ],
            ),
            route(
                "POST",
                "/v1/accounts".to_owned(),
                json!({"name": "new"}),
                vec![("name", [&NO_TEXT[..], &["null"]].concat()), ("email", NO_TEXT.to_vec())],
            ),
            route(
                "PATCH",
                format!("/v1/accounts/{}", id(&account)),
                json!({"suspended": true}),
                vec![("suspended", vec!["1", "\"true\"", "[]", "{}"])],
            ),
            route(
                "PUT",
                "/v1/spells/known".to_owned(),
                json!({"kind": "echo", "price": {"flat_cents": 9}}),
                vec![
                    ("kind", [&NO_TEXT[..], &["null", "\"ritual\"", "\"\"", "\"Echo\""]].concat()),
                    (
                        "price",
                        vec!["5", "\"5\"", "[]", "{\"flat_cents\":5.0}", "{\"flat_cents\":-1}", "{\"a\":1}"],
                    ),
                ],
            ),
            route(
                "POST",
                "/v1/cast".to_owned(),
                json!({"spell_name": "echo", "payload": 1}),
                vec![("spell_name", [&NO_TEXT[..], &["null"]].concat())],
            ),
            route(
                "POST",
                "/v1/holds".to_owned(),
                json!({"amount_cents": 1}),
                vec![
                    ("amount_cents", [&NO_INTEGER[..], &["null"]].concat()),
                    ("ttl_seconds", [&NO_INTEGER[..], &["0", "604801"]].concat()),
                    ("spell", NO_TEXT.to_vec()),
                ],
            ),
            route(
                "POST",
                format!("/v1/holds/{}/settle", id(&hold)),
                json!({"amount_cents": 1}),
                vec![("amount_cents", [&NO_INTEGER[..], &["null"]].concat())],
            ),
            route(
                "POST",
                "/v1/budgets".to_owned(),
                json!({"period": "monthly", "hard_limit_cents": 7}),
                budget(),
            ),
            route(
                "PUT",
                "/v1/budgets".to_owned(),
                json!({"period": "monthly", "hard_limit_cents": 7}),
                budget(),
            ),
        ];
        let extend = format!("/v1/holds/{}/extend", id(&hold));
        let rotate = format!("/v1/keys/{}/rotate", id(&key));
        let ttl = vec![("ttl_seconds", [&NO_INTEGER[..], &["0", "604801"]].concat())];
        let grace = vec![("grace_seconds", NO_INTEGER.to_vec())];
        routes.push(Route { optional: true, ..route("POST", extend, json!({"ttl_seconds": 60}), ttl) });
        routes.push(Route { optional: true, ..route("POST", rotate, json!({"grace_seconds": 60}), grace) });
        Scene { server, admin, routes }
    }

    /// Everything that a request could have changed.
    async fn books(&self) -> Vec<Value> {
        let mut books = Vec::new();
        for list in ["accounts", "keys", "spells", "casts", "holds"] {
            books.extend(all_of(&self.admin, &format!("/v1/{list}?limit=1000")).await);
        }
        books.push(self.admin.get("/v1/budgets?all=true").await.expect(200));
        books.push(self.admin.usage("").await);
        for item in &mut books {
            if let Some(item) = item.as_object_mut() {
                item.remove("last_used_at");
            }
        }
        books
    }

    async fn assert_nothing_changed_since(&self, books: Vec<Value>) {
        assert_eq!(self.books().await, books);
        assert_eq!(self.server.anonymous().get("/healthz").await.status, 200);
        self.admin.echo().await.expect(200);
    }

    async fn send(&self, route: &Route, body: impl Into<Vec<u8>>) -> Answer {
        self.admin.call(route.method, &route.path).body("application/json", body).send().await
    }
}

/// An array of that many levels.
fn nested(levels: usize) -> String {
    format!("{}{}", "[".repeat(levels), "]".repeat(levels))
}

both!(a_malformed_body_is_400);
async fn a_malformed_body_is_400(backend: Backend) {
    let scene = Scene::set(Options::on(&backend)).await;
    let books = scene.books().await;
    for route in &scene.routes {
        let good = route.good.to_string();
        let open = good.trim_end_matches('}');
        let mut bodies: Vec<Vec<u8>> = [
            "{",
            "}",
            "[]",
            "5",
            "true",
            "\"text\"",
            "nonsense",
            "{\"a\":}",
            "{'a':1}",
            "{\"a\":NaN}",
            "{\"a\":01}",
            "{\"a\" 1}",
            "{\"a\":1,}",
            "[{}]",
        ]
        .map(|body| body.as_bytes().to_vec())
        .to_vec();
        bodies.extend([
            format!("{good}x").into_bytes(),
            format!("{good}{good}").into_bytes(),
            format!("[{good}]").into_bytes(),
            open.as_bytes().to_vec(),
            [&[0xff, 0xfe], good.as_bytes()].concat(),
            [good.as_bytes(), &[0]].concat(),
            good.encode_utf16().flat_map(u16::to_le_bytes).collect(),
            good.replacen('"', "\"\u{0}", 1).into_bytes(),
        ]);
        if !route.optional {
            bodies.extend([Vec::new(), b"null".to_vec(), b"{}".to_vec(), b"  ".to_vec()]);
        }
        for body in bodies {
            scene.send(route, body).await.expect_error(400);
        }
    }
    scene.assert_nothing_changed_since(books).await;
}

both!(a_field_of_the_wrong_type_or_size_is_400);
async fn a_field_of_the_wrong_type_or_size_is_400(backend: Backend) {
    let scene = Scene::set(Options::on(&backend)).await;
    let books = scene.books().await;
    for route in &scene.routes {
        for (field, values) in &route.bad {
            for value in values {
                let others = route.good.as_object().unwrap().iter().filter(|(name, _)| name != field);
                let others: String = others.map(|(name, value)| format!(",\"{name}\":{value}")).collect();
                let body = format!("{{\"{field}\":{value}{others}}}");
                scene.send(route, body).await.expect_error(400);
            }
        }
    }
    scene.assert_nothing_changed_since(books).await;
}

both!(an_unknown_field_is_400_and_named);
async fn an_unknown_field_is_400_and_named(backend: Backend) {
    let scene = Scene::set(Options::on(&backend)).await;
    let books = scene.books().await;
    for route in &scene.routes {
        for value in [json!(1), json!(null), json!({"a": [1]})] {
            let mut body = route.good.clone();
            body["surprise_field"] = value;
            let refused = scene.send(route, body.to_string()).await;
            let message = refused.expect_error(400)["message"].to_string();
            assert!(message.contains("surprise_field"), "it is not named: {refused}");
        }
    }
    let inside = json!({"kind": "echo", "price": {"flat_cents": 1, "surprise_field": 2}});
    let refused = scene.admin.put("/v1/spells/known", inside).await;
    assert!(refused.expect_error(400)["message"].to_string().contains("surprise_field"), "{refused}");
    scene.assert_nothing_changed_since(books).await;
}

both!(a_body_nested_over_128_levels_is_400);
async fn a_body_nested_over_128_levels_is_400(backend: Backend) {
    let scene = Scene::set(Options::on(&backend)).await;
    let cast = |payload: String| {
        let body = format!(r#"{{"spell_name":"echo","payload":{payload}}}"#);
        scene.admin.call("POST", "/v1/cast").body("application/json", body).send()
    };
    // The body itself is a level.
    for levels in [1, 64, 126, 127] {
        let result = cast(nested(levels)).await.expect(200)["result"].to_string();
        assert_eq!(result, nested(levels));
    }
    let objects = |levels: usize| format!("{}1{}", "{\"a\":".repeat(levels), "}".repeat(levels));
    assert_eq!(cast(objects(127)).await.expect(200)["result"].to_string(), objects(127));
    let books = scene.books().await;
    for levels in [128, 129, 200, 1_000, 100_000, 400_000] {
        cast(nested(levels)).await.expect_error(400);
    }
    for levels in [128, 50_000] {
        cast(objects(levels)).await.expect_error(400);
    }
    cast("[".repeat(500_000)).await.expect_error(400);
    for route in &scene.routes {
        let body =
            route.good.to_string().replacen('{', &format!("{{\"surprise_field\":{},", nested(1_000)), 1);
        scene.send(route, body).await.expect_error(400);
        scene.send(route, nested(100_000)).await.expect_error(400);
    }
    scene.assert_nothing_changed_since(books).await;
}

both!(a_body_that_is_no_json_by_its_type_is_415);
async fn a_body_that_is_no_json_by_its_type_is_415(backend: Backend) {
    let scene = Scene::set(Options::on(&backend)).await;
    let books = scene.books().await;
    for route in &scene.routes {
        for kind in
            ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "text/json", "*/*"]
        {
            let call = scene.admin.call(route.method, &route.path).body(kind, route.good.to_string());
            call.send().await.expect_error(415);
        }
        let call = scene.admin.call(route.method, &route.path).untyped("{}");
        call.send().await.expect_error(415);
    }
    scene.assert_nothing_changed_since(books).await;
    for kind in ["application/json; charset=utf-8", "application/json;charset=UTF-8", "Application/JSON"] {
        let body = json!({"spell_name": "echo", "payload": 1}).to_string();
        scene.admin.call("POST", "/v1/cast").body(kind, body).send().await.expect(200);
    }
}

both!(a_body_over_the_limit_is_413);
async fn a_body_over_the_limit_is_413(backend: Backend) {
    let scene = Scene::set(Options::on(&backend).var("MAX_BODY_BYTES", 2_000)).await;
    let books = scene.books().await;
    for route in &scene.routes {
        let padded = |length: usize| {
            let good = route.good.to_string();
            format!("{good}{}", " ".repeat(length - good.len())).into_bytes()
        };
        scene.send(route, padded(2_001)).await.expect_error(413);
        scene.send(route, padded(10_000)).await.expect_error(413);
        let chunks: Vec<Vec<u8>> = padded(6_000).chunks(500).map(<[u8]>::to_vec).collect();
        scene.admin.call(route.method, &route.path).chunked(chunks).send().await.expect_error(413);
    }
    scene.assert_nothing_changed_since(books).await;
    let body = json!({"spell_name": "echo", "payload": "x"}).to_string();
    let full = format!("{body}{}", " ".repeat(2_000 - body.len())).into_bytes();
    scene.admin.call("POST", "/v1/cast").body("application/json", full.clone()).send().await.expect(200);
    let chunks = full.chunks(99).map(<[u8]>::to_vec).collect();
    scene.admin.call("POST", "/v1/cast").chunked(chunks).send().await.expect(200);
}

both!(by_default_a_body_may_have_a_mebibyte);
async fn by_default_a_body_may_have_a_mebibyte(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let with_length = |length: usize| {
        let frame = r#"{"spell_name":"echo","payload":""}"#.len();
        format!(r#"{{"spell_name":"echo","payload":"{}"}}"#, "x".repeat(length - frame))
    };
    let cast = |body: String| customer.call("POST", "/v1/cast").body("application/json", body).send();
    let result = cast(with_length(1 << 20)).await.expect(200)["result"].as_str().unwrap().len();
    assert!(result > 1_000_000);
    cast(with_length((1 << 20) + 1)).await.expect_error(413);
    cast(with_length(3 << 20)).await.expect_error(413);
    let chunks = with_length(3 << 20).into_bytes().chunks(60_000).map(<[u8]>::to_vec).collect();
    customer.call("POST", "/v1/cast").chunked(chunks).send().await.expect_error(413);
    customer.echo().await.expect(200);
}

both!(a_bad_query_is_400_and_a_strange_one_is_named);
async fn a_bad_query_is_400_and_a_strange_one_is_named(backend: Backend) {
    let scene = Scene::set(Options::on(&backend)).await;
    let books = scene.books().await;
    for list in ["/v1/accounts", "/v1/keys", "/v1/spells", "/v1/casts", "/v1/holds"] {
        for query in [
            "limit=0",
            "limit=1001",
            "limit=-1",
            "limit=abc",
            "limit=1.0",
            "limit=",
            "limit=%20",
            "limit=99999999999999999999",
            "limit=1&limit=2",
            "cursor=no+cursor+of+ours!",
            "cursor=%00",
            "cursor=%ff",
        ] {
            scene.admin.get(&format!("{list}?{query}")).await.expect_error(400);
        }
        scene.admin.get(&format!("{list}?limit=1000")).await.expect(200);
        scene.admin.get(&format!("{list}?limit=1")).await.expect(200);
    }
    for path in [
        "/v1/accounts",
        "/v1/keys",
        "/v1/spells",
        "/v1/casts",
        "/v1/holds",
        "/v1/budgets",
        "/v1/budgets/usage",
        "/v1/usage",
    ] {
        let refused = scene.admin.get(&format!("{path}?surprise=1")).await;
        let message = refused.expect_error(400)["message"].to_string();
        assert!(message.contains("surprise"), "it is not named: {refused}");
    }
    for path in [
        "/v1/budgets?period=hourly",
        "/v1/budgets?period=",
        "/v1/budgets?period=daily&period=monthly",
        "/v1/budgets?all=perhaps",
        "/v1/budgets/usage?period=hourly",
        "/v1/budgets/usage?spell=a&spell=b",
        "/v1/casts?status=DONE",
        "/v1/usage?by=moon",
        "/v1/usage?from=yesterday",
        "/v1/keys?account_id=a&account_id=b",
    ] {
        scene.admin.get(path).await.expect_error(400);
    }
    scene.admin.delete("/v1/budgets?period=hourly").await.expect_error(400);
    for route in &scene.routes {
        let path = format!("{}?surprise=1", route.path);
        let refused = scene.admin.call(route.method, &path).json(&route.good).send().await;
        let message = refused.expect_error(400)["message"].to_string();
        assert!(message.contains("surprise"), "it is not named: {refused}");
    }
    scene.assert_nothing_changed_since(books).await;
}

both!(an_unknown_route_is_404_and_a_wrong_method_405);
async fn an_unknown_route_is_404_and_a_wrong_method_405(backend: Backend) {
    let scene = Scene::set(Options::on(&backend)).await;
    let books = scene.books().await;
    for path in [
        "/nowhere",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v1/cast/more",
        "/v1/keys/a/b/c",
        "/v2/cast",
        "/healthz/x",
    ] {
        scene.admin.get(path).await.expect_error(404);
        scene.admin.post(path, json!({})).await.expect_error(404);
    }
    for (method, path) in [
        ("GET", "/v1/cast"),
        ("PUT", "/v1/cast"),
        ("DELETE", "/v1/cast"),
        ("DELETE", "/v1/keys"),
        ("PUT", "/v1/keys"),
        ("PATCH", "/v1/budgets"),
        ("POST", "/v1/budgets/usage"),
        ("POST", "/v1/casts"),
        ("DELETE", "/v1/casts/some"),
        ("PUT", "/v1/holds"),
        ("GET", "/v1/keys/some/rotate"),
        ("POST", "/healthz"),
        ("DELETE", "/metrics"),
    ] {
        let refused = scene.admin.call(method, path).send().await;
        refused.expect_error(405);
        assert!(!refused.header("allow").is_empty(), "{refused}");
    }
    scene.assert_nothing_changed_since(books).await;
}

both!(bad_requests_are_told_before_keys_are_not);
async fn bad_requests_are_told_before_keys_are_not(backend: Backend) {
    // Who has no key learns nothing but that: not which ids exist, nor how a body should look.
    let scene = Scene::set(Options::on(&backend)).await;
    for route in &scene.routes {
        let stranger = scene.server.anonymous();
        stranger
            .call(route.method, &route.path)
            .json(&json!({"surprise_field": 1}))
            .send()
            .await
            .expect_error(401);
        stranger.call(route.method, &route.path).json(&route.good).send().await.expect_error(401);
    }
}

both!(bytes_that_are_no_http_do_no_harm);
async fn bytes_that_are_no_http_do_no_harm(backend: Backend) {
    let scene = Scene::set(Options::on(&backend)).await;
    let books = scene.books().await;
    let long_header = format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20));
    let many_headers = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{}\r\n", "X-A: b\r\n".repeat(5_000));
    let two_lengths = "POST /v1/cast HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\nContent-Type: application/json\r\n\r\n{}x";
    let both_framings = "POST /v1/cast HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    for bytes in [
        b"no http at all\r\n\r\n".as_slice(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\0\0\0\0\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/cast HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/cast HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"POST /v1/cast HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        long_header.as_bytes(),
        many_headers.as_bytes(),
        two_lengths.as_bytes(),
        both_framings.as_bytes(),
    ] {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", scene.server.port())).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
        // It may close before it has read all of it.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut said = Vec::new();
        let _ = stream.read_to_end(&mut said);
        let said = String::from_utf8_lossy(&said);
        let status: Option<u16> = said.split(' ').nth(1).and_then(|status| status.parse().ok());
        assert!(status.is_none_or(|status| (400..500).contains(&status)), "{said}");
        assert_eq!(scene.server.anonymous().get("/healthz").await.status, 200);
    }
    scene.assert_nothing_changed_since(books).await;
}
