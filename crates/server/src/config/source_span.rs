//! Where a value stands, and the line of the file to show for it.

use std::fmt;
use std::ops::Range;

use towpath_core::address::{is_secret, shown as redacted};

use super::key::KEYS;

/// The source of a key's value. The order is that of precedence, and that in which problems are shown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// No source: the default.
    Default,
    /// The file.
    File(SourceSpan),
    /// A variable.
    Variable(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(place) => place.fmt(f),
            Self::Variable(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// A place in a file; lines and columns count from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceSpan {
    /// The line.
    pub line: usize,
    /// The column, in characters.
    pub column: usize,
    /// Length in characters.
    pub length: usize,
    /// The file's name.
    pub file: String,
}

impl fmt::Display for SourceSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A file's name and text.
#[derive(Clone, Copy)]
pub(super) struct FileText<'a> {
    pub(super) name: &'a str,
    pub(super) text: &'a str,
}

impl FileText<'_> {
    /// The place of these bytes.
    pub(super) fn place(&self, span: &Range<usize>) -> SourceSpan {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let meant = self.text.get(span.clone()).unwrap_or_default();
        SourceSpan {
            line: before.matches('\n').count() + 1,
            column: before[start..].chars().count() + 1,
            length: meant.lines().next().unwrap_or_default().chars().count(),
            file: self.name.to_owned(),
        }
    }

    /// The line of this place with carets under the value; a possible secret is masked.
    pub(super) fn snippet(&self, place: &SourceSpan) -> String {
        let lines: Vec<&str> = self.text.lines().take(place.line).collect();
        let line = lines.get(place.line - 1).copied().unwrap_or_default();
        // A value may go over several lines, and its key is before the first one.
        let named = lines.iter().rev().find(|line| line.contains('='));
        let shown = masked(line, named.copied().unwrap_or(line));
        let before: String = shown
            .chars()
            .take(place.column - 1)
            .map(|character| if character == '\t' { '\t' } else { ' ' })
            .collect();
        let rest = shown.chars().count().saturating_sub(place.column - 1);
        let carets = "^".repeat(place.length.min(rest).max(1));
        format!("  | {shown}\n  | {before}{carets}")
    }
}

/// Whether a key ends like one of ours. The value of another one may be a secret whose name was misspelt.
fn is_known(key: &str) -> bool {
    let name = key.rsplit('.').next().unwrap_or(key);
    let word = name.trim().trim_matches(['"', '\'']);
    KEYS.iter()
        .any(|key| key.path.split('.').any(|part| part == word))
}

/// A line without a value that may be a secret; `named` is the line with its key.
fn masked(line: &str, named: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let key = named.split_once('=').map_or(named, |(key, _)| key);
    // Also values that are called otherwise and hold secrets: tables on one line, URLs of webhooks, headers, arguments.
    let others = ["whsec_", "\"tp_", "webhook", "authorization", "bearer"];
    let keys = ["url", "headers", "program"];
    if is_secret(line)
        || is_secret(key)
        || others.iter().any(|word| lower.contains(word))
        || keys.iter().any(|word| key.contains(word))
        || named.contains('=') && !is_known(key)
    {
        return match line.split_once('=') {
            Some((key, _)) => format!("{key}= ***"),
            None => "***".to_owned(),
        };
    }
    redacted(line)
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn values_of_misspelt_keys_are_hidden() {
        for (line, shown) in [
            ("max_depth = 5 x", "max_depth = 5 x"),
            ("ingest.max_depth = 5", "ingest.max_depth = 5"),
            ("\"max_depth\" = 5", "\"max_depth\" = 5"),
            ("api_kies = \"hidden\"", "api_kies = ***"),
            ("fleet.api_kies = \"hidden\"", "fleet.api_kies = ***"),
            ("passwrd = \"hidden\"", "passwrd = ***"),
        ] {
            assert_eq!(masked(line, line), shown);
        }
    }
}
