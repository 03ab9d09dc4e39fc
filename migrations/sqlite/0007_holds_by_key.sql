-- The tables that casts add to are kept by their primary key instead of by a number of SQLite's own, to which the key
-- would be an index beside: a row is written once, and found by one search instead of two. Balances are not: they are
-- changed all over their table, and a tree of whole rows is deeper than one of numbers. The tables are made anew, with
-- the columns, indexes and triggers that they had, in migrations of their own, so that the log of one is emptied before
-- the next. For ten million casts and as many lines that takes a minute or two, and at most the disk that they have
-- once more in the WAL file, and again in SQLite's folder for temporary files. What is free afterwards is used again.

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
-- There is none if another process has done this meanwhile.
SELECT rowid FROM holds LIMIT 0;
INSERT INTO holds_by_key
SELECT id, account_id, key_id, spell, held_for, amount, began_at, expires_at, on_lost, state, posted,
       late, ended_at, pay_from
FROM holds ORDER BY id;
DROP TABLE holds;
ALTER TABLE holds_by_key RENAME TO holds;
CREATE INDEX holds_due ON holds (expires_at) WHERE state = 'open';
CREATE INDEX holds_by_account ON holds (account_id, id) WHERE held_for = 'external';

CREATE TABLE batches_by_key (
    id TEXT PRIMARY KEY NOT NULL,
    created_at BIGINT NOT NULL
) WITHOUT ROWID;
-- There is none if another process has done this meanwhile.
SELECT rowid FROM batches LIMIT 0;
INSERT INTO batches_by_key
SELECT id, created_at
FROM batches ORDER BY id;
DROP TABLE batches;
ALTER TABLE batches_by_key RENAME TO batches;
CREATE INDEX batches_due ON batches (created_at);
