//! Log lines and errors of the client: its calls return only that no broker answered, the log has the reason.

use std::sync::Mutex;

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use towpath_core::{Error, ErrorKind};
use tracing::{Level, debug, trace, warn};

use super::consumer::lock;

/// Facility of a failed connection.
const FAILED: &str = "FAIL";

/// Facilities of connections, which close and reopen in ordinary use, and of errors that are also events.
const CONNECTIONS: [&str; 3] = [FAILED, "REQTMOUT", "ERROR"];

/// Keeps the reason of the last failed connection.
#[derive(Default)]
pub(super) struct ErrorLog(Mutex<Option<String>>);

impl ErrorLog {
    /// Adds the reason of a missing connection to an error, if known.
    pub(super) fn explain(&self, error: Error) -> Error {
        match &*lock(&self.0) {
            Some(reason) if error.kind() == ErrorKind::Unavailable => {
                Error::unavailable(format!("kafka: {reason}")).with_source(error)
            }
            _ => error,
        }
    }

    /// Whether a connection failed since the last answer.
    pub(super) fn has_reason(&self) -> bool {
        lock(&self.0).is_some()
    }

    /// A call was answered: forgets the reason.
    pub(super) fn forget(&self) {
        lock(&self.0).take();
    }
}

impl ClientContext for ErrorLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        log(level, facility, text);
        if facility == FAILED {
            *lock(&self.0) = Some(reason(text).to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        log_error(&error, reason);
    }
}

/// A line of the client's log.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, text: &str) {
    match weight(level, facility) {
        Level::WARN => warn!(target: "librdkafka", facility, text, "kafka client log"),
        Level::DEBUG => debug!(target: "librdkafka", facility, text, "kafka client log"),
        _ => trace!(target: "librdkafka", facility, text, "kafka client log"),
    }
}

/// The level of a line here: a failure is returned by the call that needed it, so no line is an error.
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
pub(super) fn log_error(error: &KafkaError, reason: &str) {
    match error.rdkafka_error_code() {
        // The end of a partition is expected, as is a closed connection.
        Some(
            Code::PartitionEOF
            | Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut,
        ) => debug!(target: "librdkafka", %error, reason, "kafka client log"),
        _ => warn!(target: "librdkafka", %error, reason, "kafka client log"),
    }
}

impl ConsumerContext for ErrorLog {}

/// The text without the leading thread name and the trailing duration.
fn reason(text: &str) -> &str {
    let text = text.split_once("]: ").map_or(text, |(_, rest)| rest);
    text.rsplit_once(" (after ")
        .map_or(text, |(reason, _)| reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_connection_is_logged_at_debug() {
        use RDKafkaLogLevel::{Debug, Error, Info, Warning};
        assert_eq!(weight(Error, "FAIL"), Level::DEBUG);
        assert_eq!(weight(Warning, "REQTMOUT"), Level::DEBUG);
        assert_eq!(weight(Info, "FAIL"), Level::DEBUG);
        assert_eq!(weight(Debug, "METADATA"), Level::TRACE);
        assert_eq!(weight(Error, "APIVERSION"), Level::WARN);
    }

    #[test]
    fn thread_and_duration_are_stripped_from_the_reason() {
        let text = "[thrd:sasl_ssl://localhost:9/bootstrap]: sasl_ssl://localhost:9/bootstrap: Connect failed (after 3ms in state CONNECT)";
        let expected = "sasl_ssl://localhost:9/bootstrap: Connect failed";
        assert_eq!(reason(text), expected);
    }
}
