//! A row of a table: what is measured, again and again.

use crate::{
    figures::Spread,
    floors::{bare, redis, update},
    load::{Measured, Pace},
    platform::Platform,
    services::Services,
};

/// By how many casts the books differ from what the clients were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drift(pub u64);

impl Drift {
    /// What got no answer, or another one than 200, may be booked or not.
    pub fn between(booked: i64, measured: &Measured) -> Drift {
        let surplus = booked - measured.answered as i64;
        let explained = (0..=measured.failed as i64).contains(&surplus);
        Drift(if explained { 0 } else { surplus.unsigned_abs() })
    }
}

/// What answers the load.
pub enum Subject {
    Bare,
    Update { database: String, accounts: usize, connections: u32 },
    Script { redis: String },
    Platform { platform: Platform, processes: usize },
}

impl Subject {
    pub async fn measure(&self, pace: Pace) -> (Measured, Drift) {
        match self {
            Subject::Bare => (bare::measure(pace).await, Drift::default()),
            Subject::Update { database, accounts, connections } => {
                update::measure(database, *accounts, *connections, pace).await
            }
            Subject::Script { redis } => redis::measure(redis, pace).await,
            Subject::Platform { platform, processes } => platform.measure(*processes, pace).await,
        }
    }
}

pub struct Row {
    pub name: String,
    pub subject: Subject,
    rounds: Vec<Measured>,
}

impl Row {
    pub fn new(name: impl Into<String>, subject: Subject) -> Row {
        Row { name: name.into(), subject, rounds: Vec::new() }
    }

    pub fn platform(name: impl Into<String>, platform: Platform) -> Row {
        Row::new(name, Subject::Platform { platform, processes: 1 })
    }

    fn each(&self, value: fn(&Measured) -> f64) -> Vec<f64> {
        self.rounds.iter().map(value).collect()
    }

    pub fn rate(&self) -> Spread {
        Spread::of(self.each(|measured| measured.rate))
    }

    pub fn p50_ms(&self) -> Spread {
        Spread::of(self.each(|measured| measured.p50_ms))
    }

    pub fn p99_ms(&self) -> Spread {
        Spread::of(self.each(|measured| measured.p99_ms))
    }

    /// Its requests a second against those of another row.
    pub fn against(&self, other: &Row) -> Spread {
        let rate = |measured: &Measured| measured.rate;
        Spread::of_ratios(&self.each(rate), &other.each(rate))
    }
}

/// What must not be.
#[derive(Default)]
pub struct Faults {
    drift: u64,
    failed: u64,
}

impl Faults {
    pub fn note(&mut self, name: &str, measured: &Measured, drift: Drift) {
        self.drift += drift.0;
        self.failed += measured.failed;
        if let Some(failure) = &measured.failure {
            eprintln!("{name}: {} requests without a 200, the first of them: {failure}", measured.failed);
        }
        if drift.0 != 0 {
            eprintln!("{name}: the books differ by {} casts", drift.0);
        }
    }

    /// Tells; gives whether there were none.
    pub fn tell(&self) -> bool {
        println!("\nAnswered casts that the books do not have, or have twice: {}.", self.drift);
        println!("Requests that were not answered by 200: {}.", self.failed);
        self.drift == 0 && self.failed == 0
    }
}

/// Measures all rows once, then all of them again: what changes on the machine meets each of them.
pub async fn play(rows: &mut [Row], services: &Services, rounds: usize, pace: Pace, faults: &mut Faults) {
    for round in 1..=rounds {
        for row in rows.iter_mut() {
            services.checkpoint().await;
            let (measured, drift) = row.subject.measure(pace).await;
            eprintln!("round {round} of {rounds}: {}: {:.0} a second", row.name, measured.rate);
            faults.note(&row.name, &measured, drift);
            row.rounds.push(measured);
        }
    }
}
