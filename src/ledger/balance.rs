//! A balance: the bounded running total that every kind of limit is.

use std::{fmt, sync::Arc};

use crate::{
    clock::Time,
    id::{AccountId, BudgetId, KeyId},
    window::{self, Period},
};

/// A balance's id is its natural key, so that two replicas that make it at once make the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BalanceId(Arc<str>);

impl BalanceId {
    /// What `key` of `account` spent on `spell` on the day that holds `at`.
    pub fn spend(account: &AccountId, key: &KeyId, spell: &str, at: Time) -> BalanceId {
        BalanceId(format!("spend/{account}/{key}/{}/{spell}", window::day_of(at)).into())
    }

    /// The window of `budget` that begins at `start`.
    pub fn window(budget: &BudgetId, start: Time) -> BalanceId {
        BalanceId(format!("window/{budget}/{}", start.0).into())
    }

    /// The prepaid credits of `account`, in nano-dollars.
    pub fn credits(account: &AccountId) -> BalanceId {
        BalanceId(format!("credits/{account}").into())
    }

    /// The tokens of `model` that `account` has, in tokens.
    pub fn tokens(account: &AccountId, model: &str) -> BalanceId {
        BalanceId(format!("tokens/{account}/{model}").into())
    }

    /// What `plan` allows `account` of an action, in units, in the window of its period that begins at
    /// `start`.
    pub fn quota(account: &AccountId, plan: &str, period: Period, start: Time, action: &str) -> BalanceId {
        let period = period.as_str();
        BalanceId(format!("quota/{account}/{plan}/{period}/{}/{action}", start.0).into())
    }

    /// The units of an action that `account` bought.
    pub fn credited(account: &AccountId, action: &str) -> BalanceId {
        BalanceId(format!("credited/{account}/{action}").into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for BalanceId {
    fn from(text: String) -> Self {
        BalanceId(text.into())
    }
}

impl fmt::Display for BalanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// available = `granted` − `posted` − `pending`; without `granted` there is no bound.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balance {
    pub granted: Option<i64>,
    /// Spent for good.
    pub posted: i64,
    /// Set aside by open holds.
    pub pending: i64,
    /// How often something was posted: the calls behind `posted`.
    pub calls: i64,
    /// Whether its changes are lines of the ledger. A budget's window has none of its own: it is
    /// the sum of the spend it covers, and the audit recomputes it from that.
    pub journaled: bool,
}

impl Balance {
    /// What is left; less than nothing where more was spent or held than is granted now. `None`: there
    /// is no bound.
    pub fn available(&self) -> Option<i128> {
        let taken = i128::from(self.posted) + i128::from(self.pending);
        self.granted.map(|granted| i128::from(granted) - taken)
    }

    /// Whether `amount` more fits. What costs nothing always does, also where a lowered limit
    /// leaves less than nothing.
    pub fn has_room_for(&self, amount: i64) -> bool {
        amount == 0 || self.available().is_none_or(|room| i128::from(amount) <= room)
    }
}

/// An amount on one balance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    pub balance: BalanceId,
    pub amount: i64,
}
