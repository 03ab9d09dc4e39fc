//! A stand-in for Stripe: it remembers what it was asked, answers with thin objects, keeps answers by
//! idempotency key as Stripe does, and can be told to fail.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

use crate::harness::{Options, eventually};

pub const SECRET_KEY: &str = "sk_test_hunter2_of_the_stand_in";

/// By which events of this Stripe are signed.
pub const WEBHOOK_SECRET: &str = "whsec_of_the_stand_in";

pub type Form = BTreeMap<String, String>;

/// One request, as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub form: Form,
    /// The form as it went over the wire.
    pub body: String,
}

impl Asked {
    #[track_caller]
    pub fn field(&self, name: &str) -> &str {
        self.form.get(name).unwrap_or_else(|| panic!("no {name} in {self:?}"))
    }

    #[track_caller]
    pub fn key(&self) -> &str {
        self.headers.get("idempotency-key").unwrap_or_else(|| panic!("no idempotency key on {self:?}"))
    }
}

/// What a request meets, instead of its answer.
#[derive(Clone, Debug)]
pub enum Trouble {
    Status(u16, Value),
    /// It is carried out, and its answer lost.
    Drop,
    Hang,
    /// It is carried out once the gate is open.
    Gate(watch::Sender<bool>),
}

pub struct StripeServer {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    asked: Mutex<Vec<Asked>>,
    /// By idempotency key.
    answers: Mutex<HashMap<String, (Form, Value)>>,
    deleted: Mutex<BTreeSet<String>>,
    /// By payment intent.
    invoices: Mutex<BTreeMap<String, String>>,
    /// By path: for the next requests, one each.
    troubles: Mutex<HashMap<String, VecDeque<Trouble>>>,
    /// By path: for every request.
    down: Mutex<HashMap<String, Trouble>>,
}

impl StripeServer {
    pub async fn start() -> StripeServer {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State::default());
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        StripeServer { port, state, task }
    }

    /// The same options, for a server that sells through this one.
    pub fn sells_for(&self, options: Options) -> Options {
        options
            .var("STRIPE_SECRET_KEY", SECRET_KEY)
            .var("STRIPE_WEBHOOK_SECRET", WEBHOOK_SECRET)
            .var("STRIPE_API_BASE", format!("http://127.0.0.1:{}/stripe", self.port))
    }

    /// Every request to that path, in the order in which they came.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        self.state.asked.lock().unwrap().iter().filter(|asked| asked.path == path).cloned().collect()
    }

    pub fn all_asked(&self) -> usize {
        self.state.asked.lock().unwrap().len()
    }

    /// Every request, in the order in which they came.
    pub fn everything_asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// What the Checkout session of that id was opened with.
    #[track_caller]
    pub fn opened(&self, session: &str) -> Form {
        let answers = self.state.answers.lock().unwrap();
        let opened = answers.values().find(|(_, answer)| answer["id"] == session);
        opened.unwrap_or_else(|| panic!("no session {session}")).0.clone()
    }

    pub async fn wait_for(&self, path: &str, count: usize) {
        eventually(Duration::from_secs(10), path, || {
            let there = self.asked(path).len() >= count;
            async move { there.then_some(()) }
        })
        .await;
    }

    /// The next request to that path, after those that have trouble already, has this one.
    pub fn next(&self, path: &str, trouble: Trouble) {
        self.state.troubles.lock().unwrap().entry(path.to_owned()).or_default().push_back(trouble);
    }

    /// Every request to that path has this trouble, or none any more.
    pub fn always(&self, path: &str, trouble: Option<Trouble>) {
        let mut down = self.state.down.lock().unwrap();
        match trouble {
            Some(trouble) => drop(down.insert(path.to_owned(), trouble)),
            None => drop(down.remove(path)),
        }
    }

    /// The invoice is paid by that payment intent, as who asks for it is told.
    pub fn pays(&self, intent: &str, invoice: &str) {
        self.state.invoices.lock().unwrap().insert(intent.to_owned(), invoice.to_owned());
    }

    /// Deletes a customer.
    pub fn delete(&self, customer: &str) {
        self.state.deleted.lock().unwrap().insert(customer.to_owned());
    }
}

