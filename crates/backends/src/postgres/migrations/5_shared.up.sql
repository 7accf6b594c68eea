-- What was in the database before Towpath, for the way back. `Schema::up` fills them before the first migration.
CREATE TABLE IF NOT EXISTS towpath_found (name text PRIMARY KEY);
CREATE TABLE IF NOT EXISTS towpath_found_emails (id uuid PRIMARY KEY, email text NOT NULL);
INSERT INTO towpath_found (name)
SELECT 'users' WHERE to_regclass('outbox_events_before') IS NOT NULL ON CONFLICT DO NOTHING;

-- Other programs change users too: addresses stay in lower case, and every change has a version.
CREATE FUNCTION towpath_keep_users() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.email <> lower(NEW.email) THEN
        INSERT INTO towpath_found_emails (id, email) VALUES (NEW.id, NEW.email)
        ON CONFLICT (id) DO UPDATE SET email = excluded.email;
        NEW.email := lower(NEW.email);
    END IF;
    IF TG_OP = 'UPDATE' AND NEW.version = OLD.version THEN
        NEW.version := OLD.version + 1;
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER towpath_keep_users BEFORE INSERT OR UPDATE ON users
FOR EACH ROW EXECUTE FUNCTION towpath_keep_users();

CREATE INDEX outbox_id ON outbox (id);

-- What other programs say of an event that the position is not behind. Not a foreign key: the outbox may be truncated,
-- and gives out its places again then, so an event is known by its id too.
CREATE TABLE outbox_external (
    seq bigint PRIMARY KEY,
    id uuid NOT NULL,
    status text NOT NULL CHECK (status IN ('NEW', 'PROCESSING', 'SENT', 'FAILED')),
    processed_at timestamptz,
    retry_count integer NOT NULL DEFAULT 0,
    error text
);

-- One row: the last event that counts as sent.
CREATE VIEW outbox_sent AS
SELECT CASE WHEN r.position <= s.highest THEN r.position ELSE 0 END AS position
FROM outbox_relay r CROSS JOIN (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS highest FROM outbox_seq_seq) s;

-- One branch for each constant status, so that a search for NEW events does not read the others.
DROP VIEW outbox_events;
DO $$
DECLARE
    found text := '';
