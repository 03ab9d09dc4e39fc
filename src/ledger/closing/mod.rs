//! Closing: old casts and holds leave the books together with their lines, and one line of each balance and day, a
//! closing, stands for all of its lines that left. So the books can grow for years, and still add up.
//!
//! What leaves is found by the casts and holds themselves, whose ids are in the order of time: a walk goes
//! through them from the oldest on, a few hundred at a time, and stops where none of those is old nor has an id of
//! that time: the clock of the process that made it may be behind. The lines are found by their reference, which is
//! the cast's or hold's id. No index by balance or by time is needed, which every cast would have to keep up.
//!
//! A cast leaves with its lines in one transaction, and only if they agree: what a closing stands for is what
//! the casts that left had cost, at any moment, which is how the audit goes on comparing a balance with its
//! casts. What does not agree stays, for the audit to name.
//!
//! A closing is written anew when more lines join it, by turns under two names, since the new one has to be there
//! before the one that it replaces may leave: see the trigger on `entries`. The day stands first in its name, so
//! that the closings of a day lie side by side: a walk through time writes to few pages then.
//!
//! Lines of purchases, wallets and quotas stay, as what was told of them does. So do balances: the spend per
//! day, key and spell is what usage is read from.
//!
//! # Failure behavior
//!
//! One transaction closes so many at most ([`AT_A_TIME`]), or nothing. It locks no account: lines are only added,
//! and whoever finds the one row locked that says that lines may leave ends their walk. What can't be closed, because
//! the closings that are there are not ours, is logged and stays; the walk goes on beyond it. A hold that is settled
//! late while it leaves is written anew, with the line that its settlement adds; a cast's own hold is not, since no
//! process runs a cast for as long as everything is kept. Walks may be stopped anywhere; the next one goes on.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    balance::BalanceId,
    cause::{CLOSING, can_be_closed, closable},
    decide::HoldState,
    hold::{HoldRow, StoredHold, hold_columns},
    request::HeldFor,
};
use crate::{
    clock::Time,
    id::{AccountId, KeyId},
    money::Nanos,
    store::{Db, Rows, StoreError, Tx, binds, statements},
};

/// How many casts or holds leave in one transaction at most.
pub const AT_A_TIME: usize = 500;

/// How often a transaction is tried when others are in the way.
const ATTEMPTS: u32 = 3;

/// The references that the closing of a day may have.
fn names(day: i64) -> [String; 2] {
    [0, 1].map(|turn| format!("closing/{day}/{turn}"))
}

fn day_of(line: &Line) -> i64 {
    line.created_at / (24 * 60 * 60 * 1_000)
}

statements! {
    OLDEST_CASTS = "SELECT id, created_at FROM casts WHERE id > $1 ORDER BY id LIMIT $2";
    // Those of casts leave with the casts.
    OLDEST_HOLDS = "SELECT id, began_at FROM holds WHERE id > $1 AND held_for = 'external' ORDER BY id LIMIT $2";
    // First of all: whoever else closes goes away, or on SQLite waits.
    TAKE_TURN = "SELECT closing FROM retention WHERE name = 'entries' {for_update_or_skip}";
    // It lets the lines leave.
    BEGIN_CLOSING = "
        UPDATE retention
        SET closing = true, closed_before = CASE WHEN closed_before < $1 THEN $1 ELSE closed_before END
        WHERE name = 'entries'";
    END_CLOSING = "UPDATE retention SET closing = false WHERE name = 'entries'";
    ENDED_CASTS = "
        SELECT id, account_id, key_id, spell, cost, created_at FROM casts
        WHERE id IN (SELECT given.value ->> 0 FROM {rows})
          AND status <> 'PENDING' AND created_at < $2 AND finished_at < $2
        ORDER BY id {for_update}";
    HOLDS = concat!("SELECT ", hold_columns!(), " FROM holds
        WHERE id IN (SELECT given.value ->> 0 FROM {rows}) ORDER BY id {for_update}");
    LINES = "
        SELECT reference, cause, balance_id, amount, created_at FROM entries
        WHERE reference IN (SELECT given.value ->> 0 FROM {rows})";
    LAST_CLOSINGS = "
        SELECT reference, cause, balance_id, amount, created_at
        FROM {rows} JOIN entries ON reference = given.value ->> 0 AND cause = given.value ->> 1
            AND balance_id = given.value ->> 2";
    ADD_CLOSINGS = "
        INSERT INTO entries (reference, cause, balance_id, amount, created_at)
        SELECT given.value ->> 0, 'closing', given.value ->> 1, CAST(given.value ->> 2 AS BIGINT),
               CAST(given.value ->> 3 AS BIGINT)
        FROM {rows}";
    REMOVE_LINES = "
        DELETE FROM entries WHERE (reference, cause, balance_id) IN
            (SELECT given.value ->> 0, given.value ->> 1, given.value ->> 2 FROM {rows})";
    REMOVE_CASTS = "DELETE FROM casts WHERE id IN (SELECT given.value ->> 0 FROM {rows})";
    REMOVE_HOLDS = "DELETE FROM holds WHERE id IN (SELECT given.value ->> 0 FROM {rows})";
    CASTS_THERE = "
        SELECT CAST(COUNT(*) AS BIGINT) FROM casts WHERE id IN (SELECT given.value ->> 0 FROM {rows})";
    HOLDS_THERE = "
        SELECT CAST(COUNT(*) AS BIGINT) FROM holds WHERE id IN (SELECT given.value ->> 0 FROM {rows})";
    COUNT_CASTS = "
        SELECT CAST(COUNT(*) AS BIGINT) FROM casts
        WHERE status <> 'PENDING' AND created_at < $1 AND finished_at < $1";
    COUNT_HOLDS = "
        SELECT CAST(COUNT(*) AS BIGINT) FROM holds WHERE state <> 'open' AND began_at < $1 AND ended_at < $1";
    COUNT_LINES = concat!("
        SELECT CAST(COUNT(*) AS BIGINT) FROM entries WHERE created_at < $1 AND cause IN ", closable!());
}

/// What a walk goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Casts,
    /// Those for code that runs elsewhere.
    Holds,
}

/// How much left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Left {
    pub casts: u64,
    pub holds: u64,
    /// Lines that closings stand for now.
    pub entries: u64,
}

