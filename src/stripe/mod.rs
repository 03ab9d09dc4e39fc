//! Stripe: customers buy through Checkout, and signed webhooks tell what became of it.

pub mod effect;
pub mod event;
pub mod purchase;
pub mod signature;
pub mod subscription;
#[cfg(test)]
mod tests;
pub mod webhook;