BEGIN
    IF to_regclass('outbox_events_before') IS NOT NULL THEN
        found := ' UNION ALL
            SELECT NULL::bigint, id, aggregate_type::text, aggregate_id::text, event_type::text, event_data::text,
                ''SENT''::text, topic::text, partition_key::text, created_at, processed_at, coalesce(retry_count, 0), 3,
                error_message
            FROM outbox_events_before WHERE status = ''SENT''';
    END IF;
    EXECUTE 'CREATE VIEW outbox_events AS
        SELECT o.seq, o.id, o.aggregate_type, o.aggregate_id, o.event_type, o.event_data,
            coalesce(e.status, CASE WHEN f.seq IS NOT NULL THEN ''PROCESSING'' ELSE ''NEW'' END) AS status,
            o.topic, o.partition_key, o.created_at, e.processed_at,
            coalesce(f.attempts, e.retry_count, 0) AS retry_count, 3 AS max_retries, coalesce(f.error, e.error) AS error_message
        FROM outbox o LEFT JOIN outbox_refused f ON f.seq = o.seq LEFT JOIN outbox_external e ON e.seq = o.seq AND e.id = o.id
        WHERE o.seq > (SELECT position FROM outbox_sent) AND f.given_up_at IS NULL
        UNION ALL
        SELECT o.seq, o.id, o.aggregate_type, o.aggregate_id, o.event_type, o.event_data,
            ''FAILED''::text, o.topic, o.partition_key, o.created_at, f.given_up_at, f.attempts, 3, f.error
        FROM outbox o JOIN outbox_refused f ON f.seq = o.seq WHERE f.given_up_at IS NOT NULL
        UNION ALL
        SELECT o.seq, o.id, o.aggregate_type, o.aggregate_id, o.event_type, o.event_data,
            ''SENT''::text, o.topic, o.partition_key, o.created_at, e.processed_at, coalesce(f.attempts, 0), 3, f.error
        FROM outbox o LEFT JOIN outbox_refused f ON f.seq = o.seq LEFT JOIN outbox_external e ON e.seq = o.seq AND e.id = o.id
        WHERE o.seq <= (SELECT position FROM outbox_sent) AND f.given_up_at IS NULL' || found;
END $$;
ALTER VIEW outbox_events ALTER COLUMN status SET DEFAULT 'NEW';
ALTER VIEW outbox_events ALTER COLUMN created_at SET DEFAULT now();

-- Events that another relay was sending when the table was adopted: theirs until they are SENT or 30 s old.
DO $$
BEGIN
    IF to_regclass('outbox_events_before') IS NOT NULL THEN
        INSERT INTO outbox_external (seq, id, status, processed_at)
        SELECT o.seq, o.id, 'PROCESSING', b.processed_at FROM outbox o JOIN outbox_events_before b ON b.id = o.id
        WHERE b.status = 'PROCESSING' AND b.processed_at > now() - interval '30 seconds'
        AND o.seq > (SELECT position FROM outbox_sent);
        UPDATE outbox_relay SET holder = '00000000-0000-0000-0000-000000000001',
            held_until = (SELECT max(processed_at) FROM outbox_external) + interval '30 seconds'
        WHERE EXISTS (SELECT FROM outbox_external) AND (holder IS NULL OR held_until < now());
    END IF;
END $$;

-- Statements of other programs on `outbox_events`. A program that sets an event to PROCESSING holds the lease of the
-- relays until it says SENT or FAILED, or for 30 s: relays of both kinds take turns.
CREATE FUNCTION towpath_change_outbox_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    external CONSTANT uuid := '00000000-0000-0000-0000-000000000001';
    is_free boolean;
    sent bigint;
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO outbox
            (id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at)
        VALUES (NEW.id, NEW.aggregate_type, NEW.aggregate_id, NEW.event_type, NEW.topic, NEW.partition_key,
            NEW.event_data::jsonb::text, coalesce(NEW.created_at, now()))
        RETURNING seq INTO NEW.seq;
        IF coalesce(NEW.status, 'NEW') <> 'NEW' THEN
            INSERT INTO outbox_external (seq, id, status, processed_at, retry_count, error)
            VALUES (NEW.seq, NEW.id, NEW.status, NEW.processed_at, coalesce(NEW.retry_count, 0), NEW.error_message)
            ON CONFLICT (seq) DO UPDATE SET id = excluded.id, status = excluded.status,
                processed_at = excluded.processed_at, retry_count = excluded.retry_count, error = excluded.error;
        END IF;
        RETURN NEW;
    END IF;

    IF OLD.seq IS NULL THEN
        IF TG_OP = 'UPDATE' AND NEW.status = 'SENT' THEN
            UPDATE outbox_events_before SET processed_at = NEW.processed_at, retry_count = NEW.retry_count,
                error_message = NEW.error_message, topic = NEW.topic WHERE id = OLD.id;
            RETURN NEW;
        END IF;
        DELETE FROM outbox_events_before WHERE id = OLD.id;
        IF TG_OP = 'DELETE' THEN
            RETURN OLD;
        END IF;
        INSERT INTO outbox
            (id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at)
        VALUES (NEW.id, NEW.aggregate_type, NEW.aggregate_id, NEW.event_type, NEW.topic, NEW.partition_key,
            NEW.event_data, NEW.created_at);
        RETURN NEW;
    END IF;

    IF TG_OP = 'DELETE' THEN
        DELETE FROM outbox WHERE seq = OLD.seq;
        RETURN OLD;
    END IF;

    -- Changes of status take turns, and what they decide by is read after their turn came.
    SELECT holder IS NULL OR holder = external OR held_until < clock_timestamp() INTO is_free
    FROM outbox_relay FOR UPDATE;
    SELECT position INTO sent FROM outbox_sent;

    IF (NEW.topic, NEW.partition_key, NEW.event_data) IS DISTINCT FROM (OLD.topic, OLD.partition_key, OLD.event_data) THEN
        UPDATE outbox SET topic = NEW.topic, partition_key = NEW.partition_key, event_data = NEW.event_data
        WHERE seq = OLD.seq;
    END IF;

    IF NEW.status = 'PROCESSING' AND OLD.status <> 'PROCESSING' THEN
        IF NOT is_free OR OLD.seq <= sent THEN
            RETURN NULL;
        END IF;
        INSERT INTO outbox_external (seq, id, status, processed_at, retry_count, error)
        VALUES (OLD.seq, OLD.id, 'PROCESSING', coalesce(NEW.processed_at, clock_timestamp()), NEW.retry_count, NEW.error_message)
        ON CONFLICT (seq) DO UPDATE SET id = excluded.id, status = 'PROCESSING', processed_at = excluded.processed_at
        WHERE outbox_external.status = OLD.status OR outbox_external.id <> excluded.id;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
        UPDATE outbox_relay SET holder = external, held_until = clock_timestamp() + interval '30 seconds';
        RETURN NEW;
    END IF;

    IF OLD.seq <= sent THEN
        IF NEW.status = 'NEW' AND OLD.status <> 'NEW' THEN
            -- Sent again, behind every other event.
            INSERT INTO outbox
                (id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at)
            SELECT id, aggregate_type, aggregate_id, event_type, topic, partition_key, event_data, created_at
            FROM outbox WHERE seq = OLD.seq;
            DELETE FROM outbox WHERE seq = OLD.seq;
        ELSIF NEW.status = 'SENT' THEN
            DELETE FROM outbox_refused WHERE seq = OLD.seq AND given_up_at IS NOT NULL;
        END IF;
    ELSE
        INSERT INTO outbox_external (seq, id, status, processed_at, retry_count, error)
        VALUES (OLD.seq, OLD.id, NEW.status, NEW.processed_at, coalesce(NEW.retry_count, 0), NEW.error_message)
        ON CONFLICT (seq) DO UPDATE SET id = excluded.id, status = excluded.status,
            processed_at = excluded.processed_at, retry_count = excluded.retry_count, error = excluded.error;
    END IF;
    UPDATE outbox_relay SET holder = NULL, held_until = NULL WHERE holder = external AND NOT EXISTS (
        SELECT FROM outbox_external
        WHERE status = 'PROCESSING' AND processed_at > clock_timestamp() - interval '30 seconds' AND seq > sent);
    RETURN NEW;
END $$;
CREATE TRIGGER towpath_change_outbox_event INSTEAD OF INSERT OR UPDATE OR DELETE ON outbox_events
FOR EACH ROW EXECUTE FUNCTION towpath_change_outbox_event();
