//! A connection at work: out of its pool, perhaps in a transaction.
//!
//! # Failure behavior
//!
//! Every statement ends at its deadline. A connection whose last statement did not end well, or whose
//! transaction was neither committed nor rolled back, is closed instead of given back.

use sqlx::{Postgres, Sqlite, pool::PoolConnection};
use tokio::time::Instant;

use super::{Backend, Row, Statement, StoreError, Value, dialect, writer::SqliteLease};

/// Ends `work` at `deadline`. It is boxed because a query's future takes kilobytes, which every
/// future that awaits one would otherwise hold as well, and carry along each time it is moved.
pub(super) fn within<T: Send>(
    deadline: Instant,
    work: impl Future<Output = Result<T, sqlx::Error>> + Send,
) -> impl Future<Output = Result<T, StoreError>> + Send {
    let work = tokio::time::timeout_at(deadline, Box::pin(work));
    async move {
        match work.await {
            Ok(done) => done.map_err(dialect::classify),
            Err(_) => Err(StoreError::Unavailable("no answer in time".to_owned())),
        }
    }
}

pub(super) fn no_row() -> StoreError {
    StoreError::Refused("a statement that always gives a row gave none".to_owned())
}

pub(super) enum Connection {
    Sqlite(SqliteLease),
    Postgres(PoolConnection<Postgres>),
}

/// A connection out of the pool. It goes back only if the last thing it did was done to the end;
/// otherwise it is closed, and whatever it was in the middle of is rolled back by the database.
pub(super) struct Lease {
    pub connection: Option<Connection>,
    pub clean: bool,
    #[cfg(test)]
    pub simulated: Option<super::simulated::Simulated>,
}

/// Binds `values` and runs the query by `$method` on whichever connection this is.
macro_rules! on_connection {
    ($lease:ident, $text:ident, $values:ident, $deadline:ident, $query:ident $(::<$T:ty>)?, $method:ident) => {{
        let was_clean = std::mem::replace(&mut $lease.clean, false);
        #[cfg(test)]
        let met = $lease.meet($text, &$values, $deadline).await?;
        let work = async {
            match $lease.connection.as_mut() {
                Some(Connection::Sqlite(connection)) => {
                    let mut query = sqlx::$query::<Sqlite $(, $T)?>($text);
                    for value in $values {
                        query = match value {
                            Value::Text(text) => query.bind(text),
                            Value::Int(number) => query.bind(number),
                            Value::Bool(truth) => query.bind(truth),
                        };
                    }
                    query.$method(connection.connection()?).await.map(|done| done.into())
                }
                Some(Connection::Postgres(connection)) => {
                    let mut query = sqlx::$query::<Postgres $(, $T)?>($text);
                    for value in $values {
                        query = match value {
                            Value::Text(text) => query.bind(text),
                            Value::Int(number) => query.bind(number),
                            Value::Bool(truth) => query.bind(truth),
                        };
                    }
                    query.$method(&mut **connection).await.map(|done| done.into())
                }
                None => Err(sqlx::Error::PoolClosed),
            }
        };
        #[cfg(not(test))]
        let done = within($deadline, work).await;
        #[cfg(test)]
        let done = met.carry_out($deadline, work).await;
        $lease.clean = was_clean && done.is_ok();
        done
    }};
}

impl Lease {
    pub async fn all<T: Row>(
        &mut self,
        text: &'static str,
        values: Vec<Value>,
        deadline: Instant,
    ) -> Result<Vec<T>, StoreError> {
        on_connection!(self, text, values, deadline, query_as::<T>, fetch_all)
    }

    pub async fn execute(
        &mut self,
        text: &'static str,
        values: Vec<Value>,
        deadline: Instant,
    ) -> Result<u64, StoreError> {
        let done: Affected = on_connection!(self, text, values, deadline, query, execute)?;
        Ok(done.0)
    }

    /// Runs a text that is a transaction of its own; keeps the connection also if the database refused it.
    pub async fn transact(
        &mut self,
        text: &'static str,
        values: Vec<Value>,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let done = self.execute(text, values, deadline).await;
        match (&done, self.backend()) {
            (Ok(_) | Err(StoreError::Unavailable(_)), _) => {}
            // It is in no transaction any more.
            (Err(_), Backend::Postgres) => self.clean = true,
            // Perhaps it had not begun yet; then this fails, and the connection is closed.
            (Err(_), Backend::Sqlite) => drop(self.raw("ROLLBACK", deadline).await),
        }
        done.map(drop)
    }

    fn backend(&self) -> Backend {
        match self.connection {
            Some(Connection::Postgres(_)) => Backend::Postgres,
            _ => Backend::Sqlite,
        }
    }

    pub async fn raw(&mut self, text: &'static str, deadline: Instant) -> Result<(), StoreError> {
        self.clean = false;
        #[cfg(test)]
        let met = self.meet(text, &[], deadline).await?;
        let work = async {
            match self.connection.as_mut() {
                Some(Connection::Sqlite(connection)) => {
                    sqlx::raw_sql(text).execute(connection.connection()?).await.map(drop)
                }
                Some(Connection::Postgres(connection)) => {
                    sqlx::raw_sql(text).execute(&mut **connection).await.map(drop)
                }
                None => Err(sqlx::Error::PoolClosed),
            }
        };
        #[cfg(not(test))]
        within(deadline, work).await?;
        #[cfg(test)]
        met.carry_out(deadline, work).await?;
        self.clean = true;
        Ok(())
    }

