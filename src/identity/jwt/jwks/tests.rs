use std::sync::{
    Mutex as SyncMutex,
    atomic::{AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use super::{
    super::{
        Settings, Verifier,
        tests::{NOW, Signer, at, claims},
    },
    *,
};

/// Whoever publishes keys: a small server that counts how often they were fetched.
struct Publisher {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    /// The whole answer, head included; an empty one hangs up.
    answer: SyncMutex<String>,
    fetches: AtomicUsize,
    open: watch::Sender<bool>,
}

impl Publisher {
    async fn start(keys: &[Value]) -> Publisher {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (answer, open) = (SyncMutex::default(), watch::Sender::new(true));
        let state = Arc::new(State { answer, fetches: AtomicUsize::new(0), open });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        let publisher = Publisher { port, state, task };
        publisher.publish(keys);
        publisher
    }

    fn publish(&self, keys: &[Value]) {
        self.answer("200 OK", &json!({ "keys": keys }).to_string());
    }

    fn answer(&self, status: &str, body: &str) {
        let length = body.len();
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nLocation: /moved\r\n\r\n");
        *self.state.answer.lock().unwrap() = head + body;
    }

    fn hang_up(&self) {
        self.state.answer.lock().unwrap().clear();
    }

    /// Whether answers go out, or wait.
    fn open(&self, open: bool) {
        self.state.open.send_replace(open);
    }

    fn fetches(&self) -> usize {
        self.state.fetches.load(Ordering::SeqCst)
    }

    async fn fetched(&self, times: usize) {
        while self.fetches() < times {
            tokio::task::yield_now().await;
        }
    }

    fn url(&self) -> Url {
        url_of_key_set(&format!("http://127.0.0.1:{}/keys?tenant=1", self.port)).unwrap()
    }

    fn verifier(&self) -> (Arc<Verifier>, Clock) {
        let clock = Clock::manual(at(NOW));
        let settings = Settings { key_set: Some(self.url()), ..Settings::default() };
        (Arc::new(Verifier::new(&settings, clock.clone()).unwrap()), clock)
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if line.is_empty() {
            state.fetches.fetch_add(1, Ordering::SeqCst);
            let _ = state.open.subscribe().wait_for(|open| *open).await;
            let answer = state.answer.lock().unwrap().clone();
            let _ = write.write_all(answer.as_bytes()).await;
            return;
        }
    }
}

const OK: Result<(), TokenError> = Ok(());
const UNAVAILABLE: Result<(), TokenError> = Err(TokenError::KeysUnavailable);
const REFUSED: Result<(), TokenError> = Err(TokenError::Invalid("The token's signature is not valid."));

async fn verdict_of(verifier: &Verifier, token: &str) -> Result<(), TokenError> {
    verifier.user_of(token).await.map(|user| assert_eq!(user, "ann"))
}

fn advance(clock: &Clock, by_ms: i64) {
    clock.set(Time(clock.now().0 + by_ms));
}

#[tokio::test]
async fn a_set_is_fetched_once_for_all_tokens_until_it_is_old() {
    let publisher = Publisher::start(&[Signer::Rsa.jwk("r"), Signer::Ec.jwk("e")]).await;
    let (verifier, clock) = publisher.verifier();
    assert_eq!(publisher.fetches(), 0, "nothing is fetched before it is needed");
    for _ in 0..3 {
        assert_eq!(verdict_of(&verifier, &Signer::Rsa.token(Some("r"))).await, OK);
        assert_eq!(verdict_of(&verifier, &Signer::Ec.token(Some("e"))).await, OK);
        assert_eq!(verdict_of(&verifier, &Signer::OtherEc.token(Some("e"))).await, REFUSED);
    }
    let late = |by_ms: i64| {
        advance(&clock, by_ms);
        let exp = clock.now().0 / 1_000 + 600;
        Signer::Ec.sign(&json!({"alg": "ES256", "kid": "e"}), &json!({"sub": "ann", "exp": exp}))
    };
    assert_eq!(verdict_of(&verifier, &late(FRESH_MS - 1)).await, OK);
    assert_eq!(publisher.fetches(), 1);
    assert_eq!(verdict_of(&verifier, &late(1)).await, OK);
    assert_eq!(publisher.fetches(), 2);
}

#[tokio::test]
async fn a_key_of_the_set_counts_by_its_id_and_for_its_own_algorithm() {
    let keys = [Signer::Rsa.jwk("r"), Signer::Ec.jwk("e"), Signer::OtherEc.jwk("f")];
    let publisher = Publisher::start(&keys).await;
    let (verifier, _) = publisher.verifier();
    for (token, expected) in [
        (Signer::Rsa.token(Some("r")), OK),
        (Signer::OtherEc.token(Some("f")), OK),
        (Signer::Ec.token(Some("f")), REFUSED),
        (Signer::Ec.token(Some("r")), REFUSED),
        (Signer::Rsa.token(Some("e")), REFUSED),
        (Signer::Rsa.token(Some("R")), REFUSED),
        // Without an id, only where there is no choice.
        (Signer::Rsa.token(None), OK),
        (Signer::OtherRsa.token(None), REFUSED),
        (Signer::Ec.token(None), REFUSED),
    ] {
        assert_eq!(verdict_of(&verifier, &token).await, expected, "{token}");
    }
}

#[tokio::test]
async fn keys_are_rotated() {
    let publisher = Publisher::start(&[Signer::Ec.jwk("old")]).await;
    let (verifier, clock) = publisher.verifier();
    let (old, new) = (Signer::Ec.token(Some("old")), Signer::OtherEc.token(Some("new")));
    assert_eq!(verdict_of(&verifier, &old).await, OK);
    publisher.publish(&[Signer::Ec.jwk("old"), Signer::OtherEc.jwk("new")]);
    assert_eq!(verdict_of(&verifier, &new).await, OK, "an unknown key is looked for at once");
    assert_eq!(publisher.fetches(), 2);
    publisher.publish(&[Signer::OtherEc.jwk("new")]);
    assert_eq!(verdict_of(&verifier, &old).await, OK, "what was fetched is believed for a while");
    advance(&clock, FRESH_MS / 2);
    assert_eq!((verdict_of(&verifier, &old).await, publisher.fetches()), (OK, 2));
    // An unknown key's fetch brings the news early, and the next one is at the latest when the set is old.
    advance(&clock, FRESH_MS / 2);
    let longer = json!({"sub": "ann", "exp": NOW + 3_600});
    let old = Signer::Ec.sign(&json!({"alg": "ES256", "kid": "old"}), &longer);
    let new = Signer::OtherEc.sign(&json!({"alg": "ES256", "kid": "new"}), &longer);
    assert_eq!(verdict_of(&verifier, &old).await, REFUSED);
    assert_eq!(verdict_of(&verifier, &new).await, OK);
}

#[tokio::test]
async fn an_only_key_without_an_id_is_rotated_too() {
    let nameless = |signer: &Signer| {
        let mut jwk = signer.jwk("");
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    };
    let publisher = Publisher::start(&[nameless(&Signer::Ec)]).await;
    let (verifier, clock) = publisher.verifier();
    assert_eq!(verdict_of(&verifier, &Signer::Ec.token(None)).await, OK);
    assert_eq!(verdict_of(&verifier, &Signer::Ec.token(Some(""))).await, REFUSED, "it has no id at all");
    publisher.publish(&[nameless(&Signer::OtherEc)]);
    advance(&clock, PAUSE_MS);
    assert_eq!(verdict_of(&verifier, &Signer::OtherEc.token(None)).await, OK);
    assert_eq!(verdict_of(&verifier, &Signer::Ec.token(None)).await, REFUSED);
}

#[tokio::test]
async fn made_up_ids_cause_no_flood() {
    let publisher = Publisher::start(&[Signer::Ec.jwk("e")]).await;
    let (verifier, clock) = publisher.verifier();
    let flood = async |round: usize| {
        let tokens: Vec<String> =
            (0..40).map(|n| Signer::OtherEc.token(Some(&format!("made up {round}.{n}")))).collect();
        let verdicts = join_all(tokens.iter().map(|token| verdict_of(&verifier, token))).await;
        assert!(verdicts.iter().all(|verdict| *verdict == REFUSED), "{verdicts:?}");
    };
    flood(0).await;
    assert_eq!(publisher.fetches(), 2, "the set, and once more for a key that is not in it");
    flood(1).await;
    assert_eq!(publisher.fetches(), 2);
    assert_eq!(verdict_of(&verifier, &Signer::Ec.token(Some("e"))).await, OK);
    for round in 2..5 {
        advance(&clock, PAUSE_MS - 1);
        flood(round).await;
        advance(&clock, 1);
        flood(round).await;
        assert_eq!(publisher.fetches(), round + 1);
    }
}

#[tokio::test]
async fn all_who_wait_share_one_fetch_and_none_who_hangs_up_ends_it() {
    let publisher = Publisher::start(&[Signer::Ec.jwk("e")]).await;
    publisher.open(false);
    let (verifier, _) = publisher.verifier();
    let token = Signer::Ec.token(Some("e"));
    let ask = || {
        let (verifier, token) = (verifier.clone(), token.clone());
        tokio::spawn(async move { verdict_of(&verifier, &token).await })
    };
    let first = ask();
    publisher.fetched(1).await;
    let others: Vec<_> = (0..20).map(|_| ask()).collect();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    publisher.open(true);
    for other in others {
        assert_eq!(other.await.unwrap(), OK);
    }
    assert_eq!(publisher.fetches(), 1);
}

#[tokio::test]
async fn while_the_keys_were_never_had_nobody_can_tell() {
    let publisher = Publisher::start(&[Signer::Ec.jwk("e")]).await;
    publisher.hang_up();
    let (verifier, clock) = publisher.verifier();
    let token = Signer::Ec.token(Some("e"));
    for _ in 0..5 {
        assert_eq!(verdict_of(&verifier, &token).await, UNAVAILABLE);
    }
    assert_eq!(publisher.fetches(), 1, "a failure is followed by a pause");
    publisher.publish(&[Signer::Ec.jwk("e")]);
    assert_eq!(verdict_of(&verifier, &token).await, UNAVAILABLE);
    advance(&clock, PAUSE_MS);
    assert_eq!(verdict_of(&verifier, &token).await, OK);
    // What needs no key of the set is told all the same.
    assert!(matches!(verifier.user_of(&Signer::Secret("x").token(None)).await, Err(TokenError::Invalid(_))));
}

#[tokio::test]
async fn a_set_that_can_not_be_renewed_stays_in_use() {
    let publisher = Publisher::start(&[Signer::Ec.jwk("e")]).await;
    let (verifier, clock) = publisher.verifier();
    let longer = json!({"sub": "ann", "exp": NOW + 86_400});
    let by = |signer: &Signer, id: &str| signer.sign(&json!({"alg": "ES256", "kid": id}), &longer);
    assert_eq!(verdict_of(&verifier, &by(&Signer::Ec, "e")).await, OK);
    publisher.hang_up();
    for renewals in 1..4 {
        advance(&clock, FRESH_MS);
        for _ in 0..3 {
            assert_eq!(verdict_of(&verifier, &by(&Signer::Ec, "e")).await, OK);
            assert_eq!(verdict_of(&verifier, &by(&Signer::OtherEc, "e")).await, REFUSED);
            let unknown = verdict_of(&verifier, &by(&Signer::OtherEc, "new")).await;
            assert_eq!(unknown, UNAVAILABLE, "it may have been added meanwhile");
        }
        assert_eq!(publisher.fetches(), 1 + renewals);
    }
    publisher.publish(&[Signer::OtherEc.jwk("new")]);
    advance(&clock, PAUSE_MS);
    assert_eq!(verdict_of(&verifier, &by(&Signer::OtherEc, "new")).await, OK);
    assert_eq!(verdict_of(&verifier, &by(&Signer::Ec, "e")).await, REFUSED);
}

#[tokio::test]
async fn a_clock_that_is_set_back_makes_no_set_last_longer() {
    let publisher = Publisher::start(&[Signer::Ec.jwk("e")]).await;
    let (verifier, clock) = publisher.verifier();
    assert_eq!(verdict_of(&verifier, &Signer::Ec.token(Some("e"))).await, OK);
    publisher.publish(&[]);
    advance(&clock, -86_400_000);
    assert_eq!(verdict_of(&verifier, &Signer::Ec.token(Some("e"))).await, REFUSED);
}

#[tokio::test]
async fn an_answer_that_is_no_set_is_a_failure() {
    let publisher = Publisher::start(&[]).await;
    let (verifier, clock) = publisher.verifier();
    let token = Signer::Ec.token(Some("e"));
    let set = json!({"keys": [Signer::Ec.jwk("e")]}).to_string();
    let too_long = format!("{set}{}", " ".repeat(MAX_BYTES));
    for (status, body) in [
        ("200 OK", ""),
        ("200 OK", "<html>Sign in</html>"),
        ("200 OK", "[]"),
        ("200 OK", r#"{"keys":null}"#),
        ("200 OK", r#"{"keys":{"e":1}}"#),
        ("200 OK", r#"{"Keys":[]}"#),
        ("200 OK", &set[..set.len() - 1]),
        ("200 OK", &"[".repeat(100_000)),
        ("200 OK", &too_long),
        ("204 No Content", ""),
        ("302 Found", &set),
        ("404 Not Found", &set),
        ("500 Internal Server Error", &set),
    ] {
        publisher.answer(status, body);
        assert_eq!(verdict_of(&verifier, &token).await, UNAVAILABLE, "{status} {body:.80}");
        advance(&clock, PAUSE_MS);
    }
    *publisher.state.answer.lock().unwrap() = "SSH-2.0-OpenSSH_9.2\r\n".to_owned();
    assert_eq!(verdict_of(&verifier, &token).await, UNAVAILABLE);
    advance(&clock, PAUSE_MS);
    publisher.answer("200 OK", &format!("{set}{}", " ".repeat(MAX_BYTES - set.len())));
    assert_eq!(verdict_of(&verifier, &token).await, OK);
}

#[tokio::test]
async fn a_server_that_is_not_there_or_never_answers_is_given_up() {
    let publisher = Publisher::start(&[Signer::Ec.jwk("e")]).await;
    publisher.open(false);
    let (verifier, _) = publisher.verifier();
    assert_eq!(verdict_of(&verifier, &Signer::Ec.token(Some("e"))).await, UNAVAILABLE);
    let gone = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap();
    let key_set = Some(url_of_key_set(&format!("http://{gone}/")).unwrap());
    let settings = Settings { key_set, ..Settings::default() };
    let verifier = Verifier::new(&settings, Clock::manual(at(NOW))).unwrap();
    assert_eq!(verdict_of(&verifier, &Signer::Ec.token(Some("e"))).await, UNAVAILABLE);
}

#[tokio::test]
async fn a_secret_in_a_set_is_no_key() {
    let secret = Signer::Secret("a secret that somebody published by mistake");
    let publisher = Publisher::start(&[secret.jwk("s"), Signer::Rsa.jwk("r")]).await;
    let settings = Settings {
        key_set: Some(publisher.url()),
        secret: Some("the server's own secret, which nobody knows".into()),
        ..Settings::default()
    };
    let both = Verifier::new(&settings, Clock::manual(at(NOW))).unwrap();
    let (alone, _) = publisher.verifier();
    for verifier in [&both, &*alone] {
        let refused = verifier.user_of(&secret.token(Some("s"))).await;
        assert!(matches!(refused, Err(TokenError::Invalid(_))), "{refused:?}");
    }
    assert_eq!(publisher.fetches(), 0, "no set is asked about HS256");
    // Nor is a public key's text, or its numbers, a secret.
    let jwk = Signer::Rsa.jwk("r");
    let modulus: &'static str = jwk["n"].as_str().unwrap().to_owned().leak();
    let refused = alone.user_of(&Signer::Secret(modulus).token(Some("r"))).await;
    assert!(matches!(refused, Err(TokenError::Invalid(_))), "{refused:?}");
    // Named RS256 or ES256, it does not become one either.
    for algorithm in ["RS256", "ES256"] {
        let token = secret.sign(&json!({"alg": algorithm, "kid": "s"}), &claims());
        assert_eq!(verdict_of(&alone, &token).await, REFUSED);
    }
}

#[test]
fn of_a_set_only_keys_that_are_meant_and_fit_are_read() {
    let with = |name: &str, value: Value| {
        let mut jwk = Signer::Rsa.jwk("r");
        jwk[name] = value;
        jwk
    };
    let ec = |name: &str, value: &str| {
        let mut jwk = Signer::Ec.jwk("e");
        jwk[name] = value.into();
        jwk
    };
    let count = |jwk: &Value| read(json!({ "keys": [jwk] }).to_string().as_bytes()).unwrap().len();
    for read in [
        Signer::Rsa.jwk("r"),
        Signer::Ec.jwk("e"),
        with("use", Value::Null),
        with("alg", "RS256".into()),
        with("alg", Value::Null),
        with("key_ops", json!(["verify"])),
        with("x5c", json!(["AAAA"])),
        ec("alg", "ES256"),
    ] {
        assert_eq!(count(&read), 1, "{read}");
    }
    let small = "x".repeat(171);
    for skipped in [
        with("use", "enc".into()),
        with("use", json!(["sig"])),
        with("alg", "RS512".into()),
        with("alg", "PS256".into()),
        with("alg", "ES256".into()),
        with("alg", "HS256".into()),
        with("key_ops", json!(["sign"])),
        with("key_ops", json!([])),
        with("key_ops", json!("verify")),
        with("kty", "rsa".into()),
        with("kty", "oct".into()),
        with("kty", 5.into()),
        with("n", small.into()),
        with("n", "".into()),
        with("n", "!".into()),
        with("n", Value::Null),
        with("n", "x".repeat(4_096).into()),
        with("e", "".into()),
        with("e", "AQ".into()),
        with("e", 65_537.into()),
        ec("crv", "P-384"),
        ec("crv", "secp256k1"),
        ec("alg", "ES384"),
        ec("alg", "RS256"),
        ec("x", "AAAA"),
        ec("y", "AAAA"),
        ec("y", Signer::OtherEc.jwk("f")["y"].as_str().unwrap()),
        json!({"kty": "OKP", "crv": "Ed25519", "x": "AAAA"}),
        json!({}),
        json!("r"),
        json!(null),
    ] {
        assert_eq!(count(&skipped), 0, "{skipped}");
    }
}

#[test]
fn a_set_comes_over_tls_or_from_this_machine() {
    for url in [
        "https://id.example/.well-known/jwks.json",
        "https://id.example/keys?p=policy",
        "http://127.0.0.1:8081/keys",
        "http://[::1]/keys",
        "http://localhost:8081/keys",
    ] {
        assert!(url_of_key_set(url).is_ok(), "{url}");
    }
    for url in [
        "http://id.example/keys",
        "http://10.0.0.1/keys",
        "http://localhost.example/keys",
        "https://user:hunter2@id.example/keys",
        "https://user@id.example/keys",
        "file:///etc/keys",
        "ftp://127.0.0.1/keys",
        "/keys",
        "id.example",
        "",
    ] {
        let problem = url_of_key_set(url).unwrap_err();
        assert!(problem.contains("https://") && !problem.contains("hunter2"), "{url}");
    }
}
