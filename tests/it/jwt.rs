//! Users of another service, known by its tokens: at `/api/billing`, and nowhere else.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::TcpListener,
    sync::watch,
};

use crate::harness::{
    ADMIN_KEY, Answer, Backend, Client, Options, Server, all_of, both, eventually, shape, storm, unix_now,
};

const SECRET: &str = "hunter2, with as many bytes as HS256 calls for";
const RSA: &str = include_str!("../jwt/rsa.pem");
const RSA_PUBLIC: &str = include_str!("../jwt/rsa.pub.pem");
const EC: &str = include_str!("../jwt/ec.pem");
const EC_OTHER: &str = include_str!("../jwt/ec_other.pem");
const BALANCE: &str = "/api/billing/balance";

fn signed(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn hs256(claims: &Value) -> String {
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    signed(&json!({"alg": "HS256", "typ": "JWT"}), claims, &key, Algorithm::HS256)
}

fn rs256(claims: &Value) -> String {
    let key = EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap();
    signed(&json!({"alg": "RS256"}), claims, &key, Algorithm::RS256)
}

fn es256(pem: &str, key_id: &str, claims: &Value) -> String {
    let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
    signed(&json!({"alg": "ES256", "kid": key_id}), claims, &key, Algorithm::ES256)
}

/// Claims of that user which are in order for another hour.
fn of(user: &str) -> Value {
    json!({"sub": user, "exp": unix_now() / 1_000 + 3_600})
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

/// A server that takes tokens signed with [`SECRET`].
async fn server(backend: &Backend) -> Server {
    Server::start(Options::on(backend).var("JWT_SECRET", SECRET)).await
}

fn user(server: &Server, name: &str) -> Client {
    server.anonymous().with_key(&hs256(&of(name)))
}

/// An error in this surface's shape.
#[track_caller]
fn assert_error(answer: &Answer, status: u16, code: &str) -> String {
    let body = answer.expect(status);
    shape(&body, &["error"]);
    shape(&body["error"], &["code", "message"]);
    assert_eq!(body["error"]["code"], code, "{answer}");
    assert!(!answer.header("x-request-id").is_empty(), "{answer}");
    body["error"]["message"].as_str().unwrap().to_owned()
}

both!(a_user_that_was_never_seen_has_an_empty_wallet);
async fn a_user_that_was_never_seen_has_an_empty_wallet(backend: Backend) {
    let server = server(&backend).await;
    let empty = json!({"credits": 0, "allocated_tokens": {}});
    let ann = user(&server, "ann");
    assert_eq!(ann.get(BALANCE).await.expect(200), empty);
    // Many first sights at once make one account.
    let bob = user(&server, "Bob 株式会社");
    let seen = storm(16, 32, move |_| {
        let bob = bob.clone();
        async move { bob.get(BALANCE).await.status }
    })
    .await;
    assert_eq!(seen, [200; 32]);
    let accounts = all_of(&server.admin(), "/v1/accounts?limit=1000").await;
    let of_user = |name: &str| accounts.iter().filter(|account| account["user_id"] == name).count();
    assert_eq!((of_user("ann"), of_user("Bob 株式会社"), accounts.len()), (1, 1, 3), "{accounts:?}");
    assert_eq!(ann.get("/api/billing/nothing").await.status, 404);
}

both!(two_users_do_not_see_each_other);
async fn two_users_do_not_see_each_other(backend: Backend) {
    let server = server(&backend).await;
    let (ann, bob) = (user(&server, "ann"), user(&server, "bob"));
    for client in [&ann, &bob] {
        client.get(BALANCE).await.expect(200);
    }
    let accounts = all_of(&server.admin(), "/v1/accounts?limit=1000").await;
    let id = |name: &str| {
        let account = accounts.iter().find(|account| account["user_id"] == name).unwrap();
        account["id"].as_str().unwrap().to_owned()
    };
    let named = |account: &str| format!("{BALANCE}?account_id={account}");
    let (anns, bobs) = (id("ann"), id("bob"));
    ann.get(&named(&anns)).await.expect(200);
    for other in [&bobs, "acct_root", "acct_never", "ann"] {
        assert_error(&ann.get(&named(other)).await, 404, "NOT_FOUND");
    }
    server.admin().get(&named(&anns)).await.expect(200);
    // Somebody who is called like an account is somebody else.
    let sneak = user(&server, &anns);
    assert_error(&sneak.get(&named(&anns)).await, 404, "NOT_FOUND");
    // Suspension stops spending, and shows what there is, as for others.
    server.admin().patch(&format!("/v1/accounts/{anns}"), json!({"suspended": true})).await.expect(200);
    ann.get(BALANCE).await.expect(200);
}

both!(a_token_opens_nothing_but_the_wallet);
async fn a_token_opens_nothing_but_the_wallet(backend: Backend) {
    let server = server(&backend).await;
    let ann = user(&server, "ann");
    ann.get(BALANCE).await.expect(200);
    for path in
        ["/v1/keys", "/v1/accounts", "/v1/budgets", "/v1/casts", "/v1/billing", "/v1/usage", "/v1/none"]
    {
        ann.get(path).await.expect_code(401, "unauthorized");
    }
    ann.echo().await.expect_code(401, "unauthorized");
    ann.post("/v1/keys", json!({"name": "mine"})).await.expect_code(401, "unauthorized");
    let token = hs256(&of("ann"));
    for header in ["x-api-key", "x-internal-key"] {
        let refused = server.anonymous().with_header(header, &token).get(BALANCE).await;
        assert_error(&refused, 401, "UNAUTHORIZED");
    }
    let two = ann.call("GET", BALANCE).header("x-api-key", ADMIN_KEY).send().await;
    assert!(assert_error(&two, 401, "UNAUTHORIZED").contains("several"));
}

both!(whoever_is_nobody_is_told_so_and_health_is_open_to_all);
async fn whoever_is_nobody_is_told_so_and_health_is_open_to_all(backend: Backend) {
    let server = server(&backend).await;
    let nobody = server.anonymous();
    let lives = json!({"status": "ok", "service": "billing"});
    for client in [nobody, &nobody.with_key("wrong"), &user(&server, "ann"), &server.admin()] {
        assert_eq!(client.get("/api/billing/health").await.expect(200), lives);
    }
    assert_eq!(nobody.call("HEAD", "/api/billing/health").send().await.status, 200);
    let refused = nobody.post("/api/billing/health", json!({})).await;
    assert_error(&refused, 405, "METHOD_NOT_ALLOWED");
    assert_eq!(refused.header("allow"), "GET, HEAD");
    for path in [BALANCE, "/api/billing/nothing", "/api/billing/", "/api/billing", "/api/billing/health/x"] {
        assert_eq!(assert_error(&nobody.get(path).await, 403, "FORBIDDEN"), "Not authenticated", "{path}");
    }
    // Our keys go on as ever.
    server.customer("acme").await.get(BALANCE).await.expect(200);
    assert_error(
        &nobody.with_key("sk_live_wrong_0123456789012345678901").get(BALANCE).await,
        401,
        "UNAUTHORIZED",
    );
}

both!(tokens_that_are_not_in_order_are_refused);
async fn tokens_that_are_not_in_order_are_refused(backend: Backend) {
    let options = Options::on(&backend)
        .var("JWT_SECRET", SECRET)
        .var("JWT_PUBLIC_KEY", RSA_PUBLIC.replace('\n', "\\n"))
        .var("JWT_ISSUER", "https://id.example")
        .var("JWT_AUDIENCE", "billing");
    let server = Server::start(options).await;
    let fitting =
        || with(with(of("ann"), "iss", "https://id.example".into()), "aud", json!(["web", "billing"]));
    let now = unix_now() / 1_000;
    for token in [hs256(&fitting()), rs256(&fitting())] {
        server.anonymous().with_key(&token).get(BALANCE).await.expect(200);
    }
    let mut without_end = fitting();
    without_end.as_object_mut().unwrap().remove("exp");
    let mut without_subject = fitting();
    without_subject.as_object_mut().unwrap().remove("sub");
    let unsigned = {
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        format!("{header}.{}.", URL_SAFE_NO_PAD.encode(fitting().to_string()))
    };
    let confused = signed(
        &json!({"alg": "HS256"}),
        &fitting(),
        &EncodingKey::from_secret(RSA_PUBLIC.as_bytes()),
        Algorithm::HS256,
    );
    let good = hs256(&fitting());
    let (head, signature) = good.rsplit_once('.').unwrap();
    let header = head.split('.').next().unwrap();
    let bob = URL_SAFE_NO_PAD.encode(with(fitting(), "sub", "bob".into()).to_string());
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    for (token, why) in [
        (unsigned, "alg"),
        (confused, "signature"),
        (format!("{header}.{bob}.{signature}"), "signature"),
        (format!("{head}."), "signature"),
        (signed(&json!({"alg": "HS384"}), &fitting(), &secret, Algorithm::HS384), "alg"),
        (es256(EC, "e", &fitting()), "alg"),
        (signed(&json!({"alg": "HS256", "crit": ["x"]}), &fitting(), &secret, Algorithm::HS256), "extension"),
        (hs256(&with(fitting(), "exp", json!(now - 61))), "expired"),
        (hs256(&with(fitting(), "exp", json!("tomorrow"))), "exp"),
        (hs256(&with(fitting(), "nbf", json!(now + 120))), "not valid yet"),
        (hs256(&without_end), "exp"),
        (hs256(&without_subject), "sub"),
        (hs256(&with(fitting(), "sub", json!(7))), "sub"),
        (hs256(&with(fitting(), "iss", "https://evil.example".into())), "issuer"),
        (hs256(&with(fitting(), "aud", "web".into())), "not meant"),
        (hs256(&of("ann")), "issuer"),
        (hs256(&with(fitting(), "padding", "x".repeat(20_000).into())), "too long"),
    ] {
        let refused = server.anonymous().with_key(&token).get(BALANCE).await;
        let told = assert_error(&refused, 401, "UNAUTHORIZED");
        assert!(told.contains(why), "{told:?} instead of something with {why:?}");
        assert_eq!(refused.header("www-authenticate"), "Bearer");
    }
    let accounts = all_of(&server.admin(), "/v1/accounts?limit=1000").await;
    assert!(!accounts.iter().any(|account| account["user_id"] == "bob"), "{accounts:?}");
}

both!(without_a_key_to_check_with_no_token_is_taken);
async fn without_a_key_to_check_with_no_token_is_taken(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    for token in [hs256(&of("ann")), rs256(&of("ann"))] {
        assert_error(&server.anonymous().with_key(&token).get(BALANCE).await, 401, "UNAUTHORIZED");
    }
    server.admin().get(BALANCE).await.expect(200);
}

both!(refused_tokens_are_limited_by_address_and_good_ones_are_not);
async fn refused_tokens_are_limited_by_address_and_good_ones_are_not(backend: Backend) {
    let options = Options::on(&backend).var("JWT_SECRET", SECRET).var("RATE_LIMIT_ANON_PER_MINUTE", 3);
    let server = Server::start(options).await;
    let expired = server.anonymous().with_key(&hs256(&json!({"sub": "ann", "exp": 1})));
    for left in [2, 1, 0] {
        let refused = expired.get(BALANCE).await;
        assert_error(&refused, 401, "UNAUTHORIZED");
        assert_eq!(refused.number_in("ratelimit-remaining"), left);
    }
    let limited = expired.get(BALANCE).await;
    assert_error(&limited, 429, "TOO_MANY_REQUESTS");
    assert!(limited.number_in("retry-after") > 0);
    user(&server, "ann").get(BALANCE).await.expect(200);
}

both!(neither_tokens_nor_their_secret_are_logged);
async fn neither_tokens_nor_their_secret_are_logged(backend: Backend) {
    let options = Options::on(&backend).var("JWT_SECRET", SECRET).var("RUST_LOG", "trace");
    let server = Server::start(options).await;
    let (good, wrong) = (hs256(&of("ann")), hs256(&json!({"sub": "ann", "exp": 1})));
    server.anonymous().with_key(&good).get(BALANCE).await.expect(200);
    assert_error(&server.anonymous().with_key(&wrong).get(BALANCE).await, 401, "UNAUTHORIZED");
    let printed = server.output().all();
    assert!(printed.contains(BALANCE), "the requests are logged: {printed}");
    for token in [&good, &wrong] {
        for part in token.split('.').skip(1) {
            assert!(!printed.contains(part), "{part} is in the log");
        }
    }
    assert!(!printed.contains("hunter2"), "the secret is in the log");
    assert!(!printed.contains("JWT_SECRET"), "there is nothing to warn of");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_secret_is_taken_with_a_warning() {
    let backend = Backend::sqlite().await;
    let short = "hunter2";
    let server = Server::start(Options::on(&backend).var("JWT_SECRET", short)).await;
    let key = EncodingKey::from_secret(short.as_bytes());
    let token = signed(&json!({"alg": "HS256"}), &of("ann"), &key, Algorithm::HS256);
    server.anonymous().with_key(&token).get(BALANCE).await.expect(200);
    let printed = server.output().all();
    assert_eq!(printed.matches("JWT_SECRET").count(), 1, "{printed}");
    assert!(!printed.contains(short), "{printed}");
}

/// Publishes a set of keys, or hangs up while there is none.
struct Publisher {
    url: String,
    set: watch::Sender<Option<String>>,
}

impl Publisher {
    async fn start() -> Publisher {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let (set, published) = watch::channel(None::<String>);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(set) = published.borrow().clone() else { continue };
                let (read, mut write) = stream.into_split();
                let mut lines = BufReader::new(read).lines();
                while lines.next_line().await.is_ok_and(|line| line.is_some_and(|line| !line.is_empty())) {}
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{set}", set.len());
                let _ = write.write_all(answer.as_bytes()).await;
            }
        });
        Publisher { url, set }
    }

    fn publish(&self, pem: &str, key_id: &str) {
        let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()).unwrap();
        jwk["kid"] = key_id.into();
        self.set.send_replace(Some(json!({ "keys": [jwk] }).to_string()));
    }
}

