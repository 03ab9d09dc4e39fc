-- As 0007.

CREATE TABLE entries_by_key (
    reference TEXT NOT NULL,
    cause TEXT NOT NULL,
    balance_id TEXT NOT NULL,
    amount BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (reference, cause, balance_id)
) WITHOUT ROWID;
-- There is none if another process has done this meanwhile.
SELECT rowid FROM entries LIMIT 0;
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
