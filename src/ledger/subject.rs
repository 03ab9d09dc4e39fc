//! What a balance is of.

use super::balance::{Balance, BalanceId};
use crate::{
    budget::Budget,
    clock::Time,
    id::{AccountId, KeyId},
    store::{Value, binds},
    window::Window,
};

/// What a balance is of, for the row that holds it and for the refusal that names it.
#[derive(Clone)]
pub(super) enum Subject {
    Spend {
        account: AccountId,
        key: KeyId,
        spell: String,
        day: Time,
    },
    Window {
        budget: Budget,
        window: Window,
    },
    Credits {
        account: AccountId,
    },
    Tokens {
        account: AccountId,
        model: String,
    },
    /// What a plan allows of an action in a window: `units`, which are granted when it is first used.
    Quota {
        account: AccountId,
        action: String,
        start: Time,
        units: i64,
    },
    Credited {
        account: AccountId,
        action: String,
    },
}

impl Subject {
    pub fn account(&self) -> &AccountId {
        match self {
            Subject::Window { budget, .. } => &budget.account,
            Subject::Spend { account, .. }
            | Subject::Credits { account }
            | Subject::Tokens { account, .. }
            | Subject::Quota { account, .. }
            | Subject::Credited { account, .. } => account,
        }
    }

    /// What a window grants when it is first used.
    pub fn opening(&self, id: &BalanceId) -> Option<(BalanceId, i64)> {
        match self {
            Subject::Quota { units, .. } => Some((id.clone(), *units)),
            _ => None,
        }
    }

    /// The balance's row.
    pub fn row(&self, id: &BalanceId, balance: &Balance) -> Vec<Value> {
        let Balance { granted, posted, pending, calls, .. } = *balance;
        let (mut key, mut spell, mut budget, mut unit, mut starts_at) = (None, None, None, None, None);
        let (account, kind) = match self {
            Subject::Spend { account, key: by, spell: on, day } => {
                (key, spell, starts_at) = (Some(by.as_str()), Some(on.as_str()), Some(*day));
                (account, "spend")
            }
            Subject::Window { budget: of, window } => {
                (budget, starts_at) = (Some(of.id.as_str()), Some(window.start));
                (&of.account, "window")
            }
            Subject::Credits { account } => (account, "credits"),
            Subject::Tokens { account, model } => {
                unit = Some(model.as_str());
                (account, "tokens")
            }
            Subject::Quota { account, action, start, .. } => {
                (unit, starts_at) = (Some(action.as_str()), Some(*start));
                (account, "quota")
            }
            Subject::Credited { account, action } => {
                unit = Some(action.as_str());
                (account, "credited")
            }
        };
        // A budget's limit is read from the budget.
        let granted = if kind == "window" { None } else { granted };
        let id = id.as_str();
        binds![id, account, kind, key, spell, budget, unit, starts_at, granted, posted, pending, calls]
    }
}
