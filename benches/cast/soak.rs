//! A steady load for minutes, and the memory of the process under it.

use std::time::{Duration, Instant};

use crate::{
    Settings,
    figures::{Growth, Sample, decimals, whole},
    load::{Pace, load},
    number,
    platform::{Accounts, Place, Platform},
    row::{Drift, Faults},
    services::Services,
};

const EVERY: Duration = Duration::from_secs(2);
/// Caches fill and threads come up within it, SQLite's 64 MB of pages last; at most half of the run.
const WARM_UP_SECONDS: f64 = 60.0;

pub async fn run(services: &Services, settings: &Settings, seconds: u64) -> bool {
    // Steady, and so that ten minutes of it fit on the disk.
    let rate = number("BENCH_RATE", 5_000) as u32;
    let warm_up = WARM_UP_SECONDS.min(seconds as f64 / 2.0);
    let mut faults = Faults::default();
    let mut flat = true;
    println!(
        "{} casts a second for {seconds} s, memory every {} s. Flat: the line fitted through what was measured \
         after the first {warm_up:.0} s rises by less than 5 % of where it begins, or less than 2 MB.\n",
        whole(f64::from(rate)),
        EVERY.as_secs(),
    );
    for name in ["SQLite, 64 accounts", "PostgreSQL, 64 accounts"] {
        if !name.contains(&settings.only) {
            continue;
        }
        let database = if name.starts_with("SQLite") { services.sqlite() } else { services.postgres().await };
        let platform = Platform::set_up(Place::on(database.clone()), Accounts::New(64)).await;
        let process = platform.start().await;
        let before = platform.booked(&process).await;
        let pace = Pace { span: Duration::from_secs(seconds), rate: Some(rate) };
        let (addresses, keys) = (vec![process.address.clone()], platform.keys.clone());
        let loading = tokio::spawn(async move { load(&addresses, &keys, pace).await });
        let (began, mut samples) = (Instant::now(), Vec::new());
        let mut ticks = tokio::time::interval(EVERY);
        while !loading.is_finished() {
            ticks.tick().await;
            samples.push(Sample { seconds: began.elapsed().as_secs_f64(), megabytes: process.megabytes() });
        }
        let measured = loading.await.unwrap();
        let drift = Drift::between(platform.booked(&process).await - before, &measured);
        faults.note(name, &measured, drift);
        process.stop();
        services.remove(&database).await;
        let growth = Growth::of(&samples, warm_up).expect("it took long enough");
        let milliseconds = decimals(2);
        println!(
            "- {name}: {growth}. {} casts were answered, at the median within {} ms, p99 {} ms.",
            whole(measured.answered as f64),
            milliseconds(measured.p50_ms),
            milliseconds(measured.p99_ms)
        );
        flat &= growth.is_flat();
    }
    faults.tell() && flat
}
