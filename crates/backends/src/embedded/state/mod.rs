//! The state of the store in memory: positions and phase, never payloads.
//!
//! Pure: it performs no I/O and reads no clock. The store calls it under one
//! lock, for new changes and for those that the log replays.

mod bindings;
mod block;
mod dedup;
mod fields;
mod kv;
mod limits;
mod line;
#[cfg(test)]
mod line_test;
mod pack;
mod queue;
mod rows;
mod snapshot;
#[cfg(test)]
mod snapshot_test;
mod stream;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use towpath_core::port::queue::Settings;
use towpath_core::{QueueName, Result, StreamName, Timestamp};

pub(super) use block::LiveSegments;
pub(super) use kv::{Changes, Cold, Content, FieldsSet, KvState, Plan, Slot, keys};
pub(super) use limits::Limits;
pub(super) use pack::{NO_ID, Packing, Unpacking, next_id};
pub(super) use queue::{
    BlobLocation, Entry, LeaseScan, Leased, Leasing, MessagePhase, QueueState, Stored,
};
pub(super) use snapshot::{Loading, Piece, Snapshot};
pub(super) use stream::{GroupState, Handed, StreamEntry, StreamState, Taking, offset};

use bindings::Bindings;
use queue::Mark;

use super::log::{Needed, Position};
use super::record::Record;
use super::store::Source;

/// Most items of a kind that one tick drops or moves, because it holds the lock; the next tick continues.
const AT_ONCE: usize = 2_000;

/// Everything a checkpoint holds; read as one value from those up to version 4.
#[derive(Debug, Default, Deserialize)]
pub(super) struct State {
    pub(super) queues: BTreeMap<QueueName, QueueState>,
    /// Of the last lease; grows for ever, so an old receipt never fits a new lease.
    pub(super) fence: u64,
    pub(super) kv: KvState,
    pub(super) limits: Limits,
    pub(super) bindings: Bindings,
    /// Since version 2.
    pub(super) streams: BTreeMap<StreamName, StreamState>,
}

impl State {
    /// The queue, made with default settings when it is new.
    pub(super) fn queue(&mut self, name: &QueueName) -> &mut QueueState {
        self.queues
            .entry(name.clone())
            .or_insert_with(|| QueueState::new(Settings::default()))
    }

    /// The stream, made when it is new.
    pub(super) fn stream(&mut self, name: &StreamName) -> &mut StreamState {
        self.streams.entry(name.clone()).or_default()
    }

    /// Applies a record whose blobs start at `blobs` in the log. Returns where they end.
    ///
    /// The same for new changes and for replay, except for leases, which are not replayed.
    pub(super) fn apply(&mut self, record: &Record<'_>, blobs: Position) -> Position {
        let mut position = blobs;
        match record {
            Record::Declare { queue, settings } => {
                self.queue(queue).settings = settings.clone();
            }
            Record::Enqueue {
                queue,
                first,
                at,
                messages,
            }
            | Record::EnqueuePacked {
                queue,
                first,
                at,
                messages,
            } => {
                let queue = self.queue(queue);
                for (number, arrival) in (*first..).zip(messages) {
                    queue.arrive(number, arrival, position, *at);
                    position = position.plus(arrival.blob_bytes);
                }
            }
            Record::Leased { queue, numbers } => {
                self.fence += numbers.len() as u64;
                self.queue(queue).note_leased(numbers);
            }
            Record::Settle { queue, at, settled } => {
                let queue = self.queue(queue);
                for (number, outcome) in settled {
                    queue.settle(*number, outcome, *at);
                }
            }
            Record::Pause { queue, paused } => self.queue(queue).paused = *paused,
            Record::Drop { queue, numbers } => self.queue(queue).drop_waiting(numbers),
            Record::Redrive {
                queue,
                first,
                numbers,
            } => self.queue(queue).redrive(*first, numbers),
            Record::DropDead { queue, numbers } => self.queue(queue).drop_dead(numbers),
            Record::Move { queue, moved } => {
                let queue = self.queue(queue);
                for (number, bytes) in moved {
                    queue.relocate(
                        *number,
                        BlobLocation {
                            position,
                            bytes: *bytes,
                        },
                    );
                    position = position.plus(*bytes);
                }
            }
            Record::All(records) => {
                for record in records {
                    position = self.apply(record, position);
                }
            }
            Record::Kv { changes } => self.kv.apply(changes),
            Record::KvFields { changes } => self.kv.set_fields(changes),
            Record::Limit { changes } => {
                for (key, state, full_at) in changes {
                    self.limits.set(key, state, *full_at);
                }
            }
            Record::LimitReset { key } => self.limits.reset(key),
            Record::Bind {
                exchange,
                pattern,
                queue,
            } => {
                self.queue(queue);
                self.bindings.insert(exchange, pattern, queue);
            }
            Record::Duplicates { queue, count } => self.queue(queue).count_duplicates(*count),
            Record::Append {
                stream,
                first,
                at,
                entries,
            }
            | Record::AppendPacked {
                stream,
                first,
                at,
                entries,
            } => {
                let stream = self.stream(stream);
                for (number, arrival) in (*first..).zip(entries) {
                    stream.arrive(number, arrival, position, *at);
                    position = position.plus(arrival.blob_bytes);
                }
            }
            Record::Group {
                stream,
                group,
                committed,
            } => {
                self.stream(stream)
                    .groups
                    .insert(group.clone(), GroupState::behind(*committed));
            }
            Record::GroupGone { stream, group } => {
                self.stream(stream).groups.remove(group);
            }
            Record::Handed {
                stream,
                group,
                numbers,
            } => {
                if let Some(group) = self.stream(stream).groups.get_mut(group) {
                    group.note_handed(numbers);
                }
            }
            Record::Finish {
                stream,
                group,
                numbers,
            } => self.stream(stream).finish(group, numbers),
            Record::Trim { stream, upto } => self.stream(stream).trim(*upto),
            Record::MoveEntries { stream, moved } => {
                let stream = self.stream(stream);
                for (number, bytes) in moved {
                    let bytes = *bytes;
                    stream.relocate(*number, BlobLocation { position, bytes });
                    position = position.plus(bytes);
                }
            }
            Record::QueueGone { queue } => _ = self.queues.remove(queue),
            Record::Unbind {
                exchange,
                pattern,
                queue,
            } => {
                self.bindings.remove(exchange, pattern, queue);
            }
        }
        position
    }

