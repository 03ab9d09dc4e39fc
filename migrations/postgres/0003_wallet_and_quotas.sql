-- The name under which others know whom this account is of: a JWT's subject, another service's user.
-- NULL for accounts that were made by an admin.
ALTER TABLE accounts ADD COLUMN user_id TEXT;
CREATE UNIQUE INDEX accounts_by_user ON accounts (user_id);

-- The plan that its subscriptions came to: only when that changes do they change the account's plan, which an
-- order paid elsewhere may have set since.
ALTER TABLE accounts ADD COLUMN subscribed_plan TEXT;
UPDATE accounts SET subscribed_plan = plan;

-- Since when its plan is its plan; NULL: since there is the account. Its quotas' windows go by it.
ALTER TABLE accounts ADD COLUMN plan_since BIGINT;

-- kind 'tokens': a model's tokens that were allocated and not consumed yet.
-- kind 'quota': what a plan allows of an action in one window; its lines are in `entries`.
-- kind 'credited': units of an action that were bought: they stay until they are used.
-- unit: the model, or the action. NULL for the other kinds.
ALTER TABLE balances ADD COLUMN unit TEXT;

-- What a wallet's owner did with it, as it is told: numbered for each account by itself.
CREATE TABLE wallet_transactions (
    account_id TEXT NOT NULL REFERENCES accounts (id),
    id BIGINT NOT NULL,
    -- 'purchase', 'allocation' or 'consumption'; 'undone': it was taken back before anybody was told
    type TEXT NOT NULL,
    -- credits, or for a consumption tokens
    amount BIGINT NOT NULL,
    model_id TEXT,
    -- the ledger's, of the lines that belong to it
    reference TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (account_id, id)
);

-- What was paid for elsewhere and turned into credits here, by its number there: once, by whomever.
CREATE TABLE wallet_purchases (
    transaction_id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    product_id TEXT NOT NULL,
    credits BIGINT NOT NULL,
    -- who vouches for it: 'apple', 'google', 'stripe', 'service' or 'admin'
    verified_by TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX wallet_purchases_by_account ON wallet_purchases (account_id, created_at);

-- What tokens of a model cost, in credits per million. Every change is kept; the last one counts.
CREATE TABLE model_prices (
    model TEXT NOT NULL,
    version BIGINT NOT NULL,
    price_per_m_token BIGINT NOT NULL,
    -- 'quick' or 'think'
    category TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (model, version)
);
INSERT INTO model_prices (model, version, price_per_m_token, category, created_at) VALUES
    ('gemini-2.5-pro', 1, 1010, 'think', 0),
    ('gemini-2.5-flash', 1, 250, 'quick', 0),
    ('gemini-2.0-flash', 1, 45, 'quick', 0),
    ('gemini-2.0-pro', 1, 70, 'quick', 0),
    ('gpt-5-mini', 1, 200, 'quick', 0);

-- How a plan's units were defined, and from when on: a user's current window keeps what it began with.
CREATE TABLE plan_versions (
    code TEXT NOT NULL,
    version TEXT NOT NULL,
    period TEXT NOT NULL,
    -- a JSON object: units by action
    limits TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (code, created_at, version)
);
INSERT INTO plan_versions (code, version, period, limits, created_at)
SELECT code, version, period, limits, created_at FROM plans;

-- What others call an effect on a quota (a `ref`, an `order_id`): it is done once, and its first answer
-- is given again.
CREATE TABLE quota_references (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL,
    -- what tells it from another that is called the same
    content TEXT NOT NULL,
    -- JSON: how the account stood after it. NULL only inside the transaction that does it.
    answer TEXT,
    created_at BIGINT NOT NULL
);

-- Orders that were paid, and what they brought.
CREATE TABLE quota_receipts (
    id TEXT PRIMARY KEY NOT NULL,
    order_id TEXT NOT NULL UNIQUE REFERENCES quota_references (id),
    account_id TEXT NOT NULL REFERENCES accounts (id),
    plan TEXT NOT NULL,
    -- a JSON object: units by action
    units TEXT NOT NULL,
    -- as the payment service states it, an exact decimal; NULL: it was credited without a payment
    amount TEXT,
    currency TEXT,
    status TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX quota_receipts_by_account ON quota_receipts (account_id, id);

INSERT INTO webhook_sources (name) VALUES ('payment');

-- What the delivery was signed with, where it is to be checked again at a replay.
ALTER TABLE webhook_events ADD COLUMN signature TEXT;
