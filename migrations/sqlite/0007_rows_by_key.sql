-- The tables that casts write to are kept by their primary key instead of by a number of SQLite's own, to which the
-- key would be an index beside: a row is written once, and found by one search instead of two. They are made anew,
-- with the columns, indexes and triggers that they had. For ten million casts and as many lines that takes a minute or
-- two, and meanwhile some twice the disk that they have, most of it in the WAL file.

CREATE TABLE balances_by_key (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    key_id TEXT,
    spell TEXT,
    budget_id TEXT,
    starts_at BIGINT,
    posted BIGINT NOT NULL,
    pending BIGINT NOT NULL,
    calls BIGINT NOT NULL,
    granted BIGINT,
    unit TEXT
) WITHOUT ROWID;
INSERT INTO balances_by_key
SELECT id, account_id, kind, key_id, spell, budget_id, starts_at, posted, pending, calls, granted,
       unit
FROM balances ORDER BY id;
DROP TABLE balances;
ALTER TABLE balances_by_key RENAME TO balances;
CREATE INDEX balances_by_account ON balances (account_id, kind, starts_at);

CREATE TABLE entries_by_key (
    reference TEXT NOT NULL,
    cause TEXT NOT NULL,
    balance_id TEXT NOT NULL,
    amount BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (reference, cause, balance_id)
) WITHOUT ROWID;
INSERT INTO entries_by_key
SELECT reference, cause, balance_id, amount, created_at
FROM entries ORDER BY reference, cause, balance_id;
DROP TABLE entries;
ALTER TABLE entries_by_key RENAME TO entries;
CREATE TRIGGER entries_are_never_changed BEFORE UPDATE ON entries
BEGIN
    SELECT RAISE(ABORT, 'entries are append-only: correct by a new entry');
END;
CREATE TRIGGER entries_leave_by_closing BEFORE DELETE ON entries
WHEN OLD.cause NOT IN ('charge', 'post', 'lost', 'reversal', 'closing')
  OR NOT EXISTS (SELECT 1 FROM retention
                 WHERE name = 'entries' AND closing AND closed_before > OLD.created_at)
  OR NOT EXISTS (SELECT 1 FROM entries AS closing
                 WHERE closing.reference IN ('closing/' || (OLD.created_at / 86400000) || '/0',
                                             'closing/' || (OLD.created_at / 86400000) || '/1')
                   AND closing.reference <> OLD.reference
                   AND closing.cause = 'closing' AND closing.balance_id = OLD.balance_id
                   AND closing.created_at >= OLD.created_at)
BEGIN
    SELECT RAISE(ABORT, 'entries are append-only: they leave by a closing alone');
END;

CREATE TABLE holds_by_key (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    spell TEXT NOT NULL,
    held_for TEXT NOT NULL,
    amount BIGINT NOT NULL,
    began_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    on_lost TEXT NOT NULL,
    state TEXT NOT NULL,
    posted BIGINT,
    late BOOLEAN NOT NULL,
    ended_at BIGINT,
    pay_from TEXT
) WITHOUT ROWID;
INSERT INTO holds_by_key
SELECT id, account_id, key_id, spell, held_for, amount, began_at, expires_at, on_lost, state, posted,
       late, ended_at, pay_from
FROM holds ORDER BY id;
DROP TABLE holds;
ALTER TABLE holds_by_key RENAME TO holds;
CREATE INDEX holds_due ON holds (expires_at) WHERE state = 'open';
CREATE INDEX holds_by_account ON holds (account_id, id) WHERE held_for = 'external';

CREATE TABLE casts_by_key (
    id TEXT PRIMARY KEY NOT NULL,
    account_id TEXT NOT NULL,
    key_id TEXT NOT NULL,
    spell TEXT NOT NULL,
    status TEXT NOT NULL,
    cost BIGINT NOT NULL,
    error_code TEXT,
    created_at BIGINT NOT NULL,
    finished_at BIGINT
) WITHOUT ROWID;
INSERT INTO casts_by_key
SELECT id, account_id, key_id, spell, status, cost, error_code, created_at, finished_at
FROM casts ORDER BY id;
DROP TABLE casts;
ALTER TABLE casts_by_key RENAME TO casts;
CREATE INDEX casts_by_account ON casts (account_id, id);

CREATE TABLE batches_by_key (
    id TEXT PRIMARY KEY NOT NULL,
    created_at BIGINT NOT NULL
) WITHOUT ROWID;
INSERT INTO batches_by_key
SELECT id, created_at
FROM batches ORDER BY id;
DROP TABLE batches;
ALTER TABLE batches_by_key RENAME TO batches;
CREATE INDEX batches_due ON batches (created_at);
