//! PostgreSQL.
//!
//! ```text
//! Users, Outbox, Schema -- one statement a change --> pool of connections
//! Outbox::after         -- fence: waits for those that may still commit a lower place
//! Outbox::committed     <-- LISTEN, on a connection of its own; NOTIFY follows the commit, never within it
//! ```

mod config;
mod error;
mod fence;
mod notify;
mod outbox;
mod pool;
mod schema;
mod session;
mod users;

use std::sync::Arc;

use towpath_core::database::{Database, Descriptor};
use towpath_core::{Error, ErrorKind, Result};

use crate::sql::Fleets;
use config::Config;
use notify::Notifier;
pub use outbox::write_event;
use pool::{Pool, Session};

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

    /// The first connection. One refused because of the URL is `Invalid`.
    async fn first_session(&self) -> Result<Session> {
        self.session().await.map_err(|error| {
            match error::cause(&error).is_some_and(error::is_misconfigured) {
                true => Error::invalid("the database refuses the connection").with_source(error),
                false => error,
            }
        })
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
