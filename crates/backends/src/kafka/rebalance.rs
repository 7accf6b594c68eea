//! Rebalances of a group member: assigned and revoked partitions, deleted and recreated topics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, RebalanceProtocol};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use rdkafka::types::{RDKafkaErrorCode as Code, RDKafkaRespErr};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::ack_tracker;
use super::client_context;
use super::consumer::{FetchBuffer, lock};
use super::losses::{Loss, Losses};
use super::store::{committed_of, watermarks_of};
use super::transaction::list;

/// The line of `debug=metadata` about a recreated topic, and the nil topic id.
const ANOTHER: (&str, &str) = (" changed id from ", "AAAAAAAAAAAAAAAAAAAAAA");

/// Time for which a position past the end is doubted: the leader may have just changed.
const SURELY: Duration = Duration::from_millis(500);

/// Longest wait for a running commit when partitions are revoked.
const UNDERWAY: Duration = Duration::from_secs(15);

/// State shared by a member's thread, its callers and the client's callbacks.
pub(super) struct Shared<S> {
    pub(super) topic: String,
    pub(super) group: String,
    pub(super) buffer: Mutex<S>,
    pub(super) changed: Notify,
    /// The first assignment came.
    pub(super) assigned: AtomicBool,
    pub(super) ending: AtomicBool,
    /// Callbacks that a poll served instead of a record: it then returns nothing, as it does
    /// when nothing is left.
    pub(super) calls: AtomicU64,
    /// Topic or position changed: only a new member can continue.
    lost: AtomicBool,
    /// The topic was recreated.
    is_another: AtomicBool,
    /// Held from taking positions until they are committed, so that a committed offset never goes back, and
    /// none is committed of a partition that another process has.
    pub(super) commit_lock: tokio::sync::Mutex<()>,
}

impl<S: FetchBuffer> Shared<S> {
    pub(super) fn new(topic: &str, group: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            group: group.to_owned(),
            buffer: Mutex::default(),
            changed: Notify::new(),
            assigned: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            is_another: AtomicBool::new(false),
            commit_lock: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

/// A member that can be invalidated, whatever its buffer.
pub(super) trait Invalidate: Send + Sync {
    /// Marks it for replacement: its topic or its positions changed.
    fn invalidate(&self, reason: &str);
}

impl<S: FetchBuffer> Invalidate for Shared<S> {
    fn invalidate(&self, reason: &str) {
        if !self.lost.swap(true, Ordering::AcqRel) && !self.ending.load(Ordering::Acquire) {
            warn!(
                topic = self.topic,
                group = self.group,
                reason,
                "rejoining consumer group"
            );
        }
        self.changed.notify_waiters();
    }
}

/// The members of this process, by topic.
#[derive(Default)]
pub(super) struct JoinedMembers(Mutex<BTreeMap<String, Vec<Weak<dyn Invalidate>>>>);

impl JoinedMembers {
    pub(super) fn add(&self, topic: &str, member: Weak<dyn Invalidate>) {
        let mut all = lock(&self.0);
        let of = all.entry(topic.to_owned()).or_default();
        of.retain(|one| one.strong_count() > 0);
        of.push(member);
    }

    /// Invalidates the members of a topic that changed.
    pub(super) fn invalidate(&self, topic: &str, reason: &str) {
        let of = lock(&self.0).remove(topic).unwrap_or_default();
        for member in of.into_iter().filter_map(|one| one.upgrade()) {
            member.invalidate(reason);
        }
    }
}

/// The context of a member's client.
pub(super) struct RebalanceListener<S> {
    pub(super) shared: Arc<Shared<S>>,
    pub(super) losses: Arc<Losses>,
    pub(super) timeout: Duration,
}

/// An assigned partition: committed offset, metadata, and the offset to fetch from.
struct PartitionStart {
    partition: i32,
    position: i64,
    metadata: String,
    from: i64,
}

impl<S: FetchBuffer> ClientContext for RebalanceListener<S> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        client_context::log(level, facility, text);
        if is_another(text, &self.shared.topic) {
            self.shared.is_another.store(true, Ordering::Release);
            self.shared
                .invalidate("the topic was deleted and created again");
            self.losses.forget(&self.shared.topic);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        client_context::log_error(&error, reason);
    }
}

impl<S: FetchBuffer> ConsumerContext for RebalanceListener<S> {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        what: RDKafkaRespErr,
        partitions: &mut TopicPartitionList,
    ) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        let changed = if what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS {
            self.take(consumer, partitions)
        } else {
            self.part(consumer, partitions);
            match consumer.rebalance_protocol() {
                RebalanceProtocol::Cooperative => consumer.incremental_unassign(partitions),
                _ => consumer.unassign(),
            }
        };
        if let Err(error) = changed {
            self.shared
                .invalidate(&format!("assignment failed: {error}"));
        }
    }
}

impl<S: FetchBuffer> RebalanceListener<S> {
    /// Assigns partitions at the committed offsets. None is fetched before this returns.
    fn take(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &mut TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let shared = &self.shared;
        match self.starts(consumer, partitions) {
            Ok(starts) => {
                let mut buffer = lock(&shared.buffer);
                for one in &starts {
                    let at = Place::Offset(one.from);
                    partitions.set_partition_offset(&shared.topic, one.partition, at)?;
                    buffer.assign(one.partition, one.position, &one.metadata);
                }
            }
            Err(error) => shared.invalidate(&format!("committed offsets unavailable: {error}")),
        }
        consumer.incremental_assign(partitions)?;
        shared.assigned.store(true, Ordering::Release);
        shared.changed.notify_waiters();
        Ok(())
    }

