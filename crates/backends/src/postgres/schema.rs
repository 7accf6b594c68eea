//! The tables, and how they came to be.

use std::path::Path;

use async_trait::async_trait;
use deadpool_postgres::GenericClient;
use jiff::Timestamp;
use towpath_core::database::{Migration, MigrationState, Schema};
use towpath_core::{Error, Result};

use super::{Postgres, failed};
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
];

/// One process migrates at a time; the others wait. A migration may take longer than other statements.
const LOCK: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0;
    SELECT pg_advisory_xact_lock(8317445)";

#[async_trait]
impl Schema for Postgres {
    async fn status(&self) -> Result<Vec<MigrationState>> {
        states(&self.connection().await?).await
    }

    async fn up(&self) -> Result<Option<Migration>> {
        let mut client = self.connection().await?;
        let transaction = client.transaction().await.map_err(failed)?;
        transaction.batch_execute(LOCK).await.map_err(failed)?;
        let table = "CREATE TABLE IF NOT EXISTS towpath_migrations (
            version integer PRIMARY KEY, sum text NOT NULL, applied_at timestamptz NOT NULL)";
        transaction.batch_execute(table).await.map_err(failed)?;
        let Some(migration) = next(&states(&transaction).await?) else {
            return Ok(None);
        };
        let applied = transaction.batch_execute(migration.up).await;
        applied.map_err(|error| named(&migration, failed(error)))?;
        let insert = "INSERT INTO towpath_migrations VALUES ($1, $2, $3)";
        let version = signed(migration.version);
        transaction
            .execute(insert, &[&version, &sum(&migration), &Timestamp::now()])
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(Some(migration))
    }

    async fn copy(&self, _: &Path) -> Result<()> {
        Err(Error::unsupported("PostgreSQL is backed up with `pg_dump`"))
    }

    async fn down(&self) -> Result<Option<Migration>> {
        let mut client = self.connection().await?;
        let transaction = client.transaction().await.map_err(failed)?;
        transaction.batch_execute(LOCK).await.map_err(failed)?;
        let Some(migration) = last(&states(&transaction).await?) else {
            return Ok(None);
        };
        let undone = transaction.batch_execute(migration.down).await;
        undone.map_err(|error| named(&migration, failed(error)))?;
        let delete = "DELETE FROM towpath_migrations WHERE version = $1";
        transaction
            .execute(delete, &[&signed(migration.version)])
            .await
            .map_err(failed)?;
        transaction.commit().await.map_err(failed)?;
        Ok(Some(migration))
    }
}

async fn states(client: &impl GenericClient) -> Result<Vec<MigrationState>> {
    let exists = "SELECT to_regclass('towpath_migrations') IS NOT NULL";
    let exists: bool = client.query_one(exists, &[]).await.map_err(failed)?.get(0);
    let rows = match exists {
        false => Vec::new(),
        true => {
            let select = "SELECT version, sum, applied_at FROM towpath_migrations ORDER BY version";
            client.query(select, &[]).await.map_err(failed)?
        }
    };
    let applied = rows.iter().map(|row| {
        let version: i32 = row.get(0);
        (version.unsigned_abs(), row.get(1), row.get(2))
    });
    compare(MIGRATIONS, &applied.collect::<Vec<_>>())
}

fn signed(version: u32) -> i32 {
    i32::try_from(version).unwrap_or(i32::MAX)
}

fn named(migration: &Migration, error: Error) -> Error {
    let (version, name) = (migration.version, migration.name);
    Error::new(error.kind(), format!("migration {version} ({name})")).with_source(error)
}
