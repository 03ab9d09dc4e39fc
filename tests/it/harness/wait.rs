//! Waiting with a bound, and doing many things at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

/// Milliseconds since 1970 by this machine's clock, which the server under test shares.
pub fn unix_now() -> i64 {
    i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap()
}

/// Budgets count by calendar windows: a test that saw one end would count from nothing again. No
/// test runs for longer than what is left after this.
pub async fn not_across_midnight() {
    const DAY: i64 = 86_400_000;
    let left = DAY - unix_now() % DAY;
    if left < 120_000 {
        tokio::time::sleep(Duration::from_millis(left.unsigned_abs() + 1)).await;
    }
}

/// Asks until there is an answer, and fails when none has come within `limit`.
#[track_caller]
pub fn eventually<T, F>(limit: Duration, what: &str, mut ask: impl FnMut() -> F) -> impl Future<Output = T>
where
    F: Future<Output = Option<T>>,
{
    let caller = std::panic::Location::caller();
    async move {
        let begun = Instant::now();
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            assert!(begun.elapsed() < limit, "not within {limit:?}: {what} (waited for at {caller})");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }
}

/// Does `total` things, at most `clients` of them at a time; what they gave, in no order.
pub async fn storm<T, F>(
    clients: usize,
    total: usize,
    act: impl Fn(usize) -> F + Send + Sync + 'static,
) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send,
{
    let act = Arc::new(act);
    let next = Arc::new(AtomicUsize::new(0));
    let workers: Vec<_> = (0..clients)
        .map(|_| {
            let (act, next) = (act.clone(), next.clone());
            tokio::spawn(async move {
                let mut given = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= total {
                        return given;
                    }
                    given.push(act(number).await);
                }
            })
        })
        .collect();
    let mut given = Vec::with_capacity(total);
    for worker in workers {
        given.extend(worker.await.unwrap());
    }
    given
}

/// How long something took.
pub struct Stopwatch(Instant);

impl Stopwatch {
    pub fn start() -> Stopwatch {
        Stopwatch(Instant::now())
    }

    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    #[track_caller]
    pub fn assert_under(&self, limit: Duration, what: &str) {
        let took = self.elapsed();
        assert!(took < limit, "{what} took {took:?}, more than {limit:?}");
    }
}
