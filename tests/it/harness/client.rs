//! A client with a key, and answers that can say what they answer.

use std::{collections::BTreeSet, ops::Deref, time::Duration};

use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// Speaks to one server as one caller.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    headers: HeaderMap,
}

impl Client {
    /// A caller without credentials.
    pub fn new(base: String) -> Client {
        // No test speaks TLS, but a reqwest client can't be built without a provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .timeout(Duration::from_secs(60))
            .redirect(reqwest::redirect::Policy::none())
            .tls_certs_only([])
            .no_proxy()
            .build()
            .unwrap();
        Client { http, base, headers: HeaderMap::new() }
    }

    /// The same server, as the caller who has this key.
    pub fn with_key(&self, key: &str) -> Client {
        self.with_header("authorization", &format!("Bearer {key}"))
    }

    /// The same server with this header and no other.
    pub fn with_header(&self, name: &str, value: &str) -> Client {
        let mut headers = HeaderMap::new();
        headers
            .insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        Client { headers, ..self.clone() }
    }

    /// The same caller, asking another server.
    pub fn at(&self, server: &Client) -> Client {
        Client { http: server.http.clone(), base: server.base.clone(), headers: self.headers.clone() }
    }

    pub fn call(&self, method: &str, path: &str) -> Call {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let asked = format!("{method} {path}");
        let request = self.http.request(method, format!("{}{path}", self.base)).headers(self.headers.clone());
        Call { request, asked }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path).send().await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.call("DELETE", path).send().await
    }

    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path).json(&body).send().await
    }

    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.call("PUT", path).json(&body).send().await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Answer {
        self.call("PATCH", path).json(&body).send().await
    }

    pub async fn cast(&self, spell: &str, payload: Value) -> Answer {
        self.casting(spell, payload).send().await
    }

    /// A cast of `echo`.
    pub async fn echo(&self) -> Answer {
        self.cast("echo", json!({"hello": "world"})).await
    }

    /// A cast yet to be sent.
    pub fn casting(&self, spell: &str, payload: Value) -> Call {
        self.call("POST", "/v1/cast").json(&json!({"spell_name": spell, "payload": payload}))
    }

    /// A cast that names an `Idempotency-Key`.
    pub async fn cast_once(&self, key: &str, spell: &str, payload: Value) -> Answer {
        self.casting(spell, payload).header("Idempotency-Key", key).send().await
    }

    /// Sets the account's budget of that period to that hard limit.
    pub async fn limit(&self, period: &str, hard_limit_cents: i64) {
        let budget = json!({"period": period, "hard_limit_cents": hard_limit_cents});
        self.put("/v1/budgets", budget).await.expect(200);
    }

    /// `GET /v1/budgets/usage`, with a query such as `?period=daily`.
    pub async fn usage(&self, query: &str) -> Value {
        self.get(&format!("/v1/budgets/usage{query}")).await.expect(200)
    }
}

/// An account with one key, and a client that uses it.
#[derive(Clone)]
pub struct Customer {
    client: Client,
    pub account_id: String,
    pub key_id: String,
    pub key: String,
}

impl Customer {
    /// A new account and its first key, made by an admin.
    pub async fn create(admin: &Client, name: &str) -> Customer {
        let account = admin.post("/v1/accounts", json!({"name": name})).await.expect(201);
        let account_id = account["id"].as_str().unwrap().to_owned();
        Customer::of(admin, &account_id, json!({})).await
    }

    /// Another key of the same account; `options` as in `POST /v1/keys`.
    pub async fn another_key(&self, admin: &Client, options: Value) -> Customer {
        Customer::of(admin, &self.account_id, options).await
    }

    async fn of(admin: &Client, account_id: &str, options: Value) -> Customer {
        let mut body = json!({"name": "a key", "account_id": account_id});
        for (name, value) in options.as_object().unwrap() {
            body[name] = value.clone();
        }
        let key = admin.post("/v1/keys", body).await.expect(201);
        let secret = key["api_key"].as_str().unwrap().to_owned();
        Customer {
            client: admin.with_key(&secret),
            account_id: account_id.to_owned(),
            key_id: key["id"].as_str().unwrap().to_owned(),
            key: secret,
        }
    }

    /// The client alone, to move into a task.
    pub fn client(&self) -> Client {
        self.client.clone()
    }
}

impl Deref for Customer {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A request that is being put together.
pub struct Call {
    request: reqwest::RequestBuilder,
    asked: String,
}

impl Call {
    pub fn header(self, name: &str, value: &str) -> Call {
        self.header_bytes(name, value.as_bytes())
    }

    pub fn header_bytes(self, name: &str, value: &[u8]) -> Call {
        let value = HeaderValue::from_bytes(value).unwrap();
        Call { request: self.request.header(name, value), asked: self.asked }
    }

    pub fn json(self, body: &Value) -> Call {
        self.body("application/json", body.to_string())
    }

    /// Any body, declared as what it may not be.
    pub fn body(self, content_type: &str, body: impl Into<Vec<u8>>) -> Call {
        let body = body.into();
        let shown: String = String::from_utf8_lossy(&body).chars().take(300).collect();
        let request = self.request.header("content-type", content_type).body(body);
        Call { request, asked: format!("{} {shown}", self.asked) }
    }

