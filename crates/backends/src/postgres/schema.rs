//! The tables, and how they came to be.

use std::path::Path;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio_postgres::Row;
use towpath_core::database::{Migration, MigrationState, Schema};
use towpath_core::{Error, Result};

use super::Postgres;
use super::pool::Transaction;
use crate::sql::{compare, last, next, sum};

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
        name: "traces",
        up: include_str!("migrations/5_traces.up.sql"),
        down: include_str!("migrations/5_traces.down.sql"),
    },
];

const EXISTS: &str = "SELECT to_regclass('towpath_migrations') IS NOT NULL";
const SELECT: &str = "SELECT version, sum, applied_at FROM towpath_migrations ORDER BY version";

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

    async fn up(&self) -> Result<Option<Migration>> {
        let mut session = self.first_session().await?;
        let transaction = session.transaction().await?;
        transaction.batch(LOCK).await?;
        let table = "CREATE TABLE IF NOT EXISTS towpath_migrations (
            version integer PRIMARY KEY, sum text NOT NULL, applied_at timestamptz NOT NULL)";
        transaction.batch(table).await?;
        let Some(migration) = next(&states_within(&transaction).await?) else {
            return Ok(None);
        };
        let applied = transaction.batch(migration.up).await;
        applied.map_err(|error| named(&migration, error))?;
        let insert = "INSERT INTO towpath_migrations VALUES ($1, $2, $3)";
        let row = [
            migration.version.into(),
            sum(&migration).into(),
            Timestamp::now().into(),
        ];
        transaction.query(insert, &row).await?;
        transaction.commit().await?;
        Ok(Some(migration))
    }

    async fn copy(&self, _: &Path) -> Result<()> {
        Err(Error::unsupported("PostgreSQL is backed up with `pg_dump`"))
    }

    async fn down(&self) -> Result<Option<Migration>> {
        let mut session = self.first_session().await?;
        let transaction = session.transaction().await?;
        transaction.batch(LOCK).await?;
        let Some(migration) = last(&states_within(&transaction).await?) else {
            return Ok(None);
        };
        let undone = transaction.batch(migration.down).await;
        undone.map_err(|error| named(&migration, error))?;
        let delete = "DELETE FROM towpath_migrations WHERE version = $1";
        transaction
            .query(delete, &[migration.version.into()])
            .await?;
        transaction.commit().await?;
        Ok(Some(migration))
    }
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
