//! What Stripe tells of what was bought here: the events of `tests/stripe/events`, filled in with the
//! ids that Checkout was opened with, signed and delivered.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Map, Value, json};
use sha2::Sha256;

use crate::{
    harness::{Answer, Backend, Client, Customer, Options, Server, all_of, shape, unix_now},
    stripe_server::{StripeServer, WEBHOOK_SECRET},
};

/// How Stripe shapes its events: as its older API versions do, or as newer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Older,
    Newer,
}

impl Shape {
    pub const BOTH: [Shape; 2] = [Shape::Older, Shape::Newer];

    fn folder(self) -> PathBuf {
        let name = if self == Shape::Older { "older" } else { "newer" };
        repository().join("tests/stripe/events").join(name)
    }

    /// The names of all the events that there are, without `.json`.
    pub fn names(self) -> Vec<String> {
        let files = std::fs::read_dir(self.folder()).unwrap().map(|file| file.unwrap().file_name());
        let files = files.filter_map(|name| Some(name.to_str()?.strip_suffix(".json")?.to_owned()));
        let mut names: Vec<String> = files.collect();
        names.sort();
        assert_eq!(names.len(), 15, "a file for each type, and two for a completed session");
        names
    }
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A server, and the Stripe through which it sells.
pub struct Shop {
    pub server: Server,
    pub stripe: StripeServer,
}

impl Shop {
    pub async fn open(backend: &Backend) -> Shop {
        Shop::open_with(Options::on(backend)).await
    }

    pub async fn open_with(options: Options) -> Shop {
        let stripe = StripeServer::start().await;
        Shop { server: Server::start(stripe.sells_for(options)).await, stripe }
    }

    /// Opens Checkout for `buyer`, as it was asked for by `body`.
    pub async fn checkout(&self, buyer: &Client, body: Value) -> Purchase {
        Purchase::open(&self.stripe, buyer, body).await
    }

    /// Has `buyer` buy credits: Checkout, and what Stripe tells of its payment.
    pub async fn sell_credits(&self, buyer: &Client, credits: i64) -> Purchase {
        let purchase = self.checkout(buyer, json!({ "credits": credits })).await;
        self.tell(&purchase.paid()).await;
        purchase
    }

    /// Has `buyer` subscribe to `pro`, with all that Stripe tells of it.
    pub async fn sell_pro(&self, buyer: &Client) -> Purchase {
        let purchase = self.checkout(buyer, json!({"plan": "pro"})).await;
        for event in purchase.told_of_subscribing([0; 4]) {
            self.tell(&event).await;
        }
        assert_eq!(plan_and_status(buyer).await, ("pro".to_owned(), "active".to_owned()));
        purchase
    }

    /// Delivers an event, which has to be taken.
    pub async fn tell(&self, event: &Event) {
        tell(self.server.anonymous(), event).await;
    }

    pub async fn customer(&self) -> Customer {
        self.server.customer("acme").await
    }

    /// The events that an operator has to see to, as pairs of id and status.
    pub async fn open_events(&self) -> Vec<(String, String)> {
        let open = all_of(&self.server.admin(), "/v1/webhooks?limit=1000").await;
        let text = |event: &Value, field: &str| event[field].as_str().unwrap().to_owned();
        open.iter().map(|event| (text(event, "id"), text(event, "status"))).collect()
    }
}

/// Delivers an event, which has to be taken.
pub async fn tell(client: &Client, event: &Event) {
    let answer = event.deliver(client).await;
    assert_eq!(answer.expect(200), json!({"received": true}), "{answer}");
}

/// Something that somebody is about to buy, by all that Stripe calls it.
#[derive(Clone, Debug)]
pub struct Purchase {
    shape: Shape,
    mode: String,
    values: Map<String, Value>,
}

impl Purchase {
    /// Opens Checkout through the platform.
    pub async fn open(stripe: &StripeServer, buyer: &Client, body: Value) -> Purchase {
        let session = buyer.post("/v1/billing/checkout", body).await.expect(200);
        let session = session["session_id"].as_str().unwrap();
        let form = stripe.opened(session);
        let field = |name: &str| form.get(name).cloned();
        let amount: i64 =
            field("line_items[0][price_data][unit_amount]").map_or(1_000, |cents| cents.parse().unwrap());
        let currency = field("line_items[0][price_data][currency]").unwrap_or("usd".to_owned());
        let price = field("line_items[0][price]").unwrap_or(fresh("price"));
        let mut purchase =
            Purchase { shape: Shape::Newer, mode: field("mode").unwrap(), values: somebodys(amount) };
        purchase.know(json!({
            "session": session, "purchase": field("client_reference_id"), "customer": field("customer"),
            "currency": currency, "price": price,
        }));
        purchase
    }

