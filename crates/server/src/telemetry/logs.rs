//! Logs on standard error: for people on a terminal, JSON elsewhere. Payloads and secrets never.

#![expect(
    clippy::disallowed_methods,
    reason = "log lines have the machine's time"
)]

use std::io::IsTerminal;
use std::str::FromStr;

use towpath_core::{Error, Result};
use tracing::level_filters::LevelFilter;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::log_writer::LogWriter;

/// The target of log lines about changes and refused credentials.
const AUDIT: &str = "audit";

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Pretty on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "pretty" => Ok(Self::Pretty),
            "json" => Ok(Self::Json),
            _ => Err(Error::invalid(format!(
                "unknown log format `{text}`; one of auto, pretty, json"
            ))),
        }
    }
}

/// Whether a text is a level, or a list of levels and `target=level`.
///
/// A bare target is refused, although the library reads it as everything of that target: it is mostly a misspelt level.
pub fn is_filter(text: &str) -> bool {
    let bare_target = |part: &str| !part.contains('=') && part.parse::<LevelFilter>().is_err();
    // Fields of a span may hold commas.
    let spans = text.contains('[');
    (spans || !text.split(',').any(|part| bare_target(part.trim())))
        && EnvFilter::try_new(text).is_ok()
}

/// Whether a line may be shown at all, whatever the filter says. Below a warning, libraries print data that they
/// read and write: payloads, parameters of statements, mail.
fn is_shown(metadata: &Metadata<'_>, silent: &[&str]) -> bool {
    let crate_name = metadata.target().split("::").next().unwrap_or_default();
    if crate_name.starts_with("towpath") || crate_name == AUDIT {
        return true;
    }
    !silent.contains(&crate_name) && *metadata.level() <= Level::WARN
}

/// Reports missing lines: the reader of the log was too slow, or stopped.
const DROPPED: &str = "log lines dropped: standard error is not read fast enough";

fn dropped_json(count: u64) -> String {
    let line = serde_json::json!({
        "timestamp": jiff::Timestamp::now().to_string(), "level": "WARN", "message": DROPPED,
        "count": count, "target": module_path!(),
    });
    format!("{line}\n")
}

fn dropped_text(count: u64) -> String {
    let now = jiff::Timestamp::now();
    format!("{now}  WARN {}: {DROPPED} count={count}\n", module_path!())
}

/// Starts logging; `filter` is a level or a list such as `info,towpath=debug`, `colour` is for people's eyes.
///
/// Of libraries only warnings and errors are shown, and nothing of the `silent` crates.
///
/// # Errors
/// `Invalid` for a filter that cannot be read; `Unavailable` when the system has no thread.
pub fn init(
    format: Format,
    filter: &str,
    colour: bool,
    silent: &'static [&'static str],
) -> Result<()> {
    // The audit log does not depend on the level.
    let whole = format!("{filter},{AUDIT}=info");
    let filter = EnvFilter::try_new(whole).map_err(|error| {
        Error::invalid(format!("invalid log level or filter `{filter}`")).with_source(error)
    })?;
    let shown = tracing_subscriber::registry()
        .with(filter)
        .with(filter_fn(move |metadata| is_shown(metadata, silent)));
    let terminal = std::io::stderr().is_terminal();
    let json = format == Format::Json || (format == Format::Auto && !terminal);
    let dropped = if json { dropped_json } else { dropped_text };
    let writer = LogWriter::start(dropped)
        .map_err(|error| Error::unavailable("the log has no thread").with_source(error))?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    // Started twice in one process, as tests do: the first one stays.
    if json {
        shown.with(lines.json().flatten_event(true)).try_init().ok()
    } else {
        shown.with(lines.with_ansi(colour)).try_init().ok()
    };
    Ok(())
}
