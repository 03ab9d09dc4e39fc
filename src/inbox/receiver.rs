//! What those who take events share: they are stored, then applied in turn, and told of in the log.
//!
//! # Failure behavior
//!
//! Only a few events are stored and applied at a time, of all sources together, so that a flood of
//! them leaves connections for casts; and of the events that nobody vouches for only one is stored at a
//! time, so that a flood of those leaves room for the others. Who waits too long for a turn is told to
//! send the event again.

use std::sync::Arc;

use tokio::{sync::Semaphore, time::timeout};

use super::{Content, Delivery, Incoming, Source, Verdict};
use crate::{
    clock::Clock,
    identity::Identity,
    store::{Db, PATIENCE, StoreError, Tx},
};

/// How many events are stored, and how many applied, at the same time by this process: half of the
/// connections that write are left to casts.
const STORED_AT_ONCE: usize = 2;
const APPLIED_AT_ONCE: usize = 1;
const UNVERIFIED_AT_ONCE: usize = 1;

/// Takes events: hand it around by clone, one to every source, so that all of them take turns.
#[derive(Clone)]
pub struct Inbox {
    pub db: Db,
    pub clock: Clock,
    pub identity: Identity,
    storing: Arc<Semaphore>,
    applying: Arc<Semaphore>,
    doubting: Arc<Semaphore>,
}

impl Inbox {
    pub fn new(db: Db, clock: Clock, identity: Identity) -> Inbox {
        Inbox {
            db,
            clock,
            identity,
            storing: Arc::new(Semaphore::new(STORED_AT_ONCE)),
            applying: Arc::new(Semaphore::new(APPLIED_AT_ONCE)),
            doubting: Arc::new(Semaphore::new(UNVERIFIED_AT_ONCE)),
        }
    }

    /// Takes a delivery whose signature is good: stores it, then has `apply` done.
    pub async fn take(
        &self,
        source: Source,
        event: &Incoming,
        apply: impl Future<Output = Result<Option<Delivery>, StoreError>>,
    ) -> Result<Delivery, StoreError> {
        let apply = Box::pin(apply);
        let store = super::store(&self.db, source, event, self.clock.now());
        let taken = match in_turn(&self.storing, store).await {
            Ok(()) => apply.await,
            Err(error) => Err(error),
        };
        let gone = || StoreError::Refused("a stored event is gone".to_owned());
        let taken = taken.and_then(|delivery| delivery.ok_or_else(gone));
        if let Err(error) = &taken {
            let Incoming { id, kind, .. } = event;
            tracing::warn!(event = id, kind, %error, "an event could not be applied");
        }
        taken
    }

    /// Keeps a delivery that nobody vouches for, with the reason `why`; `false`: there are too many of
    /// them already.
    pub async fn keep_unverified(
        &self,
        source: Source,
        event: &Incoming,
        why: &str,
    ) -> Result<bool, StoreError> {
        let keep = super::store_unverified(&self.db, source, event, why, self.clock.now());
        in_turn(&self.doubting, in_turn(&self.storing, keep)).await
    }

    /// Applies a stored event by `effect`, unless that was done before. `None`: there is no such event.
    /// One that was ignored, kept or dismissed is tried again only if `again`.
    pub async fn apply(
        &self,
        source: Source,
        id: &str,
        again: bool,
        effect: impl AsyncFn(&mut Tx) -> Result<Verdict, StoreError>,
    ) -> Result<Option<Delivery>, StoreError> {
        let apply = super::apply(&self.db, source, id, again, self.clock.now(), effect);
        // On the heap: it holds all of the effect, and is handed on several times.
        let delivery = in_turn(&self.applying, Box::pin(apply)).await?;
        let source = source.as_str();
        match &delivery {
            Some(Delivery::First(Verdict::Applied(what))) => {
                tracing::info!(source, event = id, what, "an event was applied");
            }
            Some(Delivery::First(Verdict::Kept(why))) => {
                tracing::warn!(source, event = id, why, "an event is kept for the operator");
            }
            Some(Delivery::First(Verdict::Refused(why))) => {
                tracing::warn!(source, event = id, why, "an event was refused, and is kept for the operator");
                return Ok(delivery);
            }
            _ => return Ok(delivery),
        }
        // A plan, and with it a rate, may have changed; also by what is kept.
        self.identity.forget();
        Ok(delivery)
    }

    /// Does what is like applying an event when it is its turn.
    pub async fn in_turn<T>(
        &self,
        work: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        in_turn(&self.applying, work).await
    }

    /// A stored event's body and signature.
    pub async fn content(&self, source: Source, id: &str) -> Result<Option<Content>, StoreError> {
        super::content(&self.db, source, id).await
    }

    /// What a replay comes to of an event whose body has left.
    pub async fn without_body(&self, source: Source, id: &str) -> Result<Option<Delivery>, StoreError> {
        self.apply(source, id, true, async |_: &mut Tx| Ok(super::without_body())).await
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
