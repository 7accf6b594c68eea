//! One stream: its entries in order, and how far each group is.
//!
//! ```text
//! group:  [ finished prefix | finished, pending, free ... | not delivered yet ... ]
//!                           ^ committed                   ^ cursor
//! ```

use std::collections::BTreeMap;

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use towpath_core::port::stream::{DEDUP_WINDOW, GroupStats, Offset, Stats};
use towpath_core::{ConsumerId, GroupName, MessageId, StreamName, Timestamp};

use super::block::{LiveSegments, Packed};
use super::dedup::{self, Dedup};
use super::line::{self, Line};
use super::pack::{Common, EPOCH, Item, NO_ID, NO_LOCATION, Packing, Unpacking};
use super::queue::{BlobLocation, Stored};
use crate::embedded::log::Position;
use crate::embedded::record::MessageRecord;

/// Fields of an entry that need no read of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct StreamEntry {
    /// Its offset; grows with every entry.
    pub(in super::super) number: u64,
    pub(in super::super) id: MessageId,
    pub(in super::super) place: BlobLocation,
    pub(in super::super) appended_at: Timestamp,
}

/// The order is part of the format of checkpoints.
impl Item for StreamEntry {
    const ZERO: Self = Self {
        number: 0,
        id: NO_ID,
        place: NO_LOCATION,
        appended_at: EPOCH,
    };

    fn number(&self) -> u64 {
        self.number
    }

    fn place(&self) -> BlobLocation {
        self.place
    }

    fn pack(&self, before: &Self, out: &mut Packing) {
        out.common(0, &before.common(), &self.common());
    }

    fn unpack(before: &Self, bytes: &mut Unpacking<'_>) -> Option<Self> {
        let (own, common) = bytes.common(&before.common())?;
        let Common {
            number,
            id,
            place,
            moment,
        } = common;
        (own == 0).then_some(Self {
            number,
            id,
            place,
            appended_at: moment,
        })
    }

    fn unpack_version_6(before: &Self, bytes: &mut Unpacking<'_>) -> Option<Self> {
        Some(Self {
            number: bytes.step(before.number.wrapping_add(1))?,
            id: bytes.id(before.id)?,
            place: bytes.place(before.place)?,
            appended_at: bytes.moment(before.appended_at)?,
        })
    }
}

impl StreamEntry {
    const fn common(&self) -> Common {
        Common {
            number: self.number,
            id: self.id,
            place: self.place,
            moment: self.appended_at,
        }
    }

    /// Position for reading it back.
    pub(in super::super) const fn stored(&self) -> Stored {
        Stored {
            id: self.id,
            at: self.appended_at,
            place: self.place,
        }
    }
}

/// Order matters, so one that is not yet durable hides those behind it.
fn durable_behind(
    entries: &Line<StreamEntry>,
    number: u64,
    end: Position,
) -> impl Iterator<Item = StreamEntry> + '_ {
    entries
        .behind(number)
        .take_while(move |entry| entry.place.position < end)
}

/// The head of a stream in a checkpoint, before its entries.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct Head {
    last: u64,
    appended: u64,
}

/// A stream as it was at a moment.
pub(super) struct Snapshot {
    pub(super) head: Head,
    pub(super) entries: line::Snapshot<StreamEntry>,
    pub(super) ids: dedup::Snapshot<u64>,
    pub(super) groups: Vec<(GroupName, GroupState)>,
}

/// One stream.
#[derive(Debug, Default, Deserialize)]
pub(in super::super) struct StreamState {
    /// In order; a damaged stretch of the log leaves a gap in their numbers.
    entries: Line<StreamEntry>,
    /// Of the newest entry ever; 0 before the first.
    last: u64,
    /// Entries ever appended.
    appended: u64,
    pub(super) dedup: Dedup<u64>,
    pub(in super::super) groups: BTreeMap<GroupName, GroupState>,
}

/// Progress of a group.
#[derive(Debug, Default, Clone, Deserialize)]
pub(in super::super) struct GroupState {
    /// Everything up to here is finished.
    pub(super) committed: u64,
    /// Finished behind it.
    #[serde(deserialize_with = "super::snapshot::set")]
    pub(super) finished: OrdSet<u64>,
    /// Delivered and not finished.
    #[serde(deserialize_with = "super::snapshot::map")]
    pub(super) pending: OrdMap<u64, Pending>,
    /// Everything up to here was looked at; later entries may never have been delivered.
    #[serde(skip)]
    cursor: u64,
}

/// A pending entry of a consumer.
#[derive(Debug, Default, Clone, Deserialize)]
pub(super) struct Pending {
    pub(super) attempts: u32,
    /// The holder, and since which millisecond of the monotonic clock; `None` when the holder is gone.
    #[serde(skip)]
    holder: Option<(ConsumerId, u64)>,
}

/// A consumer's request for entries.
pub(in super::super) struct Taking<'a> {
    pub(in super::super) consumer: &'a ConsumerId,
    pub(in super::super) max: usize,
    /// Now, in milliseconds of the monotonic clock.
    pub(in super::super) monotonic: u64,
}

