//! What is stored against what follows from something else, as statements of one shape: each gives its
//! subjects whose two sums differ, and nothing else.

use super::{Drift, MOST};
use crate::{
    ledger::cause::{granting, posting},
    store::{Statement, StoreError, Tx, binds, statements},
};

/// Rows of (subject, stored, expected), summed up by subject. A sum need not fit `BIGINT`, so it is two:
/// of the billions and of the rest. They differ by nothing exactly if the rest's difference is whole
/// billions, and as many as the billions lack.
macro_rules! compared {
    ($($rows:expr),+ $(,)?) => {
        concat!(
            "
        SELECT subject, stored_billions, stored_rest, expected_billions, expected_rest FROM (
            SELECT subject,
                   CAST(SUM(stored / 1000000000) AS BIGINT) AS stored_billions,
                   CAST(SUM(stored % 1000000000) AS BIGINT) AS stored_rest,
                   CAST(SUM(expected / 1000000000) AS BIGINT) AS expected_billions,
                   CAST(SUM(expected % 1000000000) AS BIGINT) AS expected_rest
            FROM (", $($rows),+, ") AS sides GROUP BY subject
        ) AS sums
        WHERE stored_billions - expected_billions + (stored_rest - expected_rest) / 1000000000 <> 0
           OR (stored_rest - expected_rest) % 1000000000 <> 0
        ORDER BY subject LIMIT $1"
        )
    };
}

/// The balance that a cast or a hold is counted on, whose table is `$of`, by the day of its `$at`.
macro_rules! spend_of {
    ($of:literal, $at:literal) => {
        concat!(
            "
            LEFT JOIN balances AS spend ON spend.kind = 'spend' AND spend.account_id = ",
            $of,
            ".account_id
                AND spend.starts_at = ",
            $of,
            ".",
            $at,
            " / 86400000 * 86400000
                AND spend.key_id = ",
            $of,
            ".key_id AND spend.spell = ",
            $of,
            ".spell"
        )
    };
}

