//! PostgreSQL.
//!
//! ```text
//! Users, Outbox, Schema -- one statement a change --> pool of connections
//! Outbox::after         -- fence: waits for those that may still commit a lower place
//! Outbox::committed     <-- LISTEN, on a connection of its own; NOTIFY follows the commit, never within it
//! ```

mod config;
mod fence;
mod nudge;
mod outbox;
mod schema;
mod session;
mod users;

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime,
};
use tokio_postgres::error::SqlState;
use towpath_core::database::{Database, Descriptor};
use towpath_core::{Error, Result};

use crate::sql::Fleets;
use config::Config;
use nudge::Nudge;
pub use outbox::write_event;

/// PostgreSQL's row of the table of databases.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "postgres",
    schemes: &["postgres", "postgresql"],
    check: |url| Config::parse(url).map(drop),
    open: |url| Box::pin(async move { open(&url).await }),
};

/// Most connections of one process.
const CONNECTIONS: usize = 16;

/// Longest wait for a connection, the connecting within it.
const CONNECT: Duration = Duration::from_secs(5);

/// A database in PostgreSQL.
struct Postgres {
    pool: Pool,
    nudge: Arc<Nudge>,
}

impl Postgres {
    async fn connection(&self) -> Result<Object> {
        connection(&self.pool).await
    }
}

async fn connection(pool: &Pool) -> Result<Object> {
    pool.get().await.map_err(|error| {
        Error::unavailable("no connection to the database could be had").with_source(error)
    })
}

async fn open(url: &str) -> Result<Database> {
    let config = Config::parse(url)?;
    let setup = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    let pool = Pool::builder(Manager::from_config(
        config.postgres.clone(),
        config.tls()?,
        setup,
    ))
    .max_size(CONNECTIONS)
    .runtime(Runtime::Tokio1)
    .wait_timeout(Some(CONNECT))
    .create_timeout(Some(CONNECT))
    .post_create(Hook::async_fn(|client, _| {
        Box::pin(async move {
            // No statement of ours takes long; one that waits for a lock gives it up.
            let set =
                "SET statement_timeout = '10s'; SET lock_timeout = '5s'; SET TimeZone = 'UTC'";
            client.batch_execute(set).await.map_err(HookError::Backend)
        })
    }))
    .build()
    .map_err(|error| Error::invalid("the pool of connections").with_source(error))?;
    // A wrong password or name is said now.
    drop(connection(&pool).await?);
    let postgres = Arc::new(Postgres {
        nudge: Nudge::new(pool.clone(), &config)?,
        pool,
    });
    Ok(Database {
        url: config::shown(url),
        file: None,
        schema: postgres.clone(),
        users: postgres.clone(),
        outbox: postgres.clone(),
        fleet: Arc::new(Fleets(postgres)),
    })
}

/// What PostgreSQL says, for the caller.
fn failed(error: tokio_postgres::Error) -> Error {
    let text = match error.code() {
        Some(&SqlState::DISK_FULL) => "the disk of the database is full",
        Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::QUERY_CANCELED) => {
            "the database was too busy: another transaction holds what this needs"
        }
        Some(&SqlState::INSUFFICIENT_PRIVILEGE) => "the database's user may not do this",
        _ => "the database did not do it",
    };
    Error::unavailable(text).with_source(error)
}
