//! The store on both databases: what is written once must run, and mean the same, on each.

use std::{collections::BTreeSet, fs, path::Path};

use futures_util::FutureExt;
use sqlx::{Executor, SqlSafeStr};

use super::{testing::each_backend, *};

static COLUMNS_SQLITE: Statement = Statement::new(
    r#"SELECT m.name || '.' || c.name || ' ' || c.type || CASE WHEN c."notnull" THEN ' NOT NULL' ELSE '' END
       FROM sqlite_master m, pragma_table_info(m.name) c
       WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite#_%' ESCAPE '#'
         AND m.name NOT LIKE '#_sqlx%' ESCAPE '#'"#,
);
static COLUMNS_POSTGRES: Statement = Statement::new(
    "SELECT table_name || '.' || column_name || ' ' || upper(data_type) ||
            CASE WHEN is_nullable = 'NO' THEN ' NOT NULL' ELSE '' END
     FROM information_schema.columns
     WHERE table_schema = 'public' AND table_name NOT LIKE '#_sqlx%' ESCAPE '#'",
);
static INDEXES: Statement =
    Statement::new("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL");
static INDEXES_POSTGRES: Statement = Statement::new(
    "SELECT CAST(indexname AS TEXT) FROM pg_indexes WHERE schemaname = 'public'
     AND indexname NOT IN (SELECT conname FROM pg_constraint)",
);

