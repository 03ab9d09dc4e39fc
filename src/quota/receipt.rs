//! Receipts: the orders that were credited, what was paid for them, and what they brought.

use serde::Serialize;

use super::{Metered, Order, Payment};
use crate::{
    clock::Time,
    id::{AccountId, ReceiptId},
    store::{BEYOND_IDS, Db, StoreError, Tx, binds, statements},
};

statements! {
    ADD_RECEIPT = "
        INSERT INTO quota_receipts (id, order_id, account_id, plan, units, amount, currency, status,
                                    created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)";
    PAID = "SELECT amount, currency FROM quota_receipts WHERE order_id = $1";
    ADD_PAYMENT = "
        UPDATE quota_receipts SET amount = $2, currency = $3, status = $4
        WHERE order_id = $1 AND amount IS NULL";
    RECEIPTS = "
        SELECT id, order_id, plan, units, amount, currency, status, created_at FROM quota_receipts
        WHERE account_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3";
}

/// A receipt, as it goes out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Receipt {
    pub id: ReceiptId,
    pub order_id: String,
    pub plan_code: String,
    pub units_chat: i64,
    pub units_tpl: i64,
    /// What was paid, as the payment service stated it; `None`: credited without a payment.
    pub amount: Option<String>,
    pub currency: Option<String>,
    pub status: String,
    pub created_at: Time,
}

#[derive(sqlx::FromRow)]
struct ReceiptRow {
    id: String,
    order_id: String,
    plan: String,
    units: String,
    amount: Option<String>,
    currency: Option<String>,
    status: String,
    created_at: i64,
}

impl From<ReceiptRow> for Receipt {
    fn from(row: ReceiptRow) -> Receipt {
        let units: serde_json::Value = serde_json::from_str(&row.units).unwrap_or_default();
        let of = |action: Metered| units[action.as_str()].as_i64().unwrap_or(0);
        Receipt {
            units_chat: of(Metered::Chat),
            units_tpl: of(Metered::Template),
            id: row.id.into(),
            order_id: row.order_id,
            plan_code: row.plan,
            amount: row.amount,
            currency: row.currency,
            status: row.status,
            created_at: Time(row.created_at),
        }
    }
}

/// Keeps the receipt of an order that is being credited.
pub(super) async fn add(
    tx: &mut Tx,
    account: &AccountId,
    order: &Order,
    now: Time,
) -> Result<(), StoreError> {
    let Order { order_id, plan_code, units_chat, units_tpl, payment } = order;
    let units = serde_json::json!({
        Metered::Chat.as_str(): units_chat,
        Metered::Template.as_str(): units_tpl,
    });
    let (amount, currency, status) = match payment {
        Some(payment) => {
            (Some(payment.amount.clone()), Some(payment.currency.clone()), payment.status.as_str())
        }
        None => (None, None, "credited"),
    };
    let values = binds![
        &ReceiptId::fresh(),
        order_id,
        account,
        plan_code,
        units.to_string(),
        amount,
        currency,
        status,
        now
    ];
    tx.execute(&ADD_RECEIPT, values).await?;
    Ok(())
}

/// Adds to the receipt of an order that was credited without a payment what was paid for it since.
pub async fn add_payment(tx: &mut Tx, order_id: &str, payment: &Payment) -> Result<(), StoreError> {
    let Payment { amount, currency, status } = payment;
    tx.execute(&ADD_PAYMENT, binds![order_id, amount, currency, status]).await?;
    Ok(())
}

/// The amount and the currency that an order was paid with, if it was credited for a payment.
pub async fn paid(tx: &mut Tx, order_id: &str) -> Result<Option<(String, String)>, StoreError> {
    let row: Option<(Option<String>, Option<String>)> = tx.optional(&PAID, binds![order_id]).await?;
    Ok(row.and_then(|(amount, currency)| Some((amount?, currency?))))
}

/// Up to `limit` of the account's receipts, newest first, from below the id `before` on.
pub async fn list(
    db: &Db,
    account: &AccountId,
    before: Option<&str>,
    limit: i64,
) -> Result<Vec<Receipt>, StoreError> {
    let rows: Vec<ReceiptRow> =
        db.all(&RECEIPTS, binds![account, before.unwrap_or(BEYOND_IDS), limit]).await?;
    Ok(rows.into_iter().map(Receipt::from).collect())
}
