-- Events whose body may leave. All the others are too many to be looked through again and again.
CREATE INDEX webhook_events_with_body ON webhook_events (received_at, id)
    WHERE body <> '' AND status IN ('applied', 'ignored');

-- Whether a purchase under way is one of a subscription that has ended is asked before each checkout.
CREATE INDEX subscriptions_by_purchase ON subscriptions (purchase_id);