async fn texts(db: &Db, sqlite: &Statement, postgres: &Statement) -> BTreeSet<String> {
    let statement = if db.backend() == Backend::Sqlite { sqlite } else { postgres };
    db.all::<(String,)>(statement, vec![]).await.unwrap().into_iter().map(|(text,)| text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_prepares_on_both() {
    each_backend(|db| async move {
        let mut prepared = 0;
        for statement in inventory::iter::<&'static Statement> {
            let text = statement.on(db.backend());
            let outcome = match &db.pools {
                Pools::Sqlite { read, .. } => read.prepare(text.into_sql_str()).await.map(drop),
                Pools::Postgres { write, .. } => write.prepare(text.into_sql_str()).await.map(drop),
            };
            assert!(outcome.is_ok(), "{:?}: {text}: {outcome:?}", db.backend());
            prepared += 1;
        }
        assert!(prepared > 30, "only {prepared} statements were found");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_schemas_have_the_same_columns_and_indexes() {
    let seen = std::sync::Mutex::new(Vec::new());
    each_backend(|db| {
        let seen = &seen;
        async move {
            let columns = texts(&db, &COLUMNS_SQLITE, &COLUMNS_POSTGRES).await;
            let indexes = texts(&db, &INDEXES, &INDEXES_POSTGRES).await;
            assert!(columns.len() > 50 && indexes.len() > 5, "{columns:?} {indexes:?}");
            seen.lock().unwrap().push((columns, indexes));
        }
    })
    .await;
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen[0], seen[1]);
}

#[test]
fn both_folders_hold_the_same_migrations() {
    let names = |folder: &str| -> BTreeSet<String> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert_eq!(names("sqlite"), names("postgres"));
}

static ADD_ACCOUNT: Statement =
    Statement::new("INSERT INTO accounts (id, name, suspended, created_at) VALUES ($1, $2, false, 0)");
static ACCOUNTS: Statement = Statement::new("SELECT id FROM accounts");

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_dropped_leaves_nothing_behind() {
    each_backend(|db| async move {
        for _ in 0..40 {
            let mut tx = db.begin().await.unwrap();
            tx.execute(&ADD_ACCOUNT, binds!["acct_1", "a"]).await.unwrap();
            drop(tx);
        }
        assert!(db.all::<(String,)>(&ACCOUNTS, vec![]).await.unwrap().is_empty());
        let mut tx = db.begin().await.unwrap();
        tx.execute(&ADD_ACCOUNT, binds!["acct_1", "a"]).await.unwrap();
        tx.commit().await.unwrap();
        assert_eq!(db.all::<(String,)>(&ACCOUNTS, vec![]).await.unwrap().len(), 1);
        let again = db.execute(&ADD_ACCOUNT, binds!["acct_1", "a"]).await;
        assert!(matches!(again, Err(StoreError::Duplicate(_))), "{again:?}");
    })
    .await;
}

/// Where it is not known whether a transaction has begun, nothing is written: it might be committed at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_whose_first_statement_was_given_up_writes_nothing() {
    each_backend(|db| async move {
        let mut given_up = 0;
        for _ in 0..20 {
            let mut tx = db.begin().await.unwrap();
            if tx.all::<(String,)>(&ACCOUNTS, vec![]).now_or_never().is_some() {
                continue;
            }
            given_up += 1;
            if db.backend() == Backend::Sqlite {
                let added = tx.execute(&ADD_ACCOUNT, binds!["acct_1", "a"]).await;
                assert!(matches!(added, Err(StoreError::Unavailable(_))), "{added:?}");
                let committed = tx.commit().await;
                assert!(matches!(committed, Err(StoreError::Unavailable(_))), "{committed:?}");
            }
        }
        assert!(given_up > 0);
        assert!(db.all::<(String,)>(&ACCOUNTS, vec![]).await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_append_only() {
    let add = Statement::new("INSERT INTO entries VALUES ('r', 'charge', 'b', 5, 0)");
    each_backend(|db| {
        let add = &add;
        async move {
            db.execute(add, vec![]).await.unwrap();
            for text in ["UPDATE entries SET amount = 6", "DELETE FROM entries"] {
                let text: &'static str = text;
                let refused = db.execute(&Statement::new(text), vec![]).await;
                assert!(matches!(refused, Err(StoreError::Refused(_))), "{text}: {refused:?}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_goes_in_and_out_as_it_is() {
    let echo = Statement::new(
        "SELECT given.value ->> 0, CAST(given.value ->> 1 AS BIGINT), CAST(given.value ->> 2 AS BOOLEAN),
                given.value ->> 3 FROM {rows}",
    );
    each_backend(|db| {
        let echo = &echo;
        async move {
            for text in
                ["", "plain", "it's \"quoted\" \\ \u{1}\n", "\u{202e}\u{ffff}\u{10ffff}😀", "\\u0000", "null"]
            {
                let mut rows = Rows::default();
                rows.push(binds![text, i64::MAX, true, None::<String>]);
                rows.push(binds![text, i64::MIN, false, Some(text)]);
                let back: Vec<(String, i64, bool, Option<String>)> =
                    db.all(echo, binds![rows]).await.unwrap();
                let expected = vec![
                    (text.to_owned(), i64::MAX, true, None),
                    (text.to_owned(), i64::MIN, false, Some(text.to_owned())),
                ];
                assert_eq!(back, expected);
            }
        }
    })
    .await;
}

/// Whoever writes would wait behind it.
#[tokio::test(flavor = "multi_thread")]
async fn the_indexes_of_retention_do_not_wait_for_long_and_are_tried_again() {
    each_backend(|db| async move {
        if db.backend() == Backend::Sqlite {
            return;
        }
        for text in [
            "DROP INDEX webhook_events_with_body",
            "DROP INDEX subscriptions_by_purchase",
            "DELETE FROM _sqlx_migrations WHERE version = 6",
        ] {
            db.execute(Box::leak(Box::new(Statement::new(text))), vec![]).await.unwrap();
        }
        let mut writing = db.begin().await.unwrap();
        let lock = Statement::new("LOCK TABLE webhook_events IN ROW EXCLUSIVE MODE");
        writing.execute(&lock, vec![]).await.unwrap();
        let refused = db.migrate().await;
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
        writing.rollback().await.unwrap();
        db.migrate().await.unwrap();
        let indexes = texts(&db, &INDEXES, &INDEXES_POSTGRES).await;
        assert!(indexes.contains("webhook_events_with_body"), "{indexes:?}");
    })
    .await;
}

/// What a table holds, and how it was made.
async fn contents(db: &Db, table: &str) -> (Vec<String>, Vec<String>) {
    let made =
        format!("SELECT sql FROM sqlite_master WHERE tbl_name = '{table}' AND type <> 'table' ORDER BY name");
    let columns = format!("SELECT json_group_array(name) FROM pragma_table_info('{table}')");
    let columns: (String,) = db.one(&Statement::new(columns.leak()), vec![]).await.unwrap();
    let columns: Vec<String> = serde_json::from_str(&columns.0).unwrap();
    let rows = format!("SELECT json_array({0}) FROM {table} ORDER BY {0}", columns.join(", "));
    let [made, rows] = [made, rows].map(|text| Statement::new(text.leak()));
    let texts = async |statement| {
        let rows: Vec<(Option<String>,)> = db.all(statement, vec![]).await.unwrap();
        rows.into_iter().filter_map(|(text,)| text).collect()
    };
    (texts(&made).await, texts(&rows).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_moved_to_where_their_keys_keep_them() {
    const MOVED: [&str; 4] = ["entries", "holds", "casts", "batches"];
    let folder = tempfile::tempdir().unwrap();
    let db = Db::open(&format!("sqlite:{}/test.db", folder.path().display())).unwrap();
    let Pools::Sqlite { write, .. } = &db.pools else { unreachable!() };
    let up_to = async |version| {
        let some = migrate::SQLITE.iter().filter(|migration| migration.version <= version).cloned().collect();
        let mut lease = write.acquire().await.unwrap();
        let connection = lease.connection().unwrap();
        sqlx::migrate::Migrator::with_migrations(some).run_direct(None, connection, false).await.unwrap();
    };
    up_to(6).await;
    db.migrated.store(true, Ordering::Release);
    plans::fill(&db).await;
    let mut were = Vec::new();
    for table in MOVED {
        were.push(contents(&db, table).await);
    }
    up_to(9).await;
    for (table, was) in MOVED.into_iter().zip(were) {
        let is = contents(&db, table).await;
        assert!(!was.1.is_empty(), "nothing was in {table}");
        assert!(was == is, "{table} is not what it was");
    }
    db.close().await;
}
