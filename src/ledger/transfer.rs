//! Transfers within a batch: what an account has of credits, tokens and units, granted and taken.

use super::{
    balance::{BalanceId, Leg},
    decide::{Cap, Decision, Grant, Operation, Take},
    load::Working,
    reference::Seen,
    request::{
        Action, CapOver, Fund, GrantTo, Outcome, Record, Request, Short, Shortage, Standing, TakeFrom,
        Transfer,
    },
};
use crate::store::binds;

/// The cause of the line by which a plan's window begins.
const RESET: &str = "reset";

impl Transfer {
    /// Every fund that it names.
    pub(super) fn funds(&self) -> impl Iterator<Item = &Fund> {
        let taken = self.takes.iter().flat_map(|take| &take.from);
        let capped = self.caps.iter().flat_map(|cap| &cap.over);
        self.grants.iter().map(|grant| &grant.to).chain(taken).chain(capped).chain(&self.tell)
    }
}

impl Action {
    /// Whether it needs to know the account's plan.
    pub(super) fn asks_for_a_plan(&self) -> bool {
        match self {
            Action::Transfer(transfer) => transfer.funds().any(|fund| matches!(fund, Fund::Plan(_))),
            _ => false,
        }
    }
}

impl Working {
    /// Makes the transfer, unless what it is called was done before.
    pub(super) fn transfer_once(&mut self, request: &Request, transfer: &Transfer) -> Outcome {
        let Some(once) = &transfer.once else { return self.transfer(request, transfer) };
        match self.writes.references.seen(&request.account, once) {
            Seen::Repeated(standing) => Outcome::Repeated(standing),
            Seen::Reused => Outcome::NameReused,
            Seen::First => {
                let outcome = self.transfer(request, transfer);
                if let Outcome::Moved(standing) = &outcome {
                    self.writes.references.answer(&request.account, once, standing);
                }
                outcome
            }
        }
    }

    fn transfer(&mut self, request: &Request, transfer: &Transfer) -> Outcome {
        let Transfer { reference, grants, takes, caps, records, .. } = transfer;
        if !takes.is_empty() && self.suspended.get(&request.account) == Some(&true) {
            return Outcome::Suspended;
        }
        let mut granting: Vec<Grant> = grants.iter().filter_map(|to| self.granting(request, to, 1)).collect();
        let takes: Vec<Take> = takes.iter().map(|from| self.taking(request, from, 1)).collect();
        let opened: Vec<BalanceId> = takes.iter().flat_map(|take| take.from.clone()).collect();
        for id in &opened {
            if let Some(&units) = self.unopened.get(id) {
                granting.push(Grant { cause: RESET, leg: Leg { balance: id.clone(), amount: units } });
            }
        }
        let capped = |cap: &CapOver| Cap { over: self.ids_of(request, &cap.over), most: cap.most };
        let caps: Vec<Cap> = caps.iter().map(capped).collect();
        let operation = Operation::Transfer { reference: reference.clone(), grants: granting, takes, caps };
        match self.decide_operation(request.at, &operation) {
            Decision::Applied => {
                for id in &opened {
                    self.unopened.remove(id);
                }
                for record in records {
                    self.record(request, reference, record);
                }
                Outcome::Moved(self.standing(request, transfer))
            }
            Decision::Short(position) => {
                let from = &transfer.takes[position].from;
                let available =
                    from.iter().map(|fund| self.left_of(request, fund)).fold(0, i64::saturating_add);
                self.short(request, transfer, Short::Take { position, available })
            }
            Decision::Capped(position) => {
                let over = &transfer.caps[position].over;
                let held = over.iter().map(|fund| self.left_of(request, fund)).fold(0, i64::saturating_add);
                self.short(request, transfer, Short::Cap { position, held })
            }
            _ => Outcome::OutOfRange,
        }
    }

    /// Undoes a transfer that was made for somebody who had been told that nothing was.
    pub(super) fn take_back(&mut self, request: &Request, transfer: &Transfer) -> Outcome {
        let grants = transfer.grants.iter().filter_map(|to| self.granting(request, to, -1)).collect();
        let takes = transfer.takes.iter().map(|from| self.taking(request, from, -1)).collect();
        let reference = format!("{}/undone", transfer.reference);
        let operation = Operation::Transfer { reference, grants, takes, caps: Vec::new() };
        match self.decide_operation(request.at, &operation) {
            Decision::Applied => {
                self.writes.dropped_records.push(binds![&request.account, &transfer.reference]);
                Outcome::Moved(Standing::default())
            }
            decision => {
                let reference = &transfer.reference;
                tracing::error!(reference, ?decision, "what nobody was answered could not be taken back");
                Outcome::OutOfRange
            }
        }
    }

    fn granting(&self, request: &Request, grant: &GrantTo, sign: i64) -> Option<Grant> {
        let (balance, _) = self.fund(request, &grant.to)?;
        Some(Grant { cause: grant.cause, leg: Leg { balance, amount: grant.amount * sign } })
    }

    fn taking(&self, request: &Request, take: &TakeFrom, sign: i64) -> Take {
        let from = self.ids_of(request, &take.from);
        Take { cause: take.cause, from, amount: take.amount * sign }
    }

    fn ids_of(&self, request: &Request, funds: &[Fund]) -> Vec<BalanceId> {
        funds.iter().filter_map(|fund| self.fund(request, fund)).map(|(id, _)| id).collect()
    }

    /// What is left of a fund, not less than nothing; of a window that was not used yet, all of it.
    fn left_of(&self, request: &Request, fund: &Fund) -> i64 {
        let Some((id, _)) = self.fund(request, fund) else { return 0 };
        if let Some(&units) = self.unopened.get(&id) {
            return units;
        }
        let available = self.books.balances.get(&id).and_then(|balance| balance.available());
        // What does not fit is more than anybody can ask for.
        i64::try_from(available.unwrap_or(0).max(0)).unwrap_or(i64::MAX)
    }

    fn standing(&self, request: &Request, transfer: &Transfer) -> Standing {
        let asked = transfer.funds().any(|fund| matches!(fund, Fund::Plan(_)));
        Standing {
            plan: if asked { self.plan_standing(request) } else { None },
            left: transfer.tell.iter().map(|fund| (fund.clone(), self.left_of(request, fund))).collect(),
        }
    }

    fn short(&self, request: &Request, transfer: &Transfer, what: Short) -> Outcome {
        Outcome::Short(Shortage { what, standing: self.standing(request, transfer) })
    }

    fn record(&mut self, request: &Request, reference: &str, record: &Record) {
        let last = self.last_records.entry(request.account.clone()).or_default();
        *last += 1;
        let Record { kind, amount, model } = record;
        let id = *last;
        let row = binds![&request.account, id, *kind, *amount, model.clone(), reference, request.at];
        self.writes.records.push(row);
    }
}
