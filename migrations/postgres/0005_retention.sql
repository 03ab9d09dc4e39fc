-- Old casts and holds leave together with their lines, for which one line of the same balance and day stands from
-- then on: a closing. Its reference names the day, by its number since 1970, and is one of two by turns.
-- One row, which whoever closes lines changes first, and so has to itself.
CREATE TABLE retention (
    name TEXT PRIMARY KEY NOT NULL,
    -- true inside the transaction that closes lines, and never after it: lines may be removed only then
    closing BOOLEAN NOT NULL,
    -- the latest time before which lines were closed; it only rises
    closed_before BIGINT NOT NULL
);
INSERT INTO retention (name, closing, closed_before) VALUES ('entries', false, 0);

-- The triggers stay as they are: to change one would keep every cast waiting.
CREATE OR REPLACE FUNCTION refuse_change_of_entries() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.cause IN ('charge', 'post', 'lost', 'reversal', 'closing')
           AND EXISTS (SELECT 1 FROM retention
                       WHERE name = 'entries' AND closing AND closed_before > OLD.created_at)
           AND EXISTS (SELECT 1 FROM entries AS closing
                       WHERE closing.reference IN ('closing/' || (OLD.created_at / 86400000) || '/0',
                                                   'closing/' || (OLD.created_at / 86400000) || '/1')
                         AND closing.reference <> OLD.reference
                         AND closing.cause = 'closing' AND closing.balance_id = OLD.balance_id
                         AND closing.created_at >= OLD.created_at) THEN
            RETURN OLD;
        END IF;
        RAISE EXCEPTION 'entries are append-only: they leave by a closing alone';
    END IF;
    RAISE EXCEPTION 'entries are append-only: correct by a new entry';
END
$$;
