//! What this process holds of one queue: messages that the broker handed out and that are not settled yet.
//!
//! ```text
//! arrived -> waiting -> leased -> settled
//!               ^          |
//!               +----------+   (release, expired lease, disconnect)
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_core::{ConsumerId, Delivery, QueueName, Receipt};

use super::envelope::Envelope;
use super::incoming::{Incoming, Ticket};

/// How long a message may wait here for a consumer of this process before others may have it.
const PATIENCE: Duration = Duration::from_secs(1);

/// The same for one whose consumer may still come back to settle it.
const PATIENCE_EXPIRED: Duration = Duration::from_secs(5);

/// A message in hand.
pub(super) struct Held {
    pub(super) envelope: Envelope,
    /// Deliveries so far, this one included while it is leased.
    pub(super) charged: u32,
    /// What the count would be if the broker took it back now.
    pub(super) charged_by_return: u32,
    pub(super) ticket: Ticket,
    /// The connection that it came over; what is in hand ends with it.
    pub(super) connection: u64,
    /// What it came by; stays open as long as it is not settled.
    pub(super) incoming: Arc<Incoming>,
    state: State,
}

enum State {
    Waiting {
        since: Instant,
    },
    Leased {
        consumer: ConsumerId,
        fence: u64,
        until: Instant,
    },
}

impl Held {
    pub(super) fn new(
        envelope: Envelope,
        charged: u32,
        charged_by_return: u32,
        ticket: Ticket,
        connection: u64,
        incoming: Arc<Incoming>,
    ) -> Self {
        Self {
            envelope,
            charged,
            charged_by_return,
            ticket,
            connection,
            incoming,
            state: State::Waiting {
                since: Instant::now(),
            },
        }
    }

    fn is_ready(&self, now: Instant) -> bool {
        match &self.state {
            State::Waiting { .. } => true,
            State::Leased { until, .. } => *until <= now,
        }
    }

    fn is_late(&self, now: Instant) -> bool {
        match &self.state {
            State::Waiting { since } => now.duration_since(*since) >= PATIENCE,
            State::Leased { until, .. } => now
                .checked_duration_since(*until)
                .is_some_and(|late| late >= PATIENCE_EXPIRED),
        }
    }

    fn wait(&mut self) {
        self.state = State::Waiting {
            since: Instant::now(),
        };
    }
}

/// Everything in hand, oldest first.
#[derive(Default)]
pub(super) struct Hand(BTreeMap<u64, Held>);

/// Who leases, and how.
pub(super) struct Terms<'a> {
    pub(super) queue: &'a QueueName,
    pub(super) consumer: &'a ConsumerId,
    pub(super) lease: Duration,
    pub(super) max: usize,
    /// Deliveries after which a message is given up.
    pub(super) attempts: u32,
}

impl Hand {
    pub(super) fn add(&mut self, number: u64, held: Held) {
        self.0.insert(number, held);
    }

    /// Lets go of what came over another connection: the broker has taken it back.
    pub(super) fn keep_only(&mut self, connection: u64) {
        self.0.retain(|_, held| held.connection == connection);
    }

    /// Leases what waits here, oldest first, and takes out what has no attempts left.
    pub(super) fn lease(
        &mut self,
        terms: &Terms<'_>,
        mut next_number: impl FnMut() -> u64,
    ) -> (Vec<Delivery>, Vec<Held>) {
        let now = Instant::now();
        let ready: Vec<u64> = self
            .0
            .iter()
            .filter(|(_, held)| held.is_ready(now))
            .map(|(number, _)| *number)
            .collect();
        let (mut deliveries, mut spent) = (Vec::new(), Vec::new());
        for number in ready {
            if deliveries.len() == terms.max {
                break;
            }
            let Some(held) = self.0.get_mut(&number) else {
                continue;
            };
            if held.charged >= terms.attempts {
                spent.extend(self.0.remove(&number));
                continue;
            }
            held.charged += 1;
            let fence = next_number();
            held.state = State::Leased {
                consumer: terms.consumer.clone(),
                fence,
                until: now + terms.lease,
            };
            deliveries.push(Delivery {
                message: held.envelope.message.clone(),
                receipt: Receipt {
                    queue: terms.queue.clone(),
                    number,
                    fence,
                },
                attempt: held.charged,
                lease: terms.lease,
            });
        }
        (deliveries, spent)
    }

