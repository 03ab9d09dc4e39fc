-- Another number after each change of the account's budgets, so that whoever holds the account's lock sees
-- by it whether what it knows of them still holds.
ALTER TABLE accounts ADD COLUMN limits_version BIGINT NOT NULL DEFAULT 0;

CREATE TRIGGER budgets_made AFTER INSERT ON budgets
BEGIN
    UPDATE accounts SET limits_version = limits_version + 1 WHERE id = NEW.account_id;
END;
CREATE TRIGGER budgets_changed AFTER UPDATE ON budgets
BEGIN
    UPDATE accounts SET limits_version = limits_version + 1 WHERE id IN (OLD.account_id, NEW.account_id);
END;
CREATE TRIGGER budgets_deleted AFTER DELETE ON budgets
BEGIN
    UPDATE accounts SET limits_version = limits_version + 1 WHERE id = OLD.account_id;
END;
