//! Errors of RabbitMQ and its client as our errors.

use lapin::ErrorKind as Kind;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use towpath_core::Error;

/// Whether the target does not exist.
pub(super) fn is_not_found(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::NOTFOUND)
}

/// Whether a queue or exchange of that name exists with other properties.
pub(super) fn is_different(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::PRECONDITIONFAILED)
}

/// Whether the user lacks the permission.
pub(super) fn is_refused(error: &lapin::Error) -> bool {
    is_soft(error, &AMQPSoftError::ACCESSREFUSED)
}

/// Whether the queue exists and its node is down: the broker answers `NOT_FOUND` to that as well.
pub(super) fn is_home_node_down(error: &lapin::Error) -> bool {
    is_not_found(error) && text(error).is_some_and(|text| text.contains("down or inaccessible"))
}

/// The broker's text.
pub(super) fn text(error: &lapin::Error) -> Option<&str> {
    match error.kind() {
        Kind::ProtocolError(error) => Some(error.get_message().as_str()),
        _ => None,
    }
}

/// Whether the error ended a channel and left its connection usable.
pub(super) fn is_of_channel(error: &lapin::Error) -> bool {
    error.is_amqp_soft_error()
        || matches!(
            error.kind(),
            Kind::InvalidChannelState(..) | Kind::InvalidChannel(_)
        )
}

fn is_soft(error: &lapin::Error, soft: &AMQPSoftError) -> bool {
    match error.kind() {
        Kind::ProtocolError(error) => *error.kind() == AMQPErrorKind::Soft(soft.clone()),
        _ => false,
    }
}

/// Whether the cause of an error is a missing permission.
pub(super) fn is_permission(error: &Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if error.downcast_ref::<lapin::Error>().is_some_and(is_refused) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The error of a call to this node. Whether the call took effect is unknown.
pub(super) fn of_call(node: &str, error: lapin::Error) -> Error {
    let what = match error.kind() {
        Kind::ProtocolError(error) if error.get_id() == 403 => {
            "refused the user or its permissions in this virtual host"
        }
        Kind::ProtocolError(_) => "refused the call",
        Kind::MissingHeartbeatError => "missed heartbeats",
        _ => "did not answer",
    };
    Error::unavailable(format!("rabbitmq at `{node}` {what}")).with_source(error)
}

/// The error of a timeout.
pub(super) fn silent(node: &str, timeout: std::time::Duration) -> Error {
    Error::unavailable(format!(
        "rabbitmq at `{node}` did not answer within {timeout:?}"
    ))
}

/// The error of a publish that the broker has not read: its outcome is unknown.
pub(super) fn blocked(node: &str, why: &str) -> Error {
    Error::unavailable(format!("rabbitmq at `{node}` blocks publishers: {why}"))
}
