//! The command line: without arguments it serves; the rest is the operator's.

use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use jiff::civil::Date;
use secrecy::ExposeSecret;

use crate::{
    clock::Clock,
    config::Config,
    identity::Identity,
    inbox::{self, Delivery, Inbox, StoredEvent, Verdict},
    ledger::audit,
    retention,
    store::{Db, StoreError, statements},
    stripe::{
        Stripe,
        audit::{self as comparison, Since},
    },
    telemetry::Metrics,
    webhooks,
    window::midnight,
};

/// A spend-control platform: keys, budgets that stop, prepaid credits and plans in front of anything
/// that costs money per call. It is configured by environment variables; see README.md.
#[derive(Parser)]
#[command(name = "spell-platform", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    /// Serve, as without a command
    Serve,
    /// See to events of Stripe and of the payment service that failed, or that matched nothing of ours
    #[command(subcommand)]
    Webhooks(Webhooks),
    /// Remove what is older than RETENTION_DAYS, beside servers that run: casts, ended holds, their lines of the
    /// ledger, and the bodies of events that are done with; see docs/retention.md. What was spent by day stays
    Prune {
        /// Only print what would leave, at most
        #[arg(long)]
        dry_run: bool,
        /// Remove what is older than 00:00 UTC of this date (2026-01-31) instead, 35 days ago or earlier
        #[arg(long)]
        before: Option<Date>,
    },
    /// Recompute every balance from its lines and open holds, beside servers that run, compare with Stripe
    /// what was bought there, and print what differs; ends with 0 if nothing does, with 1 if something
    /// does, with 2 if it could not be told
    Audit(Audit),
}

/// What is to be audited.
#[derive(Args)]
pub struct Audit {
    /// Print JSON: an object a line, the summary last
    #[arg(long)]
    json: bool,
    /// Leave Stripe out
    #[arg(long)]
    no_stripe: bool,
    /// Compare with Stripe what was made there from then on: a day, a moment in RFC 3339, or all; 90 days
    /// back without it
    #[arg(long, value_name = "DATE")]
    since: Option<Since>,
}

#[derive(Subcommand)]
pub enum Webhooks {
    /// List the events that are open: received, failed or kept
    List {
        /// List those of this status instead: received, applied, ignored, kept, failed, dismissed or all
        #[arg(long)]
        status: Option<String>,
    },
    /// Apply events once more, unless they were applied
    Replay {
        /// The events' ids
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        ids: Vec<String>,
        /// All that are open
        #[arg(long)]
        all: bool,
    },
    /// Take events off the list without applying them: they were seen to in another way
    Dismiss {
        /// The events' ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// Why an operator's command did not do all it was to do.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("DATABASE_URL: {0}")]
    Database(String),
    #[error("{0}")]
    Stripe(String),
    #[error("--status must be all or one of {}", inbox::STATUSES.join(", "))]
    Status,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0} of the events could not be applied")]
    NotApplied(usize),
    #[error("{0} of the events are not there")]
    NotThere(usize),
    #[error("Stripe could not be compared: {0}")]
    NotCompared(String),
    #[error("RETENTION_DAYS is not set, so that everything is kept; name a date with --before")]
    NoLine,
    #[error("--before must be {} days ago or earlier", retention::LEAST_DAYS)]
    TooLate,
    #[error("DATABASE_URL names a database without a single account, which no server has ever used")]
    NothingToAudit,
}

/// How many events are listed, or replayed, at most.
const MOST: i64 = 10_000;

/// Runs `spell-platform webhooks …`. Must be called inside a tokio runtime.
pub async fn webhooks(config: &Config, command: Webhooks) -> Result<(), CommandError> {
    let db = Db::open(config.database_url.expose_secret()).map_err(CommandError::Database)?;
    db.migrate().await?;
    let done = match command {
        Webhooks::List { status } => list(&db, status.as_deref()).await,
        Webhooks::Replay { ids, all } => {
            let ids = match all {
                true => open_events(&db, &inbox::OPEN).await?.into_iter().map(|event| event.id).collect(),
                false => ids,
            };
            replay(config, &db, ids).await
        }
        Webhooks::Dismiss { ids } => dismiss(&db, ids).await,
    };
    db.close().await;
    done
}

statements! {
    ANY_ACCOUNT = "SELECT id FROM accounts LIMIT 1";
}

