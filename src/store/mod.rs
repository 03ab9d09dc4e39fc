//! The database: SQLite in a file, or PostgreSQL, behind two closed enums.
//!
//! Statements are written once and run on both ([`statements!`]); what must differ is in
//! [`dialect`]. There are no type parameters above this module: a handler has a [`Db`], an effect a
//! [`Tx`], and both speak in [`Value`]s and rows.
//!
//! # Failure behavior
//!
//! Every call ends within [`PATIENCE`], and a transaction as a whole does too, but for a long read. What goes wrong is
//! told apart by what the caller can do about it ([`StoreError`]). A `Tx` that is dropped without a
//! commit (an error, a panic, a caller who hung up) takes its connection with it, so that the
//! database rolls back and nothing half-done is handed to the next user of the pool.

mod dialect;
mod migrate;
#[cfg(test)]
mod plans;
#[cfg(test)]
pub mod simulated;
#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;
mod transaction;
mod writer;

use std::{
    future::poll_fn,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{
    FromRow, PgPool, SqlitePool,
    postgres::{PgConnectOptions, PgRow},
    sqlite::SqliteRow,
};
use tokio::{
    runtime::Handle,
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::Instant,
};

pub use dialect::Backend;
pub use transaction::Tx;
use transaction::{Connection, Lease, no_row, within};
use writer::{SqliteLease, Writer};

/// How long a statement, or a whole transaction, may take before it counts as a failed database.
/// Below the three seconds within which a caller is promised an answer.
pub const PATIENCE: Duration = Duration::from_millis(2_500);

/// How long a transaction may take that goes through all of the books ([`Db::begin_long_read`]).
const LONG_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// A text after every id, in any collation: where a list begins that goes down from the newest. With
/// it, `id < $n` is the bound of an index; `$n IS NULL OR …` would not be.
pub const BEYOND_IDS: &str = "zzzz";

/// A statement in the text that both databases share, with `{tokens}` for the few places where they
/// differ (see [`dialect`]). Declared through [`statements!`].
pub struct Statement {
    /// Its module and its own name, where it was declared.
    pub name: &'static str,
    text: &'static str,
    sqlite: OnceLock<&'static str>,
    postgres: OnceLock<&'static str>,
    beginning: OnceLock<&'static str>,
    whole: OnceLock<&'static str>,
}

impl Statement {
    pub const fn new(text: &'static str) -> Statement {
        Statement::named("", text)
    }

    pub const fn named(name: &'static str, text: &'static str) -> Statement {
        Statement {
            name,
            text,
            sqlite: OnceLock::new(),
            postgres: OnceLock::new(),
            beginning: OnceLock::new(),
            whole: OnceLock::new(),
        }
    }

    /// The text as `backend` wants it; rendered once per statement and kept.
    pub fn on(&self, backend: Backend) -> &'static str {
        let slot = match backend {
            Backend::Sqlite => &self.sqlite,
            Backend::Postgres => &self.postgres,
        };
        slot.get_or_init(|| Box::leak(dialect::render(self.text, backend).into_boxed_str()))
    }

    /// The text for SQLite as the first of a writing transaction, which begins with it.
    fn beginning(&self) -> &'static str {
        self.beginning.get_or_init(|| {
            let text = format!("{}; {}", dialect::begin(Backend::Sqlite, true), self.on(Backend::Sqlite));
            Box::leak(text.into_boxed_str())
        })
    }

    /// The text as a transaction of its own. SQLite would make one of each of its parts.
    fn whole(&self, backend: Backend) -> &'static str {
        match backend {
            Backend::Postgres => self.on(backend),
            Backend::Sqlite => {
                self.whole.get_or_init(|| Box::leak(format!("{}; COMMIT", self.beginning()).into_boxed_str()))
            }
        }
    }
}

inventory::collect!(&'static Statement);

/// Declares statements, and lists them for the test that prepares each one on both databases.
macro_rules! statements {
    ($($(#[$meta:meta])* $vis:vis $name:ident = $text:expr;)+) => {$(
        $(#[$meta])*
        $vis static $name: $crate::store::Statement =
            $crate::store::Statement::named(concat!(module_path!(), "::", stringify!($name)), $text);
        inventory::submit! { &$name }
    )+};
}
pub(crate) use statements;

/// What can be bound to a placeholder: the portable subset is text, integers and booleans.
#[derive(Clone, Debug)]
pub enum Value {
    Text(Option<String>),
    Int(Option<i64>),
    Bool(bool),
}

macro_rules! values {
    ($($from:ty => $value:expr;)+) => {$(
        impl From<$from> for Value {
            fn from(given: $from) -> Value {
                #[allow(clippy::redundant_closure_call)]
                ($value)(given)
            }
        }
    )+};
}

values! {
    &str => |text: &str| Value::Text(Some(text.to_owned()));
    &String => |text: &String| Value::Text(Some(text.clone()));
    String => |text| Value::Text(Some(text));
    Option<String> => Value::Text;
    Option<&str> => |text: Option<&str>| Value::Text(text.map(str::to_owned));
    i64 => |number| Value::Int(Some(number));
    Option<i64> => Value::Int;
    bool => Value::Bool;
    crate::clock::Time => |at: crate::clock::Time| Value::Int(Some(at.0));
    Option<crate::clock::Time> => |at: Option<crate::clock::Time>| Value::Int(at.map(|at| at.0));
    crate::money::Nanos => |nanos: crate::money::Nanos| Value::Int(Some(nanos.0));
    Option<crate::money::Nanos> => |nanos: Option<crate::money::Nanos>| Value::Int(nanos.map(|nanos| nanos.0));
}

/// The values of a statement, in the order of its placeholders.
macro_rules! binds {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::Value::from($value)),*] };
}
pub(crate) use binds;

