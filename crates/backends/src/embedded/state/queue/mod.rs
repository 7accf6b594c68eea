//! One queue: who stands where.
//!
//! ```text
//! fresh (never handed out, in order) --lease--> held: leased --> gone
//!                                                 |-> ready again (released, expired, disconnected, due)
//!                                                 |-> delayed, parked behind its key
//!                                                 |-> dead --redrive--> fresh
//! ```

mod dead;
mod holders;
mod keys;
mod lease;
mod message;
mod operate;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use towpath_core::port::queue::Settings;
use towpath_core::{ConsumerId, MessageId, Timestamp};

use super::super::log::Position;
use super::super::record::Arrival;
use super::dedup::Dedup;
use dead::DeadLetters;
use holders::Holders;
use keys::KeyLine;
pub(in super::super) use lease::{Found, Leased, Leasing};
use message::Held;
pub(super) use message::Mark;
pub(in super::super) use message::{Dead, Entry, Place, Standing};

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

/// One queue.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct QueueState {
    pub(in super::super) settings: Settings,
    pub(in super::super) paused: bool,
    next_number: u64,
    fresh: VecDeque<Entry>,
    held: BTreeMap<u64, Held>,
    pub(in super::super) dead: DeadLetters,
    dedup: Dedup<MessageId>,
    counters: Counters,
    #[serde(skip)]
    ready: BTreeSet<u64>,
    #[serde(skip)]
    delayed: BTreeSet<(Timestamp, u64)>,
    #[serde(skip)]
    leases: BTreeSet<(u64, u64)>,
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

