//! Those who tell us of events: the one place that knows, by an event's id, whose it is.

use std::sync::Arc;

use crate::{
    config::Config,
    inbox::{Delivery, Inbox, Source},
    payment,
    store::StoreError,
    stripe,
    telemetry::Metrics,
};

/// Takes events: hand it around by clone.
#[derive(Clone)]
pub struct Webhooks {
    pub stripe: stripe::webhook::Webhook,
    pub payment: payment::webhook::Webhook,
}

impl Webhooks {
    /// `stripe` is for what Stripe's events do not say.
    pub fn new(
        config: &Config,
        inbox: Inbox,
        metrics: Arc<Metrics>,
        stripe: Option<stripe::Stripe>,
    ) -> Webhooks {
        let keys = config.payment_webhook_keys.clone();
        Webhooks {
            stripe: stripe::webhook::Webhook::new(inbox.clone(), metrics.clone(), stripe),
            payment: payment::webhook::Webhook::new(inbox, metrics, keys),
        }
    }

    /// Applies a stored event once more, unless it was applied: an operator's replay. `None`: there
    /// is none of that id.
    pub async fn replay(&self, id: &str) -> Result<Option<Delivery>, StoreError> {
        match Source::of(id) {
            Source::Stripe => self.stripe.replay(id).await,
            Source::Payment => self.payment.replay(id).await,
        }
    }
}
