//! The load: so many connections, each of which sends the next request when the last one is answered.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{MissedTickBehavior, interval_at},
};

use crate::figures::percentile;

pub const CONNECTIONS: usize = 64;
const WARM_UP: Duration = Duration::from_secs(1);

/// How long, and how hard.
#[derive(Clone, Copy)]
pub struct Pace {
    pub span: Duration,
    /// Requests a second, over all connections. `None`: as many as are answered.
    pub rate: Option<u32>,
}

impl Pace {
    pub fn full(span: Duration) -> Pace {
        Pace { span, rate: None }
    }
}

/// What a load came to.
pub struct Measured {
    /// Everything that was answered with 200, the warm-up included.
    pub answered: u64,
    /// A second, while it was measured.
    pub rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// How many requests got another answer or none, and the first of those.
    pub failed: u64,
    pub failure: Option<String>,
}

/// Loads the servers at these addresses, a connection to each in turn. A connection goes through the keys in
/// turn as well: with as many keys as connections each has one of its own.
pub async fn load(addresses: &[String], keys: &[String], pace: Pace) -> Measured {
    let requests: Arc<[Vec<u8>]> = keys.iter().map(|key| request(key)).collect();
    let warm = Instant::now() + WARM_UP;
    let failed = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..CONNECTIONS)
        .map(|number| {
            let connection = Connection {
                number,
                address: addresses[number % addresses.len()].clone(),
                requests: requests.clone(),
                rate: pace.rate,
                warm,
                until: warm + pace.span,
                failed: failed.clone(),
            };
            tokio::spawn(connection.run())
        })
        .collect();
    let (mut micros, mut answered, mut failure) = (Vec::new(), 0, None);
    for worker in workers {
        let had = worker.await.unwrap();
        answered += had.answered;
        micros.extend(had.micros);
        failure = failure.or(had.failure);
    }
    micros.sort_unstable();
    Measured {
        answered,
        rate: micros.len() as f64 / pace.span.as_secs_f64(),
        p50_ms: f64::from(percentile(&micros, 0.5)) / 1e3,
        p99_ms: f64::from(percentile(&micros, 0.99)) / 1e3,
        failed: failed.load(Ordering::Relaxed),
        failure,
    }
}

fn request(key: &str) -> Vec<u8> {
    let body = r#"{"spell_name":"echo","payload":{"prompt":"a short one","n":1}}"#;
    format!(
        "POST /v1/cast HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {key}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

struct Connection {
    number: usize,
    address: String,
    requests: Arc<[Vec<u8>]>,
    rate: Option<u32>,
    warm: Instant,
    until: Instant,
    failed: Arc<AtomicU64>,
}

#[derive(Default)]
struct Had {
    answered: u64,
    /// Of what was answered while it was measured.
    micros: Vec<u32>,
    failure: Option<String>,
}

impl Connection {
    async fn run(self) -> Had {
        let mut had = Had::default();
        let mut ticks = self.rate.map(|rate| {
            let every = Duration::from_secs_f64(CONNECTIONS as f64 / f64::from(rate));
            let first = Instant::now() + every.mul_f64(self.number as f64 / CONNECTIONS as f64);
            let mut ticks = interval_at(first.into(), every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            ticks
        });
        let mut socket = self.connect().await;
        let mut buffer = Vec::with_capacity(4096);
        let mut next = self.number % self.requests.len();
        loop {
            if let Some(ticks) = &mut ticks {
                ticks.tick().await;
            }
            let began = Instant::now();
            if began >= self.until {
                return had;
            }
            match exchange(&mut socket, &self.requests[next], &mut buffer).await {
                Ok(()) => {
                    had.answered += 1;
                    if began >= self.warm {
                        had.micros.push(began.elapsed().as_micros().try_into().unwrap_or(u32::MAX));
                    }
                }
                Err(failure) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    had.failure.get_or_insert(failure);
                    socket = self.connect().await;
                }
            }
            next += CONNECTIONS;
            if next >= self.requests.len() {
                next = self.number % self.requests.len();
            }
        }
    }

    async fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.address).await.expect("the server takes connections");
        socket.set_nodelay(true).unwrap();
        socket
    }
}

/// Sends a request and reads the whole of its answer, which must be a 200.
async fn exchange(socket: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Result<(), String> {
    let broken = |error: std::io::Error| error.to_string();
    socket.write_all(request).await.map_err(broken)?;
    buffer.clear();
    loop {
        if socket.read_buf(buffer).await.map_err(broken)? == 0 {
            return Err("the server hung up".to_owned());
        }
        let Some(head) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let text = std::str::from_utf8(&buffer[..head]).unwrap().to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: "));
        let whole = head + 4 + length.and_then(|length| length.parse::<usize>().ok()).unwrap_or(0);
        if buffer.len() >= whole {
            return match text.starts_with("http/1.1 200") {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(buffer).into_owned()),
            };
        }
    }
}
