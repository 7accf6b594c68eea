//! Records lost before they were consumed, for the log and for `/readyz`.

use std::collections::BTreeMap;
use std::sync::Mutex;

use tracing::warn;

use super::consumer::lock;

/// Causes of a truncated partition.
const TRUNCATED: &str = "the partition ends before records that were acknowledged or read: the broker lost unsynced records, the topic was created again, or a replica without them became leader";

/// The end of a partition, as far as this process knows: behind the newest record that it produced or read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct End {
    at: i64,
    /// Number of truncations detected.
    truncations: u32,
}

impl End {
    /// Whether the offset of a record produced later proves a truncation.
    pub(super) const fn is_beyond(self, offset: i64) -> bool {
        offset < self.at
    }
}

/// The cause and number of lost records.
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
                "the position was past the end: the topic was created again or a replica without them became leader; reading from the start"
            }
            Self::Deleted(_) => {
                "deleted before they were consumed: raise `retention.ms` and `retention.bytes` of the topic"
            }
        }
    }
}

/// Losses since this process started, by topic and group.
#[derive(Default)]
pub(super) struct Losses {
    records: Mutex<BTreeMap<(String, String), (u64, Loss)>>,
    deleted: Mutex<BTreeMap<String, u64>>,
    truncated: Mutex<BTreeMap<String, u64>>,
    ends: Mutex<BTreeMap<String, BTreeMap<i32, End>>>,
}

impl Losses {
    /// A topic was deleted while this process used it.
    pub(super) fn note_deleted(&self, topic: &str) {
        *lock(&self.deleted).entry(topic.to_owned()).or_default() += 1;
        self.forget(topic);
    }

    /// The topic was recreated, and its offsets begin again.
    pub(super) fn forget(&self, topic: &str) {
        lock(&self.ends).remove(topic);
    }

    /// The known end of each partition.
    pub(super) fn ends(&self, topic: &str) -> BTreeMap<i32, End> {
        lock(&self.ends).get(topic).cloned().unwrap_or_default()
    }

    /// The known end of a partition; 0 when nothing is known.
    pub(super) fn end(&self, topic: &str, partition: i32) -> i64 {
        let ends = lock(&self.ends);
        let end = ends.get(topic).and_then(|of| of.get(&partition));
        end.map_or(0, |end| end.at)
    }

    /// A partition reaches at least to here.
    pub(super) fn reached(&self, topic: &str, partition: i32, at: i64) {
        let mut ends = lock(&self.ends);
        if !ends.contains_key(topic) {
            ends.insert(topic.to_owned(), BTreeMap::new());
        }
        if let Some(of) = ends.get_mut(topic) {
            let end = of.entry(partition).or_default();
            end.at = end.at.max(at);
        }
    }

    /// The broker reports a lower end of a partition than known: logs and counts the records lost in between.
    ///
    /// `before` is the end known when the record that proves it was sent: records sent at the same time
    /// prove the same truncation.
    pub(super) fn note_truncated(&self, topic: &str, partition: i32, at: i64, before: Option<End>) {
        let mut ends = lock(&self.ends);
        let Some(end) = ends.get_mut(topic).and_then(|of| of.get_mut(&partition)) else {
            return;
        };
        if before.is_some_and(|before| before.truncations != end.truncations) || at >= end.at {
            return;
        }
        let (known, records) = (end.at, end.at.abs_diff(at));
        *end = End {
            at,
            truncations: end.truncations + 1,
        };
        drop(ends);
        warn!(
            topic,
            partition,
            known,
            end = at,
            records,
            "records lost: {TRUNCATED}"
        );
        *lock(&self.truncated).entry(topic.to_owned()).or_default() += records;
    }

    /// Lowers the known end after a truncation that a group's position revealed.
    pub(super) fn set_end(&self, topic: &str, partition: i32, at: i64) {
        let mut ends = lock(&self.ends);
        if let Some(end) = ends.get_mut(topic).and_then(|of| of.get_mut(&partition))
            && at < end.at
        {
            end.at = at;
            end.truncations += 1;
        }
    }

    pub(super) fn record(&self, topic: &str, group: &str, loss: Loss) {
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
        let truncated = lock(&self.truncated);
        let ends = truncated
            .iter()
            .map(|(topic, count)| format!("topic `{topic}` lost {count} records: {TRUNCATED}"));
        groups.chain(topics).chain(ends).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncation_is_counted_once() {
        let losses = Losses::default();
        losses.reached("t", 0, 100);
        losses.reached("t", 1, 100);
        let before = losses.ends("t")[&0];
        assert!(before.is_beyond(99) && !before.is_beyond(100));
        losses.note_truncated("t", 0, 40, Some(before));
        losses.reached("t", 0, 41);
        // Sent before the truncation was detected, and answered after it.
        losses.note_truncated("t", 0, 41, Some(before));
        losses.reached("t", 0, 60);
        losses.note_truncated("t", 0, 42, Some(before));
        losses.note_truncated("t", 0, 60, None);
        let warnings = losses.warnings();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("lost 60 records"), "{warnings:?}");
        assert_eq!((losses.end("t", 0), losses.end("t", 1)), (60, 100));
    }

    #[test]
    fn a_topic_that_is_created_again_is_not_truncated() {
        let losses = Losses::default();
        losses.reached("t", 0, 100);
        losses.note_deleted("t");
        losses.reached("t", 0, 1);
        losses.note_truncated("t", 0, 1, None);
        assert_eq!(losses.warnings().len(), 1, "the deletion");
    }
}
