//! `spell-platform audit`: beside a server that is busy, on books that were tampered with, and where it
//! can't tell.

use std::{
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    harness::{Answer, Backend, Client, Options, Server, both, eventually},
    users::House,
};

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs an audit, and gives what it printed if it ended with that code.
async fn audit(server: &Server, arguments: &[&str], code: i32) -> String {
    let output = server.operate(&[&["audit"], arguments].concat()).await;
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    printed(&output)
}

/// One of all that moves a balance, under a name of its own.
async fn do_something([customer, ann, service]: &[Client; 3], what: usize, name: &str) -> Answer {
    match what % 8 {
        0 => customer.echo().await,
        1 => customer.cast("metered", json!(name)).await,
        // Nobody ends it but its expiry.
        2 => customer.post("/v1/holds", json!({"amount_cents": 1, "ttl_seconds": 1})).await,
        3 => {
            let held = customer.post("/v1/holds", json!({"amount_cents": 1})).await;
            match (held.body()["id"].as_str(), what % 16) {
                (None, _) => held,
                (Some(id), 3) => customer.delete(&format!("/v1/holds/{id}")).await,
                (Some(id), _) => {
                    customer.post(&format!("/v1/holds/{id}/settle"), json!({"amount_cents": 2})).await
                }
            }
        }
        4 => {
            let list = json!({"allocations": [{"model_id": "gpt-5-mini", "credits": 1}]});
            ann.post("/api/billing/credits/allocate", list).await
        }
        5 => {
            let used = json!({"model_id": "gpt-5-mini", "input_tokens": 99, "output_tokens": 1});
            ann.post("/api/billing/tokens/consume", used).await
        }
        6 => {
            let plan = ["free", "pro_month"][what / 8 % 2];
            let order = json!({"order_id": format!("order-{name}"), "user_id": "ann", "plan_code": plan,
                               "units_chat": 3, "units_tpl": 1});
            service.post("/internal/billing/quota/credit", order).await
        }
        _ => {
            let debit = json!({"user_id": "ann", "action": "chat_tokens", "units": 1,
                               "ref": format!("call-{name}")});
            service.post("/internal/billing/quota/debit", debit).await
        }
    }
}

both!(an_audit_beside_a_busy_server_finds_nothing);
async fn an_audit_beside_a_busy_server_finds_nothing(backend: Backend) {
    let house = House::open(&backend).await;
    let spell = json!({"kind": "echo", "price": {"flat_cents": 1}, "pay_from": "credits"});
    house.server.admin().put("/v1/spells/metered", spell).await.expect(201);
    house.give("ann", 500).await;
    let customer = house.server.customer("acme").await;
    customer.limit("monthly", 150).await;
    customer.limit("daily", 1_000).await;
    let body = json!({"credits": 20, "purchase_record": {"productId": "c", "transactionId": "t-1"}});
    let path = format!("/api/billing/credits/add?account_id={}", customer.account_id);
    house.service().post(&path, body).await.expect(200);
    let (busy, done) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicUsize::new(0)));
    let work: Vec<_> = (0..8)
        .map(|worker| {
            let (busy, done) = (busy.clone(), done.clone());
            let callers = [customer.client(), house.user("ann"), house.service()];
            tokio::spawn(async move {
                let mut count = 0;
                while busy.load(Ordering::Relaxed) {
                    count += 1;
                    let answer = do_something(&callers, count + worker, &format!("{worker}-{count}")).await;
                    assert!(answer.status < 500 && answer.status != 404, "{answer}");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let mut audits = 0;
    while audits < 4 || done.load(Ordering::Relaxed) < 400 {
        audits += 1;
        let summary = audit(&house.server, &[], 0).await;
        let lines: Vec<&str> = summary.lines().collect();
        assert!(lines.len() == 2 && lines[0].ends_with(": no drift"), "{summary}");
        assert_eq!(lines[1], "Stripe: not compared, STRIPE_SECRET_KEY is not set");
    }
    busy.store(false, Ordering::Relaxed);
    for worker in work {
        worker.await.unwrap();
    }
    audit(&house.server, &[], 0).await;
}

both!(what_was_tampered_with_is_printed_and_counted);
async fn what_was_tampered_with_is_printed_and_counted(backend: Backend) {
    let server = Server::start(Options::on(&backend).var("AUDIT_INTERVAL_SECONDS", 1)).await;
    let customer = server.customer("acme").await;
    customer.echo().await.expect(200);
    let clean: Value = serde_json::from_str(&audit(&server, &["--json"], 0).await).unwrap();
    let stripe = json!({"compared": false, "why": "STRIPE_SECRET_KEY is not set"});
    assert_eq!(clean, json!({"balances": 1, "skipped": 0, "drifts": 0, "stripe": stripe}));
    assert_eq!(server.metric("ledger_drift_total").await, 0.0);
    backend.execute("UPDATE balances SET posted = posted + 1").await;
    let drifts = audit(&server, &[], 1).await;
    let lines: Vec<&str> = drifts.lines().collect();
    assert_eq!(lines.len(), 4, "{drifts}");
    assert!(lines[0].starts_with(&format!("spend/{}/", customer.account_id)), "{drifts}");
    assert!(lines[0].ends_with(": posted is 10000001, should be 10000000"), "{drifts}");
    assert!(lines[2].ends_with("drift in 2"), "{drifts}");
    let objects = audit(&server, &["--json"], 1).await;
    let objects: Vec<Value> = objects.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects[0]["what"], "posted");
    assert_eq!((&objects[0]["stored"], &objects[0]["expected"]), (&json!("10000001"), &json!("10000000")));
    assert_eq!(objects[2]["drifts"], 2);
    let counted = || async { Some(server.metric("ledger_drift_total").await).filter(|count| *count >= 2.0) };
    eventually(Duration::from_secs(30), "the server's own audit", counted).await;
    assert!(server.output().stderr.contains("the books do not agree"));
}

both!(what_can_not_be_audited_is_no_clean_bill);
async fn what_can_not_be_audited_is_no_clean_bill(backend: Backend) {
    let dir = tempfile::tempdir().unwrap();
    // Nothing was ever served from it; nobody is there; nothing that could be there.
    for url in [backend.url(), "postgres://nobody@127.0.0.1:1/books", "mysql://x"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_spell-platform"));
        command.arg("audit").current_dir(dir.path()).env_clear().env("DATABASE_URL", url);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        assert_eq!(output.status.code(), Some(2), "{url}: {output:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{url}: {output:?}");
    }
}
