//! Buffer of stream entries in this process.
//!
//! ```text
//! broker --fetch--> waiting --read--> held by a consumer of this process --commit--> finished
//!                                          |                                (position: the longest finished prefix)
//!                                          +--claim, when idle or disconnected--> held by another
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use rdkafka::message::{BorrowedMessage, Message as _};
use towpath_core::port::stream::{Entry, Offset};
use towpath_core::{ConsumerId, Message, Timestamp};

use super::consumer::{FetchBuffer, FetchProgress};
use super::envelope;

/// Waiting entries and bytes after which no more are fetched.
const FULL: usize = 20_000;
const FULL_BYTES: usize = 32 << 20;

/// Fetched entries, by partition.
#[derive(Default)]
pub(super) struct Entries {
    partitions: BTreeMap<i32, Partition>,
    /// Payload bytes of waiting entries.
    bytes: usize,
}

#[derive(Default)]
struct Partition {
    waiting: VecDeque<(i64, Message)>,
    held: BTreeMap<i64, Pending>,
    /// Finished, behind an unfinished one.
    done: BTreeSet<i64>,
    /// Fetch progress.
    progress: FetchProgress,
    /// The committed offset.
    committed: i64,
}

struct Pending {
    message: Message,
    /// `None` when it disconnected.
    consumer: Option<ConsumerId>,
    since: Instant,
    attempt: u32,
}

impl Partition {
    /// Everything before this is finished.
    fn position(&self) -> i64 {
        let waiting = self.waiting.front().map(|(at, _)| *at);
        let held = self.held.first_key_value().map(|(at, _)| *at);
        let unfinished = waiting.into_iter().chain(held).min();
        unfinished.unwrap_or(self.progress.next)
    }
}

/// Counts of a partition for the stats of its group.
#[derive(Default, Clone, Copy)]
pub(super) struct GroupCounts {
    pub(super) held: u64,
    /// Finished behind the position.
    pub(super) done: u64,
}

impl Entries {
    /// Delivers waiting entries.
    pub(super) fn deliver(&mut self, who: &ConsumerId, max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (partition, of) in &mut self.partitions {
            while entries.len() < max
                && let Some((at, message)) = of.waiting.pop_front()
            {
                self.bytes -= message.payload.len();
                let held = Pending {
                    message,
                    consumer: Some(who.clone()),
                    since: Instant::now(),
                    attempt: 1,
                };
                entries.push(entry(*partition, at, &held));
                of.held.insert(at, held);
            }
        }
        entries
    }

    pub(super) fn claim(&mut self, who: &ConsumerId, min_idle: Duration, max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (partition, of) in &mut self.partitions {
            for (at, held) in &mut of.held {
                let is_free = match &held.consumer {
                    None => true,
                    Some(holder) => holder != who && held.since.elapsed() >= min_idle,
                };
                if is_free && entries.len() < max {
                    held.consumer = Some(who.clone());
                    held.since = Instant::now();
                    held.attempt += 1;
                    entries.push(entry(*partition, *at, held));
                }
            }
        }
        entries
    }

    pub(super) fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        let all = self.partitions.values_mut();
        let held = all.flat_map(|of| of.held.values_mut());
        let theirs = held.filter(|held| held.consumer.as_ref() == Some(gone));
        theirs.map(|held| held.consumer = None).count() as u64
    }

    /// Marks entries as finished. Returns the positions that moved.
    pub(super) fn finish(&mut self, finished: &[Offset]) -> Vec<(i32, i64)> {
        for offset in finished {
            let (partition, at) = wire(*offset);
            if let Some(of) = self.partitions.get_mut(&partition)
                && of.held.remove(&at).is_some()
            {
                of.done.insert(at);
            }
        }
        self.moved()
    }

    fn moved(&mut self) -> Vec<(i32, i64)> {
        let mut moved = Vec::new();
        for (partition, of) in &mut self.partitions {
            let position = of.position();
            of.done = of.done.split_off(&position);
            if position > of.committed {
                moved.push((*partition, position));
            }
        }
        moved
    }

    /// Drops trimmed entries.
    pub(super) fn drop_below(&mut self, partition: i32, first: i64) {
        if let Some(of) = self.partitions.get_mut(&partition) {
            while let Some((at, message)) = of.waiting.pop_front() {
                if at >= first {
                    of.waiting.push_front((at, message));
                    break;
                }
                self.bytes -= message.payload.len();
            }
        }
    }

    /// Number of waiting entries.
    pub(super) fn waiting(&self) -> usize {
        self.partitions.values().map(|of| of.waiting.len()).sum()
    }

    /// Counts of each partition.
    pub(super) fn counts(&self) -> BTreeMap<i32, GroupCounts> {
        let known = |of: &Partition| GroupCounts {
            held: of.held.len() as u64,
            done: of.done.len() as u64,
        };
        let all = self.partitions.iter();
        all.map(|(partition, of)| (*partition, known(of))).collect()
    }

    /// Records committed offsets.
    pub(super) fn note_committed(&mut self, moved: &[(i32, i64)]) {
        for (partition, at) in moved {
            if let Some(of) = self.partitions.get_mut(partition) {
                of.committed = of.committed.max(*at);
            }
        }
    }
}

impl FetchBuffer for Entries {
    fn assign(&mut self, partition: i32, position: i64, _: &str) {
        let of = Partition {
            progress: FetchProgress::from(position),
            committed: position,
            ..Partition::default()
        };
        self.partitions.insert(partition, of);
    }

    fn revoke(&mut self, partition: i32, _: bool) -> Option<(i64, String)> {
        if let Some(of) = self.partitions.remove(&partition) {
            let waiting = of.waiting.iter().map(|(_, one)| one.payload.len());
            self.bytes -= waiting.sum::<usize>();
        }
        // Commits are synchronous: nothing is pending.
        None
    }

    fn put(&mut self, record: &BorrowedMessage<'_>, now: Timestamp) {
        // The partition was just revoked.
        let Some(of) = self.partitions.get_mut(&record.partition()) else {
            return;
        };
        let message = envelope::read(record, now).envelope.message;
        of.progress.pass(record.offset());
        self.bytes += message.payload.len();
        of.waiting.push_back((record.offset(), message));
    }

    fn progress(&mut self, partition: i32) -> Option<&mut FetchProgress> {
        self.partitions
            .get_mut(&partition)
            .map(|of| &mut of.progress)
    }

    fn partitions(&self) -> Vec<i32> {
        self.partitions.keys().copied().collect()
    }

    fn fullness(&self, _: i32) -> usize {
        let bytes = self.bytes * 100 / FULL_BYTES;
        bytes.max(self.waiting() * 100 / FULL)
    }
}

fn entry(partition: i32, at: i64, held: &Pending) -> Entry {
    Entry {
        offset: offset(partition, at),
        message: held.message.clone(),
        attempt: held.attempt,
    }
}

/// The `Offset` of a record.
pub(super) fn offset(partition: i32, at: i64) -> Offset {
    Offset {
        partition: partition.unsigned_abs(),
        value: at.max(0).unsigned_abs().into(),
    }
}

/// Kafka's partition and offset.
pub(super) fn wire(offset: Offset) -> (i32, i64) {
    (
        i32::try_from(offset.partition).unwrap_or(i32::MAX),
        i64::try_from(offset.value).unwrap_or(i64::MAX),
    )
}