/// Rows for a statement that reads them from `{rows}`: one JSON array of arrays, which both
/// databases take apart in the same way (`given.value ->> 0` is a row's first column). One statement with
/// one parameter, however many rows, so a batch of any size uses one prepared plan.
#[derive(Default)]
pub struct Rows {
    json: String,
}

impl Rows {
    pub fn is_empty(&self) -> bool {
        self.json.is_empty()
    }

    /// Adds a row, its columns in the order in which the statement names them.
    pub fn push(&mut self, columns: impl AsRef<[Value]>) {
        use std::fmt::Write;
        self.json.push(if self.json.is_empty() { '[' } else { ',' });
        for (position, column) in columns.as_ref().iter().enumerate() {
            self.json.push(if position == 0 { '[' } else { ',' });
            let written = match column {
                Value::Text(Some(text))
                    if text.bytes().any(|byte| byte < b' ' || b"\"\\".contains(&byte)) =>
                {
                    self.json.push_str(&serde_json::Value::from(text.as_str()).to_string());
                    Ok(())
                }
                Value::Text(Some(text)) => write!(self.json, "\"{text}\""),
                Value::Int(Some(number)) => write!(self.json, "{number}"),
                Value::Bool(truth) => write!(self.json, "{truth}"),
                Value::Text(None) | Value::Int(None) => write!(self.json, "null"),
            };
            debug_assert!(written.is_ok(), "writing to a String can't fail");
        }
        self.json.push(']');
    }

    /// A row per text, in one column.
    pub fn of<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Rows {
        let mut rows = Rows::default();
        for text in texts {
            rows.push([Value::from(text.as_ref())]);
        }
        rows
    }
}

impl From<Rows> for Value {
    fn from(rows: Rows) -> Value {
        Value::Text(Some(if rows.json.is_empty() { "[]".to_owned() } else { rows.json + "]" }))
    }
}

impl From<&Rows> for Value {
    fn from(rows: &Rows) -> Value {
        Value::Text(Some(if rows.json.is_empty() { "[]".to_owned() } else { format!("{}]", rows.json) }))
    }
}

/// A row type that decodes from either database; `#[derive(sqlx::FromRow)]` and tuples do.
pub trait Row: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin {}
impl<T: for<'r> FromRow<'r, SqliteRow> + for<'r> FromRow<'r, PgRow> + Send + Unpin> Row for T {}

/// What went wrong, by what can be done about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The database does not answer (in time): try later, and find out what became of a commit.
    #[error("the database is not available: {0}")]
    Unavailable(String),
    /// Another transaction was in the way (serialization, deadlock, lock time-out): run it again.
    #[error("the transaction lost to another: {0}")]
    Conflict(String),
    /// A row with that key exists.
    #[error("a row with that key exists: {0}")]
    Duplicate(String),
    /// The values, not the database, are at fault: running it again fails again.
    #[error("the database refused the statement: {0}")]
    Refused(String),
}

/// How a transaction failed that is one statement.
#[derive(Debug)]
pub enum NotDone {
    /// Nothing of it happened.
    Certainly(StoreError),
    /// It may have been committed, or may still be.
    Perhaps,
}

/// How often a transaction is tried when others are in the way.
const ATTEMPTS: u32 = 3;

/// Does `work`, which is one transaction, again when it lost to another.
pub async fn despite_conflicts<T>(work: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
    let mut attempt = 1;
    loop {
        match work().await {
            Err(StoreError::Conflict(_)) if attempt < ATTEMPTS => attempt += 1,
            done => return done,
        }
    }
}

/// The database: hand it around by clone.
#[derive(Clone)]
pub struct Db {
    pools: Pools,
    migrated: Arc<AtomicBool>,
    migrating: Arc<Mutex<()>>,
    long_reads: Arc<Semaphore>,
    effects: Arc<Semaphore>,
    /// Where connections live: one that was made on an HTTP worker's own runtime would end with it.
    runtime: Handle,
    #[cfg(test)]
    simulated: Option<simulated::Simulated>,
}

