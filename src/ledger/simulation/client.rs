//! Who lives in a world: clients that ask, sweepers, an admin that changes limits, and those that kill
//! and start processes.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::time::sleep;

use super::{dice::Dice, world::World};
use crate::{
    budget::{self, Limits, Scope},
    clock::{Clock, Time},
    id::{AccountId, CastId, HoldId},
    ledger::{
        Action, Answer, CapOver, Fund, GrantTo, HeldFor, Keyed, NewHold, OnLost, Once, Record, Request,
        Spending, TakeFrom, Transfer, sweeper,
    },
    money::Nanos,
    window::Period,
};

pub const KEYS: [&str; 2] = ["key_a", "key_b"];
pub const SPELLS: [&str; 2] = ["echo", "draw"];
const MODEL: &str = "gemini-2.0-flash";
const ACTION: &str = "chat_tokens";
const DAY: i64 = 24 * 60 * 60 * 1_000;

/// A client asks, waits, and asks again.
pub async fn ask(world: Arc<World>, number: u64) {
    let mut dice = world.fork();
    for round in 0..world.temper.rounds {
        let pause = if dice.chance(100) { dice.ms(4_000) } else { dice.ms(200) };
        sleep(pause).await;
        let at_once = 1 + if dice.chance(400) { dice.roll(6) } else { 0 };
        let asks: Vec<_> = (0..at_once)
            .map(|n| {
                let place = dice.roll(world.temper.replicas as u64) as usize;
                let replica = world.replica(place);
                let at = world.now(place);
                let request = draw(&world, &mut dice, &format!("{number}_{round}_{n}"), at);
                let ends = matches!(request.action, Action::Post { .. } | Action::Void { .. });
                let settles = ends && dice.chance(700);
                let hangs_up = dice.chance(50).then(|| dice.ms(100));
                (replica, request, settles, hangs_up)
            })
            .collect();
        let asks = asks.into_iter().map(|(replica, request, settles, hangs_up)| {
            let world = world.clone();
            async move { drop(world.ask(&replica, request, settles, hangs_up).await) }
        });
        join_all(asks).await;
    }
}

fn draw(world: &World, dice: &mut Dice, name: &str, at: Time) -> Request {
    let account = AccountId::from(format!("acct_{}", dice.roll(world.temper.accounts)));
    let known = {
        let state = world.state();
        let holds = &state.promises.holds;
        (!holds.is_empty()).then(|| dice.pick(holds).clone())
    };
    if dice.chance(world.temper.plain) {
        let (cast, amount) = (CastId::from(format!("cast_{name}")), Nanos(dice.between(1, 3)));
        let (key, spell) = (KEYS[0].into(), SPELLS[0].to_owned());
        let spending = Spending { key, spell, amount, from_credits: false };
        return Request { account, at, action: Action::Charge { cast, spending, kept: None } };
    }
    match (dice.roll(100), known) {
        (0..3, _) => again(world, dice, at).unwrap_or_else(|| charge(dice, account, name, at)),
        (3..35, _) => charge(dice, account, name, at),
        (35..40, _) => Request { account, at, action: Action::Probe(spending(dice)) },
        (40..55, _) => hold(dice, account, name, at),
        (55..75, Some((account, hold, held_for))) => {
            Request { account, at, action: end(dice, hold, held_for, at) }
        }
        (55..75, None) => hold(dice, account, name, at),
        _ => transfer(dice, account, name, at),
    }
}

/// A cast under the id of another, which no books can hold twice.
fn again(world: &World, dice: &mut Dice, at: Time) -> Option<Request> {
    let state = world.state();
    let charges = state
        .promises
        .asked
        .iter()
        .filter(|asked| matches!(asked.request.action, Action::Charge { kept: None, .. }));
    let charges: Vec<&Request> = charges.map(|asked| &asked.request).collect();
    (!charges.is_empty()).then(|| Request { at, ..(*dice.pick(&charges)).clone() })
}

