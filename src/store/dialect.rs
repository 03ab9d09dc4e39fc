//! Everything in which the two databases differ, each with its reason. The rest is one text.

use std::{str::FromStr, time::Duration};

use sqlx::{
    ConnectOptions as _, Connection as _, PgConnection,
    pool::PoolOptions,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use tokio::time::timeout;

use super::{PATIENCE, Pools, StoreError, statements, writer::Writer};

/// Which database this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Sqlite,
    Postgres,
}

/// Fills in a statement's tokens:
/// - `{rows}`: the elements of the JSON array in `$1`, as `given.value`. Each database has its own
///   function for that.
/// - `{rows2}` to `{rows4}`: the same of `$2` to `$4`.
/// - `{and}`, between statements whose rows nobody asks for and that touch different tables: all of them
///   go to the database at once. SQLite runs one after the other; PostgreSQL takes one statement at
///   a time, of which the others are parts.
/// - `{for_update}`: PostgreSQL locks the rows it read; SQLite's transaction already has the one
///   write lock, and no such clause.
/// - `{for_update_or_skip}`: as `{for_update}`, but a row that another has locked is left out at once.
/// - `{counted}` after the first of such statements, and then `{count}`: how many rows it changed. SQLite knows that
///   of the statement before, so the count holds in the next one only; PostgreSQL counts what the part gives.
/// - `{commit}` after a transaction's last statement: SQLite commits with it, which saves a trip to its thread;
///   PostgreSQL has no such thing.
/// - `{now_ms}`: the database's own clock.
pub(super) fn render(text: &str, backend: Backend) -> String {
    let tokens = match backend {
        Backend::Sqlite => [
            ("{rows}", "jsonb_each($1) AS given"),
            ("{rows2}", "jsonb_each($2) AS given"),
            ("{rows3}", "jsonb_each($3) AS given"),
            ("{rows4}", "jsonb_each($4) AS given"),
            ("{for_update}", ""),
            ("{for_update_or_skip}", ""),
            ("{counted}", ""),
            ("{count}", "changes()"),
            ("{commit}", ";COMMIT"),
            ("{now_ms}", "CAST(ROUND((julianday('now') - 2440587.5) * 86400000) AS BIGINT)"),
        ],
        Backend::Postgres => [
            ("{rows}", "jsonb_array_elements(CAST($1 AS jsonb)) AS given(value)"),
            ("{rows2}", "jsonb_array_elements(CAST($2 AS jsonb)) AS given(value)"),
            ("{rows3}", "jsonb_array_elements(CAST($3 AS jsonb)) AS given(value)"),
            ("{rows4}", "jsonb_array_elements(CAST($4 AS jsonb)) AS given(value)"),
            ("{for_update}", "FOR UPDATE"),
            ("{counted}", "RETURNING 1"),
            ("{count}", "(SELECT COUNT(*) FROM part_0)"),
            ("{for_update_or_skip}", "FOR UPDATE SKIP LOCKED"),
            ("{commit}", ""),
            ("{now_ms}", "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"),
        ],
    };
    let text = tokens.iter().fold(text.to_owned(), |text, (token, meaning)| text.replace(token, meaning));
    let parts: Vec<&str> = text.split("{and}").collect();
    match (backend, parts.split_last()) {
        (Backend::Postgres, Some((last, parts))) if !parts.is_empty() => {
            let named = parts.iter().enumerate().map(|(n, part)| format!("part_{n} AS ({part})"));
            format!("WITH {} {last}", named.collect::<Vec<_>>().join(", "))
        }
        _ => parts.join(";"),
    }
}

statements! {
    pub(super) NOW = "SELECT {now_ms}";
}

/// How a transaction starts. A plain `BEGIN` on SQLite that comes to write later fails with
/// "database is locked" whatever the busy time-out, so writers take the lock at once. On PostgreSQL
/// a reader sees one snapshot, a writer (READ COMMITTED) what was committed before each statement,
/// which the ledger relies on: it reads the books after it has locked the account.
pub(super) fn begin(backend: Backend, writes: bool) -> &'static str {
    match (backend, writes) {
        (Backend::Sqlite, true) => "BEGIN IMMEDIATE",
        (Backend::Sqlite, false) => "BEGIN",
        (Backend::Postgres, true) => "BEGIN ISOLATION LEVEL READ COMMITTED",
        (Backend::Postgres, false) => "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY",
    }
}

enum Options {
    Sqlite(SqliteConnectOptions),
    Postgres(PgConnectOptions),
}

/// Says what is wrong with `url`, if anything, without repeating it: it may hold a password.
pub(super) fn check_url(url: &str) -> Result<(), String> {
    options(url).map(drop)
}

