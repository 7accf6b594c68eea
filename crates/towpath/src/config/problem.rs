//! What is wrong, where, and what to do.

use std::fmt;

/// One problem of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `towpath.toml:3:7`, or the name of the variable or flag.
    pub place: String,
    /// What is wrong, and what to do.
    pub message: String,
    /// The line of the file, and the columns that are meant, from 0.
    pub snippet: Option<(String, usize, usize)>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)?;
        if let Some((line, start, length)) = &self.snippet {
            write!(
                f,
                "\n  | {line}\n  | {}{}",
                " ".repeat(*start),
                "^".repeat((*length).max(1))
            )?;
        }
        Ok(())
    }
}

/// Every problem, in the order of the places.
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
