//! Events that a transaction of your own database leaves for a broker.
//!
//! An event is written in the transaction of the change that it describes, so neither exists without the other. A
//! [`Relay`] reads events in order and puts them into streams or queues of an [`Engine`](crate::Engine).
//!
//! ```no_run
//! # #[cfg(feature = "sqlite")]
//! # async fn example(mut connection: rusqlite::Connection, event: towpath::outbox::NewEvent) -> Result<(), Box<dyn std::error::Error>> {
//! use towpath::outbox::{self, Relay, Target};
//! use towpath::supervisor::Supervisor;
//!
//! let database = outbox::open("sqlite:./shop.db").await?;
//! let transaction = connection.transaction()?;
//! transaction.execute("UPDATE orders SET state = 'paid' WHERE id = 7", [])?;
//! outbox::sqlite::write_event(&transaction, &event)?;
//! transaction.commit()?;
//!
//! let engine = towpath::Engine::open("embedded:./data").await?;
//! let mut supervisor = Supervisor::new(std::time::Duration::from_secs(30));
//! Relay::new(database.outbox, Target::of(engine.backend(), "relay")?).start(&mut supervisor);
//! # Ok(())
//! # }
//! ```
//!
//! - `postgres::write_event` writes one in a transaction of `tokio_postgres` (feature `postgres`),
//! - `sqlite::write_event` in one of `rusqlite` (feature `sqlite`),
//! - any other language inserts a row; its columns are in the reference of the outbox.

use towpath_core::Result;
use towpath_core::database::Database;

pub use towpath_core::port::Outbox;
pub use towpath_core::port::outbox::NewEvent;

pub use crate::relay::{Filled, Relay, Target};

/// Events in PostgreSQL.
#[cfg(feature = "postgres")]
pub mod postgres {
    pub use towpath_backends::postgres::write_event;
}

/// Events in SQLite.
#[cfg(feature = "sqlite")]
pub mod sqlite {
    pub use towpath_backends::sqlite::write_event;
}

/// Opens the database at a URL (`sqlite:./app.db`, `postgres://…`) and creates the tables of the outbox that are missing.
///
/// # Errors
/// `Invalid` for an unknown scheme or a bad URL; `Unavailable` when the database does not answer; those of the migrations.
pub async fn open(url: &str) -> Result<Database> {
    let database = towpath_backends::open_database(url).await?;
    database.schema.up().await?;
    Ok(database)
}
