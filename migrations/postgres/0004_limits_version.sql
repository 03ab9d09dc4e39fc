-- Another one after each change of the account's budgets, so that whoever holds the account's lock sees by it
-- whether what it knows of them still holds. Random, not counted: in a database that was restored, or that a
-- standby took over from, a count would come to the same number a second time.
ALTER TABLE accounts ADD COLUMN limits_version TEXT NOT NULL DEFAULT '';

CREATE FUNCTION note_change_of_budgets() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE accounts SET limits_version = CAST(gen_random_uuid() AS TEXT)
    WHERE id IN (CASE WHEN TG_OP <> 'INSERT' THEN OLD.account_id END,
                 CASE WHEN TG_OP <> 'DELETE' THEN NEW.account_id END);
    RETURN NULL;
END
$$;
CREATE TRIGGER budgets_changed AFTER INSERT OR UPDATE OR DELETE ON budgets
FOR EACH ROW EXECUTE FUNCTION note_change_of_budgets();

-- A plan has a version of its own; who changes its limit by hand changes that, too.
CREATE FUNCTION note_change_of_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.version := 'planv_' || CAST(gen_random_uuid() AS TEXT);
    RETURN NEW;
END
$$;
CREATE TRIGGER plans_limited BEFORE UPDATE OF hard_limit_cents, is_default ON plans
FOR EACH ROW WHEN (NEW.version = OLD.version) EXECUTE FUNCTION note_change_of_plan();
