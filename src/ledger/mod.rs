//! The ledger: what was spent, what is held, and the decision whether more may be.
//!
//! `decide` is the rules, pure; `load` reads what a batch touches and `apply` carries the rules out on
//! it, inside a transaction; `known` spares the reading where it can; `writer` batches what
//! casts ask into few transactions; `sweeper` ends the holds nobody ended; `audit` recomputes it all;
//! `closing` lets what is old leave.

mod apply;
pub mod audit;
mod balance;
mod cause;
pub mod closing;
mod decide;
pub mod hold;
pub mod idempotency;
mod known;
mod load;
pub mod reference;
mod request;
#[cfg(test)]
mod simulation;
mod subject;
pub mod sweeper;
#[cfg(test)]
mod tests;
mod transfer;
pub mod usage;
mod write;
pub mod writer;

pub use apply::apply;
pub use balance::BalanceId;
pub use decide::HoldState;
pub use hold::HoldRow;
pub use load::{Spent, spent_in_window};
#[cfg(test)]
pub use request::Undone;
pub use request::{
    Action, Answer, CapOver, Fund, GrantTo, HeldFor, Keyed, Limit, NewHold, OnLost, Once, Outcome,
    PlanStanding, Record, Refusal, Request, Short, Shortage, Spending, Standing, TakeFrom, Transfer,
};
pub use writer::{Ledger, LedgerError};
