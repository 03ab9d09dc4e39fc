//! What a wallet's owner bought, allocated and consumed, newest first. The lines are written in the
//! transactions of what they tell (`ledger::transfer`), numbered for each account by itself.

use serde::Serialize;

use crate::{
    clock::Time,
    id::AccountId,
    store::{Db, StoreError, binds, statements},
};

statements! {
    TRANSACTIONS = "
        SELECT id, type AS kind, amount, model_id, created_at FROM wallet_transactions
        WHERE account_id = $1 AND id < $2 AND type <> 'undone' ORDER BY id DESC LIMIT $3";
}

/// A line, as it goes out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transaction {
    pub id: i64,
    #[serde(rename = "type")]
    pub kind: String,
    /// Credits; of a consumption, tokens.
    pub amount: i64,
    pub model_id: Option<String>,
    pub created_at: Time,
}

#[derive(sqlx::FromRow)]
struct TransactionRow {
    id: i64,
    kind: String,
    amount: i64,
    model_id: Option<String>,
    created_at: i64,
}

/// Up to `limit` of the account's lines, from below the number `before` on.
pub async fn list(
    db: &Db,
    account: &AccountId,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Transaction>, StoreError> {
    let values = binds![account, before.unwrap_or(i64::MAX), limit];
    let rows: Vec<TransactionRow> = db.all(&TRANSACTIONS, values).await?;
    let shown = rows.into_iter().map(|row| {
        let TransactionRow { id, kind, amount, model_id, created_at } = row;
        Transaction { id, kind, amount, model_id, created_at: Time(created_at) }
    });
    Ok(shown.collect())
}
