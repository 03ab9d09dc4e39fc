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
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BALANCES: [&str; 6] = ["spend", "tight", "wide", "prepaid", "spare", "bought"];
    const LIMITS: [Option<i64>; 6] = [None, Some(20), Some(50), Some(0), Some(0), Some(0)];
    const JOURNALED: [bool; 6] = [true, false, false, true, true, true];

    fn books() -> Books {
        let balances = BALANCES.iter().zip(LIMITS.into_iter().zip(JOURNALED));
        let balances = balances.map(|(id, (granted, journaled))| {
            (BalanceId::from((*id).to_owned()), Balance { granted, journaled, ..Balance::default() })
        });
        Books { balances: balances.collect(), holds: HashMap::new() }
    }

    fn balance(name: &str) -> BalanceId {
        BalanceId::from(name.to_owned())
    }

    fn granting(name: &str, amount: i64) -> Grant {
        Grant {
            cause: if amount < 0 { "refund" } else { "purchase" },
            leg: Leg { balance: balance(name), amount },
        }
    }

    fn grant(amount: i64) -> Operation {
        let grants = vec![granting("prepaid", amount)];
        Operation::Transfer { reference: "some".to_owned(), grants, takes: Vec::new(), caps: Vec::new() }
    }

    /// Takes from `prepaid`, then from `spare`; grants as much on `bought`, which may hold 25.
    fn convert(from: &[&str], amount: i64, granted: i64) -> Operation {
        Operation::Transfer {
            reference: "some".to_owned(),
            grants: vec![granting("bought", granted)],
            takes: vec![Take { cause: "debit", from: from.iter().map(|id| balance(id)).collect(), amount }],
            caps: vec![Cap { over: vec![balance("bought"), balance("spare")], most: 25 }],
        }
    }

    fn legs(mask: u8, amount: i64) -> Vec<Leg> {
        let spendable = BALANCES.iter().take(4).enumerate();
        let chosen = spendable.filter(|(at, _)| *at == 0 || mask & (1 << at) != 0);
        chosen.map(|(_, id)| Leg { balance: BalanceId::from((*id).to_owned()), amount }).collect()
    }

    fn hold_id(number: u8) -> HoldId {
        HoldId::from(format!("hold_{number}"))
    }

    fn operation() -> impl Strategy<Value = (Operation, i64)> {
        let id = (0u8..6).prop_map(hold_id);
        let operation = prop_oneof![
            (0u8..16, 0i64..9).prop_map(|(mask, amount)| Operation::Probe { legs: legs(mask, amount) }),
            (0u8..16, 0i64..9, any::<u32>()).prop_map(|(mask, amount, n)| Operation::Charge {
                reference: n.to_string(),
                legs: legs(mask, amount)
            }),
            (id.clone(), 0u8..16, 0i64..9, 1i64..60).prop_map(|(id, mask, amount, until)| {
                Operation::Hold { id, legs: legs(mask, amount), expires_at: Time(until) }
            }),
            (id.clone(), 0i64..12).prop_map(|(id, amount)| Operation::Post { id, amount }),
            (id.clone(), any::<bool>()).prop_map(|(id, late)| Operation::Void { id, late }),
            (id.clone(), any::<bool>()).prop_map(|(id, charge)| Operation::Expire { id, charge }),
            (-12i64..30).prop_map(grant),
            (prop::sample::subsequence(vec!["prepaid", "spare", "bought"], 0..=3), -4i64..12, -3i64..12)
                .prop_map(|(from, amount, granted)| {
                    let nobody_to_give_back_to = from.is_empty();
                    convert(&from, if nobody_to_give_back_to { amount.abs() } else { amount }, granted)
                }),
            (0i64..9).prop_map(|amount| Operation::Transfer {
                reference: "some".to_owned(),
                grants: vec![granting("spare", amount)],
                takes: Vec::new(),
                caps: Vec::new(),
            }),
            (id, 1i64..90).prop_map(|(id, until)| Operation::Extend { id, expires_at: Time(until) }),
        ];
        (operation, 0i64..3)
    }

    fn open_on(books: &Books, balance: &BalanceId) -> i64 {
        let open = books.holds.values().filter(|hold| hold.state == HoldState::Open);
        open.flat_map(|hold| &hold.legs).filter(|leg| leg.balance == *balance).map(|leg| leg.amount).sum()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        /// The promise, over any order of operations as time goes by: only what was settled for
        /// more than was held, or late, passes a limit; what is pending is what is held; what is
        /// posted is what the lines say; and a refusal, a repetition or an error changes nothing.
        #[test]
        fn no_order_of_operations_breaks_the_books(operations in prop::collection::vec(operation(), 1..60)) {
            let mut books = books();
            let mut entries = Vec::new();
            let mut now = 0;
            let mut excess: HashMap<BalanceId, i64> = HashMap::new();
            // What was taken back while it was spent or held already.
            let mut owed: HashMap<BalanceId, i64> = HashMap::new();
            for (operation, later) in operations {
                now += later;
                let before = books.clone();
                let lines = entries.len();
                let decision = decide(&mut books, &operation, Time(now), &mut entries);
                if decision != Decision::Applied || matches!(operation, Operation::Probe { .. }) {
                    prop_assert_eq!(&books.balances, &before.balances);
                    prop_assert_eq!(&books.holds, &before.holds);
                    prop_assert_eq!(entries.len(), lines);
                }
                if let (Operation::Post { id, amount }, Decision::Applied) = (&operation, &decision) {
                    let hold = &before.holds[id];
                    for leg in &hold.legs {
                        let held = if hold.state == HoldState::Open { leg.amount } else { 0 };
                        *excess.entry(leg.balance.clone()).or_default() += (amount - held).max(0);
                    }
                }
                if let Operation::Transfer { grants, takes, caps, .. } = &operation {
                    for Grant { leg, .. } in grants.iter().filter(|grant| grant.leg.amount < 0) {
                        let balance = &books.balances[&leg.balance];
                        let passed = balance.posted + balance.pending - balance.granted.unwrap();
                        let owed = owed.entry(leg.balance.clone()).or_default();
                        *owed = passed.max(*owed);
                    }
                    let available = |id: &BalanceId| books.balances[id].available().unwrap() as i64;
                    match &decision {
                        Decision::Applied => {
                            for cap in caps {
                                prop_assert!(cap.over.iter().map(available).sum::<i64>() <= cap.most);
                            }
                            for Take { from, amount, .. } in takes {
                                let moved = |id: &BalanceId| books.balances[id].posted - before.balances[id].posted;
                                prop_assert_eq!(from.iter().map(moved).sum::<i64>(), *amount);
                                // What a later one gave, an earlier one did not have.
                                for (n, id) in from.iter().enumerate() {
                                    let later = from[n + 1..].iter().any(|later| moved(later) > 0);
                                    prop_assert!(!later || available(id) <= 0, "{id} had some left");
                                }
                            }
                        }
                        Decision::Short(at) => {
                            let granted = |id: &BalanceId| {
                                let to = grants.iter().filter(|grant| grant.leg.balance == *id);
                                to.map(|grant| grant.leg.amount).sum::<i64>()
                            };
                            let had = takes[*at].from.iter().map(|id| (available(id) + granted(id)).max(0));
                            prop_assert!(had.sum::<i64>() < takes[*at].amount, "refused while there was enough");
                        }
                        Decision::Capped(_) => {}
                        other => prop_assert!(false, "{other:?}"),
                    }
                }
                if let Decision::Refused(full) = &decision {
                    let balance = &books.balances[full];
                    let (Operation::Charge { legs, .. }
                    | Operation::Hold { legs, .. }
                    | Operation::Probe { legs }) = &operation
                    else {
                        return Err(TestCaseError::fail("only spending is refused"));
                    };
                    prop_assert!(balance.posted + balance.pending + legs[0].amount > balance.granted.unwrap());
                }
                for (id, balance) in &books.balances {
                    prop_assert_eq!(balance.pending, open_on(&books, id));
                    if let Some(granted) = balance.granted {
                        let owed = owed.get(id).copied().unwrap_or(0);
                        let allowed = granted + excess.get(id).copied().unwrap_or(0) + owed;
                        prop_assert!(balance.posted + balance.pending <= allowed, "{id}: {balance:?}");
                    }
                    if balance.journaled {
                        let lines = || entries.iter().filter(|entry| entry.balance == *id);
                        let granted = lines().filter(|entry| cause::grants(entry.cause));
                        let posted = lines().filter(|entry| !cause::grants(entry.cause));
                        prop_assert_eq!(balance.posted, posted.map(|entry| entry.amount).sum::<i64>());
                        prop_assert_eq!(balance.granted.unwrap_or(0), granted.map(|entry| entry.amount).sum::<i64>());
                    }
                }
                for (id, hold) in &before.holds {
                    if !matches!(hold.state, HoldState::Open | HoldState::Expired) {
                        prop_assert_eq!(&books.holds[id].state, &hold.state, "an end is final");
                    }
                }
            }
        }
    }

    fn held(amount: i64, expires_at: i64) -> (Books, Vec<Entry>) {
        let (mut books, mut entries) = (books(), Vec::new());
        let hold = Operation::Hold { id: hold_id(1), legs: legs(7, amount), expires_at: Time(expires_at) };
        assert_eq!(decide(&mut books, &hold, Time(0), &mut entries), Decision::Applied);
        (books, entries)
    }

    #[test]
    fn a_hold_of_several_balances_takes_all_or_none() {
        let (mut books, mut entries) = held(15, 100);
        let second = Operation::Hold { id: hold_id(2), legs: legs(7, 6), expires_at: Time(100) };
        let tight = BalanceId::from("tight".to_owned());
        assert_eq!(decide(&mut books, &second, Time(1), &mut entries), Decision::Refused(tight));
        assert_eq!(books.balances[&BalanceId::from("wide".to_owned())].pending, 15);
    }

    #[test]
    fn a_settlement_after_expiry_is_booked_whole_and_marked() {
        for swept in [false, true] {
            let (mut books, mut entries) = held(5, 100);
            if swept {
                let expire = Operation::Expire { id: hold_id(1), charge: false };
                assert_eq!(decide(&mut books, &expire, Time(100), &mut entries), Decision::Applied);
            }
            let post = Operation::Post { id: hold_id(1), amount: 30 };
            assert_eq!(decide(&mut books, &post, Time(100), &mut entries), Decision::Applied);
            assert_eq!(books.holds[&hold_id(1)].state, HoldState::Posted { amount: 30, late: true });
            let tight = &books.balances[&BalanceId::from("tight".to_owned())];
            assert_eq!((tight.posted, tight.pending), (30, 0));
            assert!(!tight.has_room_for(1));
            assert!(tight.has_room_for(0), "what costs nothing always has room");
        }
    }

    #[test]
    fn a_total_that_does_not_fit_changes_nothing() {
        let (mut books, mut entries) = held(5, 100);
        let charge = Operation::Charge {
            reference: "a".to_owned(),
            legs: vec![Leg { amount: i64::MAX, ..legs(0, 0).remove(0) }],
        };
        assert_eq!(decide(&mut books, &charge, Time(0), &mut entries), Decision::Applied);
        let before = books.balances.clone();
        let post = Operation::Post { id: hold_id(1), amount: 5 };
        assert_eq!(decide(&mut books, &post, Time(1), &mut entries), Decision::OutOfRange);
        assert_eq!(books.balances, before);
    }

    #[test]
    fn what_was_lost_is_charged_only_if_the_spell_says_so() {
        for (charge, posted) in [(true, 5), (false, 0)] {
            let (mut books, mut entries) = held(5, 100);
            let expire = Operation::Expire { id: hold_id(1), charge };
            assert_eq!(decide(&mut books, &expire, Time(99), &mut entries), Decision::Nothing, "not due");
            assert_eq!(decide(&mut books, &expire, Time(100), &mut entries), Decision::Applied);
            let tight = &books.balances[&BalanceId::from("tight".to_owned())];
            assert_eq!((tight.posted, tight.pending), (posted, 0));
        }
    }

    #[test]
    fn what_is_taken_back_after_it_was_spent_is_owed() {
        let (mut books, mut entries) = (books(), Vec::new());
        let prepaid = BalanceId::from("prepaid".to_owned());
        let mut run = |operation: &Operation| decide(&mut books, operation, Time(0), &mut entries);
        let charge = |amount| Operation::Charge { reference: "cast".to_owned(), legs: legs(9, amount) };
        assert_eq!(run(&charge(1)), Decision::Refused(prepaid.clone()));
        assert_eq!(run(&grant(10)), Decision::Applied);
        assert_eq!(run(&charge(8)), Decision::Applied);
        assert_eq!(run(&grant(-10)), Decision::Applied);
        assert_eq!(run(&charge(1)), Decision::Refused(prepaid.clone()));
        assert_eq!(run(&charge(0)), Decision::Applied, "what costs nothing is no spending on credit");
        assert_eq!(run(&grant(8)), Decision::Applied);
        assert_eq!(run(&charge(1)), Decision::Refused(prepaid.clone()), "the debt came first");
        assert_eq!(run(&grant(1)), Decision::Applied);
        assert_eq!(run(&charge(1)), Decision::Applied);
        assert_eq!(run(&grant(i64::MAX)), Decision::OutOfRange);
    }

    #[test]
    fn a_transfer_takes_from_each_in_turn_and_all_or_nothing() {
        let (mut books, mut entries) = (books(), Vec::new());
        let mut run = |operation: &Operation| {
            let decision = decide(&mut books, operation, Time(0), &mut entries);
            let posted = |name| books.balances[&balance(name)].posted;
            (
                decision,
                posted("prepaid"),
                posted("spare"),
                books.balances[&balance("bought")].granted.unwrap(),
            )
        };
        run(&grant(10));
        let both = ["prepaid", "spare"];
        let fill = vec![granting("spare", 5)];
        let (reference, takes, caps) = ("fill".to_owned(), Vec::new(), Vec::new());
        run(&Operation::Transfer { reference, grants: fill, takes, caps });
        assert_eq!(run(&convert(&both, 16, 1)), (Decision::Short(0), 0, 0, 0));
        assert_eq!(
            run(&convert(&both, 12, 23)),
            (Decision::Capped(0), 0, 0, 0),
            "23 and the 3 that are left"
        );
        assert_eq!(run(&convert(&both, 12, 22)), (Decision::Applied, 10, 2, 22));
        assert_eq!(run(&convert(&both, 0, 0)), (Decision::Applied, 10, 2, 22));
        assert_eq!(run(&convert(&["spare"], -2, 0)), (Decision::Capped(0), 10, 2, 22), "27 would be there");
        assert_eq!(run(&convert(&["prepaid"], -2, 0)), (Decision::Applied, 8, 2, 22));
        assert_eq!(run(&convert(&[], 1, 0)), (Decision::Short(0), 8, 2, 22));
        assert_eq!(run(&convert(&both, 1, i64::MAX)), (Decision::OutOfRange, 8, 2, 22));
        let taken: i64 = entries.iter().filter(|line| line.cause == "debit").map(|line| line.amount).sum();
        assert_eq!(taken, 10);
    }

    #[test]
    fn a_reversal_takes_a_charge_back() {
        let (mut books, mut entries) = (books(), Vec::new());
        let reference = "cast_1".to_owned();
        for operation in [
            Operation::Charge { reference: reference.clone(), legs: legs(7, 4) },
            Operation::Reverse { reference, legs: legs(7, 4) },
        ] {
            assert_eq!(decide(&mut books, &operation, Time(0), &mut entries), Decision::Applied);
        }
        assert!(books.balances.values().all(|balance| balance.posted == 0 && balance.calls == 0));
        assert_eq!(entries.iter().map(|entry| entry.amount).sum::<i64>(), 0);
        assert_eq!(entries.len(), 2);
    }
}
