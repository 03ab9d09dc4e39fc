//! One list of behaviours, run on both limiters; then what each has alone: exact times in the process, where the
//! clock can be stopped, and a Redis that is absent, hangs or breaks.

use super::gcra::{Bucket, Change, Verdict};
use super::*;
use deadpool_redis::redis::{self as client, AsyncCommands, Client};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// So long that a busy machine does not make a test fall back without being asked to.
const LONG: Duration = Duration::from_secs(20);

fn redis_url() -> String {
    std::env::var("TEST_REDIS_URL").expect("TEST_REDIS_URL is not set: run scripts/test")
}

/// A name that no other test, and no earlier run, has used.
fn fresh(name: &str) -> String {
    format!("{name}:{}", uuid::Uuid::now_v7())
}

macro_rules! on_both {
    ($($behaviour:ident)*) => {
        mod in_process {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                super::behaviour::$behaviour(super::Limiter::in_process()).await;
            })*
        }
        mod over_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $behaviour() {
                let metrics = std::sync::Arc::new(super::Metrics::new());
                let limiter =
                    super::Limiter::with_patience(&super::redis_url(), metrics.clone(), super::LONG).unwrap();
                assert_eq!(limiter.ping().await, Some(Ok(())));
                super::behaviour::$behaviour(limiter).await;
                assert_eq!(metrics.redis_errors.get(), 0, "Redis decided all of it");
            })*
        }
    };
}

on_both! {
    a_burst_is_granted_and_then_refused
    an_allowance_refills_evenly
    a_give_back_undoes_a_take
    a_give_back_undoes_a_take_at_any_rate
    a_give_back_never_overfills
    a_peek_takes_nothing
    concurrent_takers_get_exactly_the_allowance
    buckets_are_independent
    a_changed_allowance_keeps_the_share_that_is_used
    the_highest_rates_work
    an_allowance_of_nothing_refuses
}

mod behaviour {
    use super::*;

    pub async fn a_burst_is_granted_and_then_refused(limiter: Limiter) {
        let bucket = fresh("burst");
        for left in (0..5).rev() {
            let standing = limiter.take(&bucket, 5).await;
            assert!(standing.allowed);
            assert_eq!((standing.limit, standing.remaining), (5, left));
            assert_eq!(standing.reset_seconds, u64::from(5 - left) * 12);
            assert_eq!(standing.retry_after_seconds, 0);
        }
        let refused = limiter.take(&bucket, 5).await;
        assert_eq!(
            refused,
            Standing { allowed: false, limit: 5, remaining: 0, reset_seconds: 60, retry_after_seconds: 12 }
        );
        assert_eq!(limiter.take(&bucket, 5).await, refused, "a refusal costs nothing");
    }

    /// Bounds that hold however the machine schedules this: between the first take and the last, as many come
    /// back as the time in between allows.
    pub async fn an_allowance_refills_evenly(limiter: Limiter) {
        const PER_MINUTE: u32 = 600;
        let refilled = |time: Duration| (time.as_secs_f64() * f64::from(PER_MINUTE) / 60.0) as u32;
        let bucket = fresh("refill");
        let before_first = Instant::now();
        let mut granted = u32::from(limiter.take(&bucket, PER_MINUTE).await.allowed);
        let after_first = Instant::now();
        while limiter.take(&bucket, PER_MINUTE).await.allowed {
            granted += 1;
        }
        let end = Instant::now() + Duration::from_millis(700);
        let mut before_last = Instant::now();
        while before_last < end {
            granted += u32::from(limiter.take(&bucket, PER_MINUTE).await.allowed);
            sleep(Duration::from_millis(2)).await;
            before_last = Instant::now();
        }
        granted += u32::from(limiter.take(&bucket, PER_MINUTE).await.allowed);
        let (least, most) = (refilled(before_last - after_first), refilled(before_first.elapsed()));
        assert!(least >= 7);
        assert!((PER_MINUTE + least..=PER_MINUTE + most).contains(&granted), "{granted} of {least}..={most}");
    }

