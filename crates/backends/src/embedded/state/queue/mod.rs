//! One queue: the phases and the order of its messages.
//!
//! ```text
//! fresh (never leased, in order) --lease--> held: leased --> gone
//!                                                 |-> ready again (released, expired, disconnected, due)
//!                                                 |-> delayed, parked behind its key
//!                                                 |-> dead --redrive--> fresh
//! ```

mod admin;
mod dead;
mod holders;
mod keys;
mod lease;
mod message;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use towpath_core::port::queue::Settings;
use towpath_core::{ConsumerId, MessageId, Timestamp};

use super::super::log::Position;
use super::super::record::MessageRecord;
use super::AT_ONCE;
use super::block::{LiveSegments, Packed};
use super::dedup::{self, Dedup};
use super::line::{self, Line};
use dead::DeadLetters;
use holders::Holders;
use keys::KeyLine;
pub(in super::super) use lease::{LeaseScan, Leased, Leasing};
pub(super) use message::Mark;
pub(in super::super) use message::{
    BlobLocation, Dead, Entry, MessagePhase, Stored, TrackedMessage,
};

/// A consumer counts for this long after it asked for work.
const CONSUMER_MILLIS: u64 = 60_000;

/// A queue keeps room for this many fresh messages.
const SPARE: usize = 4_096;

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Counters {
    enqueued: u64,
    acked: u64,
    retried: u64,
    dropped: u64,
    duplicates: u64,
}

/// The head of a queue in a checkpoint, before its messages.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct Head {
    settings: Settings,
    paused: bool,
    next_number: u64,
    counters: Counters,
}

/// A queue as it was at a moment.
pub(super) struct Snapshot {
    pub(super) head: Head,
    pub(super) fresh: line::Snapshot<Entry>,
    pub(super) held: OrdMap<u64, TrackedMessage>,
    pub(super) dead: OrdMap<u64, Dead>,
    pub(super) ids: dedup::Snapshot<MessageId>,
}

/// One queue.
#[derive(Debug, Deserialize)]
pub(in super::super) struct QueueState {
    pub(in super::super) settings: Settings,
    pub(in super::super) paused: bool,
    next_number: u64,
    fresh: Line<Entry>,
    #[serde(deserialize_with = "super::snapshot::map")]
    held: OrdMap<u64, TrackedMessage>,
    pub(in super::super) dead: DeadLetters,
    pub(super) dedup: Dedup<MessageId>,
    counters: Counters,
    #[serde(skip)]
    ready: BTreeSet<u64>,
    /// Since when there has always been one that is ready again.
    #[serde(skip)]
    ready_since: Option<Timestamp>,
    #[serde(skip)]
    delayed: BTreeSet<(Timestamp, u64)>,
    #[serde(skip)]
    leases: BTreeSet<(u64, u64)>,
    /// When the leases began.
    #[serde(skip)]
    leased_since: BTreeSet<(Timestamp, u64)>,
    #[serde(skip)]
    keys: HashMap<u64, KeyLine>,
    #[serde(skip)]
    consumers: HashMap<ConsumerId, u64>,
    #[serde(skip)]
    holders: Holders,
    /// Messages that are older than their place in the queue says: those that were redriven.
    #[serde(skip)]
    aged: BTreeSet<(Timestamp, u64)>,
}

impl From<Head> for QueueState {
    fn from(head: Head) -> Self {
        Self {
            paused: head.paused,
            next_number: head.next_number,
            counters: head.counters,
            ..Self::new(head.settings)
        }
    }
}