/// What a step of a walk came to.
#[derive(Debug, Default)]
pub struct Step {
    pub left: Left,
    /// How many are old and stay: they have not ended for so long, or do not agree with their lines.
    pub stay: u64,
    /// For how long it kept others from writing: without the time that it waited itself.
    pub worked: Duration,
    /// Where the next step begins. `None`: nothing beyond is old.
    pub next: Option<String>,
}

#[derive(Clone, Debug, sqlx::FromRow)]
struct Line {
    reference: String,
    cause: String,
    balance_id: String,
    amount: i64,
    created_at: i64,
}

#[derive(sqlx::FromRow)]
struct EndedCast {
    id: String,
    account_id: String,
    key_id: String,
    spell: String,
    cost: i64,
    created_at: i64,
}

/// A cast or a hold that has ended, and what its lines have to come to.
struct Ended {
    account: AccountId,
    spend: BalanceId,
    cost: Nanos,
}

/// Lets what is older than `before` leave, of the next [`AT_A_TIME`] beyond `after`: `most` of it. `None`: another
/// walk is at it.
pub async fn step(
    db: &Db,
    of: Of,
    after: &str,
    before: Time,
    most: usize,
) -> Result<Option<Step>, StoreError> {
    let (oldest, prefix) = match of {
        Of::Casts => (&OLDEST_CASTS, "cast"),
        Of::Holds => (&OLDEST_HOLDS, "hold"),
    };
    let page: Vec<(String, i64)> = db.all(oldest, binds![after, AT_A_TIME as i64]).await?;
    let mut old: Vec<&str> =
        page.iter().filter(|(_, at)| *at < before.0).map(|(id, _)| id.as_str()).collect();
    let last = page.last().filter(|_| page.len() == AT_A_TIME).map(|(id, _)| id.as_str());
    if old.is_empty() {
        let line = format!("{prefix}_{:012x}", before.0.max(0));
        let next = last.filter(|last| *last < line.as_str()).map(str::to_owned);
        return Ok(Some(Step { next, ..Step::default() }));
    }
    let next = match old.len() > most {
        true => {
            old.truncate(most);
            old.last().copied()
        }
        false => last,
    };
    let next = next.map(str::to_owned);
    let mut attempt = 1;
    // `despite_conflicts` can't be sent to another thread, as a task in the background must be.
    loop {
        match close(db, of, &old, before).await {
            Err(StoreError::Conflict(_)) if attempt < ATTEMPTS => attempt += 1,
            Err(StoreError::Refused(why)) => {
                tracing::error!(
                    ?of,
                    first = old.first(),
                    last = old.last(),
                    why,
                    "casts or holds can't leave"
                );
                return Ok(Some(Step { stay: old.len() as u64, next, ..Step::default() }));
            }
            done => return Ok(done?.map(|step| Step { next, ..step })),
        }
    }
}

