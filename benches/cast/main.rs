//! What an enforced, durable cast costs, against what anybody has to do at the least, measured in the same run.
//!
//! Floors and platform run one after the other, several rounds of it, under the same load: 64 connections that
//! each send the next request when the last one is answered, from this machine. Every cast passes a key, two
//! budgets and a rate limit, and is committed with its row and its line before it is answered. Afterwards the
//! books are compared with what the clients were told: a difference fails the run, and so does any answer but 200.
//!
//! Run it by `scripts/bench`; `docs/benchmarks.md` says what the figures mean.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it is a test")]

mod compare;
mod figures;
mod floors;
mod load;
mod platform;
mod replicas;
mod row;
mod scale;
mod services;
mod soak;
mod startup;

use std::{process::ExitCode, time::Duration};

use clap::Parser;

use crate::{load::CONNECTIONS, services::Services};

/// Measures the platform against its floors, or one of these instead.
#[derive(Parser)]
struct Options {
    /// The empty database against one with a million accounts.
    #[arg(long, group = "what")]
    scale: bool,
    /// Memory under a steady load, for so many seconds.
    #[arg(long, group = "what", value_name = "SECONDS", num_args = 0..=1, default_missing_value = "600")]
    soak: Option<u64>,
    /// Three processes on one PostgreSQL against one.
    #[arg(long, group = "what")]
    replicas: bool,
    /// From the start of a process to its first answer.
    #[arg(long, group = "what")]
    startup: bool,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What the environment says.
struct Settings {
    /// How long a row is measured in each round.
    span: Duration,
    rounds: usize,
    /// Only rows whose name contains this; to look at one under a profiler, for one.
    only: String,
}

impl Settings {
    fn from_env() -> Settings {
        Settings {
            span: Duration::from_secs(number("BENCH_SECONDS", 8)),
            rounds: number("BENCH_ROUNDS", 3).max(1) as usize,
            only: std::env::var("BENCH_ONLY").unwrap_or_default(),
        }
    }

    fn tell(&self) {
        println!(
            "{CONNECTIONS} connections, {} s a row in each of {} rounds; load, servers and databases share {} cores. \
             The median, and from the lowest to the highest round.\n",
            self.span.as_secs(),
            self.rounds,
            cores(),
        );
    }

    /// How long something is measured to be chosen.
    fn trial(&self) -> Duration {
        self.span.min(Duration::from_secs(2))
    }
}

/// A variable of the environment that is a number.
fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    // The client wants one to be made at all, though nothing here is encrypted.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (services, settings) = (Services::find(), Settings::from_env());
    let sound = match options {
        Options { scale: true, .. } => scale::run(&services, &settings).await,
        Options { soak: Some(seconds), .. } => soak::run(&services, &settings, seconds).await,
        Options { replicas: true, .. } => replicas::run(&services, &settings).await,
        Options { startup: true, .. } => startup::run(&services, &settings).await,
        _ => compare::run(&services, &settings).await,
    };
    if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
