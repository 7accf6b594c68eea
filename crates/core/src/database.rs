//! Databases: relational storage of the apps.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::port::{Fleet, Outbox, Users};
use crate::{Breaker, Error, Result, address};

/// One change of a database's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migration {
    /// Its place in the order, from 1.
    pub version: u32,
    /// Its summary.
    pub name: &'static str,
    /// SQL that applies it.
    pub up: &'static str,
    /// SQL that reverts it.
    pub down: &'static str,
}

/// A migration of this build, and whether the database has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MigrationState {
    /// The migration.
    pub migration: Migration,
    /// When it was applied.
    pub applied_at: Option<jiff::Timestamp>,
}

/// The tables of a database.
///
/// A change of migrations is one transaction, and two processes never migrate at once. A migration that was applied and reads
/// differently in this build is `Corrupt`; one that this build does not know is `Unsupported`.
#[async_trait]
pub trait Schema: Send + Sync {
    /// Every migration of this build.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer; `Corrupt` and `Unsupported` as above.
    async fn status(&self) -> Result<Vec<MigrationState>>;

    /// Applies every migration that is missing, and gives them in their order.
    ///
    /// # Errors
    /// As `status`; `Conflict` when rows that other programs wrote do not fit, naming them.
    async fn up(&self) -> Result<Vec<Migration>>;

    /// Copies everything that was committed by now into a file that is not there, while others work.
    ///
    /// # Errors
    /// `Unsupported` by servers, which have tools of their own; `Unavailable` when the copy cannot be made.
    async fn copy(&self, file: &Path) -> Result<()>;

    /// Reverts the last migration, or all of them, and returns those, the last one first. Tables that it created are
    /// dropped with their rows; tables that existed before it stay.
    ///
    /// # Errors
    /// As `status`.
    async fn down(&self, all: bool) -> Result<Vec<Migration>>;
}

/// A future that opens a database.
pub type Opening = Pin<Box<dyn Future<Output = Result<Database>> + Send>>;

/// One row of the table of databases.
pub struct Descriptor {
    /// The family's name, as messages and documentation call it.
    pub name: &'static str,
    /// The URL schemes it answers to.
    pub schemes: &'static [&'static str],
    /// Whether a URL is one of this family, without opening anything.
    pub check: fn(url: &str) -> Result<()>,
    /// Opens it.
    pub open: fn(url: String) -> Opening,
}

/// The row of the table that answers to a URL's scheme.
///
/// # Errors
/// `Invalid` for an unknown scheme, naming the databases there are.
pub fn find(table: &'static [Descriptor], url: &str) -> Result<&'static Descriptor> {
    let scheme = url.split(':').next().unwrap_or_default();
    table
        .iter()
        .find(|descriptor| url.contains(':') && descriptor.schemes.contains(&scheme))
        .ok_or_else(|| {
            let known: Vec<&str> = table.iter().map(|descriptor| descriptor.name).collect();
            let known = known.join(", ");
            // Text that is not a scheme may be a password.
            Error::invalid(if address::is_scheme(scheme) {
                format!("unknown database `{scheme}`; available: {known}")
            } else {
                format!("the URL of a database begins with its scheme, like `sqlite:`; available: {known}")
            })
        })
}

/// An open database.
#[derive(Clone)]
pub struct Database {
    /// The URL it was opened with, secrets replaced by `***`.
    pub url: String,
    /// Its file; `None` when that is with a server.
    pub file: Option<PathBuf>,
    /// Its tables.
    pub schema: Arc<dyn Schema>,
    /// Users.
    pub users: Arc<dyn Users>,
    /// Events.
    pub outbox: Arc<dyn Outbox>,
    /// Configurations and agents.
    pub fleet: Arc<dyn Fleet>,
    /// Keeps calls from a server that does not answer.
    pub breaker: Arc<Breaker>,
    /// Since when it waits for the disk under its file.
    pub waits: Waits,
}

/// Time that a call has been waiting for the disk; `None` while no call waits.
pub type Waits = Arc<dyn Fn() -> Option<Duration> + Send + Sync>;
