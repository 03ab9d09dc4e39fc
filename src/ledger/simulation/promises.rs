//! What was asked and what was told: held against the books when it is told, and at each commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::books::Books;
use crate::ledger::{
    Action, Answer, HeldFor, HoldState, LedgerError, Limit, Outcome, Request, Short, Standing,
};

const PATIENCE: Duration = Duration::from_millis(2_800);
/// The patience of a caller, and what a timer is late by.
const ANSWER_WITHIN: Duration = Duration::from_millis(2_802);

/// What somebody who asked knows of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Not yet.
    Waits,
    /// It is done.
    Done,
    /// It is not done: refused, or a name that was taken.
    Not,
    /// That nothing was done, since the database is away.
    Unavailable,
    /// Nothing: the process died, or who asked hung up.
    Nothing,
}

pub struct Asked {
    pub request: Request,
    pub incarnation: usize,
    pub told: Told,
    /// When its caller's patience ends.
    pub patience_ends: Instant,
    /// How many sets of limits, and how many commits, there had been.
    limits_seen: usize,
    commits_seen: u64,
}

impl Asked {
    /// The name of what it does, if that is to be there once.
    pub fn effect(&self) -> Option<&str> {
        match &self.request.action {
            Action::Charge { cast, .. } => Some(cast.as_str()),
            Action::Hold(hold) => Some(hold.id.as_str()),
            Action::Transfer(transfer) => Some(&transfer.reference),
            _ => None,
        }
    }

    pub fn once(&self) -> Option<&crate::ledger::Once> {
        match &self.request.action {
            Action::Transfer(transfer) => transfer.once.as_ref(),
            _ => None,
        }
    }

    /// Whether its answer is kept, so that it stands even if its caller was told that nothing was done.
    pub fn is_kept(&self) -> bool {
        match &self.request.action {
            Action::Charge { kept, .. } => kept.is_some(),
            Action::Hold(hold) => hold.keyed.is_some() && hold.answer.is_some(),
            Action::Transfer(transfer) => transfer.once.is_some(),
            _ => true,
        }
    }

    fn may_still_happen(&self) -> bool {
        matches!(self.told, Told::Waits | Told::Unavailable | Told::Nothing)
    }
}

#[derive(Default)]
pub struct Promises {
    pub asked: Vec<Asked>,
    pub by_effect: BTreeMap<String, Vec<usize>>,
    /// The first answer under each name.
    standings: BTreeMap<String, Standing>,
    /// After which commit a hold was open no more.
    ended: BTreeMap<String, u64>,
    commits: u64,
    /// Every limit that was in force, by when: (account, scope, period, hard).
    limits: Vec<BTreeSet<(String, String, &'static str, i64)>>,
    /// The holds that somebody knows of.
    pub holds: Vec<(crate::id::AccountId, crate::id::HoldId, HeldFor)>,
}

impl Promises {
    pub fn ask(&mut self, request: Request, incarnation: usize) -> usize {
        let limits_seen = self.limits.len().saturating_sub(1);
        let patience_ends = Instant::now() + PATIENCE;
        let commits_seen = self.commits;
        let asked =
            Asked { request, incarnation, told: Told::Waits, patience_ends, limits_seen, commits_seen };
        if let Some(effect) = asked.effect() {
            self.by_effect.entry(effect.to_owned()).or_default().push(self.asked.len());
        }
        self.asked.push(asked);
        self.asked.len() - 1
    }

    fn asked_for(&self, effect: &str) -> impl Iterator<Item = &Asked> {
        self.by_effect.get(effect).into_iter().flatten().map(|number| &self.asked[*number])
    }

    /// Whatever is new in the books was asked for, and nobody was told that it is not done.
    pub fn allow(&mut self, before: &Books, after: &Books) -> Result<(), String> {
        self.commits += 1;
        for hold in after.holds.values().filter(|hold| hold.state != "open") {
            self.ended.entry(hold.id.clone()).or_insert(self.commits);
        }
        let limits = after
            .limits
            .iter()
            .map(|limit| (limit.account.clone(), limit.scope.to_string(), limit.period.as_str(), limit.hard));
        let limits: BTreeSet<_> = limits.collect();
        if self.limits.last() != Some(&limits) {
            self.limits.push(limits);
        }
        for ((reference, cause, _), amount) in after.new_lines(before) {
            let undoes = cause == "reversal" || reference.ends_with("/undone");
            let of = reference.strip_suffix("/undone").unwrap_or(reference);
            if after.holds.contains_key(of) || *amount == 0 {
                continue;
            }
            let allowed = match undoes {
                true => self.asked_for(of).any(|asked| asked.told != Told::Done && asked.told != Told::Not),
                false => self.asked_for(of).any(Asked::may_still_happen),
            };
            if !allowed {
                return Err(format!("a line that nobody waits for: {reference} {cause} {amount}"));
            }
        }
        for id in after.new_holds(before) {
            if !self.asked_for(id).any(Asked::may_still_happen) {
                return Err(format!("a hold that nobody waits for: {id}"));
            }
        }
        for (id, hold) in &after.holds {
            let was_voided = before.holds.get(id).is_some_and(|was| was.state == "voided");
            if !was_voided && hold.state == "voided" && !self.may_be_voided(id) {
                return Err(format!("{id} was voided, and nobody asked for that"));
            }
        }
        Ok(())
    }

