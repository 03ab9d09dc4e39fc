//! The application: wires the parts, serves, and stops in order.
//!
//! # Failure behavior
//!
//! A bad configuration, or an address that can't be bound, ends the start. A database that is away
//! does not: the server comes up, answers 503 and `/ready` says why, while the schema is brought up
//! as soon as the database is there. On SIGTERM or SIGINT nothing new is taken, what was taken is
//! answered and settled, what waits to be written is written, and the process ends within
//! [`STOP_WITHIN`].

use std::{io, net::TcpListener, sync::Arc, time::Duration};

use actix_web::{App, HttpServer, dev::ServerHandle, middleware, web};
use moka::future::Cache;
use secrecy::ExposeSecret;
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};
use tokio_util::task::TaskTracker;

use crate::{
    audit,
    cast::Pipeline,
    clock::Clock,
    config::Config,
    http::{self, AppState},
    identity::{Identity, jwt},
    inbox::Inbox,
    ledger::{Ledger, sweeper},
    plan,
    rate::Limiter,
    reply, retention,
    spell::{Spells, upstream::Upstream},
    store::{Db, PATIENCE, StoreError},
    stripe::Stripe,
    telemetry::Metrics,
    wallet::purchase,
    webhooks::Webhooks,
};

/// The longest a stop takes; below the 15 seconds that are promised.
pub const STOP_WITHIN: Duration = Duration::from_secs(12);

/// Why the application did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("DATABASE_URL: {0}")]
    Database(String),
    #[error("REDIS_URL: {0}")]
    Redis(String),
    #[error("HOST, PORT: {0}")]
    Bind(io::Error),
    #[error("{0}")]
    Stripe(String),
    #[error("JWKS_URL: {0}")]
    Keys(reqwest::Error),
    #[error("the client for upstreams can't be made: {0}")]
    Upstream(reqwest::Error),
}

/// How long the first requests wait for the first admin's key to be there.
const FIRST_KEY_WITHIN: Duration = Duration::from_secs(1);

/// The application, bound to its address and ready to run.
pub struct Application {
    state: web::Data<AppState>,
    listener: TcpListener,
    writer: JoinHandle<()>,
    /// Whether the database was there when it was built.
    has_database: bool,
}

impl Application {
    /// Wires everything. Must be called inside a tokio runtime, where the background tasks stay.
    pub async fn build(config: Config) -> Result<Application, StartError> {
        let listener = TcpListener::bind((config.host, config.port)).map_err(StartError::Bind)?;
        let metrics = Arc::new(Metrics::new());
        let clock = Clock::system();
        let db = Db::open(config.database_url.expose_secret()).map_err(StartError::Database)?;
        let migrated = timeout(PATIENCE, db.migrate()).await;
        let has_database = matches!(migrated, Ok(Ok(())));
        match migrated {
            Ok(Err(error @ StoreError::Refused(_))) => return Err(StartError::Database(error.to_string())),
            Ok(Ok(())) => {
                // Should it not tell the time yet, `set_up` asks again.
                let _ = sweeper::follow(&db, &clock).await;
            }
            // `set_up` goes on trying.
            Ok(Err(_)) => {}
            Err(_) => {
                tracing::info!("the database is not there yet, or its schema is being brought up to date")
            }
        }
        let limiter = match &config.redis_url {
            Some(url) => {
                Limiter::over_redis(url.expose_secret(), metrics.clone()).map_err(StartError::Redis)?
            }
            None => Limiter::in_process(),
        };
        let upstream = Upstream::new(config.upstream_allow_private, config.max_body_bytes);
        let spells = Spells::new(db.clone(), upstream.map_err(StartError::Upstream)?, config.cost_per_cast);
        let (ledger, writer) = Ledger::start(db.clone(), metrics.clone());
        let identity = Identity::new(db.clone(), clock.clone());
        let tokens = jwt::Verifier::new(&config.jwt, clock.clone()).map_err(StartError::Keys)?;
        let pipeline = Pipeline {
            db: db.clone(),
            clock: clock.clone(),
            ledger: ledger.clone(),
            limiter: limiter.clone(),
            spells: spells.clone(),
            metrics: metrics.clone(),
            refused_lately: Cache::builder()
                .max_capacity(100_000)
                .time_to_live(Duration::from_secs(1))
                .build(),
            rate_limit_per_minute: config.rate_limit_per_minute,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        };
        let stripe = Stripe::new(&config.billing, db.clone(), clock.clone()).map_err(StartError::Stripe)?;
        let inbox = Inbox::new(db.clone(), clock.clone(), identity.clone());
        let webhooks = Webhooks::new(&config, inbox, metrics.clone(), stripe.clone());
        let purchases =
            purchase::Verifier::new(&config.purchases, &config.billing, stripe.clone(), clock.clone())
                .map_err(StartError::Upstream)?;
        let state = AppState {
            config,
            clock,
            db,
            metrics,
            ledger,
            limiter,
            identity,
            tokens,
            spells,
            pipeline,
            stripe,
            webhooks,
            purchases,
        };
        Ok(Application { state: web::Data::new(state), listener, writer, has_database })
    }

