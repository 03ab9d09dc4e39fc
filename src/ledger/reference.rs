//! References: the names under which others ask for an effect on a quota (a `ref`, an `order_id`), one
//! name space for all accounts. An effect is done once, and its first answer is given again.
//!
//! A name is claimed before any account is locked, since two accounts may come with the same one; who
//! comes second waits for the first one's transaction to end.
//!
//! # Failure behavior
//!
//! The claim and the effect are one transaction. What was refused gives its name free again, by a
//! rollback or by [`References::write`].

use std::collections::{BTreeSet, HashMap};

use super::request::{Once, Standing};
use crate::{
    clock::Time,
    id::AccountId,
    store::{Rows, StoreError, Tx, binds, statements},
};

statements! {
    CLAIM = "
        INSERT INTO quota_references (id, account_id, content, created_at)
        SELECT given.value ->> 0, given.value ->> 1, given.value ->> 2, CAST(given.value ->> 3 AS BIGINT)
        FROM {rows} WHERE true
        ON CONFLICT (id) DO NOTHING";
    NAMED = "
        SELECT id, account_id, content, answer FROM quota_references
        WHERE id IN (SELECT given.value ->> 0 FROM {rows})";
    ANSWER = "
        UPDATE quota_references
        SET account_id = given.value ->> 1, content = given.value ->> 2, answer = given.value ->> 3
        FROM {rows} WHERE quota_references.id = given.value ->> 0";
    RELEASE = "
        DELETE FROM quota_references
        WHERE answer IS NULL AND id IN (SELECT given.value ->> 0 FROM {rows})";
}

/// What is known of some names, and what is to be written of them.
#[derive(Default)]
pub struct References {
    known: HashMap<String, Known>,
    answers: Rows,
}

/// `None`: claimed by this transaction, and not answered yet.
type Known = Option<(AccountId, String, Standing)>;

/// What a name's state means for a request that comes with it.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is this request's: nobody came with it before.
    First,
    Repeated(Standing),
    /// It came with other content, or for another account.
    Reused,
}

impl References {
    /// Claims those of the names that are not known yet.
    pub async fn claim(
        tx: &mut Tx,
        names: impl IntoIterator<Item = (&AccountId, &Once)>,
        now: Time,
    ) -> Result<References, StoreError> {
        // Sorted, so that transactions that wait for each other's names can't do so in a circle.
        let names: BTreeSet<(&str, &str, &str)> = names
            .into_iter()
            .map(|(account, once)| (once.id.as_str(), account.as_str(), once.content.as_str()))
            .collect();
        if names.is_empty() {
            return Ok(References::default());
        }
        let (mut claims, ids) = (Rows::default(), Rows::of(names.iter().map(|(id, ..)| id)));
        for (id, account, content) in names {
            claims.push(binds![id, account, content, now]);
        }
        tx.execute(&CLAIM, binds![claims]).await?;
        let rows: Vec<(String, String, String, Option<String>)> = tx.all(&NAMED, binds![ids]).await?;
        let known = rows.into_iter().map(|(id, account, content, answer)| {
            let unreadable = |_| StoreError::Refused(format!("the answer of reference {id} can't be read"));
            let standing =
                answer.map(|answer| serde_json::from_str(&answer)).transpose().map_err(unreadable)?;
            Ok((id, standing.map(|standing| (account.into(), content, standing))))
        });
        Ok(References { known: known.collect::<Result<_, StoreError>>()?, answers: Rows::default() })
    }

    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// What it means that `account` comes with that name now.
    pub fn seen(&self, account: &AccountId, once: &Once) -> Seen {
        match self.known.get(&once.id).and_then(Option::as_ref) {
            None => Seen::First,
            Some((whose, content, standing)) if whose == account && *content == once.content => {
                Seen::Repeated(standing.clone())
            }
            Some(_) => Seen::Reused,
        }
    }

    /// Keeps the first answer, to be written.
    pub fn answer(&mut self, account: &AccountId, once: &Once, standing: &Standing) {
        let answer = serde_json::json!(standing).to_string();
        self.answers.push(binds![&once.id, account, &once.content, answer]);
        let known = (account.clone(), once.content.clone(), standing.clone());
        self.known.insert(once.id.clone(), Some(known));
    }

    /// Writes the answers, and gives the names free that were claimed for nothing.
    pub async fn write(self, tx: &mut Tx) -> Result<(), StoreError> {
        let unanswered = self.known.iter().filter(|(_, known)| known.is_none());
        let unanswered = Rows::of(unanswered.map(|(id, _)| id));
        for (statement, rows) in [(&ANSWER, self.answers), (&RELEASE, unanswered)] {
            if !rows.is_empty() {
                tx.execute(statement, binds![rows]).await?;
            }
        }
        Ok(())
    }
}
