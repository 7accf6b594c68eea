//! One queue: who stands where.
//!
//! ```text
//! fresh (never handed out, in order) --lease--> held: leased --> gone
//!                                                 |-> ready again (released, expired, disconnected, due)
//!                                                 |-> delayed, parked behind its key
//!                                                 |-> dead --redrive--> fresh
//! ```

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use towpath_core::port::queue::{Settings, Stats};
use towpath_core::{ConsumerId, MessageId, QueueName, Timestamp};

use super::super::log::Position;
use super::super::record::{Arrival, Ending};

/// Errors kept of a message's life, and how long each may be.
const HISTORY: usize = 10;
const HISTORY_BYTES: usize = 1024;

/// A consumer counts for this long after it asked for work.
const CONSUMER_MILLIS: u64 = 60_000;

/// Where a message's blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Place {
    pub(in super::super) position: Position,
    pub(in super::super) bytes: u32,
}

/// What is known of a message without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct Entry {
    /// Its place in the queue: grows with every arrival.
    pub(in super::super) number: u64,
    pub(in super::super) id: MessageId,
    pub(in super::super) place: Place,
    pub(in super::super) attempts: u32,
    pub(in super::super) key: Option<std::num::NonZeroU64>,
    pub(in super::super) expires: Option<std::num::NonZeroU64>,
    pub(in super::super) enqueued_at: Timestamp,
}

/// Where a message stands that is not fresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) enum Standing {
    /// Can be leased.
    Ready,
    /// Waits until another message of its key is done.
    Parked,
    /// Waits until a moment.
    Delayed(Timestamp),
    /// In a consumer's hands, until this moment of the monotonic clock in milliseconds.
    Leased { deadline: u64 },
}

/// A lease ends with the process, so a checkpoint keeps it as ready.
fn without_lease<S: serde::Serializer>(
    standing: &Standing,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match standing {
        Standing::Leased { .. } => Standing::Ready.serialize(serializer),
        other => other.serialize(serializer),
    }
}

/// The last lease of a message.
#[derive(Debug, Clone)]
struct Lease {
    fence: u64,
    consumer: ConsumerId,
}

/// A message that is not fresh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in super::super) struct Held {
    pub(in super::super) entry: Entry,
    #[serde(serialize_with = "without_lease")]
    pub(in super::super) standing: Standing,
    /// While it can still be settled or extended, though it may have expired.
    #[serde(skip)]
    lease: Option<Lease>,
    /// Errors so far, oldest first.
    pub(in super::super) history: Vec<String>,
}

/// A message that was given up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in super::super) struct Dead {
    pub(in super::super) entry: Entry,
    pub(in super::super) reason: String,
    pub(in super::super) history: Vec<String>,
    pub(in super::super) died_at: Timestamp,
}

/// Messages of one key: one is on its way, the others wait.
#[derive(Debug, Default)]
struct KeyLine {
    holder: u64,
    parked: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Counters {
    enqueued: u64,
    acked: u64,
    retried: u64,
    dropped: u64,
    duplicates: u64,
}

/// What a lease asks for.
pub(in super::super) struct Leasing<'a> {
    pub(in super::super) consumer: &'a ConsumerId,
    pub(in super::super) max: usize,
    /// On the monotonic clock, in milliseconds.
    pub(in super::super) deadline: u64,
    /// Nothing behind this place is shown yet.
    pub(in super::super) committed: Position,
    pub(in super::super) now: Timestamp,
}

/// What a lease found.
#[derive(Debug, Default)]
pub(in super::super) struct Found {
    pub(in super::super) leased: Vec<(Entry, u64)>,
    /// Their attempts are spent: to be given up.
    pub(in super::super) spent: Vec<u64>,
    /// Their time has passed: to be dropped.
    pub(in super::super) expired: Vec<u64>,
}

