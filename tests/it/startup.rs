//! Starting and stopping: bad configuration, the first key, many at once, SIGTERM.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::json;

use crate::harness::{
    ADMIN_KEY, Backend, Client, Options, Output, Server, Upstream, all_casts, all_of, both, eventually,
    names, postgres, spawn_bare, storm, usage_cents,
};

/// What a start with these variables ends with, and what it says.
async fn failed_start(variables: &[(&str, &str)]) -> (std::process::ExitStatus, Output) {
    let dir = tempfile::tempdir().unwrap();
    let variables: Vec<(String, String)> =
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let mut child = spawn_bare(dir.path(), &variables);
    let status = eventually(Duration::from_secs(10), "a bad configuration ends it", || {
        let status = child.try_wait().unwrap();
        async move { status }
    })
    .await;
    (status, Output::of(dir.path()))
}

/// For each variable a value that can't be parsed.
const WRONG: [(&str, &str); 15] = [
    ("DATABASE_URL", "mysql://root:hunter2@localhost/x"),
    ("REDIS_URL", "http://:hunter2@localhost"),
    ("COST_PER_CAST_CENTS", "one-hunter2"),
    ("RATE_LIMIT_PER_MINUTE", "-5"),
    ("RATE_LIMIT_ANON_PER_MINUTE", "many"),
    ("TRUSTED_PROXIES", "10.0.0.0/99"),
    ("MAX_BODY_BYTES", "1 MiB"),
    ("UPSTREAM_ALLOW_PRIVATE", "perhaps"),
    ("JWT_SECRET", "-----BEGIN PUBLIC KEY-----\nhunter2"),
    ("JWT_PUBLIC_KEY", include_str!("../jwt/rsa_1024.pub.pem")),
    ("JWKS_URL", "http://hunter2.example/keys"),
    ("BOOTSTRAP_API_KEY", "too-short-hunter2"),
    ("HOST", "not an address"),
    ("PORT", "65536"),
    ("RUST_LOG", "spell_platform=shout=loud"),
];

#[tokio::test]
async fn a_bad_configuration_ends_it_naming_each_variable_and_no_secret() {
    let (status, output) = failed_start(&WRONG).await;
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
    for (name, _) in WRONG {
        assert!(output.stderr.contains(name), "{name} is not named: {output:?}");
    }
    assert!(!output.all().contains("hunter2"), "a secret is printed: {output:?}");
}

#[tokio::test]
async fn each_bad_variable_alone_ends_it_and_names_no_other() {
    for (wrong, value) in WRONG {
        let mut variables =
            vec![("PORT", "0"), ("BOOTSTRAP_API_KEY", ADMIN_KEY), ("DATABASE_URL", "sqlite:x.db")];
        variables.retain(|(name, _)| *name != wrong);
        variables.push((wrong, value));
        let (status, output) = failed_start(&variables).await;
        assert!(!status.success(), "{wrong}");
        assert!(output.stderr.contains(wrong), "{wrong} is not named: {output:?}");
        for (other, _) in WRONG.iter().filter(|(other, _)| *other != wrong) {
            // RATE_LIMIT_PER_MINUTE is a part of no other name, and so are all.
            assert!(!output.stderr.contains(other), "{other} is named for {wrong}: {output:?}");
        }
        assert!(!output.all().contains("hunter2"), "a secret is printed: {output:?}");
    }
}

/// Every different key in what was printed.
fn keys_in(text: &str) -> BTreeSet<String> {
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.split(|c| !is_key(c)).filter(|word| word.starts_with("sk_live_")).map(str::to_owned).collect()
}

both!(who_is_told_that_it_lives_is_let_in_with_the_first_key);
async fn who_is_told_that_it_lives_is_let_in_with_the_first_key(backend: Backend) {
    let server = Server::spawn(Options::on(&backend));
    eventually(Duration::from_secs(20), "it lives", || {
        let asked = server.anonymous().call("GET", "/healthz").try_send();
        async move { asked.await.ok().filter(|answer| answer.status == 200) }
    })
    .await;
    server.admin().echo().await.expect(200);
}

both!(the_first_start_makes_an_admins_key_and_prints_it_once);
async fn the_first_start_makes_an_admins_key_and_prints_it_once(backend: Backend) {
    let options = Options::on(&backend).without("BOOTSTRAP_API_KEY").var("RUST_LOG", "info");
    let mut server = Server::start(options).await;
    let printed = server.output().all();
    let keys = keys_in(&printed);
    assert_eq!(keys.len(), 1, "{} keys in {printed}", keys.len());
    assert!(printed.matches("curl").count() >= 2 && printed.contains("402"), "no curl lines in {printed}");
    let key = keys.first().unwrap().clone();
    let admin = server.anonymous().with_key(&key);
    admin.get("/v1/accounts").await.expect(200);
    admin.echo().await.expect(200);
    assert!(server.terminate(Duration::from_secs(15)).await.success());
    let before = server.output().all().len();
    server.restart().await;
    let later = server.output().all();
    assert_eq!(keys_in(&later).len(), 1, "another key is printed: {later}");
    assert_eq!(later.matches(&key).count(), printed.matches(&key).count(), "it is printed again: {later}");
    assert!(later.len() >= before);
    server.anonymous().with_key(&key).echo().await.expect(200);
}

