//! What Kafka and its client say, in our words.

use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use towpath_core::Error;

/// The error of a call. It is not known whether the call took effect, unless the broker refused it.
pub(super) fn of_call(what: &str, error: KafkaError) -> Error {
    let text = match code(&error) {
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
            return Error::not_found(format!("kafka: {what}: there is no such topic"))
                .with_source(error);
        }
        _ if is_too_large(&error) => {
            return Error::invalid(format!(
                "kafka: {what}: the record is larger than the topic takes; raise its `max.message.bytes`"
            ))
            .with_source(error);
        }
        Some(Code::TopicAuthorizationFailed | Code::GroupAuthorizationFailed) => {
            format!("kafka: {what}: refused, the user may not do that")
        }
        Some(Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend) => {
            format!("kafka: {what}: fewer replicas are in sync than `min.insync.replicas` asks for")
        }
        Some(Code::NonEmptyGroup | Code::UnknownMemberId | Code::IllegalGeneration) => {
            return Error::conflict(format!(
                "kafka: {what}: another process reads in this group; stop it first"
            ))
            .with_source(error);
        }
        _ => format!("kafka: {what}"),
    };
    Error::unavailable(text).with_source(error)
}

/// The error of a call that produces. A topic that is not there is not the fault of the record: the next call creates it.
pub(super) fn of_produce(what: &str, error: KafkaError) -> Error {
    if is_topicless(&error) {
        let text = format!("kafka: {what}: the topic was deleted; the next call creates it again");
        return Error::unavailable(text).with_source(error);
    }
    of_call(what, error)
}

/// Whether a record is larger than its topic takes, or than the client sends.
pub(super) fn is_too_large(error: &KafkaError) -> bool {
    let code = code(error);
    matches!(
        code,
        Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge)
    )
}

/// Whether a topic is not there.
pub(super) fn is_topicless(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition)
    )
}

/// The broker's or the client's code, where there is one.
pub(super) fn code(error: &KafkaError) -> Option<Code> {
    error.rdkafka_error_code()
}

/// Whether a group has no coordinator just now.
pub(super) fn is_homeless(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(
            Code::NotCoordinator | Code::CoordinatorNotAvailable | Code::CoordinatorLoadInProgress
        )
    )
}

/// Whether a partition has no leader just now, as while a topic is new or a node is being replaced.
pub(super) fn is_leaderless(error: &KafkaError) -> bool {
    matches!(
        code(error),
        Some(Code::NotLeaderForPartition | Code::LeaderNotAvailable)
    )
}
