//! In-flight messages of one queue of a broker: delivered to this process and not settled.
//!
//! ```text
//! arrived -> waiting -> leased -> settled
//!               ^          |
//!               +----------+   (release, expired lease, disconnect)
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use towpath_core::{ConsumerId, Delivery, Error, QueueName, Receipt, Timestamp};

use crate::broker::envelope::Envelope;

/// Longest wait of a message for a consumer before it returns to the broker.
const MAX_WAIT: Duration = Duration::from_secs(1);

/// The same for an expired lease, whose consumer may still settle it.
const MAX_WAIT_EXPIRED: Duration = Duration::from_secs(5);

/// Reason of a dead letter that no consumer settled.
pub(crate) const ATTEMPTS_EXHAUSTED: &str =
    "attempts exhausted: every lease expired or its consumer died";

/// An in-flight message; `origin` is its source on the broker.
pub(crate) struct InFlightMessage<T> {
    pub(crate) envelope: Envelope,
    /// Deliveries so far, this one included while it is leased.
    pub(crate) charged: u32,
    pub(crate) origin: T,
    state: State,
}

enum State {
    Waiting {
        since: Instant,
    },
    Leased {
        consumer: ConsumerId,
        fence: u64,
        since: Instant,
        until: Instant,
    },
}

impl<T> InFlightMessage<T> {
    pub(crate) fn new(envelope: Envelope, charged: u32, origin: T) -> Self {
        Self {
            envelope,
            charged,
            origin,
            state: State::Waiting {
                since: Instant::now(),
            },
        }
    }

    /// Records that the delivery failed.
    pub(crate) fn fail(&mut self, error: &str) {
        self.envelope.note(error);
        self.envelope.settled = self.charged;
    }

    fn is_late(&self, now: Instant) -> bool {
        let (since, limit) = match &self.state {
            State::Waiting { since } => (since, MAX_WAIT),
            State::Leased { until, .. } => (until, MAX_WAIT_EXPIRED),
        };
        let late = now.checked_duration_since(*since);
        late.is_some_and(|late| late >= limit)
    }

    fn consumer(&self) -> Option<&ConsumerId> {
        match &self.state {
            State::Leased { consumer, .. } => Some(consumer),
            State::Waiting { .. } => None,
        }
    }

    /// Whether it is leased and the lease has not expired.
    pub(crate) fn is_leased(&self) -> bool {
        self.consumer().is_some() && !self.has_ended(Instant::now())
    }

    fn has_ended(&self, now: Instant) -> bool {
        matches!(&self.state, State::Leased { until, .. } if *until <= now)
    }
}

/// The in-flight messages of a queue, oldest first.
pub(crate) struct InFlight<T> {
    waiting: BTreeMap<u64, InFlightMessage<T>>,
    leased: BTreeMap<u64, InFlightMessage<T>>,
    /// Ends of leases.
    ends: BTreeSet<(Instant, u64)>,
}

impl<T> Default for InFlight<T> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            leased: BTreeMap::new(),
            ends: BTreeSet::new(),
        }
    }
}

/// Parameters of a lease.
pub(crate) struct LeaseTerms<'a> {
    pub(crate) queue: &'a QueueName,
    pub(crate) consumer: &'a ConsumerId,
    pub(crate) lease: Duration,
    pub(crate) max: usize,
    /// Deliveries after which a message becomes a dead letter.
    pub(crate) attempts: u32,
}

impl<T> InFlight<T> {
    pub(crate) fn add(&mut self, number: u64, held: InFlightMessage<T>) {
        self.waiting.insert(number, held);
    }

    /// Leases waiting messages, oldest first, and takes out those without attempts left.
    pub(crate) fn lease(
        &mut self,
        terms: &LeaseTerms<'_>,
        mut next_number: impl FnMut() -> u64,
    ) -> (Vec<Delivery>, Vec<InFlightMessage<T>>) {
        let now = Instant::now();
        let mut expired: BTreeSet<u64> = self.expired(now).collect();
        let (mut deliveries, mut spent) = (Vec::new(), Vec::new());
        while deliveries.len() < terms.max {
            let waiting = self.waiting.first_key_value().map(|(number, _)| *number);
            let Some(number) = waiting.into_iter().chain(expired.first().copied()).min() else {
                break;
            };
            expired.remove(&number);
            let Some(mut held) = self.remove(number) else {
                continue;
            };
            if held.charged >= terms.attempts {
                spent.push(held);
                continue;
            }
            let interrupted = held.charged > held.envelope.settled;
            held.charged += 1;
            let fence = next_number();
            let until = now + terms.lease;
            held.state = State::Leased {
                consumer: terms.consumer.clone(),
                fence,
                since: now,
                until,
            };
            deliveries.push(Delivery {
                message: held.envelope.message.clone(),
                receipt: Receipt {
                    queue: terms.queue.clone(),
                    number,
                    fence,
                },
                attempt: held.charged,
                interrupted,
                lease: terms.lease,
            });
            self.put_back(number, held);
        }
        (deliveries, spent)
    }

    pub(crate) fn get(&self, number: u64) -> Option<&InFlightMessage<T>> {
        self.leased
            .get(&number)
            .or_else(|| self.waiting.get(&number))
    }

    /// Takes out the delivery of this receipt, unless it is stale.
    pub(crate) fn take(&mut self, receipt: &Receipt) -> Option<InFlightMessage<T>> {
        self.find(receipt)?;
        self.remove(receipt.number)
    }

    /// Puts a message back as it was taken out; a lease continues.
    pub(crate) fn put_back(&mut self, number: u64, held: InFlightMessage<T>) {
        if let State::Leased { until, .. } = &held.state {
            self.ends.insert((*until, number));
            self.leased.insert(number, held);
        } else {
            self.waiting.insert(number, held);
        }
    }

