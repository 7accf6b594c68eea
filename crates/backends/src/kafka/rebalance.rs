//! What the client tells a member of a group: partitions that come and go, and that its topic is not what it was.

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
use tracing::{debug, warn};

use super::ack_tracker;
use super::client_context;
use super::consumer::{Shelf, lock};
use super::losses::{Loss, Losses};
use super::store::{committed_of, marks_of};
use super::transaction::list;

/// How the client says at `debug=metadata` that a topic of the same name is another one, and the id of none.
const ANOTHER: (&str, &str) = (" changed id from ", "AAAAAAAAAAAAAAAAAAAAAA");

/// How long a position may lie behind the end before that is believed: the leader may have changed just now.
const SURELY: Duration = Duration::from_millis(500);

/// The longest wait for a commit that is underway when partitions go.
const UNDERWAY: Duration = Duration::from_secs(15);

/// What a member's thread, its callers and the client's callbacks share.
pub(super) struct Shared<S> {
    pub(super) topic: String,
    pub(super) group: String,
    pub(super) shelf: Mutex<S>,
    pub(super) news: Notify,
    /// The group has said once which partitions are ours.
    pub(super) assigned: AtomicBool,
    pub(super) ending: AtomicBool,
    /// Calls of the client's that a poll served instead of a record: with one of them it returns nothing, as it does
    /// when nothing is left.
    pub(super) calls: AtomicU64,
    /// Topic or position are not what the member takes them for: only a new member can go on.
    lost: AtomicBool,
    /// The topic is another one of the same name.
    is_another: AtomicBool,
    /// Held from the moment when positions are taken until they are committed, so that a position never goes back, and
    /// that none is committed of a partition that another process has.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl<S: Shelf> Shared<S> {
    pub(super) fn new(topic: &str, group: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            group: group.to_owned(),
            shelf: Mutex::default(),
            news: Notify::new(),
            assigned: AtomicBool::new(false),
            ending: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            is_another: AtomicBool::new(false),
            turn: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }
}

/// A member that another one has to replace, whatever it fetches.
pub(super) trait Lose: Send + Sync {
    /// Its topic or its positions are not what it takes them for.
    fn lose(&self, reason: &str);
}

impl<S: Shelf> Lose for Shared<S> {
    fn lose(&self, reason: &str) {
        if !self.lost.swap(true, Ordering::AcqRel) && !self.ending.load(Ordering::Acquire) {
            warn!(
                topic = self.topic,
                group = self.group,
                reason,
                "rejoining consumer group"
            );
        }
        self.news.notify_waiters();
    }
}

/// The members of this process, by topic.
#[derive(Default)]
pub(super) struct Joined(Mutex<BTreeMap<String, Vec<Weak<dyn Lose>>>>);

impl Joined {
    pub(super) fn add(&self, topic: &str, member: Weak<dyn Lose>) {
        let mut all = lock(&self.0);
        let of = all.entry(topic.to_owned()).or_default();
        of.retain(|one| one.strong_count() > 0);
        of.push(member);
    }

    /// The topic is not what its members take it for.
    pub(super) fn lose(&self, topic: &str, reason: &str) {
        let of = lock(&self.0).remove(topic).unwrap_or_default();
        for member in of.into_iter().filter_map(|one| one.upgrade()) {
            member.lose(reason);
        }
    }
}

/// The context of a member's client.
pub(super) struct Watch<S> {
    pub(super) shared: Arc<Shared<S>>,
    pub(super) losses: Arc<Losses>,
    pub(super) timeout: Duration,
}

/// A partition that came: where its group is, what is noted there, and from where it is fetched.
struct Start {
    partition: i32,
    position: i64,
    note: String,
    from: i64,
}

impl<S: Shelf> ClientContext for Watch<S> {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        client_context::log(level, facility, text);
        if is_another(text, &self.shared.topic) {
            self.shared.is_another.store(true, Ordering::Release);
            self.shared.lose("the topic was deleted and created again");
            self.losses.forget(&self.shared.topic);
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.shared.calls.fetch_add(1, Ordering::Relaxed);
        client_context::note(&error, reason);
    }
}

impl<S: Shelf> ConsumerContext for Watch<S> {
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
        if let Err(told) = changed {
            self.shared
                .lose(&format!("partitions cannot be changed: {told}"));
        }
    }
}

impl<S: Shelf> Watch<S> {
    /// Takes partitions from where the group is. Nothing of them is fetched before this returns.
    fn take(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &mut TopicPartitionList,
    ) -> Result<(), KafkaError> {
        let shared = &self.shared;
        match self.starts(consumer, partitions) {
            Ok(starts) => {
                let mut shelf = lock(&shared.shelf);
                for one in &starts {
                    let at = Place::Offset(one.from);
                    partitions.set_partition_offset(&shared.topic, one.partition, at)?;
                    shelf.assign(one.partition, one.position, &one.note);
                }
            }
            Err(told) => shared.lose(&format!("positions are not known: {told}")),
        }
        consumer.incremental_assign(partitions)?;
        shared.assigned.store(true, Ordering::Release);
        shared.news.notify_waiters();
        Ok(())
    }

