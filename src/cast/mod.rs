//! One cast, from its caller to the books: hard limits first, then the rate, then the spell runs,
//! then what it really cost is booked.
//!
//! An instant spell is charged in one step. Any other has its price held while it runs and settled
//! when it is done; that part goes on when the caller hangs up, and no transaction is open
//! meanwhile.
//!
//! # Failure behavior
//!
//! Whoever is refused, by whichever limit, gets the taken allowance back, so a 402 costs nothing of
//! the rate. If the database fails before the spell ran, nothing runs. If it fails afterwards, the
//! caller is told so while settling is tried again until the hold expires; what expiry does then is
//! the spell's choice (`on_lost`). Redis failing is the limiter's business and never shows here.

pub mod history;

use std::{sync::Arc, time::Duration};

use serde_json::Value;
use tokio::{runtime::Handle, sync::oneshot, time::sleep};
use tokio_util::task::TaskTracker;

use crate::{
    clock::{Clock, Time},
    id::{CastId, HoldId},
    identity::Caller,
    ledger::{
        self, Action, Answer, HeldFor, Keyed, Ledger, LedgerError, NewHold, OnLost, Outcome, Refusal,
        Request, Spending,
    },
    money::Nanos,
    rate::{Limiter, Standing},
    spell::{Spell, Spells, upstream::UpstreamError},
    store::{Db, StoreError},
    telemetry::Metrics,
};

/// How long a cast's hold outlives its upstream's deadline: time for settling it, with the database
/// away for a while.
const GRACE: Duration = Duration::from_secs(60);

/// Everything a cast passes through: hand it around by clone.
#[derive(Clone)]
pub struct Pipeline {
    pub db: Db,
    pub clock: Clock,
    pub ledger: Ledger,
    pub limiter: Limiter,
    pub spells: Spells,
    pub metrics: Arc<Metrics>,
    /// For keys without a rate of their own.
    pub rate_limit_per_minute: u32,
    /// What runs on after its caller hung up; waited for at the end.
    pub tasks: TaskTracker,
    /// Where that runs: an HTTP worker's own runtime ends before the process does.
    pub runtime: Handle,
}

/// How a finished cast is put into words, for its caller and for its idempotency key.
pub type Render = fn(&Finished) -> Answer;

/// A cast that ran.
pub struct Finished {
    pub id: CastId,
    pub spell: String,
    pub created_at: Time,
    pub cost: Nanos,
    pub result: Result<Value, UpstreamError>,
}

/// What a request that wants to spend came to.
pub enum Admission<T> {
    Admitted(T),
    Replayed(Answer),
    Refused(Refusal),
    RateLimited,
    Suspended,
    NoSuchAccount,
    NoSuchSpell,
    KeyReused,
    InProgress,
    OutOfRange,
}