both!(a_given_first_key_is_never_printed);
async fn a_given_first_key_is_never_printed(backend: Backend) {
    let options =
        Options::on(&backend).var("RUST_LOG", "trace").var("SERVICE_TOKEN", "hunter2-hunter2-hunter2");
    let mut server = Server::start(options).await;
    let customer = server.customer("acme").await;
    customer.echo().await.expect(200);
    server
        .anonymous()
        .with_header("X-Internal-Key", "hunter2-hunter2-hunter2")
        .get("/v1/accounts")
        .await
        .expect(200);
    server.anonymous().with_key("sk_live_wrong_but_secret_anyway_0123456789").echo().await.expect_error(401);
    assert!(server.terminate(Duration::from_secs(15)).await.success());
    let printed = server.output().all();
    for secret in [ADMIN_KEY, &customer.key, "hunter2-hunter2-hunter2", "sk_live_wrong_but_secret_anyway"] {
        assert!(!printed.contains(secret), "{secret} is in the log");
    }
}

async fn assert_they_are_one(servers: &mut [Server]) {
    for server in servers.iter_mut() {
        server.wait_until_ready().await;
    }
    let accounts = names(&all_of(&servers[0].admin(), "/v1/accounts?limit=1000").await, "id");
    for server in servers.iter() {
        let seen = names(&all_of(&server.admin(), "/v1/accounts?limit=1000").await, "id");
        assert_eq!(seen, accounts, "one first admin for all");
        server.admin().echo().await.expect(200);
    }
    let customer = servers[0].customer("acme").await;
    for server in servers.iter() {
        customer.at(server.anonymous()).echo().await.expect(200);
    }
    assert_eq!(usage_cents(&customer.usage("").await).0, servers.len() as i64);
}

