//! SQLite's connections: a pool for those that read, and the one that writes.
//!
//! The writing one is handed on from hand to hand, in the order in which it was asked for. A pool
//! would take it back in a task of its own before it gave it out again, and the next batch of casts
//! would wait for that.
//!
//! # Failure behavior
//!
//! A connection that was given up in the middle of something is closed, which rolls back whatever it
//! was; the next one who wants to write opens another.

use std::sync::Arc;

use sqlx::{
    ConnectOptions, Connection, Sqlite, SqliteConnection, pool::PoolConnection, sqlite::SqliteConnectOptions,
};
use tokio::sync::{Mutex, OwnedMutexGuard};

/// The one connection that writes.
#[derive(Clone)]
pub(super) struct Writer {
    options: Box<SqliteConnectOptions>,
    connection: Arc<Mutex<Option<SqliteConnection>>>,
}

impl Writer {
    pub fn new(options: SqliteConnectOptions) -> Writer {
        Writer { options: Box::new(options), connection: Arc::default() }
    }

    /// Waits for its turn.
    pub async fn acquire(&self) -> Result<SqliteLease, sqlx::Error> {
        let mut connection = self.connection.clone().lock_owned().await;
        if connection.is_none() {
            *connection = Some(self.options.connect().await?);
        }
        Ok(SqliteLease::Write(connection))
    }

    /// Whether somebody has it.
    pub fn is_in_use(&self) -> bool {
        self.connection.try_lock().is_err()
    }

    /// Waits until nobody has it, and closes it.
    pub async fn close(&self) {
        if let Some(connection) = self.connection.lock().await.take() {
            // Everything was committed or rolled back; there is nothing to be lost.
            let _ = connection.close().await;
        }
    }
}

/// One of SQLite's connections, for as long as it is held.
pub(super) enum SqliteLease {
    Read(PoolConnection<Sqlite>),
    Write(OwnedMutexGuard<Option<SqliteConnection>>),
}

impl SqliteLease {
    pub fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        match self {
            SqliteLease::Read(connection) => Ok(connection),
            SqliteLease::Write(connection) => connection.as_mut().ok_or(sqlx::Error::PoolClosed),
        }
    }

    /// Closes the connection instead of handing it on.
    pub fn discard(self) {
        match self {
            SqliteLease::Read(connection) => drop(connection.detach()),
            SqliteLease::Write(mut connection) => drop(connection.take()),
        }
    }
}
