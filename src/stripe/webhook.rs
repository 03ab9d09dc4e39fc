//! `POST /webhooks/stripe`, from the raw bytes to the books.
//!
//! A delivery whose signature is good is stored, then applied ([`effect`]), and marked as applied in
//! the transaction of its effect.
//!
//! # Failure behavior
//!
//! What is not signed by one of our secrets changes nothing. What can't be applied now is sent again
//! by Stripe, for three days; it is stored, and listed for the operator, until it is. Only a few
//! deliveries are applied at a time, so that a flood of them leaves connections for casts.

use std::sync::Arc;

use secrecy::SecretString;
use tokio::{sync::Semaphore, time::timeout};

use super::{
    Stripe, effect,
    event::{Event, HANDLED},
    signature::{self, Invalid},
};
use crate::{
    clock::Clock,
    identity::Identity,
    inbox::{self, Delivery, Incoming, Source, Verdict},
    store::{Db, PATIENCE, StoreError, Tx},
    telemetry::Metrics,
};

/// How many events are stored, and how many applied, at the same time by this process: half of the
/// connections that write are left to casts.
const STORED_AT_ONCE: usize = 2;
const APPLIED_AT_ONCE: usize = 1;

/// Takes Stripe's events: hand it around by clone.
#[derive(Clone)]
pub struct Webhook {
    db: Db,
    clock: Clock,
    identity: Identity,
    metrics: Arc<Metrics>,
    /// To ask what an event does not say.
    stripe: Option<Stripe>,
    storing: Arc<Semaphore>,
    applying: Arc<Semaphore>,
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
    pub fn new(
        db: Db,
        clock: Clock,
        identity: Identity,
        metrics: Arc<Metrics>,
        stripe: Option<Stripe>,
    ) -> Webhook {
        for kind in HANDLED.into_iter().chain(["other"]) {
            for result in ["applied", "ignored", "kept", "duplicate", "failed"] {
                metrics.stripe_webhooks.with_label_values(&[kind, result]);
            }
        }
        for result in ["bad_signature", "no_event"] {
            metrics.stripe_webhooks.with_label_values(&["other", result]);
        }
        Webhook {
            db,
            clock,
            identity,
            metrics,
            stripe,
            storing: Arc::new(Semaphore::new(STORED_AT_ONCE)),
            applying: Arc::new(Semaphore::new(APPLIED_AT_ONCE)),
        }
    }

    /// Takes a delivery: `header` is its `Stripe-Signature`, `body` the bytes as they came. Once this
    /// is `Ok`, the event is applied, now or by an earlier delivery.
    pub async fn receive(
        &self,
        header: Option<&str>,
        body: &[u8],
        secrets: &[SecretString],
    ) -> Result<Delivery, Rejected> {
        let now = self.clock.now();
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
        };
        let taken = match self.store(&incoming).await {
            Ok(()) => self.apply(&event, false).await,
            Err(error) => Err(error),
        };
        let result = match &taken {
            Ok(Some(Delivery::First(verdict))) => verdict.status(),
            Ok(Some(Delivery::Again)) => "duplicate",
            Ok(None) | Err(_) => "failed",
        };
        self.count(event.label(), result);
        match taken {
            Ok(Some(delivery)) => Ok(delivery),
            Ok(None) => Err(StoreError::Refused("a stored event is gone".to_owned()).into()),
            Err(error) => {
                tracing::warn!(event = event.id, kind = event.kind, %error, "an event could not be applied");
                Err(error.into())
            }
        }
    }

    /// Applies a stored event once more, unless it was applied: an operator's replay. `None`: there
    /// is none of that id.
    pub async fn replay(&self, id: &str) -> Result<Option<Delivery>, StoreError> {
        let Some(body) = inbox::body(&self.db, Source::Stripe, id).await? else { return Ok(None) };
        let event = Event::parse(body.as_bytes(), self.clock.now()).map_err(StoreError::Refused)?;
        self.apply(&event, true).await
    }

    async fn store(&self, event: &Incoming) -> Result<(), StoreError> {
        let store = inbox::store(&self.db, Source::Stripe, event, self.clock.now());
        in_turn(&self.storing, store).await
    }

    async fn apply(&self, event: &Event, again: bool) -> Result<Option<Delivery>, StoreError> {
        let invoice = self.invoice_behind(event).await?;
        let (now, id) = (self.clock.now(), event.id.as_str());
        let effect = async |tx: &mut Tx| effect::apply(tx, event, invoice.clone(), now).await;
        let apply = inbox::apply(&self.db, Source::Stripe, id, again, now, effect);
        let delivery = in_turn(&self.applying, apply).await?;
        match &delivery {
            Some(Delivery::First(Verdict::Applied(what))) => {
                tracing::info!(event = id, what, "a Stripe event was applied");
            }
            Some(Delivery::First(Verdict::Kept(why))) => {
                tracing::warn!(event = id, why, "a Stripe event is kept for the operator");
            }
            _ => return Ok(delivery),
        }
        // A plan, and with it a rate, may have changed; also by what is kept.
        self.identity.forget();
        Ok(delivery)
    }

    /// The invoice whose payment went back, where the event does not say it: a charge has not named
    /// its invoice since Stripe's API of March 2025. If Stripe can't be asked now, the event is applied
    /// without, which keeps it for a replay.
    async fn invoice_behind(&self, event: &Event) -> Result<Option<String>, StoreError> {
        let Some(stripe) = &self.stripe else { return Ok(None) };
        let Some(payment) = effect::unknown_payment(&self.db, event).await? else { return Ok(None) };
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

/// Does `work` when it is its turn. Waiting for that counts too: while the database is away, those who
/// wait behind each other are answered as soon as the first.
async fn in_turn<T>(
    turns: &Semaphore,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let done = timeout(PATIENCE, async {
        let _turn = turns.acquire().await;
        work.await
    });
    let late = format!("not done within {} ms", PATIENCE.as_millis());
    done.await.unwrap_or(Err(StoreError::Unavailable(late)))
}
