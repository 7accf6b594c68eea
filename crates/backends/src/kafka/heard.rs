//! What the client says of its connections: its calls say only that no broker answered, and not why.

use std::sync::Mutex;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use towpath_core::{Error, ErrorKind};
use tracing::{debug, warn};

use super::member::lock;

/// How the client marks that a connection failed.
const FAILED: &str = "FAIL";

/// Keeps why the last connection failed.
#[derive(Default)]
pub(super) struct Heard(Mutex<Option<String>>);

impl Heard {
    /// Adds to an error why no connection is there, if that is known.
    pub(super) fn explain(&self, error: Error) -> Error {
        match &*lock(&self.0) {
            Some(reason) if error.kind() == ErrorKind::Unavailable => {
                Error::unavailable(format!("kafka: {reason}")).with_source(error)
            }
            _ => error,
        }
    }

    /// Whether it is known why no connection is there.
    pub(super) fn has_reason(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// A call was answered.
    pub(super) fn forget(&self) {
        lock(&self.0).take();
    }
}

impl ClientContext for Heard {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, text: &str) {
        debug!(target: "librdkafka", facility, text);
        if facility == FAILED {
            *lock(&self.0) = Some(reason(text).to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        note(&error, reason);
    }
}

/// What a consumer tells besides the answers of its calls. That a partition ends there is no news.
pub(super) fn note(error: &KafkaError, reason: &str) {
    if error.rdkafka_error_code() != Some(Code::PartitionEOF) {
        warn!(target: "librdkafka", %error, reason);
    }
}

impl ConsumerContext for Heard {}

/// Without the thread, which the client says first, and how long it took, which it says last.
fn reason(text: &str) -> &str {
    let text = text.split_once("]: ").map_or(text, |(_, rest)| rest);
    text.rsplit_once(" (after ")
        .map_or(text, |(reason, _)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_stands_alone() {
        let text = "[thrd:sasl_ssl://localhost:9/bootstrap]: sasl_ssl://localhost:9/bootstrap: Connect failed (after 3ms in state CONNECT)";
        let expected = "sasl_ssl://localhost:9/bootstrap: Connect failed";
        assert_eq!(reason(text), expected);
    }
}
