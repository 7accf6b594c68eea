//! Words that users of other tools try first, and the command that does the same here.

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue};

const GUESSES: [(&str, &str); 11] = [
    (
        "bench",
        "towpath-bench, built from source with `cargo build --release -p towpath-bench`",
    ),
    ("delete", "towpath queue rm QUEUE"),
    ("jobs", "towpath queue ls"),
    ("list", "towpath queue ls"),
    (
        "logs",
        "the standard error of `towpath up`, or `towpath status`",
    ),
    ("ls", "towpath queue ls"),
    ("message", "towpath queue peek QUEUE"),
    ("start", "towpath up"),
    ("tail", "towpath stream tail STREAM"),
    ("top", "towpath status, towpath queue ls"),
    (
        "trace",
        "towpath outbox trace ID, towpath dlq show QUEUE ID",
    ),
];

/// Replaces the tip of an error about an unknown command, where the first word is one of these.
pub(super) fn add_tip(error: &mut clap::Error, first: &str) {
    let word = error.get(ContextKind::InvalidSubcommand);
    if !matches!(word, Some(ContextValue::String(word)) if word == first) {
        return;
    }
    let Some((_, command)) = GUESSES.iter().find(|(guess, _)| *guess == first) else {
        return;
    };
    let tip = StyledStr::from(format!("try: {command}"));
    error.remove(ContextKind::SuggestedSubcommand);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![tip]));
}