impl Drop for StripeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An error as Stripe puts it.
pub fn error(kind: &str, code: Option<&str>, param: Option<&str>) -> Value {
    json!({"error": {"type": kind, "code": code, "param": param,
                     "message": format!("No way, {SECRET_KEY}."), "doc_url": "https://stripe.example"}})
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    while let Some(asked) = next_request(&mut read).await {
        state.asked.lock().unwrap().push(asked.clone());
        let trouble = {
            let queued = state.troubles.lock().unwrap().get_mut(&asked.path).and_then(VecDeque::pop_front);
            let bare = asked.path.split('?').next().unwrap_or_default();
            let down = state.down.lock().unwrap();
            queued.or_else(|| down.get(&asked.path).or_else(|| down.get(bare)).cloned())
        };
        let (status, body) = match trouble {
            Some(Trouble::Status(status, body)) => (status, body),
            Some(Trouble::Hang) => return tokio::time::sleep(Duration::from_secs(60)).await,
            Some(Trouble::Gate(gate)) => {
                let _ = gate.subscribe().wait_for(|open| *open).await;
                answer(&asked, &state)
            }
            Some(Trouble::Drop) => return drop(answer(&asked, &state)),
            None => answer(&asked, &state),
        };
        let body = body.to_string();
        let head = format!(
            "HTTP/1.1 {status} Said\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        if write.write_all(head.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn next_request(read: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Asked> {
    let mut line = String::new();
    read.read_line(&mut line).await.ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        read.read_line(&mut line).await.ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => drop(headers.insert(name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.ok()?;
    let form = url::form_urlencoded::parse(&body);
    let form = form.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    let path = path.strip_prefix("/stripe").unwrap_or(&path).to_owned();
    let body = String::from_utf8_lossy(&body).into_owned();
    Some(Asked { method, path, headers, form, body })
}

fn answer(asked: &Asked, state: &State) -> (u16, Value) {
    if asked.headers.get("authorization") != Some(&format!("Bearer {SECRET_KEY}")) {
        return (401, error("invalid_request_error", None, None));
    }
    if asked.path.starts_with("/v1/invoice_payments?") {
        let intent = asked.path.rsplit('=').next().unwrap_or_default();
        let invoice = state.invoices.lock().unwrap().get(intent).cloned();
        let payments: Vec<Value> = invoice.map(|invoice| json!({"invoice": invoice})).into_iter().collect();
        return (200, json!({"object": "list", "data": payments, "has_more": false}));
    }
    let mut answers = state.answers.lock().unwrap();
    if let Some((form, body)) = answers.get(asked.key()) {
        return match *form == asked.form {
            true => (200, body.clone()),
            false => (400, error("idempotency_error", None, None)),
        };
    }
    let customer = asked.form.get("customer");
    if customer.is_some_and(|customer| state.deleted.lock().unwrap().contains(customer)) {
        return (400, error("invalid_request_error", Some("resource_missing"), Some("customer")));
    }
    let id = uuid::Uuid::now_v7().simple();
    let body = match asked.path.as_str() {
        "/v1/customers" => json!({"id": format!("cus_{id}"), "object": "customer"}),
        "/v1/checkout/sessions" => {
            json!({"id": format!("cs_test_{id}"), "url": format!("https://checkout.example/{id}")})
        }
        "/v1/billing_portal/sessions" => json!({"url": format!("https://portal.example/{id}")}),
        _ => return (404, error("invalid_request_error", None, None)),
    };
    answers.insert(asked.key().to_owned(), (asked.form.clone(), body.clone()));
    (200, body)
}
