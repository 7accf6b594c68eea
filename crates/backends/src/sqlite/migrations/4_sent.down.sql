DROP VIEW outbox_events;
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