    pub async fn a_give_back_undoes_a_take(limiter: Limiter) {
        let bucket = fresh("give-back");
        let full = limiter.peek(&bucket, 3).await;
        assert_eq!((full.remaining, full.reset_seconds), (3, 0));
        limiter.take(&bucket, 3).await;
        assert_eq!(limiter.give_back(&bucket, 3).await, full, "also the first take");
        for _ in 0..3 {
            assert!(limiter.take(&bucket, 3).await.allowed);
        }
        assert!(!limiter.take(&bucket, 3).await.allowed);
        let after = limiter.give_back(&bucket, 3).await;
        assert_eq!((after.allowed, after.remaining), (true, 1));
        assert!(limiter.take(&bucket, 3).await.allowed);
        assert!(!limiter.take(&bucket, 3).await.allowed);
    }

    /// Rates whose emission interval is no whole number of anything.
    pub async fn a_give_back_undoes_a_take_at_any_rate(limiter: Limiter) {
        for per_minute in [1, 7, 11, 13, 17] {
            let bucket = fresh("any-rate");
            for _ in 0..per_minute {
                assert!(limiter.take(&bucket, per_minute).await.allowed, "at {per_minute}");
                limiter.give_back(&bucket, per_minute).await;
                assert!(limiter.take(&bucket, per_minute).await.allowed, "at {per_minute}");
            }
            assert!(!limiter.take(&bucket, per_minute).await.allowed, "at {per_minute}");
        }
    }

    pub async fn a_give_back_never_overfills(limiter: Limiter) {
        let bucket = fresh("overfill");
        limiter.take(&bucket, 2).await;
        for _ in 0..4 {
            assert_eq!(limiter.give_back(&bucket, 2).await.remaining, 2);
        }
        assert!(limiter.take(&bucket, 2).await.allowed);
        assert!(limiter.take(&bucket, 2).await.allowed);
        assert!(!limiter.take(&bucket, 2).await.allowed);
    }

    pub async fn a_peek_takes_nothing(limiter: Limiter) {
        let bucket = fresh("peek");
        for _ in 0..10 {
            let standing = limiter.peek(&bucket, 2).await;
            assert_eq!((standing.allowed, standing.remaining), (true, 2));
        }
        limiter.take(&bucket, 2).await;
        limiter.take(&bucket, 2).await;
        for _ in 0..10 {
            let standing = limiter.peek(&bucket, 2).await;
            assert_eq!((standing.allowed, standing.remaining, standing.retry_after_seconds), (false, 0, 30));
        }
    }

    pub async fn concurrent_takers_get_exactly_the_allowance(limiter: Limiter) {
        let bucket = fresh("concurrent");
        let takers: Vec<_> = (0..64)
            .map(|_| {
                let (limiter, bucket) = (limiter.clone(), bucket.clone());
                tokio::spawn(async move { limiter.take(&bucket, 50).await.allowed })
            })
            .collect();
        let mut granted = 0;
        for taker in takers {
            granted += u32::from(taker.await.unwrap());
        }
        assert_eq!(granted, 50);
    }

    pub async fn buckets_are_independent(limiter: Limiter) {
        let (one, other) = (fresh("one"), fresh("other"));
        assert!(limiter.take(&one, 1).await.allowed);
        assert!(!limiter.take(&one, 1).await.allowed);
        assert!(limiter.take(&other, 1).await.allowed);
        limiter.give_back(&other, 1).await;
        assert!(!limiter.take(&one, 1).await.allowed);
    }

    pub async fn a_changed_allowance_keeps_the_share_that_is_used(limiter: Limiter) {
        let bucket = fresh("changed");
        for _ in 0..5 {
            limiter.take(&bucket, 10).await;
        }
        assert_eq!(limiter.peek(&bucket, 4).await.remaining, 2);
        assert_eq!(limiter.peek(&bucket, 10).await.remaining, 5, "a look changes nothing");
        assert_eq!(limiter.take(&bucket, 4).await.remaining, 1);
        let raised = limiter.peek(&bucket, 12).await;
        assert_eq!((raised.limit, raised.remaining, raised.reset_seconds), (12, 3, 45));
        assert!(limiter.take(&bucket, 4).await.allowed);
        assert!(!limiter.take(&bucket, 1).await.allowed, "used up stays used up");
    }

