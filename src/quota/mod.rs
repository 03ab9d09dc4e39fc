//! Quotas: units of an action that a plan allows in a window, and units that were bought.
//!
//! Both are balances of the ledger. A debit takes from the plan's window first, since what is left of
//! that is lost when it ends, and then from what was bought, which stays until it is used.

pub mod terms;

use crate::{
    clock::Time,
    id::AccountId,
    store::{StoreError, Tx},
};

/// What a user has left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub remain_chat: i64,
    pub remain_tpl: i64,
    pub plan_code: String,
}

/// An order that was paid, or that another service credits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    pub order_id: String,
    pub plan_code: String,
    pub units_chat: i64,
    pub units_tpl: i64,
    /// `None`: credited without a payment.
    pub payment: Option<Payment>,
}

/// What a payment service says of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// An exact decimal, as it was stated.
    pub amount: String,
    pub currency: String,
    pub status: String,
}

/// What came of a debit or a credit. Only `Done` changed anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done(Standing),
    /// The same came before: its first answer.
    Repeated(Standing),
    /// The same reference came before, with other content.
    Reused,
    Suspended,
    /// There is no plan of that code.
    NoPlan,
    /// A total would not fit its integer.
    OutOfRange,
}

/// Credits an order's units to `account` and puts it on the order's plan, once.
pub async fn credit(
    _tx: &mut Tx,
    _account: &AccountId,
    _order: &Order,
    _now: Time,
) -> Result<Outcome, StoreError> {
    Err(StoreError::Refused("not built yet".to_owned()))
}
