//! Where the measured ones keep what they keep: the PostgreSQL and the Redis that `scripts/bench` brings, and
//! a folder for SQLite's files.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;
use url::Url;

pub struct Services {
    postgres: Url,
    pub redis: String,
    folder: TempDir,
}

impl Services {
    pub fn find() -> Services {
        let named = |name| std::env::var(name).expect("run scripts/bench");
        Services {
            postgres: Url::parse(&named("TEST_DATABASE_URL")).unwrap(),
            redis: named("TEST_REDIS_URL"),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// A new database on that PostgreSQL.
    pub async fn postgres(&self) -> String {
        let name = format!("bench_{}", uuid::Uuid::now_v7().simple());
        self.tell(&format!("CREATE DATABASE {name}")).await;
        let mut url = self.postgres.clone();
        url.set_path(&name);
        url.into()
    }

    /// A file that is not there yet.
    pub fn sqlite(&self) -> String {
        format!("sqlite:{}/{}.db", self.folder.path().display(), uuid::Uuid::now_v7().simple())
    }

    /// Takes a database away, so that its disk is free for the next.
    pub async fn remove(&self, url: &str) {
        match url.strip_prefix("sqlite:") {
            Some(file) => {
                for end in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(format!("{file}{end}"));
                }
            }
            None => {
                let name = Url::parse(url).unwrap().path().trim_start_matches('/').to_owned();
                self.tell(&format!("DROP DATABASE {name} WITH (FORCE)")).await;
                self.checkpoint().await;
            }
        }
    }

    /// Lets PostgreSQL write out what is dirty, so that no row pays for the one before it.
    pub async fn checkpoint(&self) {
        self.tell("CHECKPOINT").await;
    }

    async fn tell(&self, statement: &str) {
        let mut connection = PgConnection::connect(self.postgres.as_str()).await.unwrap();
        connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
        connection.close().await.unwrap();
    }
}