fn options(url: &str) -> Result<Options, String> {
    match url.split_once(':').map(|(scheme, _)| scheme) {
        Some("sqlite") => {
            let options = SqliteConnectOptions::from_str(url)
                .map_err(|_| "must be sqlite:PATH, perhaps with parameters that SQLite knows")?;
            match options.get_filename().to_string_lossy().contains("memory") && url.contains(":memory:") {
                true => Err("an in-memory database would lose the books; name a file".to_owned()),
                false => Ok(Options::Sqlite(options)),
            }
        }
        Some("postgres" | "postgresql") => PgConnectOptions::from_str(url)
            .map(Options::Postgres)
            .map_err(|_| "must be postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned()),
        _ => Err("must begin with sqlite: or postgres://".to_owned()),
    }
}

/// The pools for `url`, without connecting yet.
pub(super) fn open(url: &str) -> Result<Pools, String> {
    Ok(match options(url)? {
        Options::Sqlite(options) => {
            let options = options
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                // What was answered must survive a power cut, not only a crash of ours.
                .synchronous(SqliteSynchronous::Full)
                .busy_timeout(Duration::from_millis(2_000))
                .foreign_keys(true)
                .pragma("cache_size", "-65536");
            let read = PoolOptions::new()
                .max_connections(4)
                .acquire_timeout(PATIENCE)
                .idle_timeout(None)
                .max_lifetime(None)
                .test_before_acquire(false)
                .connect_lazy_with(options.clone());
            // It reads everything once, so that a cache would not help it.
            let uncached = options.clone().pragma("cache_size", "-8192").disable_statement_logging();
            let long_read = long_reads().connect_lazy_with(uncached);
            Pools::Sqlite { write: Writer::new(options), read, long_read }
        }
        Options::Postgres(unhurried) => {
            let unhurried = unhurried.application_name("spell-platform");
            let options = unhurried.clone().options(POSTGRES_SETTINGS);
            let patient = unhurried.clone().options(LONG_READ_SETTINGS).disable_statement_logging();
            let long_read = long_reads().connect_lazy_with(patient);
            let pool = |connections| {
                PoolOptions::new()
                    .max_connections(connections)
                    .acquire_timeout(PATIENCE)
                    // Only a connection that lay idle may have died unnoticed; one in steady use is not asked.
                    .test_before_acquire(false)
                    .before_acquire(|connection: &mut PgConnection, meta| {
                        Box::pin(async move {
                            let lively = meta.idle_for < Duration::from_secs(1)
                                || timeout(PING_WITHIN, connection.ping())
                                    .await
                                    .is_ok_and(|pong| pong.is_ok());
                            Ok(lively)
                        })
                    })
                    .connect_lazy_with(options.clone())
            };
            Pools::Postgres { write: pool(6), read: pool(8), long_read, unhurried: Box::new(unhurried) }
        }
    })
}

/// One connection, there only while it is needed. That its statements are slow is not worth a warning.
fn long_reads<D: sqlx::Database>() -> PoolOptions<D> {
    PoolOptions::new().max_connections(1).acquire_timeout(PATIENCE).idle_timeout(Duration::from_secs(10))
}

/// How long an idle connection may take to show that it still is one.
const PING_WITHIN: Duration = Duration::from_millis(300);

/// A replica that is stuck, or gone without a word, must not keep an account locked for the others:
/// the server ends its transaction within seconds. `synchronous_commit`, because a server told
/// otherwise would answer before a commit is on disk.
const POSTGRES_SETTINGS: [(&str, &str); 5] = [
    ("statement_timeout", "2500"),
    ("lock_timeout", "2000"),
    ("idle_in_transaction_session_timeout", "3000"),
    ("tcp_user_timeout", "5000"),
    ("synchronous_commit", "on"),
];

/// A long read holds no lock that a cast waits for, but a snapshot: it must end as well, also when its
/// process is gone.
const LONG_READ_SETTINGS: [(&str, &str); 3] = [
    ("statement_timeout", "3600000"),
    ("idle_in_transaction_session_timeout", "60000"),
    ("tcp_user_timeout", "5000"),
];

/// Tells an error apart by what can be done about it.
pub(super) fn classify(error: sqlx::Error) -> StoreError {
    let sqlx::Error::Database(database) = &error else {
        return match &error {
            sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::Decode(_)
            | sqlx::Error::Encode(_)
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::RowNotFound => StoreError::Refused(error.to_string()),
            _ => StoreError::Unavailable(error.to_string()),
        };
    };
    let text = database.message().to_owned();
    if database.is_unique_violation() {
        return StoreError::Duplicate(text);
    }
    let code = database.code().unwrap_or_default();
    if database.try_downcast_ref::<sqlx::postgres::PgDatabaseError>().is_some() {
        match code.as_ref() {
            // serialization_failure, deadlock_detected, lock_not_available
            "40001" | "40P01" | "55P03" => StoreError::Conflict(text),
            // connection trouble, no resources, operator intervention (shutdown, time-outs), I/O;
            // 25P03: our transaction idled too long; 28, 3D, 42501: not let in, which an operator mends
            code if ["08", "53", "57", "58", "28", "3D", "XX"]
                .iter()
                .any(|class| code.starts_with(class))
                || ["25P03", "25006", "42501", "42P01"].contains(&code) =>
            {
                StoreError::Unavailable(text)
            }
            _ => StoreError::Refused(text),
        }
    } else {
        // SQLite's extended codes keep the primary one in the low byte.
        match code.parse::<i32>().unwrap_or_default() & 0xff {
            // BUSY, LOCKED
            5 | 6 => StoreError::Conflict(text),
            // ERROR (also "no such table" while a file is being replaced), MISMATCH, CONSTRAINT, TOOBIG, RANGE
            1 | 18 | 19 | 20 | 25 => StoreError::Refused(text),
            // READONLY, IOERR, CORRUPT, FULL, CANTOPEN, NOTADB, …: the file, not the statement
            _ => StoreError::Unavailable(text),
        }
    }
}
