//! What a straightforward implementation does: one `UPDATE` of the account's row per request, which adds the
//! price where it fits under the limit and is committed before the request is answered.
//!
//! It is spared whatever it need not do: no key is looked up, no line is written, no transaction is opened
//! around the statement, which is prepared once a connection; the pool does not ask a connection whether it is
//! alive. PostgreSQL and SQLite sync to disk as they do under the platform.

use std::{str::FromStr, time::Duration};

use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::Value;
use sqlx::{
    ConnectOptions, PgPool, SqlitePool,
    pool::PoolOptions,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{LIMIT, PRICE, account, accounts, serve};
use crate::{
    load::{Measured, Pace, load},
    row::Drift,
};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS floor (
    id BIGINT PRIMARY KEY NOT NULL, spent BIGINT NOT NULL, hard_limit BIGINT NOT NULL)";
const OPEN: &str = "INSERT INTO floor (id, spent, hard_limit) VALUES ($1, 0, $2) ON CONFLICT DO NOTHING";
const SPEND: &str = "
    UPDATE floor SET spent = spent + $1 WHERE id = $2 AND spent + $1 <= hard_limit RETURNING spent";
const SPENT: &str = "SELECT CAST(SUM(spent) AS BIGINT) FROM floor";

/// The floor on either database.
#[derive(Clone)]
enum Base {
    Postgres(PgPool),
    Sqlite(SqlitePool),
}

/// Does the same on either.
macro_rules! on {
    ($base:expr, $pool:ident => $work:expr) => {
        match $base {
            Base::Postgres($pool) => $work,
            Base::Sqlite($pool) => $work,
        }
    };
}

impl Base {
    /// SQLite has one writer, so that there `connections` are one.
    fn open(url: &str, connections: u32) -> Base {
        let patience = Duration::from_secs(10);
        if url.starts_with("sqlite:") {
            let options = SqliteConnectOptions::from_str(url).unwrap();
            let options = options
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .disable_statement_logging();
            let pool = PoolOptions::new().max_connections(1).acquire_timeout(patience);
            return Base::Sqlite(pool.test_before_acquire(false).connect_lazy_with(options));
        }
        let options = PgConnectOptions::from_str(url).unwrap().disable_statement_logging();
        let pool = PoolOptions::new().max_connections(connections).acquire_timeout(patience);
        Base::Postgres(pool.test_before_acquire(false).connect_lazy_with(options))
    }

    /// Opens all connections here: one that a server's worker opened would end with it.
    async fn connect(&self) {
        if let Base::Postgres(pool) = self {
            let connections = (0..pool.options().get_max_connections()).map(|_| pool.acquire());
            futures_util::future::try_join_all(connections).await.unwrap();
        }
    }

    async fn prepare(&self, accounts: usize) {
        on!(self, pool => {
            sqlx::query(TABLE).execute(pool).await.unwrap();
            for number in 1..=accounts as i64 {
                sqlx::query(OPEN).bind(number).bind(LIMIT).execute(pool).await.unwrap();
            }
        });
    }

    async fn spend(&self, account: i64) -> Result<Option<i64>, sqlx::Error> {
        on!(self, pool => sqlx::query_scalar(SPEND).bind(PRICE).bind(account).fetch_optional(pool).await)
    }

    async fn spent(&self) -> i64 {
        on!(self, pool => sqlx::query_scalar(SPENT).fetch_one(pool).await.unwrap())
    }

    async fn close(&self) {
        on!(self, pool => pool.close().await);
    }
}

pub async fn measure(url: &str, accounts_count: usize, connections: u32, pace: Pace) -> (Measured, Drift) {
    let base = Base::open(url, connections);
    base.connect().await;
    base.prepare(accounts_count).await;
    let before = base.spent().await;
    let shared = web::Data::new(base.clone());
    let serving = serve(move |routes| {
        routes.app_data(shared.clone()).route("/v1/cast", web::post().to(cast));
    });
    let measured = load(&[serving.address], &accounts(accounts_count), pace).await;
    serving.handle.stop(false).await;
    let spent = (base.spent().await - before) / PRICE;
    base.close().await;
    let drift = Drift::between(spent, &measured);
    (measured, drift)
}

async fn cast(base: web::Data<Base>, request: HttpRequest, body: web::Json<Value>) -> HttpResponse {
    let Some(account) = account(&request) else { return HttpResponse::Unauthorized().finish() };
    match base.spend(account).await {
        Ok(Some(_)) => HttpResponse::Ok().json(body),
        Ok(None) => HttpResponse::PaymentRequired().finish(),
        Err(error) => HttpResponse::ServiceUnavailable().body(error.to_string()),
    }
}