/// [`Admission`], and how the caller's rate stands after it.
pub struct Admitted<T> {
    pub admission: Admission<T>,
    /// `None` for callers whose rate is not limited.
    pub standing: Option<Standing>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Pipeline {
    /// Runs `spell_name` on `payload` for `caller`. The answer is what `render` made of it.
    pub async fn cast(
        &self,
        caller: &Caller,
        spell_name: &str,
        payload: Value,
        keyed: Option<Keyed>,
        render: Render,
    ) -> Result<Admitted<Answer>, Failure> {
        let timer = self.metrics.cast_seconds.start_timer();
        let cast = self.cast_uncounted(caller, spell_name, payload, keyed, render).await;
        timer.observe_duration();
        let status = match &cast {
            Err(_) => "unavailable",
            Ok(Admitted { admission, .. }) => match admission {
                Admission::Admitted(answer) if answer.status < 300 => "completed",
                Admission::Admitted(_) => "failed",
                Admission::Replayed(_) => "replayed",
                Admission::RateLimited => "rate_limited",
                _ => "refused",
            },
        };
        self.metrics.casts.with_label_values(&[status]).inc();
        cast
    }

    async fn cast_uncounted(
        &self,
        caller: &Caller,
        spell_name: &str,
        payload: Value,
        keyed: Option<Keyed>,
        render: Render,
    ) -> Result<Admitted<Answer>, Failure> {
        let at = self.clock.now();
        let spell = match self.find_spell(caller, spell_name).await? {
            Ok(spell) => spell,
            Err(admission) => return Ok(self.not_run(caller, admission).await),
        };
        let id = CastId::fresh();
        let spending = Spending { key: caller.key.clone(), spell: spell.name.clone(), amount: spell.price };
        if spell.is_instant() {
            let result = self.spells.run(&spell, &payload).await;
            let finished = Finished {
                id: id.clone(),
                spell: spell.name.clone(),
                created_at: at,
                cost: spell.price,
                result,
            };
            let answer = render(&finished);
            let charge =
                Action::Charge { cast: id, spending: spending.clone(), keyed, answer: answer.clone() };
            return self.admit(caller, at, &spending, charge, answer).await;
        }
        let hold = Action::Hold(NewHold {
            id: HoldId::from(id.as_str()),
            held_for: HeldFor::Cast,
            spending: spending.clone(),
            expires_at: at.plus(spell.timeout() + GRACE),
            on_lost: spell.on_lost,
            keyed: keyed.clone(),
            answer: None,
        });
        let Admitted { admission, standing } = self.admit(caller, at, &spending, hold, ()).await?;
        let admission = match admission.without_answer() {
            Some(other) => other,
            None => {
                let run =
                    Run { id, account: caller.account.clone(), spell, payload, at, keyed: keyed.is_some() };
                Admission::Admitted(self.run(run, render).await?)
            }
        };
        Ok(Admitted { admission, standing })
    }

    /// Sets `amount` aside for code that runs elsewhere, until `ttl` has passed. `render` makes the
    /// answer of the hold's id and expiry.
    pub async fn hold(
        &self,
        caller: &Caller,
        spell_name: Option<&str>,
        amount: Nanos,
        ttl: Duration,
        keyed: Option<Keyed>,
        render: impl FnOnce(&HoldId, Time) -> Answer,
    ) -> Result<Admitted<Answer>, Failure> {
        let at = self.clock.now();
        if caller.suspended {
            return Ok(self.not_run(caller, Admission::Suspended).await);
        }
        if let Some(name) = spell_name
            && let Err(admission) = self.find_spell(caller, name).await?
        {
            return Ok(self.not_run(caller, admission).await);
        }
        let (id, expires_at) = (HoldId::fresh(), at.plus(ttl));
        let answer = render(&id, expires_at);
        let spell = spell_name.unwrap_or_default().to_owned();
        let spending = Spending { key: caller.key.clone(), spell, amount };
        let hold = Action::Hold(NewHold {
            id,
            held_for: HeldFor::External,
            spending: spending.clone(),
            expires_at,
            on_lost: OnLost::Release,
            keyed,
            answer: Some(answer.clone()),
        });
        self.admit(caller, at, &spending, hold, answer).await
    }

    async fn find_spell<T>(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Result<Arc<Spell>, Admission<T>>, StoreError> {
        if caller.suspended {
            return Ok(Err(Admission::Suspended));
        }
        Ok(self.spells.find(name).await?.ok_or(Admission::NoSuchSpell))
    }

    /// The rate, then the ledger; `admitted` is the answer if both say yes.
    async fn admit<T>(
        &self,
        caller: &Caller,
        at: Time,
        spending: &Spending,
        action: Action,
        admitted: T,
    ) -> Result<Admitted<T>, Failure> {
        if let Some(keyed) = action.keyed()
            && let Some(earlier) = ledger::idempotency::earlier(&self.db, &caller.account, keyed, at).await?
            && let Some(admission) = Admission::of(earlier)
        {
            return Ok(self.not_run(caller, admission).await);
        }
        let standing = self.take(caller).await;
        if standing.is_some_and(|standing| !standing.allowed) {
            // The hard limit speaks first, also to who is over the rate.
            let mut books = self.db.begin_read().await?;
            let refusal = ledger::would_refuse(&mut books, &caller.account, at, spending.clone()).await?;
            books.rollback().await?;
            let admission = refusal.map_or(Admission::RateLimited, Admission::Refused);
            self.count(&admission);
            return Ok(Admitted { admission, standing });
        }
        let request = Request { account: caller.account.clone(), at, action };
        let admission = match self.ledger.ask(request).await {
            Ok(outcome) => Admission::of(outcome),
            Err(error) => {
                self.give_back(caller).await;
                return Err(error.into());
            }
        };
        match admission {
            None => Ok(Admitted { admission: Admission::Admitted(admitted), standing }),
            Some(admission) => {
                self.count(&admission);
                Ok(Admitted { admission, standing: self.give_back(caller).await })
            }
        }
    }

    fn count<T>(&self, admission: &Admission<T>) {
        match admission {
            Admission::Refused(_) => self.metrics.budget_blocks.inc(),
            Admission::RateLimited => self.metrics.rate_limited.inc(),
            _ => {}
        }
    }

    /// Runs the spell whose price is held, and settles. Goes on when the caller hangs up.
    async fn run(&self, run: Run, render: Render) -> Result<Answer, Failure> {
        let (tell, told) = oneshot::channel();
        let pipeline = self.clone();
        self.tasks.spawn_on(async move { pipeline.run_and_settle(run, render, tell).await }, &self.runtime);
        told.await.unwrap_or(Err(LedgerError::Unavailable)).map_err(Failure::from)
    }

    async fn run_and_settle(
        self,
        Run { id, account, spell, payload, at, keyed }: Run,
        render: Render,
        tell: oneshot::Sender<Result<Answer, LedgerError>>,
    ) {
        let result = self.spells.run(&spell, &payload).await;
        let cost = if result.is_ok() { spell.price } else { Nanos::ZERO };
        let error_code = result.as_ref().err().map(UpstreamError::code);
        if let Err(error) = &result {
            tracing::info!(cast = id.as_str(), spell = spell.name, %error, "an upstream failed");
        }
        let finished = Finished { id: id.clone(), spell: spell.name.clone(), created_at: at, cost, result };
        let answer = render(&finished);
        let kept = keyed.then(|| answer.clone());
        let (hold, held_for) = (HoldId::from(id.as_str()), HeldFor::Cast);
        let action = match error_code {
            None => Action::Post { hold, held_for, amount: cost, answer: kept },
            error_code => Action::Void { hold, held_for, error_code, answer: kept },
        };
        let mut tell = Some(tell);
        let until = at.plus(spell.timeout() + GRACE);
        loop {
            let request = Request { account: account.clone(), at: self.clock.now(), action: action.clone() };
            let settled = self.ledger.ask(request).await;
            let done = !matches!(settled, Err(LedgerError::Unavailable | LedgerError::Busy));
            if let Some(tell) = tell.take() {
                // Who hung up does not hear it; the books have it all the same.
                let _ = tell.send(settled.map(|_| answer.clone()));
            }
            if done {
                return;
            }
            if self.clock.now() >= until {
                tracing::error!(
                    cast = id.as_str(),
                    "a cast ran and could not be settled before its hold expired"
                );
                return;
            }
            sleep(Duration::from_millis(250)).await;
        }
    }

    /// For what ends before the rate is touched: how it stands, with nothing taken.
    async fn not_run<T>(&self, caller: &Caller, admission: Admission<T>) -> Admitted<T> {
        let standing = match rate_of(caller, self.rate_limit_per_minute) {
            Some((bucket, per_minute)) => Some(self.limiter.peek(&bucket, per_minute).await),
            None => None,
        };
        Admitted { admission, standing }
    }

    async fn take(&self, caller: &Caller) -> Option<Standing> {
        let (bucket, per_minute) = rate_of(caller, self.rate_limit_per_minute)?;
        Some(self.limiter.take(&bucket, per_minute).await)
    }

    async fn give_back(&self, caller: &Caller) -> Option<Standing> {
        let (bucket, per_minute) = rate_of(caller, self.rate_limit_per_minute)?;
        Some(self.limiter.give_back(&bucket, per_minute).await)
    }
}

/// The caller's bucket and its allowance; the service key has none.
fn rate_of(caller: &Caller, default: u32) -> Option<(String, u32)> {
    let per_minute = caller.rate_limit_per_minute.unwrap_or(default);
    (!caller.service).then(|| (format!("key/{}", caller.key), per_minute))
}

/// A cast whose price is held.
struct Run {
    id: CastId,
    account: crate::id::AccountId,
    spell: Arc<Spell>,
    payload: Value,
    at: Time,
    keyed: bool,
}

impl<T> Admission<T> {
    /// What the ledger's outcome means, unless it is that the request was admitted.
    fn of(outcome: Outcome) -> Option<Admission<T>> {
        Some(match outcome {
            Outcome::Done | Outcome::Hold(_) => return None,
            Outcome::Replayed(answer) => Admission::Replayed(answer),
            Outcome::Refused(refusal) => Admission::Refused(refusal),
            Outcome::Suspended => Admission::Suspended,
            Outcome::NoAccount => Admission::NoSuchAccount,
            Outcome::KeyReused => Admission::KeyReused,
            Outcome::InProgress => Admission::InProgress,
            Outcome::OutOfRange | Outcome::NoHold | Outcome::EndedOtherwise(_) => Admission::OutOfRange,
        })
    }

    /// The same for another type of answer, unless it has one.
    fn without_answer<U>(self) -> Option<Admission<U>> {
        Some(match self {
            Admission::Admitted(_) => return None,
            Admission::Replayed(answer) => Admission::Replayed(answer),
            Admission::Refused(refusal) => Admission::Refused(refusal),
            Admission::RateLimited => Admission::RateLimited,
            Admission::Suspended => Admission::Suspended,
            Admission::NoSuchAccount => Admission::NoSuchAccount,
            Admission::NoSuchSpell => Admission::NoSuchSpell,
            Admission::KeyReused => Admission::KeyReused,
            Admission::InProgress => Admission::InProgress,
            Admission::OutOfRange => Admission::OutOfRange,
        })
    }
}
