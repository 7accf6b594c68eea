//! The only place that prints.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;

use clap::{ColorChoice, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    // Comments, because clap would print two documented words on eight lines of every help page.
    Table,
    // The fields are those of the admin API.
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

/// Prints a line on standard output.
///
/// # Errors
/// A broken pipe, which ends the command quietly.
pub(super) fn line(text: impl AsRef<str>) -> io::Result<()> {
    writeln!(io::stdout(), "{}", text.as_ref())
}

/// Prints text as it is.
///
/// # Errors
/// As [`line`].
pub(super) fn text(text: &str) -> io::Result<()> {
    io::stdout().write_all(text.as_bytes())
}

/// Prints a line on standard error.
pub(super) fn note(text: impl AsRef<str>) {
    // Nothing is left to tell somebody whose standard error is closed.
    writeln!(io::stderr(), "{}", text.as_ref()).ok();
}

/// Prints an error on standard error.
pub(super) fn error(text: impl AsRef<str>) {
    let mark = paint(&io::stderr(), Color::Red, "error:");
    note(format!("{mark} {}", text.as_ref()));
}

/// Prints JSON, indented.
///
/// # Errors
/// As [`line`].
pub(super) fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Prints rows under their headings.
///
/// # Errors
/// As [`line`].
pub(super) fn table(
    headings: &[&str],
    rows: impl IntoIterator<Item = Vec<String>>,
) -> io::Result<()> {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_header(headings.iter().copied());
    table.add_rows(rows);
    for row in table.lines() {
        line(row.trim_end())?;
    }
    Ok(())
}
