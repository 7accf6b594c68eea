//! The exit codes, in one table.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what it was asked.
    Ok = 0,
    /// It did not.
    Failed = 1,
    /// It was called wrongly.
    Usage = 2,
    /// The configuration is not valid.
    Config = 3,
    /// A server, backend, port or folder cannot be had.
    Unreachable = 4,
    /// A check found problems.
    Problems = 5,
}

/// Code and meaning, as `docs/reference/cli.md` prints them.
#[cfg(test)]
pub(super) const TABLE: [(Exit, &str); 6] = [
    (Exit::Ok, "ok"),
    (Exit::Failed, "failed, or was cut short"),
    (Exit::Usage, "called wrongly"),
    (Exit::Config, "configuration invalid"),
    (
        Exit::Unreachable,
        "server, backend, port or data folder cannot be had",
    ),
    (Exit::Problems, "a check found problems"),
];

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
