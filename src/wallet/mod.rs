//! The wallet: prepaid credits, and the tokens per model that they are turned into.
//!
//! Both are balances of the ledger. `credits` grants what was paid for and takes it back with the money;
//! `purchase` believes what was bought elsewhere; `pricing` says how many tokens a credit makes; `tokens`
//! turns the one into the other, all of a list or none, and spends them.

mod credits;
pub mod pricing;
pub mod purchase;
#[cfg(test)]
mod tests;
mod tokens;
pub mod transactions;

pub use credits::{
    Credits, Grant, GrantError, PaidFor, Payment, Reversal, ReversalStatus, credits, grant, note,
    paid_for_any, reverse, standing, verified_any,
};
pub use tokens::{Allocation, Held, Refused, allocate, consume, held, reset};
