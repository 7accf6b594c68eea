//! What this process has of a queue: of the queue itself what waits and what is leased, of its retries those to come.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Message as _};
use towpath_core::{ConsumerId, Delivery, Receipt, Timestamp};

use crate::broker::in_flight::{self, Hand, Terms};

use super::ack_tracker::Lane;
use super::consumer::{Reach, Shelf};
use super::envelope::{self, Raw, Read};
use super::retry;

/// Payload bytes of a partition after which no more are fetched: of what is to be delivered, and of what comes later.
const FULL_BYTES: usize = 32 << 20;
const FULL_BYTES_LATER: usize = 4 << 20;

/// Where a message came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) partition: i32,
    pub(super) at: i64,
    /// When its record was produced.
    pub(super) published: Timestamp,
    /// Key and headers as they came, where the message's text is not the same.
    pub(super) raw: Option<Arc<Raw>>,
    /// Why no consumer can take it.
    pub(super) refusal: Option<String>,
    epoch: u64,
}

/// A message in hand.
pub(super) type Held = in_flight::Held<Spot>;

/// A shelf whose records are settled one by one.
pub(super) trait Bench: Shelf {
    fn lanes(&mut self) -> &mut Lanes;
    /// Puts a message back that could not be settled.
    fn put_back(&mut self, number: u64, held: Held);
}

/// The partitions that are ours.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    all: BTreeMap<i32, Lane>,
    bytes: BTreeMap<i32, usize>,
    epochs: u64,
}

impl Lanes {
    fn assign(&mut self, partition: i32, position: i64, note: &str) {
        self.epochs += 1;
        let lane = Lane::new(self.epochs, position, note);
        self.all.insert(partition, lane);
    }

    fn revoke(&mut self, partition: i32) -> Option<(i64, String)> {
        self.bytes.remove(&partition);
        let lane = self.all.remove(&partition)?;
        lane.is_dirty.then(|| (lane.position(), lane.note()))
    }

    /// Takes a record in; `None` when it is settled, or its partition not ours any more.
    fn add(&mut self, record: &BorrowedMessage<'_>, now: Timestamp) -> Option<Held> {
        let (partition, at) = (record.partition(), record.offset());
        let lane = self.all.get_mut(&partition)?;
        let deliveries = lane.add(at)?;
        let millis = record.timestamp().to_millis();
        let published = millis.and_then(|millis| u64::try_from(millis).ok());
        let Read {
            envelope,
            raw,
            refusal,
            ..
        } = envelope::read(record, now);
        let spot = Spot {
            partition,
            at,
            published: published.map_or(now, Timestamp::from_millis),
            raw,
            refusal,
            epoch: lane.epoch,
        };
        *self.bytes.entry(partition).or_default() += envelope.message.payload.len();
        let charged = envelope.attempts.saturating_add(deliveries);
        Some(Held::new(envelope, charged, spot))
    }

    /// The lane that a message came by, unless that went to another process.
    fn lane(&mut self, spot: &Spot) -> Option<&mut Lane> {
        let lane = self.all.get_mut(&spot.partition);
        lane.filter(|lane| lane.epoch == spot.epoch)
    }

    fn charge(&mut self, held: &Held) {
        let deliveries = held.charged.saturating_sub(held.envelope.attempts);
        if let Some(lane) = self.lane(&held.origin) {
            lane.charge(held.origin.at, deliveries);
        }
    }

    /// Settles a message. False when it went to another process.
    pub(super) fn settle(&mut self, held: &Held) -> bool {
        let spot = &held.origin;
        let settled = self.lane(spot).and_then(|lane| lane.settle(spot.at));
        if settled.is_some()
            && let Some(bytes) = self.bytes.get_mut(&spot.partition)
        {
            *bytes = bytes.saturating_sub(held.envelope.message.payload.len());
        }
        settled.is_some()
    }

    /// Takes that back. False when it went to another process since.
    pub(super) fn reopen(&mut self, held: &Held) -> bool {
        let deliveries = held.charged.saturating_sub(held.envelope.attempts);
        let Some(lane) = self.lane(&held.origin) else {
            return false;
        };
        lane.reopen(held.origin.at, deliveries);
        let bytes = self.bytes.entry(held.origin.partition).or_default();
        *bytes += held.envelope.message.payload.len();
        true
    }

    /// Position and note of every lane of which the broker knows an older state; from here on it is taken to know.
    pub(super) fn take_dirty(&mut self) -> Vec<(i32, i64, String)> {
        let dirty = self.all.iter_mut().filter(|(_, lane)| lane.is_dirty);
        dirty
            .map(|(partition, lane)| {
                lane.is_dirty = false;
                (*partition, lane.position(), lane.note())
            })
            .collect()
    }

    /// The broker does not know after all.
    pub(super) fn mark_dirty(&mut self, partitions: &[(i32, i64, String)]) {
        for (partition, ..) in partitions {
            if let Some(lane) = self.all.get_mut(partition) {
                lane.is_dirty = true;
            }
        }
    }

    /// How much of a partition is not here yet; `None` when it is not ours.
    pub(super) fn missing(&self, partition: i32, high: i64) -> Option<u64> {
        let lane = self.all.get(&partition)?;
        Some(lane.reach.missing(high))
    }

    fn reach(&mut self, partition: i32) -> Option<&mut Reach> {
        self.all.get_mut(&partition).map(|lane| &mut lane.reach)
    }

    fn partitions(&self) -> Vec<i32> {
        self.all.keys().copied().collect()
    }

