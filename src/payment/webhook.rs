//! `POST /internal/billing/webhook/payment`, from the raw bytes to the books.
//!
//! A delivery whose signature is good is stored as it came, then credited ([`quota::credit_in`]), and
//! marked as applied in the transaction of its effect.
//!
//! # Failure behavior
//!
//! Whatever is not credited stays listed, with the reason, until it is credited by a replay or an
//! operator dismisses it: a dead letter. Of those without a good signature, which anybody can send, so
//! many are kept as [`Inbox::keep_unverified`] keeps, and none over [`MAX_UNVERIFIED_BYTES`]. What
//! can't be decided now is an error of ours, and its sender is to send it again.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::STANDARD};
use sha2::{Digest, Sha256};

use super::{
    order::{PaidOrder, same_amount},
    signature::{Invalid, Keys},
};
use crate::{
    clock::Time,
    id::AccountId,
    inbox::{self, Delivery, Inbox, Incoming, PAYMENT_IDS, Source, Verdict},
    quota::{self, Effect, Left, Order, receipt},
    store::{StoreError, Tx},
    telemetry::Metrics,
};

/// The type of its events.
const KIND: &str = "payment";

/// How large a delivery without a good signature may be to be kept.
const MAX_UNVERIFIED_BYTES: usize = 64 * 1024;

/// What a stored body begins with that is not text as it came.
const ENCODED: &str = "base64:";

/// Takes what the payment service tells: hand it around by clone.
#[derive(Clone)]
pub struct Webhook {
    inbox: Inbox,
    metrics: Arc<Metrics>,
    keys: Keys,
}

/// An order that is credited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credited {
    pub user_id: String,
    /// What was left to the user when it was.
    pub left: Left,
    /// By this delivery, and not by an earlier one.
    pub now: bool,
}