statements! {
    POSTED = compared!("
        SELECT id AS subject, posted AS stored, 0 AS expected FROM balances WHERE kind <> 'window'
        UNION ALL
        SELECT balance_id, 0, amount FROM entries WHERE cause NOT IN ", granting!());
    // What only counts has no bound, and then no lines that would raise it.
    GRANTED = compared!("
        SELECT id AS subject, granted AS stored, 0 AS expected FROM balances
        WHERE kind <> 'window' AND granted IS NOT NULL
        UNION ALL
        SELECT balance_id, 0, amount FROM entries WHERE cause IN ", granting!());
    // What holds nothing needs no balance.
    PENDING = compared!("
        SELECT id AS subject, pending AS stored, 0 AS expected FROM balances
        WHERE kind <> 'window' AND pending <> 0
        UNION ALL
        SELECT COALESCE(spend.id, holds.id), 0, holds.amount FROM holds", spend_of!("holds", "began_at"), "
        WHERE holds.state = 'open' AND holds.amount <> 0
        UNION ALL
        SELECT 'credits/' || account_id, 0, amount FROM holds WHERE state = 'open' AND pay_from = 'credits'");
    UNKNOWN_CAUSES = compared!("
        SELECT balance_id AS subject, 1 AS stored, 0 AS expected FROM entries
        WHERE cause NOT IN ", granting!(), " AND cause NOT IN ", posting!());
    // A charge of nothing moves nothing, and may have a line without a balance.
    STRAY_LINES = compared!("
        SELECT balance_id AS subject, 1 AS stored, 0 AS expected FROM entries
        WHERE amount <> 0
          AND NOT EXISTS (SELECT 1 FROM balances WHERE id = balance_id AND kind <> 'window')");
    // A cast has its cost; what was settled from outside has no cast, but a hold that tells. Those that left took
    // their lines along, for which the balance's closing stands.
    SPENT = compared!("
        SELECT id AS subject, posted AS stored, 0 AS expected FROM balances WHERE kind = 'spend'
        UNION ALL
        SELECT balance_id, 0, amount FROM entries
        WHERE cause = 'closing' AND balance_id LIKE 'spend/%'
        UNION ALL
        SELECT COALESCE(spend.id, casts.id), 0, casts.cost FROM casts", spend_of!("casts", "created_at"), "
        WHERE casts.cost <> 0
        UNION ALL
        SELECT COALESCE(spend.id, holds.id), 0, holds.posted FROM holds", spend_of!("holds", "began_at"), "
        WHERE holds.held_for = 'external' AND holds.state = 'posted' AND holds.posted <> 0");
    GRANTS = compared!("
        SELECT balance_id AS subject, amount AS stored, 0 AS expected FROM entries
        WHERE balance_id LIKE 'credits/%' AND cause <> 'emptied' AND cause IN ", granting!(), "
        UNION ALL
        SELECT 'credits/' || account_id, 0, standing * credit_value FROM credit_grants");
    CONSUMED = compared!("
        SELECT 'tokens/' || account_id || '/' || model_id AS subject, amount AS stored, 0 AS expected
        FROM wallet_transactions WHERE type = 'consumption'
        UNION ALL
        SELECT balance_id, 0, amount FROM entries WHERE cause = 'consumption'");
    // What undid one took its lines off the wallet's transactions.
    ALLOCATED = compared!("
        SELECT DISTINCT reference AS subject, 1 AS stored, 0 AS expected
        FROM wallet_transactions WHERE type = 'allocation'
        UNION ALL
        SELECT CASE WHEN reference LIKE '%/undone' THEN SUBSTR(reference, 1, LENGTH(reference) - 7)
                    ELSE reference END,
               0, CASE WHEN reference LIKE '%/undone' THEN -1 ELSE 1 END
        FROM entries WHERE cause = 'allocation'");
    // A balance has one for a day, under one of two names: two would stand for the same lines twice.
    CLOSINGS = compared!("
        SELECT balance_id AS subject, 1 AS stored, 0 AS expected FROM entries WHERE cause = 'closing'
        UNION ALL
        SELECT balance_id, 0, 1 FROM (
            SELECT DISTINCT balance_id, created_at / 86400000 AS day FROM entries
            WHERE cause = 'closing' AND reference IN ('closing/' || (created_at / 86400000) || '/0',
                                                      'closing/' || (created_at / 86400000) || '/1')
        ) AS days");
    // Lines can be removed only while it is set, which is seen by nobody but who closes lines.
    LEFT_OPEN = compared!("
        SELECT name AS subject, 1 AS stored, 0 AS expected FROM retention WHERE closing");
}

/// What is compared, in words, and by which statement.
static CHECKS: [(&str, &Statement); 11] = [
    ("posted", &POSTED),
    ("granted", &GRANTED),
    ("pending", &PENDING),
    ("lines of an unknown cause", &UNKNOWN_CAUSES),
    ("lines without a balance", &STRAY_LINES),
    ("posted, by casts and settled holds", &SPENT),
    ("granted, by what stands of its grants", &GRANTS),
    ("tokens consumed, by transactions", &CONSUMED),
    ("allocations, by transactions", &ALLOCATED),
    ("closings", &CLOSINGS),
    ("leave to remove lines", &LEFT_OPEN),
];

#[derive(sqlx::FromRow)]
struct Differing {
    subject: String,
    stored_billions: i64,
    stored_rest: i64,
    expected_billions: i64,
    expected_rest: i64,
}

/// The exact sum of what was summed up in two halves.
pub(super) fn sum(billions: i64, rest: i64) -> i128 {
    i128::from(billions) * 1_000_000_000 + i128::from(rest)
}

/// Every difference, of each kind at most [`MOST`].
pub(super) async fn all(tx: &mut Tx) -> Result<Vec<Drift>, StoreError> {
    let mut drifts = Vec::new();
    for (what, statement) in CHECKS {
        let rows: Vec<Differing> = tx.all(statement, binds![MOST as i64]).await?;
        drifts.extend(rows.into_iter().map(|row| Drift {
            subject: row.subject,
            what,
            stored: sum(row.stored_billions, row.stored_rest),
            expected: sum(row.expected_billions, row.expected_rest),
        }));
    }
    Ok(drifts)
}
