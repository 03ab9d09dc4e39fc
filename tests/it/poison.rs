//! Poison: NUL, lone surrogates and odd Unicode in every string, beside good casts of others. Only
//! its sender notices.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::harness::{
    Answer, Backend, Client, Options, Server, all_of, both, eventually, storm, usage_cents,
};

/// JSON strings, with their quotes, that no text can hold.
fn bad_strings() -> Vec<Vec<u8>> {
    vec![
        br#""\u0000""#.to_vec(),
        br#""before\u0000after""#.to_vec(),
        br#""\ud800""#.to_vec(),
        br#""\udc00\ud800""#.to_vec(),
        br#""\ud83d no pair""#.to_vec(),
        b"\"raw nul \x00\"".to_vec(),
        b"\"raw control \x01\"".to_vec(),
        b"\"raw newline \n\"".to_vec(),
        b"\"no utf-8 \xff\xfe\"".to_vec(),
        b"\"overlong nul \xc0\x80\"".to_vec(),
        b"\"raw surrogate \xed\xa0\x80\"".to_vec(),
        b"\"cut short \xe2\x82\"".to_vec(),
        br#""bad escape \x41""#.to_vec(),
        br#""bad escape \u12""#.to_vec(),
    ]
}

/// Text that is odd and yet text.
fn odd_strings() -> Vec<String> {
    [
        "\u{202e}right to left\u{202c}",
        "مرحبا بالعالم",
        "👩‍👩‍👧‍👦🏳️‍🌈",
        "\u{ffff}\u{fffe}",
        "\u{10ffff}",
        "\u{feff}after a mark",
        "\u{200b}\u{200d}\u{2060}",
        "Z\u{351}\u{36b}a\u{343}l\u{350}g\u{32e}o",
        "\u{1}\u{1f}\u{7f}\u{85}",
        "'; DROP TABLE casts; --",
        "\\\" %s %n {{}} ${x} $1 ?1",
        "line\nbreak\r\n\ttab",
        "null",
        "",
        " ",
    ]
    .into_iter()
    .map(str::to_owned)
    .chain(["x".repeat(300_000), "é😀".repeat(20_000)])
    .collect()
}

