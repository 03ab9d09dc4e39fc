//! `POST /webhooks/stripe`, from the raw bytes to the books.
//!
//! A delivery whose signature is good is stored, then applied ([`effect`]), and marked as applied in
//! the transaction of its effect.
//!
//! # Failure behavior
//!
//! What is not signed by one of our secrets changes nothing. What can't be applied now is sent again
//! by Stripe, for three days; it is stored, and listed for the operator, until it is.

use std::sync::Arc;

use secrecy::SecretString;

use super::{
    Stripe, effect,
    event::{Event, HANDLED},
    signature::{self, Invalid},
};
use crate::{
    inbox::{Delivery, Inbox, Incoming, Source},
    store::{StoreError, Tx},
    telemetry::Metrics,
};

/// Takes Stripe's events: hand it around by clone.
#[derive(Clone)]
pub struct Webhook {
    inbox: Inbox,
    metrics: Arc<Metrics>,
    /// To ask what an event does not say.
    stripe: Option<Stripe>,
}

/// Why a delivery was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    #[error(transparent)]
    Signature(#[from] Invalid),
    /// It is signed, and no event. A sentence.
    #[error("{0}")]
    NoEvent(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Webhook {
    pub fn new(inbox: Inbox, metrics: Arc<Metrics>, stripe: Option<Stripe>) -> Webhook {
        for kind in HANDLED.into_iter().chain(["other"]) {
            for result in ["applied", "ignored", "kept", "duplicate", "failed"] {
                metrics.stripe_webhooks.with_label_values(&[kind, result]);
            }
        }
        for result in ["bad_signature", "no_event"] {
            metrics.stripe_webhooks.with_label_values(&["other", result]);
        }
        Webhook { inbox, metrics, stripe }
    }

    /// Takes a delivery: `header` is its `Stripe-Signature`, `body` the bytes as they came. Once this
    /// is `Ok`, the event is applied, now or by an earlier delivery.
    pub async fn receive(
        &self,
        header: Option<&str>,
        body: &[u8],
        secrets: &[SecretString],
    ) -> Result<Delivery, Rejected> {
        let now = self.inbox.clock.now();
        if let Err(invalid) = signature::verify(header, body, secrets, now) {
            self.count("other", "bad_signature");
            return Err(invalid.into());
        }
        let text = std::str::from_utf8(body).map_err(|_| "The body is not UTF-8.".to_owned());
        let event = text.and_then(|text| Ok((Event::parse(body, now)?, text)));
        let (event, text) = event.map_err(|problem| {
            self.count("other", "no_event");
            Rejected::NoEvent(problem)
        })?;
        let incoming = Incoming {
            id: event.id.clone(),
            kind: event.kind.clone(),
            created_at: event.created_at,
            body: text.to_owned(),
            signature: None,
        };
        let taken = self.inbox.take(Source::Stripe, &incoming, self.apply(&event, false)).await;
        let result = match &taken {
            Ok(Delivery::First(verdict)) => verdict.status(),
            Ok(Delivery::Again) => "duplicate",
            Err(_) => "failed",
        };
        self.count(event.label(), result);
        Ok(taken?)
    }

    /// Applies a stored event once more, unless it was applied: an operator's replay. `None`: there
    /// is none of that id.
    pub async fn replay(&self, id: &str) -> Result<Option<Delivery>, StoreError> {
        let Some(content) = self.inbox.content(Source::Stripe, id).await? else { return Ok(None) };
        let Some((body, _)) = content else { return self.inbox.without_body(Source::Stripe, id).await };
        let event = Event::parse(body.as_bytes(), self.inbox.clock.now()).map_err(StoreError::Refused)?;
        self.apply(&event, true).await
    }

    async fn apply(&self, event: &Event, again: bool) -> Result<Option<Delivery>, StoreError> {
        let invoice = self.invoice_behind(event).await?;
        let now = self.inbox.clock.now();
        let effect = async |tx: &mut Tx| effect::apply(tx, event, invoice.clone(), now).await;
        self.inbox.apply(Source::Stripe, &event.id, again, effect).await
    }

    /// The invoice whose payment went back, where the event does not say it: a charge has not named
    /// its invoice since Stripe's API of March 2025. If Stripe can't be asked now, the event is applied
    /// without, which keeps it for a replay.
    async fn invoice_behind(&self, event: &Event) -> Result<Option<String>, StoreError> {
        let Some(stripe) = &self.stripe else { return Ok(None) };
        let Some(payment) = effect::unknown_payment(&self.inbox.db, event).await? else { return Ok(None) };
        match stripe.invoice_of(&payment).await {
            Ok(invoice) => Ok(invoice),
            Err(error) => {
                tracing::warn!(event = event.id, %error, "Stripe could not be asked for a payment's invoice");
                Ok(None)
            }
        }
    }

    fn count(&self, kind: &str, result: &str) {
        self.metrics.stripe_webhooks.with_label_values(&[kind, result]).inc();
    }
}
