//! Buffers of a queue in this process: ready and leased messages of the queue, delayed messages of its retry topic.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Message as _};
use towpath_core::{ConsumerId, Delivery, Receipt, Timestamp};

use crate::broker::in_flight::{self, InFlight, LeaseTerms};

use super::ack_tracker::AckTracker;
use super::consumer::{FetchBuffer, FetchProgress};
use super::envelope::{self, Raw, Read};
use super::retry;

/// Payload bytes of a partition after which no more are fetched: of ready and of delayed messages.
const FULL_BYTES: usize = 32 << 20;
const FULL_BYTES_LATER: usize = 4 << 20;

/// Source of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RecordPosition {
    pub(super) partition: i32,
    pub(super) at: i64,
    /// When its record was produced.
    pub(super) published: Timestamp,
    /// Key and headers in bytes, where they are not UTF-8.
    pub(super) raw: Option<Arc<Raw>>,
    /// Why it cannot be delivered.
    pub(super) refusal: Option<String>,
    epoch: u64,
}

/// An in-flight message.
pub(super) type InFlightMessage = in_flight::InFlightMessage<RecordPosition>;

/// A buffer whose records are settled one by one.
pub(super) trait AckBuffer: FetchBuffer {
    fn trackers(&mut self) -> &mut AckTrackers;
    /// Puts a message back that could not be settled.
    fn put_back(&mut self, number: u64, held: InFlightMessage);
}

/// The ack trackers of the assigned partitions.
#[derive(Debug, Default)]
pub(super) struct AckTrackers {
    all: BTreeMap<i32, AckTracker>,
    bytes: BTreeMap<i32, usize>,
    epochs: u64,
}

impl AckTrackers {
    fn assign(&mut self, partition: i32, position: i64, metadata: &str) {
        self.epochs += 1;
        let tracker = AckTracker::new(self.epochs, position, metadata);
        self.all.insert(partition, tracker);
    }

    fn revoke(&mut self, partition: i32) -> Option<(i64, String)> {
        self.bytes.remove(&partition);
        let tracker = self.all.remove(&partition)?;
        tracker
            .is_dirty
            .then(|| (tracker.position(), tracker.metadata()))
    }

    /// Adds a record; `None` when it is settled or its partition was revoked.
    fn add(&mut self, record: &BorrowedMessage<'_>, now: Timestamp) -> Option<InFlightMessage> {
        let (partition, at) = (record.partition(), record.offset());
        let tracker = self.all.get_mut(&partition)?;
        let deliveries = tracker.add(at)?;
        let millis = record.timestamp().to_millis();
        let published = millis.and_then(|millis| u64::try_from(millis).ok());
        let Read {
            envelope,
            raw,
            refusal,
            ..
        } = envelope::read(record, now);
        let position = RecordPosition {
            partition,
            at,
            published: published.map_or(now, Timestamp::from_millis),
            raw,
            refusal,
            epoch: tracker.epoch,
        };
        *self.bytes.entry(partition).or_default() += envelope.message.payload.len();
        let charged = envelope.attempts.saturating_add(deliveries);
        Some(InFlightMessage::new(envelope, charged, position))
    }

    /// The tracker of a message, unless its partition was revoked since.
    fn tracker(&mut self, position: &RecordPosition) -> Option<&mut AckTracker> {
        let tracker = self.all.get_mut(&position.partition);
        tracker.filter(|tracker| tracker.epoch == position.epoch)
    }

    fn charge(&mut self, held: &InFlightMessage) {
        let deliveries = held.charged.saturating_sub(held.envelope.attempts);
        if let Some(tracker) = self.tracker(&held.origin) {
            tracker.charge(held.origin.at, deliveries);
        }
    }

    /// Settles a message. False when its partition was revoked.
    pub(super) fn settle(&mut self, held: &InFlightMessage) -> bool {
        let position = &held.origin;
        let settled = self
            .tracker(position)
            .and_then(|tracker| tracker.settle(position.at));
        if settled.is_some()
            && let Some(bytes) = self.bytes.get_mut(&position.partition)
        {
            *bytes = bytes.saturating_sub(held.envelope.message.payload.len());
        }
        settled.is_some()
    }

