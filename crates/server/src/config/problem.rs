//! Problems of a configuration: cause, place and next step.

use std::fmt;

use super::Origin;

/// One problem of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it stands.
    pub at: Origin,
    /// Cause and next step.
    pub message: String,
    /// The line of the file with carets under the value.
    pub snippet: Option<String>,
}

impl Problem {
    /// `towpath.toml:3:7`, `variable PORT`, `flag --set`.
    pub fn place(&self) -> String {
        match &self.at {
            Origin::Variable(name) => format!("variable {name}"),
            Origin::Flag(name) => format!("flag {name}"),
            Origin::Default | Origin::File(_) => self.at.to_string(),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place(), self.message)?;
        match &self.snippet {
            Some(snippet) => write!(f, "\n{snippet}"),
            None => Ok(()),
        }
    }
}

/// Every problem: those of the file by place, then variables, then flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}")?;
        }
        let count = self.0.len();
        write!(
            f,
            "{count} problem{} in the configuration",
            if count == 1 { "" } else { "s" }
        )
    }
}

impl std::error::Error for Problems {}
