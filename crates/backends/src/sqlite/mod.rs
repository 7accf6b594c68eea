//! SQLite, in a file of its own: the database that needs nothing installed.
//!
//! ```text
//! Users, Outbox, Schema -- jobs --> the writing thread: one transaction and one sync for all that wait
//!                       -- jobs --> the reading thread
//! ```

mod connection;
mod outbox;
mod schema;
mod session;
mod users;
mod verify;

use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::types::Type;
use tokio::sync::Notify;
use towpath_core::database::{Database, Descriptor};
use towpath_core::{Error, Result};
use uuid::Uuid;

use crate::private;
use crate::sql::Fleets;
use connection::Threads;
pub use outbox::write_event;
pub use verify::verify;

/// SQLite's row of the table of databases.
pub const DESCRIPTOR: Descriptor = Descriptor {
    name: "sqlite",
    schemes: &["sqlite"],
    check: |url| path(url).map(drop),
    open: |url| Box::pin(async move { open(&url) }),
};

/// A database in SQLite.
struct Sqlite {
    threads: Threads,
    /// An event was committed.
    committed: Notify,
}

fn open(url: &str) -> Result<Database> {
    let path = path(url)?;
    if let Some(folder) = std::path::Path::new(path).parent() {
        private::create_dirs(folder).map_err(|error| {
            let text = format!("the folder `{}` cannot be made", folder.display());
            Error::unavailable(text).with_source(error)
        })?;
    }
    // They hold addresses and secrets; SQLite's files beside this one get its permissions.
    let mut options = private::options();
    options.write(true).create(true).truncate(false);
    options.open(path).map_err(|error| {
        Error::unavailable(format!("the database `{path}` cannot be opened")).with_source(error)
    })?;
    let sqlite = Arc::new(Sqlite {
        threads: Threads::start(path)?,
        committed: Notify::new(),
    });
    Ok(Database {
        url: url.to_owned(),
        file: Some(path.into()),
        schema: sqlite.clone(),
        users: sqlite.clone(),
        outbox: sqlite.clone(),
        breaker: Arc::clone(&sqlite.threads.breaker),
        waits: sqlite.threads.waits(),
        fleet: Arc::new(Fleets(sqlite)),
    })
}

/// The file that a URL names.
fn path(url: &str) -> Result<&str> {
    match url.strip_prefix("sqlite:") {
        None | Some("") => Err(Error::invalid("a SQLite database is `sqlite:PATH`")),
        Some(path) if path.contains('?') || path.starts_with(':') => Err(Error::invalid(
            "the URL of a SQLite database is `sqlite:` and the path of a file, without parameters",
        )),
        Some(path) => Ok(path),
    }
}

/// A time as it is kept: as text of one length, so that the order of the texts is that of the times.
fn text(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}

/// A column that holds a time.
fn time(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Timestamp> {
    parsed(row, column)
}

/// A column that holds an id.
fn id(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    parsed(row, column)
}

fn parsed<T>(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<T>
where
    T: std::str::FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    let text: String = row.get(column)?;
    text.parse().map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
    })
}