    fn may_be_voided(&self, id: &str) -> bool {
        let voids = self
            .asked
            .iter()
            .any(|asked| matches!(&asked.request.action, Action::Void { hold, .. } if hold.as_str() == id));
        voids || self.asked_for(id).any(|asked| asked.told != Told::Done)
    }

    /// What an answer promises.
    pub fn hear(
        &mut self,
        number: usize,
        answer: &Result<Outcome, LedgerError>,
        took: Duration,
        books: &Books,
    ) -> Result<(), String> {
        if took > ANSWER_WITHIN {
            return Err(format!("it took {took:?}"));
        }
        let Asked { request, limits_seen, commits_seen, .. } = &self.asked[number];
        let (request, seen) = (request.clone(), (*limits_seen, *commits_seen));
        let told = match answer {
            Ok(outcome) => self.outcome(&request, seen, outcome, books)?,
            Err(LedgerError::Unavailable) => Told::Unavailable,
            Err(LedgerError::Busy) => Told::Not,
            // Here only a cast's id that came before is refused.
            Err(LedgerError::Refused) => {
                let twice =
                    self.asked[number].effect().is_some_and(|effect| self.by_effect[effect].len() > 1);
                if !twice {
                    return Err("the database refused it".to_owned());
                }
                Told::Not
            }
        };
        self.asked[number].told = told;
        Ok(())
    }

