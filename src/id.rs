//! One id type per noun, so that a key's id can't be passed where an account's is wanted.
//!
//! Ids are prefixed UUIDv7: opaque to the outside, ordered by the time they were made inside, which
//! makes them page cursors and keeps index inserts at the right edge.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            /// A new id, greater than those this process made before it.
            #[allow(dead_code)]
            pub fn fresh() -> Self {
                Self(format!(concat!($prefix, "_{}"), uuid::Uuid::now_v7().simple()).into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&$name> for crate::store::Value {
            fn from(id: &$name) -> Self {
                crate::store::Value::Text(Some(id.0.to_string()))
            }
        }
    )+};
}

ids! {
    /// The party that pays.
    AccountId = "acct";
    /// An API key, not its secret.
    KeyId = "key";
    BudgetId = "bud";
    /// A plan as it was between two changes.
    PlanVersion = "planv";
    /// What was offered for sale: a Checkout session's `client_reference_id`.
    PurchaseId = "pur";
    CastId = "cast";
    HoldId = "hold";
    /// One transaction of the ledger's writer; see `ledger::writer`.
    BatchId = "batch";
    /// What an order was credited by.
    ReceiptId = "rcpt";
    /// What a wallet did in one go: the reference of its lines in the ledger.
    TransferId = "txn";
}
