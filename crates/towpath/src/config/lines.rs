//! What the configuration of the lines app means, in types.

use std::path::PathBuf;
use std::time::Duration;

use super::model::{Values, backend_url};
use super::{Secret, kind};
use crate::apps::lines::Start;

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
    pub start: Start,
    pub max_line: usize,
    pub quiet: Option<Duration>,
    pub batch: usize,
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
            inputs: kind::strings(&values.text("lines.inputs")).unwrap_or_default(),
            stream: values.text("lines.stream"),
            output: values.optional("lines.output").map(PathBuf::from),
            start: match values.text("lines.start").as_str() {
                "end" => Start::End,
                _ => Start::Beginning,
            },
            max_line: usize::try_from(values.size("lines.max_line")).unwrap_or(usize::MAX),
            quiet: values
                .optional("lines.quiet")
                .and_then(|text| kind::duration(&text)),
            batch: values.count("lines.batch"),
            poll: values.duration("lines.poll"),
            group: values.text("lines.group"),
            consumer: values.optional("lines.consumer"),
            claim_after: values.duration("lines.claim_after"),
            trim: values.text("lines.trim") == "on",
        }
    }
}
