//! The platform against its floors.

use crate::{
    Settings,
    figures::{Spread, Table, decimals, ratio, whole},
    floors::update,
    load::Pace,
    platform::{Accounts, Place, Platform},
    row::{Faults, Row, Subject, play},
    services::Services,
};

/// Sizes of the `UPDATE`'s pool that are tried, and how often; its floor is the fastest at the median.
const POOLS: [u32; 4] = [4, 8, 16, 64];
const TRIALS: usize = 3;

const BARE: &str = "bare actix-web, same JSON";
const SCRIPT: &str = "one Redis script";

/// A row of the platform, and the floor that is its own.
struct Case {
    name: &'static str,
    store: Store,
    accounts: usize,
    redis: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Store {
    Sqlite,
    Postgres,
}

const CASES: [Case; 5] = [
    Case { name: "SQLite, one account", store: Store::Sqlite, accounts: 1, redis: false },
    Case { name: "PostgreSQL, one account", store: Store::Postgres, accounts: 1, redis: false },
    Case { name: "PostgreSQL, 64 accounts", store: Store::Postgres, accounts: 64, redis: false },
    Case { name: "PostgreSQL, 1,000 accounts", store: Store::Postgres, accounts: 1_000, redis: false },
    Case { name: "PostgreSQL and Redis, one account", store: Store::Postgres, accounts: 1, redis: true },
];

impl Case {
    /// The floor's name: one row's `UPDATE` per request on the same database.
    fn update(&self) -> String {
        let (store, rows) = match (self.store, self.accounts) {
            (Store::Sqlite, _) => ("SQLite", "one hot row".to_owned()),
            (Store::Postgres, 1) => ("PostgreSQL", "one hot row".to_owned()),
            (Store::Postgres, more) => ("PostgreSQL", format!("{} rows", whole(more as f64))),
        };
        format!("one `UPDATE`, {store}, {rows}")
    }

    async fn database(&self, services: &Services) -> String {
        match self.store {
            Store::Sqlite => services.sqlite(),
            Store::Postgres => services.postgres().await,
        }
    }
}

pub async fn run(services: &Services, settings: &Settings) -> bool {
    settings.tell();
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(&settings.only)).collect();
    let mut rows = vec![Row::new(BARE, Subject::Bare)];
    let mut tried = Vec::new();
    for case in &cases {
        if !rows.iter().any(|row| row.name == case.update()) {
            let (subject, rates) = fastest_update(case, services, settings).await;
            tried.extend(rates.map(|rates| format!("{}: {rates}", case.update())));
            rows.push(Row::new(case.update(), subject));
        }
    }
    rows.push(Row::new(SCRIPT, Subject::Script { redis: services.redis.clone() }));
    for case in &cases {
        let redis = case.redis.then(|| services.redis.clone());
        let place = Place { database: case.database(services).await, redis };
        rows.push(Row::platform(case.name, Platform::set_up(place, Accounts::New(case.accounts)).await));
    }
    let mut faults = Faults::default();
    play(&mut rows, services, settings.rounds, Pace::full(settings.span), &mut faults).await;

    println!("{}", all(&rows, &cases));
    println!("One account, requests a second against each floor's:\n\n{}", ratios(&rows, &cases));
    for (what, one, other) in [
        ("One account against 1,000", "PostgreSQL, one account", "PostgreSQL, 1,000 accounts"),
        ("With Redis against without", "PostgreSQL and Redis, one account", "PostgreSQL, one account"),
    ] {
        if let (Some(one), Some(other)) = (find(&rows, one), find(&rows, other)) {
            println!("{what}, PostgreSQL: {}.", one.against(other).shown(ratio));
        }
    }
    println!("\nConnections in the pool of `UPDATE`, and requests a second, of which the fastest was taken:");
    for line in tried {
        println!("- {line}");
    }
    faults.tell()
}

/// The floor of a case with the best of the pools, and what each of them came to, if there is a choice.
async fn fastest_update(case: &Case, services: &Services, settings: &Settings) -> (Subject, Option<String>) {
    let database = case.database(services).await;
    let accounts = case.accounts;
    if case.store == Store::Sqlite {
        return (Subject::Update { database, accounts, connections: 1 }, None);
    }
    let mut rates = POOLS.map(|_| Vec::new());
    for _ in 0..TRIALS {
        for (connections, rates) in POOLS.into_iter().zip(&mut rates) {
            services.checkpoint().await;
            let pace = Pace::full(settings.trial());
            let (measured, _) = update::measure(&database, accounts, connections, pace).await;
            rates.push(measured.rate);
        }
    }
    let tried: Vec<(u32, Spread)> = POOLS.into_iter().zip(rates.map(Spread::of)).collect();
    let fastest = tried.iter().max_by(|one, other| one.1.median.total_cmp(&other.1.median)).unwrap();
    let told = tried.iter().map(|(connections, rate)| format!("{connections}: {}", rate.shown(whole)));
    let told = told.collect::<Vec<_>>().join("; ");
    (Subject::Update { database, accounts, connections: fastest.0 }, Some(told))
}

fn find<'a>(rows: &'a [Row], name: &str) -> Option<&'a Row> {
    rows.iter().find(|row| row.name == name)
}

fn all(rows: &[Row], cases: &[&Case]) -> Table {
    let mut table =
        Table::new(&["", "requests/s", "p50 ms", "p99 ms", "against bare actix-web", "against its `UPDATE`"]);
    let shown = |spread: Option<Spread>| spread.map_or(String::new(), |spread| spread.shown(ratio));
    for row in rows {
        let case = cases.iter().find(|case| case.name == row.name);
        let own = case.and_then(|case| find(rows, &case.update())).map(|floor| row.against(floor));
        table.row([
            row.name.clone(),
            row.rate().shown(whole),
            row.p50_ms().shown(decimals(2)),
            row.p99_ms().shown(decimals(2)),
            shown(find(rows, BARE).map(|bare| row.against(bare))),
            shown(own),
        ]);
    }
    table
}

/// The three ratios of each case with one account.
fn ratios(rows: &[Row], cases: &[&Case]) -> Table {
    let cases: Vec<&&Case> = cases.iter().filter(|case| case.accounts == 1).collect();
    let names = cases.iter().map(|case| case.name.trim_end_matches(", one account"));
    let head: Vec<&str> = std::iter::once("").chain(names).collect();
    let mut table = Table::new(&head);
    for (what, floor) in [
        ("bare actix-web, which keeps nothing", None),
        ("one hot-row `UPDATE` per request, same database", Some(None)),
        ("one Redis script per request, in memory alone", Some(Some(SCRIPT))),
    ] {
        let against = |case: &&Case| {
            let floor = match floor {
                None => BARE.to_owned(),
                Some(None) => case.update(),
                Some(Some(name)) => name.to_owned(),
            };
            find(rows, case.name).zip(find(rows, &floor)).map(|(row, floor)| row.against(floor))
        };
        let cells =
            cases.iter().map(|case| against(case).map_or(String::new(), |spread| spread.shown(ratio)));
        table.row(std::iter::once(what.to_owned()).chain(cells));
    }
    table
}