    /// Lets go of the connection, which is closed unless it is clean.
    fn let_go(&mut self) {
        let connection = self.connection.take();
        #[cfg(test)]
        if self.simulated.is_some() {
            connection.into_iter().for_each(|c| super::simulated::Simulated::take_back(c, self.clean));
            return;
        }
        match connection {
            Some(Connection::Sqlite(connection)) if !self.clean => connection.discard(),
            Some(Connection::Postgres(connection)) if !self.clean => drop(connection.detach()),
            _ => {}
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.let_go();
    }
}

struct Affected(u64);

impl From<sqlx::sqlite::SqliteQueryResult> for Affected {
    fn from(done: sqlx::sqlite::SqliteQueryResult) -> Affected {
        Affected(done.rows_affected())
    }
}

impl From<sqlx::postgres::PgQueryResult> for Affected {
    fn from(done: sqlx::postgres::PgQueryResult) -> Affected {
        Affected(done.rows_affected())
    }
}

/// A transaction. It ends by [`Tx::commit`] or [`Tx::rollback`]; dropped, it is rolled back by
/// closing its connection. All of it must fit into [`PATIENCE`], unless it is a long read.
pub struct Tx {
    pub(super) lease: Lease,
    pub(super) deadline: Instant,
    /// Not yet on SQLite, whose connection is another thread: to begin along with the first statement saves a
    /// trip to it.
    pub(super) begun: bool,
}

impl Tx {
    /// All rows of a statement.
    pub async fn all<T: Row>(
        &mut self,
        statement: &Statement,
        values: Vec<Value>,
    ) -> Result<Vec<T>, StoreError> {
        if self.begun {
            return self.lease.all(statement.on(self.lease.backend()), values, self.deadline).await;
        }
        self.expect_to_begin()?;
        let rows = self.lease.all(statement.beginning(), values, self.deadline).await;
        self.has_begun(rows)
    }

    /// Begins, if it has not yet, before a statement whose rows are counted: the count would be wrong if it began
    /// along with it.
    async fn begin(&mut self) -> Result<(), StoreError> {
        if self.begun {
            return Ok(());
        }
        self.expect_to_begin()?;
        let begun = self.lease.raw(dialect::begin(Backend::Sqlite, true), self.deadline).await;
        self.has_begun(begun)
    }

    /// Fails if it was tried before, and whoever tried did not wait for the outcome: it may have begun or not.
    fn expect_to_begin(&self) -> Result<(), StoreError> {
        match self.lease.clean {
            true => Ok(()),
            false => Err(StoreError::Unavailable("its first statement was given up".to_owned())),
        }
    }

    fn has_begun<T>(&mut self, begun: Result<T, StoreError>) -> Result<T, StoreError> {
        self.begun = true;
        // From here on the connection is in a transaction: it goes back only through commit or rollback.
        self.lease.clean = false;
        if begun.is_err() {
            // Perhaps it is in none, and then each statement would be committed by itself.
            self.lease.let_go();
        }
        begun
    }

    /// The row of a statement, if there is one.
    pub async fn optional<T: Row>(
        &mut self,
        statement: &Statement,
        values: Vec<Value>,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.all(statement, values).await?.into_iter().next())
    }

    /// The row of a statement that always has one.
    pub async fn one<T: Row>(&mut self, statement: &Statement, values: Vec<Value>) -> Result<T, StoreError> {
        self.optional(statement, values).await?.ok_or_else(no_row)
    }

    /// Runs a writing statement; gives the number of rows it touched.
    pub async fn execute(&mut self, statement: &Statement, values: Vec<Value>) -> Result<u64, StoreError> {
        self.begin().await?;
        self.lease.execute(statement.on(self.lease.backend()), values, self.deadline).await
    }

    /// Locks the rows of a statement, and gives them, where the database locks rows. `None`: the transaction has all
    /// of the database to itself, from its first statement on.
    pub async fn lock<T: Row>(
        &mut self,
        statement: &Statement,
        values: Vec<Value>,
    ) -> Result<Option<Vec<T>>, StoreError> {
        match self.lease.backend() {
            Backend::Postgres => self.all(statement, values).await.map(Some),
            Backend::Sqlite => Ok(None),
        }
    }

    /// Makes the transaction durable. After an `Unavailable` it is not known whether it is.
    pub async fn commit(self) -> Result<(), StoreError> {
        self.end("COMMIT").await
    }

    async fn end(mut self, by: &'static str) -> Result<(), StoreError> {
        match self.begun {
            true => self.lease.raw(by, self.deadline).await,
            // It did nothing.
            false => self.expect_to_begin(),
        }
    }

    /// Runs a last writing statement, which `{commit}` stands behind, and makes the transaction durable. After
    /// an `Unavailable` it is not known whether it is.
    pub async fn commit_with(mut self, last: &Statement, values: Vec<Value>) -> Result<(), StoreError> {
        self.execute(last, values).await?;
        if self.lease.backend() == Backend::Postgres {
            return self.commit().await;
        }
        self.lease.clean = true;
        Ok(())
    }

    /// Gives up what was written, and keeps the connection.
    pub async fn rollback(self) -> Result<(), StoreError> {
        self.end("ROLLBACK").await
    }
}
