//! Users of another service: a server that knows them by their tokens, and that service beside them.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::harness::{Answer, Backend, Client, Options, Server, all_of, shape, unix_now};

pub const SERVICE_TOKEN: &str = "a-token-that-only-services-have-0123456789";
pub const JWT_SECRET: &str = "what both services know, and nobody else, 0123456789";

/// A token of that user for another hour.
pub fn token(user: &str) -> String {
    let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let claims = json!({"sub": user, "exp": unix_now() / 1_000 + 3_600});
    let message = format!("{}.{}", part(json!({"alg": "HS256", "typ": "JWT"})), part(claims));
    let mut mac = Hmac::<Sha256>::new_from_slice(JWT_SECRET.as_bytes()).unwrap();
    mac.update(message.as_bytes());
    format!("{message}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

/// A server that another service uses, and whose users come with its tokens.
pub struct House {
    pub server: Server,
}

impl House {
    pub async fn open(backend: &Backend) -> House {
        House::open_with(Options::on(backend)).await
    }

    pub async fn open_with(options: Options) -> House {
        let options = options.var("SERVICE_TOKEN", SERVICE_TOKEN).var("JWT_SECRET", JWT_SECRET);
        House { server: Server::start(options).await }
    }

    /// The other service.
    pub fn service(&self) -> Client {
        self.server.anonymous().with_header("X-Internal-Key", SERVICE_TOKEN)
    }

    pub fn user(&self, name: &str) -> Client {
        self.server.anonymous().with_key(&token(name))
    }

    /// Adds credits that the service says the user has bought.
    pub async fn give(&self, user: &str, credits: i64) {
        let number = uuid::Uuid::now_v7().to_string();
        let record = json!({"productId": "credits", "transactionId": number});
        let body = json!({"credits": credits, "purchase_record": record, "user_id": user});
        self.service().post("/api/billing/credits/add", body).await.expect(200);
    }

    pub async fn set_price(&self, model: &str, price_per_m_token: i64, category: &str) {
        let price = json!({"price_per_m_token": price_per_m_token, "category": category});
        let put = self.service().put(&format!("/api/billing/pricing/{model}"), price).await;
        assert!([200, 201].contains(&put.status), "{put}");
    }

    /// The id of the account that a user was given.
    pub async fn account_of(&self, user: &str) -> String {
        let accounts = all_of(&self.server.admin(), "/v1/accounts?limit=1000").await;
        let mut of_user = accounts.iter().filter(|account| account["user_id"] == user);
        let account = of_user.next().unwrap_or_else(|| panic!("no account of {user} in {accounts:?}"));
        assert!(of_user.next().is_none(), "two accounts of {user} in {accounts:?}");
        account["id"].as_str().unwrap().to_owned()
    }

    pub async fn suspend(&self, user: &str, suspended: bool) {
        let path = format!("/v1/accounts/{}", self.account_of(user).await);
        self.server.admin().patch(&path, json!({"suspended": suspended})).await.expect(200);
    }
}

/// What a consumption left of its model.
#[track_caller]
pub fn consumed(answer: &Answer) -> i64 {
    let body = answer.expect(200);
    shape(&body, &["success", "remaining_tokens"]);
    assert_eq!(body["success"], true);
    body["remaining_tokens"].as_i64().unwrap()
}

/// Every line of the caller's wallet, newest first.
pub async fn lines(client: &Client) -> Vec<Value> {
    let mut lines = Vec::new();
    let mut path = "/api/billing/transactions?limit=1000".to_owned();
    loop {
        let page = client.get(&path).await.expect(200);
        lines.extend(page["transactions"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/billing/transactions?limit=1000&cursor={cursor}"),
            None => return lines,
        }
    }
}
