//! From the start of a process to its first answers, on a database that is there.

use std::time::{Duration, Instant};

use reqwest::Client;

use crate::{
    Settings,
    figures::{Spread, Table, whole},
    load::Pace,
    number,
    platform::{Accounts, Place, Platform, Process},
    row::Faults,
    services::Services,
};

pub async fn run(services: &Services, settings: &Settings) -> bool {
    let starts = number("BENCH_STARTS", 30) as usize;
    let mut faults = Faults::default();
    let mut table = Table::new(&["", "first `GET /healthz`, ms", "worst, ms", "first cast, ms", "worst, ms"]);
    for (name, place) in [
        ("SQLite", Place::on(services.sqlite())),
        ("PostgreSQL", Place::on(services.postgres().await)),
        (
            "PostgreSQL and Redis",
            Place { database: services.postgres().await, redis: Some(services.redis.clone()) },
        ),
    ] {
        if !name.contains(&settings.only) {
            continue;
        }
        let platform = Platform::set_up(place.clone(), Accounts::New(64)).await;
        // Something is in the books.
        let (measured, drift) = platform.measure(1, Pace::full(settings.trial())).await;
        faults.note(name, &measured, drift);
        let mut firsts = Vec::new();
        for _ in 0..starts {
            firsts.push(First::of(&place, &platform.keys[0]).await);
        }
        let healthy = Spread::of(firsts.iter().map(|first| first.healthy_ms));
        let cast = Spread::of(firsts.iter().map(|first| first.cast_ms));
        table.row(
            [name.to_owned()]
                .into_iter()
                .chain([healthy.median, healthy.high, cast.median, cast.high].map(whole)),
        );
    }
    println!("Of {starts} starts each, the median and the worst, from before `exec`:\n\n{table}");
    faults.tell()
}

/// When a start first answered.
struct First {
    healthy_ms: f64,
    cast_ms: f64,
}

impl First {
    async fn of(place: &Place, key: &str) -> First {
        let began = Instant::now();
        let process = Process::start(place);
        let milliseconds = || began.elapsed().as_secs_f64() * 1e3;
        let client = Client::new();
        let url = |path: &str| format!("http://{}{path}", process.address);
        until_ok(|| client.get(url("/healthz"))).await;
        let healthy_ms = milliseconds();
        let body = r#"{"spell_name":"echo","payload":{}}"#;
        let cast =
            || client.post(url("/v1/cast")).bearer_auth(key).header("Content-Type", "application/json");
        until_ok(|| cast().body(body)).await;
        let first = First { healthy_ms, cast_ms: milliseconds() };
        process.stop();
        first
    }
}

async fn until_ok(request: impl Fn() -> reqwest::RequestBuilder) {
    while !request().send().await.is_ok_and(|answer| answer.status() == 200) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
