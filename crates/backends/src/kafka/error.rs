//! Errors of Kafka and its client as our errors.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use towpath_core::Error;

/// The error of a call. Whether the call took effect is unknown, unless the broker refused it.
pub(super) fn of_call(what: &str, error: KafkaError) -> Error {
    let text = match code(&error) {
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
            return Error::not_found(format!("kafka: {what}: topic does not exist"))
                .with_source(error);
        }
        _ if is_too_large(&error) => {
            return Error::invalid(format!(
                "kafka: {what}: the record exceeds the topic's limit; raise its `max.message.bytes`"
            ))
            .with_source(error);
        }
        Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) => {
            format!("kafka: {what}: not authorised; check the ACLs of the user")
        }
        Some(Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend) => {
            format!("kafka: {what}: fewer replicas in sync than `min.insync.replicas` requires")
        }
        Some(Code::NonEmptyGroup | Code::UnknownMemberId | Code::IllegalGeneration) => {
            return Error::conflict(format!(
                "kafka: {what}: another process is a member of this group; stop it first"
            ))
            .with_source(error);
        }
        _ => format!("kafka: {what}"),
    };
    Error::unavailable(text).with_source(error)
}

/// The error of a produce call. A missing topic is `Unavailable`: the next call creates it.
pub(super) fn of_produce(what: &str, error: KafkaError) -> Error {
    if is_unknown_topic(&error) {
        let text = format!("kafka: {what}: the topic was deleted; the next call creates it again");
        return Error::unavailable(text).with_source(error);
    }
    of_call(what, error)
}

/// Whether a record exceeds the limit of its topic or of the client.
pub(super) fn is_too_large(error: &KafkaError) -> bool {
    let code = code(error);
    matches!(
        code,
        Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge)
    )
}

/// Whether a topic does not exist.
pub(super) fn is_unknown_topic(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)
    )
}

/// The broker's or the client's code, where there is one.
pub(super) fn code(error: &KafkaError) -> Option<Code> {
    error.rdkafka_error_code()
}

/// Whether a group has no coordinator at the moment.
pub(super) fn has_no_coordinator(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(
            Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress
        )
    )
}

/// Whether a partition has no leader at the moment, as in a new topic or while a node is replaced.
pub(super) fn has_no_leader(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(Code::NotLeaderForPartition | Code::LeaderNotAvailable)
    )
}