fn spending(dice: &mut Dice) -> Spending {
    Spending {
        key: (*dice.pick(&KEYS)).into(),
        spell: (*dice.pick(&SPELLS)).to_owned(),
        amount: Nanos(dice.between(0, 9)),
        from_credits: dice.chance(250),
    }
}

/// One of few keys, mostly with one content.
fn keyed(dice: &mut Dice) -> Keyed {
    let request_hash = if dice.chance(50) { "other" } else { "same" };
    Keyed { key: format!("k{}", dice.roll(4)), request_hash: request_hash.to_owned() }
}

fn charge(dice: &mut Dice, account: AccountId, name: &str, at: Time) -> Request {
    let cast = CastId::from(format!("cast_{name}"));
    let kept = dice.chance(400).then(|| (keyed(dice), Answer { status: 200, body: cast.to_string() }));
    Request { account, at, action: Action::Charge { cast, spending: spending(dice), kept } }
}

fn hold(dice: &mut Dice, account: AccountId, name: &str, at: Time) -> Request {
    let id = HoldId::from(format!("hold_{name}"));
    let held_for = if dice.chance(500) { HeldFor::Cast } else { HeldFor::External };
    let keyed = dice.chance(400).then(|| keyed(dice));
    // Of an external hold the answer is known at once.
    let answer = (held_for == HeldFor::External && keyed.is_some())
        .then(|| Answer { status: 201, body: id.to_string() });
    let action = Action::Hold(NewHold {
        id,
        held_for,
        spending: spending(dice),
        expires_at: Time(at.0 + dice.between(1, 60_000)),
        on_lost: if dice.chance(300) { OnLost::Charge } else { OnLost::Release },
        keyed,
        answer,
    });
    Request { account, at, action }
}

fn end(dice: &mut Dice, hold: HoldId, held_for: HeldFor, at: Time) -> Action {
    let answer = (held_for == HeldFor::Cast).then(|| Answer { status: 200, body: hold.to_string() });
    match dice.roll(11) {
        // As a sweeper would whose time is another.
        10 => Action::Expire { answer: lost(&hold), hold },
        0..5 => Action::Post { hold, held_for, amount: Nanos(dice.between(0, 10)), answer },
        5..8 => Action::Void { hold, held_for, error_code: Some("failed"), answer },
        _ => Action::Extend { hold, held_for, expires_at: Time(at.0 + dice.between(1, 90_000)) },
    }
}

fn transfer(dice: &mut Dice, account: AccountId, name: &str, at: Time) -> Request {
    let reference = format!("txn_{name}");
    let amount = dice.between(1, 9);
    let (credited, plan) = (Fund::Credited(ACTION.to_owned()), Fund::Plan(ACTION.to_owned()));
    let tokens = Fund::Tokens(MODEL.to_owned());
    let mut transfer = Transfer { reference, ..Transfer::default() };
    let kind = dice.roll(4);
    match kind {
        0 => {
            transfer.grants.push(GrantTo { cause: "credit", to: credited.clone(), amount });
            transfer.tell = vec![plan, credited];
        }
        1 => {
            let amount = amount * 3;
            let from = vec![plan.clone(), credited.clone()];
            transfer.takes.push(TakeFrom { cause: "debit", from, amount });
            transfer.tell = vec![plan, credited];
        }
        2 => {
            transfer.grants.push(GrantTo { cause: "allocated", to: tokens.clone(), amount });
            transfer.takes.push(TakeFrom { cause: "allocation", from: vec![Fund::Credits], amount });
            transfer.caps.push(CapOver { over: vec![tokens], most: 20 });
            let model = Some(MODEL.to_owned());
            transfer.records.push(Record { kind: "allocation", amount, model });
        }
        _ => {
            let from = vec![tokens.clone()];
            transfer.takes.push(TakeFrom { cause: "consumption", from, amount });
            let model = Some(MODEL.to_owned());
            transfer.records.push(Record { kind: "consumption", amount, model });
            transfer.tell = vec![tokens];
        }
    }
    if kind < 2 {
        let content = format!("{kind} {}", if dice.chance(50) { "other" } else { "same" });
        transfer.once = Some(Once { id: format!("ref_{}", dice.roll(8)), content });
    }
    Request { account, at, action: Action::Transfer(transfer) }
}

