//! What a lane knows of the books since its last batch, and how it books on that.
//!
//! Most batches only charge accounts on which nobody else books at the time. To lock those accounts, to read what
//! the lane itself wrote a millisecond ago, to write and to commit are several trips to the database. So such a
//! batch is decided on what the lane knows, and goes out as one statement that is a whole transaction: it
//! locks the accounts, and compares them, the versions of their limits and every balance that the batch touches
//! with what was known. If all of it is still so, the batch is written and committed. If anything differs, nothing
//! of it is, and the batch is loaded, decided and written as any other. What is known is never believed, only
//! guessed; a wrong guess costs a trip.
//!
//! # Failure behavior
//!
//! Who guesses wrong is likely to do so again: another replica books on the same account. So nothing is guessed
//! about an account until a batch that looked found what it looked at as this lane had left it. PostgreSQL writes
//! each wrong guess into its log, as a null in `batches.id`.

use std::collections::{BTreeSet, HashMap};

use super::{
    apply::{Applied, Failure},
    balance::{Balance, BalanceId},
    load::{Working, limits_version},
    request::Request,
    subject::Subject,
};
use crate::{
    budget,
    clock::Time,
    id::{AccountId, BatchId},
    plan,
    store::{Db, NotDone, Rows, StoreError, Value, binds, statements},
};

/// How many accounts and balances are kept in mind before all are forgotten.
const MAX_KNOWN: usize = 50_000;

