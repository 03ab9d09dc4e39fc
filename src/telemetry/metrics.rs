//! The metrics, declared once. Each is there from the start, at 0, and every label has a bounded
//! set of values, so that a scrape stays small however many callers there are.

use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
};

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// What a cast came to, for the `status` label.
pub const CAST_STATUSES: [&str; 6] =
    ["completed", "failed", "replayed", "refused", "rate_limited", "unavailable"];

/// What became of a delivery of the payment service, for the `result` label.
pub const PAYMENT_RESULTS: [&str; 7] =
    ["applied", "duplicate", "refused", "bad_signature", "dropped", "failed", "disabled"];

/// Where what is old leaves from, for the `table` label.
pub const RETENTION_TABLES: [&str; 4] = ["casts", "holds", "entries", "webhook_events"];

/// All metrics of this process; one per [`crate::app::App`], so that tests do not share them.
pub struct Metrics {
    registry: Registry,
    pub casts: IntCounterVec,
    pub cast_seconds: Histogram,
    pub rate_limited: IntCounter,
    pub budget_blocks: IntCounter,
    pub stripe_webhooks: IntCounterVec,
    pub payment_webhooks: IntCounterVec,
    pub db_pool_in_use: IntGauge,
    pub redis_errors: IntCounter,
    pub ledger_late: IntCounter,
    pub ledger_overrun: IntCounter,
    pub ledger_drift: IntCounter,
    pub ledger_batches: IntCounter,
    pub ledger_operations: IntCounter,
    pub ledger_guesses: IntCounterVec,
    pub retention_removed: IntCounterVec,
    pub quota_debits: IntCounterVec,
    pub quota_credits: IntCounter,
    quota_remaining: IntGaugeVec,
    /// The users who have a series of their own.
    quota_users: Mutex<HashSet<String>>,
}

/// How many users may have a series of their own: a scrape stays small.
const MAX_USERS: usize = 10_000;

impl Metrics {
    /// Declares and registers every metric.
    ///
    /// # Panics
    ///
    /// Never in practice: the names below are constants, and a test constructs them.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let metrics = Metrics {
            casts: register(
                &registry,
                IntCounterVec::new(Opts::new("spell_cast_total", "Casts by what they came to."), &["status"]),
            ),
            cast_seconds: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "spell_cast_duration_seconds",
                        "Time from a cast's request to its answer, its upstream included.",
                    )
                    .buckets(vec![
                        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
                        30.0, 60.0,
                    ]),
                ),
            ),
            rate_limited: counter("rate_limited_total", "Requests answered 429."),
            budget_blocks: counter("budget_block_total", "Requests answered 402 by a hard limit."),
            stripe_webhooks: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("stripe_webhook_total", "Stripe events by type and by what became of them."),
                    &["type", "result"],
                ),
            ),
            payment_webhooks: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "payment_webhook_total",
                        "Deliveries of the payment service by what became of them.",
                    ),
                    &["result"],
                ),
            ),
            db_pool_in_use: register(
                &registry,
                IntGauge::new("db_pool_in_use", "Database connections in use."),
            ),
            redis_errors: counter(
                "redis_errors_total",
                "Rate decisions made without Redis because it failed, was too slow or was down.",
            ),
            ledger_late: counter("ledger_late_total", "Holds that were settled after they had expired."),
            ledger_overrun: counter(
                "ledger_overrun_total",
                "Holds that were settled for more than was held.",
            ),
            ledger_drift: counter(
                "ledger_drift_total",
                "Differences between the books and what they follow from, or what Stripe has, at each audit anew.",
            ),
            ledger_batches: counter("ledger_batches_total", "Transactions of the ledger's writer."),
            ledger_operations: counter("ledger_operations_total", "Operations in those transactions."),
            ledger_guesses: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "ledger_guesses_total",
                        "Batches that were booked without reading first, and those for which the books were others.",
                    ),
                    &["result"],
                ),
            ),
            retention_removed: register(
                &registry,
                IntCounterVec::new(
                    Opts::new(
                        "retention_removed_total",
                        "Rows that were removed because they were old; of webhook_events, bodies.",
                    ),
                    &["table"],
                ),
            ),
            quota_debits: register(
                &registry,
                IntCounterVec::new(
                    Opts::new("billing_deduct_total", "Debits of quotas by what they came to."),
                    &["result"],
                ),
            ),
            quota_credits: counter("billing_credit_total", "Orders whose units were credited."),
            quota_remaining: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "billing_quota_remaining",
                        "Units that were left when a user's quota was last asked for or changed here.",
                    ),
                    &["type", "user_id"],
                ),
            ),
            quota_users: Mutex::default(),
            registry,
        };
        for status in CAST_STATUSES {
            metrics.casts.with_label_values(&[status]);
        }
        metrics.stripe_webhooks.with_label_values(&["other", "disabled"]);
        for result in PAYMENT_RESULTS {
            metrics.payment_webhooks.with_label_values(&[result]);
        }
        for result in ["right", "wrong"] {
            metrics.ledger_guesses.with_label_values(&[result]);
        }
        for table in RETENTION_TABLES {
            metrics.retention_removed.with_label_values(&[table]);
        }
        for result in ["ok", "fail"] {
            metrics.quota_debits.with_label_values(&[result]);
        }
        metrics.show_quota(None, 0, 0);
        metrics
    }

    /// Shows what is left of a quota: in series of `user`'s own where it is given, as far as there is
    /// room for another one, otherwise in those that all users share.
    pub fn show_quota(&self, user: Option<&str>, chat: i64, template: i64) {
        if let Some(user) = user {
            let mut users = self.quota_users.lock().unwrap_or_else(PoisonError::into_inner);
            if users.len() >= MAX_USERS && !users.contains(user) {
                return;
            }
            users.insert(user.to_owned());
        }
        for (kind, left) in [("chat", chat), ("template", template)] {
            self.quota_remaining.with_label_values(&[kind, user.unwrap_or_default()]).set(left);
        }
    }

    /// Everything, in Prometheus' text format.
    pub fn render(&self) -> Result<String, prometheus::Error> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[expect(clippy::expect_used, reason = "the declarations are constants that a test constructs")]
fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    collector: Result<C, prometheus::Error>,
) -> C {
    let collector = collector.expect("a well-formed metric");
    registry.register(Box::new(collector.clone())).expect("a metric name used once");
    collector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_there_at_zero_from_the_start() {
        let text = Metrics::new().render().unwrap();
        for line in [
            "spell_cast_total{status=\"completed\"} 0",
            "rate_limited_total 0",
            "budget_block_total 0",
            "spell_cast_duration_seconds_count 0",
            "db_pool_in_use 0",
            "redis_errors_total 0",
            "billing_deduct_total{result=\"fail\"} 0",
            "billing_credit_total 0",
            "ledger_drift_total 0",
            "ledger_guesses_total{result=\"right\"} 0",
            "retention_removed_total{table=\"entries\"} 0",
            "billing_quota_remaining{type=\"chat\",user_id=\"\"} 0",
            "stripe_webhook_total{result=\"disabled\",type=\"other\"} 0",
            "payment_webhook_total{result=\"dropped\"} 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
