-- What one replica at a time does for all of them, and when one began to: the server's comparison with Stripe.
CREATE TABLE turns (
    name TEXT PRIMARY KEY NOT NULL,
    taken_at BIGINT NOT NULL
);
