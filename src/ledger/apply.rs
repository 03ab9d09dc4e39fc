//! The one way into the books: loads what a batch of requests touches, lets the core decide on each
//! in turn, and writes the result in bulk, inside a transaction of the caller's.
//!
//! The order of locks is the same everywhere: accounts (sorted), then everything that belongs to
//! them, which nobody touches without that lock. What is read after it is therefore the truth, and
//! stays so until the transaction ends.
//!
//! # Failure behavior
//!
//! An error leaves the transaction to be rolled back: nothing of the batch happened. What a limit
//! forbids is no error but an [`Outcome`].

use super::{
    balance::BalanceId,
    decide::{Decision, HoldState, Operation, decide},
    hold::HoldRow,
    idempotency::{KEPT_FOR, KnownKey},
    known::{Guess, Known},
    load::Working,
    request::{
        Action, Answer, HeldFor, Keyed, Limit, NewHold, OnLost, Outcome, Refusal, Request, Spending, Undone,
    },
    subject::Subject,
    write::{Last, Writes},
};
use crate::{
    clock::Time,
    id::{BatchId, HoldId},
    money::Nanos,
    store::{Db, StoreError, Tx, Value, binds},
};

/// What a batch came to: an outcome per request, in their order.
pub struct Applied {
    pub outcomes: Vec<Outcome>,
    /// Whether anything was written. If not, there is nothing to commit.
    pub wrote: bool,
    pub late: u64,
    pub overrun: u64,
    /// Whether what was known was the truth, where it was tried to book on that.
    pub guessed: Option<bool>,
}

/// Applies `requests`, none of which may have a name, in their order, inside `tx`.
pub async fn apply(tx: &mut Tx, requests: &[&Request]) -> Result<Applied, StoreError> {
    let mut working = Working::load(tx, requests).await?;
    let mut applied = working.decide_all(requests);
    applied.wrote = working.take_writes().write(tx).await?;
    Ok(applied)
}

/// How a batch failed.
pub(super) enum Failure {
    /// It may or may not have been committed.
    Unknown(Applied),
    /// It was not committed.
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Failure {
        Failure::Store(error)
    }
}

/// Applies `requests` in their order, in a transaction of their own. If anything is written, the `batch`'s id is as
/// well. What was found and left is `known` from then on.
pub(super) async fn commit(
    db: &Db,
    requests: &[&Request],
    known: &mut Known,
    batch: (&BatchId, Time),
) -> Result<Applied, Failure> {
    let guessed = match known.book(db, requests, batch).await {
        Guess::Made(booked) => return booked,
        Guess::NotMade => None,
        Guess::Wrong => Some(false),
    };
    let (mut tx, mut working) = Working::begin(db, requests, &mut known.limits).await?;
    let mut applied = Applied { guessed, ..working.decide_all(requests) };
    let last = working.take_writes().write_all_but_last(&mut tx, batch).await?;
    let writes = !matches!(last, Last::Nothing);
    match last.end(tx).await {
        Ok(wrote) => {
            known.learn(&working);
            applied.wrote = wrote;
            Ok(applied)
        }
        Err(StoreError::Unavailable(_)) if writes => Err(Failure::Unknown(applied)),
        Err(error) => Err(Failure::Store(error)),
    }
}

impl Working {
    pub(super) fn decide_all(&mut self, requests: &[&Request]) -> Applied {
        let outcomes = requests.iter().map(|request| self.decide(request)).collect();
        Applied {
            outcomes,
            wrote: false,
            late: self.writes.late,
            overrun: self.writes.overrun,
            guessed: None,
        }
    }

