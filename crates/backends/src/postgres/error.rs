//! Errors of PostgreSQL as our errors.

use tokio_postgres::error::SqlState;
use towpath_core::{Error, ErrorKind};

/// An error of PostgreSQL for the caller.
pub(super) fn failed(error: tokio_postgres::Error) -> Error {
    let kind = match error.code().map(SqlState::code) {
        // A value that no column takes is not taken later either.
        Some(code) if code.starts_with("22") => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, sentence(&error)).with_source(error)
}

/// One sentence for the caller, without values.
pub(super) fn sentence(error: &tokio_postgres::Error) -> String {
    let Some(code) = error.code() else {
        return "the connection to PostgreSQL was lost; whether a change happened is not known"
            .to_owned();
    };
    let text = match code.code() {
        "53100" => "the disk of the database is full",
        "55P03" | "57014" => {
            "the database is too busy: another transaction holds a lock that this one needs"
        }
        "42501" => "the database's user lacks a right that this needs",
        "25006" => "PostgreSQL accepts no changes: the server is a standby or read-only",
        "25001" => "the role's `default_transaction_isolation` must be `read committed`",
        "42P01" | "42703" | "3F000" | "42883" => {
            "a table or column of the database is missing: run `towpath migrate up`"
        }
        "40001" | "40P01" => "another transaction got in the way; try again",
        code if code.starts_with("57P") => "PostgreSQL is starting or stopping",
        code if code.starts_with("08") => {
            "the connection to PostgreSQL was lost; whether a change happened is not known"
        }
        code if code.starts_with("53") => "PostgreSQL has no resources left",
        code if code.starts_with("22") => "PostgreSQL refused a value",
        _ => "PostgreSQL refused the statement",
    };
    format!("{text} (SQLSTATE {})", code.code())
}

/// Whether other statements would fail on this connection too, and might not on another one: its server accepts no
/// changes, is stopping or is gone, or the session behind it is not the one that it was.
pub(super) fn leads_elsewhere(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code().map(SqlState::code) else {
        return true;
    };
    // 0A000: in recovery, or for a prepared statement of a table that has changed.
    matches!(code, "25006" | "0A000")
        || code.starts_with("57P")
        || code.starts_with("08")
        || is_of_another_session(error)
}

/// Whether a prepared statement is not there, or is there already: the session was changed by a pooler.
pub(super) fn is_of_another_session(error: &tokio_postgres::Error) -> bool {
    matches!(error.code().map(SqlState::code), Some("26000" | "42P05"))
}

/// Whether a connection is refused because of the URL, so that a retry does not help.
pub(super) fn is_misconfigured(error: &tokio_postgres::Error) -> bool {
    match error.code().map(SqlState::code) {
        Some(code) => code.starts_with("28") || code.starts_with("3D"),
        None => {
            let text = error.to_string();
            let wrong = [
                "error performing TLS handshake",
                "authentication error",
                "invalid configuration",
            ];
            wrong.iter().any(|begin| text.starts_with(begin))
        }
    }
}

/// The text of the server or the client.
pub(super) fn cause(error: &Error) -> Option<&tokio_postgres::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        match error.downcast_ref() {
            Some(found) => return Some(found),
            None => source = error.source(),
        }
    }
    None
}
