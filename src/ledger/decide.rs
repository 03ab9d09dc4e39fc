//! The functional core: what an operation does to the books. No clock, no database, no async; the
//! promise that nobody spends more than they may is kept here, and tested here to death.
//!
//! An operation applies to all balances it names or to none. A refusal is a value. Arithmetic is
//! checked: a total that would not fit is refused like one that has no room.

use std::collections::HashMap;

use super::{
    balance::{Balance, BalanceId, Leg},
    cause,
};
use crate::{clock::Time, id::HoldId};

/// What a batch of operations works on: the balances and holds they name, as loaded.
#[derive(Clone, Debug, Default)]
pub struct Books {
    pub balances: HashMap<BalanceId, Balance>,
    pub holds: HashMap<HoldId, Hold>,
}

/// Amounts set aside on one or several balances; it ends once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub legs: Vec<Leg>,
    pub expires_at: Time,
    pub state: HoldState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldState {
    Open,
    /// `late`: it was settled after it had expired.
    Posted {
        amount: i64,
        late: bool,
    },
    Voided,
    Expired,
}

#[derive(Clone, Debug)]
pub enum Operation {
    /// Asks whether there is room; changes nothing.
    Probe { legs: Vec<Leg> },
    /// Hold and post at once, for what runs in an instant.
    Charge { reference: String, legs: Vec<Leg> },
    /// Sets amounts aside.
    Hold { id: HoldId, legs: Vec<Leg>, expires_at: Time },
    /// Ends a hold by booking `amount` on each of its balances, whatever was held.
    Post { id: HoldId, amount: i64 },
    /// Ends a hold by giving everything back; `late` says whether also when it is due already.
    Void { id: HoldId, late: bool },
    /// Ends a hold that is due; `charge` books what was held, otherwise it is given back.
    Expire { id: HoldId, charge: bool },
    /// Moves an open hold's expiry.
    Extend { id: HoldId, expires_at: Time },
    /// Undoes a hold that was made but never answered, also if it was lost and paid for meanwhile.
    Unhold { id: HoldId },
    /// Undoes a charge that was booked but never answered.
    Reverse { reference: String, legs: Vec<Leg> },
    /// Grants on balances, then takes from balances, then sees that no group of them holds too much.
    Transfer { reference: String, grants: Vec<Grant>, takes: Vec<Take>, caps: Vec<Cap> },
}

/// Raises what is granted on a balance; a negative amount takes back, also what is spent already.
/// `available` then falls below nothing, and nothing has room until as much is granted again.
#[derive(Clone, Debug)]
pub struct Grant {
    pub cause: &'static str,
    pub leg: Leg,
}

/// Spends an amount from several balances in turn, from each as far as it goes; a negative amount gives
/// back what was spent from the first.
#[derive(Clone, Debug)]
pub struct Take {
    pub cause: &'static str,
    pub from: Vec<BalanceId>,
    pub amount: i64,
}

/// The most that may be available on some balances together.
#[derive(Clone, Debug)]
pub struct Cap {
    pub over: Vec<BalanceId>,
    pub most: i64,
}

/// What came of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Applied,
    /// The same end came before; nothing changed.
    Repeated,
    /// This balance has no room. Nothing changed.
    Refused(BalanceId),
    /// The transfer's take of this position finds too little. Nothing changed.
    Short(usize),
    /// The transfer's cap of this position would be passed. Nothing changed.
    Capped(usize),
    /// The hold had ended in another way. Nothing changed.
    EndedOtherwise(HoldState),
    /// There is no such hold, or (on expiry) it is not due. Nothing changed.
    Nothing,
    /// A total would not fit its integer. Nothing changed.
    OutOfRange,
}

/// One immutable line of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub reference: String,
    pub cause: &'static str,
    pub balance: BalanceId,
    pub amount: i64,
}