/// Delivered entries, with their attempts.
pub(in super::super) type Handed = Vec<(StreamEntry, u32)>;

impl GroupState {
    /// A group that has finished everything up to `committed`.
    pub(in super::super) fn behind(committed: u64) -> Self {
        Self {
            committed,
            cursor: committed,
            ..Self::default()
        }
    }

    /// Keeps the fields of a delivered entry from a checkpoint.
    pub(super) fn keep_pending(&mut self, number: u64, attempts: u32) {
        let holder = None;
        self.pending.insert(number, Pending { attempts, holder });
    }

    fn is_finished(&self, number: u64) -> bool {
        number <= self.committed || self.finished.contains(&number)
    }

    fn take(&mut self, number: u64, taking: &Taking<'_>) -> u32 {
        let pending = self.pending.entry(number).or_default();
        pending.attempts += 1;
        pending.holder = Some((taking.consumer.clone(), taking.monotonic));
        pending.attempts
    }

    /// Replay of a delivery: its attempt counts, and no consumer holds the entry any more.
    pub(super) fn note_handed(&mut self, numbers: &[u64]) {
        for number in numbers {
            if !self.is_finished(*number) {
                self.pending.entry(*number).or_default().attempts += 1;
            }
        }
    }

    /// Undoes a handing-out that could not be carried out.
    pub(in super::super) fn put_back(&mut self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            if let Some(pending) = self.pending.get_mut(&number) {
                pending.attempts -= 1;
                pending.holder = None;
                if pending.attempts == 0 {
                    self.pending.remove(&number);
                    self.cursor = self.cursor.min(number - 1);
                }
            }
        }
    }

    /// Releases the consumer's entries.
    pub(in super::super) fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        let theirs = self
            .pending
            .iter()
            .filter(|(_, pending)| matches!(&pending.holder, Some((holder, _)) if holder == gone));
        let theirs: Vec<u64> = theirs.map(|(number, _)| *number).collect();
        for number in &theirs {
            if let Some(pending) = self.pending.get_mut(number) {
                pending.holder = None;
            }
        }
        theirs.len() as u64
    }

    /// Entries up to `upto` are gone, finished or not.
    fn trim(&mut self, upto: u64) {
        self.committed = self.committed.max(upto);
        self.cursor = self.cursor.max(upto);
        while let Some(number) = self
            .finished
            .get_min()
            .copied()
            .filter(|first| *first <= upto)
        {
            self.finished.remove(&number);
        }
        while let Some((number, _)) = self.pending.get_min().filter(|(first, _)| *first <= upto) {
            let number = *number;
            self.pending.remove(&number);
        }
    }
}

impl From<Head> for StreamState {
    fn from(head: Head) -> Self {
        Self {
            last: head.last,
            appended: head.appended,
            ..Self::default()
        }
    }
}

