//! `towpath.toml`: every value with its place, and every problem, also behind a syntax error.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::key::{KEYS, Key};
use super::queues::{self, DeclaredQueue};
use super::source_span::{FileText, SourceSpan};
use super::suggest::{self, did_you_mean, question};
use super::{Kind, Origin, Problem, Stores};

/// A value of the file as text, and where it stands.
pub(super) struct FileValue {
    pub(super) key: &'static Key,
    /// The text, or the path of the file that holds it.
    pub(super) text: String,
    pub(super) is_path: bool,
    /// Whether variables were put into the text.
    pub(super) is_interpolated: bool,
    pub(super) place: SourceSpan,
}

/// Reads a file's text.
pub(super) struct Reader<'a> {
    file: FileText<'a>,
    env: &'a BTreeMap<String, String>,
    pub(super) values: Vec<FileValue>,
    pub(super) queues: Vec<DeclaredQueue>,
    pub(super) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(super) fn read(file: FileText<'a>, env: &'a BTreeMap<String, String>) -> Self {
        let mut reader = Self {
            file,
            env,
            values: Vec::new(),
            queues: Vec::new(),
            problems: Vec::new(),
        };
        let (document, errors) = DeTable::parse_recoverable(file.text);
        let mut broken = Vec::new();
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let message = error.message().lines().collect::<Vec<_>>().join(", ");
            let place = file.place(&span);
            // One slip of the pen makes the parser stumble several times on its line.
            if !broken.contains(&place.line) {
                broken.push(place.line);
                reader.problem(&span, format!("invalid TOML: {message}"));
            }
        }
        reader.table("", document.get_ref());
        // The parser's reading of a broken line is a guess, which is not reported as configuration.
        let guessed =
            |at: &Origin| matches!(at, Origin::File(place) if broken.contains(&place.line));
        reader
            .problems
            .retain(|problem| problem.message.starts_with("invalid TOML") || !guessed(&problem.at));
        reader
            .values
            .retain(|value| !broken.contains(&value.place.line));
        reader
    }

    fn table(&mut self, section: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let (at, name) = (name.span(), name.get_ref().as_ref());
            let path = if section.is_empty() {
                name.to_owned()
            } else {
                format!("{section}.{name}")
            };
            if path == queues::SECTION {
                self.read_queues(value);
                continue;
            }
            let holder = path.strip_suffix("_file").and_then(Key::find);
            if let Some(key) = Key::find(&path) {
                self.value(key, value, false);
            } else if let Some(key) = holder.filter(|key| key.kind.may_be_secret()) {
                self.value(key, value, true);
            } else if Key::is_section(&path) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.table(&path, inner),
                    _ => self.problem(
                        &at,
                        format!("`{path}` is a section, not a value; write `[{path}]`"),
                    ),
                }
            } else {
                self.unknown(section, name, &at);
            }
        }
    }

    fn unknown(&mut self, section: &str, name: &str, at: &Range<usize>) {
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
        if section.is_empty() {
            known.push(queues::SECTION);
        }
        let (what, here) = if section.is_empty() {
            ("section", String::new())
        } else {
            ("key", format!(" in `[{section}]`"))
        };
        let hint = did_you_mean(name, known.iter().copied());
        // A key of another section is mostly one whose `[section]` line is missing.
        let elsewhere = KEYS
            .iter()
            .find(|key| hint.is_empty() && key.path.ends_with(&format!(".{name}")));
        let hint = elsewhere.map_or(hint, |key| format!("; there is `{}`", key.path));
        let known = known.join(", ");
        let separator = if hint.ends_with('?') { " " } else { "; " };
        self.problem(
            at,
            format!("unknown {what} `{name}`{here}{hint}{separator}known: {known}"),
        );
    }

    fn value(&mut self, key: &'static Key, value: &Spanned<DeValue<'_>>, is_path: bool) {
        let span = value.span();
        let kind = if is_path { Kind::Path } else { key.kind };
        let text = match (kind, value.get_ref()) {
            (Kind::Strings | Kind::Limits, DeValue::Array(list)) => list_text(list),
            (Kind::Integer(..) | Kind::Size(..), DeValue::Integer(number)) => {
                whole(number.as_str(), number.radix())
            }
            // Only the empty text, which means "not set", may stand for a number or a list.
            (Kind::Integer(..) | Kind::Strings | Kind::Limits, DeValue::String(text))
                if !text.is_empty() =>
            {
                None
            }
            (_, DeValue::String(text)) => match self.interpolate(text, &span) {
                Some(text) => Some(text),
                None => return,
            },
            _ => None,
        };
        match text {
            Some(text) => self.values.push(FileValue {
                key,
                text,
                is_path,
                is_interpolated: matches!(value.get_ref(), DeValue::String(text) if text.contains("${")),
                place: self.file.place(&span),
            }),
            None => self.problem(
                &span,
                format!(
                    "`{}` must be {}{}",
                    key.path,
                    kind.expected(),
                    quotes(kind, value.get_ref())
                ),
            ),
        }
    }

    /// Puts variables in: `${NAME}`, `${NAME:-default}`.
    pub(super) fn interpolate(&mut self, text: &str, span: &Range<usize>) -> Option<String> {
        let mut out = String::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once("${") {
            out.push_str(before);
            let Some((inside, after)) = behind.split_once('}') else {
                self.problem(span, "`${` without `}`".to_owned());
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
                        span,
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

    pub(super) fn place(&self, span: &Range<usize>) -> SourceSpan {
        self.file.place(span)
    }

    pub(super) fn problem(&mut self, span: &Range<usize>, message: String) {
        let place = self.place(span);
        self.problems.push(Problem {
            snippet: Some(self.file.snippet(&place)),
            at: Origin::File(place),
            message,
        });
    }
}

/// A number is not a URL.
const NONE: Stores = Stores {
    backends: &[],
    databases: &[],
};

/// Advice about missing or superfluous quotes.
fn quotes(kind: Kind, value: &DeValue<'_>) -> String {
    match (kind, value) {
        (Kind::Integer(..), DeValue::String(text)) if text.parse::<u64>().is_ok() => {
            format!("; write {text} without quotes")
        }
        (Kind::Strings | Kind::Limits, DeValue::String(text)) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            question(serde_json::json!(words))
        }
        (_, DeValue::Integer(number)) => {
            let text = number.as_str();
            let meant = suggest::value(kind, text, NONE).unwrap_or_else(|| text.to_owned());
            match kind.check(&meant, NONE) {
                Ok(()) => question(format!("\"{meant}\"")),
                Err(_) => String::new(),
            }
        }
        _ => String::new(),
    }
}

/// A list of texts as JSON; the empty list means "not set".
fn list_text(list: &[Spanned<DeValue<'_>>]) -> Option<String> {
    let texts: Option<Vec<&str>> = list.iter().map(|text| text.get_ref().as_str()).collect();
    let texts = texts?;
    Some(if texts.is_empty() {
        String::new()
    } else {
        serde_json::json!(texts).to_string()
    })
}

/// A number of the file in decimal digits.
fn whole(digits: &str, radix: u32) -> Option<String> {
    let number = u64::from_str_radix(&digits.replace('_', ""), radix).ok()?;
    Some(number.to_string())
}
