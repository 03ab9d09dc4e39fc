//! The same rows on an empty database and on one where many accounts have spent for long.

mod fill;

use std::time::{Duration, Instant};

use self::fill::{Base, Size};
use crate::{
    Settings,
    figures::{Table, decimals, grouped, ratio, whole},
    load::Pace,
    number,
    platform::{Accounts, Place, Platform, Process},
    row::{Faults, Row, play},
    services::Services,
};

/// Over how many accounts the load goes.
const LOADS: [(&str, usize); 2] = [("one account", 1), ("1,000 accounts", 1_000)];

pub async fn run(services: &Services, settings: &Settings) -> bool {
    let size = Size {
        accounts: number("BENCH_ACCOUNTS", 1_000_000).max(1_000),
        entries: number("BENCH_ENTRIES", 10_000_000),
    };
    settings.tell();
    let full_name = format!("{} accounts, {} entries", grouped(size.accounts), grouped(size.entries));
    let mut table = Table::new(&["requests/s", "empty", &full_name, "full against empty"]);
    let mut faults = Faults::default();
    let (mut told, mut clean) = (Vec::new(), true);
    for name in ["SQLite", "PostgreSQL"] {
        if !name.contains(&settings.only) {
            continue;
        }
        let database = async || if name == "SQLite" { services.sqlite() } else { services.postgres().await };
        let (empty, full) = (database().await, database().await);
        // The schema.
        Process::start(&Place::on(full.clone())).ready().await.stop();
        let mut base = Base::connect(&full).await;
        let took = base.fill(size).await;
        let gigabytes = base.gigabytes().await;
        base.close().await;
        let mut rows = Vec::new();
        for (load, count) in LOADS {
            for (state, database, accounts) in
                [("empty", &empty, Accounts::New(count)), ("full", &full, Accounts::Known(size.some(count)))]
            {
                let platform = Platform::set_up(Place::on(database.clone()), accounts).await;
                rows.push(Row::platform(format!("{name}, {load}, {state}"), platform));
            }
        }
        play(&mut rows, services, settings.rounds, Pace::full(settings.span), &mut faults).await;
        for ((load, _), pair) in LOADS.iter().zip(rows.chunks(2)) {
            let [empty, full] = pair else { continue };
            table.row([
                format!("{name}, {load}"),
                empty.rate().shown(whole),
                full.rate().shown(whole),
                full.against(empty).shown(ratio),
            ]);
        }
        let began = Instant::now();
        let audit = audit(&full);
        clean &= audit.is_ok();
        told.push(format!(
            "{name}: filled in {} s, {} GB; {}, in {} s",
            seconds(took),
            decimals(1)(gigabytes),
            audit.unwrap_or_else(|said| format!("THE AUDIT FAILED: {said}")),
            seconds(began.elapsed()),
        ));
        for database in [empty, full] {
            services.remove(&database).await;
        }
    }
    println!("{table}");
    for line in told {
        println!("- {line}");
    }
    faults.tell() && clean
}

fn seconds(took: Duration) -> String {
    whole(took.as_secs_f64())
}

/// What the operator's audit says of the books.
fn audit(database: &str) -> Result<String, String> {
    let output = Place::on(database.to_owned()).command().arg("audit").output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    match output.status.success() {
        true => Ok(format!("audited: {}", said.lines().next().unwrap_or_default())),
        false => Err(said),
    }
}
