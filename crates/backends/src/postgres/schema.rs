//! The tables, and how they came to be.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use std::path::Path;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_postgres::Row;
use towpath_core::database::{Migration, MigrationState, Schema};
use towpath_core::{Error, Result};
use tracing::warn;

use super::Postgres;
use super::pool::Transaction;
use crate::sql::{compare, missing, sum, undone};

const MIGRATIONS: &[Migration] = &[
    Migration {
        version: 1,
        name: "users",
        up: include_str!("migrations/1_users.up.sql"),
        down: include_str!("migrations/1_users.down.sql"),
    },
    Migration {
        version: 2,
        name: "outbox",
        up: include_str!("migrations/2_outbox.up.sql"),
        down: include_str!("migrations/2_outbox.down.sql"),
    },
    Migration {
        version: 3,
        name: "fleet",
        up: include_str!("migrations/3_fleet.up.sql"),
        down: include_str!("migrations/3_fleet.down.sql"),
    },
    Migration {
        version: 4,
        name: "sent",
        up: include_str!("migrations/4_sent.up.sql"),
        down: include_str!("migrations/4_sent.down.sql"),
    },
    Migration {
        version: 5,
        name: "shared",
        up: include_str!("migrations/5_shared.up.sql"),
        down: include_str!("migrations/5_shared.down.sql"),
    },
    Migration {
        version: 6,
        name: "traces",
        up: include_str!("migrations/6_traces.up.sql"),
        down: include_str!("migrations/6_traces.down.sql"),
    },
];

const EXISTS: &str = "SELECT to_regclass('towpath_migrations') IS NOT NULL";
const SELECT: &str = "SELECT version, sum, applied_at FROM towpath_migrations ORDER BY version";

/// Records the existing tables before the first migration, to revert to them.
const FOUND: &str = include_str!("migrations/found.sql");

/// Users of another program whose addresses differ in case only.
const SAME_EMAIL: &str =
    "SELECT lower(email), string_agg(id || ' (' || email || ')', ', ' ORDER BY created_at)
    FROM users GROUP BY lower(email) HAVING count(*) > 1 ORDER BY 1 LIMIT 10";

/// Users of another program with addresses that a new user may not have.
const NO_ADDRESS: &str = "SELECT id || ' (' || email || ')' FROM users
    WHERE email !~ '^[^@[:space:]]+@[^@[:space:]]+$' ORDER BY created_at LIMIT 10";

/// One process migrates at a time; the others wait. A migration may take longer than other statements.
const LOCK: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
    SELECT pg_advisory_xact_lock(8317445)";

#[async_trait]
impl Schema for Postgres {
    async fn status(&self) -> Result<Vec<MigrationState>> {
        let session = self.first_session().await?;
        let exists = session.one(EXISTS, &[]).await?.get(0);
        let rows = match exists {
            true => session.query(SELECT, &[]).await?,
            false => Vec::new(),
        };
        states(&rows)
    }

    async fn up(&self) -> Result<Vec<Migration>> {
        let mut session = self.first_session().await?;
        let transaction = session.transaction().await?;
        transaction.batch(LOCK).await?;
        let table = "CREATE TABLE IF NOT EXISTS towpath_migrations (
            version integer PRIMARY KEY, sum text NOT NULL, applied_at timestamptz NOT NULL)";
        transaction.batch(table).await?;
        let missing = missing(&states_within(&transaction).await?);
        for migration in &missing {
            if migration.version == 1 {
                look_around(&transaction).await?;
            }
            let applied = transaction.batch(migration.up).await;
            applied.map_err(|error| named(migration, error))?;
            let insert = "INSERT INTO towpath_migrations VALUES ($1, $2, $3)";
            let row = [
                migration.version.into(),
                sum(migration).into(),
                Timestamp::now().into(),
            ];
            transaction.query(insert, &row).await?;
        }
        transaction.commit().await?;
        Ok(missing)
    }

    async fn copy(&self, _: &Path) -> Result<()> {
        Err(Error::unsupported("PostgreSQL is backed up with `pg_dump`"))
    }

    async fn down(&self, all: bool) -> Result<Vec<Migration>> {
        let mut session = self.first_session().await?;
        let transaction = session.transaction().await?;
        transaction.batch(LOCK).await?;
        let undone = undone(&states_within(&transaction).await?, all);
        for migration in &undone {
            let back = transaction.batch(migration.down).await;
            back.map_err(|error| named(migration, error))?;
            let delete = "DELETE FROM towpath_migrations WHERE version = $1";
            transaction
                .query(delete, &[migration.version.into()])
                .await?;
        }
        if undone
            .last()
            .is_some_and(|migration| migration.version == 1)
        {
            transaction.batch("DROP TABLE towpath_migrations").await?;
        }
        transaction.commit().await?;
        Ok(undone)
    }
}

/// Records the existing tables, and refuses users that no migration can convert.
async fn look_around(transaction: &Transaction<'_>) -> Result<()> {
    transaction.batch(FOUND).await?;
    let found = "SELECT count(*) > 0 FROM towpath_found WHERE name = 'users'";
    let is_found = transaction.query(found, &[]).await?;
    if !is_found.first().is_some_and(|row| row.get(0)) {
        return Ok(());
    }
    let same = transaction.query(SAME_EMAIL, &[]).await?;
    if !same.is_empty() {
        let of = |row: &Row| format!("`{}`: {}", row.get::<_, &str>(0), row.get::<_, &str>(1));
        let all: Vec<String> = same.iter().map(of).collect();
        return Err(Error::conflict(format!(
            "users whose e-mail addresses differ in case only: {}. Addresses are unique without regard to case here: \
             change or delete all but one of each, for instance UPDATE users SET email = '…' WHERE id = '…', and \
             migrate again; nothing was changed",
            all.join("; ")
        )));
    }
    let unusable = transaction.query(NO_ADDRESS, &[]).await?;
    if !unusable.is_empty() {
        let all: Vec<&str> = unusable.iter().map(|row| row.get(0)).collect();
        let users = all.join(", ");
        warn!(
            users,
            "users without a valid e-mail address; each keeps it until changed"
        );
    }
    Ok(())
}

async fn states_within(transaction: &Transaction<'_>) -> Result<Vec<MigrationState>> {
    let exists = transaction.query(EXISTS, &[]).await?;
    let rows = match exists.first().is_some_and(|row| row.get(0)) {
        true => transaction.query(SELECT, &[]).await?,
        false => Vec::new(),
    };
    states(&rows)
}

fn states(rows: &[Row]) -> Result<Vec<MigrationState>> {
    let applied = rows.iter().map(|row| {
        let version: i32 = row.get(0);
        (version.unsigned_abs(), row.get(1), row.get(2))
    });
    compare(MIGRATIONS, &applied.collect::<Vec<_>>())
}

fn named(migration: &Migration, error: Error) -> Error {
    let (version, name) = (migration.version, migration.name);
    Error::new(error.kind(), format!("migration {version} ({name})")).with_source(error)
}
