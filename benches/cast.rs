//! What an enforced, durable cast costs, against bare actix-web that echoes the same JSON.
//!
//! The floor and the platform run one after the other in the same run, under the same load: 64
//! connections that each send the next request when the last one is answered, from this machine.
//! Every cast passes a key, two budgets, a rate limit, and is committed with its row and its line
//! before it is answered. Afterwards the books are compared with what the clients were told.
//!
//! Run it by `scripts/bench`; it prints a table, and fails only if the books are wrong.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use actix_web::{App, HttpServer, web};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const CONNECTIONS: usize = 64;
const KEY: &str = "bench-admin-key-0123456789-0123456789";

#[tokio::main]
async fn main() {
    // The client wants one to be made at all, though nothing here is encrypted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let seconds = std::env::var("BENCH_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(8);
    let span = Duration::from_secs(seconds);
    println!("{CONNECTIONS} connections, {seconds} s each, generator on the same {} cores", cores());
    println!("{:<34} {:>10} {:>8} {:>9} {:>9}", "", "requests/s", "ratio", "p50 ms", "p99 ms");

    let floor = bare(span).await;
    print_row("bare actix-web, same JSON", &floor, &floor);

    let folder = tempfile::tempdir().unwrap();
    let sqlite = format!("sqlite:{}/bench.db", folder.path().display());
    let redis = std::env::var("TEST_REDIS_URL").expect("run scripts/bench");
    let server = std::env::var("TEST_DATABASE_URL").expect("run scripts/bench");
    // To look at one row alone, under a profiler for one.
    let only = std::env::var("BENCH_ONLY").unwrap_or_default();
    let mut wrong = 0;
    for (name, database, redis, accounts) in [
        ("SQLite, one account", sqlite, None, 1),
        ("PostgreSQL, one account", fresh_database(&server), None, 1),
        ("PostgreSQL, 64 accounts", fresh_database(&server), None, 64),
        ("PostgreSQL and Redis, one account", fresh_database(&server), Some(redis), 1),
    ] {
        if !name.contains(&only) {
            continue;
        }
        let (measured, drift) = platform(&database, redis.as_deref(), accounts, span).await;
        print_row(name, &measured, &floor);
        wrong += drift;
    }
    println!("answered casts that the books do not have, or have twice: {wrong}");
    assert_eq!(wrong, 0);
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

struct Measured {
    /// Everything that was answered, the warm-up included.
    answered: usize,
    /// What was answered while it was measured.
    requests: usize,
    seconds: f64,
    p50: Duration,
    p99: Duration,
}

fn print_row(name: &str, measured: &Measured, floor: &Measured) {
    let rate = |measured: &Measured| measured.requests as f64 / measured.seconds;
    println!(
        "{name:<34} {:>10.0} {:>8.3} {:>9.2} {:>9.2}",
        rate(measured),
        rate(measured) / rate(floor),
        measured.p50.as_secs_f64() * 1e3,
        measured.p99.as_secs_f64() * 1e3,
    );
}

async fn bare(span: Duration) -> Measured {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = HttpServer::new(|| {
        App::new().route("/v1/cast", web::post().to(|body: web::Json<Value>| async { body }))
    })
    .listen(listener)
    .unwrap()
    .disable_signals()
    .run();
    let handle = server.handle();
    tokio::spawn(server);
    let measured = load(&address, &[KEY.to_owned()], span).await;
    handle.stop(false).await;
    measured
}

/// Measures the platform, and gives how many answered casts its books do not agree with.
async fn platform(database: &str, redis: Option<&str>, accounts: usize, span: Duration) -> (Measured, i64) {
    let (mut server, address) = start(database, redis);
    let client = reqwest::Client::new();
    let call = async |method, path: &str, key: &str, body: Value| {
        let url = format!("http://{address}{path}");
        let answer = client.request(method, url).bearer_auth(key).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{path}: {}", answer.text().await.unwrap());
        answer.json::<Value>().await.unwrap()
    };
    while client.get(format!("http://{address}/ready")).send().await.is_ok_and(|ready| ready.status() != 200)
    {
    }
    let mut keys = Vec::new();
    for n in 0..accounts {
        let account =
            call(reqwest::Method::POST, "/v1/accounts", KEY, json!({"name": format!("a{n}")})).await;
        let body =
            json!({"name": "bench", "account_id": account["id"], "rate_limit_per_minute": 1_000_000_000});
        let key = call(reqwest::Method::POST, "/v1/keys", KEY, body).await;
        let key = key["api_key"].as_str().unwrap().to_owned();
        for period in ["daily", "monthly"] {
            let budget = json!({"period": period, "hard_limit_cents": 800_000_000_000u64});
            call(reqwest::Method::POST, "/v1/budgets", &key, budget).await;
        }
        keys.push(key);
    }
    let before = booked(&address, &keys, &client).await;
    let measured = load(&address, &keys, span).await;
    let drift = booked(&address, &keys, &client).await - before - measured.answered as i64;
    server.kill().unwrap();
    server.wait().unwrap();
    (measured, drift.abs())
}

async fn booked(address: &str, keys: &[String], client: &reqwest::Client) -> i64 {
    let mut calls = 0;
    for key in keys {
        let usage = client.get(format!("http://{address}/v1/budgets/usage")).bearer_auth(key);
        calls += usage.send().await.unwrap().json::<Value>().await.unwrap()["total_calls"].as_i64().unwrap();
    }
    calls
}

fn start(database: &str, redis: Option<&str>) -> (Child, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spell-platform"));
    command
        .env("DATABASE_URL", database)
        .env("PORT", "0")
        .env("BOOTSTRAP_API_KEY", KEY)
        .stderr(Stdio::piped());
    if let Some(redis) = redis {
        command.env("REDIS_URL", redis);
    }
    let mut server = command.spawn().unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let serving = lines.find_map(|line| {
        let line: Value = serde_json::from_str(&line.unwrap()).ok()?;
        Some(line["address"].as_str()?.to_owned())
    });
    std::thread::spawn(move || lines.for_each(drop));
    (server, serving.unwrap())
}

fn fresh_database(server: &str) -> String {
    let name = format!("bench_{}", uuid::Uuid::now_v7().simple());
    let made = Command::new("psql").args([server, "-q", "-c", &format!("CREATE DATABASE {name}")]).status();
    assert!(made.unwrap().success());
    let mut url = url::Url::parse(server).unwrap();
    url.set_path(&name);
    url.to_string()
}

/// Keeps every connection busy for `span`, a key a connection in turn.
async fn load(address: &str, keys: &[String], span: Duration) -> Measured {
    let warm = Instant::now() + Duration::from_secs(1);
    let until = warm + span;
    let workers: Vec<_> = (0..CONNECTIONS)
        .map(|n| tokio::spawn(connection(address.to_owned(), keys[n % keys.len()].clone(), warm, until)))
        .collect();
    let mut latencies = Vec::new();
    let mut answered = 0;
    for worker in workers {
        let (all, measured) = worker.await.unwrap();
        answered += all;
        latencies.extend(measured);
    }
    latencies.sort_unstable();
    let at = |share: f64| latencies[(latencies.len() as f64 * share) as usize];
    Measured { answered, requests: latencies.len(), seconds: span.as_secs_f64(), p50: at(0.5), p99: at(0.99) }
}

async fn connection(address: String, key: String, warm: Instant, until: Instant) -> (usize, Vec<Duration>) {
    let body = r#"{"spell_name":"echo","payload":{"prompt":"a short one","n":1}}"#;
    let request = format!(
        "POST /v1/cast HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut socket = TcpStream::connect(&address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let mut buffer = Vec::with_capacity(4096);
    let (mut all, mut latencies) = (0, Vec::new());
    loop {
        let began = Instant::now();
        if began >= until {
            return (all, latencies);
        }
        socket.write_all(request.as_bytes()).await.unwrap();
        buffer.clear();
        answer(&mut socket, &mut buffer).await;
        all += 1;
        if began >= warm {
            latencies.push(began.elapsed());
        }
    }
}

/// Reads one whole answer, which must be a 200.
async fn answer(socket: &mut TcpStream, buffer: &mut Vec<u8>) {
    loop {
        assert_ne!(socket.read_buf(buffer).await.unwrap(), 0, "the server hung up");
        let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head]).unwrap().to_ascii_lowercase();
        assert!(text.starts_with("http/1.1 200"), "{}", String::from_utf8_lossy(buffer));
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        if buffer.len() >= head + 4 + length.parse::<usize>().unwrap() {
            return;
        }
    }
}
