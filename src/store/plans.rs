//! How both databases carry the statements out, once there is much of everything: no statement but those that are
//! meant to goes through all of a table that grows, and those that casts and callers wait for use the
//! indexes that the snapshots say.
//!
//! SQLite's plans do not depend on what is in its tables, as long as nobody runs `ANALYZE`, which the server never
//! does; they are looked at with and without. PostgreSQL's do: it is told about all rows (few enough that
//! `ANALYZE` reads each), plans on one processor, and vacuums when it is told to, so that it comes to the same each
//! time. Tables of that size are read fastest as a whole, which says nothing of ten million rows: so `enable_seqscan`
//! is off, and a whole table is read only where there is no other way. Of its plans the snapshots keep how each
//! table is reached, which is the same from one version to the next.

mod rows;

use std::{collections::BTreeSet, fmt::Write};

use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use super::{testing::each_backend, *};

/// The tables that grow with what is done, or with who is there.
const GROWING: [&str; 20] = [
    "accounts",
    "api_keys",
    "api_key_secrets",
    "balances",
    "batches",
    "budgets",
    "casts",
    "credit_grants",
    "entries",
    "holds",
    "idempotency_keys",
    "purchases",
    "quota_receipts",
    "quota_references",
    "reversals",
    "stripe_customers",
    "subscriptions",
    "wallet_purchases",
    "wallet_transactions",
    "webhook_events",
];

/// What goes through all of a table, and may: an operator asked, or it reads no more than the page it gives.
const MAY_SCAN: [&str; 4] =
    ["ledger::audit::", "ledger::closing::COUNT_", "cli::ANY_ACCOUNT", "identity::account::ACCOUNTS"];

/// Indexes of few rows only, such as of what is open: to go through one is to go through those.
const PARTIAL: [&str; 4] = ["holds_due", "webhook_events_open", "webhook_events_with_body", "plans_default"];

/// 2026-11-21, noon, which the rows lead up to.
const NOON: i64 = 1_795_262_400_000;
const DAY: i64 = 86_400_000;

pub(super) async fn fill(db: &Db) {
    const AT_A_TIME: usize = 4_000;
    crate::plan::seed(db, "free", "usd", crate::clock::Time(1)).await.unwrap();
    for (text, rows) in rows::FILL {
        let statement = Box::leak(Box::new(Statement::new(text)));
        for first in (0..rows).step_by(AT_A_TIME) {
            let last = rows.min(first + AT_A_TIME as i64) - 1;
            db.execute(statement, binds![first, last]).await.unwrap();
        }
    }
}

/// Tells the database how much there is of everything.
async fn analyze(db: &Db) {
    match &db.pools {
        Pools::Sqlite { .. } => drop(db.execute(&Statement::new("ANALYZE"), vec![]).await.unwrap()),
        Pools::Postgres { unhurried, .. } => {
            let mut connection = unhurried.connect().await.unwrap();
            let vacuum = format!("VACUUM ANALYZE {}, plans, plan_versions", GROWING.join(", "));
            sqlx::raw_sql(AssertSqlSafe(vacuum)).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        }
    }
}

/// A value as SQL has it.
fn literal(value: &Value) -> String {
    match value {
        Value::Text(Some(text)) => format!("'{}'", text.replace('\'', "''")),
        Value::Int(Some(number)) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Text(None) | Value::Int(None) => "NULL".to_owned(),
    }
}

/// How many values a statement takes.
fn arity(text: &str) -> usize {
    let numbers = text.split('$').skip(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect());
    numbers.filter_map(|digits: String| digits.parse().ok()).max().unwrap_or(0)
}

