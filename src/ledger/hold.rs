//! Holds as rows: read for callers, and found by the sweeper when they are due.

use crate::{
    clock::Time,
    id::{AccountId, HoldId, KeyId},
    ledger::request::{HeldFor, OnLost},
    money::Nanos,
    store::{BEYOND_IDS, Db, StoreError, binds, statements},
};

use super::decide::HoldState;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoldRow {
    pub id: HoldId,
    pub account: AccountId,
    pub key: KeyId,
    pub spell: String,
    pub held_for: HeldFor,
    pub amount: Nanos,
    pub began_at: Time,
    pub expires_at: Time,
    pub on_lost: OnLost,
    pub from_credits: bool,
    pub state: HoldState,
    pub ended_at: Option<Time>,
}

/// The columns that [`StoredHold`] reads, for every statement that selects holds.
macro_rules! hold_columns {
    () => {
        "id, account_id, key_id, spell, held_for, amount, began_at, expires_at, on_lost, pay_from, state, posted,
         late, ended_at"
    };
}
pub(super) use hold_columns;

#[derive(sqlx::FromRow)]
pub(super) struct StoredHold {
    id: String,
    account_id: String,
    key_id: String,
    spell: String,
    held_for: String,
    amount: i64,
    began_at: i64,
    expires_at: i64,
    on_lost: String,
    pay_from: Option<String>,
    state: String,
    posted: Option<i64>,
    late: bool,
    ended_at: Option<i64>,
}

impl From<StoredHold> for HoldRow {
    fn from(row: StoredHold) -> HoldRow {
        HoldRow {
            id: row.id.into(),
            account: row.account_id.into(),
            key: row.key_id.into(),
            spell: row.spell,
            held_for: if row.held_for == "cast" { HeldFor::Cast } else { HeldFor::External },
            amount: Nanos(row.amount),
            began_at: Time(row.began_at),
            expires_at: Time(row.expires_at),
            on_lost: if row.on_lost == "charge" { OnLost::Charge } else { OnLost::Release },
            from_credits: row.pay_from.is_some(),
            state: match (row.state.as_str(), row.posted) {
                ("open", _) => HoldState::Open,
                ("posted", Some(amount)) => HoldState::Posted { amount, late: row.late },
                ("voided", _) => HoldState::Voided,
                _ => HoldState::Expired,
            },
            ended_at: row.ended_at.map(Time),
        }
    }
}

impl HoldRow {
    /// The state's columns: its name, what was posted, and whether late.
    pub(super) fn state_columns(&self) -> (&'static str, Option<i64>, bool) {
        match self.state {
            HoldState::Open => ("open", None, false),
            HoldState::Posted { amount, late } => ("posted", Some(amount), late),
            HoldState::Voided => ("voided", None, false),
            HoldState::Expired => ("expired", None, false),
        }
    }
}

statements! {
    EXTERNAL_HOLDS = concat!("SELECT ", hold_columns!(), " FROM holds
        WHERE account_id = $1 AND held_for = 'external' AND id < $2
        ORDER BY id DESC LIMIT $3");
    EXTERNAL_HOLD = concat!("SELECT ", hold_columns!(), " FROM holds
        WHERE account_id = $1 AND held_for = 'external' AND id = $2");
    DUE = "SELECT id, account_id FROM holds WHERE state = 'open' AND expires_at <= $1
        ORDER BY expires_at LIMIT 500";
}

/// The account's holds for code that runs elsewhere, newest first, from below `before` on.
pub async fn list(
    db: &Db,
    account: &AccountId,
    before: Option<&str>,
    limit: i64,
) -> Result<Vec<HoldRow>, StoreError> {
    let rows: Vec<StoredHold> =
        db.scan(&EXTERNAL_HOLDS, binds![account, before.unwrap_or(BEYOND_IDS), limit]).await?;
    Ok(rows.into_iter().map(HoldRow::from).collect())
}

/// One of the account's holds for code that runs elsewhere.
pub async fn get(db: &Db, account: &AccountId, hold: &HoldId) -> Result<Option<HoldRow>, StoreError> {
    let row: Option<StoredHold> = db.optional(&EXTERNAL_HOLD, binds![account, hold]).await?;
    Ok(row.map(HoldRow::from))
}

/// Open holds whose time is up, the longest overdue first.
pub(super) async fn due(db: &Db, now: Time) -> Result<Vec<(HoldId, AccountId)>, StoreError> {
    let rows: Vec<(String, String)> = db.all(&DUE, binds![now]).await?;
    Ok(rows.into_iter().map(|(hold, account)| (hold.into(), account.into())).collect())
}