    /// Puts a delivery back uncharged.
    pub(crate) fn release(&mut self, number: u64, mut held: InFlightMessage<T>) {
        held.charged = held.charged.saturating_sub(1);
        self.wait(number, held);
    }

    fn wait(&mut self, number: u64, mut held: InFlightMessage<T>) {
        held.state = State::Waiting {
            since: Instant::now(),
        };
        self.waiting.insert(number, held);
    }

    /// Extends a lease; false for a stale receipt.
    pub(crate) fn extend(&mut self, receipt: &Receipt, lease: Duration) -> bool {
        let Some(mut held) = self.take(receipt) else {
            return false;
        };
        if let State::Leased { until, .. } = &mut held.state {
            *until = Instant::now() + lease;
        }
        self.put_back(receipt.number, held);
        true
    }

    /// Ends the leases of a consumer. Returns how many had not expired.
    pub(crate) fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        let now = Instant::now();
        let mut count = 0;
        for number in self.numbers(|held| held.consumer() == Some(gone)) {
            if let Some(held) = self.remove(number) {
                count += u64::from(!held.has_ended(now));
                self.wait(number, held);
            }
        }
        count
    }

    /// Takes out every waiting message.
    pub(crate) fn drain_ready(&mut self) -> Vec<InFlightMessage<T>> {
        let now = Instant::now();
        let expired: Vec<u64> = self.expired(now).collect();
        let mut ready = std::mem::take(&mut self.waiting);
        for number in expired {
            ready.extend(self.remove(number).map(|held| (number, held)));
        }
        ready.into_values().collect()
    }

    /// Takes out messages that waited too long for a consumer.
    pub(crate) fn drain_late(&mut self) -> Vec<InFlightMessage<T>> {
        let now = Instant::now();
        self.drain(|held| held.is_late(now))
    }

    /// Takes out everything.
    pub(crate) fn drain_all(&mut self) -> Vec<InFlightMessage<T>> {
        self.drain(|_| true)
    }

    /// Takes out the messages that match.
    pub(crate) fn drain(
        &mut self,
        which: impl Fn(&InFlightMessage<T>) -> bool,
    ) -> Vec<InFlightMessage<T>> {
        let found = self.numbers(which);
        found
            .into_iter()
            .filter_map(|number| self.remove(number))
            .collect()
    }

    /// Numbers of waiting and of leased messages.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let expired = self.expired(Instant::now()).count();
        let (ready, leased) = (self.waiting.len() + expired, self.leased.len() - expired);
        (ready as u64, leased as u64)
    }

    /// The leased messages.
    pub(crate) fn leased(&self) -> impl Iterator<Item = &InFlightMessage<T>> {
        let now = Instant::now();
        self.leased
            .values()
            .filter(move |held| !held.has_ended(now))
    }

    /// Enqueue time of the oldest message.
    pub(crate) fn oldest(&self) -> Option<Timestamp> {
        let all = self.waiting.values().chain(self.leased.values());
        all.map(|held| held.envelope.message.enqueued_at).min()
    }

    /// The longest time that a message has been ready here.
    pub(crate) fn longest_ready(&self) -> Option<Duration> {
        let since = self.waiting.values().filter_map(|held| match held.state {
            State::Waiting { since } => Some(since),
            State::Leased { .. } => None,
        });
        since.min().map(|since| since.elapsed())
    }

    /// Age of the oldest lease.
    pub(crate) fn longest_leased(&self) -> Option<Duration> {
        let since = self.leased().filter_map(|held| match held.state {
            State::Leased { since, .. } => Some(since),
            State::Waiting { .. } => None,
        });
        since.min().map(|since| since.elapsed())
    }

    /// Consumers with deliveries.
    pub(crate) fn consumers(&self) -> impl Iterator<Item = &ConsumerId> {
        self.leased.values().filter_map(InFlightMessage::consumer)
    }

    /// When the next lease expires.
    pub(crate) fn next_expiry(&self) -> Option<Instant> {
        let after = (Instant::now(), u64::MAX);
        self.ends.range(after..).next().map(|(end, _)| *end)
    }

    /// Messages with an expired lease, in order of expiry.
    fn expired(&self, now: Instant) -> impl Iterator<Item = u64> {
        let ended = self.ends.range(..=(now, u64::MAX));
        ended.map(|(_, number)| *number)
    }

    fn numbers(&self, which: impl Fn(&InFlightMessage<T>) -> bool) -> Vec<u64> {
        let all = self.waiting.iter().chain(&self.leased);
        let found = all.filter(|(_, held)| which(held));
        found.map(|(number, _)| *number).collect()
    }

    fn remove(&mut self, number: u64) -> Option<InFlightMessage<T>> {
        if let Some(held) = self.waiting.remove(&number) {
            return Some(held);
        }
        let held = self.leased.remove(&number)?;
        if let State::Leased { until, .. } = &held.state {
            self.ends.remove(&(*until, number));
        }
        Some(held)
    }

    fn find(&self, receipt: &Receipt) -> Option<&InFlightMessage<T>> {
        let held = self.leased.get(&receipt.number)?;
        match &held.state {
            State::Leased { fence, .. } if *fence == receipt.fence => Some(held),
            _ => None,
        }
    }
}

/// The error of a stale receipt.
pub(crate) fn stale(receipt: &Receipt) -> Error {
    Error::conflict(format!(
        "lease of message number {} of `{}` expired and the message was delivered again or returned",
        receipt.number, receipt.queue
    ))
}
