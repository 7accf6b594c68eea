//! Code shared by the databases.

pub(crate) mod event;
mod fleet;
mod statement;

use jiff::Timestamp;
use towpath_core::database::{Migration, MigrationState};
use towpath_core::{Error, Result};

pub(crate) use fleet::Fleets;
pub(crate) use statement::{Row, Session, Statement, Value};

/// What `towpath_migrations` keeps of a migration's wording.
pub(crate) fn sum(migration: &Migration) -> String {
    format!("{:08x}", crc32c::crc32c(migration.up.as_bytes()))
}

/// The rows of `towpath_migrations`, which are version, sum and time, against the migrations of this build.
pub(crate) fn compare(
    known: &'static [Migration],
    applied: &[(u32, String, Timestamp)],
) -> Result<Vec<MigrationState>> {
    for (version, found, _) in applied {
        let Some(migration) = known.iter().find(|one| one.version == *version) else {
            return Err(Error::unsupported(format!(
                "the database has migration {version}, which this build does not know; use the newer build"
            )));
        };
        if *found != sum(migration) {
            return Err(Error::corrupt(format!(
                "migration {version} ({}) was applied with different SQL: the tables may differ from those of this build",
                migration.name
            )));
        }
    }
    let time = |version| applied.iter().find(|one| one.0 == version).map(|one| one.2);
    let states = known.iter().map(|migration| MigrationState {
        migration: *migration,
        applied_at: time(migration.version),
    });
    Ok(states.collect())
}

/// The migrations to apply, in their order.
pub(crate) fn missing(states: &[MigrationState]) -> Vec<Migration> {
    let open = states.iter().filter(|state| state.applied_at.is_none());
    open.map(|state| state.migration).collect()
}

/// The migrations to take back: the last one that was applied, or all of them.
pub(crate) fn undone(states: &[MigrationState], all: bool) -> Vec<Migration> {
    let done = states.iter().filter(|state| state.applied_at.is_some());
    let count = if all { states.len() } else { 1 };
    done.rev()
        .take(count)
        .map(|state| state.migration)
        .collect()
}

/// A place in the order as SQL has it.
pub(crate) fn signed(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

/// A count or a place from SQL.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
