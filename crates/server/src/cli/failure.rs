//! Failures of a command.

use std::fmt;
use std::io;

use towpath_core::{Error, ErrorKind};

use super::{Exit, output};
use crate::config::Problems;

/// The reason of a command's failure.
#[derive(Debug)]
pub enum Failure {
    /// The reader of standard output closed it, which is not an error.
    BrokenPipe,
    /// The exit code, and the text for standard error.
    Said(Exit, String),
    /// A process accepted the request and did not answer in time.
    Unanswered(String),
    /// The configuration is invalid.
    Config(Problems),
}

impl Failure {
    pub(super) fn new(exit: Exit, text: impl fmt::Display) -> Self {
        Self::Said(exit, text.to_string())
    }

    pub(super) fn failed(text: impl fmt::Display) -> Self {
        Self::new(Exit::Failed, text)
    }

    pub(super) fn unreachable(text: impl fmt::Display) -> Self {
        Self::new(Exit::Unreachable, text)
    }

    /// Says it on standard error, once, and gives how to end.
    pub fn report(self) -> Exit {
        match self {
            Self::BrokenPipe => Exit::Ok,
            Self::Said(exit, text) => {
                output::error(text);
                exit
            }
            Self::Unanswered(text) => {
                output::error(text);
                Exit::Unreachable
            }
            Self::Config(problems) => {
                output::note(problems.to_string());
                Exit::Config
            }
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::failed(error)
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::Unavailable => Exit::Unreachable,
            ErrorKind::Invalid | ErrorKind::Unsupported => Exit::Usage,
            ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Corrupt => Exit::Failed,
        };
        Self::new(exit, error.chain())
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}
