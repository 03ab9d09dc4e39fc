//! The payment service: it sells orders of units and plans, and tells us of those that were paid.
//!
//! # Failure behavior
//!
//! Nothing is credited but what it signed, or what came with the service key. What can't be credited
//! as things are is kept with the reason, and an operator has it tried again.

pub mod order;
pub mod signature;
#[cfg(test)]
mod tests;
pub mod webhook;