    /// Reverts that. False when its partition was revoked since.
    pub(super) fn reopen(&mut self, held: &InFlightMessage) -> bool {
        let deliveries = held.charged.saturating_sub(held.envelope.attempts);
        let Some(tracker) = self.tracker(&held.origin) else {
            return false;
        };
        tracker.reopen(held.origin.at, deliveries);
        let bytes = self.bytes.entry(held.origin.partition).or_default();
        *bytes += held.envelope.message.payload.len();
        true
    }

    /// Position and metadata of every tracker with uncommitted changes, which then count as committed.
    pub(super) fn take_dirty(&mut self) -> Vec<(i32, i64, String)> {
        let dirty = self.all.iter_mut().filter(|(_, tracker)| tracker.is_dirty);
        dirty
            .map(|(partition, tracker)| {
                tracker.is_dirty = false;
                (*partition, tracker.position(), tracker.metadata())
            })
            .collect()
    }

    /// The commit failed: the changes count as uncommitted again.
    pub(super) fn mark_dirty(&mut self, partitions: &[(i32, i64, String)]) {
        for (partition, ..) in partitions {
            if let Some(tracker) = self.all.get_mut(partition) {
                tracker.is_dirty = true;
            }
        }
    }

    /// Records of a partition that are not fetched yet; `None` when it is not assigned.
    pub(super) fn missing(&self, partition: i32, high: i64) -> Option<u64> {
        let tracker = self.all.get(&partition)?;
        Some(tracker.progress.missing(high))
    }

    fn progress(&mut self, partition: i32) -> Option<&mut FetchProgress> {
        self.all
            .get_mut(&partition)
            .map(|tracker| &mut tracker.progress)
    }

    fn partitions(&self) -> Vec<i32> {
        self.all.keys().copied().collect()
    }

    fn fullness(&self, partition: i32, limit: usize) -> usize {
        let tracker = self.all.get(&partition).map_or(0, AckTracker::fullness);
        let bytes = self.bytes.get(&partition).copied().unwrap_or(0);
        tracker.max(bytes * 100 / limit)
    }
}

/// Messages to deliver.
#[derive(Default)]
pub(super) struct ReadyBuffer {
    in_flight: InFlight<RecordPosition>,
    /// Messages that cannot be delivered and become dead letters.
    refused: Vec<InFlightMessage>,
    trackers: AckTrackers,
    numbers: u64,
}

impl ReadyBuffer {
    /// Leases ready messages, and takes out those without attempts left and those that cannot be delivered.
    pub(super) fn lease(
        &mut self,
        terms: &LeaseTerms<'_>,
        next_number: impl FnMut() -> u64,
    ) -> (Vec<Delivery>, Vec<InFlightMessage>) {
        let (deliveries, mut spent) = self.in_flight.lease(terms, next_number);
        spent.append(&mut self.refused);
        for delivery in &deliveries {
            if let Some(held) = self.in_flight.get(delivery.receipt.number) {
                self.trackers.charge(held);
            }
        }
        (deliveries, spent)
    }

    /// Returns a delivery uncharged.
    pub(super) fn release(&mut self, number: u64, held: InFlightMessage) {
        self.in_flight.release(number, held);
        if let Some(held) = self.in_flight.get(number) {
            self.trackers.charge(held);
        }
    }

    pub(super) fn take(&mut self, receipt: &Receipt) -> Option<InFlightMessage> {
        self.in_flight.take(receipt)
    }

    pub(super) fn extend(&mut self, receipt: &Receipt, lease: Duration) -> bool {
        self.in_flight.extend(receipt, lease)
    }

    pub(super) fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        self.in_flight.disconnect(gone)
    }

    pub(super) fn drain(&mut self) -> Vec<InFlightMessage> {
        let mut drained = self.in_flight.drain_ready();
        drained.append(&mut self.refused);
        drained
    }

    pub(super) fn in_flight(&self) -> &InFlight<RecordPosition> {
        &self.in_flight
    }
}

