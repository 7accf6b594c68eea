//! PostgreSQL.
//!
//! ```text
//! Users, Outbox, Schema -- one statement a change --> pool of connections
//! Outbox::after         -- fence: waits for those that may still commit a lower place
//! Outbox::committed     <-- LISTEN, on a connection of its own; NOTIFY follows the commit, never within it
//! Kv, RateLimit         -- one function a call, in the schema `towpath` --> a pool of its own
//! ```

mod backend;
mod config;
mod error;
mod fence;
mod kv;
mod notify;
mod outbox;
mod pool;
mod rate_limit;
mod schema;
mod session;
mod store;
mod users;

use std::sync::Arc;

use towpath_core::database::{Database, Descriptor};
use towpath_core::{ErrorKind, Result};

use crate::sql::Fleets;
pub use backend::BACKEND;
use config::Config;
use notify::Notifier;
pub use outbox::write_event;
use pool::{Pool, Session};
pub use rate_limit::decide_at_for_testing;

/// PostgreSQL's row of the table of databases.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "postgres",
    schemes: &["postgres", "postgresql"],
    check: |url| Config::parse(url).map(drop),
    open: |url| Box::pin(async move { open(&url).await }),
};

/// A database in PostgreSQL.
struct Postgres {
    pool: Pool,
    notifier: Arc<Notifier>,
}

impl Postgres {
    async fn session(&self) -> Result<Session> {
        self.pool.session().await
    }

    async fn first_session(&self) -> Result<Session> {
        self.pool.first_session().await
    }
}

/// Callers wait for a server that is not up yet; a bad URL is an error now.
async fn open(url: &str) -> Result<Database> {
    let config = Config::parse(url)?;
    let pool = Pool::new(&config)?;
    let postgres = Arc::new(Postgres {
        notifier: Notifier::new(pool.clone(), &config)?,
        pool,
    });
    let breaker = postgres.pool.breaker();
    match postgres.first_session().await {
        Err(error) if error.kind() != ErrorKind::Unavailable => return Err(error),
        _ => {}
    }
    Ok(Database {
        url: towpath_core::address::shown(url),
        file: None,
        schema: postgres.clone(),
        users: postgres.clone(),
        outbox: postgres.clone(),
        fleet: Arc::new(Fleets(postgres)),
        breaker,
        waits: Arc::new(|| None),
    })
}
