//! A small HTTP server to cast at: one path for each way that an upstream can behave.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
};

use super::eventually;

/// Paths: `/json` answers `{"you_sent":…}`, `/text` words, `/fail` 500, `/gate` waits until the gate
/// is open, `/slow` takes a tenth of a second, `/headers` the request's headers, `/redirect` sends to `/json`, `/huge` 64 MiB,
/// `/hangup` closes, `/garbage` speaks no HTTP, `/coin` fails every other time.
pub struct Upstream {
    port: u16,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    calls: Mutex<HashMap<String, usize>>,
    gate: watch::Sender<bool>,
}

struct Request {
    path: String,
    headers: Value,
    body: Vec<u8>,
}

impl Upstream {
    pub async fn start() -> Upstream {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State { calls: Mutex::default(), gate: watch::Sender::new(false) });
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, shared.clone()));
            }
        });
        Upstream { port, state, task }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// An `http` spell at that path.
    pub fn spell(&self, path: &str) -> Value {
        json!({"kind": "http", "url": self.url(path), "timeout_ms": 20_000})
    }

    /// How often that path was called.
    pub fn calls(&self, path: &str) -> usize {
        self.state.calls.lock().unwrap().get(path).copied().unwrap_or(0)
    }

    pub fn all_calls(&self) -> usize {
        self.state.calls.lock().unwrap().values().sum()
    }

    pub async fn wait_for_calls(&self, path: &str, count: usize) {
        let arrived = || async { (self.calls(path) >= count).then_some(()) };
        eventually(Duration::from_secs(30), "calls to the upstream", arrived).await;
    }

    /// Lets pass what waits at `/gate`, and what comes later.
    pub fn open_gate(&self) {
        self.state.gate.send_replace(true);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    while let Some(request) = next_request(&mut read).await {
        let count = {
            let mut calls = state.calls.lock().unwrap();
            let count = calls.entry(request.path.clone()).or_insert(0);
            *count += 1;
            *count
        };
        if answer(request, count, &state, &mut write).await.is_none() {
            return;
        }
    }
}

async fn next_request(read: &mut BufReader<OwnedReadHalf>) -> Option<Request> {
    let mut line = String::new();
    read.read_line(&mut line).await.ok()?;
    let path = line.split(' ').nth(1)?.to_owned();
    let mut headers = json!({});
    loop {
        let mut line = String::new();
        read.read_line(&mut line).await.ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers[name.to_ascii_lowercase()] = value.trim().into(),
            None => break,
        }
    }
    let length = headers["content-length"].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    read.read_exact(&mut body).await.ok()?;
    Some(Request { path, headers, body })
}

/// `None` ends the connection.
async fn answer(request: Request, count: usize, state: &State, write: &mut OwnedWriteHalf) -> Option<()> {
    let sent: Value = serde_json::from_slice(&request.body).unwrap_or(Value::Null);
    let ok = json!({"you_sent": sent, "call": count}).to_string();
    let json = "application/json";
    match request.path.as_str() {
        "/json" => respond(write, "200 OK", json, &ok).await,
        "/text" => respond(write, "200 OK", "text/plain; charset=utf-8", "plain words").await,
        "/fail" => respond(write, "500 Internal Server Error", json, r#"{"oops":true}"#).await,
        "/coin" if count.is_multiple_of(2) => {
            respond(write, "503 Service Unavailable", "text/plain", "not now").await
        }
        "/coin" => respond(write, "200 OK", json, &ok).await,
        "/gate" => {
            state.gate.subscribe().wait_for(|open| *open).await.ok()?;
            respond(write, "200 OK", json, &ok).await
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            respond(write, "200 OK", json, &ok).await
        }
        "/headers" => respond(write, "200 OK", json, &request.headers.to_string()).await,
        "/redirect" => {
            let head = "HTTP/1.1 302 Found\r\nLocation: /json\r\nContent-Length: 0\r\n\r\n";
            write.write_all(head.as_bytes()).await.ok()
        }
        "/huge" => respond(write, "200 OK", "text/plain", &"x".repeat(64 << 20)).await,
        "/garbage" => {
            let _ = write.write_all(b"this is no HTTP\r\n\r\n").await;
            None
        }
        "/hangup" => None,
        _ => respond(write, "404 Not Found", "text/plain", "no such path").await,
    }
}

async fn respond(write: &mut OwnedWriteHalf, status: &str, content_type: &str, body: &str) -> Option<()> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\r\n");
    write.write_all(head.as_bytes()).await.ok()?;
    write.write_all(body.as_bytes()).await.ok()
}
