//! The configuration of the lines app, in types.

use std::path::PathBuf;
use std::time::Duration;

use super::key::{GIB, HOUR, KIB, Key, MIB, MINUTE, SECOND, key};
use super::model::{Values, backend_url, rotation};
use super::{Kind, Secret, kind};
use crate::apps::lines::Start;
use towpath::sink::Rotation;

/// The keys of the lines app.
pub(super) const KEYS: &[Key] = &[
    key(
        "lines.input",
        Kind::Path,
        None,
        &["INPUT_PATH"],
        "Input file, or a glob pattern with `*`, `?` and `[…]`; an existing path is never a pattern. Unset: `run reader` follows `/data/input.txt`, and `up` runs no lines roles.",
    ),
    key(
        "lines.inputs",
        Kind::Strings,
        None,
        &[],
        "Additional input files and patterns.",
    ),
    key(
        "lines.stream",
        Kind::Queue,
        Some("line_stream"),
        &["STREAM_NAME"],
        "Name of the stream.",
    ),
    key(
        "lines.output",
        Kind::Path,
        None,
        &["OUTPUT_PATH"],
        "Output file of the writer [default: `output.txt` beside the input]. Where the ingest worker runs too, `OUTPUT_PATH` sets the worker's output only.",
    ),
    key(
        "lines.output_mode",
        Kind::FileMode,
        Some("0640"),
        &[],
        "Mode of new output files, whatever the umask is. The journal beside an output is always `0600`.",
    ),
    key(
        "lines.rotate_size",
        Kind::Size(KIB, 1024 * GIB),
        None,
        &[],
        "Maximum size of the output file; a full file is renamed to `<output>.<time>`. Unset: no rotation by size.",
    ),
    key(
        "lines.rotate_every",
        Kind::Duration(SECOND, 366 * 24 * HOUR),
        None,
        &[],
        "Time span of one output file, aligned to midnight UTC: `24h` is one file a day. Unset: no rotation by time.",
    ),
    key(
        "lines.fsync",
        Kind::Choice(&["always", "never"]),
        Some("always"),
        &[],
        "When the output is synced: before its entries are committed (`always`), or by the system (`never`), which can lose the last seconds in a power cut.",
    ),
    key(
        "lines.start",
        Kind::Choice(&["beginning", "end"]),
        Some("beginning"),
        &[],
        "Start position in an input that was never read before.",
    ),
    key(
        "lines.max_line",
        Kind::Size(KIB, 16 * MIB),
        Some("1MiB"),
        &[],
        "Maximum line length; the beginning of a longer line goes to the queue `<stream>.dead`, with the reason.",
    ),
    key(
        "lines.quiet",
        Kind::Duration(SECOND, 24 * HOUR),
        None,
        &[],
        "Idle time after which a last line without a newline is sent. Unset: it waits for its newline.",
    ),
    key(
        "lines.rotate_wait",
        Kind::Duration(SECOND, 24 * HOUR),
        Some("1m"),
        &[],
        "Time that a renamed input is followed after its last change, because its writer may still have it open.",
    ),
    key(
        "lines.forget_after",
        Kind::Duration(SECOND, 366 * 24 * HOUR),
        Some("24h"),
        &[],
        "Retention of the position of a renamed or removed input that was read to its end.",
    ),
    key(
        "lines.batch",
        Kind::Integer(1, 10_000),
        Some("1000"),
        &[],
        "Maximum lines per batch of the reader and the writer.",
    ),
    key(
        "lines.linger",
        Kind::Duration(0, MINUTE),
        Some("0s"),
        &[],
        "Time that the reader waits for more lines after the first one, to build larger batches.",
    ),
    key(
        "lines.poll",
        Kind::Duration(10, MINUTE),
        Some("500ms"),
        &[],
        "Polling interval of the inputs when the system reports no change.",
    ),
    key(
        "lines.group",
        Kind::Queue,
        Some("cg1"),
        &[],
        "Consumer group of the writers.",
    ),
    key(
        "lines.consumer",
        Kind::Queue,
        None,
        &[],
        "Consumer name of the writer, one per output [default: the host name and a checksum of the output's path].",
    ),
    key(
        "lines.claim_after",
        Kind::Duration(SECOND, HOUR),
        Some("30s"),
        &[],
        "Idle time after which pending entries of another writer are claimed when it may still be alive.",
    ),
    key(
        "lines.trim",
        Kind::Choice(&["on", "off"]),
        Some("on"),
        &[],
        "Trims entries that every group has finished.",
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
    pub output_mode: u32,
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
            output_mode: values.file_mode("lines.output_mode"),
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
