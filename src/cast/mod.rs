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

use moka::future::Cache;
use serde_json::Value;
use tokio::{runtime::Handle, sync::oneshot, time::sleep};
use tokio_util::task::TaskTracker;

use crate::{
    clock::{Clock, Time},
    id::{AccountId, CastId, HoldId, KeyId},
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
    /// Who was refused by a hard limit within the last second, for which spell. They are asked after
    /// in the books before anything is taken from their rate: what is taken and given back is
    /// missing in between, and a flood of refusals would starve the same key's other casts.
    pub refused_lately: Cache<(AccountId, KeyId, String), ()>,
    /// For keys without a rate of their own, in accounts whose plan has none.
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
    /// `None` for callers whose rate is not limited, and where it was not asked.
    pub standing: Option<Standing>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The spell ran, and could not be settled yet.
    #[error("the cast {0} ran and is not settled yet")]
    Unsettled(CastId),
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
        if let Some(admission) = self.earlier(caller, keyed.as_ref(), at).await? {
            return Ok(admission.before_the_rate());
        }
        let spell = match self.find_spell(caller, spell_name).await? {
            Ok(spell) => spell,
            Err(admission) => return Ok(admission.before_the_rate()),
        };
        let id = CastId::fresh();
        let spending = Spending {
            key: caller.key.clone(),
            spell: spell.name.clone(),
            amount: spell.price,
            from_credits: spell.from_credits,
        };
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
            let kept = keyed.map(|keyed| (keyed, answer.clone()));
            let charge = Action::Charge { cast: id, spending: spending.clone(), kept };
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
        // From the hold to its settlement nothing may stop this half-way, least of all a caller who
        // hangs up, so it goes on where its caller can't drop it.
        let run = Run { id, account: caller.account.clone(), spell, payload, at, keyed: keyed.is_some() };
        let (tell, told) = oneshot::channel();
        let (pipeline, caller) = (self.clone(), caller.clone());
        let cast = async move { pipeline.hold_and_run(caller, spending, hold, run, render, tell).await };
        self.tasks.spawn_on(cast, &self.runtime);
        told.await.unwrap_or(Err(Failure::Ledger(LedgerError::Unavailable)))
    }

    async fn hold_and_run(
        &self,
        caller: Caller,
        spending: Spending,
        hold: Action,
        run: Run,
        render: Render,
        tell: oneshot::Sender<Result<Admitted<Answer>, Failure>>,
    ) {
        // Who hung up hears nothing; the books have it all the same.
        match self.admit(&caller, run.at, &spending, hold, ()).await {
            Ok(Admitted { admission: Admission::Admitted(()), standing }) => {
                let tell = |ran: Result<Answer, Failure>| {
                    let admitted = |answer| Admitted { admission: Admission::Admitted(answer), standing };
                    let _ = tell.send(ran.map(admitted));
                };
                self.run_and_settle(run, render, tell).await;
            }
            Ok(Admitted { admission, standing }) => {
                if let Some(admission) = admission.without_answer() {
                    let _ = tell.send(Ok(Admitted { admission, standing }));
                }
            }
            Err(failure) => {
                let _ = tell.send(Err(failure));
            }
        }
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
        if let Some(admission) = self.earlier(caller, keyed.as_ref(), at).await? {
            return Ok(admission.before_the_rate());
        }
        if caller.suspended {
            return Ok(Admission::Suspended.before_the_rate());
        }
        let mut from_credits = false;
        if let Some(name) = spell_name {
            match self.find_spell(caller, name).await? {
                Ok(spell) => from_credits = spell.from_credits,
                Err(admission) => return Ok(admission.before_the_rate()),
            }
        }
        let (id, expires_at) = (HoldId::fresh(), at.plus(ttl));
        let answer = render(&id, expires_at);
        let spell = spell_name.unwrap_or_default().to_owned();
        let spending = Spending { key: caller.key.clone(), spell, amount, from_credits };
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
        let books = (caller.account.clone(), spending.key.clone(), spending.spell.clone());
        if self.refused_lately.contains_key(&books)
            && let Some(refusal) = self.would_refuse(caller, at, spending).await?
        {
            return Ok(Admission::Refused(refusal).before_the_rate());
        }
        let standing = self.take(caller).await;
        if standing.is_some_and(|standing| !standing.allowed) {
            // The hard limit speaks first, also to who is over the rate.
            let refusal = self.would_refuse(caller, at, spending).await?;
            let admission = refusal.map_or(Admission::RateLimited, Admission::Refused);
            if matches!(admission, Admission::RateLimited) {
                self.metrics.rate_limited.inc();
            }
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
        let Some(admission) = admission else {
            return Ok(Admitted { admission: Admission::Admitted(admitted), standing });
        };
        if matches!(admission, Admission::Refused(_)) {
            self.metrics.budget_blocks.inc();
            self.refused_lately.insert(books, ()).await;
        }
        Ok(Admitted { admission, standing: self.give_back(caller).await })
    }

    /// What the request's idempotency key came to before, if it is known.
    async fn earlier<T>(
        &self,
        caller: &Caller,
        keyed: Option<&Keyed>,
        at: Time,
    ) -> Result<Option<Admission<T>>, StoreError> {
        let Some(keyed) = keyed else { return Ok(None) };
        let earlier = ledger::idempotency::earlier(&self.db, &caller.account, keyed, at).await?;
        Ok(earlier.and_then(Admission::of))
    }

    /// Whether a hard limit refuses this now. The look takes and writes nothing, and shares the
    /// writer's transactions, so that a flood of such looks costs little.
    async fn would_refuse(
        &self,
        caller: &Caller,
        at: Time,
        spending: &Spending,
    ) -> Result<Option<Refusal>, LedgerError> {
        let action = Action::Probe(spending.clone());
        let looked = self.ledger.ask(Request { account: caller.account.clone(), at, action }).await?;
        let Outcome::Refused(refusal) = looked else { return Ok(None) };
        self.metrics.budget_blocks.inc();
        Ok(Some(refusal))
    }

    /// Runs the spell whose price is held, and settles. What it came to is told once it is in the
    /// books, or that it is not yet, in which case settling is tried again until the hold expires.
    async fn run_and_settle(
        &self,
        Run { id, account, spell, payload, at, keyed }: Run,
        render: Render,
        tell: impl FnOnce(Result<Answer, Failure>),
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
            let told = match self.ledger.settle(request).await {
                Ok(Outcome::Hold(_)) => Ok(answer.clone()),
                // Its hold expired and was charged meanwhile, or its price fits no total.
                Ok(other) => {
                    tracing::error!(cast = id.as_str(), ?other, "a cast that ran could not be settled");
                    Err(Failure::Unsettled(id.clone()))
                }
                Err(LedgerError::Refused) => Err(LedgerError::Refused.into()),
                Err(LedgerError::Busy | LedgerError::Unavailable) => {
                    if let Some(tell) = tell.take() {
                        tell(Err(Failure::Unsettled(id.clone())));
                    }
                    if self.clock.now() < until {
                        sleep(Duration::from_millis(250)).await;
                        continue;
                    }
                    tracing::error!(
                        cast = id.as_str(),
                        "a cast that ran was not settled before its hold expired"
                    );
                    return;
                }
            };
            if let Some(tell) = tell.take() {
                tell(told);
            }
            return;
        }
    }

    /// How the caller's rate stands, with nothing taken; `None` if it is not limited.
    pub async fn standing(&self, caller: &Caller) -> Option<Standing> {
        let (bucket, per_minute) = rate_of(caller, self.rate_limit_per_minute)?;
        Some(self.limiter.peek(&bucket, per_minute).await)
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
    let own = caller.rate_limit_per_minute.or(caller.plan_rate_per_minute);
    let per_minute = own.unwrap_or(default);
    (!caller.service).then(|| (format!("key/{}", caller.key), per_minute))
}

/// A cast whose price is held.
struct Run {
    id: CastId,
    account: AccountId,
    spell: Arc<Spell>,
    payload: Value,
    at: Time,
    keyed: bool,
}

impl<T> Admission<T> {
    /// An end that comes before the rate is asked.
    fn before_the_rate(self) -> Admitted<T> {
        Admitted { admission: self, standing: None }
    }

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
            // The rest is of holds that end, and of transfers.
            _ => Admission::OutOfRange,
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
