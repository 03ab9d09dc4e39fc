//! Stripe: customers buy through Checkout and manage it in the portal, and signed webhooks tell what
//! became of it.
//!
//! # Failure behavior
//!
//! Stripe failing, or being slow, is an error within seconds for who buys, and nothing to anybody
//! else: no cast asks Stripe, and no transaction is open while Stripe is asked.

pub mod audit;
mod checkout;
mod client;
mod customer;
pub mod effect;
pub mod event;
mod invoice;
pub mod purchase;
pub mod return_url;
mod session;
pub mod signature;
pub mod subscription;
#[cfg(test)]
mod tests;
pub mod webhook;

use std::time::Duration;

use moka::future::Cache;
use tokio::time::Instant;

use crate::{
    clock::Clock,
    config::Billing,
    id::AccountId,
    store::{Db, StoreError},
};

pub use checkout::{Bought, Order, Sale};
pub use client::{PaymentIntent, Session, StripeError};
pub use customer::customer_of;

use client::Client;

/// How long a request of ours may spend with Stripe, with everything that it asks there.
const STRIPE_WITHIN: Duration = Duration::from_secs(8);

/// For how long customers that were made are remembered: for those who asked at the same time.
const SAME_TIME: Duration = Duration::from_secs(2);

/// For how long Stripe gives the same answer to the same idempotency key, and a little longer.
const STRIPE_REPEATS_FOR: Duration = Duration::from_secs(25 * 60 * 60);

/// Sells through Stripe: hand it around by clone.
#[derive(Clone)]
pub struct Stripe {
    db: Db,
    clock: Clock,
    client: Client,
    /// The customers that are being made, by account and the customer that they replace.
    making: Cache<(AccountId, Option<String>), String>,
    /// How often Stripe answered with a failure when an account's customer was to be made: for as long
    /// as it repeats an answer.
    failed: Cache<AccountId, u32>,
}

/// Why nothing was sold.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Stripe(#[from] StripeError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Stripe {
    /// `None` without a secret key: nothing can be sold then.
    ///
    /// Errors: a sentence about a key or an address that can't be used.
    pub fn new(billing: &Billing, db: Db, clock: Clock) -> Result<Option<Stripe>, String> {
        let Some(secret) = &billing.secret_key else { return Ok(None) };
        let client = Client::new(secret, billing.api_base.as_ref())?;
        let making = Cache::builder().max_capacity(100_000).time_to_live(SAME_TIME).build();
        let failed = Cache::builder().max_capacity(100_000).time_to_live(STRIPE_REPEATS_FOR).build();
        Ok(Some(Stripe { db, clock, client, making, failed }))
    }

    /// Stripe's id of the invoice that was paid by the payment intent of that id, if it paid one.
    pub async fn invoice_of(&self, payment_intent: &str) -> Result<Option<String>, StripeError> {
        self.client.invoice_of(payment_intent).await
    }

    /// The payment intent of that id.
    pub async fn payment_intent(&self, id: &str) -> Result<PaymentIntent, StripeError> {
        self.client.payment_intent(id).await
    }

    /// The address of the portal in which the account manages what it bought, and from which it
    /// returns to `return_url`. `None`: it never bought anything.
    pub async fn portal(&self, account: &AccountId, return_url: &str) -> Result<Option<String>, Failure> {
        let Some(customer) = customer_of(&self.db, account).await? else { return Ok(None) };
        let deadline = Instant::now() + STRIPE_WITHIN;
        match self.client.create_portal(&customer, return_url, deadline).await {
            Ok(url) => Ok(Some(url)),
            // Deleted at Stripe, where nothing of it is left to be managed.
            Err(StripeError::NoSuchCustomer) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
