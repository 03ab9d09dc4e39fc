//! A spend-control platform: keys, budgets that stop, prepaid credits and plans in front of
//! anything that costs money per call. `ARCHITECTURE.md` is the map.

pub mod app;
pub mod audit;
pub mod budget;
pub mod cast;
pub mod cli;
pub mod clock;
pub mod config;
pub mod http;
pub mod id;
pub mod identity;
pub mod inbox;
pub mod json;
pub mod ledger;
pub mod money;
pub mod payment;
pub mod plan;
pub mod quota;
pub mod rate;
pub mod reply;
pub mod retention;
pub mod spell;
pub mod store;
pub mod stripe;
pub mod telemetry;
pub mod wallet;
pub mod webhooks;
pub mod window;
