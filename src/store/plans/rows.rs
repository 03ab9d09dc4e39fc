//! What the tables are filled with before their plans are looked at.

/// Adds rows to a table, whose numbers `n` are from `$1` to `$2`. Both databases read this.
macro_rules! fill {
    ($table:literal, $columns:literal, $values:literal) => {
        concat!(
            "INSERT INTO ",
            $table,
            " (",
            $columns,
            ") WITH RECURSIVE rows(n) AS
                (SELECT CAST($1 AS BIGINT) UNION ALL SELECT n + 1 FROM rows WHERE n < $2)
             SELECT ",
            $values,
            " FROM rows"
        )
    };
}

/// Some of everything: 20,000 accounts, of which 2,000 have 2 keys, 12 days of spend, a dozen casts and so on. A moment is
/// `1794000000000 + n * 40000`, and what is named by time begins with it.
pub static FILL: [(&str, i64); 24] = [
    (fill!("accounts", "id, name, suspended, created_at, user_id", "'acct_' || n, 'a', false, n, 'user_' || n"), 20_000),
    (fill!("api_keys", "id, account_id, name, prefix, created_at", "'key_' || n, 'acct_' || (n / 2), 'k', 'sk', n"), 4_000),
    (fill!("api_key_secrets", "hash, key_id, created_at", "'hash_' || n, 'key_' || n, n"), 4_000),
    (
        fill!(
            "budgets",
            "id, account_id, scope, period, hard_limit, notify_thresholds, locked, created_at, updated_at, change_id",
            "'bud_' || n, 'acct_' || n, 'account', 'monthly', 5, '[]', false, n, n, 'chg_' || n"
        ),
        2_000
    ),
    (
        fill!(
            "balances",
            "id, account_id, kind, key_id, spell, starts_at, posted, pending, calls",
            "'spend/acct_' || (n % 2000) || '/key_' || (n % 2000 * 2) || '/' || (n / 2000) || '/echo', 'acct_' || (n % 2000),
             'spend', 'key_' || (n % 2000 * 2), 'echo', 1795219200000 - n / 2000 * 86400000, 5, 0, 1"
        ),
        25_000
    ),
    (
        fill!(
            "balances",
            "id, account_id, kind, budget_id, starts_at, posted, pending, calls",
            "'window/bud_' || n || '/1793491200000', 'acct_' || n, 'window', 'bud_' || n, 1793491200000, 5, 0, 1"
        ),
        2_000
    ),
    (
        fill!(
            "balances",
            "id, account_id, kind, granted, posted, pending, calls",
            "'credits/acct_' || n, 'acct_' || n, 'credits', 9, 5, 0, 1"
        ),
        2_000
    ),
    (
        fill!(
            "entries",
            "reference, cause, balance_id, amount, created_at",
            "'cast_' || (1794000000000 + n * 40000), 'charge',
             'spend/acct_' || (n % 2000) || '/key_' || (n % 2000 * 2) || '/' || (n / 2000) || '/echo', 5,
             1794000000000 + n * 40000"
        ),
        28_000
    ),
    (
        fill!(
            "entries",
            "reference, cause, balance_id, amount, created_at",
            "'closing/20717/' || (n % 2), 'closing',
             'spend/acct_' || n || '/key_' || (n * 2) || '/20/echo', 5, 1790000000000 + n"
        ),
        2_000
    ),
    (
        fill!(
            "casts",
            "id, account_id, key_id, spell, status, cost, created_at, finished_at",
            "'cast_' || (1794000000000 + n * 40000), 'acct_' || (n % 2000), 'key_' || (n % 2000 * 2), 'echo', 'COMPLETED', 5,
             1794000000000 + n * 40000, 1794000000000 + n * 40000"
        ),
        28_000
    ),
    (
        fill!(
            "holds",
            "id, account_id, key_id, spell, held_for, amount, began_at, expires_at, on_lost, state, late, ended_at",
            "'cast_' || (1794000000000 + n * 40000), 'acct_' || (n % 2000), 'key_' || (n % 2000 * 2), 'echo', 'cast', 5,
             1794000000000 + n * 40000, 1794000000000 + n * 40000, 'release', 'voided', false,
             1794000000000 + n * 40000"
        ),
        14_000
    ),
    (
        fill!(
            "holds",
            "id, account_id, key_id, spell, held_for, amount, began_at, expires_at, on_lost, state, late, ended_at",
            "'hold_' || (1794000000000 + n * 80000), 'acct_' || (n % 2000), 'key_' || (n % 2000 * 2), 'echo', 'external', 5,
             1794000000000 + n * 80000, 1794000000000 + n * 80000,
             'release', CASE WHEN n % 50 = 0 THEN 'open' ELSE 'voided' END, false, 1794000000000 + n * 80000"
        ),
        14_000
    ),
    (
        fill!(
            "idempotency_keys",
            "account_id, key, request_hash, hold_id, status, answer, expires_at",
            "'acct_' || (n % 2000), 'key-' || n, 'hash', 'cast_' || n, 200, '{}', 1794000000000 + n * 40000"
        ),
        20_000
    ),
    (fill!("batches", "id, created_at", "'batch_' || n, 1794000000000 + n * 40000"), 20_000),
    (
        fill!(
            "webhook_events",
            "source, id, type, created_at, received_at, body, status, attempts, done_at",
            "'stripe', 'evt_' || n, 'x', 1794000000000 + n * 40000, 1794000000000 + n * 40000,
             CASE WHEN n < 15000 THEN '' ELSE 'body' END,
             CASE WHEN n % 400 = 399 THEN 'failed' ELSE 'applied' END, 1, 1794000000000 + n * 40000"
        ),
        20_000
    ),
    (
        fill!(
            "wallet_transactions",
            "account_id, id, type, amount, reference, created_at",
            "'acct_' || (n % 2000), n / 2000, 'consumption', 5, 'txn_' || n, n"
        ),
        20_000
    ),
    (
        fill!(
            "wallet_purchases",
            "transaction_id, account_id, product_id, credits, verified_by, created_at",
            "'t-' || n, 'acct_' || (n % 2000), 'p', 5, 'admin', n"
        ),
        10_000
    ),
    (
        fill!("quota_references", "id, account_id, content, answer, created_at", "'ref-' || n, 'acct_' || (n % 2000), 'c', '{}', n"),
        20_000
    ),
    (
        fill!(
            "quota_receipts",
            "id, order_id, account_id, plan, units, status, created_at",
            "'rcpt_' || n, 'ref-' || n, 'acct_' || (n % 2000), 'free', '{}', 'ok', n"
        ),
        10_000
    ),
    (
        fill!(
            "credit_grants",
            "reference, account_id, credits, credit_value, standing, amount_cents, payment_intent, charge_id, invoice_id,
             created_at",
            "'purchase/' || n, 'acct_' || (n % 2000), 1, 1, 1, 1, 'pi_' || n, 'ch_' || n, 'in_' || n, n"
        ),
        10_000
    ),
    (
        fill!(
            "reversals",
            "id, charge_id, payment_intent, invoice_id, amount_cents, status, event_at",
            "'back_' || n, 'ch_' || n, 'pi_' || n, 'in_' || n, 1, 'refunded', n"
        ),
        10_000
    ),
    (
        fill!(
            "purchases",
            "id, account_id, customer_id, amount_cents, currency, credit_value, included_credits, status, session_id,
             created_at, updated_at",
            "'pur_' || n, 'acct_' || (n % 2000), 'cus_' || (n % 2000), 1, 'usd', 1, 0, 'paid', 'cs_' || n, n, n"
        ),
        10_000
    ),
    (fill!("stripe_customers", "account_id, customer_id, created_at", "'acct_' || n, 'cus_' || n, n"), 2_000),
    (
        fill!(
            "subscriptions",
            "id, account_id, purchase_id, status, status_at, status_rank, object_at, cancel_at_period_end, invoice_at,
             created_at",
            "'sub_' || n, 'acct_' || n, 'pur_' || n, 'active', n, 1, n, false, n, n"
        ),
        2_000
    ),
];
