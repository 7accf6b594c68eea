-- What is in the database before the first migration.
CREATE TABLE towpath_found (name text PRIMARY KEY);
CREATE TABLE towpath_found_emails (id uuid PRIMARY KEY, email text NOT NULL);
DO $$
BEGIN
    IF to_regclass(quote_ident(current_schema()) || '.users') IS NOT NULL THEN
        INSERT INTO towpath_found (name) VALUES ('users');
        INSERT INTO towpath_found_emails (id, email) SELECT id, email FROM users WHERE email <> lower(email);
    END IF;
END $$;