    /// The address it is bound to.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until SIGTERM or SIGINT, then stops in order.
    pub async fn run_until_stopped(self) -> io::Result<()> {
        let Application { state, listener, writer, has_database } = self;
        let address = listener.local_addr()?;
        // Who polls for the process to live, and then comes with the first key, is let in; where there is no database
        // nobody is, and there is nothing to wait for.
        let mut set_up = Box::pin(set_up(state.clone(), address));
        let is_set_up = has_database && timeout(FIRST_KEY_WITHIN, &mut set_up).await.is_ok();
        let setting_up = (!is_set_up).then(|| tokio::spawn(set_up));
        let shared = state.clone();
        let server = HttpServer::new(move || {
            reply::open_letter_box();
            App::new()
                .wrap(middleware::from_fn(http::log_requests))
                .app_data(shared.clone())
                .configure(http::routes)
        })
        .shutdown_timeout(STOP_WITHIN.as_secs() - 4)
        .disable_signals()
        .listen(listener)?
        .run();
        let sweeping =
            sweeper::start(state.db.clone(), state.clock.clone(), state.ledger.clone(), http::casts::lost);
        let auditing = state
            .config
            .audit_every
            .map(|every| audit::start(state.db.clone(), state.stripe.clone(), state.metrics.clone(), every));
        let retaining = state
            .config
            .retention_days
            .map(|days| retention::start(state.db.clone(), state.metrics.clone(), days));
        let flushing = tokio::spawn(keep_flushing(state.identity.clone()));
        let signals = tokio::spawn(stop_on_signal(server.handle()));
        tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "serving");
        server.await?;
        let ending = async {
            state.pipeline.tasks.close();
            state.pipeline.tasks.wait().await;
            let tasks = [sweeping, flushing, signals].into_iter();
            for task in tasks.chain(setting_up).chain(auditing).chain(retaining) {
                task.abort();
                let _ = task.await;
            }
            if let Err(error) = state.identity.flush().await {
                tracing::warn!(%error, "when keys were last used could not be written");
            }
            let db = state.db.clone();
            // The lanes end when nobody can ask them any more, and have then written what waited.
            drop(state);
            let _ = writer.await;
            db.close().await;
        };
        if timeout(Duration::from_secs(3), ending).await.is_err() {
            tracing::warn!("stopped while something was still waiting for the database");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

async fn stop_on_signal(server: ServerHandle) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals can't be listened for; only SIGKILL will stop this process");
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: taking nothing new, answering what was taken");
    server.stop(true).await;
}

/// Brings the schema up and makes the first plans and the first admin's key, for as long as the database takes.
async fn set_up(state: web::Data<AppState>, address: std::net::SocketAddr) {
    let mut told = false;
    loop {
        let made = async {
            state.db.migrate().await?;
            sweeper::follow(&state.db, &state.clock).await?;
            let (billing, now) = (&state.config.billing, state.clock.now());
            plan::seed(&state.db, &billing.default_plan, &billing.currency, now).await?;
            state.identity.bootstrap(state.config.bootstrap_api_key.as_ref()).await
        };
        match made.await {
            Ok(Some(key)) => {
                print_first_key(key.expose_secret(), address);
                break;
            }
            Ok(None) => break,
            Err(error) => {
                if !told {
                    tracing::error!(%error, "the database is not ready; trying on");
                    told = true;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
    if told {
        tracing::info!("the database is ready");
    }
}

async fn keep_flushing(identity: Identity) {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        if let Err(error) = identity.flush().await {
            tracing::debug!(%error, "when keys were last used waits for the database");
        }
    }
}

/// Shows the first admin's key, this once, with what to do next.
fn print_first_key(key: &str, address: std::net::SocketAddr) {
    println!(
        r#"
This is the admin's API key. It is shown this once and can't be shown again:

  {key}

Cast a spell:

  curl -s http://{address}/v1/cast -H 'Authorization: Bearer {key}' \
    -H 'Content-Type: application/json' -d '{{"spell_name":"echo","payload":{{"hello":"world"}}}}'

See a 402, by a budget with nothing in it:

  curl -s 'http://{address}/v1/budgets?spell=echo' -H 'Authorization: Bearer {key}' \
    -H 'Content-Type: application/json' -d '{{"period":"daily","hard_limit_cents":0}}'
  curl -si http://{address}/v1/cast -H 'Authorization: Bearer {key}' \
    -H 'Content-Type: application/json' -d '{{"spell_name":"echo","payload":{{}}}}'
  curl -s -X DELETE 'http://{address}/v1/budgets?spell=echo' -H 'Authorization: Bearer {key}'
"#
    );
}