/// One queue.
#[derive(Debug, Serialize, Deserialize)]
pub(in super::super) struct QueueState {
    pub(in super::super) settings: Settings,
    pub(in super::super) paused: bool,
    next_number: u64,
    fresh: VecDeque<Entry>,
    held: HashMap<u64, Held>,
    pub(in super::super) dead: BTreeMap<u64, Dead>,
    dedup: HashMap<String, (MessageId, Timestamp)>,
    dedup_order: VecDeque<(Timestamp, String)>,
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
}

impl QueueState {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            paused: false,
            next_number: 1,
            fresh: VecDeque::new(),
            held: HashMap::new(),
            dead: BTreeMap::new(),
            dedup: HashMap::new(),
            dedup_order: VecDeque::new(),
            counters: Counters::default(),
            ready: BTreeSet::new(),
            delayed: BTreeSet::new(),
            leases: BTreeSet::new(),
            keys: HashMap::new(),
            consumers: HashMap::new(),
        }
    }

    /// Makes the indexes that a checkpoint leaves out.
    pub(super) fn rebuild(&mut self) {
        let numbers: Vec<u64> = self.held.keys().copied().collect();
        for number in numbers {
            if let Some(held) = self.held.remove(&number) {
                // Whoever held it is gone with the process.
                let standing = match held.standing {
                    Standing::Delayed(due) => {
                        // What waits for its retry keeps its key; what was never tried has none to keep.
                        if held.entry.attempts > 0 {
                            self.reserve_key(held.entry.key, number);
                        }
                        Standing::Delayed(due)
                    }
                    _ => Standing::Ready,
                };
                self.hold(Held { standing, ..held });
            }
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
        self.dedup
            .get(dedup_id)
            .filter(|(_, until)| *until > now)
            .map(|(id, _)| *id)
    }

    pub(super) fn count_duplicates(&mut self, count: u64) {
        self.counters.duplicates += count;
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
            self.dedup.insert(dedup_id.to_string(), (arrival.id, until));
            self.dedup_order.push_back((until, dedup_id.to_string()));
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
        while self
            .dedup_order
            .front()
            .is_some_and(|(until, _)| *until <= now)
        {
            if let Some((until, dedup_id)) = self.dedup_order.pop_front()
                && self
                    .dedup
                    .get(&dedup_id)
                    .is_some_and(|(_, known)| *known <= until)
            {
                self.dedup.remove(&dedup_id);
            }
        }
    }

    /// When [`QueueState::tick`] will have something to do: wall clock, monotonic clock.
    pub(in super::super) fn next_event(&self) -> (Option<Timestamp>, Option<u64>) {
        (
            self.delayed.first().map(|(due, _)| *due),
            self.leases.first().map(|(deadline, _)| *deadline),
        )
    }

    /// Hands out up to `max` messages, oldest first; nothing of what it sorts out is gone yet.
    pub(in super::super) fn lease(&mut self, fence: &mut u64, leasing: &Leasing<'_>) -> Found {
        let (mut found, mut sorted_out) = (Found::default(), Vec::new());
        while found.leased.len() < leasing.max && !self.paused {
            let Some(mut held) = self.next_ready(leasing.committed) else {
                break;
            };
            let number = held.entry.number;
            if held
                .entry
                .expires
                .is_some_and(|moment| moment.get() <= leasing.now.as_millis())
            {
                found.expired.push(number);
                sorted_out.push(held);
            } else if self.settings.retry.is_spent(held.entry.attempts) {
                found.spent.push(number);
                sorted_out.push(held);
            } else if !self.take_key(held.entry.key, number) {
                held.standing = Standing::Parked;
                self.hold(held);
            } else {
                *fence += 1;
                held.lease = Some(Lease {
                    fence: *fence,
                    consumer: leasing.consumer.clone(),
                });
                held.entry.attempts += 1;
                held.standing = Standing::Leased {
                    deadline: leasing.deadline,
                };
                found.leased.push((held.entry, *fence));
                self.hold(held);
            }
        }
        // They stay in their place until their record is applied, right after.
        for held in sorted_out {
            self.hold(held);
        }
        found
    }

    /// The oldest message that can be leased, taken out of its index.
    ///
    /// Nothing goes past one whose bytes are not durable yet, where it was sent or moved to.
    fn next_ready(&mut self, committed: Position) -> Option<Held> {
        let fresh = self.fresh.front().copied();
        let returned = self.ready.first().map(|number| self.held[number].entry);
        let oldest = fresh
            .into_iter()
            .chain(returned)
            .min_by_key(|entry| entry.number)
            .filter(|entry| entry.place.position < committed)?;
        if returned.is_some_and(|returned| returned.number == oldest.number) {
            self.detach(oldest.number)
        } else {
            self.fresh.pop_front().map(Held::fresh)
        }
    }

    /// Replay of a lease: the attempt counts, and the message is ready again.
    pub(super) fn note_leased(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some(mut held) = self.detach(*number) {
                held.entry.attempts += 1;
                held.standing = Standing::Ready;
                self.hold(held);
            }
        }
    }

    pub(in super::super) fn seen(&mut self, consumer: &ConsumerId, monotonic: u64) {
        self.consumers.insert(consumer.clone(), monotonic);
    }

    /// Whether this lease is the message's last one; an expired one counts while nobody took over.
    pub(in super::super) fn holds(&self, number: u64, fence: u64) -> bool {
        self.held.get(&number).is_some_and(|held| {
            held.lease
                .as_ref()
                .is_some_and(|lease| lease.fence == fence)
        })
    }

    /// Deliveries of the message so far.
    pub(in super::super) fn attempts(&self, number: u64) -> u32 {
        self.held.get(&number).map_or(0, |held| held.entry.attempts)
    }

    /// The number of the next arrival.
    pub(in super::super) const fn next_number(&self) -> u64 {
        self.next_number
    }

    /// Makes a lease that [`QueueState::holds`] last until `deadline`. False when somebody took over.
    pub(in super::super) fn extend(&mut self, number: u64, fence: u64, deadline: u64) -> bool {
        if !self.holds(number, fence) {
            return false;
        }
        let Some(mut held) = self.detach(number) else {
            return false;
        };
        // One that had expired let its key go, and another message of the key may be on its way.
        let extended = self.take_key(held.entry.key, number);
        if extended {
            held.standing = Standing::Leased { deadline };
        }
        self.hold(held);
        extended
    }

    /// Takes back what the consumer holds; attempts stay counted, and its receipts are void.
    pub(in super::super) fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        let mut theirs = Vec::new();
        for held in self.held.values_mut() {
            if held
                .lease
                .take_if(|lease| lease.consumer == *gone)
                .is_some()
                && matches!(held.standing, Standing::Leased { .. })
            {
                theirs.push(held.entry.number);
            }
        }
        for number in &theirs {
            self.stand(*number, Standing::Ready);
            self.free_key(*number);
        }
        self.consumers.remove(gone);
        theirs.len() as u64
    }

    pub(super) fn settle(&mut self, number: u64, ending: &Ending<'_>, at: Timestamp) {
        let Some(mut held) = self.detach(number) else {
            return;
        };
        held.lease = None;
        match ending {
            Ending::Ack => {
                self.counters.acked += 1;
                self.free_key_of(held.entry.key, number);
            }
            Ending::Release => {
                held.entry.attempts = held.entry.attempts.saturating_sub(1);
                held.standing = Standing::Ready;
                let key = held.entry.key;
                self.hold(held);
                self.free_key_of(key, number);
            }
            Ending::Retry { due, error } => {
                self.counters.retried += 1;
                held.remember(error);
                held.standing = if *due > at {
                    Standing::Delayed(*due)
                } else {
                    Standing::Ready
                };
                self.reserve_key(held.entry.key, number);
                self.hold(held);
            }
            Ending::Dead { reason } => {
                self.free_key_of(held.entry.key, number);
                let mut reason = reason.to_string();
                truncate(&mut reason);
                self.dead.insert(
                    number,
                    Dead {
                        entry: held.entry,
                        reason,
                        history: held.history,
                        died_at: at,
                    },
                );
            }
        }
    }

    pub(super) fn drop_waiting(&mut self, numbers: &[u64]) {
        if numbers.len() == self.fresh.len() + self.held.len() && self.leases.is_empty() {
            self.counters.dropped += numbers.len() as u64;
            self.fresh.clear();
            self.held.clear();
            self.ready.clear();
            self.delayed.clear();
            self.keys.clear();
            return;
        }
        for number in numbers {
            if let Some(held) = self.detach(*number) {
                self.counters.dropped += 1;
                self.free_key_of(held.entry.key, *number);
            }
        }
    }

    /// The numbers of everything that is ready, parked or delayed.
    pub(in super::super) fn waiting(&self) -> Vec<u64> {
        let held = self
            .held
            .values()
            .filter(|held| !matches!(held.standing, Standing::Leased { .. }));
        let mut numbers: Vec<u64> = self
            .fresh
            .iter()
            .map(|entry| entry.number)
            .chain(held.map(|held| held.entry.number))
            .collect();
        numbers.sort_unstable();
        numbers
    }

    pub(super) fn redrive(&mut self, first: u64, numbers: &[u64]) {
        for (next, number) in (first..).zip(numbers) {
            self.next_number = next + 1;
            if let Some(dead) = self.dead.remove(number) {
                self.fresh.push_back(Entry {
                    number: next,
                    attempts: 0,
                    expires: None,
                    ..dead.entry
                });
            }
        }
    }

    pub(super) fn drop_dead(&mut self, numbers: &[u64]) {
        for number in numbers {
            if self.dead.remove(number).is_some() {
                self.counters.dropped += 1;
            }
        }
    }

    pub(super) fn relocate(&mut self, number: u64, place: Place) {
        if let Some(held) = self.held.get_mut(&number) {
            held.entry.place = place;
        } else if let Some(dead) = self.dead.get_mut(&number) {
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
            .chain(self.dead.values().map(|dead| &dead.entry))
    }

    /// The oldest waiting messages with their standing; `None` for fresh ones.
    pub(in super::super) fn peek(
        &self,
        max: usize,
        committed: Position,
    ) -> Vec<(Entry, Option<Standing>)> {
        let mut held: Vec<&Held> = self.held.values().collect();
        held.sort_unstable_by_key(|held| held.entry.number);
        let visible = self
            .fresh
            .iter()
            .filter(|entry| entry.place.position < committed)
            .take(max);
        let mut all: Vec<(Entry, Option<Standing>)> = held
            .into_iter()
            .take(max)
            .map(|held| (held.entry, Some(held.standing.clone())))
            .chain(visible.map(|entry| (*entry, None)))
            .collect();
        all.sort_by_key(|(entry, _)| entry.number);
        all.truncate(max);
        all
    }

    pub(in super::super) fn stats(
        &self,
        name: &QueueName,
        now: Timestamp,
        monotonic: u64,
    ) -> Stats {
        let leased = self.leases.len() as u64;
        let delayed = self.delayed.len() as u64;
        let oldest = self
            .fresh
            .front()
            .into_iter()
            .chain(self.held.values().map(|held| &held.entry));
        let mut consumers: HashSet<&ConsumerId> = self
            .consumers
            .iter()
            .filter(|(_, seen)| **seen + CONSUMER_MILLIS >= monotonic)
            .map(|(consumer, _)| consumer)
            .collect();
        consumers.extend(self.leases.iter().filter_map(|(_, number)| {
            let lease = self.held.get(number)?.lease.as_ref();
            lease.map(|lease| &lease.consumer)
        }));
        Stats {
            queue: name.clone(),
            ready: self.depth() - leased - delayed,
            delayed,
            leased,
            dead: self.dead.len() as u64,
            enqueued: self.counters.enqueued,
            acked: self.counters.acked,
            retried: self.counters.retried,
            dropped: self.counters.dropped,
            duplicates: self.counters.duplicates,
            oldest_age: oldest
                .map(|entry| entry.enqueued_at)
                .min()
                .map(|moment| now.since(moment)),
            consumers: consumers.len() as u64,
            paused: self.paused,
        }
    }

    /// Whether anything could be handed out now.
    pub(in super::super) fn has_ready(&self) -> bool {
        !self.paused && (!self.ready.is_empty() || !self.fresh.is_empty())
    }

    /// Takes a message out of the queue and out of every index.
    fn detach(&mut self, number: u64) -> Option<Held> {
        if let Some(held) = self.held.remove(&number) {
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

    /// Whether the message may go, as the one of its key that is on its way.
    fn take_key(&mut self, key: Option<std::num::NonZeroU64>, number: u64) -> bool {
        let Some(key) = key else { return true };
        let line = self.keys.entry(key.get()).or_default();
        if line.holder == 0 {
            line.holder = number;
        }
        line.holder == number
    }

    fn reserve_key(&mut self, key: Option<std::num::NonZeroU64>, number: u64) {
        if let Some(key) = key {
            self.keys.entry(key.get()).or_default().holder = number;
        }
    }

    fn free_key(&mut self, number: u64) {
        let key = self.held.get(&number).and_then(|held| held.entry.key);
        self.free_key_of(key, number);
    }

    /// Lets the next message of the key be ready.
    fn free_key_of(&mut self, key: Option<std::num::NonZeroU64>, number: u64) {
        let Some(key) = key else { return };
        let Some(line) = self
            .keys
            .get_mut(&key.get())
            .filter(|line| line.holder == number)
        else {
            return;
        };
        line.holder = 0;
        match line.parked.first().copied() {
            Some(next) => self.stand(next, Standing::Ready),
            None => _ = self.keys.remove(&key.get()),
        }
    }
}

impl Held {
    const fn fresh(entry: Entry) -> Self {
        Self {
            entry,
            standing: Standing::Ready,
            lease: None,
            history: Vec::new(),
        }
    }

    fn remember(&mut self, error: &str) {
        let mut error = error.to_owned();
        truncate(&mut error);
        if self.history.len() == HISTORY {
            self.history.remove(0);
        }
        self.history.push(error);
    }
}

fn truncate(text: &mut String) {
    if text.len() > HISTORY_BYTES {
        let end = (0..=HISTORY_BYTES)
            .rev()
            .find(|end| text.is_char_boundary(*end))
            .unwrap_or(0);
        text.truncate(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_000);

    const fn position(offset: u32) -> Position {
        Position { segment: 1, offset }
    }

    fn arrival(key: Option<u64>) -> Arrival<'static> {
        Arrival {
            id: MessageId::new(),
            blob_bytes: 10,
            key,
            dedup_id: None,
            not_before: None,
            expires: None,
        }
    }

    fn lease(queue: &mut QueueState, now: Timestamp, committed: Position) -> Vec<u64> {
        let leasing = Leasing {
            consumer: &ConsumerId::new("one").unwrap(),
            max: 1,
            deadline: 60_000,
            committed,
            now,
        };
        let leased = queue.lease(&mut 0, &leasing).leased;
        leased.iter().map(|(entry, _)| entry.number).collect()
    }

    #[test]
    fn what_falls_due_before_it_is_durable_is_not_handed_out() {
        let mut queue = QueueState::new(Settings::default());
        let later = Timestamp::from_millis(1_001);
        let delayed = Arrival {
            not_before: Some(later),
            ..arrival(None)
        };
        queue.arrive(1, &delayed, position(100), NOW);
        queue.tick(later, 0);
        assert!(lease(&mut queue, later, position(100)).is_empty());
        assert_eq!(lease(&mut queue, later, position(120)), [1]);
    }

    #[test]
    fn what_is_being_moved_is_not_overtaken_by_its_key() {
        let mut queue = QueueState::new(Settings::default());
        queue.arrive(1, &arrival(Some(7)), position(100), NOW);
        queue.arrive(2, &arrival(Some(7)), position(110), NOW);
        assert_eq!(lease(&mut queue, NOW, position(200)), [1]);
        queue.settle(1, &Ending::Release, NOW);
        let place = Place {
            position: position(500),
            bytes: 10,
        };
        queue.relocate(1, place);
        assert!(lease(&mut queue, NOW, position(200)).is_empty());
        assert_eq!(lease(&mut queue, NOW, position(520)), [1]);
    }
}
