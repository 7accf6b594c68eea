//! What the client says of its connections: its calls say only that no broker answered, and not why.

use std::sync::Mutex;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use towpath_core::{Error, ErrorKind};
use tracing::{Level, debug, trace, warn};

use super::consumer::lock;

/// How the client marks that a connection failed.
const FAILED: &str = "FAIL";

/// How the client marks lines about connections, which end and are made again in ordinary use, and what it says twice.
const CONNECTIONS: [&str; 3] = [FAILED, "REQTMOUT", "ERROR"];

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
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
        if facility == FAILED {
            *lock(&self.0) = Some(reason(text).to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        note(&error, reason);
    }
}

/// A line of the client's log.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, text: &str) {
    match weight(level, facility) {
        Level::WARN => warn!(target: "librdkafka", facility, text, "kafka client"),
        Level::DEBUG => debug!(target: "librdkafka", facility, text, "kafka client"),
        _ => trace!(target: "librdkafka", facility, text, "kafka client"),
    }
}

/// The level that a line has for us: what fails is said by the call that needed it, so nothing is an error.
fn weight(level: RDKafkaLogLevel, facility: &str) -> Level {
    use RDKafkaLogLevel::{Debug, Info, Notice};
    match level {
        Debug => Level::TRACE,
        Notice | Info => Level::DEBUG,
        _ if CONNECTIONS.contains(&facility) => Level::DEBUG,
        _ => Level::WARN,
    }
}

/// An event of the client that belongs to no call.
pub(super) fn note(error: &KafkaError, reason: &str) {
    match error.rdkafka_error_code() {
        // That a partition ends there is expected, as is a connection that does.
        Some(
            Code::PartitionEOF
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut,
        ) => debug!(target: "librdkafka", %error, reason, "kafka client"),
        _ => warn!(target: "librdkafka", %error, reason, "kafka client"),
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
    fn the_end_of_a_connection_is_no_error_in_the_log() {
        use RDKafkaLogLevel::{Debug, Error, Info, Warning};
        assert_eq!(weight(Error, "FAIL"), Level::DEBUG);
        assert_eq!(weight(Warning, "REQTMOUT"), Level::DEBUG);
        assert_eq!(weight(Info, "FAIL"), Level::DEBUG);
        assert_eq!(weight(Debug, "METADATA"), Level::TRACE);
        assert_eq!(weight(Error, "APIVERSION"), Level::WARN);
    }

    #[test]
    fn the_reason_stands_alone() {
        let text = "[thrd:sasl_ssl://localhost:9/bootstrap]: sasl_ssl://localhost:9/bootstrap: Connect failed (after 3ms in state CONNECT)";
        let expected = "sasl_ssl://localhost:9/bootstrap: Connect failed";
        assert_eq!(reason(text), expected);
    }
}
