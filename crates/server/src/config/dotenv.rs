//! The file `.env`: variables for those that the environment does not set.
//!
//! A line is `NAME=value`, with or without `export` before it. In double quotes `\"`, `\\`, `\n`, `\r`, `\t` and `\$`
//! are escapes, in single quotes nothing is. `#` at the beginning, or behind white space, begins a comment.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use super::{Origin, Problem, Problems};

/// The variables of the file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DotEnv {
    pub(super) variables: BTreeMap<String, String>,
    /// One for each line that sets nothing. They quote no value, which may be secret.
    pub(super) warnings: Vec<String>,
}

/// The variables of the file; none when there is no file.
///
/// # Errors
/// A problem when the file is there and cannot be read.
pub(super) fn read(path: &Path) -> Result<DotEnv, Problems> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(parse(&text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(DotEnv::default()),
        Err(error) => Err(Problems(vec![Problem {
            at: Origin::Default,
            message: format!("`{}` cannot be read: {error}", path.display()),
            snippet: None,
        }])),
    }
}

fn parse(text: &str) -> DotEnv {
    let mut file = DotEnv::default();
    // Editors put a byte order mark before the first name.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    for (line, number) in text.lines().zip(1..) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match assignment(line) {
            Ok((name, value)) => {
                file.variables.insert(name.to_owned(), value);
            }
            Err(why) => file
                .warnings
                .push(format!("line {number} of `.env` sets nothing: {why}")),
        }
    }
    file
}

fn assignment(line: &str) -> Result<(&str, String), &'static str> {
    let line = match line.strip_prefix("export") {
        Some(rest) if rest.starts_with(char::is_whitespace) => rest.trim_start(),
        _ => line,
    };
    let (name, value) = line
        .split_once('=')
        .ok_or("it has no `=`; expected `NAME=value`")?;
    let name = name.trim_end();
    let is_name = |character: char| character.is_ascii_alphanumeric() || "_.-".contains(character);
    if name.is_empty() || !name.chars().all(is_name) {
        return Err("invalid name before `=`; expected `NAME=value`");
    }
    Ok((name, self::value(value)?))
}

fn value(text: &str) -> Result<String, &'static str> {
    let trimmed = text.trim();
    let (value, behind) = match trimmed.chars().next() {
        Some('"') => double_quoted(&trimmed[1..])?,
        Some('\'') => {
            let (value, behind) = trimmed[1..].split_once('\'').ok_or(UNCLOSED)?;
            (value.to_owned(), behind)
        }
        _ => return Ok(without_comment(text).to_owned()),
    };
    if without_comment(behind).is_empty() {
        Ok(value)
    } else {
        Err("text behind the closing quote; write `\\\"` for a quote inside double quotes")
    }
}

const UNCLOSED: &str = "the quote is not closed on its line";

/// The value up to the closing quote, and the rest.
fn double_quoted(text: &str) -> Result<(String, &str), &'static str> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => match characters.next() {
                Some((_, 'n')) => value.push('\n'),
                Some((_, 'r')) => value.push('\r'),
                Some((_, 't')) => value.push('\t'),
                Some((_, escaped @ ('"' | '\\' | '$'))) => value.push(escaped),
                Some((_, other)) => value.extend(['\\', other]),
                None => return Err(UNCLOSED),
            },
            _ => value.push(character),
        }
    }
    Err(UNCLOSED)
}

/// The text up to a `#` behind white space, trimmed.
fn without_comment(text: &str) -> &str {
    let mut before = None;
    for (at, character) in text.char_indices() {
        if character == '#' && before.is_some_and(char::is_whitespace) {
            return text[..at].trim();
        }
        before = Some(character);
    }
    text.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_other_tools_read_them() {
        for (line, name, value) in [
            ("\u{feff}QUEUE_NAME=jobs", "QUEUE_NAME", "jobs"),
            (
                "export REDIS_ADDR = 'localhost:6379'",
                "REDIS_ADDR",
                "localhost:6379",
            ),
            ("export\tNAME=x", "NAME", "x"),
            ("exported=x", "exported", "x"),
            (r#"NAME="a\"b""#, "NAME", "a\"b"),
            (r#"NAME="a\\" # b"#, "NAME", "a\\"),
            (r#"NAME="a\nb\d""#, "NAME", "a\nb\\d"),
            ("NAME=\"a # b\"", "NAME", "a # b"),
            ("NAME='a\\'", "NAME", "a\\"),
            ("NAME=x\t# remark", "NAME", "x"),
            ("NAME=x # two", "NAME", "x"),
            ("NAME= # remark", "NAME", ""),
            ("NAME=x#y", "NAME", "x#y"),
            ("NAME=", "NAME", ""),
            ("NAME=a=b", "NAME", "a=b"),
            ("NAME=x\r\n", "NAME", "x"),
            ("A=amqp://a,amqp://b # two", "A", "amqp://a,amqp://b"),
        ] {
            let file = parse(line);
            let expected = [(name.to_owned(), value.to_owned())].into();
            assert_eq!(file.variables, expected, "{line}");
            assert_eq!(file.warnings, Vec::<String>::new(), "{line}");
        }
        assert_eq!(parse("# a comment\n\n  # b\n"), DotEnv::default());
    }

    #[test]
    fn lines_that_set_nothing_are_named_without_their_text() {
        for line in [
            "NAME: geheim",
            "geheim",
            "=geheim",
            "A=\"geheim",
            "A='x'geheim",
            "a b=geheim",
        ] {
            let file = parse(&format!("X=1\n{line}\n"));
            let [warning] = &file.warnings[..] else {
                panic!("{line}: {file:?}");
            };
            assert!(
                warning.starts_with("line 2 of `.env`") && !warning.contains("geheim"),
                "{warning}"
            );
            assert_eq!(file.variables.len(), 1, "{line}");
        }
    }
}