/// Writers and readers wait apart from each other, so that no number of reads holds up a cast.
#[derive(Clone)]
enum Pools {
    /// SQLite has one writer at a time in any case; one connection makes the waiting ours.
    Sqlite { write: Writer, read: SqlitePool, long_read: SqlitePool },
    Postgres {
        write: PgPool,
        read: PgPool,
        /// One connection, for what may take longer than a statement may otherwise.
        long_read: PgPool,
        /// For migrations, which may take longer than a statement may otherwise.
        unhurried: Box<PgConnectOptions>,
    },
}

/// What a connection is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Write,
    Read,
    LongRead,
}

/// How many reads that may be long, such as lists, run at once: the others are left to what a cast
/// needs, its caller's key above all.
const LONG_READS: usize = 3;

/// How many effects have a turn at once.
const EFFECTS: usize = 2;

impl Db {
    /// Opens the database that `url` names, without waiting for it: `sqlite:PATH` or
    /// `postgres://…`. Must be called inside the runtime that its connections shall live on. Until [`Db::migrate`] has succeeded every call is `Unavailable`.
    ///
    /// Errors: a sentence about what is wrong with the URL.
    pub fn open(url: &str) -> Result<Db, String> {
        Ok(Db {
            pools: dialect::open(url)?,
            migrated: Arc::default(),
            migrating: Arc::default(),
            long_reads: Arc::new(Semaphore::new(LONG_READS)),
            effects: Arc::new(Semaphore::new(EFFECTS)),
            runtime: Handle::current(),
            #[cfg(test)]
            simulated: None,
        })
    }

    /// Says what is wrong with a database's URL, if anything.
    pub fn check_url(url: &str) -> Result<(), String> {
        dialect::check_url(url)
    }

    pub fn backend(&self) -> Backend {
        match self.pools {
            Pools::Sqlite { .. } => Backend::Sqlite,
            Pools::Postgres { .. } => Backend::Postgres,
        }
    }

    /// Brings the schema up to this binary's. Any number of replicas may do so at once. It goes on also if nobody
    /// waits for it any longer: it may take minutes, and whoever asks again would begin anew.
    pub async fn migrate(&self) -> Result<(), StoreError> {
        let db = self.clone();
        let migrating = self.runtime.spawn(async move {
            let _turn = db.migrating.lock().await;
            migrate::run(&db.pools).await?;
            db.migrated.store(true, Ordering::Release);
            Ok(())
        });
        migrating.await.unwrap_or_else(|ended| Err(StoreError::Unavailable(ended.to_string())))
    }

    /// The time as the database tells it, which every replica shares.
    pub async fn now(&self) -> Result<crate::clock::Time, StoreError> {
        let (ms,): (i64,) = self.one(&dialect::NOW, vec![]).await?;
        Ok(crate::clock::Time(ms))
    }

    /// Connections that are out of the pool at this moment.
    pub fn connections_in_use(&self) -> usize {
        fn used<D: sqlx::Database>(pool: &sqlx::Pool<D>) -> usize {
            (pool.size() as usize).saturating_sub(pool.num_idle())
        }
        match &self.pools {
            Pools::Sqlite { write, read, long_read } => {
                usize::from(write.is_in_use()) + used(read) + used(long_read)
            }
            Pools::Postgres { write, read, long_read, .. } => used(write) + used(read) + used(long_read),
        }
    }

