//! The only place that prints.

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use clap::{ColorChoice, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;
use towpath_core::units;

use towpath::sink::escape;

/// Output format of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    // Comments, because clap would print two documented words on eight lines of every help page.
    #[allow(missing_docs, reason = "see the comment")]
    Table,
    // The fields are those of the admin API.
    #[allow(missing_docs, reason = "see the comment")]
    Json,
}

/// A colour that means something.
#[derive(Debug, Clone, Copy)]
pub(super) enum Color {
    Red = 31,
    Green = 32,
    Yellow = 33,
}

static COLOR: OnceLock<ColorChoice> = OnceLock::new();

/// Takes what `--color` says, once.
pub(super) fn use_color(choice: ColorChoice) {
    COLOR.get_or_init(|| choice);
}

/// Whether a stream gets colours: asked for, or a terminal without `NO_COLOR`.
pub(super) fn is_coloured(stream: &impl IsTerminal) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match COLOR.get() {
        Some(ColorChoice::Always) => true,
        Some(ColorChoice::Never) => false,
        Some(ColorChoice::Auto) | None => {
            let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
            stream.is_terminal() && !set("NO_COLOR") && !dumb
        }
    }
}

/// The text in a colour, when the stream gets colours.
pub(super) fn paint(stream: &impl IsTerminal, color: Color, text: &str) -> String {
    if is_coloured(stream) {
        format!("\x1b[{}m{text}\x1b[0m", color as u8)
    } else {
        text.to_owned()
    }
}

/// Prints a line on standard output. What would control a terminal is escaped on one, and stays as it is in a pipe.
///
/// # Errors
/// A broken pipe, which ends the command quietly.
pub fn line(text: impl AsRef<str>) -> io::Result<()> {
    let text = text.as_ref();
    match io::stdout().is_terminal() {
        true => writeln!(io::stdout(), "{}", harmless(text)),
        false => writeln!(io::stdout(), "{text}"),
    }
}

/// A text whose control characters are escapes, but for line ends, tabs and the colours of [`paint`]. Names, errors and
/// payloads come from clients, and terminals obey such characters.
fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmful = |character: char| character.is_control() && !"\n\t".contains(character);
    if !text.contains(is_harmful) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let colour = COLOURS.iter().find(|colour| rest.starts_with(**colour));
        let length = colour.map_or(character.len_utf8(), |colour| colour.len());
        match colour {
            None if is_harmful(character) => shown.extend(character.escape_unicode()),
            _ => shown.push_str(&rest[..length]),
        }
        rest = &rest[length..];
    }
    shown.into()
}

/// The sequences of [`paint`].
const COLOURS: [&str; 4] = ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"];

/// Prints text as it is.
///
/// # Errors
/// As [`line()`].
pub(super) fn text(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

/// Prints a line on standard error.
pub fn note(text: impl AsRef<str>) {
    // With standard error closed there is no place left to report it.
    writeln!(io::stderr(), "{}", harmless(text.as_ref())).ok();
}

/// Says on standard error that a list is a part: `20 of 1,253 dead letters; --max shows more`.
pub(super) fn of(shown: u64, there: u64, what: &str) {
    if shown < there {
        let (shown, there) = (units::count(shown), units::counted(there, what));
        note(format!("{shown} of {there}; `--max` shows more"));
    }
}

/// Prints an error on standard error.
pub(super) fn error(text: impl AsRef<str>) {
    let mark = paint(&io::stderr(), Color::Red, "error:");
    note(format!("{mark} {}", text.as_ref()));
}

/// Prints JSON, indented.
///
/// # Errors
/// As [`line()`].
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Prints a list: rows under their headings, or on standard error why there are none.
///
/// # Errors
/// As [`line()`].
pub(super) fn list(headings: &[&str], rows: Vec<Vec<String>>, none: &str) -> io::Result<()> {
    match rows.is_empty() {
        true => {
            note(none);
            Ok(())
        }
        false => table(headings, rows),
    }
}

/// A time as tables show it, to the millisecond; other texts as they are.
pub(super) fn time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time.strftime("%FT%T.%3fZ").to_string(),
        Err(_) => text.to_owned(),
    }
}

/// Prints rows under their headings.
///
/// # Errors
/// As [`line()`].
pub fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> io::Result<()> {
    let mut headings: Vec<&str> = headings.to_vec();
    let one_line = |cell: String| match cell.contains(char::is_control) {
        true => escape(cell.as_bytes()).into_owned(),
        false => cell,
    };
    let rows = rows.into_iter();
    let rows = rows.map(|row| row.into_iter().map(one_line).collect());
    let mut rows: Vec<Vec<String>> = rows.collect();
    if let Some(width) = width_of_terminal() {
        fit(&mut headings, &mut rows, width);
    }
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(headings);
    table.add_rows(rows);
    for row in table.lines() {
        line(row.trim_end())?;
    }
    Ok(())
}

/// Columns that a table does without on a narrow terminal, the first one first.
const OPTIONAL: [&str; 19] = [
    "DUPLICATES",
    "RETRIED",
    "ENQUEUED",
    "ACKED",
    "APPENDED",
    "HEARTBEAT",
    "CONSUMERS",
    "LEASED",
    "OLDEST READY",
    "ATTEMPTS",
    "NEWEST",
    "OLDEST",
    "DIED",
    "CREATED",
    "STATE",
    "HOST",
    "LAST SEEN",
    "CODE",
    "DATA",
];

/// Columns whose text may be cut, and the shortest that is worth a column.
const CUT: [&str; 10] = [
    "PAYLOAD", "REASON", "ERROR", "VALUE", "URL", "RESULT", "WHAT", "DETAIL", "ROLES", "ABOUT",
];
const SHORTEST: usize = 12;