    fn decide(&mut self, request: &Request) -> Outcome {
        let Some(&suspended) = self.suspended.get(&request.account) else { return Outcome::NoAccount };
        if let Some(keyed) = request.action.keyed()
            && let Some(known) = self.keys.get(&(request.account.clone(), keyed.key.clone()))
        {
            return known.outcome_for(keyed);
        }
        match &request.action {
            Action::Probe(_) | Action::Charge { .. } | Action::Hold(_) if suspended => Outcome::Suspended,
            Action::Probe(spending) => {
                let legs = self.legs_of(request, spending);
                self.spend(request, spending, &Operation::Probe { legs })
            }
            Action::Charge { cast, spending, kept } => {
                let legs = self.legs_of(request, spending);
                let operation = Operation::Charge { reference: cast.to_string(), legs };
                let outcome = self.spend(request, spending, &operation);
                if outcome == Outcome::Done {
                    self.record_cast(request, cast.as_str(), spending, "COMPLETED");
                    if let Some((keyed, answer)) = kept {
                        self.keep_answer(request, keyed, None, Some(answer));
                    }
                }
                outcome
            }
            Action::Hold(hold) => {
                let legs = self.legs_of(request, &hold.spending);
                let operation = Operation::Hold { id: hold.id.clone(), legs, expires_at: hold.expires_at };
                let outcome = self.spend(request, &hold.spending, &operation);
                if outcome == Outcome::Done {
                    self.record_hold(request, hold);
                }
                outcome
            }
            Action::Post { hold, held_for, amount, answer } => {
                let operation = Operation::Post { id: hold.clone(), amount: amount.0 };
                let outcome = self.end_hold(request, hold, Some(*held_for), &operation);
                if let Outcome::Hold(ended) = &outcome
                    && *held_for == HeldFor::Cast
                {
                    let ended = ended.clone();
                    self.end_cast(request, &ended, "COMPLETED", *amount, None);
                    self.answer_key(hold, answer.as_ref());
                }
                outcome
            }
            Action::Void { hold, held_for, error_code, answer } => {
                // Our own cast says what became of it, however late: nothing else is to be charged then.
                let operation = Operation::Void { id: hold.clone(), late: *held_for == HeldFor::Cast };
                let mut outcome = self.end_hold(request, hold, Some(*held_for), &operation);
                if *held_for == HeldFor::Cast {
                    // Its hold may have expired meanwhile, which gave the money back just as well.
                    if let Outcome::EndedOtherwise(ended) = &outcome
                        && ended.state == HoldState::Expired
                    {
                        outcome = Outcome::Hold(ended.clone());
                    }
                    if let Outcome::Hold(ended) = &outcome {
                        let ended = ended.clone();
                        self.end_cast(request, &ended, "FAILED", Nanos::ZERO, *error_code);
                        self.answer_key(hold, answer.as_ref());
                    }
                }
                outcome
            }
            Action::Expire { hold, answer } => {
                let charge = self.holds.get(hold).is_some_and(|hold| hold.on_lost == OnLost::Charge);
                let operation = Operation::Expire { id: hold.clone(), charge };
                let outcome = self.end_hold(request, hold, None, &operation);
                if let Outcome::Hold(ended) = &outcome {
                    let ended = ended.clone();
                    let cost = if charge { ended.amount } else { Nanos::ZERO };
                    self.end_cast(request, &ended, "FAILED", cost, Some("lost"));
                    match charge {
                        true => self.answer_key(hold, Some(answer)),
                        // Nobody paid, so whoever asks again with the same key is served anew.
                        false => self.writes.keys_of_lost_holds.push([Value::from(hold.as_str())]),
                    }
                }
                outcome
            }
            Action::Extend { hold, held_for, expires_at } => {
                let operation = Operation::Extend { id: hold.clone(), expires_at: *expires_at };
                self.end_hold(request, hold, Some(*held_for), &operation)
            }
            Action::Undo(undone) => self.undo(request, undone),
            Action::Transfer(transfer) => self.transfer_once(request, transfer),
        }
    }

