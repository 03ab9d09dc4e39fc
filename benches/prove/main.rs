//! Proves, as far as it can be from outside, that limits hold and books are right whatever goes wrong:
//! the real binary on both databases, in every trouble of [`proof`], and a table of what was found.
//! Every cell has to be 0.
//!
//! `scripts/prove` runs it; `docs/proof.md` says what it shows and what it does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "it is a test")]

#[path = "../../tests/it/harness/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "it is the tests', and some of it is for them alone"
)]
mod harness;
mod proof;
#[path = "../../tests/it/stripe_events.rs"]
#[allow(dead_code, reason = "it is the tests'")]
mod stripe_events;
#[path = "../../tests/it/stripe_server.rs"]
#[allow(dead_code, reason = "it is the tests'")]
mod stripe_server;

use std::{process::ExitCode, sync::Arc, time::Instant};

use clap::Parser;
use tokio::sync::Semaphore;

use crate::proof::{Played, Row, play};

/// How many rows are under load at once.
const AT_ONCE: usize = 2;

/// Compares what clients are told with the books, while things go wrong.
#[derive(Parser)]
struct Options {
    /// Repeats the run of that seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Casts of each row.
    #[arg(long, default_value_t = 1_000)]
    casts: usize,
    /// Only rows whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let seed = options.seed.unwrap_or(uuid::Uuid::now_v7().as_u128() as u64 % 1_000_000);
    let begun = Instant::now();
    let gate = Arc::new(Semaphore::new(AT_ONCE));
    let rows = Row::all().into_iter().enumerate().filter(|(_, row)| row.to_string().contains(&options.only));
    let playing: Vec<_> = rows
        .map(|(number, row)| {
            let gate = gate.clone();
            let task = tokio::spawn(async move {
                let permit = gate.acquire().await.unwrap();
                let begun = Instant::now();
                let played =
                    play(row, seed.wrapping_mul(1_000) + number as u64, options.casts, Some(permit)).await;
                eprintln!("{row}: {:.0} s", begun.elapsed().as_secs_f64());
                played
            });
            (row, task)
        })
        .collect();
    println!(
        "| where | what goes wrong | casts | let in | refused | neither | cents over | missing | twice | held | refused with room |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let (mut casts, mut bad) = (0, 0);
    for (row, task) in playing {
        match task.await {
            Ok(played) => {
                print_row(row, &played);
                casts += played.casts;
                bad += i64::from(played.findings.counts().iter().any(|count| *count != 0));
            }
            Err(broken) => {
                println!("| {row} | broken | | | | | | | | |");
                eprintln!("{row}: {broken}");
                bad += 1;
            }
        }
    }
    println!("\n{casts} casts; `scripts/prove --seed {seed}` asks for the same again.");
    eprintln!("{:.0} s, {bad} rows are not 0", begun.elapsed().as_secs_f64());
    if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_row(row: Row, played: &Played) {
    let Played { casts, answered, refused, happened, findings } = played;
    let others = casts - answered - refused;
    let happened = if happened.is_empty() { String::new() } else { format!(": {happened}") };
    let counts = findings.counts().map(|count| count.to_string()).join(" | ");
    println!("| {row}{happened} | {casts} | {answered} | {refused} | {others} | {counts} |");
    for note in findings.notes.iter().take(5) {
        eprintln!("  {row}: {note}");
    }
}
