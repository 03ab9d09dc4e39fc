//! Writes a decided batch back: one statement a table, however large the batch.

use super::{
    decide::Entry,
    hold::HoldRow,
    reference::References,
    request::{HeldFor, OnLost},
};
use crate::{
    clock::Time,
    id::BatchId,
    store::{Rows, Statement, StoreError, Tx, Value, binds, statements},
};

macro_rules! add_entries {
    () => {
        "
        INSERT INTO entries (reference, cause, balance_id, amount, created_at)
        SELECT given.value ->> 0, given.value ->> 1, given.value ->> 2,
               CAST(given.value ->> 3 AS BIGINT), CAST(given.value ->> 4 AS BIGINT)
        FROM {rows2}"
    };
}
pub(super) use add_entries;

macro_rules! add_casts {
    () => {
        "
        INSERT INTO casts (id, account_id, key_id, spell, status, cost, created_at, finished_at)
        SELECT given.value ->> 0, given.value ->> 1, given.value ->> 2, given.value ->> 3,
               given.value ->> 4, CAST(given.value ->> 5 AS BIGINT),
               CAST(given.value ->> 6 AS BIGINT), CAST(given.value ->> 7 AS BIGINT)
        FROM {rows3}"
    };
}
pub(super) use add_casts;

macro_rules! write_books {
    () => {
        concat!(
            "
        INSERT INTO balances (id, account_id, kind, key_id, spell, budget_id, unit, starts_at,
                              granted, posted, pending, calls)
        SELECT given.value ->> 0, given.value ->> 1, given.value ->> 2, given.value ->> 3,
               given.value ->> 4, given.value ->> 5, given.value ->> 6,
               CAST(given.value ->> 7 AS BIGINT), CAST(given.value ->> 8 AS BIGINT),
               CAST(given.value ->> 9 AS BIGINT), CAST(given.value ->> 10 AS BIGINT),
               CAST(given.value ->> 11 AS BIGINT)
        FROM {rows} WHERE true
        ON CONFLICT (id) DO UPDATE SET
            granted = excluded.granted, posted = excluded.posted, pending = excluded.pending,
            calls = excluded.calls
        {and} ",
            add_entries!(),
            "
        {and} ",
            add_casts!(),
            "
        {and}
        INSERT INTO batches (id, created_at)
        SELECT given.value ->> 0, CAST(given.value ->> 1 AS BIGINT) FROM {rows4}"
        )
    };
}

statements! {
    // What nearly every batch writes, in one go.
    WRITE_BOOKS = write_books!();
    WRITE_BOOKS_AND_COMMIT = concat!(write_books!(), "{commit}");
    END_CASTS = "
        UPDATE casts SET status = given.value ->> 1, cost = CAST(given.value ->> 2 AS BIGINT),
               error_code = given.value ->> 3, finished_at = CAST(given.value ->> 4 AS BIGINT)
        FROM {rows} WHERE casts.id = given.value ->> 0";
    PUT_HOLDS = "
        INSERT INTO holds (id, account_id, key_id, spell, held_for, amount, began_at, expires_at,
                           on_lost, pay_from, state, posted, late, ended_at)
        SELECT given.value ->> 0, given.value ->> 1, given.value ->> 2, given.value ->> 3,
               given.value ->> 4, CAST(given.value ->> 5 AS BIGINT),
               CAST(given.value ->> 6 AS BIGINT), CAST(given.value ->> 7 AS BIGINT),
               given.value ->> 8, given.value ->> 9, given.value ->> 10,
               CAST(given.value ->> 11 AS BIGINT), CAST(given.value ->> 12 AS BOOLEAN),
               CAST(given.value ->> 13 AS BIGINT)
        FROM {rows} WHERE true
        ON CONFLICT (id) DO UPDATE SET
            expires_at = excluded.expires_at, state = excluded.state, posted = excluded.posted,
            late = excluded.late, ended_at = excluded.ended_at";
    PUT_KEYS = "
        INSERT INTO idempotency_keys (account_id, key, request_hash, hold_id, status, answer, expires_at)
        SELECT given.value ->> 0, given.value ->> 1, given.value ->> 2, given.value ->> 3,
               CAST(given.value ->> 4 AS BIGINT), given.value ->> 5,
               CAST(given.value ->> 6 AS BIGINT)
        FROM {rows} WHERE true
        ON CONFLICT (account_id, key) DO UPDATE SET
            request_hash = excluded.request_hash, hold_id = excluded.hold_id,
            status = excluded.status, answer = excluded.answer, expires_at = excluded.expires_at";
    ANSWER_KEYS = "
        UPDATE idempotency_keys
        SET status = CAST(given.value ->> 1 AS BIGINT), answer = given.value ->> 2
        FROM {rows} WHERE hold_id = given.value ->> 0 AND status IS NULL";
    ADD_RECORDS = "
        INSERT INTO wallet_transactions (account_id, id, type, amount, model_id, reference, created_at)
        SELECT given.value ->> 0, CAST(given.value ->> 1 AS BIGINT), given.value ->> 2,
               CAST(given.value ->> 3 AS BIGINT), given.value ->> 4, given.value ->> 5,
               CAST(given.value ->> 6 AS BIGINT)
        FROM {rows}";
    // The line keeps its number, which may have been seen.
    DROP_RECORDS = "
        UPDATE wallet_transactions SET type = 'undone'
        WHERE (account_id, reference) IN (SELECT given.value ->> 0, given.value ->> 1 FROM {rows})";
    DROP_KEYS_OF_HOLDS = "
        DELETE FROM idempotency_keys
        WHERE status IS NULL AND hold_id IN (SELECT given.value ->> 0 FROM {rows})";
    // Also if it was lost, charged and answered meanwhile. Not by its name, which may be another's by then: after a
    // day, or if the hold was lost and its key given back.
    DROP_KEYS_OF_UNDONE = "
        DELETE FROM idempotency_keys WHERE hold_id IN (SELECT given.value ->> 0 FROM {rows})";
}