/// Why a delivery was not credited.
#[derive(Debug, thiserror::Error)]
pub enum Rejected {
    #[error(transparent)]
    Signature(#[from] Invalid),
    /// It is believed, and can't be credited. A sentence.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Webhook {
    pub fn new(inbox: Inbox, metrics: Arc<Metrics>, keys: Keys) -> Webhook {
        Webhook { inbox, metrics, keys }
    }

    /// Takes a delivery: `signature` is its `X-Signature`, `body` the bytes as they came. Without a
    /// signature it is believed: its sender has shown the service key.
    /// Once this is `Ok`, the order is credited, now or by an earlier delivery.
    pub async fn receive(&self, signature: Option<&str>, body: &[u8]) -> Result<Credited, Rejected> {
        let event = Incoming {
            id: id_of(signature, body),
            kind: KIND.to_owned(),
            created_at: self.inbox.clock.now(),
            body: as_text(body),
            signature: signature.map(str::to_owned),
        };
        if let Err(invalid) = self.verify(signature, body) {
            let kept = self.keep(&event, invalid).await;
            self.count(match kept {
                Ok(true) => "bad_signature",
                Ok(false) => "dropped",
                Err(_) => "failed",
            });
            return Err(kept.map_or_else(Rejected::from, |_| invalid.into()));
        }
        let taken = self.inbox.take(Source::Payment, &event, self.apply(&event.id, body, false)).await;
        let answer = match &taken {
            Ok(Delivery::First(Verdict::Refused(why))) => Err(Rejected::Refused(why.clone())),
            Ok(delivery) => {
                let now = matches!(delivery, Delivery::First(Verdict::Applied(_)));
                self.first_answer(body).await.map(|(user_id, left)| Credited { user_id, left, now })
            }
            Err(error) => Err(error.clone().into()),
        };
        self.count(match &answer {
            Ok(Credited { now: true, .. }) => "applied",
            Ok(_) => "duplicate",
            Err(Rejected::Store(_)) => "failed",
            Err(_) => "refused",
        });
        answer
    }

    /// Tries a stored delivery once more, unless it was credited: its signature has to be good by the
    /// keys of now. `None`: there is none of that id.
    pub async fn replay(&self, id: &str) -> Result<Option<Delivery>, StoreError> {
        let Some(content) = self.inbox.content(Source::Payment, id).await? else { return Ok(None) };
        let Some((body, signature)) = content else {
            return self.inbox.without_body(Source::Payment, id).await;
        };
        let body = as_it_came(body);
        match self.verify(signature.as_deref(), &body) {
            Ok(()) => self.apply(id, &body, true).await,
            Err(invalid) => {
                let effect = async |_: &mut Tx| Ok(Verdict::Refused(sentence(invalid)));
                self.inbox.apply(Source::Payment, id, true, effect).await
            }
        }
    }

    fn verify(&self, signature: Option<&str>, body: &[u8]) -> Result<(), Invalid> {
        signature.map_or(Ok(()), |signature| self.keys.verify(signature, body))
    }

    /// Keeps what is not believed, if there is room for it.
    async fn keep(&self, event: &Incoming, invalid: Invalid) -> Result<bool, StoreError> {
        let signature = event.signature.as_ref().map_or(0, String::len);
        if event.body.len() + signature > MAX_UNVERIFIED_BYTES {
            return Ok(false);
        }
        self.inbox.keep_unverified(Source::Payment, event, &sentence(invalid)).await
    }

    /// Credits a stored delivery that is believed.
    async fn apply(&self, id: &str, body: &[u8], again: bool) -> Result<Option<Delivery>, StoreError> {
        let paid = match PaidOrder::parse(body) {
            Ok(paid) => Ok((self.inbox.identity.account_of_user(&paid.user_id).await?, paid.order)),
            Err(problem) => Err(problem),
        };
        let now = self.inbox.clock.now();
        let effect = async |tx: &mut Tx| {
            inbox::vouch(tx, Source::Payment, id, KIND).await?;
            match &paid {
                Ok((account, order)) => credit(tx, account, order, now).await,
                Err(problem) => Ok(Verdict::Refused(problem.clone())),
            }
        };
        let delivery = self.inbox.apply(Source::Payment, id, again, effect).await?;
        if let Some(Delivery::First(Verdict::Applied(_))) = delivery {
            self.metrics.quota_credits.inc();
        }
        Ok(delivery)
    }

    /// The user of the order in `body`, and what was left when it was credited: crediting it again gives
    /// that, and is rolled back all the same.
    async fn first_answer(&self, body: &[u8]) -> Result<(String, Left), Rejected> {
        let paid = PaidOrder::parse(body).map_err(Rejected::Refused)?;
        let account = self.inbox.identity.account_of_user(&paid.user_id).await?;
        let effect = self.inbox.db.effect(async || {
            let mut tx = self.inbox.db.begin().await?;
            let effect = quota::credit_in(&mut tx, &account, &paid.order, self.inbox.clock.now()).await?;
            tx.rollback().await?;
            Ok(effect)
        });
        match Box::pin(effect).await? {
            Effect::Repeated(left) => Ok((paid.user_id, left)),
            _ => Err(Rejected::Refused("An operator has dismissed this delivery.".to_owned())),
        }
    }

    fn count(&self, result: &str) {
        self.metrics.payment_webhooks.with_label_values(&[result]).inc();
    }
}

async fn credit(tx: &mut Tx, account: &AccountId, order: &Order, now: Time) -> Result<Verdict, StoreError> {
    let Order { order_id, plan_code, payment, .. } = order;
    let reused = format!("`order_id` `{order_id}` came before, with other content.");
    Ok(match quota::credit_in(tx, account, order, now).await? {
        Effect::Done(_) => Verdict::Applied(format!("credited order `{order_id}` to {account}")),
        Effect::Repeated(_) => match (receipt::paid(tx, order_id).await?, payment) {
            (Some((amount, currency)), Some(payment))
                if currency != payment.currency || !same_amount(&amount, &payment.amount) =>
            {
                Verdict::Refused(reused)
            }
            // Another service credited it, who knew of no payment.
            (None, Some(payment)) => {
                receipt::add_payment(tx, order_id, payment).await?;
                Verdict::Applied(format!("order `{order_id}` was credited before, and is paid now"))
            }
            _ => Verdict::Ignored(format!("order `{order_id}` was credited before")),
        },
        Effect::Reused => Verdict::Refused(reused),
        Effect::NoPlan => {
            Verdict::Refused(format!("There is no plan `{plan_code}`, as order `{order_id}` names it."))
        }
        Effect::Suspended => Verdict::Refused(format!("The user's account {account} is suspended.")),
        Effect::NoAccount | Effect::OutOfRange | Effect::Exceeded(_) => {
            Verdict::Refused(format!("The units of order `{order_id}` do not fit the user's total."))
        }
    })
}

fn sentence(invalid: Invalid) -> String {
    format!("The delivery is not believed: {invalid}.")
}

/// A delivery's id: the same for the same bytes with the same signature.
fn id_of(signature: Option<&str>, body: &[u8]) -> String {
    let mut hash = Sha256::new();
    // With its length before it, so that no other signature and body come to the same bytes.
    match signature {
        Some(signature) => {
            hash.update(signature.len().to_string());
            hash.update(":");
            hash.update(signature);
        }
        None => hash.update("unsigned:"),
    }
    hash.update(body);
    format!("{PAYMENT_IDS}{}", hex::encode(hash.finalize()))
}

/// A body as a text that both databases can keep, and from which [`as_it_came`] makes the same bytes.
fn as_text(body: &[u8]) -> String {
    match std::str::from_utf8(body) {
        Ok(text) if !text.contains('\0') && !text.starts_with(ENCODED) => text.to_owned(),
        _ => format!("{ENCODED}{}", STANDARD.encode(body)),
    }
}

fn as_it_came(text: String) -> Vec<u8> {
    let encoded = text.strip_prefix(ENCODED).and_then(|encoded| STANDARD.decode(encoded).ok());
    encoded.unwrap_or_else(|| text.into_bytes())
}