statements! {
    // A batch without an id is refused, and with it everything that the others wrote. The last part is there for
    // PostgreSQL, which carries out first what that asks for: so the accounts are locked before anything else.
    BOOK_IF_UNCHANGED = concat!("
        UPDATE balances
        SET posted = CAST(given.value ->> 5 AS BIGINT), calls = CAST(given.value ->> 6 AS BIGINT)
        FROM {rows}
        WHERE balances.id = given.value ->> 0
          AND balances.granted IS NOT DISTINCT FROM CAST(given.value ->> 1 AS BIGINT)
          AND balances.posted = CAST(given.value ->> 2 AS BIGINT)
          AND balances.pending = CAST(given.value ->> 3 AS BIGINT)
          AND balances.calls = CAST(given.value ->> 4 AS BIGINT)
          AND CAST($5 AS BIGINT) = (
                SELECT COUNT(*) FROM (
                    SELECT accounts.id AS id, accounts.suspended AS suspended, ", limits_version!(), " AS version
                    FROM accounts WHERE accounts.id IN (SELECT given.value ->> 0 FROM {rows4})
                    ORDER BY accounts.id {for_update}) AS locked, {rows4}
                WHERE locked.id = given.value ->> 0 AND locked.version = given.value ->> 1
                  AND NOT locked.suspended)
        {counted}
        {and}
        INSERT INTO batches (id, created_at)
        SELECT CASE WHEN {count} = CAST($6 AS BIGINT) THEN CAST($7 AS TEXT) END, CAST($8 AS BIGINT)
        {and} ", super::write::add_entries!(), "
        {and} ", super::write::add_casts!(), "
        {and}
        SELECT {count}");
}

/// What a lane knows: it is right about it if nobody else has booked since.
#[derive(Default)]
pub(super) struct Known {
    pub limits: budget::Known,
    accounts: HashMap<AccountId, KnownAccount>,
    /// How many balances all of them have.
    balances: usize,
}

#[derive(Default)]
struct KnownAccount {
    /// Whether the last look found what it looked at as this lane had left it.
    alone: bool,
    /// As they are stored, where they are.
    balances: HashMap<BalanceId, Balance>,
}

impl Known {
    /// The account's balances, if it can be guessed that this lane alone books on it.
    pub fn balances_of(&self, account: &AccountId) -> Option<&HashMap<BalanceId, Balance>> {
        self.accounts.get(account).filter(|known| known.alone).map(|known| &known.balances)
    }

    /// Takes note of what a batch that was committed found, and left.
    pub fn learn(&mut self, working: &Working) {
        if self.accounts.len() + self.balances > MAX_KNOWN {
            (self.accounts, self.balances) = Default::default();
        }
        let looked_at: BTreeSet<&AccountId> = working.subjects.values().map(Subject::account).collect();
        for account in looked_at {
            let suspended = working.suspended.get(account).is_none_or(|suspended| *suspended);
            self.accounts.entry(account.clone()).or_default().alone = !suspended;
        }
        for (id, subject) in &working.subjects {
            let (found, left) = (&working.loaded[id], &working.books.balances[id]);
            let Some(known) = self.accounts.get_mut(subject.account()) else { continue };
            let found = as_stored(subject, found);
            known.alone &= known.balances.get(id).is_some_and(|known| *known == found);
            let left = as_stored(subject, left);
            let had = match working.unstored.contains(id) && found == left {
                true => known.balances.remove(id),
                false => {
                    self.balances += 1;
                    known.balances.insert(id.clone(), left)
                }
            };
            self.balances -= usize::from(had.is_some());
        }
    }

    fn forget<'a>(&mut self, accounts: impl Iterator<Item = &'a AccountId>) {
        for account in accounts {
            let known = self.accounts.remove(account);
            self.balances -= known.map_or(0, |known| known.balances.len());
        }
    }

    /// Books `requests` if all that they touch is known, and still so; with the `batch`'s id.
    pub async fn book(&mut self, db: &Db, requests: &[&Request], batch: (&BatchId, Time)) -> Guess {
        let Some((working, mut applied, values)) = self.guess(requests, batch) else { return Guess::NotMade };
        match db.transact(&BOOK_IF_UNCHANGED, values).await {
            Ok(()) => {
                (applied.wrote, applied.guessed) = (true, Some(true));
                self.learn(&working);
                Guess::Made(Ok(applied))
            }
            Err(NotDone::Perhaps) => {
                self.forget(working.suspended.keys());
                Guess::Made(Err(Failure::Unknown(applied)))
            }
            // Something differs, which a null in `batches` tells; or the data is at fault, of which whoever looks
            // will tell.
            Err(NotDone::Certainly(error @ StoreError::Refused(_))) => {
                if !error.to_string().contains("batches") {
                    tracing::warn!(%error, "a batch could not be booked in one trip");
                }
                self.forget(working.suspended.keys());
                Guess::Wrong
            }
            // No guess was wrong: to look would change nothing, and whoever waited too long meanwhile is to be left
            // out of the next try.
            Err(NotDone::Certainly(error)) => Guess::Made(Err(Failure::Store(error))),
        }
    }

    /// Decides on `requests` by what is known; gives that, and the values that book it.
    fn guess(
        &self,
        requests: &[&Request],
        (batch, at): (&BatchId, Time),
    ) -> Option<(Working, Applied, Vec<Value>)> {
        let mut working = Working::recall(requests, self)?;
        let applied = working.decide_all(requests);
        let changes = changes(&working)?;
        let mut versions = Rows::default();
        for account in working.suspended.keys() {
            versions.push(binds![account, self.limits.version_of(account)?]);
        }
        let (balances, accounts) = (working.subjects.len() as i64, working.suspended.len() as i64);
        let (entries, casts) = working.writes.take_plain()?;
        let values = binds![changes, entries, casts, versions, accounts, balances, batch, at];
        Some((working, applied, values))
    }
}

/// What came of booking on what is known.
pub(super) enum Guess {
    /// Too little is known. Nothing happened.
    NotMade,
    /// Something has changed since. Nothing happened.
    Wrong,
    Made(Result<Applied, Failure>),
}

/// Each balance that the batch touches, as it is known and as it is to be: also where that is the same, since what
/// was refused for it has to be true. `None`: nothing changes, and there is nothing to commit.
fn changes(working: &Working) -> Option<Rows> {
    let (mut rows, mut changes) = (Rows::default(), false);
    for (id, subject) in &working.subjects {
        let (found, left) = (as_stored(subject, &working.loaded[id]), &working.books.balances[id]);
        debug_assert_eq!(found.pending, left.pending, "a charge holds nothing");
        changes |= (found.posted, found.calls) != (left.posted, left.calls);
        let Balance { granted, posted, pending, calls, .. } = found;
        rows.push(binds![id.as_str(), granted, posted, pending, calls, left.posted, left.calls]);
    }
    changes.then_some(rows)
}

/// A window's limit is its budget's, and not stored with it.
fn as_stored(subject: &Subject, balance: &Balance) -> Balance {
    match subject {
        Subject::Window { .. } => Balance { granted: None, ..balance.clone() },
        _ => balance.clone(),
    }
}

#[cfg(test)]
mod tests;