    /// One that was never opened here.
    pub fn somebody_elses() -> Purchase {
        Purchase { shape: Shape::Newer, mode: "payment".to_owned(), values: somebodys(1_000) }
    }

    /// The same, as if it were of a plan.
    pub fn subscribing(self) -> Purchase {
        Purchase { mode: "subscription".to_owned(), ..self }
    }

    fn know(&mut self, values: Value) {
        let Value::Object(values) = values else { panic!("no values: {values}") };
        self.values.extend(values);
    }

    pub fn shaped(self, shape: Shape) -> Purchase {
        Purchase { shape, ..self }
    }

    /// The same, with other values for some names.
    pub fn but(&self, values: Value) -> Purchase {
        let mut changed = self.clone();
        changed.know(values);
        changed
    }

    pub fn id(&self, name: &str) -> &str {
        self.values[name].as_str().unwrap()
    }

    /// An event about it, which happened `seconds` from now; a completed session's by its type alone.
    pub fn event(&self, name: &str, seconds: i64) -> Event {
        let name = match name {
            "checkout.session.completed" => format!("{name}.{}", self.mode),
            name => name.to_owned(),
        };
        let id = fresh("evt");
        let text = std::fs::read_to_string(self.shape.folder().join(format!("{name}.json"))).unwrap();
        let own = json!({"event": id, "created": unix_now() / 1_000 + seconds});
        let own = own.as_object().unwrap().iter();
        let filled = self.values.iter().chain(own).fold(text, |text, (name, value)| {
            let inside = value.as_str().map_or(value.to_string(), str::to_owned);
            let text = text.replace(&format!("\"{{{{{name}}}}}\""), &value.to_string());
            text.replace(&format!("{{{{{name}}}}}"), &inside)
        });
        assert!(!filled.contains("{{"), "{name} wants more: {filled}");
        Event { id, body: filled }
    }

    /// A completed, paid session.
    pub fn paid(&self) -> Event {
        self.event("checkout.session.completed", 0)
    }

    /// What Stripe tells when a plan is bought, and how many seconds from now each of it happened.
    pub fn told_of_subscribing(&self, seconds: [i64; 4]) -> Vec<Event> {
        vec![
            self.but(json!({"status": "incomplete"})).event("customer.subscription.created", seconds[0]),
            self.event("customer.subscription.updated", seconds[1]),
            self.event("invoice.paid", seconds[2]),
            self.event("checkout.session.completed", seconds[3]),
        ]
    }

    /// A refund of `cents` so far, `seconds` from now.
    pub fn refunded(&self, cents: i64, seconds: i64) -> Event {
        let refunded = json!({"amount_refunded": cents, "refunded": self.values["amount"] == cents});
        self.but(refunded).event("charge.refunded", seconds)
    }

    pub fn dispute_opened(&self, seconds: i64) -> Event {
        self.event("charge.dispute.created", seconds)
    }

    pub fn dispute_closed(&self, status: &str, seconds: i64) -> Event {
        self.but(json!({ "status": status })).event("charge.dispute.closed", seconds)
    }
}

/// Values of nobody here.
fn somebodys(amount: i64) -> Map<String, Value> {
    let now = unix_now() / 1_000;
    let values = json!({
        "session": fresh("cs_test"), "purchase": fresh("pur"), "customer": fresh("cus"),
        "subscription": fresh("sub"), "invoice": fresh("in"), "payment_intent": fresh("pi"),
        "charge": fresh("ch"), "dispute": fresh("dp"), "price": fresh("price"), "amount": amount,
        "amount_refunded": 0, "refunded": false, "currency": "usd", "period_start": now,
        "period_end": now + 30 * 86_400, "payment_status": "paid", "status": "active",
        "cancel_at_period_end": false, "billing_reason": "subscription_create",
    });
    let Value::Object(values) = values else { unreachable!() };
    values
}

/// An id that nothing else has.
pub fn fresh(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::now_v7().simple())
}

/// An event, as its bytes.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    pub body: String,
}

impl Event {
    /// Any object in an event of that type.
    pub fn about(kind: &str, object: &Value) -> Event {
        let id = fresh("evt");
        let created = unix_now() / 1_000;
        let event = json!({"id": id, "object": "event", "type": kind, "created": created,
                           "data": {"object": object}});
        Event { id, body: event.to_string() }
    }