/// Applies `operation` to `books` as of `now`, adding its lines to `entries`.
///
/// Balances that an operation names must be in `books`; one that is missing counts as unbounded
/// and empty, which the shell never lets happen.
pub fn decide(books: &mut Books, operation: &Operation, now: Time, entries: &mut Vec<Entry>) -> Decision {
    match operation {
        Operation::Probe { legs } => without_room(books, legs).map_or(Decision::Applied, Decision::Refused),
        Operation::Charge { reference, legs } => {
            if let Some(full) = without_room(books, legs) {
                return Decision::Refused(full);
            }
            book(books, entries, reference, "charge", legs, 1)
        }
        Operation::Hold { id, legs, expires_at } => {
            if books.holds.contains_key(id) {
                return Decision::Repeated;
            }
            if let Some(full) = without_room(books, legs) {
                return Decision::Refused(full);
            }
            let Some(changed) = moved(books, legs, |balance, amount| {
                balance.pending = balance.pending.checked_add(amount)?;
                Some(())
            }) else {
                return Decision::OutOfRange;
            };
            books.balances.extend(changed);
            let hold = Hold { legs: legs.clone(), expires_at: *expires_at, state: HoldState::Open };
            books.holds.insert(id.clone(), hold);
            Decision::Applied
        }
        Operation::Post { id, amount } => {
            let Some(hold) = books.holds.get(id).cloned() else { return Decision::Nothing };
            match hold.state {
                HoldState::Open => {
                    let late = now >= hold.expires_at;
                    post(books, entries, id, hold, *amount, late, "post")
                }
                HoldState::Expired => post(books, entries, id, hold, *amount, true, "post"),
                HoldState::Posted { amount: booked, .. } if booked == *amount => Decision::Repeated,
                ended => Decision::EndedOtherwise(ended),
            }
        }
        Operation::Void { id, late } => {
            let Some(hold) = books.holds.get(id).cloned() else { return Decision::Nothing };
            match hold.state {
                HoldState::Open if now >= hold.expires_at && !late => {
                    Decision::EndedOtherwise(HoldState::Expired)
                }
                HoldState::Open => release(books, id, hold, HoldState::Voided),
                HoldState::Voided => Decision::Repeated,
                ended => Decision::EndedOtherwise(ended),
            }
        }
        Operation::Expire { id, charge } => {
            let due = |hold: &&Hold| hold.state == HoldState::Open && now >= hold.expires_at;
            let Some(hold) = books.holds.get(id).filter(due).cloned() else { return Decision::Nothing };
            match (charge, hold.legs.first().map(|leg| leg.amount)) {
                (true, Some(held)) => post(books, entries, id, hold, held, false, "lost"),
                _ => release(books, id, hold, HoldState::Expired),
            }
        }
        Operation::Extend { id, expires_at } => {
            let Some(hold) = books.holds.get_mut(id) else { return Decision::Nothing };
            match hold.state {
                HoldState::Open if now < hold.expires_at => {
                    hold.expires_at = *expires_at;
                    Decision::Applied
                }
                HoldState::Open => Decision::EndedOtherwise(HoldState::Expired),
                ended => Decision::EndedOtherwise(ended),
            }
        }
        Operation::Unhold { id } => {
            let Some(hold) = books.holds.get(id).cloned() else { return Decision::Nothing };
            match hold.state {
                HoldState::Open => release(books, id, hold, HoldState::Voided),
                HoldState::Posted { amount, .. } => {
                    let back = hold.legs.iter().map(|leg| Leg { amount: -amount, ..leg.clone() });
                    // What was lost was no call.
                    let decision =
                        book(books, entries, id.as_str(), "reversal", &back.collect::<Vec<_>>(), 0);
                    if decision == Decision::Applied {
                        books.holds.insert(id.clone(), Hold { state: HoldState::Voided, ..hold });
                    }
                    decision
                }
                HoldState::Voided => Decision::Repeated,
                HoldState::Expired => Decision::EndedOtherwise(HoldState::Expired),
            }
        }
        Operation::Reverse { reference, legs } => {
            let back: Vec<Leg> =
                legs.iter().map(|leg| Leg { balance: leg.balance.clone(), amount: -leg.amount }).collect();
            book(books, entries, reference, "reversal", &back, -1)
        }
        Operation::Transfer { reference, grants, takes, caps } => {
            let mut transfer = Scratch { books, reference, changed: HashMap::new(), lines: Vec::new() };
            match transfer.run(grants, takes, caps) {
                Err(decision) => decision,
                Ok(()) => {
                    let Scratch { changed, lines, .. } = transfer;
                    books.balances.extend(changed);
                    entries.extend(lines);
                    Decision::Applied
                }
            }
        }
    }
}

/// A transfer under way: what it changed so far, beside books that nothing changes in yet.
struct Scratch<'a> {
    books: &'a Books,
    reference: &'a str,
    changed: HashMap<BalanceId, Balance>,
    lines: Vec<Entry>,
}