    pub async fn the_highest_rates_work(limiter: Limiter) {
        for per_minute in [245_001, 60_000_000, 700_000_001, 1_000_000_000, u32::MAX] {
            let bucket = fresh("highest");
            for _ in 0..20 {
                let standing = limiter.take(&bucket, per_minute).await;
                assert!(standing.allowed && standing.remaining < per_minute && standing.reset_seconds == 1);
            }
            limiter.give_back(&bucket, per_minute).await;
        }
    }

    pub async fn an_allowance_of_nothing_refuses(limiter: Limiter) {
        let bucket = fresh("nothing");
        let standing = limiter.take(&bucket, 0).await;
        assert_eq!((standing.allowed, standing.limit, standing.remaining), (false, 0, 0));
        assert!(standing.retry_after_seconds >= 1);
    }
}

// In the process, where the time of each step can be said.

/// An in-process limiter whose clock stands until it is moved.
struct Stopped {
    local: Local,
    now: u64,
}

impl Stopped {
    fn new() -> Stopped {
        Stopped { local: Local::new(), now: 0 }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time.as_micros() as u64;
    }

    fn apply(&self, bucket: &str, per_minute: u32, change: Change) -> Standing {
        Standing::new(self.local.apply_at(self.now, bucket, per_minute, change), per_minute)
    }

    fn take(&self, bucket: &str, per_minute: u32) -> bool {
        self.apply(bucket, per_minute, Change::Take).allowed
    }

    fn peek(&self, bucket: &str, per_minute: u32) -> Standing {
        self.apply(bucket, per_minute, Change::Look)
    }
}

#[test]
fn times_are_exact_and_rounded_up() {
    let mut limiter = Stopped::new();
    // An interval of 60/7 s: 8.571428…
    for _ in 0..7 {
        assert!(limiter.take("b", 7));
    }
    assert_eq!(limiter.peek("b", 7).retry_after_seconds, 9);
    limiter.pass(Duration::from_micros(8_571_428));
    let almost = limiter.peek("b", 7);
    assert_eq!((almost.allowed, almost.retry_after_seconds, almost.reset_seconds), (false, 1, 52));
    limiter.pass(Duration::from_micros(1));
    assert!(limiter.take("b", 7));
    assert!(!limiter.take("b", 7));
    limiter.pass(Duration::from_secs(3600));
    let full = limiter.peek("b", 7);
    assert_eq!((full.remaining, full.reset_seconds), (7, 0));
    for granted in [true, true, true, true, true, true, true, false] {
        assert_eq!(limiter.take("b", 7), granted, "an hour's rest is no more than a full bucket");
    }
}

#[test]
fn a_give_back_is_exact_while_time_passes() {
    let mut limiter = Stopped::new();
    let mut undone = 0;
    for step in 0..200 {
        // The same is done to both, but for what is undone at once on one of them.
        for bucket in ["given back", "never taken"] {
            limiter.take(bucket, 7);
        }
        limiter.pass(Duration::from_millis(step * 37));
        if limiter.take("given back", 7) {
            limiter.pass(Duration::from_millis(3));
            limiter.apply("given back", 7, Change::GiveBack);
            undone += 1;
        }
        assert_eq!(limiter.peek("given back", 7), limiter.peek("never taken", 7));
    }
    assert!(undone > 20, "{undone}");
}

#[test]
fn a_flood_of_addresses_is_forgotten() {
    let mut limiter = Stopped::new();
    for minute in 0..5 {
        for address in 0..50_000 {
            limiter.take(&format!("{minute}:{address}"), 10);
        }
        let kept = limiter.local.len();
        assert!(kept <= 2 * 50_000, "{kept} after minute {minute}");
        limiter.pass(Duration::from_secs(60));
    }
    for address in 0..2_000 {
        limiter.take(&format!("later:{address}"), 10);
    }
    let kept = limiter.local.len();
    assert!(kept <= 2_000, "{kept} are left");
}

