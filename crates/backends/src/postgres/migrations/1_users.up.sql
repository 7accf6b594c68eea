-- A table of users that is there is taken over.
CREATE TABLE IF NOT EXISTS users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email varchar(255) NOT NULL UNIQUE,
    name varchar(255) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE users ADD COLUMN version bigint NOT NULL DEFAULT 1;
UPDATE users SET email = lower(email) WHERE email <> lower(email);

-- Requests that may come again, and what they created.
CREATE TABLE requests (
    key text PRIMARY KEY,
    digest text NOT NULL,
    user_id uuid NOT NULL,
    email text NOT NULL,
    name text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX requests_created_at ON requests (created_at);
