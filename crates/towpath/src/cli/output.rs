//! The only place that prints.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs; the fields are those of the admin API.
    Json,
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
