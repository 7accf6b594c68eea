CREATE TABLE outbox (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id uuid NOT NULL,
    aggregate_type text NOT NULL,
    aggregate_id text NOT NULL,
    event_type text NOT NULL,
    topic text NOT NULL,
    partition_key text,
    event_data text NOT NULL,
    created_at timestamptz NOT NULL
);

-- What a broker refused: still tried, or given up.
CREATE TABLE outbox_refused (
    seq bigint PRIMARY KEY REFERENCES outbox (seq) ON DELETE CASCADE,
    attempts integer NOT NULL,
    error text NOT NULL,
    given_up_at timestamptz
);

-- One row, written for each batch in place: how far the relay is, and which one it is.
CREATE TABLE outbox_relay (
    one integer PRIMARY KEY CHECK (one = 1),
    name uuid NOT NULL,
    position bigint NOT NULL DEFAULT 0,
    sent_at timestamptz,
    holder uuid,
    held_until timestamptz
) WITH (fillfactor = 10);
INSERT INTO outbox_relay (one, name) VALUES (1, gen_random_uuid());

-- A table of events that is there is taken over: what was not sent goes into the outbox, the rest stays beside it.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_class WHERE oid = to_regclass('outbox_events') AND relkind IN ('r', 'p')
    ) THEN
        ALTER TABLE outbox_events RENAME TO outbox_events_before;
        INSERT INTO outbox
            (id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at)
        SELECT id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data::text, created_at
        FROM outbox_events_before WHERE status <> 'SENT' ORDER BY created_at, id;
    END IF;
END $$;

CREATE VIEW outbox_events AS
SELECT o.seq, o.id, o.aggregate_type, o.aggregate_id, o.event_type, o.event_data,
    CASE
        WHEN f.given_up_at IS NOT NULL THEN 'FAILED'
        WHEN o.seq <= r.position THEN 'SENT'
        WHEN f.seq IS NOT NULL THEN 'PROCESSING'
        ELSE 'NEW'
    END AS status,
    o.topic, o.partition_key, o.created_at,
    coalesce(f.attempts, 0) AS retry_count, f.error AS error_message
FROM outbox o CROSS JOIN outbox_relay r LEFT JOIN outbox_refused f ON f.seq = o.seq;
