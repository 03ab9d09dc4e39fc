-- Of a batch whose commit was not heard of: its id is taken, so that it can't be committed any more.
ALTER TABLE batches ADD COLUMN lost BOOLEAN NOT NULL DEFAULT false;

-- As on PostgreSQL, where it matters: another version of the account's limits with a plan's first window.
CREATE TRIGGER windows_of_plans AFTER INSERT ON balances
WHEN NEW.kind = 'window' AND NEW.budget_id LIKE 'plan/%'
BEGIN
    UPDATE accounts SET limits_version = hex(randomblob(16)) WHERE id = NEW.account_id;
END;