// The twins held against each other, over time: the script with its clock replaced by ours.

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn the_twins_agree(steps in proptest::collection::vec(
        (0..2_usize, -1..=1_i32, 0..4_usize, 0..6_usize, 0..20_000_000_u64), 1..40,
    )) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let frozen = super::redis::SCRIPT
                .replace("redis.call('TIME')", "{0, ARGV[#ARGV]}")
                .replace(", 'PX', full_in", "");
            assert!(!frozen.contains("TIME'") && !frozen.contains("'PX'"), "the script has changed");
            let script = client::Script::new(&frozen);
            let mut connection =
                Client::open(redis_url()).unwrap().get_multiplexed_async_connection().await.unwrap();
            let names = [fresh("twin"), fresh("twin")];
            let mut buckets = [None::<Bucket>; 2];
            let mut now = 1_700_000_000_000_000_u64;
            for (which, change, rate, pace, time) in steps {
                // Half of the steps take no time, some more than any allowance needs, and some set the clock back.
                now = match pace {
                    0 => now + time,
                    1 => now + time * 10,
                    2 => now - time,
                    _ => now,
                };
                let per_minute = [1, 5, 7, 600][rate];
                let change = match change {
                    -1 => Change::GiveBack,
                    0 => Change::Look,
                    _ => Change::Take,
                };
                let (verdict, after) = Bucket::apply(buckets[which], now, per_minute, change);
                buckets[which] = after;
                let answers: Vec<(bool, u64)> = script
                    .key(&names[which]).arg(per_minute).arg(change as i32).arg(now)
                    .invoke_async(&mut connection).await.unwrap();
                let (allowed, owed) = answers[0];
                assert_eq!(Verdict { allowed, owed }, verdict, "{change:?} of {per_minute} at {now}");
            }
        });
    }
}

// Redis, and its failures.

