//! The state as it was at a moment, and as a checkpoint says it: piece by piece, so that neither writing nor reading
//! needs a second copy of it in memory.
//!
//! A snapshot is made under the store's lock and shares nearly everything with the state; the rest happens outside of it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use towpath_core::{Error, ExchangeName, GroupName, MessageId, QueueName, Result, StreamName};

use super::bindings::Bindings;
use super::block::{LiveSegments, Packed};
use super::dedup::{self, DedupEntry};
use super::kv::Slot;
use super::limits::Limited;
use super::queue::{self, Dead, Stored, TrackedMessage};
use super::stream;
use super::{GroupState, QueueState, State, StreamState};
use crate::embedded::store::Source;
use crate::embedded::tables::{TableRecord, Tables};

/// One piece of a checkpoint; pieces that belong to a queue, a stream or a group follow it.
///
/// The order of the variants and of their fields is part of the format.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) enum Piece<'a> {
    /// The first one.
    Fence(u64),
    Binding(ExchangeName, Cow<'a, str>, QueueName),
    Queue(QueueName, queue::Head),
    /// Up to version 6.
    Fresh(#[serde(borrow, serialize_with = "as_bytes")] &'a [u8]),
    TrackedMessage {
        held: Cow<'a, TrackedMessage>,
        settled: u32,
        was_leased: bool,
    },
    Dead(Cow<'a, Dead>),
    /// The secret of the ids of a queue or of a stream.
    Secret(dedup::Secret),
    QueueId(DedupEntry<MessageId>),
    Stream(StreamName, stream::Head),
    /// Up to version 6.
    Entries(#[serde(borrow, serialize_with = "as_bytes")] &'a [u8]),
    StreamId(DedupEntry<u64>),
    Group(GroupName, u64),
    /// Finished behind the group's place.
    Finished(u64),
    /// Delivered, with the attempts.
    Pending(u64, u32),
    Key(Cow<'a, str>, Cow<'a, Slot>),
    Limit(Cow<'a, str>, Cow<'a, Limited>),
    /// The last one: how many there were before it.
    End(u64),
    /// Keys that are not in memory, the newest table first; behind the fence. Since version 6.
    Table(TableRecord),
    /// Messages that were never leased. Since version 7.
    FreshMessages(#[serde(borrow, serialize_with = "as_bytes")] &'a [u8]),
    /// Entries of a stream. Since version 7.
    StreamEntries(#[serde(borrow, serialize_with = "as_bytes")] &'a [u8]),
}

fn as_bytes<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_bytes(bytes)
}

/// Takes a piece on its way out.
type Sink<'a> = &'a mut dyn FnMut(&Piece<'_>) -> Result<()>;

/// The state as it was at a moment.
pub(in super::super) struct Snapshot {
    pub(super) fence: u64,
    pub(super) bindings: Bindings,
    pub(super) queues: Vec<(QueueName, queue::Snapshot)>,
    pub(super) streams: Vec<(StreamName, stream::Snapshot)>,
    pub(super) keys: OrdMap<String, Slot>,
    pub(in super::super) tables: Vec<TableRecord>,
    pub(super) limits: OrdMap<String, Limited>,
}

impl Snapshot {
    /// The parts of the segments that messages still need.
    pub(in super::super) fn live(&self) -> LiveSegments {
        let mut live = LiveSegments::new();
        for (_, queue) in &self.queues {
            queue.add_live(&mut live);
        }
        for (_, stream) in &self.streams {
            stream.entries.add_live(&mut live);
        }
        live
    }

    /// Messages and entries whose blobs are in a segment, by where they are.
    pub(in super::super) fn some_of(&self, segment: u32) -> Vec<(Source, Vec<(u64, Stored)>)> {
        let queues = self.queues.iter().map(|(name, queue)| {
            let places = queue.some_of(segment);
            (Source::from(name), places.collect::<Vec<_>>())
        });
        let streams = self.streams.iter().map(|(name, stream)| {
            let entries = stream.entries.some_of(segment);
            let places = entries.map(|entry| (entry.number, entry.stored()));
            (Source::from(name), places.collect())
        });
        let all = queues.chain(streams);
        all.filter(|(_, places)| !places.is_empty()).collect()
    }

    /// Approximate size of the checkpoint.
    pub(in super::super) fn bytes(&self) -> u64 {
        let queues: u64 = self.queues.iter().map(|(_, queue)| queue.bytes()).sum();
        let streams: u64 = self.streams.iter().map(|(_, stream)| stream.bytes()).sum();
        queues + streams + 64 * (self.keys.len() + self.limits.len()) as u64
    }

    /// Has its keys in these tables instead, but for those that stay in memory.
    pub(in super::super) fn rest_on(&mut self, tables: &Tables, staying: OrdMap<String, Slot>) {
        self.keys = staying;
        self.tables = tables.named();
    }

    /// Passes every piece on, and releases each one afterwards.
    pub(in super::super) fn write(
        self,
        sink: &mut dyn FnMut(&Piece<'_>) -> Result<()>,
    ) -> Result<()> {
        let mut count = 0;
        let mut say = |piece: &Piece<'_>| {
            count += 1;
            sink(piece)
        };
        say(&Piece::Fence(self.fence))?;
        for named in self.tables {
            say(&Piece::Table(named))?;
        }
        for (exchange, pattern, queue) in self.bindings.iter() {
            let (exchange, queue) = (exchange.clone(), queue.clone());
            say(&Piece::Binding(exchange, pattern.into(), queue))?;
        }
        for (name, queue) in self.queues {
            queue.write(name, &mut say)?;
        }
        for (name, stream) in self.streams {
            stream.write(name, &mut say)?;
        }
        for (key, slot) in &self.keys {
            say(&Piece::Key(key.into(), Cow::Borrowed(slot)))?;
        }
        for (key, limited) in &self.limits {
            say(&Piece::Limit(key.into(), Cow::Borrowed(limited)))?;
        }
        sink(&Piece::End(count))
    }
}

impl queue::Snapshot {
    fn add_live(&self, live: &mut LiveSegments) {
        self.fresh.add_live(live);
        for (_, Stored { place, .. }) in self.apart() {
            live.entry(place.position.segment).or_default().add(place);
        }
    }

    fn some_of(&self, segment: u32) -> impl Iterator<Item = (u64, Stored)> + '_ {
        let fresh = self.fresh.some_of(segment);
        fresh.map(|entry| (entry.number, entry.stored())).chain(
            self.apart()
                .filter(move |(_, stored)| stored.place.position.segment == segment),
        )
    }

    /// Messages that are not fresh.
    fn apart(&self) -> impl Iterator<Item = (u64, Stored)> + '_ {
        let held = self.held.values().map(|held| held.entry);
        let entries = held.chain(self.dead.values().map(|dead| dead.entry));
        entries.map(|entry| (entry.number, entry.stored()))
    }

    fn bytes(&self) -> u64 {
        let apart = self.held.len() + self.dead.len();
        self.fresh.bytes() + 64 * (apart as u64) + self.ids.bytes()
    }

    fn write(self, name: QueueName, say: Sink<'_>) -> Result<()> {
        say(&Piece::Queue(name, self.head))?;
        for block in self.fresh.into_packed() {
            say(&Piece::FreshMessages(block.bytes()))?;
        }
        for held in self.held.values() {
            say(&Piece::TrackedMessage {
                held: Cow::Borrowed(held),
                settled: held.settled,
                was_leased: held.was_leased,
            })?;
        }
        for dead in self.dead.values() {
            say(&Piece::Dead(Cow::Borrowed(dead)))?;
        }
        if !self.ids.known.is_empty() {
            say(&Piece::Secret(self.ids.secret))?;
        }
        for known in self.ids.known.iter() {
            say(&Piece::QueueId(known))?;
        }
        Ok(())
    }
}

impl stream::Snapshot {
    fn bytes(&self) -> u64 {
        let groups = self.groups.iter();
        let marks = groups.map(|(_, group)| 1 + group.finished.len() + group.pending.len());
        self.entries.bytes() + self.ids.bytes() + 8 * marks.sum::<usize>() as u64
    }

    fn write(self, name: StreamName, say: Sink<'_>) -> Result<()> {
        say(&Piece::Stream(name, self.head))?;
        for block in self.entries.into_packed() {
            say(&Piece::StreamEntries(block.bytes()))?;
        }
        if !self.ids.known.is_empty() {
            say(&Piece::Secret(self.ids.secret))?;
        }
        for known in self.ids.known.iter() {
            say(&Piece::StreamId(known))?;
        }
        for (name, group) in self.groups {
            say(&Piece::Group(name, group.committed))?;
            for number in &group.finished {
                say(&Piece::Finished(*number))?;
            }
            for (number, pending) in &group.pending {
                say(&Piece::Pending(*number, pending.attempts))?;
            }
        }
        Ok(())
    }
}

/// A state that is put together from the pieces of a checkpoint.
#[derive(Debug, Default)]
pub(in super::super) struct Loading {
    state: State,
    queue: Option<(QueueName, QueueState)>,
    stream: Option<(StreamName, StreamState)>,
    group: Option<(GroupName, GroupState)>,
    count: u64,
    is_whole: bool,
}

impl Loading {
    /// # Errors
    /// `Corrupt` for pieces in an order in which nothing writes them.
    pub(in super::super) fn add(&mut self, piece: Piece<'_>) -> Result<()> {
        self.take(piece)
            .ok_or_else(|| Error::corrupt("a checkpoint has a piece at a wrong place"))
    }

    /// # Errors
    /// `Corrupt` when its end is missing.
    pub(in super::super) fn finish(self) -> Result<State> {
        if self.is_whole {
            Ok(self.state)
        } else {
            Err(Error::corrupt("a checkpoint ends early"))
        }
    }

    fn take(&mut self, piece: Piece<'_>) -> Option<()> {
        if self.is_whole || (self.count == 0) != matches!(piece, Piece::Fence(_)) {
            return None;
        }
        match piece {
            Piece::Fence(fence) => self.state.fence = fence,
            Piece::Table(named) => self.state.kv.name_table(named),
            Piece::Binding(exchange, pattern, queue) => {
                self.state.bindings.insert(&exchange, &pattern, &queue);
            }
            Piece::Queue(name, head) => {
                self.put_away();
                self.queue = Some((name, QueueState::from(head)));
            }
            Piece::Fresh(bytes) => {
                let block = Packed::read_version_6(bytes)?;
                self.queue()?.add_fresh(block).then_some(())?;
            }
            Piece::FreshMessages(bytes) => {
                let block = Packed::read(bytes)?;
                self.queue()?.add_fresh(block).then_some(())?;
            }
            Piece::TrackedMessage {
                held,
                settled,
                was_leased,
            } => {
                let mut held = held.into_owned();
                (held.settled, held.was_leased) = (settled, was_leased);
                self.queue()?.hold_again(held);
            }
            Piece::Dead(dead) => {
                self.queue()?.dead.insert(dead.into_owned());
            }
            Piece::Secret(secret) => match &mut self.queue {
                Some((_, queue)) => queue.dedup.keep_secret(secret),
                None => self.stream()?.dedup.keep_secret(secret),
            },
            Piece::QueueId(known) => self.queue()?.dedup.keep(known),
            Piece::Stream(name, head) => {
                self.put_away();
                self.stream = Some((name, StreamState::from(head)));
            }
            Piece::Entries(bytes) => {
                let block = Packed::read_version_6(bytes)?;
                self.stream()?.add_entries(block).then_some(())?;
            }
            Piece::StreamEntries(bytes) => {
                let block = Packed::read(bytes)?;
                self.stream()?.add_entries(block).then_some(())?;
            }
            Piece::StreamId(known) => self.stream()?.dedup.keep(known),
            Piece::Group(name, committed) => {
                self.stream()?;
                self.put_away_group();
                self.group = Some((name, GroupState::behind(committed)));
            }
            Piece::Finished(number) => _ = self.group()?.finished.insert(number),
            Piece::Pending(number, attempts) => self.group()?.keep_pending(number, attempts),
            Piece::Key(key, slot) => {
                self.put_away();
                self.state.kv.keep(key.into_owned(), slot.into_owned());
            }
            Piece::Limit(key, limited) => {
                self.put_away();
                self.state
                    .limits
                    .keep(key.into_owned(), limited.into_owned());
            }
            Piece::End(count) => {
                self.put_away();
                self.is_whole = count == self.count;
                return self.is_whole.then_some(());
            }
        }
        self.count += 1;
        Some(())
    }

    fn queue(&mut self) -> Option<&mut QueueState> {
        self.queue.as_mut().map(|(_, queue)| queue)
    }

    fn stream(&mut self) -> Option<&mut StreamState> {
        self.stream.as_mut().map(|(_, stream)| stream)
    }

    fn group(&mut self) -> Option<&mut GroupState> {
        self.group.as_mut().map(|(_, group)| group)
    }

    fn put_away(&mut self) {
        self.put_away_group();
        if let Some((name, mut queue)) = self.queue.take() {
            queue.find_aged();
            self.state.queues.insert(name, queue);
        }
        if let Some((name, stream)) = self.stream.take() {
            self.state.streams.insert(name, stream);
        }
    }

    fn put_away_group(&mut self) {
        if let (Some((name, group)), Some((_, stream))) = (self.group.take(), &mut self.stream) {
            stream.groups.insert(name, group);
        }
    }
}

/// A map of a checkpoint up to version 4 or of a record; its length is not trusted.
pub(super) fn map<'de, D, K, V>(deserializer: D) -> Result<OrdMap<K, V>, D::Error>
where
    D: Deserializer<'de>,
    K: Deserialize<'de> + Ord + Clone,
    V: Deserialize<'de> + Clone,
{
    let map = BTreeMap::<K, V>::deserialize(deserializer)?;
    Ok(map.into_iter().collect())
}

/// As [`map`].
pub(super) fn set<'de, D, T>(deserializer: D) -> Result<OrdSet<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Ord + Clone,
{
    let set = BTreeSet::<T>::deserialize(deserializer)?;
    Ok(set.into_iter().collect())
}
