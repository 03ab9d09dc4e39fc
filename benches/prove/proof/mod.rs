//! One row of the proof: some twenty clients ask real processes for casts while something goes wrong,
//! and what they were told is compared with the books. `docs/proof.md` says what counts as what.
//!
//! All that the clients ask for, and what goes wrong, is drawn from the seed; how it is interleaved is
//! up to the machine.

mod audit;
mod books;
mod load;
mod row;
mod stage;
mod trouble;
mod world;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::SemaphorePermit;
use tokio_util::sync::CancellationToken;

pub use self::row::Row;
use self::row::Trouble;
use self::{
    audit::Findings,
    books::{End, Limit, Record, Scope},
    load::Load,
    stage::Stage,
    world::{ACCOUNTS, Dice, World},
};

/// How long the load of a row lasts.
const LASTS: Duration = Duration::from_secs(6);
/// When the last hold must have expired: an upstream's 0.4 s and the minute that its hold outlives it,
/// or an external hold's 3 s; and some slack for the machine.
const ALL_EXPIRED: Duration = Duration::from_secs(75);

/// What came of a row.
pub struct Played {
    pub casts: usize,
    /// With 200.
    pub answered: usize,
    /// With 402. What is neither failed at its upstream, or was never answered.
    pub refused: usize,
    /// What went wrong, in a few words.
    pub happened: String,
    pub findings: Findings,
}

/// Plays one row. The permit is given back once the load is over: waiting for holds to expire takes
/// nothing from the others.
pub async fn play(row: Row, seed: u64, casts: usize, permit: Option<SemaphorePermit<'_>>) -> Played {
    let mut dice = Dice(seed);
    let mut stage = Stage::set(row).await;
    let (world, mut limits) = World::make(row, &stage.servers[0], &stage.upstream, &mut dice, casts).await;
    if row.trouble == Trouble::Webhooks {
        limits.extend((0..ACCOUNTS).map(|account| Limit::new(account, Scope::Credits, "lifetime", 0)));
    }
    let (world, limits) = (Arc::new(world), Mutex::new(limits));
    let wanted = world.draw(row, &mut dice, casts);
    if let Some(edge) = stage.edge {
        tokio::time::sleep_until((edge - LASTS / 2).into()).await;
    }
    let doors = stage.doors();
    let load = Load { world: world.clone(), wanted, doors, began: Instant::now(), lasts: LASTS, seed };
    let (load, over) = (Arc::new(load), CancellationToken::new());
    let until_over = async {
        let records = load.run().await;
        over.cancel();
        records
    };
    let mut trouble_dice = Dice(seed.rotate_left(32));
    let making = trouble::make(row.trouble, &mut stage, &world, &limits, &mut trouble_dice, &over);
    let (mut records, happened) = tokio::join!(until_over, making);
    drop(permit);
    stage.calm_down().await;
    let mut held = until_nothing_is_held(&stage).await;
    load.ask_again(&mut records).await;
    held = held.max(until_nothing_is_held(&stage).await);
    let limits = limits.into_inner().unwrap();
    let mut findings = audit::audit(row, &stage, &world, &limits, &records, &mut dice).await;
    if held > 0 {
        findings.held += held as i64;
        findings.notes.push(format!("{held} holds were still open after {ALL_EXPIRED:?}"));
    }
    let count = |is: fn(&Record) -> bool| records.iter().filter(|record| is(record)).count();
    let casts = count(|record| record.spell.is_some());
    let answered = count(|record| matches!(record.end, End::Told { .. }));
    let refused = count(|record| record.spell.is_some() && matches!(record.end, End::Refused(_)));
    Played { casts, answered, refused, happened, findings }
}

/// How many holds are open once every hold must have expired.
async fn until_nothing_is_held(stage: &Stage) -> usize {
    let begun = Instant::now();
    loop {
        let open = stage.open_holds().await;
        if open == 0 || begun.elapsed() > ALL_EXPIRED {
            return open;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}