both!(keys_are_awaited_fetched_and_rotated);
async fn keys_are_awaited_fetched_and_rotated(backend: Backend) {
    let publisher = Publisher::start().await;
    let server = Server::start(Options::on(&backend).var("JWKS_URL", &publisher.url)).await;
    let by = |pem: &str, id: &str| server.anonymous().with_key(&es256(pem, id, &of("ann")));
    let (old, new) = (by(EC, "old"), by(EC_OTHER, "new"));

    // Nobody can tell yet whose the token is.
    let refused = old.get(BALANCE).await;
    assert_error(&refused, 503, "SERVICE_UNAVAILABLE");
    assert!(refused.number_in("retry-after") > 0);
    server.admin().get(BALANCE).await.expect(200);

    publisher.publish(EC, "old");
    let taken = eventually(Duration::from_secs(20), "the keys are fetched", || async {
        let answer = old.get(BALANCE).await;
        (answer.status == 200).then(|| answer.body())
    });
    assert_eq!(taken.await, json!({"credits": 0, "allocated_tokens": {}}));
    publisher.publish(EC_OTHER, "new");
    new.get(BALANCE).await.expect(200);
    assert_error(&old.get(BALANCE).await, 401, "UNAUTHORIZED");
    let unfit = server.anonymous().with_key(&hs256(&of("ann")));
    assert_error(&unfit.get(BALANCE).await, 401, "UNAUTHORIZED");
}
