//! The two databases: a SQLite file in a directory of its own, or a fresh PostgreSQL database. Both
//! are gone when the test ends.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};
use tempfile::TempDir;
use url::Url;

use super::wait;

/// Where one test's servers keep their books.
pub struct Backend {
    url: String,
    /// Removes the database when it is dropped.
    kind: Kind,
}

#[expect(dead_code, reason = "what is in here is there to be dropped")]
enum Kind {
    Sqlite(TempDir),
    Postgres(FreshDatabase),
}

impl Backend {
    pub async fn sqlite() -> Backend {
        wait::not_across_midnight().await;
        let dir = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", dir.path().join("books.db").display());
        Backend { url, kind: Kind::Sqlite(dir) }
    }

    pub async fn postgres() -> Backend {
        wait::not_across_midnight().await;
        let database = FreshDatabase::create().await;
        Backend { url: database.url(), kind: Kind::Postgres(database) }
    }

    /// What `DATABASE_URL` is to be.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same database, reached through a proxy on that port of loopback.
    pub fn url_through(&self, port: u16) -> String {
        let mut url = Url::parse(&self.url).unwrap();
        url.set_host(Some("127.0.0.1")).unwrap();
        url.set_port(Some(port)).unwrap();
        url.into()
    }

    /// Runs a statement beside the servers.
    pub async fn execute(&self, statement: &str) {
        let statement = AssertSqlSafe(statement.to_owned());
        match self.kind {
            Kind::Sqlite(_) => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                connection.execute(statement).await.unwrap();
                connection.close().await.unwrap();
            }
            Kind::Postgres(_) => {
                let mut connection = PgConnection::connect(&self.url).await.unwrap();
                connection.execute(statement).await.unwrap();
                connection.close().await.unwrap();
            }
        }
    }

    /// The one column of text that a query gives.
    pub async fn texts(&self, query: &str) -> Vec<Option<String>> {
        let query = AssertSqlSafe(query.to_owned());
        match self.kind {
            Kind::Sqlite(_) => {
                let mut connection = SqliteConnection::connect(&self.url).await.unwrap();
                let texts = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                texts
            }
            Kind::Postgres(_) => {
                let mut connection = PgConnection::connect(&self.url).await.unwrap();
                let texts = sqlx::query_scalar(query).fetch_all(&mut connection).await.unwrap();
                connection.close().await.unwrap();
                texts
            }
        }
    }

    /// Host and port of the PostgreSQL server.
    pub fn address(&self) -> (String, u16) {
        let url = Url::parse(&self.url).unwrap();
        (url.host_str().unwrap().to_owned(), url.port().unwrap_or(5432))
    }
}

/// A database of its own inside the test server.
struct FreshDatabase {
    server: Url,
    name: String,
}

impl FreshDatabase {
    async fn create() -> FreshDatabase {
        let server =
            std::env::var("TEST_DATABASE_URL").expect("TEST_DATABASE_URL is not set: run scripts/test");
        let server = Url::parse(&server).expect("TEST_DATABASE_URL is not a URL: run scripts/test");
        let database = FreshDatabase { server, name: format!("it_{}", uuid::Uuid::now_v7().simple()) };
        database.tell(&format!("CREATE DATABASE {}", database.name)).await;
        database
    }

    fn url(&self) -> String {
        let mut url = self.server.clone();
        url.set_path(&self.name);
        url.into()
    }

    async fn tell(&self, statement: &str) {
        let mut connection = PgConnection::connect(self.server.as_str()).await.unwrap();
        connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }
}

impl Drop for FreshDatabase {
    fn drop(&mut self) {
        // The test's own runtime may be on its way out, and a drop can't wait in it.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(self.tell(&format!("DROP DATABASE {} WITH (FORCE)", self.name)));
            });
        });
    }
}
