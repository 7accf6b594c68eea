//! Messages going out: leases, and the messages read back for them.

use std::time::Duration;

use towpath_core::log_throttle::LogThrottle;
use towpath_core::port::queue::LeaseRequest;
use towpath_core::{Delivery, Error, ErrorKind, Message, QueueName, Receipt, Result};

use super::super::log::Class;
use super::super::record::{DeliveryOutcome, Record};
use super::super::state::{Entry, LeaseScan, Leased, Leasing, Stored};
use super::super::store::{Inner, Store};
use super::millis;

/// The reason of a dead letter that no consumer rejected.
const SPENT: &str =
    "its attempts are spent: every consumer that had it let the lease expire or died";

/// Messages that could not be read; thousands may follow each other where a segment is damaged.
static UNREADABLE: LogThrottle = LogThrottle::new();

/// The result of a lease call.
pub(in super::super) struct ReadyBatch {
    pub(in super::super) leased: Vec<Leased>,
    /// When something may fall due.
    pub(super) look_again: Option<Duration>,
}

impl Store {
    /// Leases ready messages.
    pub(in super::super) fn lease_ready(&self, request: &LeaseRequest) -> Result<ReadyBatch> {
        // The record of a lease has to be taken once the lease is.
        self.log.check_answers()?;
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let committed = self.log.committed_position();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let leasing = Leasing {
            consumer: &request.consumer,
            max: request.max,
            deadline: monotonic.saturating_add(millis(request.lease)),
            committed,
            now,
        };
        let leased = loop {
            let mut fence = inner.state.fence;
            let state = inner.state.queue(&request.queue);
            state.tick(now, monotonic);
            state.seen(&request.consumer, monotonic);
            let mut found = state.lease(&mut fence, &leasing);
            inner.state.fence = fence;
            if found.expired.is_empty() && found.spent.is_empty() {
                break found.leased;
            }
            let leased = std::mem::take(&mut found.leased);
            self.sort_out(inner, &request.queue, found)?;
            // The keys that they held may let others go.
            if leased.is_empty() {
                continue;
            }
            if inner.state.queue(&request.queue).has_ready() {
                self.news(&request.queue).notify_waiters();
            }
            break leased;
        };
        if !leased.is_empty() {
            // Not waited for: a crash within one sync of the lease may forget that this attempt was begun.
            let numbers = leased.iter().map(|leased| leased.entry.number).collect();
            let queue = request.queue.clone();
            self.note(inner, &Record::Leased { queue, numbers })?;
        }
        let (due, deadline) = inner.state.queue(&request.queue).next_event();
        let due = due.map(|due| due.since(now));
        let expiry =
            deadline.map(|deadline| Duration::from_millis(deadline.saturating_sub(monotonic)));
        Ok(ReadyBatch {
            leased,
            look_again: due.into_iter().chain(expiry).min(),
        })
    }

    /// Drops expired messages, and dead-letters those without attempts left.
    fn sort_out(&self, inner: &mut Inner, queue: &QueueName, found: LeaseScan) -> Result<()> {
        if !found.expired.is_empty() {
            let record = Record::Drop {
                queue: queue.clone(),
                numbers: found.expired,
            };
            self.write(inner, Class::Settle, &record)?;
        }
        if !found.spent.is_empty() {
            let spent = found.spent.into_iter().map(|number| {
                let reason = SPENT.into();
                (number, DeliveryOutcome::Dead { reason })
            });
            let record = Record::Settle {
                queue: queue.clone(),
                at: self.clock.now(),
                settled: spent.collect(),
            };
            self.write(inner, Class::Settle, &record)?;
        }
        Ok(())
    }

    /// Reads the leased messages, and returns those that can be read.
    ///
    /// A damaged message becomes a dead letter. One that cannot be read just now goes back, its attempt not counted.
    ///
    /// # Errors
    /// `Unavailable` when nothing could be read just now.
    pub(in super::super) fn deliveries(
        &self,
        request: &LeaseRequest,
        leased: Vec<Leased>,
    ) -> Result<Vec<Delivery>> {
        let stored: Vec<Stored> = leased.iter().map(|leased| leased.entry.stored()).collect();
        let mut deliveries = Vec::with_capacity(leased.len());
        let (mut unread, mut passing) = (Vec::new(), None);
        for (leased, message) in leased.into_iter().zip(self.read_back(&stored)) {
            let Leased {
                entry,
                fence,
                interrupted,
            } = leased;
            match message.or_else(|error| self.read_moved(&request.queue, &entry, error)) {
                Ok(message) => deliveries.push(Delivery {
                    message,
                    receipt: Receipt {
                        queue: request.queue.clone(),
                        number: entry.number,
                        fence,
                    },
                    attempt: entry.attempts,
                    interrupted,
                    lease: request.lease,
                }),
                Err(error) => {
                    if let Some(count) = UNREADABLE.count() {
                        let (queue, error) = (&request.queue, error.chain());
                        tracing::error!(%queue, id = %entry.id, error, count, "message unreadable");
                    }
                    let outcome = if error.kind() == ErrorKind::Corrupt {
                        DeliveryOutcome::Dead {
                            reason: error.chain().into(),
                        }
                    } else {
                        passing = Some(error);
                        DeliveryOutcome::Release
                    };
                    unread.push((entry.number, outcome));
                }
            }
        }
        if !unread.is_empty() {
            let record = Record::Settle {
                queue: request.queue.clone(),
                at: self.clock.now(),
                settled: unread,
            };
            self.write(&mut self.lock(), Class::Settle, &record)?;
        }
        match passing {
            Some(error) if deliveries.is_empty() => Err(error),
            _ => Ok(deliveries),
        }
    }

    /// Reads a message at its new place, when compaction moved it since it was leased.
    fn read_moved(&self, queue: &QueueName, entry: &Entry, error: Error) -> Result<Message> {
        let place = {
            let inner = self.lock();
            let state = inner.state.queues.get(queue);
            state.and_then(|state| state.place(entry.number))
        };
        match place {
            Some(place) if place != entry.place => {
                let stored = Stored {
                    place,
                    ..entry.stored()
                };
                self.read_back(&[stored]).remove(0)
            }
            _ => Err(error),
        }
    }
}