impl QueueState {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            paused: false,
            next_number: 1,
            fresh: VecDeque::new(),
            held: BTreeMap::new(),
            dead: DeadLetters::default(),
            dedup: Dedup::default(),
            counters: Counters::default(),
            ready: BTreeSet::new(),
            delayed: BTreeSet::new(),
            leases: BTreeSet::new(),
            keys: HashMap::new(),
            consumers: HashMap::new(),
            holders: Holders::default(),
            aged: BTreeSet::new(),
        }
    }

    /// What a checkpoint has to say beside this.
    pub(super) fn marks(&self) -> Vec<Mark> {
        let held = self.held.iter().map(|(number, held)| Mark {
            number: *number,
            settled: held.settled,
            was_leased: held.was_leased,
        });
        let attempts = |mark: &Mark| self.held[&mark.number].entry.attempts;
        held.filter(|mark| {
            mark.settled != attempts(mark) || mark.was_leased != (attempts(mark) > 0)
        })
        .collect()
    }

    /// Makes the indexes that a checkpoint leaves out.
    pub(super) fn rebuild(&mut self, marks: Vec<Mark>) {
        for held in self.held.values_mut() {
            held.settled = held.entry.attempts;
            held.was_leased = held.entry.attempts > 0;
        }
        for mark in marks {
            if let Some(held) = self.held.get_mut(&mark.number) {
                held.settled = mark.settled;
                held.was_leased = mark.was_leased;
            }
        }
        self.dead.rebuild();
        self.find_aged();
        for (number, held) in std::mem::take(&mut self.held) {
            // Whoever held it is gone with the process.
            let standing = match held.standing {
                Standing::Delayed(due) => {
                    // What waits for its retry keeps its key; what was never leased has none to keep.
                    if held.was_leased {
                        self.reserve_key(held.entry.key, number);
                    }
                    Standing::Delayed(due)
                }
                _ => Standing::Ready,
            };
            self.hold(Held { standing, ..held });
        }
    }

    /// Messages that wait or are in hand.
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
        arrival: &Arrival<'_>,
        position: Position,
        at: Timestamp,
    ) {
        self.next_number = number + 1;
        self.counters.enqueued += 1;
        let nonzero = |value: u64| std::num::NonZeroU64::new(value.max(1));
        let entry = Entry {
            number,
            id: arrival.id,
            place: Place {
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
                self.hold(Held {
                    standing: Standing::Delayed(due),
                    ..Held::fresh(entry)
                });
            }
            _ => self.fresh.push_back(entry),
        }
    }

    /// Moves what has fallen due or expired; cheap when nothing has.
    pub(in super::super) fn tick(&mut self, now: Timestamp, monotonic: u64) {
        while let Some((due, number)) = self.delayed.first().copied().filter(|(due, _)| *due <= now)
        {
            self.delayed.remove(&(due, number));
            self.stand(number, Standing::Ready);
        }
        while let Some((deadline, number)) = self
            .leases
            .first()
            .copied()
            .filter(|(deadline, _)| *deadline <= monotonic)
        {
            self.leases.remove(&(deadline, number));
            self.stand(number, Standing::Ready);
            self.free_key(number);
        }
        self.consumers
            .retain(|_, seen| *seen + CONSUMER_MILLIS >= monotonic);
        self.dedup.tick(now);
        // What a backlog took is given back when it is gone.
        if self.fresh.capacity() > SPARE && self.fresh.len() < self.fresh.capacity() / 4 {
            self.fresh.shrink_to(self.fresh.len() * 2);
        }
        while let Some(oldest) = self.aged.first().copied()
            && !self.has(oldest.1)
        {
            self.aged.remove(&oldest);
        }
    }

    /// Whether the message waits or is leased.
    fn has(&self, number: u64) -> bool {
        let fresh = || {
            self.fresh
                .binary_search_by_key(&number, |entry| entry.number)
        };
        self.held.contains_key(&number) || fresh().is_ok()
    }

    /// Finds the messages that are older than one in front of them.
    fn find_aged(&mut self) {
        let held = self.held.values().map(|held| &held.entry);
        let mut newest = [Timestamp::default(); 2];
        let fresh = self.fresh.iter().map(|entry| (0, entry));
        for (line, entry) in fresh.chain(held.map(|entry| (1, entry))) {
            if entry.enqueued_at < newest[line] {
                self.aged.insert((entry.enqueued_at, entry.number));
            }
            newest[line] = newest[line].max(entry.enqueued_at);
        }
    }

    /// When the oldest waiting message came.
    fn oldest(&self) -> Option<Timestamp> {
        let fresh = self.fresh.front().map(|entry| entry.enqueued_at);
        let held = self
            .held
            .first_key_value()
            .map(|(_, held)| held.entry.enqueued_at);
        let aged = self.aged.first().map(|(at, _)| *at);
        fresh.into_iter().chain(held).chain(aged).min()
    }

    /// When [`QueueState::tick`] will have something to do: wall clock, monotonic clock.
    pub(in super::super) fn next_event(&self) -> (Option<Timestamp>, Option<u64>) {
        (
            self.delayed.first().map(|(due, _)| *due),
            self.leases.first().map(|(deadline, _)| *deadline),
        )
    }

    pub(super) fn relocate(&mut self, number: u64, place: Place) {
        if let Some(held) = self.held.get_mut(&number) {
            held.entry.place = place;
        } else if let Some(dead) = self.dead.get_mut(number) {
            dead.entry.place = place;
        } else if let Ok(index) = self
            .fresh
            .binary_search_by_key(&number, |entry| entry.number)
        {
            self.fresh[index].place = place;
        }
    }

    /// Every message, the dead ones too.
    pub(in super::super) fn entries(&self) -> impl Iterator<Item = &Entry> {
        let held = self.held.values().map(|held| &held.entry);
        self.fresh
            .iter()
            .chain(held)
            .chain(self.dead.iter().map(|dead| &dead.entry))
    }

    /// Whether anything could be handed out now.
    pub(in super::super) fn has_ready(&self) -> bool {
        !self.paused && (!self.ready.is_empty() || !self.fresh.is_empty())
    }

    /// Takes a message out of the queue and out of every index.
    fn detach(&mut self, number: u64) -> Option<Held> {
        if let Some(held) = self.held.remove(&number) {
            self.holders.leave(&held);
            match &held.standing {
                Standing::Ready => _ = self.ready.remove(&number),
                Standing::Delayed(due) => _ = self.delayed.remove(&(*due, number)),
                Standing::Leased { deadline } => _ = self.leases.remove(&(*deadline, number)),
                Standing::Parked => {
                    if let Some(line) = held.entry.key.and_then(|key| self.keys.get_mut(&key.get()))
                    {
                        line.parked.remove(&number);
                    }
                }
            }
            return Some(held);
        }
        let index = self
            .fresh
            .binary_search_by_key(&number, |entry| entry.number)
            .ok()?;
        self.fresh.remove(index).map(Held::fresh)
    }

    /// Puts a message into the index of its standing.
    fn hold(&mut self, held: Held) {
        let number = held.entry.number;
        self.holders.enter(&held);
        match &held.standing {
            Standing::Ready => _ = self.ready.insert(number),
            Standing::Delayed(due) => _ = self.delayed.insert((*due, number)),
            Standing::Leased { deadline } => _ = self.leases.insert((*deadline, number)),
            Standing::Parked => {
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

    fn stand(&mut self, number: u64, standing: Standing) {
        if let Some(held) = self.detach(number) {
            self.hold(Held { standing, ..held });
        }
    }
}
