-- NULL: the default plan. Kept by `billing::subscription`, under the account's lock.
ALTER TABLE accounts ADD COLUMN plan TEXT;

-- kind 'credits': what was bought and not taken back, in nano-dollars; its lines are in `entries`.
-- NULL for the other kinds, whose bound is a budget's.
ALTER TABLE balances ADD COLUMN granted BIGINT;

-- 'credits', or NULL: only counted
ALTER TABLE holds ADD COLUMN pay_from TEXT;

-- the purchase that the running checkout makes
ALTER TABLE idempotency_keys ADD COLUMN purchase_id TEXT;

-- What can be subscribed to, and what it brings.
CREATE TABLE plans (
    code TEXT PRIMARY KEY NOT NULL,
    name TEXT NOT NULL,
    price_cents BIGINT NOT NULL,
    currency TEXT NOT NULL,
    -- 'day', 'week', 'month' or 'year': how often the price is due
    billing_interval TEXT NOT NULL,
    -- NULL: sold with the price stated here
    stripe_price_id TEXT,
    -- granted once per paid invoice
    included_credits BIGINT NOT NULL,
    -- for keys without a rate of their own; NULL: the server's
    rate_limit_per_minute BIGINT,
    -- a month's, for accounts without a monthly budget of their own
    hard_limit_cents BIGINT,
    -- 'daily' or 'monthly': how often the units by action begin anew
    period TEXT NOT NULL,
    -- a JSON object: units by action
    limits TEXT NOT NULL,
    -- of accounts without a subscription; one plan's
    is_default BOOLEAN NOT NULL,
    -- another one after each change
    version TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);

CREATE UNIQUE INDEX plans_default ON plans (is_default) WHERE is_default;
CREATE UNIQUE INDEX plans_by_price ON plans (stripe_price_id);

CREATE TABLE stripe_customers (
    account_id TEXT PRIMARY KEY NOT NULL REFERENCES accounts (id),
    customer_id TEXT NOT NULL UNIQUE,
    created_at BIGINT NOT NULL
);

-- What we offered to sell, to whom and for how much: written before Stripe hears of it, so that what
-- Stripe tells us can be held against it.
CREATE TABLE purchases (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    customer_id TEXT NOT NULL,
    -- one of the two: a subscription to a plan, or so many credits
    plan TEXT,
    credits BIGINT,
    amount_cents BIGINT NOT NULL,
    currency TEXT NOT NULL,
    -- nano-dollars that a credit of it pays for, and the credits that come with the first period
    credit_value BIGINT NOT NULL,
    included_credits BIGINT NOT NULL,
    -- 'open', 'processing', 'failed', 'expired', 'mismatched' or 'paid'
    status TEXT NOT NULL,
    session_id TEXT UNIQUE,
    subscription_id TEXT,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX purchases_by_account ON purchases (account_id, id);
CREATE INDEX purchases_by_customer ON purchases (customer_id, id);

-- What Stripe's events said of a subscription: the newest of its own and the newest of its invoices.
-- They are kept apart, so that the order in which they come does not matter.
CREATE TABLE subscriptions (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    purchase_id TEXT,
    -- by its price at Stripe, where that is one of ours; NULL: the purchase's
    plan TEXT,
    -- Stripe's word; NULL: none was heard yet
    status TEXT,
    status_at BIGINT NOT NULL,
    -- of two in one second: the one that can't have been followed by the other
    status_rank BIGINT NOT NULL,
    -- of its own events the newest, whose plan, period and cancellation these are: Checkout tells none
    object_at BIGINT NOT NULL,
    current_period_end BIGINT,
    cancel_at_period_end BOOLEAN NOT NULL,
    -- 'paid' or 'failed'
    invoice_status TEXT,
    invoice_at BIGINT NOT NULL,
    invoice_period_end BIGINT,
    created_at BIGINT NOT NULL
);
CREATE INDEX subscriptions_by_account ON subscriptions (account_id);

-- Each grant of credits that was paid for, and how many of them are left after what was paid back.
CREATE TABLE credit_grants (
    -- 'purchase/<id>' or 'invoice/<id>': what was paid
    reference TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL REFERENCES accounts (id),
    credits BIGINT NOT NULL,
    -- nano-dollars that one of them pays for
    credit_value BIGINT NOT NULL,
    -- of `credits`, those that stand: fewer after a refund or a lost dispute, and during a dispute
    standing BIGINT NOT NULL,
    amount_cents BIGINT NOT NULL,
    payment_intent TEXT,
    charge_id TEXT,
    invoice_id TEXT,
    created_at BIGINT NOT NULL
);
CREATE INDEX credit_grants_by_payment ON credit_grants (payment_intent);
CREATE INDEX credit_grants_by_charge ON credit_grants (charge_id);
CREATE INDEX credit_grants_by_invoice ON credit_grants (invoice_id);

-- Money that went back, or may: the refunds of a charge, or a dispute. Kept also when it comes
-- before the grant that it takes from.
CREATE TABLE reversals (
    -- a charge's id, or a dispute's
    id TEXT PRIMARY KEY NOT NULL,
    charge_id TEXT,
    payment_intent TEXT,
    invoice_id TEXT,
    amount_cents BIGINT NOT NULL,
    -- 'refunded', 'open', 'lost' or 'won'
    status TEXT NOT NULL,
    event_at BIGINT NOT NULL
);
CREATE INDEX reversals_by_payment ON reversals (payment_intent);
CREATE INDEX reversals_by_charge ON reversals (charge_id);
CREATE INDEX reversals_by_invoice ON reversals (invoice_id);

-- Whose events we take. Whoever applies one locks its source first: one event at a time, so that what
-- two of them say of the same payment can't pass each other.
CREATE TABLE webhook_sources (name TEXT PRIMARY KEY NOT NULL);
INSERT INTO webhook_sources (name) VALUES ('stripe');

-- Every event that came with a good signature, before anything is made of it.
CREATE TABLE webhook_events (
    -- one of webhook_sources; no foreign key, since storing would wait for whoever applies
    source TEXT NOT NULL,
    id TEXT NOT NULL,
    type TEXT NOT NULL,
    -- when it happened, as its sender says
    created_at BIGINT NOT NULL,
    received_at BIGINT NOT NULL,
    body TEXT NOT NULL,
    -- 'received', 'applied' (with its effect), 'ignored' (none of our business), 'kept' (paid, but it
    -- matches nothing of ours: an operator's to see to), 'failed', or 'dismissed' (seen to)
    status TEXT NOT NULL,
    -- what became of it, or what went wrong
    detail TEXT,
    attempts BIGINT NOT NULL,
    -- when it was applied, ignored or kept
    done_at BIGINT,
    PRIMARY KEY (source, id)
);
CREATE INDEX webhook_events_by_time ON webhook_events (received_at, id);
CREATE INDEX webhook_events_open ON webhook_events (received_at, id)
    WHERE status IN ('received', 'failed', 'kept');
