//! What we offered to sell. A purchase is written before Stripe hears of it; what Stripe then tells us
//! is believed only about a purchase of ours, and only if customer, amount and currency agree.

use crate::{
    clock::Time,
    id::{AccountId, PurchaseId},
    money::Nanos,
    store::{StoreError, Tx, binds, statements},
};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Purchase {
    pub id: PurchaseId,
    pub account: AccountId,
    /// Stripe's id of the account's customer.
    pub customer: String,
    pub sold: Sold,
    pub amount_cents: i64,
    /// In lower case.
    pub currency: String,
    /// What a credit pays for that it brings.
    pub credit_value: Nanos,
    /// The credits that come with a plan's first period.
    pub included_credits: i64,
    pub status: Status,
    /// Stripe's id of the Checkout session, once it is known.
    pub session: Option<String>,
    /// Stripe's id of the subscription that it began.
    pub subscription: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sold {
    /// A subscription to the plan of that code.
    Plan(String),
    Credits(i64),
}

/// How far a purchase has come. Events come in any order, so of two the greater one holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    Open,
    /// Checkout is complete, the money under way.
    Processing,
    Expired,
    Failed,
    /// Something else was paid than what was sold.
    Mismatched,
    Paid,
}

impl Status {
    const ALL: [(Status, &str); 6] = [
        (Status::Open, "open"),
        (Status::Processing, "processing"),
        (Status::Expired, "expired"),
        (Status::Failed, "failed"),
        (Status::Mismatched, "mismatched"),
        (Status::Paid, "paid"),
    ];

    pub fn as_str(self) -> &'static str {
        Status::ALL.iter().find(|(status, _)| *status == self).map_or("open", |(_, text)| text)
    }

    /// Reads what was stored.
    pub fn parse(text: &str) -> Status {
        Status::ALL.iter().find(|(_, known)| *known == text).map_or(Status::Open, |(status, _)| *status)
    }
}

macro_rules! purchase_columns {
    () => {
        "id, account_id, customer_id, plan, credits, amount_cents, currency, credit_value,
         included_credits, status, session_id, subscription_id"
    };
}

statements! {
    BY_ID = concat!("SELECT ", purchase_columns!(), " FROM purchases WHERE id = $1");
    BY_SUBSCRIPTION = concat!("SELECT ", purchase_columns!(), " FROM purchases
        WHERE customer_id = $1 AND subscription_id = $2 ORDER BY id DESC LIMIT 1");
    // Whose subscription is not known yet.
    LAST_PLAN_OF_CUSTOMER = concat!("SELECT ", purchase_columns!(), " FROM purchases
        WHERE customer_id = $1 AND plan IS NOT NULL AND subscription_id IS NULL
          AND status <> 'expired' AND status <> 'failed'
        ORDER BY id DESC LIMIT 1");
    LOCK_ACCOUNT = "SELECT id FROM accounts WHERE id = $1 {for_update}";
    OF_SESSION = "SELECT id FROM purchases WHERE session_id = $1";
    IS_CUSTOMER = "SELECT id FROM purchases WHERE customer_id = $1 LIMIT 1";
    UPDATE_PURCHASE = "
        UPDATE purchases SET status = $2, session_id = $3, subscription_id = $4, updated_at = $5
        WHERE id = $1";
}

#[derive(sqlx::FromRow)]
struct Row {
    id: String,
    account_id: String,
    customer_id: String,
    plan: Option<String>,
    credits: Option<i64>,
    amount_cents: i64,
    currency: String,
    credit_value: i64,
    included_credits: i64,
    status: String,
    session_id: Option<String>,
    subscription_id: Option<String>,
}

impl From<Row> for Purchase {
    fn from(row: Row) -> Purchase {
        Purchase {
            id: row.id.into(),
            account: row.account_id.into(),
            customer: row.customer_id,
            sold: row.plan.map_or(Sold::Credits(row.credits.unwrap_or(0)), Sold::Plan),
            amount_cents: row.amount_cents,
            currency: row.currency,
            credit_value: Nanos(row.credit_value),
            included_credits: row.included_credits,
            status: Status::parse(&row.status),
            session: row.session_id,
            subscription: row.subscription_id,
        }
    }
}

impl Purchase {
    /// The plan that was sold.
    pub fn plan(&self) -> Option<&str> {
        match &self.sold {
            Sold::Plan(code) => Some(code),
            Sold::Credits(_) => None,
        }
    }

    /// Raises the status to what was told, if it is not there already.
    pub fn advance(&mut self, told: Status) {
        self.status = self.status.max(told);
    }

    /// Whether this amount of this currency is what was asked for.
    pub fn was_sold_for(&self, amount_cents: Option<i64>, currency: Option<&str>) -> bool {
        amount_cents == Some(self.amount_cents) && currency == Some(&self.currency)
    }

    /// Writes back what events have told of it.
    pub async fn update(&self, tx: &mut Tx, now: Time) -> Result<(), StoreError> {
        let (session, subscription) = (self.session.clone(), self.subscription.clone());
        let values = binds![&self.id, self.status.as_str(), session, subscription, now];
        tx.execute(&UPDATE_PURCHASE, values).await?;
        Ok(())
    }
}

/// The purchase of that id, and its account's lock.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Option<Purchase>, StoreError> {
    let row: Option<Row> = tx.optional(&BY_ID, binds![id]).await?;
    locked(tx, row).await
}

/// Locks the account of `row`, as all do that change what is an account's, and reads the row again:
/// it may have changed until then.
async fn locked(tx: &mut Tx, row: Option<Row>) -> Result<Option<Purchase>, StoreError> {
    let Some(row) = row else { return Ok(None) };
    let _: (String,) = tx.one(&LOCK_ACCOUNT, binds![&row.account_id]).await?;
    let row: Row = tx.one(&BY_ID, binds![&row.id]).await?;
    Ok(Some(row.into()))
}

/// Whether a Checkout session is of a purchase other than `purchase`.
pub async fn has_session(tx: &mut Tx, session: &str, purchase: &PurchaseId) -> Result<bool, StoreError> {
    let of: Option<(String,)> = tx.optional(&OF_SESSION, binds![session]).await?;
    Ok(of.is_some_and(|(id,)| id != purchase.as_str()))
}

/// Whether something was ever sold to that customer, also if its account has another one by now.
pub async fn is_customer(tx: &mut Tx, customer: &str) -> Result<bool, StoreError> {
    let any: Option<(String,)> = tx.optional(&IS_CUSTOMER, binds![customer]).await?;
    Ok(any.is_some())
}

/// The plan's purchase that a subscription of `customer` comes from: the one of which Checkout said
/// so, else the one that the subscription `names`, else the last one that waits for its own. Its
/// account is locked.
pub async fn behind(
    tx: &mut Tx,
    customer: &str,
    subscription: &str,
    names: Option<&str>,
) -> Result<Option<Purchase>, StoreError> {
    let linked: Option<Row> = tx.optional(&BY_SUBSCRIPTION, binds![customer, subscription]).await?;
    if linked.is_some() {
        return locked(tx, linked).await;
    }
    if let Some(names) = names {
        let named = get(tx, names).await?;
        return Ok(named.filter(|named| named.customer == customer && named.plan().is_some()));
    }
    let last: Option<Row> = tx.optional(&LAST_PLAN_OF_CUSTOMER, binds![customer]).await?;
    locked(tx, last).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_only_raised() {
        for (status, text) in Status::ALL {
            assert_eq!((Status::parse(text), status.as_str()), (status, text));
            assert!(status <= Status::Paid, "what is paid stays paid");
        }
    }
}
