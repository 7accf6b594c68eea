//! Leases: handing out, and how deliveries end.

use towpath_core::{ConsumerId, Timestamp, attempt};

use super::message::Lease;
use super::{BlobLocation, Dead, Entry, MessagePhase, QueueState, TrackedMessage};
use crate::embedded::log::Position;
use crate::embedded::record::DeliveryOutcome;

/// A lease request.
pub(in super::super::super) struct Leasing<'a> {
    pub(in super::super::super) consumer: &'a ConsumerId,
    pub(in super::super::super) max: usize,
    /// On the monotonic clock, in milliseconds.
    pub(in super::super::super) deadline: u64,
    /// Nothing behind this place is shown yet.
    pub(in super::super::super) committed: Position,
    pub(in super::super::super) now: Timestamp,
}

/// A leased message.
#[derive(Debug)]
pub(in super::super::super) struct Leased {
    pub(in super::super::super) entry: Entry,
    pub(in super::super::super) fence: u64,
    pub(in super::super::super) interrupted: bool,
}

/// The messages that a lease found.
#[derive(Debug, Default)]
pub(in super::super::super) struct LeaseScan {
    pub(in super::super::super) leased: Vec<Leased>,
    /// Messages without attempts left: to become dead letters.
    pub(in super::super::super) spent: Vec<u64>,
    /// Their time has passed: to be dropped.
    pub(in super::super::super) expired: Vec<u64>,
}

impl QueueState {
    /// Leases up to `max` messages, oldest first; messages that it sorts out are not removed yet.
    pub(in super::super::super) fn lease(
        &mut self,
        fence: &mut u64,
        leasing: &Leasing<'_>,
    ) -> LeaseScan {
        let (mut found, mut sorted_out) = (LeaseScan::default(), Vec::new());
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
                held.phase = MessagePhase::Parked;
                self.hold(held);
            } else {
                *fence += 1;
                held.lease = Some(Lease {
                    fence: *fence,
                    consumer: leasing.consumer.clone(),
                    since: leasing.now,
                });
                let interrupted = held.is_interrupted();
                held.begin();
                held.phase = MessagePhase::Leased {
                    deadline: leasing.deadline,
                };
                found.leased.push(Leased {
                    entry: held.entry,
                    fence: *fence,
                    interrupted,
                });
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
    fn next_ready(&mut self, committed: Position) -> Option<TrackedMessage> {
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
            self.fresh.pop_front().map(TrackedMessage::fresh)
        }
    }

    /// Replay of a lease: the attempt counts, and the message is ready again.
    pub(in super::super) fn note_leased(&mut self, numbers: &[u64]) {
        for number in numbers {
            if let Some(mut held) = self.detach(*number) {
                held.begin();
                held.phase = MessagePhase::Ready;
                self.hold(held);
            }
        }
    }

    pub(in super::super::super) fn seen(&mut self, consumer: &ConsumerId, monotonic: u64) {
        self.consumers.insert(consumer.clone(), monotonic);
    }

    /// Whether this lease is the message's last one; an expired one counts until the message is leased again.
    pub(in super::super::super) fn holds(&self, number: u64, fence: u64) -> bool {
        self.held.get(&number).is_some_and(|held| {
            held.lease
                .as_ref()
                .is_some_and(|lease| lease.fence == fence)
        })
    }

    /// The location of a leased message.
    pub(in super::super::super) fn place(&self, number: u64) -> Option<BlobLocation> {
        self.held.get(&number).map(|held| held.entry.place)
    }

    /// Deliveries of the message so far.
    pub(in super::super::super) fn attempts(&self, number: u64) -> u32 {
        self.held.get(&number).map_or(0, |held| held.entry.attempts)
    }

    /// Makes a lease that [`QueueState::holds`] last until `deadline`. False when the message was leased again.
    pub(in super::super::super) fn extend(
        &mut self,
        number: u64,
        fence: u64,
        deadline: u64,
    ) -> bool {
        if !self.holds(number, fence) {
            return false;
        }
        let Some(mut held) = self.detach(number) else {
            return false;
        };
        // One that had expired let its key go, and another message of the key may be on its way.
        let extended = self.take_key(held.entry.key, number);
        if extended {
            held.phase = MessagePhase::Leased { deadline };
        }
        self.hold(held);
        extended
    }

    /// Holds a message back with its key reserved.
    fn wait_until(&mut self, due: Timestamp, at: Timestamp, mut held: TrackedMessage) {
        held.phase = if due > at {
            MessagePhase::Delayed(due)
        } else {
            MessagePhase::Ready
        };
        self.reserve_key(held.entry.key, held.entry.number);
        self.hold(held);
    }

    pub(in super::super) fn settle(
        &mut self,
        number: u64,
        outcome: &DeliveryOutcome<'_>,
        at: Timestamp,
    ) {
        let Some(mut held) = self.detach(number) else {
            return;
        };
        held.lease = None;
        match outcome {
            DeliveryOutcome::Ack => {
                self.counters.acked += 1;
                self.free_key_of(held.entry.key, number);
            }
            DeliveryOutcome::Release => {
                held.entry.attempts = held.entry.attempts.saturating_sub(1);
                held.phase = MessagePhase::Ready;
                let key = held.entry.key;
                self.hold(held);
                self.free_key_of(key, number);
            }
            DeliveryOutcome::Retry { due, error } => {
                self.counters.retried += 1;
                held.remember(error);
                held.settled = held.entry.attempts;
                self.wait_until(*due, at, held);
            }
            DeliveryOutcome::Defer { due } => {
                held.entry.attempts = held.entry.attempts.saturating_sub(1);
                self.wait_until(*due, at, held);
            }
            DeliveryOutcome::Dead { reason } => {
                self.free_key_of(held.entry.key, number);
                self.dead.insert(Dead {
                    entry: held.entry,
                    reason: attempt::bounded(reason).to_owned(),
                    history: held.history,
                    died_at: at,
                });
            }
        }
    }
}
