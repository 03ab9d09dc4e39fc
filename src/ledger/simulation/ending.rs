//! How a schedule ends: nothing goes wrong any more, what was under way comes to rest, and then the
//! books have to agree with everything that was told.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::{
    books::LimitNow,
    client::{KEYS, SPELLS, lost},
    dice::Dice,
    world::{Replica, World},
};
use crate::{
    clock::Clock,
    id::{AccountId, CastId},
    ledger::{Action, Outcome, Request, Spending, audit::audit, sweeper},
    money::Nanos,
};

const DAY: i64 = 24 * 60 * 60 * 1_000;

pub async fn end(world: &Arc<World>) {
    let mut dice = world.fork();
    world.heal();
    // Longer than anything that is under way is kept up by.
    sleep(Duration::from_secs(30)).await;
    // Also who met its fate only now that nothing new goes wrong.
    for place in 0..world.temper.replicas {
        if world.replica(place).process.is_dead() {
            world.start(place);
        }
    }
    let replicas: Vec<Replica> = world.state().replicas.clone();
    let settled = {
        let state = world.state();
        let died = |incarnation| state.has_died(incarnation);
        state.promises.settled(&state.books, died)
    };
    world.hold(settled);
    for account in 0..world.temper.accounts {
        fill(world, &replicas, &format!("acct_{account}"), &mut dice, "now").await;
    }
    world.jump(40 * DAY);
    let sweeps = &replicas[0];
    let clock = Clock::manual(world.now(sweeps.place));
    let swept = sweeper::sweep(&sweeps.db, &clock, &sweeps.ledger, lost).await;
    world.hold(swept.map_err(|error| error.to_string()));
    let held = {
        let state = world.state();
        let held = state.books.balances.values().find(|balance| balance.pending != 0).cloned();
        let open = state.books.holds.values().find(|hold| hold.state == "open").cloned();
        match (held, open) {
            (None, None) => Ok(()),
            still => Err(format!("in the end something is held: {still:?}")),
        }
    };
    world.hold(held);
    fill(world, &replicas, "acct_0", &mut dice, "later").await;
    let report = audit(&world.observer).await.unwrap();
    world.hold(match report.drifts.is_empty() {
        true => Ok(()),
        false => Err(format!("the audit finds {:?}", report.drifts)),
    });
}

/// Spends all that limits leave room for, and not one more, wherever it is asked for.
async fn fill(world: &Arc<World>, replicas: &[Replica], account: &str, dice: &mut Dice, when: &str) {
    let (key, spell) = (*dice.pick(&KEYS), *dice.pick(&SPELLS));
    let at = world.now(0);
    let room = {
        let state = world.state();
        let covers = |limit: &&LimitNow| limit.account == account && limit.scope.covers(&key.into(), spell);
        let room = |limit: &LimitNow| {
            let taken = state.books.taken(limit);
            let (posted, pending) = taken.get(&limit.period.window(at).start.0).copied().unwrap_or_default();
            limit.hard - posted - pending
        };
        state.books.limits.iter().filter(covers).map(room).min()
    };
    world.note(|| format!("{account} {key} {spell} has room for {room:?}"));
    let charge = |amount: i64, name: String| Request {
        account: AccountId::from(account),
        at,
        action: Action::Charge {
            cast: CastId::from(format!("cast_{when}_{account}_{name}")),
            spending: Spending {
                key: key.into(),
                spell: spell.to_owned(),
                amount: Nanos(amount),
                from_credits: false,
            },
            kept: None,
        },
    };
    let fits = room.unwrap_or(1_000).max(0);
    let first = replicas.first().into_iter();
    let mut tries: Vec<(&Replica, Request, bool)> = Vec::new();
    for replica in replicas.iter().filter(|_| room.is_some()) {
        tries.push((replica, charge(fits + 1, format!("over_{}", replica.place)), false));
    }
    tries.extend(first.map(|replica| (replica, charge(fits, "all".to_owned()), true)));
    for replica in replicas {
        let one = charge(1, format!("one_{}", replica.place));
        tries.push((replica, one, room.is_none()));
    }
    for (replica, request, expected) in tries {
        let outcome = world.ask(replica, request, false, None).await;
        let as_expected = match &outcome {
            Some(Outcome::Done) => expected,
            Some(Outcome::Refused(_)) => !expected,
            _ => false,
        };
        if !as_expected {
            world.hold(Err(format!("with room for {room:?} replica {} told {outcome:?}", replica.place)));
        }
    }
}
