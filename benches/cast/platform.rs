//! The platform: the real binary, its accounts, and its books.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use futures_util::{StreamExt, stream};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::{
    load::{Measured, Pace, load},
    row::Drift,
};

const ADMIN_KEY: &str = "bench-admin-key-0123456789-0123456789";

/// How many requests of a set-up are under way at once.
const AT_ONCE: usize = 16;

/// What a process is started on.
#[derive(Clone)]
pub struct Place {
    pub database: String,
    pub redis: Option<String>,
}

impl Place {
    pub fn on(database: String) -> Place {
        Place { database, redis: None }
    }

    pub fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spell-platform"));
        command
            .env("DATABASE_URL", &self.database)
            .env("PORT", "0")
            .env("BOOTSTRAP_API_KEY", ADMIN_KEY)
            .env("AUDIT_INTERVAL_SECONDS", "0");
        if let Some(redis) = &self.redis {
            command.env("REDIS_URL", redis);
        }
        command
    }
}

/// A process that serves. Dropping it kills it.
pub struct Process {
    child: Child,
    pub address: String,
}

impl Process {
    /// Gives it as soon as it says that it serves.
    pub fn start(place: &Place) -> Process {
        let mut child = place.command().stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines.find_map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).ok()?;
            Some(line["address"].as_str()?.to_owned())
        });
        // What it writes later is shown: under a load that it bears, that is nothing.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok).filter(|line| !line.contains(r#""level":"INFO""#)) {
                eprintln!("{line}");
            }
        });
        Process { child, address: address.expect("it started") }
    }

    pub async fn ready(self) -> Process {
        let client = Client::new();
        let url = format!("http://{}/ready", self.address);
        while client.get(&url).send().await.is_ok_and(|ready| ready.status() != 200) {}
        self
    }

    /// Stops it in order.
    pub fn stop(mut self) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap();
    }

    /// The memory it has in use.
    pub fn megabytes(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whom the load is spread over.
pub enum Accounts {
    /// So many new ones.
    New(usize),
    /// These, which are there.
    Known(Vec<String>),
}

/// A database with accounts that each have a key, two budgets that nobody reaches and such a rate.
pub struct Platform {
    place: Place,
    pub keys: Vec<String>,
}

impl Platform {
    pub async fn set_up(place: Place, accounts: Accounts) -> Platform {
        let process = Process::start(&place).ready().await;
        let api = Api { client: Client::new(), address: process.address.clone() };
        let accounts = match accounts {
            Accounts::New(count) => {
                let made = (0..count).map(|number| api.open_account(number));
                stream::iter(made).buffered(AT_ONCE).collect().await
            }
            Accounts::Known(ids) => ids,
        };
        let keys = accounts.into_iter().map(|account| api.make_key(account));
        let keys = stream::iter(keys).buffered(AT_ONCE).collect().await;
        process.stop();
        Platform { place, keys }
    }

    /// Loads so many processes, and compares the books with what the clients were told.
    pub async fn measure(&self, processes: usize, pace: Pace) -> (Measured, Drift) {
        let mut running = Vec::new();
        for _ in 0..processes {
            running.push(self.start().await);
        }
        let addresses: Vec<String> = running.iter().map(|process| process.address.clone()).collect();
        let before = self.booked(&running[0]).await;
        let measured = load(&addresses, &self.keys, pace).await;
        let drift = Drift::between(self.booked(&running[0]).await - before, &measured);
        running.into_iter().for_each(Process::stop);
        (measured, drift)
    }

    pub async fn start(&self) -> Process {
        Process::start(&self.place).ready().await
    }

    /// How many casts are in the books.
    pub async fn booked(&self, process: &Process) -> i64 {
        let api = Api { client: Client::new(), address: process.address.clone() };
        let counts = self.keys.iter().map(|key| api.casts_of(key));
        stream::iter(counts).buffered(AT_ONCE).fold(0, async |sum, count: i64| sum + count).await
    }
}

struct Api {
    client: Client,
    address: String,
}

impl Api {
    async fn call(&self, method: Method, path: &str, key: &str, body: Option<Value>) -> Value {
        let mut call = self.client.request(method, format!("http://{}{path}", self.address)).bearer_auth(key);
        if let Some(body) = &body {
            call = call.json(body);
        }
        let answer = call.send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        answer.json().await.unwrap()
    }

    async fn open_account(&self, number: usize) -> String {
        let body = json!({"name": format!("a{number}")});
        let account = self.call(Method::POST, "/v1/accounts", ADMIN_KEY, Some(body)).await;
        account["id"].as_str().unwrap().to_owned()
    }

    async fn make_key(&self, account: String) -> String {
        let body = json!({"name": "bench", "account_id": account, "rate_limit_per_minute": 1_000_000_000});
        let made = self.call(Method::POST, "/v1/keys", ADMIN_KEY, Some(body)).await;
        let key = made["api_key"].as_str().unwrap();
        for period in ["daily", "monthly"] {
            let budget = json!({"period": period, "hard_limit_cents": 800_000_000_000u64});
            self.call(Method::POST, "/v1/budgets", key, Some(budget)).await;
        }
        key.to_owned()
    }

    async fn casts_of(&self, key: &str) -> i64 {
        let usage = self.call(Method::GET, "/v1/budgets/usage", key, None).await;
        usage["total_calls"].as_i64().unwrap()
    }
}
