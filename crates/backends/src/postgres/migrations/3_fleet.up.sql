CREATE TABLE agents (
    id text COLLATE "C" PRIMARY KEY,
    hostname text NOT NULL,
    ip_address text NOT NULL,
    port integer NOT NULL,
    status text NOT NULL DEFAULT 'active',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    labels text NOT NULL DEFAULT '{}',
    key_digest text UNIQUE,
    seen_at timestamptz NOT NULL,
    applied integer,
    failed integer,
    error text
);
CREATE INDEX agents_place ON agents (hostname, ip_address, port);

CREATE TABLE configs (
    id text PRIMARY KEY,
    version integer NOT NULL UNIQUE,
    data text NOT NULL,
    poll_interval_seconds integer NOT NULL DEFAULT 30,
    created_at timestamptz NOT NULL,
    json_schema text,
    author text NOT NULL,
    rolls_back_to integer
);

-- One at a time is running.
CREATE TABLE fleet_rollouts (
    version integer PRIMARY KEY,
    stable integer NOT NULL,
    steps text NOT NULL,
    bake_seconds integer NOT NULL,
    step integer NOT NULL,
    step_at timestamptz NOT NULL,
    progress text NOT NULL,
    reason text
);

CREATE TABLE fleet_deeds (
    number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL,
    actor text NOT NULL,
    action text NOT NULL,
    detail text NOT NULL
);

-- One row: which line of versions this is.
CREATE TABLE fleet_epoch (
    one integer PRIMARY KEY CHECK (one = 1),
    name text NOT NULL,
    secret text NOT NULL,
    turns bigint NOT NULL DEFAULT 0
);
INSERT INTO fleet_epoch (one, name, secret) VALUES (
    1, left(replace(gen_random_uuid()::text, '-', ''), 12),
    replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''));