impl Scratch<'_> {
    fn run(&mut self, grants: &[Grant], takes: &[Take], caps: &[Cap]) -> Result<(), Decision> {
        for Grant { cause, leg } in grants {
            debug_assert!(cause::grants(cause), "{cause} is not listed");
            let balance = self.balance(&leg.balance);
            let granted = balance.granted.unwrap_or(0).checked_add(leg.amount);
            balance.granted = Some(granted.ok_or(Decision::OutOfRange)?);
            self.note(cause, &leg.balance, leg.amount);
        }
        for (position, take) in takes.iter().enumerate() {
            self.take(take)?.then_some(()).ok_or(Decision::Short(position))?;
        }
        for (position, Cap { over, most }) in caps.iter().enumerate() {
            let held: i128 = over.iter().filter_map(|id| self.balance(id).available()).sum();
            if held > i128::from(*most) {
                return Err(Decision::Capped(position));
            }
        }
        Ok(())
    }

    /// Whether there was enough.
    fn take(&mut self, take: &Take) -> Result<bool, Decision> {
        let Take { cause, from, amount } = take;
        debug_assert!(cause::posts(cause), "{cause} is not listed");
        let mut left = *amount;
        for id in from {
            let balance = self.balance(id);
            let room = balance.available().map_or(left, |room| room.clamp(0, i128::from(left.max(0))) as i64);
            let part = if left < 0 { left } else { room };
            balance.posted = balance.posted.checked_add(part).ok_or(Decision::OutOfRange)?;
            self.note(cause, id, part);
            left -= part;
        }
        Ok(left == 0)
    }

    fn balance(&mut self, id: &BalanceId) -> &mut Balance {
        let books = self.books;
        self.changed.entry(id.clone()).or_insert_with(|| books.balances.get(id).cloned().unwrap_or_default())
    }

    /// Adds to the line of that cause and balance: a reference has one of each.
    fn note(&mut self, cause: &'static str, id: &BalanceId, amount: i64) {
        if amount == 0 || !self.balance(id).journaled {
            return;
        }
        let same = |line: &&mut Entry| line.cause == cause && line.balance == *id;
        match self.lines.iter_mut().find(same) {
            // What did not fit the balance's total has been refused before.
            Some(line) => line.amount = line.amount.saturating_add(amount),
            None => {
                let reference = self.reference.to_owned();
                self.lines.push(Entry { reference, cause, balance: id.clone(), amount });
            }
        }
    }
}

fn without_room(books: &Books, legs: &[Leg]) -> Option<BalanceId> {
    legs.iter()
        .find(|leg| books.balances.get(&leg.balance).is_some_and(|b| !b.has_room_for(leg.amount)))
        .map(|leg| leg.balance.clone())
}

/// The balances of `legs` after `change`, or `None` if one of them would overflow.
fn moved(
    books: &Books,
    legs: &[Leg],
    change: impl Fn(&mut Balance, i64) -> Option<()>,
) -> Option<Vec<(BalanceId, Balance)>> {
    legs.iter()
        .map(|leg| {
            let mut balance = books.balances.get(&leg.balance).cloned().unwrap_or_default();
            change(&mut balance, leg.amount)?;
            Some((leg.balance.clone(), balance))
        })
        .collect()
}

fn book(
    books: &mut Books,
    entries: &mut Vec<Entry>,
    reference: &str,
    cause: &'static str,
    legs: &[Leg],
    calls: i64,
) -> Decision {
    let Some(changed) = moved(books, legs, |balance, amount| {
        balance.posted = balance.posted.checked_add(amount)?;
        balance.calls = balance.calls.checked_add(calls)?;
        Some(())
    }) else {
        return Decision::OutOfRange;
    };
    add_lines(entries, reference, cause, &changed, legs);
    books.balances.extend(changed);
    Decision::Applied
}

fn add_lines(
    entries: &mut Vec<Entry>,
    reference: &str,
    cause: &'static str,
    changed: &[(BalanceId, Balance)],
    legs: &[Leg],
) {
    debug_assert!(cause::posts(cause), "{cause} is not listed");
    for ((id, balance), leg) in changed.iter().zip(legs) {
        if balance.journaled {
            let reference = reference.to_owned();
            entries.push(Entry { reference, cause, balance: id.clone(), amount: leg.amount });
        }
    }
}

fn post(
    books: &mut Books,
    entries: &mut Vec<Entry>,
    id: &HoldId,
    hold: Hold,
    amount: i64,
    late: bool,
    cause: &'static str,
) -> Decision {
    let before: Vec<_> = hold.legs.iter().map(|leg| leg.balance.clone()).collect();
    let kept: Vec<_> =
        before.iter().filter_map(|id| Some((id.clone(), books.balances.get(id)?.clone()))).collect();
    if hold.state == HoldState::Open {
        give_back(books, &hold.legs);
    }
    let legs: Vec<Leg> = before.into_iter().map(|balance| Leg { balance, amount }).collect();
    // What was lost was paid for, but nobody saw it completed.
    let calls = i64::from(cause != "lost");
    let decision = book(books, entries, id.as_str(), cause, &legs, calls);
    match decision {
        Decision::Applied => {
            let state = HoldState::Posted { amount, late };
            books.holds.insert(id.clone(), Hold { state, ..hold });
        }
        _ => books.balances.extend(kept),
    }
    decision
}

fn release(books: &mut Books, id: &HoldId, hold: Hold, state: HoldState) -> Decision {
    give_back(books, &hold.legs);
    books.holds.insert(id.clone(), Hold { state, ..hold });
    Decision::Applied
}

fn give_back(books: &mut Books, legs: &[Leg]) {
    for leg in legs {
        if let Some(balance) = books.balances.get_mut(&leg.balance) {
            balance.pending -= leg.amount;
            debug_assert!(balance.pending >= 0, "{} gives back more than it holds", leg.balance);
        }
    }
}

#[cfg(test)]
mod tests;
