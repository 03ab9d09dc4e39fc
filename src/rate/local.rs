//! The limiter in this process: what runs where no Redis is configured, and what stands in for one that is down.
//!
//! # Failure behavior
//!
//! It cannot fail, and it forgets when the process ends. Each replica counts for itself, so a caller whose
//! requests reach several of them may have one allowance at each. Memory is bounded by the buckets used within
//! the last minute, since after a minute any bucket is full and says nothing: a bucket that comes new to a shard
//! has it swept when it has doubled since the last sweep, or when that was a minute ago.

use super::gcra::{Bucket, Change, Verdict};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

/// Enough that the workers of a large machine seldom wait for each other.
const SHARDS: usize = 64;

/// Below this many buckets a shard is not worth a sweep.
const SMALL: usize = 256;

const MINUTE_MICROS: u64 = 60_000_000;

pub(super) struct Local {
    /// tokio's clock, so that whoever tests with time can pause it.
    started: Instant,
    /// Keyed at random, so that nobody can choose addresses that all fall into one shard.
    hasher: RandomState,
    shards: Vec<Mutex<Shard>>,
}

struct Shard {
    buckets: HashMap<Box<str>, Bucket>,
    sweep_at_len: usize,
    sweep_at_micros: u64,
}

impl Local {
    pub fn new() -> Local {
        let shard = || Shard { buckets: HashMap::new(), sweep_at_len: SMALL, sweep_at_micros: MINUTE_MICROS };
        Local {
            started: Instant::now(),
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::new(shard())).collect(),
        }
    }

    pub fn apply(&self, bucket: &str, per_minute: u32, change: Change) -> Verdict {
        let now = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.apply_at(now, bucket, per_minute, change)
    }

    /// The same at `now`, in µs since this began.
    pub fn apply_at(&self, now: u64, bucket: &str, per_minute: u32, change: Change) -> Verdict {
        let shard = &self.shards[self.hasher.hash_one(bucket) as usize % SHARDS];
        // No step below can leave a shard half changed, so one whose lock a panic poisoned is still good.
        shard.lock().unwrap_or_else(PoisonError::into_inner).apply(bucket, now, per_minute, change)
    }

    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap().buckets.len()).sum()
    }
}

impl Shard {
    fn apply(&mut self, bucket: &str, now: u64, per_minute: u32, change: Change) -> Verdict {
        let known = self.buckets.get_mut(bucket);
        let (verdict, after) = Bucket::apply(known.as_deref().copied(), now, per_minute, change);
        match (known, after) {
            (Some(known), Some(after)) => *known = after,
            (Some(_), None) => drop(self.buckets.remove(bucket)),
            (None, Some(after)) => {
                self.sweep_when_due(now);
                self.buckets.insert(bucket.into(), after);
            }
            (None, None) => {}
        }
        verdict
    }

    /// Doubling makes the cost of sweeping a constant per bucket that came in.
    fn sweep_when_due(&mut self, now: u64) {
        if self.buckets.len() < self.sweep_at_len && now < self.sweep_at_micros {
            return;
        }
        self.buckets.retain(|_, bucket| !bucket.is_full(now));
        self.sweep_at_len = SMALL.max(2 * self.buckets.len());
        self.sweep_at_micros = now.saturating_add(MINUTE_MICROS);
        self.buckets.shrink_to(self.sweep_at_len);
    }
}