/// Lets those of `ids` leave that can, in one transaction. `None`: another is at it.
async fn close(db: &Db, of: Of, ids: &[&str], before: Time) -> Result<Option<Step>, StoreError> {
    let _turn = db.turn().await;
    let mut tx = db.begin().await?;
    let turn: Option<(bool,)> = tx.optional(&TAKE_TURN, vec![]).await?;
    if turn.is_none() {
        return tx.rollback().await.map(|()| None);
    }
    let begun = Instant::now();
    let closed = close_and_count(&mut tx, of, ids, before).await;
    match &closed {
        Ok((left, _)) if *left != Left::default() => tx.commit().await?,
        // To the end, also after a failure: the next step is to find the row free.
        _ => tx.rollback().await?,
    }
    closed.map(|(left, stay)| Some(Step { left, stay, worked: begun.elapsed(), next: None }))
}

/// As [`close_in`]; gives as well how many of `ids` are still there.
async fn close_and_count(tx: &mut Tx, of: Of, ids: &[&str], before: Time) -> Result<(Left, u64), StoreError> {
    let left = close_in(tx, of, ids, before).await?;
    let (gone, there) = match of {
        Of::Casts => (left.casts, &CASTS_THERE),
        Of::Holds => (left.holds, &HOLDS_THERE),
    };
    if gone == ids.len() as u64 {
        return Ok((left, 0));
    }
    let (stay,): (i64,) = tx.one(there, binds![Rows::of(ids)]).await?;
    Ok((left, u64::try_from(stay).unwrap_or(0)))
}

async fn close_in(tx: &mut Tx, of: Of, ids: &[&str], before: Time) -> Result<Left, StoreError> {
    tx.execute(&BEGIN_CLOSING, binds![before]).await?;
    let mut ended = match of {
        Of::Casts => ended_casts(tx, ids, before).await?,
        Of::Holds => HashMap::new(),
    };
    let holds = ended_holds(tx, of, ids, before, &mut ended).await?;
    let lines: Vec<Line> = tx.all(&LINES, binds![Rows::of(ended.keys())]).await?;
    let mut lines_of: HashMap<&str, Vec<&Line>> = HashMap::new();
    for line in &lines {
        lines_of.entry(&line.reference).or_default().push(line);
    }
    ended.retain(|id, ended| agree(ended, lines_of.get(id.as_str()).map_or(&[], Vec::as_slice), before));
    let leave: Vec<&Line> = lines.iter().filter(|line| ended.contains_key(&line.reference)).collect();
    replace(tx, &leave).await?;
    let holds: Vec<&String> = holds.iter().filter(|id| ended.contains_key(*id)).collect();
    let mut left = Left { entries: leave.len() as u64, ..Left::default() };
    if of == Of::Casts && !ended.is_empty() {
        left.casts = tx.execute(&REMOVE_CASTS, binds![Rows::of(ended.keys())]).await?;
    }
    if !holds.is_empty() {
        left.holds = tx.execute(&REMOVE_HOLDS, binds![Rows::of(holds)]).await?;
    }
    tx.execute(&END_CLOSING, vec![]).await?;
    Ok(left)
}

/// Those of the casts that ended before `before`, locked.
async fn ended_casts(tx: &mut Tx, ids: &[&str], before: Time) -> Result<HashMap<String, Ended>, StoreError> {
    let casts: Vec<EndedCast> = tx.all(&ENDED_CASTS, binds![Rows::of(ids), before]).await?;
    let ended = casts.into_iter().map(|cast| {
        let (account, key) = (AccountId::from(cast.account_id), KeyId::from(cast.key_id));
        let spend = BalanceId::spend(&account, &key, &cast.spell, Time(cast.created_at));
        (cast.id, Ended { account, spend, cost: Nanos(cast.cost) })
    });
    Ok(ended.collect())
}

/// The ids of the holds among `ids`, locked. Those that ended before `before` are added to `ended`; a cast whose
/// hold did not is taken out of it.
async fn ended_holds(
    tx: &mut Tx,
    of: Of,
    ids: &[&str],
    before: Time,
    ended: &mut HashMap<String, Ended>,
) -> Result<Vec<String>, StoreError> {
    let holds: Vec<StoredHold> = tx.all(&HOLDS, binds![Rows::of(ids)]).await?;
    let holds: Vec<HoldRow> = holds.into_iter().map(HoldRow::from).collect();
    for hold in &holds {
        let is_old = hold.state != HoldState::Open
            && hold.began_at < before
            && hold.ended_at.is_some_and(|at| at < before);
        match (of, is_old) {
            (Of::Casts, true) => {}
            (Of::Casts, false) => drop(ended.remove(hold.id.as_str())),
            (Of::Holds, true) if hold.held_for == HeldFor::External => {
                let cost = match hold.state {
                    HoldState::Posted { amount, .. } => Nanos(amount),
                    _ => Nanos::ZERO,
                };
                let spend = BalanceId::spend(&hold.account, &hold.key, &hold.spell, hold.began_at);
                ended.insert(hold.id.to_string(), Ended { account: hold.account.clone(), spend, cost });
            }
            (Of::Holds, _) => {}
        }
    }
    Ok(holds.into_iter().map(|hold| hold.id.to_string()).collect())
}

