-- A payload that the column of the other program cannot have becomes a text in JSON.
CREATE FUNCTION pg_temp.towpath_json(data text) RETURNS jsonb LANGUAGE plpgsql AS $$
BEGIN
    RETURN data::jsonb;
EXCEPTION WHEN data_exception OR untranslatable_character THEN
    RETURN to_jsonb(data);
END $$;

-- A table of events that was adopted gets its name back, and what became of its events and of those since.
DO $$
BEGIN
    IF to_regclass('outbox_events_before') IS NOT NULL THEN
        INSERT INTO outbox_events_before (id, aggregate_type, aggregate_id, event_type, event_data, status, topic,
            partition_key, created_at, processed_at, retry_count, error_message)
        SELECT DISTINCT ON (id) id, aggregate_type, aggregate_id, event_type, pg_temp.towpath_json(event_data),
            CASE status WHEN 'PROCESSING' THEN 'NEW' ELSE status END, topic, partition_key, created_at,
            CASE status WHEN 'SENT' THEN now() END, retry_count, error_message
        FROM outbox_events ORDER BY id, seq DESC
        ON CONFLICT (id) DO UPDATE SET status = excluded.status, processed_at = excluded.processed_at,
            retry_count = excluded.retry_count, error_message = excluded.error_message;
    END IF;
END $$;
DROP VIEW outbox_events;
ALTER TABLE IF EXISTS outbox_events_before RENAME TO outbox_events;
DROP TABLE outbox_relay;
DROP TABLE outbox_refused;
DROP TABLE outbox;
DROP FUNCTION pg_temp.towpath_json(text);
