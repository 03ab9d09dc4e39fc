//! The limiter shared by all replicas: `gcra.lua` in Redis, reached by one task over one connection.
//!
//! Whatever waits when the task looks goes out as one script call, in the order it came: under load a call to
//! Redis carries many takes, and without load none waits for company. A few calls are on the way at once, so
//! that a round trip is not also the pace.
//!
//! # Failure behavior
//!
//! [`Redis::ask`] answers within its patience, whatever Redis does: with `Err` where Redis failed, was too slow
//! or is known to be down, and the caller then asks the twin in the process. The first failure marks Redis down,
//! and from then on nothing waits for it. The task throws the connection away (a broken one may look whole),
//! and once a second tries a new one, with what the limiter needs of it and at the speed it needs: a write
//! through the script. PING would also be answered by a Redis that is full, read-only or far too slow, and the
//! state would flap. An idle connection is tried now and then, so that it is found broken before a cast finds it.

use super::gcra::{Change, Verdict};
use crate::reply::{self, Reply};
use deadpool_redis::redis::Script;
use deadpool_redis::redis::aio::MultiplexedConnection;
use deadpool_redis::{Connection, Manager, Pool, Runtime, Timeouts};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

/// How long a cast waits for Redis: far more than a call takes, and little beside a cast.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

/// Between two attempts while Redis is down.
const PROBE_EVERY: Duration = Duration::from_secs(1);

/// An idle connection is tried this often: sooner than load balancers forget one.
const IDLE_FOR: Duration = Duration::from_secs(10);

/// For name lookup, connect, TLS, log-in and loading the script, together.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// Requests that may wait. More of them would outwait their patience anyway.
const QUEUE: usize = 4096;

/// Requests in one script call. Redis does nothing else meanwhile, so it stays well under a millisecond.
const BATCH: usize = 256;

/// Script calls on the way at once.
const IN_FLIGHT: usize = 4;

/// Before every key, so that the platform can share its Redis.
const PREFIX: &str = "spell:rate:";

pub(super) struct Redis {
    queue: mpsc::Sender<Request>,
    health: Arc<Health>,
    patience: Duration,
}

struct Request {
    key: String,
    per_minute: u32,
    change: Change,
    answer: Reply<Verdict>,
}

impl Redis {
    /// Checks `url` and starts the task on the current runtime. Connecting is the task's business.
    pub fn start(url: &str, patience: Duration) -> Result<Redis, String> {
        let pool = pool(url)?;
        let runtime =
            tokio::runtime::Handle::try_current().map_err(|_| "it is used outside a tokio runtime")?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        let health = Arc::new(Health(watch::Sender::new(None)));
        let task = Task { pool, script: Script::new(SCRIPT), health: health.clone(), patience };
        runtime.spawn(task.run(waiting));
        Ok(Redis { queue, health, patience })
    }

    /// Applies `change` to `bucket` in Redis. `Err` says why Redis did not answer; the change may then still
    /// have been made there, which leaves the bucket at worst one short.
    pub async fn ask(&self, bucket: &str, per_minute: u32, change: Change) -> Result<Verdict, String> {
        self.health.check()?;
        let (request, answer) = Request::new(bucket, per_minute, change);
        self.queue.try_send(request).map_err(|refused| match refused {
            TrySendError::Full(_) => "more requests wait than it can take",
            TrySendError::Closed(_) => "the runtime that carried the connection has ended",
        })?;
        match timeout(self.patience, answer).await {
            Ok(Ok(verdict)) => Ok(verdict),
            Ok(Err(_)) => self.health.check().and(Err("the connection broke".into())),
            Err(_) => {
                self.health.down(&too_slow(self.patience));
                Err(too_slow(self.patience))
            }
        }
    }

    /// Asks what the limiter asks of Redis, as a check. `Err` says what is wrong.
    pub async fn ping(&self) -> Result<(), String> {
        let (probe, per_minute, change) = PROBE;
        self.ask(probe, per_minute, change).await.map(drop)
    }
}

/// A write that any number of replicas may make at any time: it is never refused, and full again in 1 ms.
const PROBE: (&str, u32, Change) = ("probe", 1_000_000_000, Change::Take);

pub(super) const SCRIPT: &str = include_str!("gcra.lua");

fn pool(url: &str) -> Result<Pool, String> {
    let known = ["redis://", "rediss://", "redis+unix://"];
    if !known.iter().any(|scheme| url.starts_with(scheme)) {
        return Err("it does not begin with redis:// or rediss://".into());
    }
    // The texts of these errors are fixed: they never carry the URL, and so no password.
    let manager = Manager::new(url).map_err(|e| format!("it is not a usable Redis URL: {e}"))?;
    Pool::builder(manager)
        .max_size(1)
        .runtime(Runtime::Tokio1)
        .timeouts(Timeouts {
            wait: Some(CONNECT_WITHIN),
            create: Some(CONNECT_WITHIN),
            recycle: Some(CONNECT_WITHIN / 5),
        })
        .build()
        .map_err(|e| format!("no pool can be made for it: {e}"))
}

