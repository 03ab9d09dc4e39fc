-- Of a batch whose commit was not heard of: its id is taken, so that it can't be committed any more.
ALTER TABLE batches ADD COLUMN lost BOOLEAN NOT NULL DEFAULT false;

-- A batch that did not look compares the version of the account's limits with the one that it knows. Of a plan's
-- limit, that tells once the account is locked only if the account's own row changes with the plan's first window
-- of that version: whoever waits for the lock sees `plans` as it was before.
CREATE FUNCTION note_window_of_plan() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE accounts SET limits_version = CAST(gen_random_uuid() AS TEXT) WHERE id = NEW.account_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER windows_of_plans AFTER INSERT ON balances
FOR EACH ROW WHEN (NEW.kind = 'window' AND NEW.budget_id LIKE 'plan/%') EXECUTE FUNCTION note_window_of_plan();
