-- Another number after each change of the account's budgets, so that whoever holds the account's lock sees
-- by it whether what it knows of them still holds.
ALTER TABLE accounts ADD COLUMN limits_version BIGINT NOT NULL DEFAULT 0;

CREATE FUNCTION count_change_of_budgets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE accounts SET limits_version = limits_version + 1
    WHERE id IN (CASE WHEN TG_OP <> 'INSERT' THEN OLD.account_id END,
                 CASE WHEN TG_OP <> 'DELETE' THEN NEW.account_id END);
    RETURN NULL;
END
$$;
CREATE TRIGGER budgets_changed AFTER INSERT OR UPDATE OR DELETE ON budgets
FOR EACH ROW EXECUTE FUNCTION count_change_of_budgets();