/// Whether Stripe was compared.
enum Compared {
    Yes(comparison::Report),
    /// Nobody wanted it, or nobody can: why.
    No(&'static str),
    /// It could not be told: why.
    Failed(String),
}

/// Runs `spell-platform audit`; gives whether the books agree. Must be called inside a tokio runtime.
///
/// What the books themselves come to is printed also where Stripe can't be read, which is an error.
pub async fn audit(config: &Config, asked: &Audit) -> Result<bool, CommandError> {
    let db = Db::open(config.database_url.expose_secret()).map_err(CommandError::Database)?;
    db.migrate().await?;
    let any: Option<(String,)> = db.optional(&ANY_ACCOUNT, vec![]).await?;
    any.ok_or(CommandError::NothingToAudit)?;
    let books = audit::audit(&db).await?;
    for drift in &books.drifts {
        tell(asked.json, drift);
    }
    let compared = compare(config, asked, &db).await;
    if let Compared::Yes(report) = &compared {
        for difference in &report.differences {
            tell(asked.json, difference);
        }
    }
    let drifts = books.drifts.len() + if let Compared::Yes(report) = &compared { report.drifts } else { 0 };
    match asked.json {
        true => println!("{}", summary(&books, &compared, drifts)),
        false => match &compared {
            Compared::Yes(report) => println!("{books}\n{report}"),
            Compared::No(why) => println!("{books}\nStripe: not compared, {why}"),
            Compared::Failed(_) => println!("{books}\nStripe: could not be compared"),
        },
    }
    db.close().await;
    match compared {
        Compared::Failed(why) => Err(CommandError::NotCompared(why)),
        _ => Ok(drifts == 0),
    }
}

fn tell<T: serde::Serialize + std::fmt::Display>(json: bool, difference: &T) {
    match json {
        true => println!("{}", serde_json::json!(difference)),
        false => println!("{difference}"),
    }
}

async fn compare(config: &Config, asked: &Audit, db: &Db) -> Compared {
    if asked.no_stripe {
        return Compared::No("--no-stripe was given");
    }
    let stripe = match Stripe::new(&config.billing, db.clone(), Clock::system()) {
        Ok(Some(stripe)) => stripe,
        Ok(None) => return Compared::No("STRIPE_SECRET_KEY is not set"),
        Err(problem) => return Compared::Failed(problem),
    };
    match comparison::compare(&stripe, asked.since).await {
        Ok(report) => Compared::Yes(report),
        Err(problem) => Compared::Failed(problem.to_string()),
    }
}

fn summary(books: &audit::Report, compared: &Compared, drifts: usize) -> serde_json::Value {
    let mut summary = serde_json::json!(books);
    summary["drifts"] = drifts.into();
    let (done, mut stripe) = match compared {
        Compared::Yes(report) => (true, serde_json::json!(report)),
        Compared::No(why) => (false, serde_json::json!({ "why": why })),
        Compared::Failed(why) => (false, serde_json::json!({ "why": why })),
    };
    stripe["compared"] = done.into();
    summary["stripe"] = stripe;
    summary
}

/// Runs `spell-platform prune`. Must be called inside a tokio runtime.
pub async fn prune(config: &Config, dry_run: bool, before: Option<Date>) -> Result<(), CommandError> {
    let db = Db::open(config.database_url.expose_secret()).map_err(CommandError::Database)?;
    db.migrate().await?;
    let now = db.now().await?;
    let before = match (before.map(midnight), config.retention_days) {
        (Some(before), _) if before > retention::line(now, retention::LEAST_DAYS) => {
            return Err(CommandError::TooLate);
        }
        (Some(before), _) => before,
        (None, Some(days)) => retention::line(now, days),
        (None, None) => return Err(CommandError::NoLine),
    };
    if dry_run {
        println!("older than {before}: at most {}", retention::count(&db, before).await?);
    } else {
        let removed = retention::pass(&db, before, &Metrics::new()).await?;
        println!("older than {before}: removed {removed}");
        if removed.another {
            println!("another pass is at it, which goes on; this one has ended");
        }
        if removed.stay > 0 {
            println!(
                "{} casts and holds stay, which do not agree with the books or have not ended",
                removed.stay
            );
        }
    }
    db.close().await;
    Ok(())
}

async fn list(db: &Db, status: Option<&str>) -> Result<(), CommandError> {
    let statuses = match status {
        None => inbox::OPEN.to_vec(),
        Some("all") => inbox::STATUSES.to_vec(),
        Some(one) if inbox::STATUSES.contains(&one) => vec![one],
        Some(_) => return Err(CommandError::Status),
    };
    for event in open_events(db, &statuses).await? {
        let StoredEvent { received_at, id, kind, status, attempts, detail, .. } = event;
        println!("{received_at}\t{id}\t{kind}\t{status}\t{attempts}\t{}", detail.unwrap_or_default());
    }
    Ok(())
}

async fn open_events(db: &Db, statuses: &[&str]) -> Result<Vec<StoredEvent>, StoreError> {
    inbox::list(db, None, statuses, None, MOST).await
}

async fn dismiss(db: &Db, ids: Vec<String>) -> Result<(), CommandError> {
    let mut missing = 0;
    for id in ids {
        match inbox::dismiss(db, &id, Clock::system().now()).await? {
            Some(event) => println!("{id}\t{}", event.status),
            None => {
                missing += 1;
                eprintln!("{id}\tis not there");
            }
        }
    }
    if missing == 0 { Ok(()) } else { Err(CommandError::NotThere(missing)) }
}

async fn replay(config: &Config, db: &Db, ids: Vec<String>) -> Result<(), CommandError> {
    let clock = Clock::system();
    let identity = Identity::new(db.clone(), clock.clone());
    let stripe = Stripe::new(&config.billing, db.clone(), clock.clone()).map_err(CommandError::Stripe)?;
    let inbox = Inbox::new(db.clone(), clock, identity);
    let webhooks = webhooks::Webhooks::new(config, inbox, Arc::new(Metrics::new()), stripe);
    let mut failed = 0;
    for id in ids {
        match webhooks.replay(&id).await {
            Ok(Some(Delivery::First(Verdict::Refused(why)))) => {
                failed += 1;
                eprintln!("{id}\t{why}");
            }
            Ok(Some(Delivery::First(verdict))) => println!("{id}\t{}", verdict.status()),
            Ok(Some(Delivery::Again)) => println!("{id}\twas applied before"),
            Ok(None) => {
                failed += 1;
                eprintln!("{id}\tis not there");
            }
            Err(error) => {
                failed += 1;
                eprintln!("{id}\t{error}");
            }
        }
    }
    match failed {
        0 => Ok(()),
        failed => Err(CommandError::NotApplied(failed)),
    }
}
