//! Customers at Stripe: one per account.
//!
//! # Failure behavior
//!
//! Those who ask for an account's customer at the same time share one request. On other replicas,
//! and after a crash, the idempotency key makes it the same customer: it is derived from the account
//! and what Stripe is told of it. What one of them wrote first stands for all.

use sha2::{Digest, Sha256};
use stripe_core::customer::CreateCustomer;
use tokio::time::Instant;

use super::{Failure, Stripe, StripeError};
use crate::{
    id::AccountId,
    identity::Account,
    store::{Db, StoreError, binds, statements},
};

statements! {
    CUSTOMER = "SELECT customer_id FROM stripe_customers WHERE account_id = $1";
    INSERT_CUSTOMER = "
        INSERT INTO stripe_customers (account_id, customer_id, created_at) VALUES ($1, $2, $3)
        ON CONFLICT DO NOTHING";
    REPLACE_CUSTOMER = "
        UPDATE stripe_customers SET customer_id = $3, created_at = $4
        WHERE account_id = $1 AND customer_id = $2";
}

/// The account's customer, if one was made: Stripe's id of it.
pub async fn customer_of(db: &Db, account: &AccountId) -> Result<Option<String>, StoreError> {
    let row: Option<(String,)> = db.optional(&CUSTOMER, binds![account]).await?;
    Ok(row.map(|(customer,)| customer))
}

impl Stripe {
    /// The account's customer, made where there is none, or where it is still the one that is `gone`.
    pub(super) async fn customer(
        &self,
        account: &Account,
        gone: Option<&str>,
        deadline: Instant,
    ) -> Result<String, Failure> {
        let usable = |known: Option<String>| known.filter(|known| Some(known.as_str()) != gone);
        if let Some(known) = usable(customer_of(&self.db, &account.id).await?) {
            return Ok(known);
        }
        let make = async {
            // One may have been written since.
            if let Some(known) = usable(customer_of(&self.db, &account.id).await?) {
                return Ok(known);
            }
            let made = self.make(account, gone, deadline).await?;
            let now = self.clock.now();
            match gone {
                None => self.db.execute(&INSERT_CUSTOMER, binds![&account.id, &made, now]).await?,
                Some(gone) => {
                    self.db.execute(&REPLACE_CUSTOMER, binds![&account.id, gone, &made, now]).await?
                }
            };
            let stands = usable(customer_of(&self.db, &account.id).await?);
            stands
                .ok_or_else(|| StoreError::Refused("a customer that was made is not there".to_owned()).into())
        };
        let slot = (account.id.clone(), gone.map(str::to_owned));
        self.making.try_get_with(slot, make).await.map_err(|error: std::sync::Arc<Failure>| (*error).clone())
    }

    async fn make(
        &self,
        account: &Account,
        gone: Option<&str>,
        deadline: Instant,
    ) -> Result<String, StripeError> {
        let made = self.make_with(account, account.email.as_deref(), gone, deadline).await;
        match made {
            // An address that Stripe takes for none is no reason not to sell.
            Err(StripeError::NoSuchEmail) => self.make_with(account, None, gone, deadline).await,
            made => made,
        }
    }

    async fn make_with(
        &self,
        account: &Account,
        email: Option<&str>,
        gone: Option<&str>,
        deadline: Instant,
    ) -> Result<String, StripeError> {
        let request = CreateCustomer::new()
            .name(&account.name)
            .metadata([("account_id".to_owned(), account.id.to_string())]);
        let request = match email {
            Some(email) => request.email(email),
            None => request,
        };
        let failed = self.failed.get(&account.id).await.unwrap_or(0);
        let key = key(&account.id, &account.name, email, gone, failed);
        let made = self.client.create_customer(&request, &key, deadline).await;
        if let Err(StripeError::Failed { status: Some(500..), .. }) = made {
            self.failed.insert(account.id.clone(), failed + 1).await;
        }
        made
    }
}

/// The same for the same request, and another one for each customer that is to be replaced, and
/// after each failure that Stripe answered with: under a key it gives its first answer again for a
/// day, whatever that was.
fn key(account: &AccountId, name: &str, email: Option<&str>, gone: Option<&str>, failed: u32) -> String {
    let mut hash = Sha256::new();
    for part in [name, email.unwrap_or_default(), gone.unwrap_or_default(), &failed.to_string()] {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let hash = hex::encode(hash.finalize());
    format!("customer/{account}/{}", hash.get(..32).unwrap_or(&hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_same_for_the_same_request_alone() {
        let account = AccountId::from("acct_1");
        let first = key(&account, "acme", None, None, 0);
        assert!(first.starts_with("customer/acct_1/") && first.len() < 255);
        assert_eq!(first, key(&account, "acme", None, None, 0));
        let others = [
            key(&"acct_2".into(), "acme", None, None, 0),
            key(&account, "acme", Some("a@b"), None, 0),
            key(&account, "acme", None, Some("cus_1"), 0),
            key(&account, "acme", None, Some("cus_2"), 0),
            key(&account, "acmea@b", None, None, 0),
            key(&account, "acme", None, None, 1),
        ];
        assert!(!others.contains(&first));
    }
}
