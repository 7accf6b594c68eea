//! `towpath.toml`: every value with its place, every problem at once.

use std::collections::BTreeMap;
use std::ops::Range;

use toml_edit::{Document, Item, TableLike, Value};

use super::key::{KEYS, Key, did_you_mean};
use super::{Kind, Problem};

/// A value of the file as text, and where it stands.
pub(super) struct FileValue {
    pub(super) text: String,
    pub(super) place: String,
}

/// Reads a file's text.
pub(super) struct Reader<'a> {
    name: &'a str,
    text: &'a str,
    env: &'a BTreeMap<String, String>,
    pub(super) values: BTreeMap<&'static str, FileValue>,
    pub(super) problems: Vec<(usize, Problem)>,
}

impl<'a> Reader<'a> {
    pub(super) fn read(name: &'a str, text: &'a str, env: &'a BTreeMap<String, String>) -> Self {
        let mut reader = Self {
            name,
            text,
            env,
            values: BTreeMap::new(),
            problems: Vec::new(),
        };
        match Document::parse(text) {
            Ok(document) => reader.table("", document.as_table()),
            Err(error) => {
                let message = error.message().lines().collect::<Vec<_>>().join(", ");
                reader.problem(
                    error.span().unwrap_or(0..0),
                    format!("this is no TOML: {message}"),
                );
            }
        }
        reader.problems.sort_by_key(|(start, _)| *start);
        reader
    }

    fn table(&mut self, section: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let path = if section.is_empty() {
                name.to_owned()
            } else {
                format!("{section}.{name}")
            };
            let at = table
                .key(name)
                .and_then(toml_edit::Key::span)
                .unwrap_or(0..0);
            if let Some(key) = Key::find(&path) {
                self.value(key, item, at);
            } else if Key::is_section(&path) {
                match item.as_table_like() {
                    Some(inner) => self.table(&path, inner),
                    None => self.problem(
                        at,
                        format!("`{path}` is a section, not a value; write `[{path}]`"),
                    ),
                }
            } else {
                self.unknown(section, name, at);
            }
        }
    }

    fn unknown(&mut self, section: &str, name: &str, at: Range<usize>) {
        let prefix = if section.is_empty() {
            String::new()
        } else {
            format!("{section}.")
        };
        let mut known: Vec<&str> = KEYS
            .iter()
            .filter_map(|key| key.path.strip_prefix(&prefix))
            .map(|rest| rest.split('.').next().unwrap_or(rest))
            .collect();
        known.dedup();
        let what = if section.is_empty() { "section" } else { "key" };
        let hint = did_you_mean(name, known.iter().copied());
        let here = if section.is_empty() {
            String::new()
        } else {
            format!(" in `[{section}]`")
        };
        self.problem(
            at,
            format!(
                "unknown {what} `{name}`{here}{hint} Known: {}",
                known.join(", ")
            )
            .replace("? Known", "? known")
            .replace("` Known", "`; known"),
        );
    }

    fn value(&mut self, key: &'static Key, item: &Item, at: Range<usize>) {
        let span = item.span().unwrap_or(at);
        let text = match (key.kind, item.as_value()) {
            (Kind::Integer(..) | Kind::Size(..), Some(Value::Integer(number))) => {
                Some(number.value().to_string())
            }
            (Kind::Integer(..), Some(_)) | (_, None) => None,
            (Kind::Strings, Some(Value::Array(list))) => {
                let texts: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
                texts.map(|texts| serde_json::json!(texts).to_string())
            }
            (Kind::Strings, Some(_)) => None,
            (_, Some(Value::String(text))) => match self.interpolate(text.value(), &span) {
                Some(text) => Some(text),
                None => return,
            },
            _ => None,
        };
        match text.filter(|text| key.kind.accepts(text)) {
            Some(text) => {
                let place = self.place(&span);
                self.values.insert(key.path, FileValue { text, place });
            }
            None => self.problem(
                span,
                format!("`{}` must be {}", key.path, key.kind.expected()),
            ),
        }
    }

    /// Puts variables in: `${NAME}`, `${NAME:-default}`.
    fn interpolate(&mut self, text: &str, span: &Range<usize>) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("${") {
            out.push_str(before);
            let Some((inside, after)) = behind.split_once('}') else {
                self.problem(span.clone(), "`${` without `}`".to_owned());
                return None;
            };
            let (name, default) = inside
                .split_once(":-")
                .map_or((inside, None), |(name, default)| (name, Some(default)));
            match self
                .env
                .get(name)
                .map(String::as_str)
                .filter(|value| !value.is_empty())
                .or(default)
            {
                Some(value) => out.push_str(value),
                None => {
                    self.problem(
                        span.clone(),
                        format!(
                            "variable `{name}` is not set; set it, or write `${{{name}:-default}}`"
                        ),
                    );
                    return None;
                }
            }
            rest = after;
        }
        out.push_str(rest);
        Some(out)
    }

    fn place(&self, span: &Range<usize>) -> String {
        let (line, column, _) = self.locate(span.start);
        format!("{}:{line}:{column}", self.name)
    }

    fn problem(&mut self, span: Range<usize>, message: String) {
        let (line, column, text) = self.locate(span.start);
        let shown = text.chars().count().saturating_sub(column - 1);
        let length = self
            .text
            .get(span.clone())
            .map_or(1, |meant| meant.chars().count())
            .min(shown.max(1));
        // A line that may hold a secret is named, not shown.
        let hidden = text.contains("secret") || text.contains("://");
        let problem = Problem {
            place: format!("{}:{line}:{column}", self.name),
            message,
            snippet: (!hidden).then(|| (text.to_owned(), column - 1, length)),
        };
        self.problems.push((span.start, problem));
    }

    /// Line and column from 1, and the line itself.
    fn locate(&self, offset: usize) -> (usize, usize, &'a str) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = before.matches('\n').count() + 1;
        let text = self.text[start..].lines().next().unwrap_or_default();
        (line, before[start..].chars().count() + 1, text)
    }
}
