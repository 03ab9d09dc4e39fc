//! A spend-control platform: keys, budgets that stop, prepaid credits and plans in front of
//! anything that costs money per call. `ARCHITECTURE.md` is the map.

pub mod budget;
pub mod clock;
pub mod config;
pub mod id;
pub mod ledger;
pub mod money;
pub mod spell;
pub mod store;
pub mod telemetry;
pub mod window;
