//! `RETENTION_DAYS` and `spell-platform prune`: what is old leaves beside servers that cast, and nobody is told
//! anything else of what was spent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde_json::json;

use crate::harness::{Backend, Customer, Options, Server, both, eventually, unix_now};

const DAY: i64 = 86_400_000;
/// More than fit into one transaction.
const CASTS: i64 = 1_100;
const HOLDS: i64 = 30;

/// Days that lie so many days back: the number of their first millisecond, and their date.
fn day(back: i64) -> (i64, String) {
    let start = unix_now() / DAY * DAY - back * DAY;
    (start, jiff::Timestamp::from_millisecond(start).unwrap().strftime("%Y-%m-%d").to_string())
}

/// The id of the `n`th thing of that moment.
fn id(prefix: &str, at: i64, n: i64) -> String {
    format!("{prefix}_{at:012x}70008000{n:012x}")
}

/// Spends a cent by each cast and settled hold, on a day that is so long ago.
async fn live_through(backend: &Backend, customer: &Customer, back: i64) {
    let (start, date) = day(back);
    let (account, key) = (&customer.account_id, &customer.key_id);
    let balance = format!("spend/{account}/{key}/{date}/echo");
    let (cent, at) = (10_000_000, start + 1_000);
    let (mut casts, mut holds, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..CASTS {
        let id = id("cast", at, n);
        casts.push(format!("('{id}', '{account}', '{key}', 'echo', 'COMPLETED', {cent}, {at}, {at})"));
        lines.push(format!("('{id}', 'charge', '{balance}', {cent}, {at})"));
    }
    for n in 0..HOLDS {
        let id = id("hold", at, n);
        holds.push(format!(
            "('{id}', '{account}', '{key}', 'echo', 'external', {cent}, {at}, {at}, 'release', 'posted', {cent},
              false, {at})"
        ));
        lines.push(format!("('{id}', 'post', '{balance}', {cent}, {at})"));
    }
    let calls = CASTS + HOLDS;
    for statement in [
        format!(
            "INSERT INTO balances (id, account_id, kind, key_id, spell, starts_at, posted, pending, calls)
             VALUES ('{balance}', '{account}', 'spend', '{key}', 'echo', {start}, {}, 0, {calls})",
            calls * cent
        ),
        format!(
            "INSERT INTO casts (id, account_id, key_id, spell, status, cost, created_at, finished_at) VALUES {}",
            casts.join(",")
        ),
        format!(
            "INSERT INTO holds (id, account_id, key_id, spell, held_for, amount, began_at, expires_at, on_lost,
                                state, posted, late, ended_at) VALUES {}",
            holds.join(",")
        ),
        format!(
            "INSERT INTO entries (reference, cause, balance_id, amount, created_at) VALUES {}",
            lines.join(",")
        ),
    ] {
        backend.execute(&statement).await;
    }
}

/// Stores events that came so many days ago: one that is done with, and one that is open.
async fn hear(backend: &Backend, back: i64) {
    let (at, _) = day(back);
    for (name, status, done) in
        [("done", "'ignored'", at.to_string()), ("open", "'failed'", "NULL".to_owned())]
    {
        backend
            .execute(&format!(
                "INSERT INTO webhook_events
                    (source, id, type, created_at, received_at, body, status, attempts, done_at)
                 VALUES ('stripe', 'evt_{name}_{back}', 'x', {at}, {at}, 'the body', {status}, 1, {done})"
            ))
            .await;
    }
}

async fn bodies(backend: &Backend) -> Vec<String> {
    let bodies = backend.texts("SELECT id || ' ' || body FROM webhook_events ORDER BY id").await;
    bodies.into_iter().flatten().collect()
}

/// Lines and closings that the account's old days have.
async fn lines(backend: &Backend, date: &str) -> Vec<String> {
    let like = format!(
        "SELECT cause || ' ' || CAST(SUM(amount) AS BIGINT) FROM entries WHERE balance_id LIKE '%{date}%'
         GROUP BY cause ORDER BY cause"
    );
    backend.texts(&like).await.into_iter().flatten().collect()
}

async fn assert_audit_agrees(server: &Server) {
    let audit = server.operate(&["audit"]).await;
    assert!(audit.status.success(), "{audit:?}");
}

