//! Windows of limits: each is the sum of the spend and of the open holds that it covers.

use std::collections::{BTreeSet, HashMap};

use super::{Drift, MOST, differences::sum};
use crate::{
    budget::{self, Budget},
    clock::Time,
    id::AccountId,
    store::{Rows, StoreError, Tx, binds, statements},
};

statements! {
    WINDOWS = "
        SELECT id, account_id, budget_id, starts_at, posted, pending FROM balances
        WHERE kind = 'window' AND id > $1 ORDER BY id LIMIT 1000";
    COVERED = "
        SELECT given.value ->> 0 AS window_id,
               CAST(COALESCE(SUM(spend.posted / 1000000000), 0) AS BIGINT) AS posted_billions,
               CAST(COALESCE(SUM(spend.posted % 1000000000), 0) AS BIGINT) AS posted_rest,
               CAST(COALESCE(SUM(spend.pending / 1000000000), 0) AS BIGINT) AS pending_billions,
               CAST(COALESCE(SUM(spend.pending % 1000000000), 0) AS BIGINT) AS pending_rest
        FROM {rows} LEFT JOIN balances AS spend
            ON spend.account_id = given.value ->> 1 AND spend.kind = 'spend'
            AND spend.starts_at >= CAST(given.value ->> 2 AS BIGINT)
            AND spend.starts_at < CAST(given.value ->> 3 AS BIGINT)
            AND (given.value ->> 4 IS NULL OR spend.key_id = given.value ->> 4)
            AND (given.value ->> 5 IS NULL OR spend.spell = given.value ->> 5)
        GROUP BY 1";
}

#[derive(sqlx::FromRow)]
struct Window {
    id: String,
    account_id: String,
    budget_id: String,
    starts_at: i64,
    posted: i64,
    pending: i64,
}

#[derive(sqlx::FromRow)]
struct Covered {
    window_id: String,
    posted_billions: i64,
    posted_rest: i64,
    pending_billions: i64,
    pending_rest: i64,
}

/// How many windows were recomputed, and which differ.
pub(super) struct Recomputed {
    pub windows: i64,
    pub drifts: Vec<Drift>,
}

/// Recomputes the windows of all limits that are in force.
pub(super) async fn recompute(tx: &mut Tx) -> Result<Recomputed, StoreError> {
    let mut recomputed = Recomputed { windows: 0, drifts: Vec::new() };
    let mut after = String::new();
    loop {
        let page: Vec<Window> = tx.all(&WINDOWS, binds![&after]).await?;
        let Some(last) = page.last() else { break };
        after = last.id.clone();
        let covered = covered(tx, &page).await?;
        for window in page {
            let Some(covered) = covered.get(&window.id) else { continue };
            recomputed.windows += 1;
            for (what, stored, expected) in [
                ("posted", window.posted, sum(covered.posted_billions, covered.posted_rest)),
                ("pending", window.pending, sum(covered.pending_billions, covered.pending_rest)),
            ] {
                let stored = i128::from(stored);
                if stored != expected && recomputed.drifts.len() < MOST {
                    let subject = window.id.clone();
                    recomputed.drifts.push(Drift { subject, what, stored, expected });
                }
            }
        }
    }
    Ok(recomputed)
}

/// What those of the windows cover whose limit is in force.
async fn covered(tx: &mut Tx, page: &[Window]) -> Result<HashMap<String, Covered>, StoreError> {
    let accounts: BTreeSet<AccountId> = page.iter().map(|window| window.account_id.as_str().into()).collect();
    let limits = budget::in_force(tx, &accounts).await?;
    let limits: HashMap<&str, &Budget> = limits.iter().map(|limit| (limit.id.as_str(), limit)).collect();
    let mut asked = Rows::default();
    for window in page {
        let Some(limit) = limits.get(window.budget_id.as_str()) else { continue };
        let of = limit.period.window(Time(window.starts_at));
        let end = of.end.map_or(i64::MAX, |end| end.0);
        let (key, spell) = limit.scope.parts();
        asked.push(binds![&window.id, &window.account_id, of.start, end, key, spell]);
    }
    let rows: Vec<Covered> = tx.all(&COVERED, binds![asked]).await?;
    Ok(rows.into_iter().map(|row| (row.window_id.clone(), row)).collect())
}