    /// Where the group is in new partitions. Records that it can never have are named.
    fn starts(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> Result<Vec<Start>, KafkaError> {
        let topic = &self.shared.topic;
        let found = committed_of(consumer, partitions, self.timeout)?;
        let mut starts = Vec::new();
        for element in found.elements() {
            let (partition, note) = (element.partition(), element.metadata());
            let marks = || marks_of(consumer, topic, partition, self.timeout);
            let (mut low, mut high) = marks()?;
            let committed = match element.offset() {
                Place::Offset(position) => Some(position),
                _ => None,
            };
            let known = self.losses.end(topic, partition);
            if committed.unwrap_or_default().max(known) > high {
                std::thread::sleep(SURELY);
                (low, high) = marks()?;
            }
            match committed {
                // Named below, with the group.
                Some(position) if position > high => self.losses.set_end(topic, partition, high),
                _ => self.losses.note_truncated(topic, partition, high, None),
            }
            self.losses.reached(topic, partition, high);
            let Some(position) = committed else {
                starts.push(Start {
                    partition,
                    position: low,
                    note: String::new(),
                    from: low,
                });
                continue;
            };
            let (mut start, mut lost) = ((position, note.to_owned(), position), None);
            if position > high {
                start = (low, String::new(), low);
                lost = Some(Loss::BehindTheEnd(position.abs_diff(high)));
            } else if position < low {
                // What is noted of records that are gone says nothing, and the rest of it stays true.
                start.2 = low;
                let settled = ack_tracker::settled_below(note, low.abs_diff(position));
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
                self.losses.note(topic, &self.shared.group, loss);
            }
            let (position, note, from) = start;
            starts.push(Start {
                partition,
                position,
                note,
                from,
            });
        }
        Ok(starts)
    }

    /// Lets partitions go, once the commit that is underway has ended. The next holder knows what was settled, and what
    /// is in progress here is not charged to its messages: their handlers did not fail.
    fn part(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let shared = &self.shared;
        let began = Instant::now();
        let turn = loop {
            // This thread may be one of the runtime's, which must not wait for its locks.
            match shared.turn.try_lock() {
                Ok(turn) => break Some(turn),
                Err(_) if began.elapsed() > UNDERWAY => break None,
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let is_another = shared.is_another.load(Ordering::Acquire);
        let is_ours = (!shared.is_lost() || is_another) && !consumer.assignment_lost();
        let is_leaving = shared.ending.load(Ordering::Acquire);
        let mut shelf = lock(&shared.shelf);
        let all = partitions.elements().into_iter().map(|one| one.partition());
        let known = all.filter_map(|partition| {
            let (position, note) = shelf.revoke(partition, !is_leaving)?;
            Some((partition, position, note))
        });
        let mut known: Vec<_> = known.collect();
        drop(shelf);
        if is_another {
            // Its first records were passed until that was noticed, and positions may have moved over them.
            let all = partitions.elements().into_iter().map(|one| one.partition());
            known = all
                .filter_map(|partition| {
                    let marks = marks_of(consumer, &shared.topic, partition, self.timeout);
                    Some((partition, marks.ok()?.0, String::new()))
                })
                .collect();
        }
        if is_ours && turn.is_some() && !known.is_empty() {
            let committed = list(&shared.topic, &known);
            let committed = committed.and_then(|all| consumer.commit(&all, CommitMode::Sync));
            if let Err(told) = committed {
                debug!(topic = shared.topic, %told, "position of partitions that go not committed");
            }
        }
    }

    /// What the client says instead of a record.
    pub(super) fn hear(&self, told: &KafkaError) {
        match told {
            KafkaError::PartitionEOF(partition) => {
                if let Some(reach) = lock(&self.shared.shelf).reach(*partition) {
                    reach.end();
                }
            }
            _ => match told.rdkafka_error_code() {
                Some(
                    Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition,
                ) => {
                    self.shared.lose("the topic was deleted");
                }
                Some(Code::AutoOffsetReset | Code::LogTruncation | Code::OffsetOutOfRange) => {
                    self.shared.lose("the broker does not have the position");
                }
                // The client connects again.
                _ => debug!(%told, "kafka consumer"),
            },
        }
    }
}

/// Whether the client says that the topic is another one than it was.
fn is_another(text: &str, topic: &str) -> bool {
    let told = text.split_once(ANOTHER.0);
    told.is_some_and(|(before, ids)| {
        let of = before.rsplit(' ').next();
        of == Some(topic) && !ids.starts_with(ANOTHER.1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_topic_of_the_same_name_is_recognised() {
        let line = |from: &str| {
            format!("[thrd:main]: Topic jobs changed id from {from} to 7PeTqvRDTj2zGbcPYlpLSQ")
        };
        assert!(is_another(&line("Vb3s2bY0TQmXvNRkEV9tGA"), "jobs"));
        assert!(!is_another(&line("Vb3s2bY0TQmXvNRkEV9tGA"), "jobs.dead"));
        assert!(!is_another(&line("AAAAAAAAAAAAAAAAAAAAAA"), "jobs"));
        assert!(!is_another("[thrd:main]: Topic jobs", "jobs"));
    }
}
