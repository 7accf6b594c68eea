//! What RabbitMQ and its client say, in our words.

use lapin::ErrorKind as Kind;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use towpath_core::Error;

/// Whether what was asked for is not there.
pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::NOTFOUND)
}

/// Whether a queue or exchange of that name is there with other properties.
pub(super) fn is_different(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::PRECONDITIONFAILED)
}

fn is_soft(error: &lapin::Error, soft: &AMQPSoftError) -> bool {
    match error.kind() {
        Kind::ProtocolError(error) => *error.kind() == AMQPErrorKind::Soft(soft.clone()),
        _ => false,
    }
}

/// The error of a call to this node. It is never known whether the call took effect.
pub(super) fn of_call(node: &str, error: lapin::Error) -> Error {
    let what = match error.kind() {
        Kind::ProtocolError(told) if told.get_id() == 403 => {
            "refused the user, or what it may do in this virtual host"
        }
        Kind::ProtocolError(_) => "refused the call",
        Kind::MissingHeartbeatError => "has gone silent",
        _ => "did not answer",
    };
    Error::unavailable(format!("rabbitmq at `{node}` {what}")).with_source(error)
}

/// The error of a call that had its time.
pub(super) fn silent(node: &str, timeout: std::time::Duration) -> Error {
    Error::unavailable(format!(
        "rabbitmq at `{node}` did not answer within {timeout:?}"
    ))
}

/// The error of a publish that the broker has not read: it may or may not come to be.
pub(super) fn blocked(node: &str, why: &str) -> Error {
    Error::unavailable(format!(
        "rabbitmq at `{node}` takes no messages just now: {why}"
    ))
}
