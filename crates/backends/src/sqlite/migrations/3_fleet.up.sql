-- Tables that are there are taken over.
CREATE TABLE IF NOT EXISTS agents (
    id TEXT PRIMARY KEY,
    hostname TEXT NOT NULL,
    ip_address TEXT NOT NULL,
    port INTEGER NOT NULL,
    status TEXT NOT NULL DEFAULT 'active',
    created_at DATETIME NOT NULL,
    updated_at DATETIME NOT NULL
);
ALTER TABLE agents ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE agents ADD COLUMN key_digest TEXT;
ALTER TABLE agents ADD COLUMN seen_at TEXT NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN applied INTEGER;
ALTER TABLE agents ADD COLUMN failed INTEGER;
ALTER TABLE agents ADD COLUMN error TEXT;
UPDATE agents SET created_at = strftime('%Y-%m-%dT%H:%M:%fZ', created_at),
    updated_at = strftime('%Y-%m-%dT%H:%M:%fZ', updated_at),
    seen_at = strftime('%Y-%m-%dT%H:%M:%fZ', updated_at);
CREATE INDEX agents_place ON agents (hostname, ip_address, port);
CREATE UNIQUE INDEX agents_key ON agents (key_digest);

CREATE TABLE IF NOT EXISTS configs (
    id TEXT PRIMARY KEY,
    version INTEGER NOT NULL UNIQUE,
    data TEXT NOT NULL,
    poll_interval_seconds INTEGER NOT NULL DEFAULT 30,
    created_at DATETIME NOT NULL
);
ALTER TABLE configs ADD COLUMN json_schema TEXT;
ALTER TABLE configs ADD COLUMN author TEXT NOT NULL DEFAULT 'unknown';
ALTER TABLE configs ADD COLUMN rolls_back_to INTEGER;
UPDATE configs SET created_at = strftime('%Y-%m-%dT%H:%M:%fZ', created_at);

-- One at a time is running.
CREATE TABLE fleet_rollouts (
    version INTEGER PRIMARY KEY,
    stable INTEGER NOT NULL,
    steps TEXT NOT NULL,
    bake_seconds INTEGER NOT NULL,
    step INTEGER NOT NULL,
    step_at TEXT NOT NULL,
    progress TEXT NOT NULL,
    reason TEXT
) STRICT;

CREATE TABLE fleet_deeds (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    detail TEXT NOT NULL
) STRICT;

-- One row: which line of versions this is.
CREATE TABLE fleet_epoch (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    name TEXT NOT NULL,
    secret TEXT NOT NULL,
    turns INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT INTO fleet_epoch (one, name, secret) VALUES (1, lower(hex(randomblob(6))), lower(hex(randomblob(32))));