impl StreamState {
    /// Every entry, and where it is.
    pub(super) fn placed(&self) -> impl Iterator<Item = Stored> + '_ {
        self.entries.iter().map(|entry| entry.stored())
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        let groups = self.groups.iter();
        Snapshot {
            head: Head {
                last: self.last,
                appended: self.appended,
            },
            entries: self.entries.snapshot(),
            ids: self.dedup.snapshot(),
            groups: groups
                .map(|(name, group)| (name.clone(), group.clone()))
                .collect(),
        }
    }

    /// Adds entries of a checkpoint. False when they do not come behind the ones before.
    pub(super) fn add_entries(&mut self, block: Packed<StreamEntry>) -> bool {
        self.entries.push_packed(block)
    }

    pub(super) fn rebuild(&mut self) {
        for group in self.groups.values_mut() {
            group.cursor = group.committed;
        }
    }

    /// Forgets some of the ids whose window has closed. Whether there are more.
    pub(in super::super) fn tick(&mut self, now: Timestamp) -> bool {
        self.dedup.tick(now)
    }

    /// Of the newest entry ever; 0 before the first.
    pub(in super::super) const fn last(&self) -> u64 {
        self.last
    }

    /// The first entry with this dedup id, if its window is still open.
    pub(in super::super) fn duplicate_of(&self, dedup_id: &str, now: Timestamp) -> Option<u64> {
        self.dedup.first(dedup_id, now)
    }

    pub(super) fn arrive(
        &mut self,
        number: u64,
        arrival: &MessageRecord<'_>,
        position: Position,
        at: Timestamp,
    ) {
        self.last = number;
        self.appended += 1;
        if let Some(dedup_id) = &arrival.dedup_id {
            self.dedup
                .remember(dedup_id, number, at.after(DEDUP_WINDOW));
        }
        self.entries.push_back(StreamEntry {
            number,
            id: arrival.id,
            place: BlobLocation {
                position,
                bytes: arrival.blob_bytes,
            },
            appended_at: at,
        });
    }

    /// The parts of the segments that its entries need.
    pub(super) fn add_live(&self, live: &mut LiveSegments) {
        self.entries.add_live(live);
    }

    /// Up to `max` durable entries behind `after`.
    pub(in super::super) fn range(
        &self,
        after: u64,
        max: usize,
        end: Position,
    ) -> Vec<StreamEntry> {
        durable_behind(&self.entries, after, end)
            .take(max)
            .collect()
    }

    /// Delivers the next durable entries that no consumer had yet.
    pub(in super::super) fn read(
        &mut self,
        group: &GroupName,
        taking: &Taking<'_>,
        end: Position,
    ) -> Handed {
        let mut handed = Handed::new();
        let Some(state) = self.groups.get_mut(group) else {
            return handed;
        };
        for entry in durable_behind(&self.entries, state.cursor, end) {
            if handed.len() == taking.max {
                break;
            }
            state.cursor = entry.number;
            if !state.is_finished(entry.number) && !state.pending.contains_key(&entry.number) {
                handed.push((entry, state.take(entry.number, taking)));
            }
        }
        handed
    }

    /// Claims entries that other consumers have held since `since` or longer, or whose holder is gone.
    pub(in super::super) fn claim(
        &mut self,
        group: &GroupName,
        taking: &Taking<'_>,
        since: Option<u64>,
    ) -> Handed {
        let Some(state) = self.groups.get_mut(group) else {
            return Handed::new();
        };
        let free = |pending: &Pending| match &pending.holder {
            None => true,
            Some((holder, held)) => {
                holder != taking.consumer && since.is_some_and(|since| *held <= since)
            }
        };
        let numbers: Vec<u64> = state
            .pending
            .iter()
            .filter(|(_, pending)| free(pending))
            .map(|(number, _)| *number)
            .take(taking.max)
            .collect();
        numbers
            .into_iter()
            .filter_map(|number| {
                let entry = self.entries.find(number)?;
                Some((entry, state.take(number, taking)))
            })
            .collect()
    }

    /// Marks entries as finished, and moves the group over its longest finished prefix.
    pub(super) fn finish(&mut self, group: &GroupName, numbers: &[u64]) {
        let Some(state) = self.groups.get_mut(group) else {
            return;
        };
        for number in numbers {
            if *number > state.committed {
                state.pending.remove(number);
                state.finished.insert(*number);
            }
        }
        for entry in self.entries.behind(state.committed) {
            if state.finished.remove(&entry.number).is_none() {
                break;
            }
            state.committed = entry.number;
        }
    }

    /// Whether an entry of this number is kept.
    pub(in super::super) fn has(&self, number: u64) -> bool {
        self.entries.has(number)
    }

    /// Up to where every group has finished; `None` while there is no group.
    pub(in super::super) fn finished_by_all(&self) -> Option<u64> {
        self.groups.values().map(|group| group.committed).min()
    }

    /// The newest entry but for the last `keep`; `None` when there are no more than those.
    pub(in super::super) fn all_but(&self, keep: u64) -> Option<u64> {
        let entries = &self.entries;
        let surplus = entries.len().checked_sub(usize::try_from(keep).ok()?)?;
        Some(entries.get(surplus.checked_sub(1)?)?.number)
    }

    /// Number of entries up to this one.
    pub(in super::super) fn count_up_to(&self, upto: u64) -> u64 {
        self.entries.count_up_to(upto) as u64
    }

    pub(super) fn trim(&mut self, upto: u64) {
        self.entries.remove_up_to(upto);
        for group in self.groups.values_mut() {
            group.trim(upto);
        }
    }

    /// Where an entry is now.
    pub(super) fn place_of(&mut self, number: u64) -> Option<BlobLocation> {
        self.entries.find(number).map(|entry| entry.place)
    }

    pub(super) fn relocate(&mut self, number: u64, place: BlobLocation) {
        self.entries.change(number, |entry| entry.place = place);
    }

    pub(in super::super) fn stats(&self, name: &StreamName, now: Timestamp) -> Stats {
        Stats {
            stream: name.clone(),
            entries: self.entries.len() as u64,
            appended: self.appended,
            first: self.entries.front().map(|entry| offset(entry.number)),
            last: (self.last > 0).then(|| offset(self.last)),
            groups: self
                .groups
                .iter()
                .map(|(name, group)| self.group_stats(name, group, now))
                .collect(),
        }
    }

    fn group_stats(&self, name: &GroupName, group: &GroupState, now: Timestamp) -> GroupStats {
        let start = self.entries.count_up_to(group.committed);
        let unfinished = self.entries.len() - start;
        GroupStats {
            group: name.clone(),
            lag: unfinished.saturating_sub(group.finished.len()) as u64,
            pending: group.pending.len() as u64,
            oldest_age: self
                .entries
                .behind(group.committed)
                .next()
                .map(|entry| now.since(entry.appended_at)),
            committed: (group.committed > 0).then(|| offset(group.committed)),
        }
    }
}

/// This store's streams have one partition.
pub(in super::super) fn offset(number: u64) -> Offset {
    Offset {
        partition: 0,
        value: number.into(),
    }
}
