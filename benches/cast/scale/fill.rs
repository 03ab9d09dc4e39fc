//! Fills a database with accounts that have spent for a while: each a key, a monthly budget, a balance, and casts
//! with their lines in the ledger. The books agree, so that the audit finds nothing.
//!
//! It is done in bulk, in pieces of so many accounts, by the tables' own triggers and indexes; ids go up, as they
//! do in use. Afterwards PostgreSQL is vacuumed and analysed, which it would have done by itself; SQLite, which
//! nobody does that for, is not.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use spell_platform::{clock::Time, window};
use sqlx::{AssertSqlSafe, Connection, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

/// How many accounts are written in one go.
const PIECE: u64 = 20_000;
/// Numbers of one length, so that ids in text are in their order.
const FIRST: u64 = 10_000_000;
const FIRST_CAST: u64 = 10_000_000_000;

const DAY_MS: i64 = 86_400_000;

/// How much there is to be.
#[derive(Clone, Copy)]
pub struct Size {
    pub accounts: u64,
    pub entries: u64,
}

impl Size {
    fn entries_each(self) -> u64 {
        (self.entries / self.accounts).max(1)
    }

    /// So many accounts' ids, spread evenly.
    pub fn some(self, count: usize) -> Vec<String> {
        let step = self.accounts / count as u64;
        (0..count as u64).map(|n| format!("acct_0190{:028}", FIRST + n * step + step / 2)).collect()
    }
}

/// The statements, for the accounts from `{from}` to below `{to}`; ids are older than any that is made now.
const STATEMENTS: [&str; 7] = [
    "INSERT INTO accounts (id, name, suspended, created_at)
     SELECT {account}, 'account ' || n, false, {at} FROM numbers",
    "INSERT INTO api_keys (id, account_id, name, prefix, rate_limit_per_minute, created_at)
     SELECT {key}, {account}, 'filled', 'sk_live_fill', 60, {at} FROM numbers",
    "INSERT INTO api_key_secrets (hash, key_id, created_at) SELECT {hash}, {key}, {at} FROM numbers",
    "INSERT INTO budgets (id, account_id, scope, period, hard_limit, notify_thresholds, locked,
                          created_at, updated_at, change_id)
     SELECT 'bud_0190' || {n}, {account}, 'account', 'monthly', 800000000000000000, '[]', false,
            {at}, {at}, 'change_0190' || {n} FROM numbers",
    "INSERT INTO balances (id, account_id, kind, key_id, spell, starts_at, posted, pending, calls)
     SELECT {balance}, {account}, 'spend', {key}, 'echo', {day}, {each} * 10000000, 0, {each} FROM numbers",
    "INSERT INTO entries (reference, cause, balance_id, amount, created_at)
     SELECT {cast}, 'charge', {balance}, 10000000, {at} FROM numbers CROSS JOIN repeated",
    "INSERT INTO casts (id, account_id, key_id, spell, status, cost, created_at, finished_at)
     SELECT {cast}, {account}, {key}, 'echo', 'COMPLETED', 10000000, {at}, {at}
     FROM numbers CROSS JOIN repeated",
];

const NUMBERS: &str = "
    WITH RECURSIVE numbers (n) AS (SELECT {from} UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < {to}),
    repeated (r) AS (SELECT 0 UNION ALL SELECT r + 1 FROM repeated WHERE r + 1 < {each}) ";

pub enum Base {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Base {
    pub async fn connect(url: &str) -> Base {
        if !url.starts_with("sqlite:") {
            return Base::Postgres(PgConnection::connect(url).await.unwrap());
        }
        // Nobody else is there, and what is lost is filled again.
        let options = SqliteConnectOptions::from_str(url).unwrap();
        let options = options.pragma("synchronous", "OFF").pragma("cache_size", "-262144");
        Base::Sqlite(SqliteConnection::connect_with(&options).await.unwrap())
    }