    /// Takes out the delivery of this receipt, unless it is stale.
    pub(super) fn take(&mut self, receipt: &Receipt) -> Option<Held> {
        self.find(receipt)?;
        self.0.remove(&receipt.number)
    }

    /// Puts a delivery back that could not be settled: its lease goes on.
    pub(super) fn put_back(&mut self, number: u64, held: Held) {
        self.0.insert(number, held);
    }

    /// Puts a delivery back uncharged.
    pub(super) fn release(&mut self, number: u64, mut held: Held) {
        held.charged = held.charged.saturating_sub(1);
        held.wait();
        self.0.insert(number, held);
    }

    /// Makes a lease last; false for a stale receipt.
    pub(super) fn extend(&mut self, receipt: &Receipt, lease: Duration) -> bool {
        match self.find(receipt) {
            Some(until) => {
                *until = Instant::now() + lease;
                true
            }
            None => false,
        }
    }

    /// Takes back what the consumer holds. How many leases had not expired.
    pub(super) fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        let now = Instant::now();
        let mut count = 0;
        for held in self.0.values_mut() {
            if let State::Leased {
                consumer, until, ..
            } = &held.state
                && consumer == gone
            {
                count += u64::from(*until > now);
                held.wait();
            }
        }
        count
    }

    /// Takes out everything that waits.
    pub(super) fn drain_ready(&mut self) -> Vec<Held> {
        let now = Instant::now();
        self.drain(|held| held.is_ready(now))
    }

    /// Takes out what nobody here wants.
    pub(super) fn drain_late(&mut self) -> Vec<Held> {
        let now = Instant::now();
        self.drain(|held| held.is_late(now))
    }

    /// Takes out everything.
    pub(super) fn drain_all(&mut self) -> Vec<Held> {
        std::mem::take(&mut self.0).into_values().collect()
    }

    fn drain(&mut self, which: impl Fn(&Held) -> bool) -> Vec<Held> {
        let found: Vec<u64> = self
            .0
            .iter()
            .filter(|(_, held)| which(held))
            .map(|(number, _)| *number)
            .collect();
        found
            .iter()
            .filter_map(|number| self.0.remove(number))
            .collect()
    }

    /// How many wait here, and how many are leased.
    pub(super) fn counts(&self) -> (u64, u64) {
        let now = Instant::now();
        let ready = self.0.values().filter(|held| held.is_ready(now)).count();
        (ready as u64, (self.0.len() - ready) as u64)
    }

    /// How many are leased that came by this channel.
    pub(super) fn leased_by(&self, incoming: &Arc<Incoming>) -> usize {
        let now = Instant::now();
        let leased = |held: &&Held| Arc::ptr_eq(&held.incoming, incoming) && !held.is_ready(now);
        self.0.values().filter(leased).count()
    }

    /// The oldest message and the consumers with something in hand.
    pub(super) fn oldest(&self) -> Option<towpath_core::Timestamp> {
        self.0
            .values()
            .map(|held| held.envelope.message.enqueued_at)
            .min()
    }

    pub(super) fn consumers(&self) -> impl Iterator<Item = &ConsumerId> {
        self.0.values().filter_map(|held| match &held.state {
            State::Leased { consumer, .. } => Some(consumer),
            State::Waiting { .. } => None,
        })
    }

    /// When the next lease expires.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        let now = Instant::now();
        let ends = self.0.values().filter_map(|held| match &held.state {
            State::Leased { until, .. } if *until > now => Some(*until),
            _ => None,
        });
        ends.min()
    }

    fn find(&mut self, receipt: &Receipt) -> Option<&mut Instant> {
        match &mut self.0.get_mut(&receipt.number)?.state {
            State::Leased { fence, until, .. } if *fence == receipt.fence => Some(until),
            _ => None,
        }
    }
}