    /// Waits until what is under way has ended, and closes the connections.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { write, read, long_read } => {
                long_read.close().await;
                read.close().await;
                write.close().await;
            }
            Pools::Postgres { write, read, long_read, .. } => {
                long_read.close().await;
                read.close().await;
                write.close().await;
            }
        }
    }

    /// A transaction that writes. It has its turn among this process's writers from here on; on SQLite it begins,
    /// and keeps other processes out, with its first statement.
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        match self.backend() {
            Backend::Postgres => self.transaction(Purpose::Write, PATIENCE).await,
            Backend::Sqlite => {
                let deadline = Instant::now() + PATIENCE;
                Ok(Tx { lease: self.lease(Purpose::Write, deadline).await?, deadline, begun: false })
            }
        }
    }

    /// Does `work`, which is one writing transaction beside the ledger's own, when it is its turn, and again when it
    /// lost to another; within [`PATIENCE`] in all. Only a few have a turn at once: the other connections are
    /// left to casts.
    pub async fn effect<T>(&self, work: impl AsyncFn() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let attempts = async {
            let _turn = self.effects.acquire().await;
            despite_conflicts(work).await
        };
        let late = || StoreError::Unavailable(format!("not done within {} ms", PATIENCE.as_millis()));
        tokio::time::timeout(PATIENCE, Box::pin(attempts)).await.unwrap_or_else(|_| Err(late()))
    }

    /// A turn like that of an effect, for whoever writes in the background: to be held until it is done.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // There is always one in the end: they are never closed.
        self.effects.acquire().await.ok()
    }

    /// A transaction that only reads: every statement of it sees the same books.
    pub async fn begin_read(&self) -> Result<Tx, StoreError> {
        self.transaction(Purpose::Read, PATIENCE).await
    }

    /// As [`Db::begin_read`], for what goes through all of the books: it may take an hour, and has a
    /// connection of its own, so that nobody waits for it. There is one at a time in a process.
    pub async fn begin_long_read(&self) -> Result<Tx, StoreError> {
        self.transaction(Purpose::LongRead, LONG_PATIENCE).await
    }

    async fn transaction(&self, purpose: Purpose, patience: Duration) -> Result<Tx, StoreError> {
        let deadline = Instant::now() + patience;
        let mut lease = self.lease(purpose, deadline).await?;
        lease.raw(dialect::begin(self.backend(), purpose == Purpose::Write), deadline).await?;
        // From here on the connection is in a transaction: it goes back only through commit or rollback.
        lease.clean = false;
        Ok(Tx { lease, deadline, begun: true })
    }

    /// All rows of one reading statement, outside of any transaction.
    pub async fn all<T: Row>(&self, statement: &Statement, values: Vec<Value>) -> Result<Vec<T>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        self.lease(Purpose::Read, deadline).await?.all(statement.on(self.backend()), values, deadline).await
    }

    /// As [`Db::all`], for statements that may read much: only a few run at once.
    pub async fn scan<T: Row>(
        &self,
        statement: &Statement,
        values: Vec<Value>,
    ) -> Result<Vec<T>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let turn = tokio::time::timeout_at(deadline, self.long_reads.acquire()).await;
        let _turn = turn.map_err(|_| StoreError::Unavailable("too many reads wait".to_owned()))?;
        self.lease(Purpose::Read, deadline).await?.all(statement.on(self.backend()), values, deadline).await
    }

    /// The row of one reading statement, if there is one.
    pub async fn optional<T: Row>(
        &self,
        statement: &Statement,
        values: Vec<Value>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.all(statement, values).await?.into_iter().next())
    }

    /// The row of one reading statement that always has one.
    pub async fn one<T: Row>(&self, statement: &Statement, values: Vec<Value>) -> Result<T, StoreError> {
        self.optional(statement, values).await?.ok_or_else(no_row)
    }

    /// One writing statement as a transaction of its own; gives the number of rows it touched.
    pub async fn execute(&self, statement: &Statement, values: Vec<Value>) -> Result<u64, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        self.lease(Purpose::Write, deadline)
            .await?
            .execute(statement.on(self.backend()), values, deadline)
            .await
    }

    /// Runs a writing statement, which may have several parts, as a transaction of its own, in one trip to the
    /// database.
    pub async fn transact(&self, statement: &Statement, values: Vec<Value>) -> Result<(), NotDone> {
        let deadline = Instant::now() + PATIENCE;
        let mut lease = self.lease(Purpose::Write, deadline).await.map_err(NotDone::Certainly)?;
        let done = lease.transact(statement.whole(self.backend()), values, deadline).await;
        done.map_err(|error| match error {
            StoreError::Unavailable(_) => NotDone::Perhaps,
            error => NotDone::Certainly(error),
        })
    }

    async fn lease(&self, purpose: Purpose, deadline: Instant) -> Result<Lease, StoreError> {
        if !self.migrated.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("its schema is not ready yet".to_owned()));
        }
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return Box::pin(simulated.lease(purpose, deadline)).await;
        }
        let mut acquire = Box::pin(async {
            Ok(match &self.pools {
                Pools::Sqlite { write, read, long_read } => Connection::Sqlite(match purpose {
                    Purpose::Write => write.acquire().await?,
                    Purpose::Read => SqliteLease::Read(read.acquire().await?),
                    Purpose::LongRead => SqliteLease::Read(long_read.acquire().await?),
                }),
                Pools::Postgres { write, read, long_read, .. } => {
                    let pool = match purpose {
                        Purpose::Write => write,
                        Purpose::Read => read,
                        Purpose::LongRead => long_read,
                    };
                    Connection::Postgres(pool.acquire().await?)
                }
            })
        });
        let on_our_runtime = poll_fn(|context| {
            let _entered = self.runtime.enter();
            acquire.as_mut().poll(context)
        });
        let connection = within(deadline, on_our_runtime).await?;
        Ok(Lease {
            connection: Some(connection),
            clean: true,
            #[cfg(test)]
            simulated: None,
        })
    }
}