    fn fullness(&self, partition: i32, limit: usize) -> usize {
        let lane = self.all.get(&partition).map_or(0, Lane::fullness);
        let bytes = self.bytes.get(&partition).copied().unwrap_or(0);
        lane.max(bytes * 100 / limit)
    }
}

/// What is to be delivered.
#[derive(Default)]
pub(super) struct Ready {
    hand: Hand<Spot>,
    /// What no consumer can take: to become dead letters.
    refused: Vec<Held>,
    lanes: Lanes,
    numbers: u64,
}

impl Ready {
    /// Leases what waits, and takes out what has no attempts left or what no consumer can take.
    pub(super) fn lease(
        &mut self,
        terms: &Terms<'_>,
        next_number: impl FnMut() -> u64,
    ) -> (Vec<Delivery>, Vec<Held>) {
        let (deliveries, mut spent) = self.hand.lease(terms, next_number);
        spent.append(&mut self.refused);
        for delivery in &deliveries {
            if let Some(held) = self.hand.get(delivery.receipt.number) {
                self.lanes.charge(held);
            }
        }
        (deliveries, spent)
    }

    /// Gives a delivery back untouched.
    pub(super) fn release(&mut self, number: u64, held: Held) {
        self.hand.release(number, held);
        if let Some(held) = self.hand.get(number) {
            self.lanes.charge(held);
        }
    }

    pub(super) fn take(&mut self, receipt: &Receipt) -> Option<Held> {
        self.hand.take(receipt)
    }

    pub(super) fn extend(&mut self, receipt: &Receipt, lease: Duration) -> bool {
        self.hand.extend(receipt, lease)
    }

    pub(super) fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        self.hand.disconnect(gone)
    }

    pub(super) fn drain(&mut self) -> Vec<Held> {
        let mut drained = self.hand.drain_ready();
        drained.append(&mut self.refused);
        drained
    }

    pub(super) fn hand(&self) -> &Hand<Spot> {
        &self.hand
    }
}

impl Shelf for Ready {
    fn assign(&mut self, partition: i32, position: i64, note: &str) {
        self.lanes.assign(partition, position, note);
    }

    fn revoke(&mut self, partition: i32, uncharges: bool) -> Option<(i64, String)> {
        let gone = self.hand.drain(|held| held.origin.partition == partition);
        for mut held in gone
            .into_iter()
            .filter(|held| uncharges && held.is_leased())
        {
            held.charged = held.charged.saturating_sub(1);
            self.lanes.charge(&held);
        }
        self.refused
            .retain(|held| held.origin.partition != partition);
        self.lanes.revoke(partition)
    }

    fn put(&mut self, record: &BorrowedMessage<'_>, now: Timestamp) {
        match self.lanes.add(record, now) {
            Some(held) if held.origin.refusal.is_some() => self.refused.push(held),
            Some(held) => {
                self.numbers += 1;
                self.hand.add(self.numbers, held);
            }
            None => {}
        }
    }

    fn reach(&mut self, partition: i32) -> Option<&mut Reach> {
        self.lanes.reach(partition)
    }

    fn partitions(&self) -> Vec<i32> {
        self.lanes.partitions()
    }

    fn fullness(&self, partition: i32) -> usize {
        self.lanes.fullness(partition, FULL_BYTES)
    }
}

impl Bench for Ready {
    fn lanes(&mut self) -> &mut Lanes {
        &mut self.lanes
    }

    fn put_back(&mut self, number: u64, held: Held) {
        if held.origin.refusal.is_some() {
            self.refused.push(held);
        } else {
            self.hand.put_back(number, held);
        }
    }
}

/// What comes later, by the moment when it is to be looked at again.
#[derive(Default)]
pub(super) struct Later {
    due: BTreeMap<(Timestamp, u64), Held>,
    lanes: Lanes,
    numbers: u64,
}

impl Later {
    /// Takes out up to `max` whose moment has come.
    pub(super) fn take_due(&mut self, now: Timestamp, max: usize) -> Vec<(u64, Held)> {
        let mut found = Vec::new();
        while found.len() < max
            && let Some(entry) = self.due.first_entry()
            && entry.key().0 <= now
        {
            let ((_, number), held) = entry.remove_entry();
            found.push((number, held));
        }
        found
    }

    /// Takes out everything.
    pub(super) fn drain(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.due).into_values().collect()
    }

    /// When the next moment comes.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn count(&self) -> u64 {
        self.due.len() as u64
    }

    /// When the oldest message came.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        let all = self.due.values();
        all.map(|held| held.envelope.message.enqueued_at).min()
    }
}

impl Shelf for Later {
    fn assign(&mut self, partition: i32, position: i64, note: &str) {
        self.lanes.assign(partition, position, note);
    }

    fn revoke(&mut self, partition: i32, _: bool) -> Option<(i64, String)> {
        self.due
            .retain(|_, held| held.origin.partition != partition);
        self.lanes.revoke(partition)
    }

    fn put(&mut self, record: &BorrowedMessage<'_>, now: Timestamp) {
        if let Some(held) = self.lanes.add(record, now) {
            self.numbers += 1;
            self.put_back(self.numbers, held);
        }
    }

    fn reach(&mut self, partition: i32) -> Option<&mut Reach> {
        self.lanes.reach(partition)
    }

    fn partitions(&self) -> Vec<i32> {
        self.lanes.partitions()
    }

    fn fullness(&self, partition: i32) -> usize {
        self.lanes.fullness(partition, FULL_BYTES_LATER)
    }
}

impl Bench for Later {
    fn lanes(&mut self) -> &mut Lanes {
        &mut self.lanes
    }

    fn put_back(&mut self, number: u64, held: Held) {
        let at = retry::look_again(&held);
        self.due.insert((at, number), held);
    }
}
