-- A position that is behind every place that was given out is not one of these events: none of them counts as sent.
CREATE OR REPLACE VIEW outbox_events AS
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
CROSS JOIN (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS highest FROM outbox_seq_seq) s
LEFT JOIN outbox_refused f ON f.seq = o.seq;
