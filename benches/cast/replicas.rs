//! Three processes on one PostgreSQL against one, under the same connections, spread over them.

use crate::{
    Settings, cores,
    figures::{Table, decimals, ratio, whole},
    load::Pace,
    platform::{Accounts, Place, Platform},
    row::{Faults, Row, Subject, play},
    services::Services,
};

const ACCOUNTS: [(&str, usize); 2] = [("one account", 1), ("64 accounts", 64)];
const PROCESSES: [(&str, usize); 2] = [("one process", 1), ("three processes", 3)];

pub async fn run(services: &Services, settings: &Settings) -> bool {
    settings.tell();
    let mut rows = Vec::new();
    for (accounts, count) in ACCOUNTS {
        for (number, processes) in PROCESSES {
            let name = format!("{accounts}, {number}");
            if name.contains(&settings.only) {
                let place = Place::on(services.postgres().await);
                let platform = Platform::set_up(place, Accounts::New(count)).await;
                rows.push(Row::new(name, Subject::Platform { platform, processes }));
            }
        }
    }
    let mut faults = Faults::default();
    play(&mut rows, services, settings.rounds, Pace::full(settings.span), &mut faults).await;
    let mut table =
        Table::new(&["on one PostgreSQL", "requests/s", "p50 ms", "p99 ms", "against one process"]);
    for row in &rows {
        let single = row.name.split(',').next().map(|accounts| format!("{accounts}, {}", PROCESSES[0].0));
        let single = rows.iter().find(|other| Some(&other.name) == single.as_ref());
        table.row([
            row.name.clone(),
            row.rate().shown(whole),
            row.p50_ms().shown(decimals(2)),
            row.p99_ms().shown(decimals(2)),
            single.map_or(String::new(), |single| row.against(single).shown(ratio)),
        ]);
    }
    println!("{table}");
    println!(
        "Load, processes and PostgreSQL share {} cores: where one process keeps them busy, others only take turns.",
        cores()
    );
    faults.tell()
}
