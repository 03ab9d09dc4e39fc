//! Many processes and their database in one thread, in a time of their own: whole histories of
//! requests, crashes, lost answers and wrong clocks, each drawn from a seed.
//!
//! What runs is the real thing down to the statements: lanes, batches, retries, undoing, the rules, the
//! SQL, on SQLite. Only what becomes of a call to the database is drawn (`store::simulated`), and what is
//! asked by whom and when ([`client`]). After each commit the books are looked at ([`books`]), each
//! answer is held against them ([`promises`]), and in the end all of it comes to rest ([`ending`],
//! [`settled`]). `docs/proof.md` says what that shows and what not.
//!
//! A history depends on nothing but its seed: one thread, tokio's paused time, dice. So a seed that
//! fails is printed, fails again, and belongs into [`KEPT`] once it is understood:
//!
//! ```sh
//! SIMULATE_SEED=17 cargo test --lib simulation -- --nocapture        # one history, told aloud
//! SIMULATE_SCHEDULES=20000 cargo test --release --lib simulation     # more of them
//! ```

mod books;
mod client;
mod dice;
mod ending;
mod promises;
mod settled;
mod world;

use std::{
    cell::Cell,
    env, fs,
    num::NonZero,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{task::JoinSet, time::timeout};

use self::{dice::Dice, world::World};
use super::tests::ADD_ACCOUNT;
use crate::{
    clock::Time,
    money::Nanos,
    plan,
    store::{Db, binds},
    telemetry::Metrics,
    wallet::{Grant, PaidFor, Payment, grant},
};

/// Seeds that found something once:
/// - the first three: a hold whose caller had been told 503 stayed charged if another replica took it for lost
///   before its lane could undo it;
/// - 5,049: undoing a hold freed the idempotency key that it came with, which by then was another cast's, a day
///   later by the clock.
const KEPT: &[u64] = &[1_042, 1_676, 1_888, 5_049];

/// How many schedules a run of the tests plays.
const SCHEDULES: u64 = 300;

thread_local! {
    static PLAYED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// What a schedule begins with: a migrated file with two accounts that have some credits.
struct Stage {
    folder: TempDir,
    metrics: Arc<Metrics>,
}

impl Stage {
    fn set() -> Stage {
        // In memory, where there is such a folder: nothing of it is to last.
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() };
        let stage = Stage { folder: folder.unwrap(), metrics: Arc::new(Metrics::new()) };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        runtime.unwrap().block_on(async {
            let db = Db::open(&format!("sqlite:{}", stage.path("template"))).unwrap();
            db.migrate().await.unwrap();
            plan::seed(&db, "free", "usd", Time(1)).await.unwrap();
            for account in ["acct_0", "acct_1"] {
                db.execute(&ADD_ACCOUNT, binds![account]).await.unwrap();
                let bought = Grant {
                    paid_for: PaidFor::Transaction(account.to_owned()),
                    account: account.into(),
                    credits: 60,
                    credit_value: Nanos(1),
                    amount_cents: 60,
                    payment: Payment { intent: Some(account.to_owned()), ..Payment::default() },
                };
                let mut tx = db.begin().await.unwrap();
                grant(&mut tx, &bought, "bought", Time(1)).await.unwrap();
                tx.commit().await.unwrap();
            }
            db.close().await;
        });
        stage
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// Plays a seed's schedule.
    fn play(&self, seed: u64, aloud: bool) -> Played {
        PLAYED.set(Some(seed));
        let name = format!("seed_{seed}");
        fs::copy(self.path("template"), self.path(&name)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let played = runtime.unwrap().block_on(async {
            let world = World::new(&self.path(&name), Dice::new(seed), self.metrics.clone(), aloud);
            live(&world).await;
            let state = world.state();
            let (violation, commits, steps) = (state.violation.clone(), state.commits, state.steps);
            drop(state);
            Played { violation, commits, steps, fingerprint: world.fingerprint() }
        });
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(self.path(&format!("{name}{suffix}")));
        }
        PLAYED.set(None);
        played
    }
}

struct Played {
    violation: Option<String>,
    commits: u64,
    steps: u64,
    fingerprint: u64,
}

async fn live(world: &Arc<World>) {
    let mut around = JoinSet::new();
    for place in 0..world.temper.replicas {
        world.start(place);
        around.spawn(client::keep_running(world.clone(), place));
        around.spawn(client::sweep(world.clone(), place));
    }
    around.spawn(client::administer(world.clone()));
    around.spawn(client::trouble(world.clone()));
    let mut clients = JoinSet::new();
    for number in 0..world.temper.clients {
        clients.spawn(client::ask(world.clone(), number as u64));
    }
    let ends = async {
        while let Some(ended) = clients.join_next().await {
            ended.unwrap();
        }
    };
    if timeout(Duration::from_secs(600), ends).await.is_err() {
        world.hold(Err("somebody waits for ever".to_owned()));
        return;
    }
    around.shutdown().await;
    ending::end(world).await;
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Says which seed it was, also where the panic is in a lane, which ends the process.
fn tell_the_seed_of_a_panic() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(seed) = PLAYED.get() {
            eprintln!("{}", again(seed));
        }
        usual(panic);
    }));
}

