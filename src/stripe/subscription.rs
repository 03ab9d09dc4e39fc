//! The subscriptions that accounts have at Stripe.

use crate::{
    id::AccountId,
    store::{Db, StoreError, binds, statements},
};

statements! {
    RUNNING = "
        SELECT status FROM subscriptions
        WHERE account_id = $1 AND status IN ('active', 'trialing', 'past_due', 'unpaid')";
}

/// Whether the account has a subscription beside which no other is sold.
pub async fn blocks_another(db: &Db, account: &AccountId) -> Result<bool, StoreError> {
    let running: Option<(String,)> = db.optional(&RUNNING, binds![account]).await?;
    Ok(running.is_some())
}
