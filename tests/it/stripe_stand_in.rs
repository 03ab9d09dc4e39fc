//! `scripts/stripe-stand-in` as a child process: a Stripe that remembers what was bought at it, gives lists of
//! that, and sends its events, or keeps them to itself.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::{
    harness::{Client, Options, Server},
    stripe_events::{ask_program, repository},
    stripe_server::{SECRET_KEY, WEBHOOK_SECRET},
};

pub struct StandIn {
    child: Option<Child>,
    pub base: String,
    client: Client,
}

impl StandIn {
    pub fn start() -> StandIn {
        let mut child = Command::new("python3")
            .arg(repository().join("scripts/stripe-stand-in"))
            .args(["--webhook-secret", WEBHOOK_SECRET])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut base = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut base).unwrap();
        let base = base.trim().to_owned();
        assert!(base.starts_with("http://"), "the stand-in printed {base}");
        StandIn { child: Some(child), client: Client::new(base.clone()), base }
    }

    /// The same options, for a server that sells through this one.
    pub fn sells_for(&self, options: Options) -> Options {
        options
            .var("STRIPE_SECRET_KEY", SECRET_KEY)
            .var("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET)
            .var("STRIPE_API_BASE", &self.base)
    }

    /// From now on its events go to that server.
    pub async fn tells(&self, server: &Server) {
        let url = format!("http://127.0.0.1:{}/webhooks/stripe", server.port());
        self.control("configure", json!({"webhook_url": url})).await;
    }

    /// From now on nobody hears of its events.
    pub async fn tells_nobody(&self) {
        self.control("configure", json!({"webhook_url": null})).await;
    }

    /// What Stripe's own API does not have; the answer.
    pub async fn control(&self, path: &str, body: Value) -> Value {
        self.client.post(&format!("/_/{path}"), body).await.expect(200)
    }

    /// The same, whose object it gives; its events, if anybody hears of them, have to be taken.
    pub async fn happens(&self, path: &str, body: Value) -> Value {
        let mut done = self.control(path, body).await;
        let events = done["events"].as_array().unwrap();
        assert!(!events.is_empty(), "{done}");
        let taken = |event: &Value| event["status"].is_null() || event["status"] == 200;
        assert!(events.iter().all(taken), "{done}");
        done["object"].take()
    }

    /// All that is there was made an hour before.
    pub async fn ages(&self) {
        self.control("age", json!({"seconds": 3_600})).await;
    }

    /// Asks as somebody else who has the account's key, with a form.
    pub async fn asks(&self, path: &str, form: &[(&str, &str)]) -> Value {
        let form = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let key = format!("Bearer {SECRET_KEY}");
        let call = self.client.call("POST", path).header("Authorization", &key);
        call.body("application/x-www-form-urlencoded", form.as_bytes()).send().await.expect(200)
    }

    /// Every request to its API.
    pub async fn requests(&self) -> Vec<Value> {
        self.client.get("/_/requests").await.expect(200).as_array().unwrap().clone()
    }

    /// Holds requests against the description of Stripe's API.
    pub async fn judge(requests: Vec<Value>) {
        let count = requests.len();
        let check = move || ask_program("python3", &["check_requests.py"], json!(requests).to_string());
        let verdict = tokio::task::spawn_blocking(check).await.unwrap();
        assert_eq!(verdict, format!("{count} requests are as Stripe's description wants them\n"));
    }

    /// Nobody is there any more.
    pub fn ends(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