/// Whether the lines of what has ended say what it cost, and may leave.
fn agree(ended: &Ended, lines: &[&Line], before: Time) -> bool {
    let credits = BalanceId::credits(&ended.account);
    let of = |line: &&&Line| line.balance_id == ended.spend.as_str();
    let spent: i128 = lines.iter().filter(of).map(|line| i128::from(line.amount)).sum();
    let may_leave = |line: &&Line| {
        can_be_closed(&line.cause)
            && line.created_at < before.0
            && [ended.spend.as_str(), credits.as_str()].contains(&line.balance_id.as_str())
    };
    spent == i128::from(ended.cost.0) && lines.iter().all(may_leave)
}

/// Lets the lines leave, and one of each day and balance stand for them.
async fn replace(tx: &mut Tx, lines: &[&Line]) -> Result<(), StoreError> {
    if lines.is_empty() {
        return Ok(());
    }
    // What each closing comes to, and the time of the last line that it stands for.
    let mut closings: BTreeMap<(i64, &str), (i128, i64)> = BTreeMap::new();
    for line in lines {
        let closing = closings.entry((day_of(line), &line.balance_id));
        let (sum, until) = closing.or_insert((0, line.created_at));
        *sum += i128::from(line.amount);
        *until = line.created_at.max(*until);
    }
    let mut asked = Rows::default();
    for (day, balance) in closings.keys() {
        for name in names(*day) {
            asked.push(binds![name, CLOSING, *balance]);
        }
    }
    let last: Vec<Line> = tx.all(&LAST_CLOSINGS, binds![asked]).await?;
    let mut name_of: HashMap<(i64, &str), &str> = HashMap::new();
    for closing in &last {
        let of = (day_of(closing), closing.balance_id.as_str());
        if let Some((sum, until)) = closings.get_mut(&of) {
            *sum += i128::from(closing.amount);
            *until = closing.created_at.max(*until);
        }
        if name_of.insert(of, &closing.reference).is_some() {
            // No transaction of ours leaves that behind. An audit names it as well.
            return Err(StoreError::Refused(format!("{} has two closings of a day", closing.balance_id)));
        }
    }
    let mut added = Rows::default();
    for ((day, balance), (sum, until)) in closings {
        let sum = i64::try_from(sum);
        let sum =
            sum.map_err(|_| StoreError::Refused(format!("the closing of {balance} is out of range")))?;
        let [first, second] = names(day);
        let name = if name_of.get(&(day, balance)) == Some(&first.as_str()) { second } else { first };
        added.push(binds![name, balance, sum, until]);
    }
    let mut removed = Rows::default();
    for Line { reference, cause, balance_id, .. } in lines.iter().copied().chain(&last) {
        removed.push(binds![reference, cause, balance_id]);
    }
    debug_assert!(last.iter().all(|closing| closing.cause == CLOSING));
    tx.execute(&ADD_CLOSINGS, binds![added]).await?;
    let gone = tx.execute(&REMOVE_LINES, binds![removed]).await?;
    match gone as usize == lines.len() + last.len() {
        true => Ok(()),
        // It has seen the lines in this very transaction, and nobody else may remove any.
        false => Err(StoreError::Conflict("lines left that were being closed".to_owned())),
    }
}

/// How much would leave at most: what does not agree stays. In a long read, since it goes through all of it.
pub async fn count(tx: &mut Tx, before: Time) -> Result<Left, StoreError> {
    let (casts,): (i64,) = tx.one(&COUNT_CASTS, binds![before]).await?;
    let (holds,): (i64,) = tx.one(&COUNT_HOLDS, binds![before]).await?;
    let (entries,): (i64,) = tx.one(&COUNT_LINES, binds![before]).await?;
    let [casts, holds, entries] = [casts, holds, entries].map(|count| u64::try_from(count).unwrap_or(0));
    Ok(Left { casts, holds, entries })
}
