//! The tables, and how they came to be.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use std::path::Path;

use async_trait::async_trait;
use jiff::Timestamp;
use rusqlite::{Connection, params};
use towpath_core::Result;
use towpath_core::database::{Migration, MigrationState, Schema};

use super::Sqlite;
use super::connection::failed;
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
        name: "traces",
        up: include_str!("migrations/5_traces.up.sql"),
        down: include_str!("migrations/5_traces.down.sql"),
    },
];

#[async_trait]
impl Schema for Sqlite {
    async fn status(&self) -> Result<Vec<MigrationState>> {
        self.threads.read(states).await
    }

    async fn up(&self) -> Result<Vec<Migration>> {
        self.threads
            .write(|connection| {
                let table = "CREATE TABLE IF NOT EXISTS towpath_migrations (
                    version INTEGER PRIMARY KEY, sum TEXT NOT NULL, applied_at TEXT NOT NULL) STRICT";
                connection.execute_batch(table).map_err(failed)?;
                let missing = missing(&states(connection)?);
                for migration in &missing {
                    connection.execute_batch(migration.up).map_err(failed)?;
                    let row = params![migration.version, sum(migration), super::text(Timestamp::now())];
                    let insert = "INSERT INTO towpath_migrations VALUES (?1, ?2, ?3)";
                    connection.execute(insert, row).map_err(failed)?;
                }
                Ok(missing)
            })
            .await
    }

    async fn copy(&self, file: &Path) -> Result<()> {
        let file = file.display().to_string();
        self.threads
            .read_at_length(move |connection| {
                let copied = connection.execute("VACUUM INTO ?1", [&file]);
                copied.map(drop).map_err(failed)
            })
            .await
    }

    async fn down(&self, all: bool) -> Result<Vec<Migration>> {
        self.threads
            .write(move |connection| {
                let undone = undone(&states(connection)?, all);
                for migration in &undone {
                    connection.execute_batch(migration.down).map_err(failed)?;
                    let delete = "DELETE FROM towpath_migrations WHERE version = ?1";
                    connection
                        .execute(delete, [migration.version])
                        .map_err(failed)?;
                }
                Ok(undone)
            })
            .await
    }
}

fn states(connection: &Connection) -> Result<Vec<MigrationState>> {
    let applied = || -> rusqlite::Result<Vec<(u32, String, Timestamp)>> {
        // Asked by a statement: those notice tables that another connection made.
        let exists = "SELECT count(*) FROM sqlite_schema WHERE name = 'towpath_migrations'";
        if connection.query_row(exists, [], |row| row.get::<_, i64>(0))? == 0 {
            return Ok(Vec::new());
        }
        let select = "SELECT version, sum, applied_at FROM towpath_migrations ORDER BY version";
        let mut statement = connection.prepare(select)?;
        let rows = statement.query_map([], |row| {
            Ok((row.get(0)?, row.get(1)?, super::time(row, 2)?))
        })?;
        rows.collect()
    };
    compare(MIGRATIONS, &applied().map_err(failed)?)
}