    /// Makes every later lease's fence larger than any of the process before.
    ///
    /// Notes of its last leases may be lost, so counting them is not enough. No process makes 2^12 leases a millisecond,
    /// and none starts within one.
    pub(super) fn raise_fence(&mut self, now: Timestamp) {
        self.fence = self.fence.max(now.as_millis() << 12);
    }

    /// A moment that this state had come to.
    pub(super) fn newest(&self) -> Timestamp {
        Timestamp::from_millis(self.fence >> 12)
    }

    /// The parts of the segments that messages still need.
    pub(super) fn live(&self) -> LiveSegments {
        let mut live = LiveSegments::new();
        for queue in self.queues.values() {
            queue.add_live(&mut live);
        }
        for stream in self.streams.values() {
            stream.add_live(&mut live);
        }
        live
    }

    /// Every message and entry that is still needed, and where it is.
    pub(super) fn placed(&self) -> impl Iterator<Item = Stored> + '_ {
        let messages = self.queues.values().flat_map(QueueState::placed);
        let entries = self.streams.values().flat_map(StreamState::placed);
        messages.chain(entries)
    }

    /// The needed parts of each segment.
    pub(super) fn needed(&self) -> BTreeMap<u32, Needed> {
        let live = self.live().into_iter();
        live.map(|(number, live)| {
            let (bytes, end) = (live.bytes, live.end);
            (number, Needed { bytes, end })
        })
        .collect()
    }

    /// Whether a message or an entry is still at this place. Quick for neighbours, one after the other.
    pub(super) fn is_at(&mut self, source: &Source, number: u64, place: BlobLocation) -> bool {
        let known = match source {
            Source::Queue(name) => self
                .queues
                .get_mut(name)
                .and_then(|queue| queue.place_of(number)),
            Source::Stream(name) => {
                let stream = self.streams.get_mut(name);
                stream.and_then(|stream| stream.place_of(number))
            }
        };
        known == Some(place)
    }

    /// The present state. Costs little, whatever its size, and stays the same while the state changes.
    pub(super) fn snapshot(&self) -> Snapshot {
        let queues = self.queues.iter();
        let streams = self.streams.iter();
        Snapshot {
            fence: self.fence,
            bindings: self.bindings.clone(),
            queues: queues
                .map(|(name, queue)| (name.clone(), queue.snapshot()))
                .collect(),
            streams: streams
                .map(|(name, stream)| (name.clone(), stream.snapshot()))
                .collect(),
            keys: self.kv.snapshot(),
            tables: self.kv.tables().named(),
            limits: self.limits.snapshot(),
        }
    }

    /// The state in a checkpoint of a version up to 4.
    pub(super) fn decode(version: u32, bytes: &[u8]) -> Result<Self> {
        let mut bytes = Cow::Borrowed(bytes);
        if version < 2 {
            // It ends before the streams, of which there were none.
            bytes.to_mut().push(0);
        }
        if version < 3 {
            // It has no marks.
            bytes.to_mut().push(0);
        }
        let decoded: Result<(Self, BTreeMap<QueueName, Vec<Mark>>), _> =
            postcard::from_bytes(&bytes);
        let (mut state, mut marks) = decoded.map_err(|error| {
            towpath_core::Error::corrupt("a checkpoint cannot be decoded").with_source(error)
        })?;
        for (name, queue) in &mut state.queues {
            queue.rebuild(marks.remove(name).unwrap_or_default());
        }
        for stream in state.streams.values_mut() {
            stream.rebuild();
        }
        state.kv.rebuild();
        state.limits.rebuild();
        Ok(state)
    }
}