/// The rows that a batch leaves behind.
#[derive(Default)]
pub(super) struct Writes {
    pub balances: Rows,
    entries: Rows,
    pub casts: Rows,
    pub ended_casts: Rows,
    holds: Rows,
    pub records: Rows,
    pub dropped_records: Rows,
    pub references: References,
    pub keys: Rows,
    pub answered_keys: Rows,
    pub keys_of_lost_holds: Rows,
    pub keys_of_undone_holds: Rows,
    /// How many holds were settled late, and how many for more than was held.
    pub late: u64,
    pub overrun: u64,
}

impl Writes {
    pub fn with(references: References) -> Writes {
        Writes { references, ..Writes::default() }
    }

    pub fn add_entry(&mut self, entry: &Entry, at: Time) {
        let Entry { reference, cause, balance, amount } = entry;
        self.entries.push(binds![reference, *cause, balance.as_str(), *amount, at]);
    }

    pub fn put_hold(&mut self, hold: &HoldRow) {
        let (state, posted, late) = hold.state_columns();
        self.holds.push(binds![
            &hold.id,
            &hold.account,
            &hold.key,
            &hold.spell,
            if hold.held_for == HeldFor::Cast { "cast" } else { "external" },
            hold.amount,
            hold.began_at,
            hold.expires_at,
            if hold.on_lost == OnLost::Charge { "charge" } else { "release" },
            hold.from_credits.then_some("credits"),
            state,
            posted,
            late,
            hold.ended_at,
        ]);
    }

    /// The lines and casts, if there is nothing else but balances.
    pub fn take_plain(&mut self) -> Option<(Rows, Rows)> {
        debug_assert!(self.balances.is_empty(), "they are written in another way");
        (self.only_books() && self.references.is_empty())
            .then(|| (std::mem::take(&mut self.entries), std::mem::take(&mut self.casts)))
    }

    /// Whether there is nothing to write. Names that were only claimed are nothing: they are given free
    /// by rolling back.
    fn is_empty(&self) -> bool {
        self.balances.is_empty() && self.entries.is_empty() && self.casts.is_empty() && self.only_books()
    }

    /// Whether there is nothing beside what [`WRITE_BOOKS`] writes.
    fn only_books(&self) -> bool {
        self.rest().iter().all(|(_, rows)| rows.is_empty())
    }

    fn rest(&self) -> [(&'static Statement, &Rows); 8] {
        [
            (&END_CASTS, &self.ended_casts),
            (&PUT_HOLDS, &self.holds),
            (&PUT_KEYS, &self.keys),
            (&ANSWER_KEYS, &self.answered_keys),
            (&DROP_KEYS_OF_HOLDS, &self.keys_of_lost_holds),
            (&DROP_KEYS_OF_UNDONE, &self.keys_of_undone_holds),
            (&ADD_RECORDS, &self.records),
            (&DROP_RECORDS, &self.dropped_records),
        ]
    }

    fn books(&self, batch: Option<(&BatchId, Time)>) -> Vec<Value> {
        let mut id = Rows::default();
        if let Some((batch, at)) = batch {
            id.push(binds![batch, at]);
        }
        binds![&self.balances, &self.entries, &self.casts, id]
    }

    /// Writes all of it, unless it is nothing; gives whether it was something.
    pub async fn write(self, tx: &mut Tx) -> Result<bool, StoreError> {
        if self.is_empty() {
            return Ok(false);
        }
        tx.execute(&WRITE_BOOKS, self.books(None)).await?;
        self.write_rest(tx).await?;
        Ok(true)
    }

    /// As [`Writes::write`], with the batch's id, but for what is best written last.
    pub async fn write_all_but_last(self, tx: &mut Tx, batch: (&BatchId, Time)) -> Result<Last, StoreError> {
        if self.is_empty() {
            return Ok(Last::Nothing);
        }
        let books = self.books(Some(batch));
        if self.only_books() && self.references.is_empty() {
            return Ok(Last::Books(books));
        }
        tx.execute(&WRITE_BOOKS, books).await?;
        self.write_rest(tx).await?;
        Ok(Last::Commit)
    }

    async fn write_rest(self, tx: &mut Tx) -> Result<(), StoreError> {
        for (statement, rows) in self.rest() {
            if !rows.is_empty() {
                tx.execute(statement, binds![rows]).await?;
            }
        }
        self.references.write(tx).await
    }
}

/// How a transaction is to end.
pub(super) enum Last {
    /// There is nothing to make durable; also spares the flush when everything was refused.
    Nothing,
    /// By writing these books.
    Books(Vec<Value>),
    Commit,
}

impl Last {
    /// Ends the transaction; gives whether it wrote anything. After an `Unavailable` it is not known whether it is
    /// committed.
    pub async fn end(self, tx: Tx) -> Result<bool, StoreError> {
        match self {
            Last::Nothing => tx.rollback().await.map(|()| false),
            Last::Books(books) => tx.commit_with(&WRITE_BOOKS_AND_COMMIT, books).await.map(|()| true),
            Last::Commit => tx.commit().await.map(|()| true),
        }
    }
}
