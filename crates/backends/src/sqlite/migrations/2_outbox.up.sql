-- One writer at a time: the order of `seq` is the order of the commits. AUTOINCREMENT never gives a place twice.
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL,
    aggregate_type TEXT NOT NULL,
    aggregate_id TEXT NOT NULL,
    event_type TEXT NOT NULL,
    topic TEXT NOT NULL,
    partition_key TEXT,
    event_data TEXT NOT NULL,
    created_at TEXT NOT NULL
) STRICT;

-- What a broker refused: still tried, or given up.
CREATE TABLE outbox_refused (
    seq INTEGER PRIMARY KEY REFERENCES outbox (seq) ON DELETE CASCADE,
    attempts INTEGER NOT NULL,
    error TEXT NOT NULL,
    given_up_at TEXT
) STRICT;

-- One row: how far the relay is, and which one it is.
CREATE TABLE outbox_relay (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    name TEXT NOT NULL,
    position INTEGER NOT NULL DEFAULT 0,
    sent_at TEXT,
    holder TEXT,
    held_until REAL
) STRICT;
INSERT INTO outbox_relay (one, name) VALUES (1, lower(
    hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-8'
    || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))));

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
