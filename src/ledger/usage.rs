//! Where the money went: the account's spend by day, key and spell.

use crate::{
    clock::Time,
    id::AccountId,
    money::{Nanos, sum_of_halves},
    store::{Db, StoreError, binds, statements},
};

/// By what the spend is told apart.
#[derive(Clone, Copy, Debug, Default)]
pub struct Grouping {
    pub day: bool,
    pub key: bool,
    pub spell: bool,
}

/// What one group spent. A part that it is not grouped by is `None`.
#[derive(Clone, Debug)]
pub struct Usage {
    /// 00:00 UTC of the day.
    pub day: Option<Time>,
    pub key: Option<String>,
    pub spell: Option<String>,
    pub calls: i64,
    pub cost: Nanos,
}

#[derive(sqlx::FromRow)]
struct Row {
    day: Option<i64>,
    key: Option<String>,
    spell_name: Option<String>,
    calls: i64,
    billions: i64,
    rest: i64,
}

statements! {
    USAGE = "
        SELECT CASE WHEN $4 THEN starts_at END AS day, CASE WHEN $5 THEN key_id END AS key,
               CASE WHEN $6 THEN spell END AS spell_name,
               CAST(SUM(calls) AS BIGINT) AS calls,
               CAST(SUM(posted / 1000000000) AS BIGINT) AS billions,
               CAST(SUM(posted % 1000000000) AS BIGINT) AS rest
        FROM balances
        WHERE account_id = $1 AND kind = 'spend' AND starts_at >= $2 AND starts_at < $3 AND (calls <> 0 OR posted <> 0)
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3 LIMIT $7 OFFSET $8";
}

/// The account's spend on the days from `from` to before `to`, grouped, the oldest day first.
pub async fn usage(
    db: &Db,
    account: &AccountId,
    (from, to): (Time, Time),
    by: Grouping,
    limit: i64,
    offset: i64,
) -> Result<Vec<Usage>, StoreError> {
    let values = binds![account, from, to, by.day, by.key, by.spell, limit, offset];
    let rows: Vec<Row> = db.scan(&USAGE, values).await?;
    let usage = |row: Row| Usage {
        day: row.day.map(Time),
        key: row.key,
        spell: row.spell_name,
        calls: row.calls,
        cost: Nanos(sum_of_halves(row.billions, row.rest)),
    };
    Ok(rows.into_iter().map(usage).collect())
}
