//! The stores of this build: opening, verifying and describing them by URL.

use std::sync::Arc;

use towpath_backends::DATABASES;
pub use towpath_backends::embedded::{
    Depth, FORMATS, RESERVE, RESTORING, Verified, verify as verify_store,
};
pub(crate) use towpath_backends::embedded::{is_in_use, refuse_restoring};
pub(crate) use towpath_backends::redis::TaskQueue;
pub use towpath_backends::sqlite::verify as verify_database;
pub use towpath_backends::{BACKENDS, UNLOGGED};
use towpath_core::backend::Backend;
use towpath_core::database::Database;
use towpath_core::{Clock, Result, SystemClock};

use crate::config::Stores;

/// The stores of this build.
pub const STORES: Stores = Stores {
    backends: BACKENDS,
    databases: DATABASES,
};

/// Opens the backend that a URL names, on the machine's clock.
///
/// # Errors
/// As `towpath_backends::open`.
pub async fn open(url: &str) -> Result<Backend> {
    towpath_backends::open(url, clock()).await
}

/// Opens the database that a URL names, as it is: tables that are missing are not made.
///
/// # Errors
/// As `towpath_backends::open_database`.
pub async fn open_database(url: &str) -> Result<Database> {
    towpath_backends::open_database(url).await
}

/// The same with its tables made, as a role needs them.
///
/// # Errors
/// As `open_database`, and those of the migrations.
pub async fn open_migrated(url: &str) -> Result<Database> {
    let database = open_database(url).await?;
    migrate(&database).await?;
    Ok(database)
}

/// Makes the tables of a database.
pub(crate) async fn migrate(database: &Database) -> Result<()> {
    for migration in database.schema.up().await? {
        let (version, name) = (migration.version, migration.name);
        tracing::debug!(version, name, database = database.url, "migration applied");
    }
    Ok(())
}

/// The machine's clock.
pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}