/// The lines of a statement's plan, for those values; without any, for values that nobody knows yet.
async fn explain(db: &Db, statement: &Statement, values: Option<&[Value]>) -> Vec<String> {
    let text = statement.on(db.backend());
    match &db.pools {
        Pools::Sqlite { read, .. } => {
            let mut lines = Vec::new();
            // Without beginning and committing, which has no plan.
            for part in
                text.split(';').map(str::trim).filter(|part| !part.starts_with("BEGIN") && *part != "COMMIT")
            {
                let explained = AssertSqlSafe(format!("EXPLAIN QUERY PLAN {part}"));
                let rows = sqlx::raw_sql(explained).fetch_all(read).await.unwrap();
                lines.extend(rows.iter().map(|row| row.get::<String, _>("detail")));
            }
            lines
        }
        Pools::Postgres { read, .. } => {
            let mut connection = read.acquire().await.unwrap();
            let known = values.map(|values| values.iter().map(literal).collect::<Vec<_>>());
            let mode = if known.is_some() { "force_custom_plan" } else { "force_generic_plan" };
            let values = known.unwrap_or_else(|| vec!["NULL".to_owned(); arity(text)]).join(", ");
            let values = if values.is_empty() { values } else { format!("({values})") };
            let asked = format!(
                "SET plan_cache_mode = {mode}; SET max_parallel_workers_per_gather = 0; SET enable_seqscan = off;
                 PREPARE asked AS {text}; EXPLAIN (COSTS OFF) EXECUTE asked{values}"
            );
            let rows = sqlx::raw_sql(AssertSqlSafe(asked)).fetch_all(&mut *connection).await.unwrap();
            sqlx::raw_sql("DEALLOCATE asked").execute(&mut *connection).await.unwrap();
            rows.iter().map(|row| row.get::<String, _>(0)).collect()
        }
    }
}

/// How the plan reaches each table: a line, and what bounds it.
fn accesses(backend: Backend, plan: &[String]) -> Vec<String> {
    let line = |line: &String| line.trim().trim_start_matches("->").trim().to_owned();
    let lines = plan.iter().map(line);
    match backend {
        Backend::Sqlite => {
            lines.filter(|line| line.starts_with("SCAN") || line.starts_with("SEARCH")).collect()
        }
        Backend::Postgres => {
            let mut accesses: Vec<String> = Vec::new();
            for line in lines {
                // `Scan` alone is of a table; others are of what a part of the plan gives.
                if line.contains(" on ") && line.contains("Scan") {
                    accesses.push(line);
                } else if let (Some(bound), Some(last)) =
                    (line.strip_prefix("Index Cond: "), accesses.last_mut())
                {
                    *last += &format!(" where {bound}");
                }
            }
            accesses
        }
    }
}

/// The accesses that go through all of a table that grows.
fn scans(backend: Backend, accesses: &[String]) -> Vec<String> {
    let of_growing = |access: &&String| {
        let mut words = access.split([' ', '(']);
        match backend {
            // "SCAN casts" or "SCAN casts USING INDEX …"; "SEARCH" is bounded.
            Backend::Sqlite => {
                words.next() == Some("SCAN") && words.next().is_some_and(|t| GROWING.contains(&t))
            }
            // "Seq Scan on casts", or "Index Scan using … on casts" without a bound. What a bitmap is made of
            // is bounded itself.
            Backend::Postgres => {
                let mut after = access.split(" on ").skip(1);
                let table = after.next().and_then(|rest| rest.split(' ').next());
                !access.contains(" where ")
                    && !access.starts_with("Bitmap Heap Scan")
                    && table.is_some_and(|table| GROWING.contains(&table))
            }
        }
    };
    let of_few = |access: &&String| PARTIAL.iter().any(|index| access.contains(index));
    accesses.iter().filter(of_growing).filter(|access| !of_few(access)).cloned().collect()
}

fn named(name: &str) -> &'static Statement {
    let of_name = |statement: &&&'static Statement| statement.name == format!("spell_platform::{name}");
    inventory::iter::<&'static Statement>
        .into_iter()
        .find(of_name)
        .unwrap_or_else(|| panic!("there is no {name}"))
}