    async fn run(&mut self, statement: String) {
        let statement = sqlx::raw_sql(AssertSqlSafe(statement));
        match self {
            Base::Postgres(connection) => drop(statement.execute(connection).await.unwrap()),
            Base::Sqlite(connection) => drop(statement.execute(connection).await.unwrap()),
        }
    }

    async fn number(&mut self, statement: &'static str) -> i64 {
        match self {
            Base::Postgres(connection) => sqlx::query_scalar(statement).fetch_one(connection).await.unwrap(),
            Base::Sqlite(connection) => sqlx::query_scalar(statement).fetch_one(connection).await.unwrap(),
        }
    }

    pub async fn close(self) {
        match self {
            Base::Postgres(connection) => connection.close().await.unwrap(),
            Base::Sqlite(connection) => connection.close().await.unwrap(),
        }
    }

    /// What the database takes on disk.
    pub async fn gigabytes(&mut self) -> f64 {
        let statement = match self {
            Base::Postgres(_) => "SELECT pg_database_size(current_database())",
            Base::Sqlite(_) => "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size",
        };
        self.number(statement).await as f64 / 1e9
    }

    /// Fills a database whose schema is there; gives how long that took.
    pub async fn fill(&mut self, size: Size) -> Duration {
        let (began, mut told) = (Instant::now(), Instant::now());
        let now = self
            .number(match self {
                Base::Postgres(_) => "SELECT CAST(EXTRACT(EPOCH FROM now()) * 1000 AS BIGINT)",
                Base::Sqlite(_) => "SELECT CAST(unixepoch() * 1000 AS BIGINT)",
            })
            .await;
        let mut done = 0;
        while done < size.accounts {
            let next = (done + PIECE).min(size.accounts);
            for statement in STATEMENTS {
                self.run(self.text(statement, (done, next), size, Time(now - DAY_MS))).await;
            }
            done = next;
            if told.elapsed() > Duration::from_secs(15) {
                told = Instant::now();
                eprintln!("{done} of {} accounts filled", size.accounts);
            }
        }
        self.run(match self {
            Base::Postgres(_) => "VACUUM ANALYZE".to_owned(),
            Base::Sqlite(_) => "PRAGMA wal_checkpoint(TRUNCATE)".to_owned(),
        })
        .await;
        began.elapsed()
    }

    fn text(&self, statement: &str, (from, to): (u64, u64), size: Size, at: Time) -> String {
        let hash = match self {
            Base::Postgres(_) => "encode(sha256(convert_to(CAST(n AS TEXT), 'UTF8')), 'hex')",
            Base::Sqlite(_) => "lower(hex(randomblob(32)))",
        };
        let each = size.entries_each();
        let day = window::midnight(window::day_of(at)).0;
        let tokens = [
            (
                "{balance}",
                format!("'spend/' || {{account}} || '/' || {{key}} || '/{}/echo'", window::day_of(at)),
            ),
            ("{account}", "'acct_0190' || {n}".to_owned()),
            ("{key}", "'key_0190' || {n}".to_owned()),
            (
                "{cast}",
                format!("'cast_0190{:017}' || CAST({FIRST_CAST} + (n - {FIRST}) * {each} + r AS TEXT)", 0),
            ),
            ("{n}", format!("'{:020}' || CAST(n AS TEXT)", 0)),
            ("{hash}", hash.to_owned()),
            ("{from}", (FIRST + from).to_string()),
            ("{to}", (FIRST + to).to_string()),
            ("{each}", each.to_string()),
            ("{day}", day.to_string()),
            ("{at}", at.0.to_string()),
        ];
        // SQLite has the names before what they are for, as PostgreSQL does: INSERT INTO … WITH … SELECT.
        let (insert, select) = statement.split_once("SELECT").unwrap();
        let text = format!("{insert}{NUMBERS}SELECT{select}");
        tokens.iter().fold(text, |text, (token, meaning)| text.replace(token, meaning))
    }
}