    fn outcome(
        &mut self,
        request: &Request,
        (limits_seen, commits_seen): (usize, u64),
        outcome: &Outcome,
        books: &Books,
    ) -> Result<Told, String> {
        let wrong = |what: &str| Err(format!("{what}: {outcome:?} of {request:?}"));
        match (&request.action, outcome) {
            (Action::Probe(_), Outcome::Done) => Ok(Told::Done),
            (Action::Charge { cast, spending, .. }, Outcome::Done) => {
                let spent = spending.amount.0 == 0 || books.has_line(cast.as_str(), "charge");
                let recorded = books.casts.get(cast.as_str());
                match spent && recorded == Some(&("COMPLETED".to_owned(), spending.amount.0)) {
                    true => Ok(Told::Done),
                    false => wrong("not in the books"),
                }
            }
            (Action::Hold(hold), Outcome::Done) => {
                if !books.holds.contains_key(hold.id.as_str()) {
                    return wrong("not in the books");
                }
                self.holds.push((request.account.clone(), hold.id.clone(), hold.held_for));
                Ok(Told::Done)
            }
            (
                Action::Post { hold, .. } | Action::Void { hold, .. } | Action::Extend { hold, .. },
                Outcome::Hold(told) | Outcome::EndedOtherwise(told),
            ) => {
                let Some(stored) = books.holds.get(hold.as_str()) else { return wrong("no such hold") };
                let agrees = match told.state {
                    HoldState::Open => true,
                    HoldState::Posted { amount, .. } => stored.posted == Some(amount),
                    HoldState::Voided => stored.state == "voided",
                    // By one's time it may be due, by another's not, who ends it otherwise.
                    HoldState::Expired => true,
                };
                let done = match (&request.action, outcome, told.state) {
                    (
                        Action::Post { amount, .. },
                        Outcome::Hold(_),
                        HoldState::Posted { amount: posted, .. },
                    ) => amount.0 == posted,
                    (Action::Void { held_for, .. }, Outcome::Hold(_), state) => {
                        state == HoldState::Voided
                            || (state == HoldState::Expired && *held_for == HeldFor::Cast)
                    }
                    (Action::Extend { expires_at, .. }, Outcome::Hold(_), state) => {
                        state == HoldState::Open && told.expires_at == *expires_at
                    }
                    (_, Outcome::EndedOtherwise(_), state) => state != HoldState::Open,
                    _ => false,
                };
                if agrees && done { Ok(Told::Done) } else { wrong("the books say otherwise") }
            }
            (_, Outcome::Refused(refusal)) => {
                if refusal.spent.0 + refusal.reserved.0 + refusal.requested.0 <= refusal.granted.0 {
                    return wrong("there was room");
                }
                if let Limit::Budget { scope, period, .. } = &refusal.limit {
                    let limit =
                        (request.account.to_string(), scope.to_string(), period.as_str(), refusal.granted.0);
                    if !self.limits[limits_seen..].iter().any(|limits| limits.contains(&limit)) {
                        return wrong("no such limit was in force");
                    }
                }
                Ok(Told::Not)
            }
            (_, Outcome::Replayed(answer)) => self.replayed(request, answer, books).map(|()| Told::Not),
            (_, Outcome::KeyReused) => {
                let keyed = request.action.keyed();
                let same = |asked: &Asked| {
                    let other = asked.request.action.keyed();
                    asked.request.account == request.account
                        && other.map(|keyed| &keyed.key) == keyed.map(|keyed| &keyed.key)
                        && other != keyed
                };
                if self.asked.iter().any(same) { Ok(Told::Not) } else { wrong("it had one content") }
            }
            (_, Outcome::InProgress) => {
                let runs = |asked: &Asked| {
                    let Action::Hold(hold) = &asked.request.action else { return false };
                    let ended = self.ended.get(hold.id.as_str());
                    asked.request.account == request.account
                        && hold.keyed.as_ref() == request.action.keyed()
                        && books.holds.contains_key(hold.id.as_str())
                        && ended.is_none_or(|ended| *ended > commits_seen)
                };
                if self.asked.iter().any(runs) { Ok(Told::Not) } else { wrong("nothing runs") }
            }
            (Action::Expire { .. }, Outcome::NoHold) => Ok(Told::Not),
            (Action::Expire { hold, .. }, Outcome::Hold(told)) => {
                let stored = books.holds.get(hold.as_str());
                match told.state != HoldState::Open && stored.is_some_and(|hold| hold.state != "open") {
                    true => Ok(Told::Done),
                    false => wrong("it did not end"),
                }
            }
            (Action::Transfer(transfer), Outcome::Moved(standing)) => {
                if !transfer.takes.is_empty() && !books.has_lines(&transfer.reference) {
                    return wrong("not in the books");
                }
                let once = transfer.once.clone();
                once.map_or(Ok(()), |once| self.stands(&once.id, standing)).map(|()| Told::Done)
            }
            (Action::Transfer(transfer), Outcome::Repeated(standing)) => {
                let Some(once) = transfer.once.clone() else { return wrong("it has no name") };
                self.stands(&once.id, standing).map(|()| Told::Not)
            }
            (Action::Transfer(transfer), Outcome::NameReused) => {
                let same = |asked: &&Asked| {
                    asked.once().map(|once| &once.id) == transfer.once.as_ref().map(|once| &once.id)
                };
                let other = |asked: &Asked| {
                    asked.once() != transfer.once.as_ref() || asked.request.account != request.account
                };
                match self.asked.iter().filter(same).any(other) {
                    true => Ok(Told::Not),
                    false => wrong("the name had one content"),
                }
            }
            (Action::Transfer(transfer), Outcome::Short(short)) => match short.what {
                Short::Take { position, available } if available < transfer.takes[position].amount => {
                    Ok(Told::Not)
                }
                Short::Cap { .. } => Ok(Told::Not),
                Short::Take { .. } => wrong("there was enough"),
            },
            _ => wrong("no answer to that"),
        }
    }

    /// The first answer under a name is the only one.
    fn stands(&mut self, name: &str, standing: &Standing) -> Result<(), String> {
        let first = self.standings.entry(name.to_owned()).or_insert_with(|| standing.clone());
        match first == standing {
            true => Ok(()),
            false => Err(format!("{name} was told {first:?}, and then {standing:?}")),
        }
    }

    /// An answer that was kept is of a request with the same key, which is in the books.
    fn replayed(&mut self, request: &Request, answer: &Answer, books: &Books) -> Result<(), String> {
        let keyed = request.action.keyed();
        let first = self
            .asked_for(&answer.body)
            .find(|asked| asked.request.account == request.account && asked.request.action.keyed() == keyed);
        let Some(first) = first else { return Err(format!("{answer:?} is no answer to {keyed:?}")) };
        let in_books = match &first.request.action {
            Action::Hold(hold) => books.holds.contains_key(hold.id.as_str()),
            _ => !books.has_line(&answer.body, "reversal") && books.casts.contains_key(&answer.body),
        };
        if let Action::Hold(hold) = &first.request.action
            && hold.answer.is_some()
        {
            let known = (request.account.clone(), hold.id.clone(), hold.held_for);
            self.holds.push(known);
        }
        if in_books { Ok(()) } else { Err(format!("{answer:?} is of nothing in the books")) }
    }
}