    fn undo(&mut self, request: &Request, undone: &Undone) -> Outcome {
        let (cast, outcome) = match undone {
            Undone::Charge { cast, spending } => {
                let legs = self.legs_of(request, spending);
                let operation = Operation::Reverse { reference: cast.to_string(), legs };
                (cast.as_str(), self.spend(request, spending, &operation))
            }
            Undone::Hold { id } => {
                // Only the sweeper pays for what was lost. Any other end was somebody's who found the hold in a
                // list, and was answered: it stands.
                let may_be_charged = self.holds.get(id).is_some_and(|hold| hold.on_lost == OnLost::Charge);
                let operation = match may_be_charged {
                    true => Operation::Unhold { id: id.clone() },
                    false => Operation::Void { id: id.clone(), late: true },
                };
                (id.as_str(), self.end_hold(request, id, None, &operation))
            }
            Undone::Transfer(transfer) => return self.take_back(request, transfer),
        };
        if matches!(outcome, Outcome::Done | Outcome::Hold(_)) {
            // For a hold that was no cast's this finds no row.
            self.writes.ended_casts.push(binds![cast, "FAILED", Nanos::ZERO, "unanswered", request.at]);
            if let Undone::Hold { id } = undone {
                self.writes.keys_of_undone_holds.push(binds![id]);
            }
        }
        outcome
    }

    /// Lets the core decide on something that spends.
    fn spend(&mut self, request: &Request, spending: &Spending, operation: &Operation) -> Outcome {
        match self.decide_operation(request.at, operation) {
            Decision::Applied | Decision::Repeated => Outcome::Done,
            Decision::Refused(full) => {
                self.refusal(&full, spending).map_or(Outcome::OutOfRange, Outcome::Refused)
            }
            _ => Outcome::OutOfRange,
        }
    }

    /// Why there is no room on the balance `full`, which only what has a limit can say.
    fn refusal(&self, full: &BalanceId, spending: &Spending) -> Option<Refusal> {
        let limit = match self.subjects.get(full)? {
            Subject::Window { budget, window } => {
                Limit::Budget { scope: budget.scope.clone(), period: budget.period, resets_at: window.end }
            }
            Subject::Credits { .. } => Limit::Credits,
            // The first has no limit, and the others nothing is spent from but by transfers.
            Subject::Spend { .. }
            | Subject::Tokens { .. }
            | Subject::Quota { .. }
            | Subject::Credited { .. } => return None,
        };
        let balance = self.books.balances.get(full)?;
        Some(Refusal {
            limit,
            granted: Nanos(balance.granted.unwrap_or_default()),
            spent: Nanos(balance.posted),
            reserved: Nanos(balance.pending),
            requested: spending.amount,
        })
    }

    /// Lets the core decide on a hold, if it is the account's and of the kind that is meant.
    fn end_hold(
        &mut self,
        request: &Request,
        id: &HoldId,
        held_for: Option<HeldFor>,
        operation: &Operation,
    ) -> Outcome {
        let meant = |hold: &&HoldRow| {
            hold.account == request.account && held_for.is_none_or(|held_for| held_for == hold.held_for)
        };
        let Some(mut hold) = self.holds.get(id).filter(meant).cloned() else { return Outcome::NoHold };
        match self.decide_operation(request.at, operation) {
            Decision::Applied => {
                if let Some(in_books) = self.books.holds.get(id) {
                    hold.state = in_books.state;
                    hold.expires_at = in_books.expires_at;
                }
                if hold.state != HoldState::Open {
                    hold.ended_at = Some(request.at);
                }
                if let HoldState::Posted { amount, late } = hold.state {
                    self.writes.late += u64::from(late);
                    self.writes.overrun += u64::from(amount > hold.amount.0);
                }
                self.changed_holds.insert(id.clone());
                self.holds.insert(id.clone(), hold.clone());
                Outcome::Hold(hold)
            }
            Decision::Repeated => Outcome::Hold(hold),
            Decision::EndedOtherwise(state) => Outcome::EndedOtherwise(HoldRow { state, ..hold }),
            Decision::Nothing => Outcome::NoHold,
            _ => Outcome::OutOfRange,
        }
    }

    pub(super) fn decide_operation(&mut self, at: Time, operation: &Operation) -> Decision {
        let mut entries = Vec::new();
        let decision = decide(&mut self.books, operation, at, &mut entries);
        for entry in &entries {
            self.writes.add_entry(entry, at);
        }
        decision
    }

