//! The file `.env`: variables for those that the environment does not set.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use super::{Origin, Problem, Problems};

/// The variables of the file; none when there is no file.
///
/// # Errors
/// A problem when the file is there and cannot be read.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>, Problems> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
        Err(error) => Err(Problems(vec![Problem {
            at: Origin::Default,
            message: format!("`{}` cannot be read: {error}", path.display()),
            snippet: None,
        }])),
    }
}

/// `NAME=value` a line, with or without `export` before and quotes around the value; `#` begins a comment.
fn parse(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().map(str::trim);
    let pairs = lines
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let line = line.strip_prefix("export ").unwrap_or(line);
            let (name, value) = line.split_once('=')?;
            Some((name.trim().to_owned(), unquoted(value.trim()).to_owned()))
        });
    pairs.filter(|(name, _)| !name.is_empty()).collect()
}

fn unquoted(value: &str) -> &str {
    for quote in ['"', '\''] {
        let inside = value
            .strip_prefix(quote)
            .and_then(|rest| rest.split_once(quote));
        if let Some((inside, _)) = inside {
            return inside;
        }
    }
    value
        .split_once(" #")
        .map_or(value, |(value, _)| value)
        .trim_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_everybody_writes_them() {
        let text = "# brokers\nRABBITMQ_URLS=amqp://a,amqp://b # two\n\nexport REDIS_ADDR = 'localhost:6379'\nX=\"a # b\"\nnothing\nEMPTY=\n";
        let expected = [
            ("EMPTY", ""),
            ("RABBITMQ_URLS", "amqp://a,amqp://b"),
            ("REDIS_ADDR", "localhost:6379"),
            ("X", "a # b"),
        ];
        let parsed = parse(text);
        let parsed: Vec<(&str, &str)> = parsed
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(parsed, expected);
    }
}
