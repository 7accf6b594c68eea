DROP TRIGGER towpath_keep_users ON users;
DROP FUNCTION towpath_keep_users();
DROP INDEX outbox_id;
DROP VIEW outbox_events;
DROP FUNCTION towpath_change_outbox_event();
DROP VIEW outbox_sent;

-- A payload that the column of the other program cannot have becomes a text in JSON.
CREATE FUNCTION pg_temp.towpath_json(data text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN data::jsonb;
EXCEPTION WHEN data_exception OR untranslatable_character THEN
    RETURN to_jsonb(data);
END $$;

-- Without the table the relay would send these again.
DO $$
BEGIN
    IF to_regclass('outbox_events_before') IS NOT NULL THEN
        INSERT INTO outbox_events_before (id, aggregate_type, aggregate_id, event_type, event_data, status, topic,
            partition_key, created_at, processed_at, retry_count)
        SELECT o.id, o.aggregate_type, o.aggregate_id, o.event_type, pg_temp.towpath_json(o.event_data), 'SENT', o.topic,
            o.partition_key, o.created_at, e.processed_at, e.retry_count
        FROM (SELECT DISTINCT ON (id) * FROM outbox ORDER BY id, seq DESC) o
        JOIN outbox_external e ON e.seq = o.seq AND e.id = o.id AND e.status = 'SENT'
        ON CONFLICT (id) DO UPDATE SET status = 'SENT', processed_at = excluded.processed_at, error_message = NULL;
    END IF;
END $$;
DELETE FROM outbox o USING outbox_external e WHERE e.seq = o.seq AND e.id = o.id AND e.status = 'SENT';
DROP TABLE outbox_external;
DROP FUNCTION pg_temp.towpath_json(text);

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
CROSS JOIN (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS highest FROM outbox_seq_seq) s
LEFT JOIN outbox_refused f ON f.seq = o.seq;
