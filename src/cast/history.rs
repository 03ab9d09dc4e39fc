//! What was cast, for its account to read.

use crate::{
    clock::Time,
    id::{AccountId, CastId},
    money::Nanos,
    store::{BEYOND_IDS, Db, StoreError, binds, statements},
};

/// A cast as it is in the books.
#[derive(Clone, Debug)]
pub struct CastRow {
    pub id: CastId,
    pub key: String,
    pub spell: String,
    /// `PENDING`, `COMPLETED` or `FAILED`.
    pub status: String,
    pub cost: Nanos,
    pub error_code: Option<String>,
    pub created_at: Time,
    pub finished_at: Option<Time>,
}

/// Which casts are wanted; what is absent does not narrow.
#[derive(Default)]
pub struct Filter<'a> {
    pub status: Option<&'a str>,
    pub key: Option<&'a str>,
    pub spell: Option<&'a str>,
}

#[derive(sqlx::FromRow)]
struct Stored {
    id: String,
    key_id: String,
    spell: String,
    status: String,
    cost: i64,
    error_code: Option<String>,
    created_at: i64,
    finished_at: Option<i64>,
}

impl From<Stored> for CastRow {
    fn from(row: Stored) -> CastRow {
        CastRow {
            id: row.id.into(),
            key: row.key_id,
            spell: row.spell,
            status: row.status,
            cost: Nanos(row.cost),
            error_code: row.error_code,
            created_at: Time(row.created_at),
            finished_at: row.finished_at.map(Time),
        }
    }
}

statements! {
    CASTS = "
        SELECT id, key_id, spell, status, cost, error_code, created_at, finished_at
        FROM casts
        WHERE account_id = $1 AND id < $2 AND (CAST($3 AS TEXT) IS NULL OR status = $3)
          AND (CAST($4 AS TEXT) IS NULL OR key_id = $4) AND (CAST($5 AS TEXT) IS NULL OR spell = $5)
        ORDER BY id DESC LIMIT $6";
    CAST = "
        SELECT id, key_id, spell, status, cost, error_code, created_at, finished_at
        FROM casts WHERE account_id = $1 AND id = $2";
}

/// The account's casts, newest first, from below `before` on.
pub async fn list(
    db: &Db,
    account: &AccountId,
    filter: Filter<'_>,
    before: Option<&str>,
    limit: i64,
) -> Result<Vec<CastRow>, StoreError> {
    let values =
        binds![account, before.unwrap_or(BEYOND_IDS), filter.status, filter.key, filter.spell, limit];
    let rows: Vec<Stored> = db.scan(&CASTS, values).await?;
    Ok(rows.into_iter().map(CastRow::from).collect())
}

/// One of the account's casts.
pub async fn get(db: &Db, account: &AccountId, cast: &CastId) -> Result<Option<CastRow>, StoreError> {
    let row: Option<Stored> = db.optional(&CAST, binds![account, cast]).await?;
    Ok(row.map(CastRow::from))
}
