//! `spell-platform`: without arguments it serves.

use std::process::ExitCode;

use clap::Parser;
use spell_platform::{
    app::Application,
    cli::{self, Cli, Command},
    config::Config,
    telemetry,
};
use tokio::runtime::Runtime;

/// A cast allocates some hundred times, and is a tenth cheaper with this one than with the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match (Config::from_env(), &cli.command) {
        (Ok(config), _) => config,
        (Err(problems), Some(Command::Audit(_))) => return not_audited(&problems),
        (Err(problems), _) => return failed("does not start", &problems),
    };
    telemetry::init_logging(config.log_filter.clone());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => return failed("does not start", &problem),
    };
    match cli.command {
        None | Some(Command::Serve) => serve(&runtime, config),
        Some(Command::Webhooks(command)) => match runtime.block_on(cli::webhooks(&config, command)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(problem) => failed("could not do that", &problem),
        },
        Some(Command::Prune { dry_run, before }) => {
            match runtime.block_on(cli::prune(&config, dry_run, before)) {
                Ok(()) => ExitCode::SUCCESS,
                Err(problem) => failed("could not do that", &problem),
            }
        }
        Some(Command::Audit(asked)) => match runtime.block_on(cli::audit(&config, &asked)) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(problem) => not_audited(&problem),
        },
    }
}

/// Another code than that of books that do not agree.
fn not_audited(problem: &dyn std::fmt::Display) -> ExitCode {
    failed("could not audit the books", problem);
    ExitCode::from(2)
}

fn serve(runtime: &Runtime, config: Config) -> ExitCode {
    match config.billing.missing().as_slice() {
        [] => {}
        ["STRIPE_SECRET_KEY"] => {
            tracing::warn!("checkout and portal are switched off: STRIPE_SECRET_KEY is not set");
        }
        ["STRIPE_WEBHOOK_SECRET"] => tracing::warn!(
            "STRIPE_WEBHOOK_SECRET is not set: what customers buy is not granted until it is, since Stripe's \
             events are refused"
        ),
        missing => tracing::warn!("billing is switched off: {} not set", missing.join(" and ")),
    }
    let served = runtime.block_on(async {
        let application = Application::build(config).await.map_err(|problem| problem.to_string())?;
        application.run_until_stopped().await.map_err(|problem| problem.to_string())
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => failed("does not start", &problem),
    }
}

fn failed(what: &str, problem: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("spell-platform {what}:\n{problem}");
    ExitCode::FAILURE
}
