//! What the configuration of the lines app means, in types.

use std::path::PathBuf;
use std::time::Duration;

use super::key::{GIB, HOUR, KIB, Key, MIB, MINUTE, SECOND, key};
use super::model::{Values, backend_url, rotation};
use super::{Kind, Secret, kind};
use crate::apps::lines::Start;
use crate::sink::Rotation;

/// The keys of the lines app.
pub(super) const KEYS: &[Key] = &[
    key(
        "lines.input",
        Kind::Path,
        None,
        &["INPUT_PATH"],
        "File whose lines are sent, or a pattern with `*`, `?` and `[…]`; a path that exists is never a pattern. Without it `run reader` follows `/data/input.txt`, and `up` runs no lines roles.",
    ),
    key(
        "lines.inputs",
        Kind::Strings,
        None,
        &[],
        "More files and patterns, as `lines.input`.",
    ),
    key(
        "lines.stream",
        Kind::Queue,
        Some("line_stream"),
        &["STREAM_NAME"],
        "The stream that lines go through.",
    ),
    key(
        "lines.output",
        Kind::Path,
        None,
        &["OUTPUT_PATH"],
        "File that the writer appends to; without it `output.txt` beside the input. Where the ingest worker runs too, `OUTPUT_PATH` is its output only.",
    ),
    key(
        "lines.rotate_size",
        Kind::Size(KIB, 1024 * GIB),
        None,
        &[],
        "Size that the output does not grow over: it is renamed to `<output>.<time>` and a new one begun; without it any size.",
    ),
    key(
        "lines.rotate_every",
        Kind::Duration(SECOND, 366 * 24 * HOUR),
        None,
        &[],
        "Span of time that one output holds, counted from midnight UTC of 1970: `24h` is one a day; without it any time.",
    ),
    key(
        "lines.fsync",
        Kind::Choice(&["always", "never"]),
        Some("always"),
        &[],
        "Whether the output is synced before its entries are finished; with `never` the last seconds of it go with a power cut.",
    ),
    key(
        "lines.start",
        Kind::Choice(&["beginning", "end"]),
        Some("beginning"),
        &[],
        "Where a file begins that was never read before.",
    ),
    key(
        "lines.max_line",
        Kind::Size(KIB, 16 * MIB),
        Some("1MiB"),
        &[],
        "Longest line; the beginning of a longer one goes to the queue `<stream>.dead`, with the reason.",
    ),
    key(
        "lines.quiet",
        Kind::Duration(SECOND, 24 * HOUR),
        None,
        &[],
        "After how long without a change a last line is sent although it has no newline; without it when its newline comes.",
    ),
    key(
        "lines.rotate_wait",
        Kind::Duration(SECOND, 24 * HOUR),
        Some("1m"),
        &[],
        "How long a renamed input is followed after its last change, because its writer may still have it open.",
    ),
    key(
        "lines.forget_after",
        Kind::Duration(SECOND, 366 * 24 * HOUR),
        Some("24h"),
        &[],
        "How long the position of a file is kept that was renamed or removed, and read to its end.",
    ),
    key(
        "lines.batch",
        Kind::Integer(1, 10_000),
        Some("1000"),
        &[],
        "Most lines in one step, of the reader and of the writer.",
    ),
    key(
        "lines.linger",
        Kind::Duration(0, MINUTE),
        Some("0s"),
        &[],
        "How long the reader waits for more when the first line comes after a pause, so that lines gather in one step.",
    ),
    key(
        "lines.poll",
        Kind::Duration(10, MINUTE),
        Some("500ms"),
        &[],
        "How often the reader looks at its inputs when the system reports no change.",
    ),
    key(
        "lines.group",
        Kind::Queue,
        Some("cg1"),
        &[],
        "The consumer group of the writers.",
    ),
    key(
        "lines.consumer",
        Kind::Queue,
        None,
        &[],
        "The writer's name in its group, one for each output; without it the host's name and a checksum of the output's path.",
    ),
    key(
        "lines.claim_after",
        Kind::Duration(SECOND, HOUR),
        Some("30s"),
        &[],
        "After how long another writer's entries are taken over when it may still be alive.",
    ),
    key(
        "lines.trim",
        Kind::Choice(&["on", "off"]),
        Some("on"),
        &[],
        "Whether the writer gives up entries that every group has finished.",
    ),
];

/// The lines app's part of a valid configuration.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each field is the key of the same name, documented in the table of keys"
)]
pub struct Lines {
    pub backend: Secret,
    pub input: Option<PathBuf>,
    pub inputs: Vec<String>,
    pub stream: String,
    pub output: Option<PathBuf>,
    pub rotation: Rotation,
    pub fsync: bool,
    pub start: Start,
    pub max_line: usize,
    pub quiet: Option<Duration>,
    pub rotate_wait: Duration,
    pub forget_after: Duration,
    pub batch: usize,
    pub linger: Duration,
    pub poll: Duration,
    pub group: String,
    pub consumer: Option<String>,
    pub claim_after: Duration,
    pub trim: bool,
}

impl Lines {
    pub(super) fn read(values: &Values<'_>) -> Self {
        Self {
            backend: Secret::new(backend_url(values, &["backends.lines", "backends.default"])),
            input: values.optional("lines.input").map(PathBuf::from),
            inputs: values.list("lines.inputs").unwrap_or_default(),
            stream: values.text("lines.stream"),
            output: values.optional("lines.output").map(PathBuf::from),
            rotation: rotation(values, "lines"),
            fsync: values.text("lines.fsync") == "always",
            start: match values.text("lines.start").as_str() {
                "end" => Start::End,
                _ => Start::Beginning,
            },
            max_line: usize::try_from(values.size("lines.max_line")).unwrap_or(usize::MAX),
            quiet: values
                .optional("lines.quiet")
                .and_then(|text| kind::duration(&text)),
            rotate_wait: values.duration("lines.rotate_wait"),
            forget_after: values.duration("lines.forget_after"),
            batch: values.count("lines.batch"),
            linger: values.duration("lines.linger"),
            poll: values.duration("lines.poll"),
            group: values.text("lines.group"),
            consumer: values.optional("lines.consumer"),
            claim_after: values.duration("lines.claim_after"),
            trim: values.text("lines.trim") == "on",
        }
    }
}