    /// A body without a type.
    pub fn untyped(self, body: &'static str) -> Call {
        Call { request: self.request.body(body), asked: format!("{} (untyped) {body}", self.asked) }
    }

    /// A body sent in chunks, so that nothing says beforehand how long it is.
    pub fn chunked(self, chunks: Vec<Vec<u8>>) -> Call {
        let chunks = chunks.into_iter().map(Ok::<_, std::convert::Infallible>);
        let body = reqwest::Body::wrap_stream(futures_util::stream::iter(chunks));
        let request = self.request.header("content-type", "application/json").body(body);
        Call { request, asked: format!("{} (chunked)", self.asked) }
    }

    /// Gives up after that long, as a caller does who hangs up.
    pub fn hang_up_after(self, patience: Duration) -> Call {
        Call { request: self.request.timeout(patience), asked: self.asked }
    }

    pub async fn send(self) -> Answer {
        let asked = self.asked.clone();
        match self.try_send().await {
            Ok(answer) => answer,
            Err(problem) => panic!("no answer to {asked}: {problem:?}"),
        }
    }

    /// For when the server may be gone.
    pub async fn try_send(self) -> Result<Answer, reqwest::Error> {
        let answer = self.request.send().await?;
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let text = answer.text().await?;
        Ok(Answer { asked: self.asked, status, headers, text })
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub struct Answer {
    asked: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    /// The body, null where there is none.
    #[track_caller]
    pub fn body(&self) -> Value {
        if self.text.is_empty() {
            return Value::Null;
        }
        // As deep as it comes: how deep is one of the things tested.
        let mut json = serde_json::Deserializer::from_str(&self.text);
        json.disable_recursion_limit();
        let body = Value::deserialize(&mut json).and_then(|body| json.end().map(|()| body));
        body.unwrap_or_else(|problem| panic!("no JSON ({problem}): {self}"))
    }

    /// The body of an answer that must have this status.
    #[track_caller]
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self}");
        self.body()
    }

    /// The body of an error of this status: a code, a sentence, a request id.
    #[track_caller]
    pub fn expect_error(&self, status: u16) -> Value {
        let body = self.expect(status);
        let code = body["error"].as_str().unwrap_or_else(|| panic!("no code: {self}"));
        let is_code = !code.is_empty() && code.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(is_code, "not a code: {self}");
        assert!(body["message"].as_str().is_some_and(|m| m.len() > 5), "no sentence: {self}");
        assert!(!self.header("x-request-id").is_empty(), "{self}");
        body
    }

    /// The body of the error that has this code.
    #[track_caller]
    pub fn expect_code(&self, status: u16, code: &str) -> Value {
        let body = self.expect_error(status);
        assert_eq!(body["error"], code, "{self}");
        body
    }

    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no header {name}: {self}"));
        value.to_str().unwrap()
    }

    #[track_caller]
    pub fn number_in(&self, header: &str) -> u64 {
        self.header(header).parse().unwrap_or_else(|_| panic!("{header} is no number: {self}"))
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text: String = self.text.chars().take(1000).collect();
        write!(f, "{} gave {} {text}\nwith {:?}", self.asked, self.status, self.headers)
    }
}

/// Asserts that an object has these fields and no others.
#[track_caller]
pub fn shape(value: &Value, fields: &[&str]) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    let given: BTreeSet<&str> = object.keys().map(String::as_str).collect();
    let wanted: BTreeSet<&str> = fields.iter().copied().collect();
    assert_eq!(given, wanted, "the fields of {value}");
}

/// The values of one text field over a list.
#[track_caller]
pub fn names(list: &[Value], field: &str) -> Vec<String> {
    list.iter()
        .map(|item| item[field].as_str().unwrap_or_else(|| panic!("{field} of {item}")).to_owned())
        .collect()
}

/// Every item of a list, page by page; `path` with a query.
pub async fn all_of(client: &Client, path: &str) -> Vec<Value> {
    let mut items = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = client.get(&format!("{path}{cursor}")).await.expect(200);
        shape(&page, &["data", "next_cursor"]);
        items.extend(page["data"].as_array().unwrap().iter().cloned());
        match page["next_cursor"].as_str() {
            Some(next) => {
                let next: String = url::form_urlencoded::byte_serialize(next.as_bytes()).collect();
                cursor = format!("&cursor={next}");
            }
            None => return items,
        }
    }
}

/// Every cast in the caller's books.
pub async fn all_casts(client: &Client) -> Vec<Value> {
    all_of(client, "/v1/casts?limit=1000").await
}

/// Calls, spent and reserved, as a usage answer gives them.
#[track_caller]
pub fn usage_cents(usage: &Value) -> (i64, i64, i64) {
    let number = |field: &str| usage[field].as_i64().unwrap_or_else(|| panic!("{field} of {usage}"));
    (number("total_calls"), number("total_cost_cents"), number("reserved_cents"))
}

impl Answer {
    /// Each series and its value in Prometheus' text format.
    #[track_caller]
    pub fn expect_metrics(&self) -> Vec<(String, f64)> {
        assert_eq!(self.status, 200, "{self}");
        let lines = self.text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines
            .map(|line| {
                let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
                (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("no number: {line}")))
            })
            .collect()
    }
}
