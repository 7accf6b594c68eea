-- Keys and values. A key without a value holds fields.
CREATE TABLE towpath.kv (
    key text COLLATE "C" PRIMARY KEY,
    value bytea,
    expires_at timestamptz
) WITH (fillfactor = 70);
CREATE INDEX kv_expires ON towpath.kv (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE towpath.kv_field (
    key text COLLATE "C" NOT NULL,
    field text COLLATE "C" NOT NULL,
    value bytea NOT NULL,
    PRIMARY KEY (key, field)
) WITH (fillfactor = 70);

-- States of limits: inserted, never changed. The newest row of a key counts, so a hot limit leaves no dead rows while
-- another transaction holds back vacuum. The part follows the clock: one a minute, and the oldest one is truncated.
CREATE SEQUENCE towpath.limit_seq;
CREATE TABLE towpath.limit_cell (
    part smallint NOT NULL,
    n bigint NOT NULL,
    key text COLLATE "C" NOT NULL,
    algorithm text,
    span_ms bigint,
    at_ms bigint,
    missing numeric,
    slots bigint[],
    taken numeric[],
    full_at_ms bigint NOT NULL
) PARTITION BY LIST (part);
CREATE TABLE towpath.limit_cell_0 PARTITION OF towpath.limit_cell FOR VALUES IN (0) WITH (autovacuum_enabled = false);
CREATE TABLE towpath.limit_cell_1 PARTITION OF towpath.limit_cell FOR VALUES IN (1) WITH (autovacuum_enabled = false);
CREATE TABLE towpath.limit_cell_2 PARTITION OF towpath.limit_cell FOR VALUES IN (2) WITH (autovacuum_enabled = false);
CREATE TABLE towpath.limit_cell_3 PARTITION OF towpath.limit_cell FOR VALUES IN (3) WITH (autovacuum_enabled = false);
CREATE INDEX limit_cell_newest ON towpath.limit_cell (key, n DESC);
CREATE TYPE towpath.limit_state AS (
    algorithm text, span_ms bigint, at_ms bigint, missing numeric, slots bigint[], taken numeric[]);

-- Locks keys until the end of the transaction, in one order for all callers. Two keys may share a lock, so that a long
-- list of keys does not fill the server's lock table. Later statements of the caller must see the changes of earlier
-- holders, which needs a snapshot for each statement.
CREATE FUNCTION towpath.lock_keys(space integer, names text[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('transaction_isolation') NOT IN ('read committed', 'read uncommitted') THEN
        RAISE EXCEPTION 'the isolation level must be read committed' USING ERRCODE = '25001';
    END IF;
    PERFORM pg_advisory_xact_lock(space, stripe) FROM (
        SELECT DISTINCT hashtext(name) & 4095 AS stripe FROM unnest(names) AS name ORDER BY 1
    ) AS stripes;
END $$;

-- Applies the ops one after the other. `failed` is the index of the op whose condition did not hold, with the value
-- that the key has, or with the reason for which it is invalid; the changes before it are the caller's to roll back.
CREATE FUNCTION towpath.kv_apply(
    kinds text[], keys text[], args bytea[], expected bytea[], field_names text[],
    deltas bigint[], mins bigint[], maxs bigint[], ttls bigint[],
    OUT failed integer, OUT reason text, OUT present bytea, OUT results bytea[]
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    moment timestamptz;
    stored towpath.kv;
    is_there boolean;
    has_fields boolean;
    until timestamptz;
    digits text;
    total numeric;
BEGIN
    results := '{}';
    PERFORM towpath.lock_keys(1953462017, keys);
    moment := clock_timestamp();
    FOR i IN 1 .. cardinality(kinds) LOOP
        SELECT * INTO stored FROM towpath.kv WHERE key = keys[i];
        -- An expired key may still have its rows.
        has_fields := FOUND AND stored.value IS NULL;
        is_there := FOUND AND (stored.expires_at IS NULL OR stored.expires_at > moment);
        IF NOT is_there THEN
            stored.value := NULL;
            stored.expires_at := NULL;
        END IF;
        until := moment + make_interval(secs => ttls[i] / 1000.0);
        IF is_there AND has_fields AND kinds[i] IN ('absent', 'swap', 'add') THEN
            failed := i - 1;
            reason := 'holds fields, not a value';
            RETURN;
        END IF;
        IF has_fields AND (NOT is_there OR kinds[i] IN ('put', 'delete')) THEN
            DELETE FROM towpath.kv_field WHERE key = keys[i];
        END IF;
        CASE kinds[i]
        WHEN 'put', 'absent', 'swap' THEN
            IF (kinds[i] = 'absent' AND is_there)
                OR (kinds[i] = 'swap' AND stored.value IS DISTINCT FROM expected[i]) THEN
                failed := i - 1;
                present := stored.value;
                RETURN;
            END IF;
            INSERT INTO towpath.kv VALUES (keys[i], args[i], until)
            ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at;
            results := array_append(results, args[i]);
        WHEN 'add' THEN
            digits := encode(coalesce(stored.value, '0'), 'escape');
            IF digits !~ '^[+-]?[0-9]{1,100}$'
                OR digits::numeric NOT BETWEEN -9223372036854775808 AND 9223372036854775807 THEN
                failed := i - 1;
                reason := 'holds no integer';
                RETURN;
            END IF;
            total := digits::numeric + deltas[i];
            IF total < mins[i] OR total > maxs[i] THEN
                failed := i - 1;
                present := stored.value;
                RETURN;
            END IF;
            INSERT INTO towpath.kv VALUES (keys[i], convert_to(total::text, 'UTF8'), stored.expires_at)
            ON CONFLICT (key) DO UPDATE SET value = excluded.value, expires_at = excluded.expires_at;
            results := array_append(results, convert_to(total::text, 'UTF8'));
        WHEN 'delete' THEN
            DELETE FROM towpath.kv WHERE key = keys[i];
            results := array_append(results, NULL);
        WHEN 'field' THEN
            IF is_there AND NOT has_fields THEN
                failed := i - 1;
                reason := 'holds a value, not fields';
                RETURN;
            END IF;
            IF NOT is_there THEN
                INSERT INTO towpath.kv VALUES (keys[i], NULL, NULL)
                ON CONFLICT (key) DO UPDATE SET value = NULL, expires_at = NULL;
            END IF;
            INSERT INTO towpath.kv_field VALUES (keys[i], field_names[i], args[i])
            ON CONFLICT (key, field) DO UPDATE SET value = excluded.value;
            results := array_append(results, NULL);
        WHEN 'expire' THEN
            IF NOT is_there THEN
                failed := i - 1;
                RETURN;
            END IF;
            UPDATE towpath.kv SET expires_at = until WHERE key = keys[i];
            results := array_append(results, stored.value);
        END CASE;
    END LOOP;
END $$;

-- All ops or none. A single op changes nothing that is visible before its condition is checked, so it needs no
-- subtransaction.
CREATE FUNCTION towpath.kv_commit(
    kinds text[], keys text[], args bytea[], expected bytea[], field_names text[],
    deltas bigint[], mins bigint[], maxs bigint[], ttls bigint[],
    OUT failed integer, OUT reason text, OUT present bytea, OUT results bytea[]
) LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(kinds) = 1 THEN
        SELECT * INTO failed, reason, present, results
        FROM towpath.kv_apply(kinds, keys, args, expected, field_names, deltas, mins, maxs, ttls);
        RETURN;
    END IF;
    BEGIN
        SELECT * INTO failed, reason, present, results
        FROM towpath.kv_apply(kinds, keys, args, expected, field_names, deltas, mins, maxs, ttls);
        IF failed IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'TP001';
        END IF;
    EXCEPTION WHEN SQLSTATE 'TP001' THEN
        results := NULL;
    END;
END $$;

-- Deletes up to `most` expired keys. Returns their number.
CREATE FUNCTION towpath.kv_expire(most integer) RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    gone text[];
BEGIN
    SELECT coalesce(array_agg(key), '{}') INTO gone FROM (
        SELECT key FROM towpath.kv WHERE expires_at <= now() ORDER BY expires_at LIMIT most) AS expired;
    PERFORM towpath.lock_keys(1953462017, gone);
    WITH deleted AS (DELETE FROM towpath.kv WHERE key = ANY (gone) AND expires_at <= now() RETURNING key)
    DELETE FROM towpath.kv_field USING deleted WHERE kv_field.key = deleted.key;
    RETURN cardinality(gone);
END $$;

-- The two algorithms of the limiter, in exact integers, equal to `limiter::decide` in the core. Amounts are millionths
-- of a token.
CREATE FUNCTION towpath.limit_decide(
    rule text, capacity numeric, refill numeric, span bigint, amount numeric, now_ms bigint,
    INOUT state towpath.limit_state, OUT allowed boolean, OUT remaining numeric, OUT retry_ms numeric,
    OUT reset_ms numeric, OUT is_earlier boolean
) LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    then_ms bigint := now_ms;
    seen_ms bigint;
    -- Of a bucket.
    full_level numeric;
    per_ms numeric;
    missing numeric := 0;
    wanted numeric;
    -- Of a window.
    width bigint;
    back bigint;
    slot bigint;
    used numeric := 0;
    short numeric;
    kept bigint[] := '{}';
    taken numeric[] := '{}';
    available numeric;
BEGIN
    is_earlier := false;
    IF rule = 'token_bucket' THEN
        full_level := capacity * span;
        per_ms := greatest(refill, 1);
        IF state.algorithm = rule THEN
            -- A state further ahead than its limit is long counts as one of now.
            seen_ms := CASE WHEN state.at_ms > now_ms + div(full_level + per_ms - 1, per_ms)
                THEN now_ms ELSE state.at_ms END;
            then_ms := greatest(now_ms, seen_ms);
            missing := state.missing;
            IF state.span_ms <> span THEN
                missing := div(missing * span + state.span_ms - 1, state.span_ms);
            END IF;
            missing := greatest(least(missing, full_level) - per_ms * (then_ms - seen_ms), 0);
            is_earlier := then_ms < state.at_ms;
        END IF;
        wanted := amount * span;
        available := full_level - missing;
        allowed := wanted <= available;
        retry_ms := CASE WHEN allowed THEN 0
            ELSE div(wanted - available + per_ms - 1, per_ms) + (then_ms - now_ms) END;
        IF allowed THEN
            missing := missing + wanted;
        END IF;
        remaining := div(full_level - missing, span);
        reset_ms := CASE WHEN missing = 0 THEN 0
            ELSE div(missing + per_ms - 1, per_ms) + (then_ms - now_ms) END;
        state := ROW(rule, span, then_ms, missing, NULL, NULL)::towpath.limit_state;
        RETURN;
    END IF;

    width := greatest((span + 59) / 60, 1);
    IF state.algorithm = rule THEN
        seen_ms := CASE WHEN state.at_ms > now_ms + width * 61 THEN now_ms ELSE state.at_ms END;
        then_ms := greatest(now_ms, seen_ms);
        back := (state.at_ms - seen_ms) / width;
        is_earlier := then_ms < state.at_ms;
        FOR i IN 1 .. cardinality(state.slots) LOOP
            slot := greatest(state.slots[i] * state.span_ms / width - back, 0);
            -- A take at the last millisecond of its slot counts for sixty whole slots after it.
            IF slot + 60 >= then_ms / width THEN
                kept := kept || slot;
                taken := taken || state.taken[i];
                used := used + state.taken[i];
            END IF;
        END LOOP;
    END IF;
    available := greatest(capacity - used, 0);
    allowed := amount <= available;
    IF allowed AND amount > 0 THEN
        IF kept[cardinality(kept)] = then_ms / width THEN
            taken[cardinality(kept)] := taken[cardinality(kept)] + amount;
        ELSE
            kept := kept || then_ms / width;
            taken := taken || amount;
        END IF;
    END IF;
    remaining := CASE WHEN allowed THEN available - amount ELSE available END;
    retry_ms := 0;
    IF NOT allowed THEN
        short := amount - available;
        FOR i IN 1 .. cardinality(kept) LOOP
            EXIT WHEN short <= 0;
            short := short - taken[i];
            retry_ms := greatest((kept[i] + 61) * width - now_ms, 0);
        END LOOP;
    END IF;
    reset_ms := coalesce(greatest((kept[cardinality(kept)] + 61) * width - now_ms, 0), 0);
    state := ROW(rule, width, then_ms, NULL, kept, taken)::towpath.limit_state;
END $$;

-- The part of the moment.
CREATE FUNCTION towpath.limit_part() RETURNS smallint LANGUAGE sql VOLATILE AS $$
    SELECT (floor(extract(epoch FROM clock_timestamp()) / 60)::bigint & 3)::smallint
$$;

-- Takes all or none, at the server's time, or at `forced` in tests. A look takes nothing and keeps only a state whose
-- clock was put back. The answer does not wait for the disk: a crash of the server forgets the takes of its last moments.
-- The planner has no statistics of tables that are truncated all the time, and needs none for one descent of an index.
-- Disabled kinds of plans raise the estimated cost, which would start the JIT compiler.
CREATE FUNCTION towpath.limit_take(
    forced bigint, is_look boolean, rules text[], keys text[], capacities numeric[], refills numeric[], spans bigint[],
    amounts numeric[]
) RETURNS TABLE (allowed boolean, remaining text, retry_ms text, reset_ms text) LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_ms bigint;
    home integer;
    state towpath.limit_state;
    decided record;
    stored towpath.limit_state[] := '{}';
    draft towpath.limit_state[] := '{}';
    full_at bigint[] := '{}';
    is_kept boolean[] := '{}';
    allowances boolean[] := '{}';
    remainders numeric[] := '{}';
    retries numeric[] := '{}';
    resets numeric[] := '{}';
BEGIN
    PERFORM set_config('synchronous_commit', 'off', true);
    PERFORM towpath.lock_keys(1953462018, keys);
    now_ms := coalesce(forced, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint);
    FOR i IN 1 .. cardinality(keys) LOOP
        home := array_position(keys, keys[i]);
        IF home = i THEN
            SELECT algorithm, span_ms, at_ms, missing, slots, taken INTO state
            FROM towpath.limit_cell WHERE key = keys[i] ORDER BY n DESC LIMIT 1;
            stored[i] := state;
            is_kept[i] := NOT is_look;
        ELSE
            state := draft[home];
        END IF;
        SELECT * INTO decided FROM towpath.limit_decide(
            rules[i], capacities[i], refills[i], spans[i], amounts[i], now_ms, state);
        draft[home] := decided.state;
        full_at[home] := least(now_ms + decided.reset_ms + 1000, 4611686018427387904);
        is_kept[home] := is_kept[home] OR decided.is_earlier;
        allowances[i] := decided.allowed;
        remainders[i] := decided.remaining;
        retries[i] := decided.retry_ms;
        resets[i] := decided.reset_ms;
    END LOOP;
    IF false = ANY (allowances) THEN
        FOR i IN 1 .. cardinality(keys) LOOP
            home := array_position(keys, keys[i]);
            SELECT * INTO decided FROM towpath.limit_decide(
                rules[i], capacities[i], refills[i], spans[i], 0, now_ms, stored[home]);
            remainders[i] := decided.remaining;
            resets[i] := decided.reset_ms;
            draft[home] := decided.state;
            full_at[home] := least(now_ms + decided.reset_ms + 1000, 4611686018427387904);
            -- Otherwise time would never advance for it.
            is_kept[home] := decided.is_earlier;
        END LOOP;
    END IF;
    FOR i IN 1 .. cardinality(keys) LOOP
        IF is_kept[i] THEN
            state := draft[i];
            INSERT INTO towpath.limit_cell VALUES (
                towpath.limit_part(), nextval('towpath.limit_seq'), keys[i], state.algorithm, state.span_ms, state.at_ms,
                state.missing, state.slots, state.taken, full_at[i]);
        END IF;
        RETURN QUERY SELECT allowances[i], remainders[i]::text, retries[i]::text, resets[i]::text;
    END LOOP;
END $$;

-- Forgets a limit's history, durably.
CREATE FUNCTION towpath.limit_reset(name text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM towpath.lock_keys(1953462018, ARRAY[name]);
    INSERT INTO towpath.limit_cell (part, n, key, full_at_ms)
    VALUES (towpath.limit_part(), nextval('towpath.limit_seq'), name, 0);
END $$;

-- Copies the states that still count out of the part that is used next, `most` keys behind `after` at a time. `carried`
-- is NULL when another process does it or the part is empty; rows up to `last_n` were examined.
CREATE FUNCTION towpath.limit_carry(
    after text, most integer, OUT oldest smallint, OUT carried integer, OUT last_key text, OUT last_n bigint
) LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off SET jit = off AS $$
#variable_conflict use_column
DECLARE
    now_ms bigint := floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint;
    live text[];
BEGIN
    oldest := ((towpath.limit_part() + 1) & 3)::smallint;
    IF NOT pg_try_advisory_xact_lock(1953462019, 1) THEN
        RETURN;
    END IF;
    SELECT max(n) INTO last_n FROM towpath.limit_cell WHERE part = oldest;
    IF last_n IS NULL THEN
        RETURN;
    END IF;
    -- A state that is full again still covers an older one in a part that could not be truncated.
    SELECT coalesce(array_agg(key), '{}') INTO live FROM (
        SELECT c.key FROM towpath.limit_cell AS c
        WHERE c.part = oldest AND c.key > after
        AND NOT EXISTS (SELECT FROM towpath.limit_cell AS newer WHERE newer.key = c.key AND newer.n > c.n)
        AND (c.full_at_ms > now_ms OR EXISTS (
            SELECT FROM towpath.limit_cell AS older
            WHERE older.key = c.key AND older.part <> oldest AND older.full_at_ms > now_ms))
        ORDER BY c.key LIMIT most) AS found;
    PERFORM towpath.lock_keys(1953462018, live);
    INSERT INTO towpath.limit_cell
    SELECT towpath.limit_part(), nextval('towpath.limit_seq'), newest.key, newest.algorithm, newest.span_ms, newest.at_ms,
        newest.missing, newest.slots, newest.taken, newest.full_at_ms
    FROM unnest(live) AS name CROSS JOIN LATERAL (
        SELECT * FROM towpath.limit_cell WHERE key = name ORDER BY n DESC LIMIT 1) AS newest
    WHERE newest.part = oldest;
    carried := cardinality(live);
    last_key := live[carried];
END $$;

-- Truncates a part whose rows up to `last_n` were examined. Takes wait for this lock, so it is not waited for long.
CREATE FUNCTION towpath.limit_clear(oldest smallint, last_n bigint) RETURNS boolean LANGUAGE plpgsql AS $$
#variable_conflict use_variable
BEGIN
    IF NOT pg_try_advisory_xact_lock(1953462019, 1) THEN
        RETURN false;
    END IF;
    PERFORM set_config('lock_timeout', '50ms', true);
    EXECUTE format('LOCK TABLE towpath.limit_cell_%s IN ACCESS EXCLUSIVE MODE', oldest);
    IF EXISTS (SELECT FROM towpath.limit_cell AS c WHERE c.part = oldest AND c.n > last_n) THEN
        RETURN false;
    END IF;
    EXECUTE format('TRUNCATE towpath.limit_cell_%s', oldest);
    RETURN true;
END $$;