impl FetchBuffer for ReadyBuffer {
    fn assign(&mut self, partition: i32, position: i64, metadata: &str) {
        self.trackers.assign(partition, position, metadata);
    }

    fn revoke(&mut self, partition: i32, uncharges: bool) -> Option<(i64, String)> {
        let gone = self
            .in_flight
            .drain(|held| held.origin.partition == partition);
        for mut held in gone
            .into_iter()
            .filter(|held| uncharges && held.is_leased())
        {
            held.charged = held.charged.saturating_sub(1);
            self.trackers.charge(&held);
        }
        self.refused
            .retain(|held| held.origin.partition != partition);
        self.trackers.revoke(partition)
    }

    fn put(&mut self, record: &BorrowedMessage<'_>, now: Timestamp) {
        match self.trackers.add(record, now) {
            Some(held) if held.origin.refusal.is_some() => self.refused.push(held),
            Some(held) => {
                self.numbers += 1;
                self.in_flight.add(self.numbers, held);
            }
            None => {}
        }
    }

    fn progress(&mut self, partition: i32) -> Option<&mut FetchProgress> {
        self.trackers.progress(partition)
    }

    fn partitions(&self) -> Vec<i32> {
        self.trackers.partitions()
    }

    fn fullness(&self, partition: i32) -> usize {
        self.trackers.fullness(partition, FULL_BYTES)
    }
}

impl AckBuffer for ReadyBuffer {
    fn trackers(&mut self) -> &mut AckTrackers {
        &mut self.trackers
    }

    fn put_back(&mut self, number: u64, held: InFlightMessage) {
        if held.origin.refusal.is_some() {
            self.refused.push(held);
        } else {
            self.in_flight.put_back(number, held);
        }
    }
}

/// Delayed messages, by the time of their next move.
#[derive(Default)]
pub(super) struct DelayedBuffer {
    due: BTreeMap<(Timestamp, u64), InFlightMessage>,
    trackers: AckTrackers,
    numbers: u64,
}

impl DelayedBuffer {
    /// Takes out up to `max` due messages.
    pub(super) fn take_due(&mut self, now: Timestamp, max: usize) -> Vec<(u64, InFlightMessage)> {
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
    pub(super) fn drain(&mut self) -> Vec<InFlightMessage> {
        std::mem::take(&mut self.due).into_values().collect()
    }

    /// Time of the next move.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn count(&self) -> u64 {
        self.due.len() as u64
    }

    /// Enqueue time of the oldest message.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        let all = self.due.values();
        all.map(|held| held.envelope.message.enqueued_at).min()
    }
}

impl FetchBuffer for DelayedBuffer {
    fn assign(&mut self, partition: i32, position: i64, metadata: &str) {
        self.trackers.assign(partition, position, metadata);
    }

    fn revoke(&mut self, partition: i32, _: bool) -> Option<(i64, String)> {
        self.due
            .retain(|_, held| held.origin.partition != partition);
        self.trackers.revoke(partition)
    }

    fn put(&mut self, record: &BorrowedMessage<'_>, now: Timestamp) {
        if let Some(held) = self.trackers.add(record, now) {
            self.numbers += 1;
            self.put_back(self.numbers, held);
        }
    }

    fn progress(&mut self, partition: i32) -> Option<&mut FetchProgress> {
        self.trackers.progress(partition)
    }

    fn partitions(&self) -> Vec<i32> {
        self.trackers.partitions()
    }

    fn fullness(&self, partition: i32) -> usize {
        self.trackers.fullness(partition, FULL_BYTES_LATER)
    }
}

impl AckBuffer for DelayedBuffer {
    fn trackers(&mut self) -> &mut AckTrackers {
        &mut self.trackers
    }

    fn put_back(&mut self, number: u64, held: InFlightMessage) {
        let at = retry::next_move(&held);
        self.due.insert((at, number), held);
    }
}