postgres!(three_that_start_at_once_on_an_empty_database_all_come_up);
async fn three_that_start_at_once_on_an_empty_database_all_come_up(backend: Backend) {
    let mut servers: Vec<Server> = (0..3).map(|_| Server::spawn(Options::on(&backend))).collect();
    assert_they_are_one(&mut servers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_start_at_once_on_one_empty_file_all_come_up() {
    let backend = Backend::sqlite().await;
    let mut servers: Vec<Server> = (0..2).map(|_| Server::spawn(Options::on(&backend))).collect();
    assert_they_are_one(&mut servers).await;
}

postgres!(of_three_that_start_at_once_without_a_key_one_makes_and_prints_it);
async fn of_three_that_start_at_once_without_a_key_one_makes_and_prints_it(backend: Backend) {
    let options = Options::on(&backend).without("BOOTSTRAP_API_KEY");
    let mut servers: Vec<Server> = (0..3).map(|_| Server::spawn(options.clone())).collect();
    let mut printed = BTreeMap::new();
    for server in &mut servers {
        server.wait_until_ready().await;
    }
    for server in &servers {
        for key in keys_in(&server.output().all()) {
            *printed.entry(key).or_insert(0) += 1;
        }
    }
    assert_eq!(printed.values().collect::<Vec<_>>(), [&1], "{printed:?}");
    for server in &servers {
        let admin = server.anonymous().with_key(printed.keys().next().unwrap());
        admin.get("/v1/accounts").await.expect(200);
    }
}

both!(sigterm_answers_what_was_taken_and_exits_0);
async fn sigterm_answers_what_was_taken_and_exits_0(backend: Backend) {
    let mut server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    server.admin().put("/v1/spells/gate", upstream.spell("/gate")).await.expect(201);
    let customer = server.customer("acme").await;
    let taken: Vec<_> =
        (0..16).map(|_| tokio::spawn(customer.casting("gate", json!(1)).try_send())).collect();
    upstream.wait_for_calls("/gate", 16).await;
    let answered = Arc::new(Mutex::new(Vec::new()));
    let load: Vec<_> =
        (0..8).map(|_| tokio::spawn(cast_until_it_stops(customer.client(), answered.clone()))).collect();
    let casts = || answered.lock().unwrap().len();
    eventually(Duration::from_secs(30), "some load", || async { (casts() > 50).then_some(()) }).await;
    server.ask_to_stop();
    // Nothing new is taken while the old is finished.
    eventually(Duration::from_secs(10), "nothing new is taken", || async {
        let answer = server.anonymous().call("GET", "/ready").try_send().await;
        answer.map_or(true, |answer| answer.status != 200).then_some(())
    })
    .await;
    upstream.open_gate();
    for cast in taken {
        let answer = cast.await.unwrap().expect("what was taken is answered");
        answered.lock().unwrap().push(answer.expect(200)["id"].as_str().unwrap().to_owned());
    }
    for task in load {
        task.await.unwrap();
    }
    let status = server.wait_for_exit(Duration::from_secs(15)).await;
    assert_eq!(status.code(), Some(0), "{status}");
    server.restart().await;
    let booked = all_casts(&customer).await;
    let ids: HashSet<String> = names(&booked, "id").into_iter().collect();
    for id in answered.lock().unwrap().iter() {
        assert!(ids.contains(id), "{id} was answered and is not in the books");
    }
    let completed = booked.iter().filter(|cast| cast["status"] == "COMPLETED").count() as i64;
    assert_eq!(usage_cents(&customer.usage("").await), (completed, completed, 0), "nothing is left held");
}

async fn cast_until_it_stops(client: Client, answered: Arc<Mutex<Vec<String>>>) {
    while let Ok(answer) = client.casting("echo", json!(1)).try_send().await {
        match answer.status {
            200 => answered.lock().unwrap().push(answer.body()["id"].as_str().unwrap().to_owned()),
            _ => {
                answer.expect_error(503);
                return;
            }
        }
    }
}

both!(sigterm_ends_even_what_an_upstream_never_answers);
async fn sigterm_ends_even_what_an_upstream_never_answers(backend: Backend) {
    let mut server = Server::start(Options::on(&backend).with_upstreams()).await;
    let upstream = Upstream::start().await;
    let gate = json!({"kind": "http", "url": upstream.url("/gate"), "timeout_ms": 60_000});
    server.admin().put("/v1/spells/gate", gate).await.expect(201);
    let customer = server.customer("acme").await;
    let taken = tokio::spawn(customer.casting("gate", json!(1)).try_send());
    upstream.wait_for_calls("/gate", 1).await;
    let status = server.terminate(Duration::from_millis(15_500)).await;
    assert_eq!(status.code(), Some(0), "{status}");
    if let Ok(answer) = taken.await.unwrap() {
        assert!([502, 503, 504].contains(&answer.status), "{answer}");
    }
}

#[tokio::test]
async fn an_idle_server_stops_at_once_on_sigterm_and_on_sqlite_leaves_its_books() {
    let backend = Backend::sqlite().await;
    let mut server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.echo().await.expect(200);
    assert_eq!(server.terminate(Duration::from_secs(15)).await.code(), Some(0));
    server.restart().await;
    assert_eq!(usage_cents(&customer.usage("").await), (1, 1, 0));
}

#[tokio::test]
async fn without_a_database_url_it_makes_a_file_where_it_runs() {
    let backend = Backend::sqlite().await;
    let mut server = Server::start(Options::on(&backend).without("DATABASE_URL")).await;
    let customer = server.customer("acme").await;
    customer.echo().await.expect(200);
    let files = std::fs::read_dir(server.dir()).unwrap();
    let files: Vec<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    assert!(files.len() > 2, "beside stdout and stderr: {files:?}");
    server.kill9();
    server.restart().await;
    assert_eq!(usage_cents(&customer.usage("").await), (1, 1, 0));
}

both!(stripe_routes_are_503_billing_disabled_without_its_secrets);
async fn stripe_routes_are_503_billing_disabled_without_its_secrets(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.post("/v1/billing/checkout", json!({"plan": "pro"})).await.expect_code(503, "billing_disabled");
    customer
        .post("/v1/billing/checkout", json!({"credits": 1_000}))
        .await
        .expect_code(503, "billing_disabled");
    customer.post("/v1/billing/checkout", json!({})).await.expect_code(503, "billing_disabled");
    customer.post("/v1/billing/portal", json!({})).await.expect_code(503, "billing_disabled");
    let webhook = server.anonymous().call("POST", "/webhooks/stripe").body("application/json", "{}");
    webhook.send().await.expect_code(503, "billing_disabled");
    let log = server.output().all();
    for name in ["STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"] {
        assert_eq!(log.matches(name).count(), 1, "one warning names {name}: {log}");
    }
    customer.echo().await.expect(200);
}

both!(health_is_told_without_a_key);
async fn health_is_told_without_a_key(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    for path in ["/healthz", "/health"] {
        let health = server.anonymous().get(path).await.expect(200);
        assert_eq!(health["status"], "ok");
        assert!(health["version"].as_str().is_some_and(|version| !version.is_empty()), "{health}");
    }
    let ready = server.anonymous().get("/ready").await;
    let told = ready.expect(200).to_string().to_lowercase();
    assert!(told.contains("redis") && told.contains("stripe"), "what is missing is not told: {told}");
}

both!(every_answer_carries_a_request_id);
async fn every_answer_carries_a_request_id(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    let client = customer.client();
    let ids = storm(8, 64, move |_| {
        let client = client.clone();
        async move { client.echo().await.header("x-request-id").to_owned() }
    })
    .await;
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 64, "each has its own");
    for (path, status) in [("/healthz", 200), ("/v1/keys", 200), ("/v1/casts/none", 404), ("/nowhere", 404)] {
        let answer = customer.call("GET", path).header("X-Request-Id", "my-own-id.42").send().await;
        assert_eq!((answer.status, answer.header("x-request-id")), (status, "my-own-id.42"), "{path}");
    }
}
