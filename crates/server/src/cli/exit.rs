//! The exit codes, in one table.

use std::process::ExitCode;

/// The exit code of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Success.
    Ok = 0,
    /// Failure.
    Failed = 1,
    /// An invalid option, name or value.
    Usage = 2,
    /// The configuration is not valid.
    Config = 3,
    /// A server or backend is unreachable, a port in use, or a folder locked.
    Unreachable = 4,
    /// A check found problems.
    Problems = 5,
    /// The server refused the token.
    Denied = 6,
    /// It was ended before it could close its stores in order.
    Cut = 7,
}

/// Code and meaning, as `docs/reference/cli.md` prints them.
#[cfg(test)]
pub(super) const TABLE: [(Exit, &str); 8] = [
    (Exit::Ok, "ok"),
    (Exit::Failed, "failed: rejected, not found, or interrupted"),
    (Exit::Usage, "usage error: an option, a name or a value"),
    (Exit::Config, "configuration invalid"),
    (
        Exit::Unreachable,
        "server or backend unreachable, port in use, data folder locked, or a store failed while it was used",
    ),
    (
        Exit::Problems,
        "a check found problems: `status`, `doctor`, `health`, `verify`, `orders check`",
    ),
    (
        Exit::Denied,
        "the token of the admin API is missing or wrong",
    ),
    (
        Exit::Cut,
        "shutdown exceeded `server.drain` and was cut before the stores were closed; the next start recovers",
    ),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