    /// Start positions of new partitions. Lost records are logged.
    fn starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<Vec<PartitionStart>, KafkaError> {
        let topic = &self.shared.topic;
        let found = committed_of(consumer, partitions, self.timeout)?;
        let mut starts = Vec::new();
        for element in found.elements() {
            let (partition, metadata) = (element.partition(), element.metadata());
            let watermarks = || watermarks_of(consumer, topic, partition, self.timeout);
            let (mut low, mut high) = watermarks()?;
            let committed = match element.offset() {
                Place::Offset(position) => Some(position),
                _ => None,
            };
            let known = self.losses.end(topic, partition);
            if committed.unwrap_or_default().max(known) > high {
                std::thread::sleep(SURELY);
                (low, high) = watermarks()?;
            }
            match committed {
                // Logged below, with the group.
                Some(position) if position > high => self.losses.set_end(topic, partition, high),
                _ => self.losses.note_truncated(topic, partition, high, None),
            }
            self.losses.reached(topic, partition, high);
            let Some(position) = committed else {
                if low < high {
                    info!(
                        topic,
                        group = self.shared.group,
                        partition,
                        records = low.abs_diff(high),
                        "no committed position; reading from the oldest record"
                    );
                }
                starts.push(PartitionStart {
                    partition,
                    position: low,
                    metadata: String::new(),
                    from: low,
                });
                continue;
            };
            let (mut start, mut lost) = ((position, metadata.to_owned(), position), None);
            if position > high {
                start = (low, String::new(), low);
                lost = Some(Loss::BehindTheEnd(position.abs_diff(high)));
            } else if position < low {
                // Drops the metadata of deleted records, and keeps the rest.
                start.2 = low;
                let settled = ack_tracker::settled_below(metadata, low.abs_diff(position));
                lost = Some(Loss::Deleted(
                    low.abs_diff(position).saturating_sub(settled),
                ));
            }
            if let Some(loss) = lost.filter(|loss| loss.count() > 0) {
                warn!(
                    topic,
                    group = self.shared.group,
                    partition,
                    position,
                    low,
                    high,
                    records = loss.count(),
                    "records lost: {}",
                    loss.reason()
                );
                self.losses.record(topic, &self.shared.group, loss);
            }
            let (position, metadata, from) = start;
            starts.push(PartitionStart {
                partition,
                position,
                metadata,
                from,
            });
        }
        Ok(starts)
    }

    /// Releases partitions, once a running commit has ended. The next member gets the settled records, and in-flight
    /// messages are not charged: their handlers did not fail.
    fn part(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let shared = &self.shared;
        let began = Instant::now();
        let commit_lock = loop {
            // This may be a runtime thread, which must not block on an async lock.
            match shared.commit_lock.try_lock() {
                Ok(commit_lock) => break Some(commit_lock),
                Err(_) if began.elapsed() > UNDERWAY => break None,
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let is_another = shared.is_another.load(Ordering::Acquire);
        let is_ours = (!shared.is_lost() || is_another) && !consumer.assignment_lost();
        let is_leaving = shared.ending.load(Ordering::Acquire);
        let mut buffer = lock(&shared.buffer);
        let all = partitions.elements().into_iter().map(|one| one.partition());
        let known = all.filter_map(|partition| {
            let (position, metadata) = buffer.revoke(partition, !is_leaving)?;
            Some((partition, position, metadata))
        });
        let mut known: Vec<_> = known.collect();
        drop(buffer);
        if is_another {
            // Its first records were fetched before the change was detected, and positions may have moved over them.
            let all = partitions.elements().into_iter().map(|one| one.partition());
            known = all
                .filter_map(|partition| {
                    let watermarks =
                        watermarks_of(consumer, &shared.topic, partition, self.timeout);
                    Some((partition, watermarks.ok()?.0, String::new()))
                })
                .collect();
        }
        if is_ours && commit_lock.is_some() && !known.is_empty() {
            let committed = list(&shared.topic, &known);
            let committed = committed.and_then(|all| consumer.commit(&all, CommitMode::Sync));
            if let Err(error) = committed {
                debug!(topic = shared.topic, %error, "offsets of revoked partitions not committed");
            }
        }
    }

    /// Handles an error that the client returns instead of a record.
    pub(super) fn record(&self, error: &KafkaError) {
        match error {
            KafkaError::PartitionEOF(partition) => {
                if let Some(progress) = lock(&self.shared.buffer).progress(*partition) {
                    progress.end();
                }
            }
            _ => match error.rdkafka_error_code() {
                Some(
                    Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition,
                ) => {
                    self.shared.invalidate("the topic was deleted");
                }
                Some(Code::AutoOffsetReset | Code::LogTruncation | Code::OffsetOutOfRange) => {
                    self.shared
                        .invalidate("the broker does not have the committed offset");
                }
                // The client reconnects.
                _ => debug!(%error, "kafka consumer error"),
            },
        }
    }
}

/// Whether a log line reports that the topic was recreated.
fn is_another(text: &str, topic: &str) -> bool {
    let changed = text.split_once(ANOTHER.0);
    changed.is_some_and(|(before, ids)| {
        let of = before.rsplit(' ').next();
        of == Some(topic) && !ids.starts_with(ANOTHER.1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recreated_topic_is_recognised() {
        let line = |from: &str| {
            format!("[thrd:main]: Topic jobs changed id from {from} to 7PeTqvRDTj2zGbcPYlpLSQ")
        };
        assert!(is_another(&line("Vb3s2bY0TQmXvNRkEV9tGA"), "jobs"));
        assert!(!is_another(&line("Vb3s2bY0TQmXvNRkEV9tGA"), "jobs.dead"));
        assert!(!is_another(&line("AAAAAAAAAAAAAAAAAAAAAA"), "jobs"));
        assert!(!is_another("[thrd:main]: Topic jobs", "jobs"));
    }
}