/// What casts and callers wait for, and what goes on all the time, with values as they come.
fn hot() -> Vec<(&'static str, Vec<Value>)> {
    let ids = |prefix: &str, count: i64| {
        Rows::of((0..count).map(|n| format!("{prefix}_{}", 1_794_000_000_000 + n * 40_000)))
    };
    let accounts = || Rows::of((0..20).map(|n| format!("acct_{}", n * 90)));
    let balances = || Rows::of((0..60).map(|n| format!("spend/acct_{n}/key_{}/3/echo", n * 2)));
    let (day, month) = (NOON / DAY * DAY, 1_793_491_200_000_i64);
    let none = None::<&str>;
    let mut keys = Rows::default();
    keys.push(binds!["acct_7", "key-7"]);
    let mut ended = Rows::default();
    ended.push(binds!["cast_1794000040000", "COMPLETED", 5, none, NOON]);
    let mut answered = Rows::default();
    answered.push(binds!["cast_7", 200, "{}"]);
    let mut lines = Rows::default();
    for n in 0..500 {
        lines.push(binds![
            format!("cast_{}", 1_794_000_000_000_i64 + n * 40_000),
            "charge",
            format!("spend/{n}")
        ]);
    }
    let mut closings = Rows::default();
    for n in 0..1_000 {
        closings.push(binds![format!("closing/20717/{}", n % 2), "closing", format!("spend/{n}")]);
    }
    let mut changed = Rows::default();
    for n in 0..60 {
        changed.push(binds![format!("spend/acct_{n}/key_{}/3/echo", n * 2), none, 5, 0, 1, 6, 2]);
    }
    let mut versions = Rows::default();
    for n in 0..20 {
        versions.push(binds![format!("acct_{}", n * 90), "/planv_1"]);
    }
    let last = "cast_1795100000000";
    vec![
        ("identity::key::FIND_SECRET", binds!["hash_7"]),
        ("ledger::load::LOCK_ACCOUNTS", binds![accounts()]),
        ("ledger::load::VERSIONS", binds![accounts()]),
        ("ledger::load::BALANCES", binds![balances(), accounts()]),
        ("ledger::known::BOOK_IF_UNCHANGED", binds![changed, "[]", "[]", versions, 20, 60, "batch_7", NOON]),
        ("ledger::load::HOLDS", binds![ids("cast", 20)]),
        ("ledger::load::SPENT_IN_WINDOW", binds!["acct_7", month, month + 30 * DAY, none, none]),
        ("ledger::load::LAST_RECORDS", binds![accounts()]),
        ("budget::BUDGETS_AND_PLANS", binds![accounts()]),
        // The sweeper has left no key that is older.
        ("ledger::idempotency::KNOWN_KEYS", binds![keys, 1_794_000_000_000_i64]),
        ("ledger::write::WRITE_BOOKS", binds!["[]", "[]", "[]", "[]"]),
        ("ledger::write::PUT_HOLDS", binds!["[]"]),
        ("ledger::write::END_CASTS", binds![ended]),
        ("ledger::write::ANSWER_KEYS", binds![answered]),
        ("ledger::reference::NAMED", binds![Rows::of(["ref-7"])]),
        ("ledger::usage::USAGE", binds!["acct_7", month, month + 30 * DAY, true, true, true, 51, 0]),
        ("budget::BUDGETS_OF_ACCOUNTS", binds![Rows::of(["acct_7"])]),
        ("cast::history::CASTS", binds!["acct_7", BEYOND_IDS, none, none, none, 51]),
        ("cast::history::CASTS", binds!["acct_7", last, "FAILED", "key_14", "echo", 51]),
        ("cast::history::CAST", binds!["acct_7", last]),
        ("ledger::hold::EXTERNAL_HOLDS", binds!["acct_7", BEYOND_IDS, 51]),
        ("ledger::hold::EXTERNAL_HOLD", binds!["acct_7", "hold_1794000000000"]),
        ("identity::key::KEYS", binds!["acct_7", none, 51]),
        ("wallet::transactions::TRANSACTIONS", binds!["acct_7", i64::MAX, 51]),
        ("wallet::tokens::HELD", binds!["acct_7"]),
        ("ledger::hold::DUE", binds![1_794_000_000_000_i64]),
        ("ledger::sweeper::FORGET_KEYS", binds![1_794_000_000_000_i64]),
        ("ledger::sweeper::FORGET_BATCHES", binds![1_794_000_000_000_i64]),
        ("inbox::LOCK_SOURCE", binds!["stripe"]),
        ("inbox::STATUS", binds!["stripe", "evt_7"]),
        ("inbox::OPEN_EVENTS", binds![i64::MAX, "", 51, none]),
        ("inbox::FORGET_BODIES", binds![day - 2 * DAY, 20]),
        ("ledger::closing::OLDEST_CASTS", binds!["", 500]),
        ("ledger::closing::OLDEST_HOLDS", binds!["hold_", 500]),
        ("ledger::closing::ENDED_CASTS", binds![ids("cast", 500), NOON]),
        ("ledger::closing::HOLDS", binds![ids("cast", 500)]),
        ("ledger::closing::LINES", binds![ids("cast", 500)]),
        ("ledger::closing::LAST_CLOSINGS", binds![closings]),
        ("ledger::closing::REMOVE_LINES", binds![lines]),
        ("ledger::closing::REMOVE_CASTS", binds![ids("cast", 500)]),
        ("ledger::closing::REMOVE_HOLDS", binds![ids("cast", 500)]),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn no_statement_goes_through_a_table_that_grows() {
    each_backend(|db| async move {
        let backend = db.backend();
        fill(&db).await;
        let mut snapshots = BTreeSet::new();
        for analyzed in [false, true] {
            match (backend, analyzed) {
                (_, true) => analyze(&db).await,
                (Backend::Sqlite, false) => {}
                (Backend::Postgres, false) => continue,
            }
            let mut found = String::new();
            for statement in inventory::iter::<&'static Statement> {
                let of_tests = statement.name.contains("::tests::");
                if of_tests || MAY_SCAN.iter().any(|name| statement.name.contains(name)) {
                    continue;
                }
                let plan = explain(&db, statement, None).await;
                for scan in scans(backend, &accesses(backend, &plan)) {
                    writeln!(found, "{}: {scan}", statement.name).unwrap();
                }
            }
            let mut told = String::new();
            for (name, values) in hot() {
                let plan = explain(&db, named(name), Some(&values)).await;
                let accesses = accesses(backend, &plan);
                for scan in scans(backend, &accesses) {
                    writeln!(found, "{name}, with values: {scan}").unwrap();
                }
                writeln!(told, "{name}\n    {}", accesses.join("\n    ")).unwrap();
            }
            assert_eq!(found, "", "{backend:?}, analyzed: {analyzed}");
            snapshots.insert(told);
        }
        let told = Vec::from_iter(snapshots).join("\n\n");
        insta::assert_snapshot!(format!("{backend:?}").to_lowercase(), told);
    })
    .await;
}

/// Usage is told by balances alone: what else there is may leave, and grow.
#[tokio::test(flavor = "multi_thread")]
async fn usage_reads_neither_casts_nor_lines() {
    each_backend(|db| async move {
        for name in ["ledger::usage::USAGE", "ledger::load::SPENT_IN_WINDOW", "budget::BUDGETS_AND_PLANS"] {
            let accesses = accesses(db.backend(), &explain(&db, named(name), None).await);
            assert!(!accesses.is_empty(), "{name}");
            for table in ["casts", "entries", "holds"] {
                assert!(!accesses.iter().any(|access| access.contains(table)), "{name}: {accesses:?}");
            }
        }
    })
    .await;
}
