//! Fresh databases for tests: every test that touches the store runs on both.

use std::env;

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::Db;

/// Runs `test` on a fresh SQLite file and on a fresh PostgreSQL database, both migrated.
///
/// # Panics
///
/// Without `TEST_DATABASE_URL`: a backend that is missing fails the test, it does not skip it.
pub async fn each_backend<F, Fut>(test: F)
where
    F: Fn(Db) -> Fut,
    Fut: Future<Output = ()>,
{
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(&format!("sqlite:{}/test.db", folder.path().display())).unwrap();
    db.migrate().await.unwrap();
    test(db.clone()).await;
    db.close().await;

    let server = env::var("TEST_DATABASE_URL").expect("TEST_DATABASE_URL is not set: run scripts/test");
    let name = format!("unit_{}", uuid::Uuid::now_v7().simple());
    let mut admin = PgConnection::connect(&server).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut admin).await.unwrap();
    let mut url = url::Url::parse(&server).unwrap();
    url.set_path(&name);
    let db = Db::open(url.as_str()).unwrap();
    db.migrate().await.unwrap();
    test(db.clone()).await;
    db.close().await;
    sqlx::raw_sql(AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)")))
        .execute(&mut admin)
        .await
        .unwrap();
}
