//! `GET /metrics`: named as agreed, there from the start, moving when things happen.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::json;

use crate::harness::{Answer, Backend, Options, Server, both};

/// Asserts that Prometheus' own linter has nothing to say.
pub fn assert_promtool_agrees(metrics: &Answer) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is missing: run scripts/test");
    promtool.stdin.take().unwrap().write_all(metrics.text.as_bytes()).unwrap();
    let verdict = promtool.wait_with_output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&verdict.stdout), String::from_utf8_lossy(&verdict.stderr));
    assert!(verdict.status.success() && said.is_empty(), "promtool: {said}\n{}", metrics.text);
}

both!(every_metric_is_there_at_0_from_the_start);
async fn every_metric_is_there_at_0_from_the_start(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let metrics = server.anonymous().get("/metrics").await;
    assert!(metrics.header("content-type").starts_with("text/plain"), "{metrics}");
    let series = metrics.expect_metrics();
    for name in [
        "spell_cast_total{status=",
        "rate_limited_total",
        "budget_block_total",
        "stripe_webhook_total{",
        "spell_cast_duration_seconds_bucket{",
        "spell_cast_duration_seconds_count",
        "spell_cast_duration_seconds_sum",
        "redis_errors_total",
    ] {
        let of_name: Vec<_> = series.iter().filter(|(series, _)| series.starts_with(name)).collect();
        assert!(!of_name.is_empty(), "no {name} in {metrics}");
        assert!(of_name.iter().all(|(_, value)| *value == 0.0), "{of_name:?}");
    }
    let webhooks = series.iter().filter(|(series, _)| series.starts_with("stripe_webhook_total"));
    for (series, _) in webhooks {
        assert!(series.contains("type=") && series.contains("result="), "{series}");
    }
    assert!(series.iter().any(|(series, _)| series == "db_pool_in_use"), "{metrics}");
    for line in [
        "# TYPE spell_cast_total counter",
        "# TYPE rate_limited_total counter",
        "# TYPE budget_block_total counter",
        "# TYPE stripe_webhook_total counter",
        "# TYPE spell_cast_duration_seconds histogram",
        "# TYPE db_pool_in_use gauge",
        "# TYPE redis_errors_total counter",
    ] {
        assert!(metrics.text.lines().any(|l| l == line), "no {line:?} in {metrics}");
    }
    assert_promtool_agrees(&metrics);
}

both!(metrics_move_when_things_happen);
async fn metrics_move_when_things_happen(backend: Backend) {
    let server = Server::start(Options::on(&backend).var("RATE_LIMIT_PER_MINUTE", 10)).await;
    let customer = server.customer("acme").await;
    for _ in 0..4 {
        customer.echo().await.expect(200);
    }
    assert_eq!(server.metric("spell_cast_total").await, 4.0);
    assert_eq!(server.metric("spell_cast_duration_seconds_count").await, 4.0);
    assert!(server.metric("spell_cast_duration_seconds_sum").await > 0.0);
    assert_eq!(server.metric("budget_block_total").await, 0.0);
    customer.limit("monthly", 4).await;
    for _ in 0..3 {
        customer.echo().await.expect_code(402, "budget_exceeded");
    }
    assert_eq!(server.metric("budget_block_total").await, 3.0);
    assert_eq!(server.metric("rate_limited_total").await, 0.0);
    customer.limit("monthly", 1_000).await;
    let mut limited = 0.0;
    for _ in 0..30 {
        if customer.echo().await.status == 429 {
            limited += 1.0;
        }
    }
    assert!(limited > 0.0);
    assert_eq!(server.metric("rate_limited_total").await, limited);
    assert_promtool_agrees(&server.anonymous().get("/metrics").await);
}

both!(what_callers_write_makes_no_new_series);
async fn what_callers_write_makes_no_new_series(backend: Backend) {
    let server = Server::start(Options::on(&backend)).await;
    let customer = server.customer("acme").await;
    customer.echo().await.expect(200);
    let count = async || server.anonymous().get("/metrics").await.expect_metrics().len();
    let before = count().await;
    for number in 0..50 {
        customer.cast(&format!("no_such_spell_{number}"), json!(number)).await.expect_error(404);
        customer.get(&format!("/v1/nowhere/{number}")).await.expect_error(404);
        server.anonymous().with_key(&format!("sk_live_{number}")).echo().await.expect_error(401);
        let webhook = json!({"type": format!("made.up.{number}")});
        server.anonymous().post("/webhooks/stripe", webhook).await.expect_error(503);
    }
    assert_eq!(count().await, before);
}
