//! What a row is played on: a database, its processes, and what stands between and beside them.

use std::{
    path::PathBuf,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::json;
use tempfile::TempDir;
use url::Url;

use super::row::{Place, Row, Trouble};
use crate::{
    harness::{Backend, Client, Options, Proxy, Server, Upstream, eventually, redis_url, unix_now},
    stripe_server::StripeServer,
};

/// The edge of every window at once: it is a Monday, too.
pub const EDGE: &str = "2029-01-01T00:00:00.000Z";
const EDGE_UNIX_SECONDS: i64 = 1_861_920_000;
/// How long before that the processes are started.
const BEFORE_THE_EDGE: i64 = 12;

pub struct Stage {
    pub backend: Backend,
    pub servers: Vec<Server>,
    pub upstream: Upstream,
    pub stripe: StripeServer,
    /// In front of Redis or PostgreSQL, where that is to go away.
    pub proxy: Option<Proxy>,
    /// When the clock of the books goes over the edge.
    pub edge: Option<Instant>,
    _clock: Option<TempDir>,
}

impl Stage {
    pub async fn set(row: Row) -> Stage {
        let backend = match row.place {
            Place::Sqlite => Backend::sqlite().await,
            Place::Postgres(_) => Backend::postgres().await,
        };
        let (upstream, stripe) = (Upstream::start().await, StripeServer::start().await);
        let mut options = stripe.sells_for(Options::on(&backend)).with_upstreams();
        let (mut proxy, mut edge, mut clock) = (None, None, None);
        match row.trouble {
            Trouble::Redis => {
                let url = Url::parse(&redis_url()).unwrap();
                let target = (url.host_str().unwrap().to_owned(), url.port().unwrap_or(6379));
                let between = Proxy::to(target).await;
                options = options.var("REDIS_URL", format!("redis://127.0.0.1:{}", between.port()));
                proxy = Some(between);
            }
            Trouble::Cuts => {
                let between = Proxy::to(backend.address()).await;
                options = options.var("DATABASE_URL", backend.url_through(between.port()));
                proxy = Some(between);
            }
            Trouble::Clock => {
                let ahead = EDGE_UNIX_SECONDS - BEFORE_THE_EDGE - unix_now() / 1_000;
                edge = Some(Instant::now() + Duration::from_secs(BEFORE_THE_EDGE.unsigned_abs()));
                match row.place {
                    Place::Sqlite => {
                        let (dir, library) = shim();
                        options =
                            options.var("LD_PRELOAD", library.display()).var("CLOCK_AHEAD_SECONDS", ahead);
                        clock = Some(dir);
                    }
                    Place::Postgres(_) => move_the_clock_of(&backend, ahead).await,
                }
            }
            _ => {}
        }
        let starting = (0..row.place.processes()).map(|_| Server::start(options.clone()));
        let servers = futures_util::future::join_all(starting).await;
        Stage { backend, servers, upstream, stripe, proxy, edge, _clock: clock }
    }

    /// One client for each process, without credentials.
    pub fn doors(&self) -> Vec<Client> {
        self.servers.iter().map(|server| server.anonymous().clone()).collect()
    }

    /// Until every process answers as if nothing had been.
    pub async fn calm_down(&self) {
        for server in &self.servers {
            eventually(Duration::from_secs(60), "a process is well again", || async {
                for _ in 0..30 {
                    let answer = server.admin().call("GET", "/v1/accounts?limit=1").try_send().await;
                    if answer.is_ok_and(|answer| answer.status == 200) {
                        continue;
                    }
                    return None;
                }
                Some(())
            })
            .await;
        }
    }

    /// The sum of a metric over the processes, since each began.
    pub async fn metric(&self, name: &str) -> f64 {
        let mut sum = 0.0;
        for server in &self.servers {
            sum += server.metric(name).await;
        }
        sum
    }

    /// Holds that are open, by the database.
    pub async fn open_holds(&self) -> usize {
        self.backend.texts("SELECT id FROM holds WHERE state = 'open'").await.len()
    }
}

/// On PostgreSQL the time is what the database says: this one has a `clock_timestamp()` of its own,
/// which is found before PostgreSQL's.
async fn move_the_clock_of(backend: &Backend, ahead_seconds: i64) {
    backend
        .execute(&format!(
            "CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS
             'SELECT pg_catalog.clock_timestamp() + make_interval(secs => {ahead_seconds})'"
        ))
        .await;
    backend
        .execute(
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog',
             current_database()); END $$",
        )
        .await;
}

/// On SQLite it is what the machine says: a library between the process and its machine adds to that.
fn shim() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let library = dir.path().join("clock.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/prove/clock.c");
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl");
    assert!(compiler.status().unwrap().success(), "cc could not compile {source}");
    (dir, library)
}

/// What the books say the time is, by a key that they are asked to make.
pub async fn time_of(server: &Server) -> String {
    let account = server.admin().post("/v1/accounts", json!({"name": "what time is it?"})).await.expect(201);
    account["created_at"].as_str().unwrap().to_owned()
}