/// Prints a text behind a prefix of `indent` columns; on a terminal it is broken between words, never inside one.
///
/// # Errors
/// As [`line()`].
pub(super) fn wrapped(prefix: &str, indent: usize, text: &str) -> io::Result<()> {
    let room = width_of_terminal().map_or(usize::MAX, |width| width.saturating_sub(indent));
    let mut lines = wrap(text, room).into_iter();
    line(format!("{prefix}{}", lines.next().unwrap_or_default()))?;
    lines.try_for_each(|rest| line(format!("{:indent$}{rest}", "")))
}

/// The lines of a text; a word that is longer than `room` has a line to itself.
fn wrap(text: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(last) if last.chars().count() + 1 + word.chars().count() <= room => {
                last.push(' ');
                last.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Width of the terminal; `None` elsewhere, where no column is dropped.
pub(super) fn width_of_terminal() -> Option<usize> {
    let stdout = io::stdout();
    if !stdout.is_terminal() {
        return None;
    }
    let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
    (size.ws_col > 0).then(|| size.ws_col.into())
}

/// Makes a table as narrow as the terminal: cuts long texts, then leaves columns out.
fn fit(headings: &mut Vec<&str>, rows: &mut Vec<Vec<String>>, width: usize) {
    let drop_column = |headings: &mut Vec<&str>, rows: &mut Vec<Vec<String>>, at: usize| {
        headings.remove(at);
        rows.iter_mut().for_each(|row| drop(row.remove(at)));
    };
    loop {
        let widths = widths(headings, rows);
        let sum: usize = widths.iter().map(|width| width + 2).sum();
        let Some(over) = sum.checked_sub(width).filter(|over| *over > 0) else {
            return;
        };
        let can_be_cut = |(_, (heading, wide)): &(usize, (&&str, &usize))| {
            CUT.contains(heading) && **wide > SHORTEST
        };
        let columns = headings.iter().zip(&widths).enumerate();
        let widest = columns
            .filter(can_be_cut)
            .max_by_key(|(_, (_, wide))| **wide);
        if let Some((at, (_, wide))) = widest {
            let most = wide.saturating_sub(over).max(SHORTEST);
            rows.iter_mut().for_each(|row| cut(&mut row[at], most));
            continue;
        }
        let optional = OPTIONAL.iter().find_map(|name| {
            let mut columns = headings.iter();
            columns.position(|heading| heading == name)
        });
        match optional {
            Some(at) => drop_column(headings, rows, at),
            // The remaining columns are required.
            None => return,
        }
    }
}

fn widths(headings: &[&str], rows: &[Vec<String>]) -> Vec<usize> {
    let of = |at: usize, heading: &str| {
        let cells = rows.iter().map(|row| row[at].chars().count());
        cells.max().unwrap_or_default().max(heading.chars().count())
    };
    let columns = headings.iter().enumerate();
    columns.map(|(at, heading)| of(at, heading)).collect()
}

fn cut(text: &mut String, most: usize) {
    if let Some((end, _)) = text.char_indices().nth(most) {
        let end = text[..end]
            .char_indices()
            .next_back()
            .map_or(0, |(at, _)| at);
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fitted(width: usize) -> (Vec<&'static str>, Vec<String>) {
        let mut headings = vec!["QUEUE", "READY", "RETRIED", "REASON"];
        let reason = "answered 503 Service Unavailable";
        let row = ["messages", "1", "20", reason].map(str::to_owned);
        let mut rows = vec![row.to_vec()];
        fit(&mut headings, &mut rows, width);
        (headings, rows.remove(0))
    }

    #[test]
    fn terminals_get_no_control_characters_of_clients() {
        for (text, expected) in [
            ("a\tb\nc é", "a\tb\nc é"),
            ("X\x1b[2J\x1b]0;pwn\x07", "X\\u{1b}[2J\\u{1b}]0;pwn\\u{7}"),
            (
                "\x1b[31mFAIL\x1b[0m \x1b[5m",
                "\x1b[31mFAIL\x1b[0m \\u{1b}[5m",
            ),
            ("\u{9b}2J\r", "\\u{9b}2J\\u{d}"),
        ] {
            assert_eq!(harmless(text), expected);
        }
    }

    #[test]
    fn tables_show_times_to_the_millisecond() {
        for (text, expected) in [
            ("2026-12-01T11:57:20.163707425Z", "2026-12-01T11:57:20.163Z"),
            ("2026-12-01T11:57:20Z", "2026-12-01T11:57:20.000Z"),
            ("pending", "pending"),
        ] {
            assert_eq!(time(text), expected);
        }
    }

    #[test]
    fn a_text_is_broken_between_words() {
        let text = "check the receiver: http://127.0.0.1:8080/hook answers 503";
        let lines = [
            "check the",
            "receiver:",
            "http://127.0.0.1:8080/hook",
            "answers 503",
        ];
        assert_eq!(wrap(text, 12), lines);
        assert_eq!(wrap(text, usize::MAX), [text]);
        assert_eq!(wrap("", 12), [""]);
    }

    #[test]
    fn a_narrow_terminal_gets_shorter_texts_then_fewer_columns() {
        let (headings, row) = fitted(80);
        assert_eq!(
            (headings.len(), row[3].as_str()),
            (4, "answered 503 Service Unavailable")
        );
        let (headings, row) = fitted(45);
        assert_eq!((headings.len(), row[3].as_str()), (4, "answered 503 Ser…"));
        let (headings, row) = fitted(35);
        assert_eq!(headings, ["QUEUE", "READY", "REASON"]);
        assert_eq!(row[2], "answered 50…");
        // Nothing is left out that a row is known by.
        assert_eq!(fitted(5).0, ["QUEUE", "READY", "REASON"]);
    }
}
