//! How often a caller may call: an allowance per minute for each bucket, one per key or per address, shared by
//! all replicas where there is a Redis and kept in the process where there is none.
//!
//! There is one algorithm, GCRA (`gcra.rs` names its source), written twice: in Rust, and in the Lua that Redis
//! runs. One list of tests runs on both, and random sequences hold them against each other.
//!
//! # Failure behavior
//!
//! A limiter always answers. Where Redis fails, is slower than 50 ms or is known to be down, the process decides
//! by itself with the same algorithm, and `redis_errors_total` counts each decision that was made so. The two
//! keep separate books: when Redis goes down, a caller starts with a fresh allowance in each process, and finds
//! the one in Redis refilled as far as time has passed when it is back; a take of one book given back to the
//! other leaves each at most one off. That leans towards availability: a rate protects what runs here, while
//! money is guarded by the ledger, which never falls back.

mod gcra;
mod local;
mod redis;
#[cfg(test)]
mod tests;

use crate::telemetry::Metrics;
use gcra::{Change, Verdict};
use local::Local;
use redis::Redis;
use std::sync::Arc;
use std::time::Duration;

/// A rate limiter. Clones are cheap and share their buckets.
#[derive(Clone)]
pub struct Limiter {
    local: Arc<Local>,
    shared: Option<Arc<Shared>>,
}

struct Shared {
    redis: Redis,
    metrics: Arc<Metrics>,
}

/// How a bucket stands after a call; what the `RateLimit-*` and `Retry-After` headers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// After a take: whether it was granted. After a peek or a give-back: whether a take now would be.
    pub allowed: bool,
    /// The whole allowance, per minute.
    pub limit: u32,
    /// How many can be taken at once now, after this call.
    pub remaining: u32,
    /// Seconds until the whole allowance is there again, rounded up.
    pub reset_seconds: u64,
    /// Seconds until one can be taken, rounded up and at least 1; 0 when `allowed`.
    pub retry_after_seconds: u64,
}

impl Limiter {
    /// A limiter that counts in this process alone.
    pub fn in_process() -> Limiter {
        Limiter { local: Arc::new(Local::new()), shared: None }
    }

    /// A limiter that counts in the Redis at `url` (`redis://` or `rediss://`), together with every other process
    /// that does. A Redis that cannot be reached is no error here: it is tried until it answers, and each
    /// decision made without it counts in `metrics.redis_errors`.
    ///
    /// Call it within a tokio runtime, which then carries the connection and has to outlive the limiter; the
    /// limiter itself may be used from any runtime.
    ///
    /// # Errors
    ///
    /// What is wrong with `url`, as a clause ("it does not begin with …") that never repeats any of it.
    pub fn over_redis(url: &str, metrics: Arc<Metrics>) -> Result<Limiter, String> {
        Limiter::with_patience(url, metrics, redis::PATIENCE)
    }

    fn with_patience(url: &str, metrics: Arc<Metrics>, patience: Duration) -> Result<Limiter, String> {
        let shared = Shared { redis: Redis::start(url, patience)?, metrics };
        Ok(Limiter { local: Arc::new(Local::new()), shared: Some(Arc::new(shared)) })
    }

    /// Takes one from the allowance of `bucket`, which is `per_minute`, if one is there.
    ///
    /// The allowance may differ from the last call's: the share of it that is used then carries over. An
    /// allowance of 0 refuses always.
    pub async fn take(&self, bucket: &str, per_minute: u32) -> Standing {
        self.apply(bucket, per_minute, Change::Take).await
    }

    /// How `bucket` stands. Takes nothing.
    pub async fn peek(&self, bucket: &str, per_minute: u32) -> Standing {
        self.apply(bucket, per_minute, Change::Look).await
    }

    /// Undoes one granted take, exactly: the bucket is as if it had never been taken, and never more than full.
    ///
    /// It is for right after the take. Once the bucket has been full again in between, that take had cost nothing
    /// any more, and giving it back frees one of those taken since.
    pub async fn give_back(&self, bucket: &str, per_minute: u32) -> Standing {
        self.apply(bucket, per_minute, Change::GiveBack).await
    }

    /// Whether Redis does what the limiter needs of it, or why not; `None` where none is configured. Answers
    /// within 50 ms, and at once while Redis is known to be down.
    pub async fn ping(&self) -> Option<Result<(), String>> {
        match &self.shared {
            Some(shared) => Some(shared.redis.ping().await),
            None => None,
        }
    }

    async fn apply(&self, bucket: &str, per_minute: u32, change: Change) -> Standing {
        if per_minute == 0 {
            return Standing::NOTHING;
        }
        if let Some(shared) = &self.shared {
            match shared.redis.ask(bucket, per_minute, change).await {
                Ok(verdict) => return Standing::new(verdict, per_minute),
                Err(_) => shared.metrics.redis_errors.inc(),
            }
        }
        Standing::new(self.local.apply(bucket, per_minute, change), per_minute)
    }
}

impl Standing {
    /// Under an allowance of 0. There is no time to come back at: a minute keeps callers from hammering.
    const NOTHING: Standing =
        Standing { allowed: false, limit: 0, remaining: 0, reset_seconds: 0, retry_after_seconds: 60 };

    fn new(verdict: Verdict, per_minute: u32) -> Standing {
        Standing {
            allowed: verdict.allowed,
            limit: per_minute,
            remaining: verdict.remaining(per_minute),
            reset_seconds: verdict.full_in_seconds(per_minute),
            retry_after_seconds: match verdict.allowed {
                true => 0,
                false => verdict.one_in_seconds(per_minute).max(1),
            },
        }
    }
}
