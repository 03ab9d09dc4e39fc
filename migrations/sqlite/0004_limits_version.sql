-- Another one after each change of the account's budgets, so that whoever holds the account's lock sees by it
-- whether what it knows of them still holds. Random, not counted: in a database that was restored, or that a
-- standby took over from, a count would come to the same number a second time.
ALTER TABLE accounts ADD COLUMN limits_version TEXT NOT NULL DEFAULT '';

CREATE TRIGGER budgets_made AFTER INSERT ON budgets
BEGIN
    UPDATE accounts SET limits_version = hex(randomblob(16)) WHERE id = NEW.account_id;
END;
CREATE TRIGGER budgets_changed AFTER UPDATE ON budgets
BEGIN
    UPDATE accounts SET limits_version = hex(randomblob(16)) WHERE id IN (OLD.account_id, NEW.account_id);
END;
CREATE TRIGGER budgets_deleted AFTER DELETE ON budgets
BEGIN
    UPDATE accounts SET limits_version = hex(randomblob(16)) WHERE id = OLD.account_id;
END;

-- A plan has a version of its own; who changes its limit by hand changes that, too.
CREATE TRIGGER plans_limited AFTER UPDATE OF hard_limit_cents, is_default ON plans
WHEN NEW.version = OLD.version
BEGIN
    UPDATE plans SET version = 'planv_' || hex(randomblob(16)) WHERE code = NEW.code;
END;
