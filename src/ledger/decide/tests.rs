//! The rules, over any order of operations, and one by one.

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
        id.clone().prop_map(|id| Operation::Unhold { id }),
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
                let unheld = matches!(&operation, Operation::Unhold { id: unheld } if unheld == id);
                if !unheld && !matches!(hold.state, HoldState::Open | HoldState::Expired) {
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
        (decision, posted("prepaid"), posted("spare"), books.balances[&balance("bought")].granted.unwrap())
    };
    run(&grant(10));
    let both = ["prepaid", "spare"];
    let fill = vec![granting("spare", 5)];
    let (reference, takes, caps) = ("fill".to_owned(), Vec::new(), Vec::new());
    run(&Operation::Transfer { reference, grants: fill, takes, caps });
    assert_eq!(run(&convert(&both, 16, 1)), (Decision::Short(0), 0, 0, 0));
    assert_eq!(run(&convert(&both, 12, 23)), (Decision::Capped(0), 0, 0, 0), "23 and the 3 that are left");
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
