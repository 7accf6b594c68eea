//! Records that were lost before they were consumed, for the log and for `/readyz`.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::member::lock;

/// How records were lost, and how many, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// The position was past the end of its partition, by this many offsets: others may be lost that it had not reached.
    BehindTheEnd(u64),
    /// Records that the broker deleted before the group settled them.
    Deleted(u64),
}

impl Loss {
    pub(super) const fn count(self) -> u64 {
        match self {
            Self::BehindTheEnd(count) | Self::Deleted(count) => count,
        }
    }

    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::BehindTheEnd(_) => {
                "the position was past the end: the topic was made again or a replica without them became leader; reading from the start"
            }
            Self::Deleted(_) => {
                "deleted before they were consumed: raise `retention.ms` and `retention.bytes` of the topic"
            }
        }
    }
}

/// What was lost while this process ran, by topic and group.
#[derive(Default)]
pub(super) struct Losses {
    records: Mutex<BTreeMap<(String, String), (u64, Loss)>>,
    deleted: Mutex<BTreeMap<String, u64>>,
}

impl Losses {
    /// A topic was deleted while this process used it.
    pub(super) fn note_deleted(&self, topic: &str) {
        *lock(&self.deleted).entry(topic.to_owned()).or_default() += 1;
    }

    pub(super) fn note(&self, topic: &str, group: &str, loss: Loss) {
        let mut all = lock(&self.records);
        let place = (topic.to_owned(), group.to_owned());
        let (count, last) = all.entry(place).or_insert((0, loss));
        *count += loss.count();
        *last = loss;
    }

    /// A line for each group, and for each topic.
    pub(super) fn warnings(&self) -> Vec<String> {
        let records = lock(&self.records);
        let groups = records.iter().map(|((topic, group), (count, loss))| {
            let reason = loss.reason();
            format!("group `{group}` lost {count} records of topic `{topic}`: {reason}")
        });
        let deleted = lock(&self.deleted);
        let topics = deleted.iter().map(|(topic, times)| {
            format!("topic `{topic}` was deleted with its messages and created again ({times} times since the start)")
        });
        groups.chain(topics).collect()
    }
}
