//! Google Play on a socket of our own: what it says, and what it fails to say.

use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use jsonwebtoken::{DecodingKey, Validation};
use serde_json::{Value, json};

use super::*;
use crate::wallet::purchase::testing::Server;

const KEY: &str = include_str!("service_account.pem");
const PUBLIC_KEY: &[u8] = include_bytes!("service_account.pub.pem");
const NOW: i64 = 1_763_689_320;
const USER: &str = "user|7";

fn web_url(text: &str) -> Result<Url, &'static str> {
    Url::parse(text).map_err(|_| "no address")
}

fn key_file(token_uri: &str) -> String {
    json!({
        "type": "service_account", "project_id": "x", "private_key_id": "1", "private_key": KEY,
        "client_email": "play@x.iam.gserviceaccount.com", "token_uri": token_uri,
    })
    .to_string()
}

fn client(base: &str) -> Client {
    let settings = Settings {
        package: "com.example.app".to_owned(),
        api_base: format!("{base}/play/").parse().unwrap(),
        account: ServiceAccount::read(&key_file(&format!("{base}/token")), web_url).unwrap(),
        allow_test: false,
    };
    Client::new(settings, Clock::manual(Time(NOW * 1_000))).unwrap()
}

fn paid() -> Value {
    json!({
        "kind": "androidpublisher#productPurchase", "purchaseTimeMillis": "1763689320000",
        "purchaseState": 0, "consumptionState": 0, "orderId": "GPA.1-2", "acknowledgementState": 0,
        "obfuscatedExternalAccountId": USER, "regionCode": "JP",
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut purchase = paid();
    purchase[field] = value;
    purchase
}

/// A Google that gives access tokens of an hour and says this of every purchase.
async fn google(status: u16, purchase: impl ToString) -> Server {
    let purchase = purchase.to_string();
    Server::start(move |request| match request.starts_with("POST /token ") {
        true => (200, token("ya29.first")),
        false => (status, purchase.clone()),
    })
    .await
}

fn token(text: &str) -> String {
    json!({"access_token": text, "expires_in": 3599, "token_type": "Bearer"}).to_string()
}

fn record(product_id: &str) -> Record {
    Record { product_id: product_id.to_owned(), transaction_id: "GPA.1-2".to_owned(), proof: None }
}

/// What becomes of a purchase of so many credits.
async fn verify(client: &Client, credits: i64) -> Result<Verified, Unverified> {
    let products = Products([("c.100".to_owned(), 100), ("c?/..#100".to_owned(), 100)].into());
    client.verify(&products, &record("c.100"), "abc.AO-J1_x", credits, Owner::User(USER)).await
}

/// The same, where Google says this of it.
async fn told(purchase: Value) -> Result<Verified, Unverified> {
    verify(&client(&google(200, purchase).await.base), 100).await
}

fn refused(outcome: Result<Verified, Unverified>, why: &str) {
    match outcome {
        Err(Unverified::Invalid(sentence)) => assert!(sentence.contains(why), "{why}: {sentence}"),
        other => panic!("{why}: {other:?}"),
    }
}

const UNAVAILABLE: Result<Verified, Unverified> = Err(Unverified::Unavailable(Provider::Google));

#[tokio::test]
async fn what_google_play_says_was_paid_is_taken() {
    let server = google(200, paid()).await;
    let client = client(&server.base);
    let verified = Verified {
        transaction_id: "GPA.1-2".to_owned(),
        product_id: "c.100".to_owned(),
        verified_by: Provider::Google,
        credits: 100,
        payment: Payment::default(),
        amount_cents: 0,
    };
    assert_eq!(verify(&client, 100).await, Ok(verified));
    let asked = server.asked("GET").remove(0);
    let path = "/play/androidpublisher/v3/applications/com.example.app/purchases/products/c.100/tokens/\
                abc.AO-J1_x";
    assert!(asked.starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{asked}");
    assert!(asked.contains("\r\nauthorization: Bearer ya29.first\r\n"), "{asked}");

    assert!(told(with("quantity", json!(1))).await.is_ok());
    assert!(told(with("productId", json!("c.100"))).await.is_ok());
    assert!(told(with("purchaseType", json!(1))).await.is_ok());
    assert!(told(with("obfuscatedExternalAccountId", Value::Null)).await.is_ok());
    let hashed = hex::encode(Sha256::digest(USER));
    assert!(told(with("obfuscatedExternalAccountId", json!(hashed))).await.is_ok());
}

#[tokio::test]
async fn the_assertion_is_signed_by_the_service_account_and_its_token_is_kept() {
    let server = google(200, paid()).await;
    let client = client(&server.base);
    let (first, second) = tokio::join!(verify(&client, 100), verify(&client, 100));
    assert!(first.is_ok() && second.is_ok() && verify(&client, 100).await.is_ok());
    let asked = server.asked("POST /token ");
    assert_eq!((asked.len(), server.asked("GET").len()), (1, 3));
    assert!(asked[0].contains("\r\ncontent-type: application/x-www-form-urlencoded\r\n"), "{}", asked[0]);
    let (_, body) = asked[0].split_once("\r\n\r\n").unwrap();
    let form: Vec<(String, String)> = serde_urlencoded::from_str(body).unwrap();
    let [(grant, grant_type), (name, assertion)] = form.as_slice() else { panic!("{body}") };
    assert_eq!((grant.as_str(), name.as_str()), ("grant_type", "assertion"));
    assert_eq!(grant_type, "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let mut rules = Validation::new(Algorithm::RS256);
    rules.validate_exp = false;
    rules.set_audience(&[format!("{}/token", server.base)]);
    let key = DecodingKey::from_rsa_pem(PUBLIC_KEY).unwrap();
    let claims = jsonwebtoken::decode::<Value>(assertion, &key, &rules).unwrap().claims;
    assert_eq!(claims["iss"], "play@x.iam.gserviceaccount.com");
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/androidpublisher");
    assert_eq!((&claims["iat"], &claims["exp"]), (&json!(NOW), &json!(NOW + 3_600)));

    // Shortly before its hour is over, it is not used any more.
    client.clock.set(Time((NOW + 3_538) * 1_000));
    assert!(verify(&client, 100).await.is_ok());
    assert_eq!(server.asked("POST").len(), 1);
    client.clock.set(Time((NOW + 3_539) * 1_000));
    assert!(verify(&client, 100).await.is_ok());
    assert_eq!(server.asked("POST").len(), 2);
}

#[tokio::test]
async fn a_token_that_was_taken_back_is_replaced_once() {
    let revoked = AtomicBool::new(true);
    let server = Server::start(move |request| match request {
        request if request.starts_with("POST") && revoked.load(Ordering::SeqCst) => (200, token("ya29.old")),
        request if request.starts_with("POST") => (200, token("ya29.new")),
        request if request.contains("Bearer ya29.new\r\n") => (200, paid().to_string()),
        _ => {
            revoked.store(false, Ordering::SeqCst);
            (401, String::new())
        }
    })
    .await;
    assert!(verify(&client(&server.base), 100).await.is_ok());
    assert_eq!((server.asked("POST").len(), server.asked("GET").len()), (2, 2));

    let server = google(401, "").await;
    assert_eq!(verify(&client(&server.base), 100).await, UNAVAILABLE);
    assert_eq!((server.asked("POST").len(), server.asked("GET").len()), (2, 2));
}

#[tokio::test]
async fn only_what_is_paid_and_this_users_is_taken() {
    for (field, value, why) in [
        ("purchaseState", json!(1), "canceled"),
        ("purchaseState", json!(2), "not paid yet"),
        ("purchaseState", json!(3), "not known"),
        ("purchaseType", json!(0), "tester's"),
        ("purchaseType", json!(3), "not known"),
        ("orderId", Value::Null, "no order"),
        ("orderId", json!(""), "no order"),
        ("quantity", json!(0), "no quantity"),
        ("obfuscatedExternalAccountId", json!("user|8"), "another user's"),
        ("obfuscatedExternalAccountId", json!(""), "another user's"),
    ] {
        refused(told(with(field, value)).await, why);
    }
    let mut tests = client(&google(200, with("purchaseType", json!(0))).await.base);
    tests.settings.allow_test = true;
    assert!(verify(&tests, 100).await.is_ok());
}

#[tokio::test]
async fn the_record_is_of_the_purchase() {
    for (field, value, sentence) in [
        ("orderId", json!("GPA.9"), "The purchase token's `transactionId` is `GPA.9`, not `GPA.1-2`."),
        ("productId", json!("c.500"), "The purchase token's `productId` is `c.500`, not `c.100`."),
        ("quantity", json!(2), "The purchase of 2 × `c.100` gives 200 credits, not 100."),
        ("quantity", json!(i64::MAX), "gives too many credits, not 100."),
    ] {
        let Err(Unverified::Mismatch(told)) = told(with(field, value)).await else { panic!("{field}") };
        assert!(told.ends_with(sentence), "{told}");
    }
    assert_eq!(
        verify(&client(&google(200, with("quantity", json!(2))).await.base), 200).await.unwrap().credits,
        200
    );
}

#[tokio::test]
async fn what_google_play_does_not_know_is_no_purchase() {
    for status in [400, 404, 410] {
        let server = google(status, json!({"error": {"code": status}})).await;
        refused(verify(&client(&server.base), 100).await, "knows no such purchase");
    }
}

#[tokio::test]
async fn a_google_that_fails_says_nothing_about_the_purchase() {
    for (status, body) in [
        (500, "{}".to_owned()),
        (503, String::new()),
        (429, String::new()),
        (403, String::new()),
        (302, paid().to_string()),
        (204, String::new()),
        (200, String::new()),
        (200, "{".to_owned()),
        (200, "[]".to_owned()),
        (200, "{}".to_owned()),
        (200, with("purchaseState", json!("0")).to_string()),
        (200, with("purchaseState", Value::Null).to_string()),
        (200, with("orderId", json!(7)).to_string()),
        (200, with("quantity", json!(1.0)).to_string()),
        (200, with("regionCode", json!("x".repeat(MAX_ANSWER_BYTES))).to_string()),
        (200, "[".repeat(50_000)),
    ] {
        let server = google(status, &body).await;
        assert_eq!(verify(&client(&server.base), 100).await, UNAVAILABLE, "{status} {body:.60}");
        assert_eq!(server.asked("GET").len(), 1, "{status} {body:.60}");
    }
    // Nobody listens, or nobody answers: neither to the purchase nor to the token.
    assert_eq!(verify(&client("http://127.0.0.1:1"), 100).await, UNAVAILABLE);
    let mut hurried = client(&google(0, "").await.base);
    hurried.within = Duration::from_millis(500);
    assert_eq!(verify(&hurried, 100).await, UNAVAILABLE);
    let mut hurried = client(&Server::start(|_| (0, String::new())).await.base);
    hurried.within = Duration::from_millis(500);
    assert_eq!(verify(&hurried, 100).await, UNAVAILABLE);
}

#[tokio::test]
async fn without_an_access_token_no_purchase_is_asked_about() {
    for (status, body) in [
        (400, json!({"error": "invalid_grant"}).to_string()),
        (500, String::new()),
        (200, "{}".to_owned()),
        (200, json!({"access_token": 1, "expires_in": 3599}).to_string()),
        (200, json!({"access_token": "a", "expires_in": -1}).to_string()),
    ] {
        let server = Server::start(move |_| (status, body.clone())).await;
        assert_eq!(verify(&client(&server.base), 100).await, UNAVAILABLE);
        assert!(server.asked("GET").is_empty());
    }
    // One that is no header's value, and one that is over at once.
    let server = Server::start(|_| (200, token("a\r\nb: c"))).await;
    assert_eq!(verify(&client(&server.base), 100).await, UNAVAILABLE);
    let calls = AtomicU16::new(0);
    let server = Server::start(move |request| match request.starts_with("POST") {
        true => {
            let n = calls.fetch_add(1, Ordering::SeqCst);
            (200, json!({"access_token": format!("ya29.{n}"), "expires_in": 0}).to_string())
        }
        false => (200, paid().to_string()),
    })
    .await;
    let client = client(&server.base);
    assert!(verify(&client, 100).await.is_ok() && verify(&client, 100).await.is_ok());
    assert_eq!(server.asked("POST").len(), 2);
}

#[tokio::test]
async fn no_product_and_no_token_leads_to_another_path() {
    let server = google(200, paid()).await;
    let client = client(&server.base);
    let products = Products([("c?/..#100".to_owned(), 100)].into());
    let ask = async |product: &str, token: &str| {
        client.verify(&products, &record(product), token, 100, Owner::User(USER)).await
    };
    assert!(ask("c?/..#100", "../a?b#c%2f").await.is_ok());
    let asked = server.asked("GET").remove(0);
    assert!(asked.contains("/purchases/products/c%3F%2F..%23100/tokens/..%2Fa%3Fb%23c%252f HTTP"), "{asked}");
    for none in ["", ".", "..", "a b", "a\n", "é", &"a".repeat(2_049)] {
        refused(ask("c?/..#100", none).await, "it is none");
    }
    assert!(matches!(ask("c.100", "token").await, Err(Unverified::Mismatch(_))));
    assert_eq!(server.asked("GET").len(), 1, "Google was asked for what is none");
}

#[test]
fn a_key_file_that_can_not_be_used_is_refused_without_a_word_of_it() {
    let wrong = [
        "hunter2".to_owned(),
        "{}".to_owned(),
        json!({"client_email": "a", "private_key": "hunter2", "token_uri": "https://a"}).to_string(),
        json!({"client_email": "a", "private_key": KEY, "token_uri": "hunter2"}).to_string(),
        json!({"client_email": "a", "private_key": KEY.replace("A", "B"), "token_uri": "https://a"})
            .to_string(),
        json!({
            "client_email": "a", "token_uri": "https://a",
            "private_key": rcgen::KeyPair::generate().unwrap().serialize_pem(),
        })
        .to_string(),
    ];
    for json in wrong {
        let told = ServiceAccount::read(&json, web_url).err().unwrap();
        assert!(told.starts_with("must ") && !told.contains("hunter2"), "{told}");
    }
}

#[test]
fn a_user_who_is_called_like_an_account_is_not_it() {
    assert!(is_of("acct_1", Owner::Account("acct_1")) && !is_of("acct_2", Owner::Account("acct_1")));
    assert!(!is_of("acct_1", Owner::User("acct_1")));
    let hashed = hex::encode(Sha256::digest("acct_1"));
    assert!(is_of(&hashed, Owner::User("acct_1")) && !is_of(&hashed, Owner::Account("acct_1")));
    assert!(
        is_of("ann", Owner::User("ann")) && is_of(&hex::encode(Sha256::digest("ann")), Owner::User("ann"))
    );
}

#[tokio::test]
async fn what_was_booked_is_consumed() {
    for (status, done) in [(204, true), (200, true), (403, false), (500, false), (0, false)] {
        let server = Server::start(move |request| match request.starts_with("POST /token ") {
            true => (200, token("ya29.first")),
            false => (status, String::new()),
        })
        .await;
        let client = Client { within: Duration::from_millis(300), ..client(&server.base) };
        assert_eq!(client.consume("c.100", "abc.AO-J1_x").await, done, "{status}");
        let asked = server.asked("POST /play/").remove(0);
        assert!(asked.contains("/products/c.100/tokens/abc.AO-J1_x:consume HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nauthorization: Bearer ya29.first\r\n"), "{asked}");
    }
    assert!(!client("http://127.0.0.1:1").consume("c.100", "abc").await);
}