    fn record_cast(&mut self, request: &Request, id: &str, spending: &Spending, status: &str) {
        let completed = status == "COMPLETED";
        self.writes.casts.push([
            Value::from(id),
            Value::from(request.account.as_str()),
            Value::from(spending.key.as_str()),
            Value::from(&spending.spell),
            Value::from(status),
            Value::from(if completed { spending.amount } else { Nanos::ZERO }),
            Value::from(request.at),
            Value::from(completed.then_some(request.at)),
        ]);
    }

    fn record_hold(&mut self, request: &Request, hold: &NewHold) {
        let row = HoldRow {
            id: hold.id.clone(),
            account: request.account.clone(),
            key: hold.spending.key.clone(),
            spell: hold.spending.spell.clone(),
            held_for: hold.held_for,
            amount: hold.spending.amount,
            began_at: request.at,
            expires_at: hold.expires_at,
            on_lost: hold.on_lost,
            from_credits: hold.spending.from_credits,
            state: HoldState::Open,
            ended_at: None,
        };
        self.holds.insert(hold.id.clone(), row);
        self.changed_holds.insert(hold.id.clone());
        if hold.held_for == HeldFor::Cast {
            self.record_cast(request, hold.id.as_str(), &hold.spending, "PENDING");
        }
        if let Some(keyed) = &hold.keyed {
            self.keep_answer(request, keyed, Some(&hold.id), hold.answer.as_ref());
        }
    }

    fn end_cast(
        &mut self,
        request: &Request,
        hold: &HoldRow,
        status: &str,
        cost: Nanos,
        error: Option<&str>,
    ) {
        if hold.held_for == HeldFor::Cast {
            self.writes.ended_casts.push([
                Value::from(hold.id.as_str()),
                Value::from(status),
                Value::from(cost),
                Value::from(error),
                Value::from(request.at),
            ]);
        }
    }

    /// Keeps the answer, or that there is none yet, under the request's idempotency key.
    fn keep_answer(
        &mut self,
        request: &Request,
        keyed: &Keyed,
        hold: Option<&HoldId>,
        answer: Option<&Answer>,
    ) {
        self.writes.keys.push([
            Value::from(request.account.as_str()),
            Value::from(&keyed.key),
            Value::from(&keyed.request_hash),
            Value::from(hold.map(HoldId::as_str)),
            Value::from(answer.map(|answer| i64::from(answer.status))),
            Value::from(answer.map(|answer| answer.body.as_str())),
            Value::from(request.at.plus(KEPT_FOR)),
        ]);
        let known = KnownKey { request_hash: keyed.request_hash.clone(), answer: answer.cloned() };
        self.keys.insert((request.account.clone(), keyed.key.clone()), known);
    }

    /// Keeps the answer of the request that waited for this hold, if it came with a key.
    fn answer_key(&mut self, hold: &HoldId, answer: Option<&Answer>) {
        if let Some(Answer { status, body }) = answer {
            let status = Value::from(i64::from(*status));
            self.writes.answered_keys.push([Value::from(hold.as_str()), status, Value::from(body)]);
        }
    }

    /// What changed.
    fn take_writes(&mut self) -> Writes {
        for (id, subject) in &self.subjects {
            let now = &self.books.balances[id];
            if *now != self.loaded[id] {
                self.writes.balances.push(subject.row(id, now));
            }
        }
        for id in &self.changed_holds {
            self.writes.put_hold(&self.holds[id]);
        }
        std::mem::take(&mut self.writes)
    }
}

impl Action {
    /// The idempotency key it came with.
    pub fn keyed(&self) -> Option<&Keyed> {
        match self {
            Action::Charge { kept, .. } => kept.as_ref().map(|(keyed, _)| keyed),
            Action::Hold(NewHold { keyed, .. }) => keyed.as_ref(),
            _ => None,
        }
    }
}