/// Ends what is due, from one place.
pub async fn sweep(world: Arc<World>, place: usize) {
    let mut dice = world.fork();
    loop {
        sleep(Duration::from_millis(500) + dice.ms(3_000)).await;
        let replica = world.replica(place);
        let clock = Clock::manual(world.now(place));
        tokio::select! {
            biased;
            () = replica.process.death() => {}
            swept = sweeper::sweep(&replica.db, &clock, &replica.ledger, lost) => drop(swept),
        }
    }
}

pub fn lost(hold: &HoldId) -> Answer {
    Answer { status: 502, body: hold.to_string() }
}

/// Changes limits through any place.
pub async fn administer(world: Arc<World>) {
    let mut dice = world.fork();
    loop {
        let place = dice.roll(world.temper.replicas as u64) as usize;
        let replica = world.replica(place);
        let account = AccountId::from(format!("acct_{}", dice.roll(world.temper.accounts)));
        let scope = match dice.roll(4) {
            0 | 1 => Scope::Account,
            2 => Scope::Key((*dice.pick(&KEYS)).into()),
            _ => Scope::Spell((*dice.pick(&SPELLS)).to_owned()),
        };
        let period = *dice.pick(&Period::ALL);
        let hard = dice.between(0, 200);
        let limits = Limits { soft: None, hard: Some(Nanos(hard)), notify_thresholds: vec![], locked: false };
        let deletes = dice.chance(250);
        let now = world.now(place);
        world.note(|| format!("{account} {scope} {period:?} is to be {hard}, or gone: {deletes}"));
        let changes = async {
            match deletes {
                true => {
                    let chosen = |budget: &budget::Budget| budget.scope == scope && budget.period == period;
                    budget::delete(&replica.db, &account, chosen, true).await
                }
                false => budget::put(&replica.db, &account, scope.clone(), period, limits, true, now).await,
            }
        };
        let changed = tokio::select! {
            biased;
            () = replica.process.death() => None,
            changed = changes => Some(changed.is_ok()),
        };
        world.note(|| format!("the limit was changed: {changed:?}"));
        sleep(dice.ms(1_500)).await;
    }
}

/// Starts a process anew at its place whenever it died.
pub async fn keep_running(world: Arc<World>, place: usize) {
    let mut dice = world.fork();
    loop {
        let replica = world.replica(place);
        replica.process.death().await;
        sleep(dice.ms(1_500)).await;
        world.start(place);
    }
}

/// What happens to everybody: processes are killed, the database goes away, clocks go wrong.
pub async fn trouble(world: Arc<World>) {
    let mut dice = world.fork();
    loop {
        sleep(dice.ms(1_500)).await;
        let place = dice.roll(world.temper.replicas as u64) as usize;
        if dice.chance(world.temper.deadly) {
            let replica = world.replica(place);
            world.note(|| format!("process {} is killed", replica.incarnation));
            replica.process.die();
        }
        if !world.temper.outages.is_zero() && dice.chance(150) {
            let from = dice.chance(500).then_some(place);
            world.go_away(from, world.temper.outages.mul_f64(0.2 * dice.between(1, 5) as f64));
        }
        if world.temper.skew > 0 && dice.chance(200) {
            world.shift(place, dice.between(-world.temper.skew, world.temper.skew));
        }
        if dice.chance(world.temper.jumps) {
            world.jump(*dice.pick(&[10_000, 70_000, 3_600_000, DAY / 2, DAY, 32 * DAY]));
        }
    }
}