/// Why Redis is down; `None` while it is up, which it counts as until it has failed once. Every change of it is
/// logged, exactly once, whoever notices.
struct Health(watch::Sender<Option<String>>);

impl Health {
    fn check(&self) -> Result<(), String> {
        match &*self.0.borrow() {
            None => Ok(()),
            Some(why) => Err(why.clone()),
        }
    }

    fn down(&self, why: &str) {
        let change =
            |state: &mut Option<String>| state.is_none().then(|| *state = Some(why.into())).is_some();
        if self.0.send_if_modified(change) {
            tracing::warn!(why, "Redis is down: each process limits rates by itself until it is back");
        }
    }

    fn up(&self) {
        if self.0.send_if_modified(|state| state.take().is_some()) {
            tracing::info!("Redis is back: rates are limited across all processes again");
        }
    }
}

fn too_slow(patience: Duration) -> String {
    format!("no answer within {} ms", patience.as_millis())
}

impl Request {
    fn new(bucket: &str, per_minute: u32, change: Change) -> (Request, oneshot::Receiver<Verdict>) {
        let (answer, receiver) = reply::channel();
        (Request { key: format!("{PREFIX}{bucket}"), per_minute, change, answer }, receiver)
    }

    fn probe() -> Request {
        let (bucket, per_minute, change) = PROBE;
        Request::new(bucket, per_minute, change).0
    }
}

/// The one who talks to Redis. Ends when the last [`Redis`] handle is gone.
struct Task {
    pool: Pool,
    script: Script,
    health: Arc<Health>,
    patience: Duration,
}

impl Task {
    async fn run(self, mut waiting: mpsc::Receiver<Request>) {
        loop {
            let why = match self.connect().await {
                Ok(connection) => {
                    self.health.up();
                    match self.serve(&connection, &mut waiting).await {
                        Ok(()) => return,
                        Err(why) => {
                            // Not back to the pool: what broke may look whole.
                            drop(Connection::take(connection));
                            why
                        }
                    }
                }
                Err(why) => why,
            };
            self.health.down(&why);
            // Those who still wait are told at once, not when their patience ends.
            while waiting.try_recv().is_ok() {}
            if waiting.is_closed() {
                return;
            }
            sleep(PROBE_EVERY).await;
        }
    }

    /// A connection that has just done, in time, what the limiter needs.
    async fn connect(&self) -> Result<Connection, String> {
        let attempt = async {
            let mut connection = self.pool.get().await.map_err(|e| e.to_string())?;
            // Beforehand, so that the call that is timed is one round trip, as it will be later.
            self.script.load_async(&mut connection).await.map_err(|e| e.to_string())?;
            Ok::<_, String>(connection)
        };
        let connection =
            timeout(CONNECT_WITHIN, attempt).await.unwrap_or_else(|_| Err(too_slow(CONNECT_WITHIN)))?;
        match self.call(connection.clone(), vec![Request::probe()]).await {
            Ok(()) => Ok(connection),
            Err(why) => {
                drop(Connection::take(connection));
                Err(why)
            }
        }
    }

    /// Answers what waits until Redis fails (`Err` says why) or nobody is left to ask.
    async fn serve(
        &self,
        connection: &MultiplexedConnection,
        waiting: &mut mpsc::Receiver<Request>,
    ) -> Result<(), String> {
        let mut health = self.health.0.subscribe();
        let mut in_flight = FuturesUnordered::new();
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                biased;
                // Somebody's patience ended before a call's did.
                _ = health.wait_for(Option::is_some) => return self.health.check(),
                Some(result) = in_flight.next() => result?,
                count = waiting.recv_many(&mut batch, BATCH), if in_flight.len() < IN_FLIGHT => {
                    if count == 0 {
                        return Ok(());
                    }
                    batch.retain(|request| !request.answer.is_closed());
                    if !batch.is_empty() {
                        in_flight.push(self.call(connection.clone(), batch));
                    }
                }
                () = sleep(IDLE_FOR), if in_flight.is_empty() => {
                    in_flight.push(self.call(connection.clone(), vec![Request::probe()]));
                }
            }
        }
    }

    /// One script call for all of `batch`. On failure the requests are dropped, which tells those who wait.
    async fn call(&self, mut connection: MultiplexedConnection, batch: Vec<Request>) -> Result<(), String> {
        let mut invocation = self.script.prepare_invoke();
        for request in &batch {
            invocation.key(&request.key).arg(request.per_minute).arg(request.change as i32);
        }
        let answers: Vec<(bool, u64)> = timeout(self.patience, invocation.invoke_async(&mut connection))
            .await
            .map_err(|_| too_slow(self.patience))?
            .map_err(|e| e.to_string())?;
        if answers.len() != batch.len() {
            return Err(format!("{} answers to {} requests", answers.len(), batch.len()));
        }
        let verdicts = answers.into_iter().map(|(allowed, owed)| Verdict { allowed, owed });
        // Whoever no longer waits has already been answered by the twin.
        reply::send_all(batch.into_iter().map(|request| request.answer).zip(verdicts));
        Ok(())
    }
}