impl QueueState {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            paused: false,
            next_number: 1,
            fresh: Line::default(),
            held: OrdMap::new(),
            dead: DeadLetters::default(),
            dedup: Dedup::default(),
            counters: Counters::default(),
            ready: BTreeSet::new(),
            ready_since: None,
            delayed: BTreeSet::new(),
            leases: BTreeSet::new(),
            leased_since: BTreeSet::new(),
            keys: HashMap::new(),
            consumers: HashMap::new(),
            holders: Holders::default(),
            aged: BTreeSet::new(),
        }
    }

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            head: Head {
                settings: self.settings.clone(),
                paused: self.paused,
                next_number: self.next_number,
                counters: self.counters,
            },
            fresh: self.fresh.snapshot(),
            held: self.held.clone(),
            dead: self.dead.snapshot(),
            ids: self.dedup.snapshot(),
        }
    }

    /// Adds messages of a checkpoint. False when they do not come behind the ones before.
    pub(super) fn add_fresh(&mut self, block: Packed<Entry>) -> bool {
        self.fresh.push_packed(block)
    }

    /// Every message, and where it is.
    pub(super) fn placed(&self) -> impl Iterator<Item = Stored> + '_ {
        let held = self.held.values().map(|held| held.entry);
        let dead = self.dead.iter().map(|dead| dead.entry);
        let all = self.fresh.iter().chain(held).chain(dead);
        all.map(|entry| entry.stored())
    }

    pub(super) fn add_live(&self, live: &mut LiveSegments) {
        self.fresh.add_live(live);
        let held = self.held.values().map(|held| held.entry.place);
        for place in held.chain(self.dead.iter().map(|dead| dead.entry.place)) {
            live.entry(place.position.segment).or_default().add(place);
        }
    }

    /// Makes the indexes that checkpoints up to version 4 leave out.
    pub(super) fn rebuild(&mut self, marks: Vec<Mark>) {
        self.dead.rebuild();
        self.find_aged();
        let mut marks: BTreeMap<u64, Mark> =
            marks.into_iter().map(|mark| (mark.number, mark)).collect();
        for (number, held) in std::mem::take(&mut self.held) {
            let attempts = held.entry.attempts;
            let (settled, was_leased) = marks.remove(&number).map_or_else(
                || (attempts, attempts > 0),
                |mark| (mark.settled, mark.was_leased),
            );
            self.hold_again(TrackedMessage {
                settled,
                was_leased,
                ..held
            });
        }
    }

    /// Holds a message of a checkpoint.
    pub(super) fn hold_again(&mut self, mut held: TrackedMessage) {
        held.phase = match held.phase {
            MessagePhase::Delayed(due) => {
                // A message that waits for its retry keeps its key; one that was never leased has none to keep.
                if held.was_leased {
                    self.reserve_key(held.entry.key, held.entry.number);
                }
                MessagePhase::Delayed(due)
            }
            // A consumer that held it is gone with the process.
            _ => MessagePhase::Ready,
        };
        self.hold(held);
    }

    /// Ready, delayed and leased messages.
    pub(in super::super) fn depth(&self) -> u64 {
        (self.fresh.len() + self.held.len()) as u64
    }

    /// The first message with this dedup id, if its window is still open.
    pub(in super::super) fn duplicate_of(
        &self,
        dedup_id: &str,
        now: Timestamp,
    ) -> Option<MessageId> {
        self.dedup.first(dedup_id, now)
    }

    pub(super) fn count_duplicates(&mut self, count: u64) {
        self.counters.duplicates += count;
    }

    /// The number of the next arrival.
    pub(in super::super) const fn next_number(&self) -> u64 {
        self.next_number
    }

    pub(super) fn arrive(
        &mut self,
        number: u64,
        arrival: &MessageRecord<'_>,
        position: Position,
        at: Timestamp,
    ) {
        self.next_number = number + 1;
        self.counters.enqueued += 1;
        let nonzero = |value: u64| std::num::NonZeroU64::new(value.max(1));
        let entry = Entry {
            number,
            id: arrival.id,
            place: BlobLocation {
                position,
                bytes: arrival.blob_bytes,
            },
            attempts: 0,
            key: arrival.key.and_then(nonzero),
            expires: arrival
                .expires
                .and_then(|moment| nonzero(moment.as_millis())),
            enqueued_at: at,
        };
        if let Some(dedup_id) = &arrival.dedup_id {
            let until = at.after(self.settings.dedup_window);
            self.dedup.remember(dedup_id, arrival.id, until);
        }
        match arrival.not_before {
            Some(due) if due > at => {
                self.hold(TrackedMessage {
                    phase: MessagePhase::Delayed(due),
                    ..TrackedMessage::fresh(entry)
                });
            }
            _ => self.fresh.push_back(entry),
        }
    }

    /// Moves some of the due and expired messages; cheap when there are none. Whether there are more.
    pub(in super::super) fn tick(&mut self, now: Timestamp, monotonic: u64) -> bool {
        let mut left = AT_ONCE;
        while let Some((due, number)) = self.delayed.first().copied().filter(|(due, _)| *due <= now)
            && left > 0
        {
            self.delayed.remove(&(due, number));
            self.stand(number, MessagePhase::Ready);
            left -= 1;
        }
        while let Some((deadline, number)) = self
            .leases
            .first()
            .copied()
            .filter(|(deadline, _)| *deadline <= monotonic)
            && left > 0
        {
            self.leases.remove(&(deadline, number));
            self.stand(number, MessagePhase::Ready);
            self.free_key(number);
            left -= 1;
        }
        match self.ready.is_empty() {
            true => self.ready_since = None,
            false => _ = self.ready_since.get_or_insert(now),
        }
        self.consumers
            .retain(|_, seen| *seen + CONSUMER_MILLIS >= monotonic);
        while let Some(oldest) = self.aged.first().copied()
            && !self.has(oldest.1)
        {
            self.aged.remove(&oldest);
        }
        // Releases the memory of a drained backlog.
        if self.keys.capacity() > SPARE && self.keys.len() < self.keys.capacity() / 8 {
            self.keys.shrink_to(self.keys.len() * 2);
        }
        self.dedup.tick(now) || left == 0
    }

    /// Whether the message waits or is leased.
    fn has(&self, number: u64) -> bool {
        self.held.contains_key(&number) || self.fresh.has(number)
    }

    /// Finds the messages that are older than one in front of them.
    pub(super) fn find_aged(&mut self) {
        let held = self.held.values().map(|held| (1, held.entry));
        let mut newest = [Timestamp::default(); 2];
        for (line, entry) in self.fresh.iter().map(|entry| (0, entry)).chain(held) {
            if entry.enqueued_at < newest[line] {
                self.aged.insert((entry.enqueued_at, entry.number));
            }
            newest[line] = newest[line].max(entry.enqueued_at);
        }
    }

    /// When the oldest waiting message came.
    fn oldest(&self) -> Option<Timestamp> {
        let fresh = self.fresh.front().map(|entry| entry.enqueued_at);
        let held = self.held.get_min().map(|(_, held)| held.entry.enqueued_at);
        let aged = self.aged.first().map(|(at, _)| *at);
        fresh.into_iter().chain(held).chain(aged).min()
    }

    /// Since when the longest waiting of those that can be leased has been ready. A message that was redriven counts once
    /// it is leased and returns.
    fn oldest_ready(&self) -> Option<Timestamp> {
        let is_aged = |entry: &Entry| self.aged.contains(&(entry.enqueued_at, entry.number));
        let fresh = self.fresh.front().filter(|entry| !is_aged(entry));
        let fresh = fresh.map(|entry| entry.enqueued_at);
        fresh.into_iter().chain(self.ready_since).min()
    }

    /// When the oldest delayed message came. Behind very many others it is that of the next one that is due.
    fn oldest_delayed(&self) -> Option<Timestamp> {
        let (_, next) = self.delayed.first()?;
        let next = self.held.get(next);
        let is_delayed = |held: &&TrackedMessage| matches!(held.phase, MessagePhase::Delayed(_));
        let first = self.held.values().take(AT_ONCE).filter(is_delayed);
        first.chain(next).map(|held| held.entry.enqueued_at).min()
    }

    /// When [`QueueState::tick`] will have something to do: wall clock, monotonic clock.
    pub(in super::super) fn next_event(&self) -> (Option<Timestamp>, Option<u64>) {
        (
            self.delayed.first().map(|(due, _)| *due),
            self.leases.first().map(|(deadline, _)| *deadline),
        )
    }

    pub(super) fn relocate(&mut self, number: u64, place: BlobLocation) {
        if let Some(held) = self.held.get_mut(&number) {
            held.entry.place = place;
        } else if let Some(dead) = self.dead.get_mut(number) {
            dead.entry.place = place;
        } else {
            self.fresh.change(number, |entry| entry.place = place);
        }
    }

    /// Where a message is now, also a dead one.
    pub(super) fn place_of(&mut self, number: u64) -> Option<BlobLocation> {
        let held = self.held.get(&number).map(|held| held.entry);
        let dead = || self.dead.get(number).map(|dead| dead.entry);
        let apart = held.or_else(dead);
        let entry = apart.or_else(|| self.fresh.find(number))?;
        Some(entry.place)
    }

    /// Whether any message could be leased now.
    pub(in super::super) fn has_ready(&self) -> bool {
        !self.paused && (!self.ready.is_empty() || !self.fresh.is_empty())
    }

    /// Takes a message out of the queue and out of every index.
    fn detach(&mut self, number: u64) -> Option<TrackedMessage> {
        if let Some(held) = self.held.remove(&number) {
            self.holders.leave(&held);
            match &held.phase {
                MessagePhase::Ready => {
                    self.ready.remove(&number);
                    if self.ready.is_empty() {
                        self.ready_since = None;
                    }
                }
                MessagePhase::Delayed(due) => _ = self.delayed.remove(&(*due, number)),
                MessagePhase::Leased { deadline } => {
                    self.leases.remove(&(*deadline, number));
                    let since = held.lease.as_ref().map(|lease| lease.since);
                    self.leased_since
                        .remove(&(since.unwrap_or_default(), number));
                }
                MessagePhase::Parked => {
                    if let Some(line) = held.entry.key.and_then(|key| self.keys.get_mut(&key.get()))
                    {
                        line.parked.remove(&number);
                    }
                }
            }
            return Some(held);
        }
        self.fresh.remove(number).map(TrackedMessage::fresh)
    }

    /// Puts a message into the index of its phase.
    fn hold(&mut self, held: TrackedMessage) {
        let number = held.entry.number;
        self.holders.enter(&held);
        match &held.phase {
            MessagePhase::Ready => _ = self.ready.insert(number),
            MessagePhase::Delayed(due) => _ = self.delayed.insert((*due, number)),
            MessagePhase::Leased { deadline } => {
                self.leases.insert((*deadline, number));
                let since = held.lease.as_ref().map(|lease| lease.since);
                self.leased_since
                    .insert((since.unwrap_or_default(), number));
            }
            MessagePhase::Parked => {
                if let Some(key) = held.entry.key {
                    self.keys
                        .entry(key.get())
                        .or_default()
                        .parked
                        .insert(number);
                }
            }
        }
        self.held.insert(number, held);
    }

    fn stand(&mut self, number: u64, phase: MessagePhase) {
        if let Some(held) = self.detach(number) {
            self.hold(TrackedMessage { phase, ..held });
        }
    }
}
