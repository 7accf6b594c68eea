-- A position that is behind every place that was given out is not one of these events: none of them counts as sent.
DROP VIEW outbox_events;
CREATE VIEW outbox_events AS
SELECT o.seq, o.id, o.aggregate_type, o.aggregate_id, o.event_type, o.event_data,
    CASE
        WHEN f.given_up_at IS NOT NULL THEN 'FAILED'
        WHEN o.seq <= r.position AND r.position <= s.highest THEN 'SENT'
        WHEN f.seq IS NOT NULL THEN 'PROCESSING'
        ELSE 'NEW'
    END AS status,
    o.topic, o.partition_key, o.created_at,
    coalesce(f.attempts, 0) AS retry_count, f.error AS error_message
FROM outbox o CROSS JOIN outbox_relay r
CROSS JOIN (SELECT max(coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'outbox'), 0),
    coalesce((SELECT max(seq) FROM outbox), 0)) AS highest) s
LEFT JOIN outbox_refused f ON f.seq = o.seq;
