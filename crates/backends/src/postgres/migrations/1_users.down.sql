DROP TABLE requests;
-- A table of users that was adopted stays, with the addresses as they were written.
DO $$
DECLARE
    is_found boolean := false;
BEGIN
    IF to_regclass('towpath_found') IS NOT NULL THEN
        SELECT EXISTS (SELECT FROM towpath_found WHERE name = 'users') INTO is_found;
    END IF;
    IF is_found THEN
        ALTER TABLE users DROP COLUMN version;
        UPDATE users u SET email = f.email FROM towpath_found_emails f WHERE f.id = u.id AND u.email = lower(f.email);
    ELSE
        DROP TABLE users;
    END IF;
END $$;
DROP TABLE IF EXISTS towpath_found_emails;
DROP TABLE IF EXISTS towpath_found;