#[tokio::test]
async fn keys_expire_when_full_and_strangers_in_their_place_are_replaced() {
    let mut connection = Client::open(redis_url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let limiter = Limiter::with_patience(&redis_url(), Arc::new(Metrics::new()), LONG).unwrap();
    let bucket = fresh("expiry");
    let key = format!("spell:rate:{bucket}");
    let () = connection.lpush(&key, "not ours").await.unwrap();
    assert!(limiter.take(&bucket, 2).await.allowed);
    let lives: i64 = connection.pttl(&key).await.unwrap();
    assert!((1..=30_000).contains(&lives), "{lives} ms");
    limiter.give_back(&bucket, 2).await;
    assert!(!connection.exists::<_, bool>(&key).await.unwrap(), "a full bucket is not kept");
}

#[tokio::test]
async fn a_server_clock_set_back_does_not_stop_the_refill() {
    let mut connection = Client::open(redis_url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let limiter = Limiter::with_patience(&redis_url(), Arc::new(Metrics::new()), LONG).unwrap();
    let bucket = fresh("clock");
    // Written a year ahead: one of 600 owed, which refills in a tenth of a second once it counts from now.
    let (seconds, _): (u64, u64) = client::cmd("TIME").query_async(&mut connection).await.unwrap();
    let ahead = format!("{} 60000000 600", (seconds + 31_536_000) * 1_000_000);
    let () = connection.set(format!("spell:rate:{bucket}"), ahead).await.unwrap();
    assert_eq!(limiter.peek(&bucket, 600).await.remaining, 599);
    sleep(Duration::from_millis(150)).await;
    assert_eq!(limiter.peek(&bucket, 600).await.remaining, 600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_an_allowance_from_any_runtime() {
    let replica = || Limiter::with_patience(&redis_url(), Arc::new(Metrics::new()), LONG).unwrap();
    let bucket = fresh("replicas");
    let workers: Vec<_> = [replica(), replica()]
        .into_iter()
        .map(|limiter| {
            let bucket = bucket.clone();
            // As an actix worker has it: a runtime of its own, on a thread of its own.
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async move {
                    let mut granted = 0;
                    for _ in 0..10 {
                        granted += u32::from(limiter.take(&bucket, 10).await.allowed);
                    }
                    granted
                })
            })
        })
        .collect();
    let granted: u32 =
        tokio::task::spawn_blocking(|| workers.into_iter().map(|w| w.join().unwrap()).sum()).await.unwrap();
    assert_eq!(granted, 10);
}

#[tokio::test]
async fn an_unusable_url_is_refused_without_repeating_it() {
    for url in [
        "http://:hunter2@localhost",
        "hunter2",
        "redis://:hunter2@",
        "redis://:hunter2@localhost:99999",
        "redis://:hunter2@localhost/hunter2",
        "rediss://:hunter2@localhost#hunter2",
        "redis://:hunter2%ff@localhost",
    ] {
        let why = Limiter::over_redis(url, Arc::new(Metrics::new())).err().expect(url);
        assert!(
            !why.contains("hunter2") && why.starts_with("it is not a usable") | why.contains("begin"),
            "{why}"
        );
    }
    assert_eq!(Limiter::in_process().ping().await, None);
}

/// Outside a runtime the answer is an error, not a panic.
#[test]
fn a_limiter_over_redis_wants_a_runtime() {
    assert!(Limiter::over_redis("redis://localhost", Arc::new(Metrics::new())).is_err());
}

/// A `redis-server` of one test's own, gone with it.
struct Server(Child);

impl Server {
    fn start(port: u16) -> Server {
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Server(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

fn over(port: u16, patience: Duration) -> (Limiter, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new());
    let limiter = Limiter::with_patience(&format!("redis://127.0.0.1:{port}"), metrics.clone(), patience);
    (limiter.unwrap(), metrics)
}

async fn wait_until_up(limiter: &Limiter) {
    for _ in 0..600 {
        if limiter.ping().await == Some(Ok(())) {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("Redis was not found again: {:?}", limiter.ping().await);
}

/// Takes 40 of 30, and asserts that the process decided them, exactly and without waiting for Redis each time.
async fn falls_back(limiter: &Limiter, metrics: &Metrics) {
    let (bucket, counted, start) = (fresh("fallback"), metrics.redis_errors.get(), Instant::now());
    let mut granted = 0;
    for _ in 0..40 {
        granted += u32::from(limiter.take(&bucket, 30).await.allowed);
    }
    assert!(start.elapsed() < Duration::from_millis(900), "took {:?}", start.elapsed());
    assert_eq!((granted, metrics.redis_errors.get() - counted), (30, 40));
    assert!(limiter.ping().await.unwrap().is_err());
}

/// Asserts that Redis decides again, and counts no error.
async fn decides(limiter: &Limiter, metrics: &Metrics, port: u16) {
    let (bucket, counted) = (fresh("shared"), metrics.redis_errors.get());
    assert!(limiter.take(&bucket, 1).await.allowed);
    let (other, _) = over(port, LONG);
    assert!(!other.take(&bucket, 1).await.allowed, "the other replica sees it");
    assert_eq!(metrics.redis_errors.get(), counted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_comes_goes_and_comes_again_is_found_again() {
    let port = free_port().await;
    let (limiter, metrics) = over(port, Duration::from_millis(250));
    falls_back(&limiter, &metrics).await;
    let server = Server::start(port);
    wait_until_up(&limiter).await;
    decides(&limiter, &metrics, port).await;
    drop(server);
    falls_back(&limiter, &metrics).await;
    let _server = Server::start(port);
    wait_until_up(&limiter).await;
    decides(&limiter, &metrics, port).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_accepts_and_hangs_slows_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let metrics = Arc::new(Metrics::new());
    let limiter = Limiter::over_redis(&format!("redis://127.0.0.1:{port}"), metrics.clone()).unwrap();
    let hang = tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    falls_back(&limiter, &metrics).await;
    let together = (0..64).map(|_| limiter.take("hang", 50));
    let start = Instant::now();
    let granted = futures_util::future::join_all(together).await.iter().filter(|s| s.allowed).count();
    assert!(start.elapsed() < Duration::from_millis(500), "took {:?}", start.elapsed());
    assert_eq!((granted, metrics.redis_errors.get()), (50, 40 + 64));
    hang.abort();
}

/// A proxy to `port` that can stop passing anything on, without closing what is open: what a pulled cable or a
/// forgetful firewall looks like. Whatever was stopped once stays so; only new connections pass again.
async fn proxy(port: u16) -> (u16, watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (passes, passing) = watch::channel(true);
    let own = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut passing = passing.clone();
            tokio::spawn(async move {
                let stopped = async {
                    let _ = passing.wait_for(|passes| !passes).await;
                };
                let copied = async {
                    let mut far = TcpStream::connect(("127.0.0.1", port)).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                };
                tokio::select! {
                    biased;
                    () = stopped => std::future::pending().await,
                    _ = copied => {}
                }
            });
        }
    });
    (own, passes)
}

#[tokio::test]
async fn a_connection_that_breaks_half_open_is_replaced_and_each_change_is_logged_once() {
    let (log, _guard) = Log::of_this_thread();
    let port = free_port().await;
    let _server = Server::start(port);
    let (through, passes) = proxy(port).await;
    let (limiter, metrics) = over(through, Duration::from_millis(250));
    wait_until_up(&limiter).await;
    decides(&limiter, &metrics, port).await;
    let before = log.lines();
    passes.send_replace(false);
    falls_back(&limiter, &metrics).await;
    // Long enough for a probe or two to fail, which is no change of state.
    sleep(Duration::from_millis(2_500)).await;
    assert!(limiter.ping().await.unwrap().is_err());
    passes.send_replace(true);
    wait_until_up(&limiter).await;
    decides(&limiter, &metrics, port).await;
    let lines = log.lines();
    let [down, up] = &lines[before.len()..] else { panic!("{lines:#?}") };
    assert!(down.contains("WARN") && down.contains("Redis is down"), "{down}");
    assert!(up.contains("INFO") && up.contains("Redis is back"), "{up}");
}

/// A Redis that answers PING but cannot write is down for us, and stays so instead of flapping.
#[tokio::test]
async fn a_redis_without_memory_counts_as_down() {
    let (log, _guard) = Log::of_this_thread();
    let port = free_port().await;
    let _server = Server::start(port);
    let (limiter, metrics) = over(port, Duration::from_millis(250));
    wait_until_up(&limiter).await;
    let client = Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let full = |bytes: &'static str| {
        let mut cmd = client::cmd("CONFIG");
        cmd.arg("SET").arg("maxmemory").arg(bytes);
        cmd
    };
    let before = log.lines().len();
    let () = full("1").query_async(&mut admin).await.unwrap();
    falls_back(&limiter, &metrics).await;
    sleep(Duration::from_millis(2_500)).await;
    assert!(limiter.ping().await.unwrap().is_err());
    assert_eq!(log.lines()[before..].len(), 1, "{:#?}", log.lines());
    let () = full("0").query_async(&mut admin).await.unwrap();
    wait_until_up(&limiter).await;
    decides(&limiter, &metrics, port).await;
}

#[tokio::test]
async fn a_script_that_redis_forgot_is_loaded_again() {
    let port = free_port().await;
    let _server = Server::start(port);
    let (limiter, metrics) = over(port, LONG);
    wait_until_up(&limiter).await;
    let client = Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
    let mut admin = client.get_multiplexed_async_connection().await.unwrap();
    let () = client::cmd("SCRIPT").arg("FLUSH").query_async(&mut admin).await.unwrap();
    decides(&limiter, &metrics, port).await;
}

/// TLS to something that does not speak it is a failure like any other, not a panic in the task.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_to_a_plain_port_falls_back() {
    let port = free_port().await;
    let _server = Server::start(port);
    let metrics = Arc::new(Metrics::new());
    let limiter = Limiter::over_redis(&format!("rediss://127.0.0.1:{port}"), metrics.clone()).unwrap();
    falls_back(&limiter, &metrics).await;
    let why = limiter.ping().await.unwrap().unwrap_err();
    assert!(!why.contains("runtime"), "the task lives: {why}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// What this thread logs while the guard lives; on a runtime of one thread, all that a test does.
    fn of_this_thread() -> (Log, tracing::subscriber::DefaultGuard) {
        let log = Log::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        (log, tracing::subscriber::set_default(subscriber.finish()))
    }

    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("Redis")).map(Into::into).collect()
    }
}

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
