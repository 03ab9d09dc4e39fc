//! The platform as its users meet it: the real binary, over HTTP, on both databases, judged by the
//! contract alone. `scripts/test` brings the PostgreSQL and the Redis that these tests want.
//!
//! A module per noun; what they share is in [`harness`].

mod harness;

mod accounts;
mod additions;
mod audit;
mod billing;
mod budgets;
mod casts;
mod concurrency;
mod crash;
mod credits;
#[path = "../../benches/cast/figures/mod.rs"]
#[allow(dead_code, unused_imports, reason = "it is the benchmark's, which has no tests of its own")]
mod figures;
mod holds;
mod idempotency;
mod input;
mod jwt;
mod keys;
mod metrics;
mod model;
mod outages;
mod payments;
mod plans;
mod poison;
mod pricing;
#[path = "../../benches/prove/proof/mod.rs"]
mod proof;
mod proof_smoke;
mod quota;
mod quota_load;
mod rate;
mod readme;
mod replicas;
mod retention;
mod startup;
mod stripe_audit;
mod stripe_events;
mod stripe_server;
mod stripe_stand_in;
mod subscriptions;
mod upstream;
mod users;
mod wallet;
mod wallet_load;
mod webhooks;
