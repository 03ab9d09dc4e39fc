-- As 0007.

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
-- There is none if another process has done this meanwhile.
SELECT rowid FROM casts LIMIT 0;
INSERT INTO casts_by_key
SELECT id, account_id, key_id, spell, status, cost, error_code, created_at, finished_at
FROM casts ORDER BY id;
DROP TABLE casts;
ALTER TABLE casts_by_key RENAME TO casts;
CREATE INDEX casts_by_account ON casts (account_id, id);
