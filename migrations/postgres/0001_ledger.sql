-- The party that pays. Whoever changes what an account holds or spends locks this row first.
CREATE TABLE accounts (
    id TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    email TEXT,
    suspended BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    -- a JSON array; NULL: everything in its own account
    scopes TEXT,
    rate_limit_per_minute BIGINT,
    expires_at BIGINT,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    revoked_at BIGINT
);
CREATE INDEX api_keys_by_account ON api_keys (account_id, id);

-- A key has one secret, and while it is rotated an old one that still works until expires_at.
CREATE TABLE api_key_secrets (
    hash TEXT PRIMARY KEY NOT NULL,
    key_id TEXT NOT NULL REFERENCES api_keys (id),
    expires_at BIGINT,
    created_at BIGINT NOT NULL
);
CREATE INDEX api_key_secrets_by_key ON api_key_secrets (key_id);

CREATE TABLE spells (
    name TEXT PRIMARY KEY NOT NULL,
    -- JSON: kind, upstream, price; may hold secrets, so it is never sent out as it is
    definition TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE TABLE budgets (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    -- 'account', 'key:<id>' or 'spell:<name>'
    scope TEXT NOT NULL,
    period TEXT NOT NULL,
    soft_limit BIGINT,
    hard_limit BIGINT,
    -- a JSON array of cents
    notify_thresholds TEXT NOT NULL,
    locked BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    -- the ones set last come first; ties are broken by the id of the change
    updated_at BIGINT NOT NULL,
    change_id TEXT NOT NULL,
    UNIQUE (account_id, scope, period)
);

-- A bounded running total: available = granted - posted - pending.
-- kind 'spend': what one key spent on one spell on one day; its lines are in `entries`.
-- kind 'window': one window of one budget: the sum of the 'spend' and the open holds it covers.
CREATE TABLE balances (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    key_id TEXT,
    spell TEXT,
    budget_id TEXT,
    starts_at BIGINT,
    posted BIGINT NOT NULL,
    pending BIGINT NOT NULL,
    calls BIGINT NOT NULL
);
CREATE INDEX balances_by_account ON balances (account_id, kind, starts_at);

-- The ledger's lines: never changed, never removed one by one.
CREATE TABLE entries (
    reference TEXT NOT NULL,
    cause TEXT NOT NULL,
    balance_id TEXT NOT NULL,
    amount BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (reference, cause, balance_id)
);
CREATE FUNCTION refuse_change_of_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'entries are append-only: correct by a new entry';
END
$$;
CREATE TRIGGER entries_are_never_changed BEFORE UPDATE OR DELETE ON entries
FOR EACH ROW EXECUTE FUNCTION refuse_change_of_entries();
CREATE TRIGGER entries_are_never_truncated BEFORE TRUNCATE ON entries
FOR EACH STATEMENT EXECUTE FUNCTION refuse_change_of_entries();

-- Money set aside for one cast, or for code that runs elsewhere; it ends once.
CREATE TABLE holds (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    spell TEXT NOT NULL,
    -- 'cast' or 'external'
    held_for TEXT NOT NULL,
    amount BIGINT NOT NULL,
    began_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    -- 'release' or 'charge': what expiry does
    on_lost TEXT NOT NULL,
    -- 'open', 'posted', 'voided' or 'expired'
    state TEXT NOT NULL,
    posted BIGINT,
    late BOOLEAN NOT NULL,
    ended_at BIGINT
);
CREATE INDEX holds_due ON holds (expires_at) WHERE state = 'open';
CREATE INDEX holds_by_account ON holds (account_id, id) WHERE held_for = 'external';

CREATE TABLE casts (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    spell TEXT NOT NULL,
    -- 'PENDING', 'COMPLETED' or 'FAILED'
    status TEXT NOT NULL,
    cost BIGINT NOT NULL,
    error_code TEXT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT
);
CREATE INDEX casts_by_account ON casts (account_id, id);

-- The first answer to a request that named an Idempotency-Key. status NULL: it still runs.
CREATE TABLE idempotency_keys (
    account_id TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash TEXT NOT NULL,
    -- the hold that the running request waits for
    hold_id TEXT,
    status BIGINT,
    answer TEXT,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, key)
);
CREATE INDEX idempotency_keys_due ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_by_hold ON idempotency_keys (hold_id) WHERE hold_id IS NOT NULL;

-- One row per transaction of the writer: after a commit whose outcome is unknown, it tells.
CREATE TABLE batches (
    id TEXT PRIMARY KEY NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX batches_due ON batches (created_at);

-- What is said once per installation, such as that the first admin key was made.
CREATE TABLE milestones (
    name TEXT PRIMARY KEY NOT NULL,
    reached_at BIGINT NOT NULL
);