both!(what_is_old_leaves_while_casts_go_on);
async fn what_is_old_leaves_while_casts_go_on(backend: Backend) {
    let mut first = Server::start(Options::on(&backend)).await;
    let customer = first.customer("acme").await;
    for back in [41, 40, 34] {
        live_through(&backend, &customer, back).await;
        hear(&backend, back).await;
    }
    customer.echo().await.expect(200);
    assert_audit_agrees(&first).await;
    let usage = format!("/v1/usage?from={}&to={}&by=day,key,spell", day(50).1, day(1).1);
    let told = customer.get(&usage).await.expect(200);
    assert_eq!(told["data"].as_array().unwrap().len(), 3, "{told}");
    first.kill9();

    let server = Server::start(Options::on(&backend).var("RETENTION_DAYS", 35)).await;
    let busy = Arc::new(AtomicBool::new(true));
    let casting: Vec<_> = (0..3)
        .map(|_| {
            let (client, busy) = (customer.at(server.anonymous()), busy.clone());
            tokio::spawn(async move {
                let mut casts = 0;
                while busy.load(Ordering::Relaxed) {
                    client.echo().await.expect(200);
                    casts += 1;
                }
                casts
            })
        })
        .collect();
    let removed = (2 * (2 * (CASTS + HOLDS)) + 2) as f64;
    eventually(Duration::from_secs(90), "all that is old to leave", || async {
        Some(server.metric("retention_removed_total").await).filter(|count| *count >= removed)
    })
    .await;
    busy.store(false, Ordering::Relaxed);
    let mut cast = 1;
    for worker in casting {
        cast += worker.await.unwrap();
    }
    assert_eq!(server.metric("retention_removed_total").await, removed);
    assert_audit_agrees(&server).await;
    let customer_here = customer.at(server.anonymous());
    assert_eq!(customer_here.get(&usage).await.expect(200), told);
    let total = format!("closing {}", (CASTS + HOLDS) * 10_000_000);
    for back in [41, 40] {
        let at = day(back).0 + 1_000;
        customer_here.get(&format!("/v1/casts/{}", id("cast", at, 0))).await.expect(404);
        let settle = format!("/v1/holds/{}/settle", id("hold", at, 0));
        customer_here.post(&settle, json!({"amount_cents": 1})).await.expect(404);
        assert_eq!(lines(&backend, &day(back).1).await, [total.as_str()]);
    }
    let kept = format!("/v1/casts/{}", id("cast", day(34).0 + 1_000, 0));
    customer_here.get(&kept).await.expect(200);
    let there = backend.texts("SELECT CAST(COUNT(*) AS TEXT) FROM casts").await;
    assert_eq!(there, [Some((CASTS + cast).to_string())], "the day that is kept, and the casts meanwhile");
    let with_body = |name: &str| format!("evt_{name} the body");
    let expected = [
        with_body("done_34"),
        "evt_done_40 ".to_owned(),
        "evt_done_41 ".to_owned(),
        with_body("open_34"),
        with_body("open_40"),
        with_body("open_41"),
    ];
    assert_eq!(bodies(&backend).await, expected);
    let replay = server.operate(&["webhooks", "replay", "evt_done_40"]).await;
    assert!(
        !replay.status.success() && String::from_utf8_lossy(&replay.stderr).contains("no body"),
        "{replay:?}"
    );
}

both!(an_operator_sees_what_would_leave_and_lets_it);
async fn an_operator_sees_what_would_leave_and_lets_it(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    for back in [60, 40] {
        live_through(&backend, &customer, back).await;
    }
    hear(&backend, 60).await;
    let at_most = format!("{CASTS} casts, {HOLDS} holds, {} lines, 1 bodies of events", CASTS + HOLDS);
    for refused in [&["prune"][..], &["prune", "--before", &day(34).1], &["prune", "--before", "yesterday"]] {
        let output = server.operate(refused).await;
        assert!(!output.status.success() && output.stdout.is_empty(), "{refused:?}: {output:?}");
    }
    let before = day(50).1;
    for (arguments, said) in [
        (&["prune", "--dry-run", "--before", &before][..], format!("at most {at_most}\n")),
        (&["prune", "--before", &before], format!("removed {at_most}\n")),
        (
            &["prune", "--before", &before],
            "removed 0 casts, 0 holds, 0 lines, 0 bodies of events\n".to_owned(),
        ),
    ] {
        let output = server.operate(arguments).await;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(printed, format!("older than {before}T00:00:00.000Z: {said}"), "{output:?}");
        assert!(output.status.success(), "{output:?}");
    }
    assert_audit_agrees(&server).await;
    let there = backend.texts("SELECT CAST(COUNT(*) AS TEXT) FROM casts").await;
    assert_eq!(there, [Some(CASTS.to_string())]);
}