fn again(seed: u64) -> String {
    format!("seed {seed}; again: SIMULATE_SEED={seed} cargo test --lib simulation::schedules -- --nocapture")
}

#[test]
fn schedules() {
    tell_the_seed_of_a_panic();
    let stage = Stage::set();
    if let Some(seed) = number("SIMULATE_SEED") {
        let played = stage.play(seed, true);
        assert_eq!(played.violation, None, "{}", again(seed));
        return;
    }
    let schedules = number("SIMULATE_SCHEDULES").unwrap_or(SCHEDULES);
    let first = number("SIMULATE_FROM").unwrap_or(0);
    let seeds: Vec<u64> = KEPT.iter().copied().chain(first..first + schedules).collect();
    let (next, total) = (AtomicUsize::new(0), Mutex::new(Total::default()));
    let began = Instant::now();
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let (stage, seeds, next, sum) = (&stage, &seeds, &next, &total);
    thread::scope(|scope| {
        for number in 0..threads {
            scope.spawn(move || {
                stay_on_a_core(number);
                while let Some(&seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let played = stage.play(seed, false);
                    sum.lock().unwrap().add(seed, played);
                }
            });
        }
    });
    let Total { mut failed, commits, steps } = total.into_inner().unwrap();
    let (played, took) = (seeds.len(), began.elapsed().as_secs_f64());
    let guesses = |result| stage.metrics.ledger_guesses.with_label_values(&[result]).get();
    let (right, wrong) = (guesses("right"), guesses("wrong"));
    println!(
        "{played} schedules, {commits} commits, {steps} steps in {took:.1} s; {right} right guesses, {wrong} wrong"
    );
    failed.sort_unstable();
    assert!(failed.is_empty(), "these seeds fail: {failed:?}");
    assert!(commits > schedules * 5, "only {commits} commits: hardly anything happens");
    assert!(right > schedules / 10 && wrong > schedules / 100, "{right} right guesses, {wrong} wrong ones");
}

/// Keeps this thread on one of the cores it may use, and with it the threads of the connections that it will
/// open. They hand each statement over and wait for the answer, so that no two of them ever work at once, and
/// handing over to another core takes longer than most statements do.
#[cfg(target_os = "linux")]
fn stay_on_a_core(number: usize) {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    // Where it is not to be had it is slower, and the same otherwise.
    let Ok(allowed) = sched_getaffinity(None) else { return };
    if let Some(core) = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core)).nth(number) {
        let mut own = CpuSet::new();
        own.set(core);
        let _ = sched_setaffinity(None, &own);
    }
}

#[cfg(not(target_os = "linux"))]
fn stay_on_a_core(_: usize) {}

#[derive(Default)]
struct Total {
    failed: Vec<u64>,
    commits: u64,
    steps: u64,
}

impl Total {
    fn add(&mut self, seed: u64, played: Played) {
        if let Some(violation) = played.violation {
            eprintln!("{violation}\n  {}", again(seed));
            self.failed.push(seed);
        }
        self.commits += played.commits;
        self.steps += played.steps;
    }
}

#[test]
fn a_seed_has_one_history() {
    let stage = Stage::set();
    for seed in 1_000..1_012 {
        let [first, second] = [(); 2].map(|()| stage.play(seed, false).fingerprint);
        assert_eq!(first, second, "{}", again(seed));
    }
}
