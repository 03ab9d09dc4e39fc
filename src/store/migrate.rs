//! Brings the schema up to this binary's: `migrations/sqlite` and `migrations/postgres` hold the
//! same numbers under the same names, and are compiled in.
//!
//! # Failure behavior
//!
//! Replicas may start at the same moment: on PostgreSQL the migrator holds an advisory lock, on
//! SQLite the one who comes second sees a failure and looks again. A migration is a transaction, so
//! a crash leaves it done or not done.

use std::time::Duration;

use sqlx::{
    migrate::{MigrateError, Migrator},
    pool::PoolOptions,
};

use super::{PATIENCE, Pools, StoreError, dialect};

pub(super) static SQLITE: Migrator = sqlx::migrate!("migrations/sqlite");
static POSTGRES: Migrator = sqlx::migrate!("migrations/postgres");

pub(super) async fn run(pools: &Pools) -> Result<(), StoreError> {
    match pools {
        Pools::Postgres { unhurried, .. } => {
            // A connection of its own: it may take its time, and an error leaves no lock in a pool.
            let own = PoolOptions::<sqlx::Postgres>::new().max_connections(1).acquire_timeout(PATIENCE);
            let own = own.connect_lazy_with((**unhurried).clone());
            let done = POSTGRES.run(&own).await.map_err(classify);
            own.close().await;
            done
        }
        Pools::Sqlite { write, .. } => {
            let mut attempts = 0;
            loop {
                let mut lease = write.acquire().await.map_err(dialect::classify)?;
                let connection = lease.connection().map_err(dialect::classify)?;
                let done = SQLITE.run_direct(None, connection, false).await;
                if done.is_err() {
                    lease.discard();
                }
                match done {
                    Err(_) if attempts < 5 => {
                        attempts += 1;
                        tokio::time::sleep(Duration::from_millis(40 * attempts)).await;
                    }
                    done => return done.map_err(classify),
                }
            }
        }
    }
}

fn classify(error: MigrateError) -> StoreError {
    match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => dialect::classify(error),
        // A schema of a newer or an edited binary: nothing that waiting mends.
        other => StoreError::Refused(other.to_string()),
    }
}