    /// The same event, with another value at `pointer`, such as `/data/object/currency`.
    pub fn with(&self, pointer: &str, value: Value) -> Event {
        let mut body: Value = serde_json::from_str(&self.body).unwrap();
        *body.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer}")) = value;
        Event { id: self.id.clone(), body: body.to_string() }
    }

    /// The same, told as an event of its own.
    pub fn anew(&self) -> Event {
        let id = fresh("evt");
        Event { body: self.body.replace(&self.id, &id), id }
    }

    pub async fn deliver(&self, client: &Client) -> Answer {
        deliver(client, self.body.as_bytes()).await
    }

    /// For when the server may be gone.
    pub async fn try_deliver(&self, client: &Client) -> Option<Answer> {
        let header = signature(WEBHOOK_SECRET, unix_now() / 1_000, self.body.as_bytes());
        posting(client, Some(&header), self.body.as_bytes()).try_send().await.ok()
    }
}

/// Delivers any bytes, signed.
pub async fn deliver(client: &Client, body: &[u8]) -> Answer {
    let header = signature(WEBHOOK_SECRET, unix_now() / 1_000, body);
    deliver_with(client, Some(&header), body).await
}

/// Delivers any bytes with that header `Stripe-Signature`.
pub async fn deliver_with(client: &Client, header: Option<&str>, body: &[u8]) -> Answer {
    posting(client, header, body).send().await
}

fn posting(client: &Client, header: Option<&str>, body: &[u8]) -> crate::harness::Call {
    let call = client.call("POST", "/webhooks/stripe").body("application/json; charset=utf-8", body);
    match header {
        Some(header) => call.header("Stripe-Signature", header),
        None => call,
    }
}

/// What Stripe signs, in hex.
pub fn hex_signature(secret: &str, at: i64, body: &[u8]) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{at}.").as_bytes());
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

/// A header `Stripe-Signature` of the second `at`.
pub fn signature(secret: &str, at: i64, body: &[u8]) -> String {
    format!("t={at},v1={}", hex_signature(secret, at, body))
}

/// Has a program in `tests/stripe` answer each line of JSON with a line: what Stripe's own library
/// says.
pub async fn stripes_library(program: &'static str, lines: Vec<Value>) -> Vec<String> {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    let count = lines.len();
    let input = format!("{}\n", lines.join("\n"));
    let run = move || ask_program("node", &[program], input);
    let output = tokio::task::spawn_blocking(run).await.unwrap();
    let answers: Vec<String> = output.lines().map(str::to_owned).collect();
    assert_eq!(answers.len(), count, "{program} said {output}");
    answers
}

/// What a program in `tests/stripe` says to `input`.
pub fn ask_program(runner: &str, arguments: &[&str], input: String) -> String {
    assert!(std::env::var("TEST_STRIPE_TOOLS").is_ok(), "TEST_STRIPE_TOOLS is not set: run scripts/test");
    let mut command = Command::new(runner);
    command.args(arguments).current_dir(repository().join("tests/stripe"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|problem| panic!("no {runner}: {problem}"));
    let mut stdin = child.stdin.take().unwrap();
    // Beside reading: it answers while it is being asked.
    let writing = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writing.join().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{runner} {arguments:?}: {said}\n{complained}");
    said
}

/// The credits that the caller has, as the wallet shows them.
pub async fn credits(client: &Client) -> i64 {
    let balance = client.get("/api/billing/balance").await.expect(200);
    shape(&balance, &["credits", "allocated_tokens"]);
    assert_eq!(balance["allocated_tokens"], json!({}));
    balance["credits"].as_i64().unwrap_or_else(|| panic!("no integer in {balance}"))
}

/// The credits that the caller owes.
pub async fn credits_owed(client: &Client) -> i64 {
    client.get("/v1/billing").await.expect(200)["credits_owed"].as_i64().unwrap()
}

/// What plan the caller is on, and how its subscription is.
pub async fn plan_and_status(client: &Client) -> (String, String) {
    let billing = client.get("/v1/billing").await.expect(200);
    let text =
        |field: &str| billing[field].as_str().unwrap_or_else(|| panic!("{field} of {billing}")).to_owned();
    (text("plan"), text("status"))
}

/// Asserts that nothing was granted to who asks.
pub async fn assert_nothing_granted(client: &Client, what: &str) {
    let billing = client.get("/v1/billing").await.expect(200);
    let granted = (&billing["plan"], &billing["status"], &billing["credits"], &billing["credits_owed"]);
    assert_eq!(granted, (&json!("free"), &json!("inactive"), &json!(0), &json!(0)), "after {what}");
    assert_eq!(credits(client).await, 0, "after {what}");
}

/// Every order of `items`.
pub fn permutations<T: Clone>(items: &[T]) -> Vec<Vec<T>> {
    let Some((first, rest)) = items.split_first() else { return vec![vec![]] };
    let insert = |permuted: &Vec<T>, at: usize| {
        let mut next = permuted.clone();
        next.insert(at, first.clone());
        next
    };
    let rest = permutations(rest);
    rest.iter().flat_map(|permuted| (0..=permuted.len()).map(move |at| insert(permuted, at))).collect()
}
