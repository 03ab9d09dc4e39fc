//! `spell-platform`: without arguments it serves.

use std::process::ExitCode;

use spell_platform::{app::Application, config::Config, telemetry};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        None | Some("serve") => serve(),
        Some("--version" | "-V") => {
            println!("spell-platform {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        Some(_) => {
            eprintln!(
                "usage: spell-platform [serve | --version]\nIt is configured by environment variables; see README.md."
            );
            ExitCode::from(2)
        }
    }
}

fn serve() -> ExitCode {
    let config = match Config::from_env() {
        Ok(config) => config,
        Err(problems) => return failed(&problems),
    };
    telemetry::init_logging(config.log_filter.clone());
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
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(problem) => return failed(&problem),
    };
    let served = runtime.block_on(async {
        let application = Application::build(config).await.map_err(|problem| problem.to_string())?;
        application.run_until_stopped().await.map_err(|problem| problem.to_string())
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => failed(&problem),
    }
}

fn failed(problem: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("spell-platform does not start:\n{problem}");
    ExitCode::FAILURE
}