/// Bodies with that JSON string in every place where there can be one.
fn requests_with(string: &[u8], key_id: &str) -> Vec<(&'static str, String, Vec<u8>)> {
    let body = |before: &str, after: &str| [before.as_bytes(), string, after.as_bytes()].concat();
    let cast = "/v1/cast".to_owned();
    vec![
        ("POST", cast.clone(), body(r#"{"spell_name":"echo","payload":"#, "}")),
        ("POST", cast.clone(), body(r#"{"spell_name":"echo","payload":{"a":["#, "]}}")),
        ("POST", cast.clone(), body(r#"{"spell_name":"echo","payload":{"#, ":1}}")),
        ("POST", cast.clone(), body(r#"{"spell_name":"#, r#","payload":1}"#)),
        ("POST", cast, body(r#"{"spell_name":"echo","payload":1,"#, ":1}")),
        ("POST", "/v1/keys".to_owned(), body(r#"{"name":"#, "}")),
        ("POST", "/v1/keys".to_owned(), body(r#"{"name":"k","scopes":["#, "]}")),
        ("POST", "/v1/keys".to_owned(), body(r#"{"name":"k","expires_at":"#, "}")),
        ("POST", "/v1/holds".to_owned(), body(r#"{"amount_cents":1,"ttl_seconds":1,"spell":"#, "}")),
        ("POST", "/v1/budgets".to_owned(), body(r#"{"hard_limit_cents":1000000,"period":"#, "}")),
        ("PUT", "/v1/budgets".to_owned(), body(r#"{"hard_limit_cents":1000000,"period":"#, "}")),
        ("POST", format!("/v1/keys/{key_id}/rotate"), body(r#"{"grace_seconds":"#, "}")),
    ]
}

/// What an admin alone may send.
fn admin_requests_with(string: &[u8]) -> Vec<(&'static str, String, Vec<u8>)> {
    let body = |before: &str, after: &str| [before.as_bytes(), string, after.as_bytes()].concat();
    vec![
        ("POST", "/v1/accounts".to_owned(), body(r#"{"name":"#, "}")),
        ("POST", "/v1/accounts".to_owned(), body(r#"{"name":"x","email":"#, "}")),
        ("PUT", "/v1/spells/odd".to_owned(), body(r#"{"kind":"#, "}")),
        ("PUT", "/v1/spells/odd".to_owned(), body(r#"{"kind":"http","url":"#, "}")),
        (
            "PUT",
            "/v1/spells/odd".to_owned(),
            body(r#"{"kind":"http","url":"http://example.com/","headers":{"a":"#, "}}"),
        ),
        (
            "PUT",
            "/v1/spells/odd".to_owned(),
            body(r#"{"kind":"http","url":"http://example.com/","headers":{"#, r#":"a"}}"#),
        ),
    ]
}

async fn send(client: &Client, (method, path, body): (&str, String, Vec<u8>)) -> Answer {
    client.call(method, &path).body("application/json", body).send().await
}

/// Good casts of eight others, all the while, none of which may notice anything.
struct Others {
    stop: Arc<AtomicBool>,
    casters: Vec<tokio::task::JoinHandle<()>>,
}

impl Others {
    async fn cast(server: &Server) -> Others {
        let stop = Arc::new(AtomicBool::new(false));
        let mut casters = Vec::new();
        for number in 0..8 {
            let customer = server.customer(&format!("good {number}")).await;
            customer.limit("monthly", 1_000_000).await;
            let stop = stop.clone();
            casters.push(tokio::spawn(async move {
                let mut casts = 0;
                while casts < 10 || !stop.load(Ordering::Relaxed) {
                    customer.echo().await.expect(200);
                    casts += 1;
                }
                assert_eq!(usage_cents(&customer.usage("").await), (casts, casts, 0));
            }));
        }
        Others { stop, casters }
    }

    async fn noticed_nothing(self) {
        self.stop.store(true, Ordering::Relaxed);
        for caster in self.casters {
            caster.await.unwrap();
        }
    }
}

both!(a_string_that_is_none_is_400_and_nobody_else_notices);
async fn a_string_that_is_none_is_400_and_nobody_else_notices(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let others = Others::cast(&server).await;
    let sender = server.customer("poisoner").await;
    let admin = server.admin();
    let mut requests = Vec::new();
    for string in bad_strings() {
        requests.extend(
            requests_with(&string, &sender.key_id).into_iter().map(|request| (sender.client(), request)),
        );
        requests.extend(admin_requests_with(&string).into_iter().map(|request| (admin.clone(), request)));
    }
    let count = requests.len();
    storm(16, count, move |number| {
        let (client, request) = requests[number].clone();
        async move { send(&client, request).await.expect_error(400) }
    })
    .await;
    others.noticed_nothing().await;
    assert_eq!(usage_cents(&sender.usage("").await), (0, 0, 0));
    assert_eq!(all_of(&sender, "/v1/keys?limit=1000").await.len(), 1);
    sender.get("/v1/budgets").await.expect_code(404, "budget_not_found");
    sender.echo().await.expect(200);
}

both!(odd_text_is_taken_whole_or_refused_and_nobody_else_notices);
async fn odd_text_is_taken_whole_or_refused_and_nobody_else_notices(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let others = Others::cast(&server).await;
    let sender = server.customer("odd").await;
    let admin = server.admin();
    let mut requests = Vec::new();
    for text in odd_strings() {
        let string = json!(text).to_string().into_bytes();
        requests.extend(
            requests_with(&string, &sender.key_id).into_iter().map(|request| (sender.client(), request)),
        );
        requests.extend(admin_requests_with(&string).into_iter().map(|request| (admin.clone(), request)));
    }
    let count = requests.len();
    let answers = storm(16, count, move |number| {
        let (client, request) = requests[number].clone();
        async move { (send(&client, request.clone()).await, request) }
    })
    .await;
    for (answer, (_, _, body)) in &answers {
        assert!(answer.status < 500, "{answer}");
        let sent: Option<Value> = serde_json::from_slice(body).ok();
        match answer.status {
            200 | 201 => {
                let (sent, given) = (sent.unwrap(), answer.body());
                if !given["result"].is_null() {
                    assert_eq!(given["result"], sent["payload"]);
                }
                if !given["name"].is_null() && !sent["name"].is_null() {
                    assert_eq!(given["name"], sent["name"]);
                }
            }
            status => drop(answer.expect_error(status)),
        }
    }
    // As a payload, every text is fine.
    for text in odd_strings() {
        assert_eq!(sender.cast("echo", json!({"t": text})).await.expect(200)["result"], json!({"t": text}));
    }
    others.noticed_nothing().await;
}

both!(odd_paths_and_queries_are_4xx_and_nobody_else_notices);
async fn odd_paths_and_queries_are_4xx_and_nobody_else_notices(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let others = Others::cast(&server).await;
    let sender = server.customer("odd").await;
    let admin = server.admin();
    for odd in
        ["%00", "a%00b", "%ff", "%c0%80", "%ed%a0%80", "%zz", "%", "%0a", "%2e%2e%2f", "%e2%80%ae", "'--"]
    {
        for path in
            ["/v1/casts/{}", "/v1/keys/{}", "/v1/holds/{}", "/v1/budgets?period={}", "/v1/casts?cursor={}"]
        {
            let method = if path.contains("keys") || path.contains("holds") { "DELETE" } else { "GET" };
            let answer = sender.call(method, &path.replace("{}", odd)).send().await;
            assert!((400..500).contains(&answer.status), "{answer}");
        }
        for path in
            ["/v1/casts?spell={}", "/v1/casts?key_id={}", "/v1/budgets/usage?spell={}", "/v1/usage?from={}"]
        {
            let answer = sender.get(&path.replace("{}", odd)).await;
            assert!(answer.status < 500, "{answer}");
            if odd.contains("%00") || odd == "%ff" {
                answer.expect_error(400);
            }
        }
        let answer = admin
            .call("PATCH", &format!("/v1/accounts/{odd}"))
            .json(&json!({"suspended": true}))
            .send()
            .await;
        assert!((400..500).contains(&answer.status), "{answer}");
        let answer = admin.get(&format!("/v1/keys?account_id={odd}")).await;
        assert!((400..500).contains(&answer.status), "{answer}");
        let answer = admin.put(&format!("/v1/spells/{odd}"), json!({"kind": "echo"})).await;
        assert!(answer.status < 500, "{answer}");
    }
    others.noticed_nothing().await;
    eventually(Duration::from_secs(5), "it is ready", || async {
        (server.anonymous().get("/ready").await.status == 200).then_some(())
    })
    .await;
    sender.echo().await.expect(200);
}
