//! Counters of a queue since this process opened its broker, where the broker keeps none.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use towpath_core::port::queue::Stats;
use towpath_core::{ConsumerId, QueueName};

/// A consumer that leased within this time counts as present.
const PRESENT: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) acked: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) dropped: AtomicU64,
    /// When each leased last.
    consumers: Mutex<HashMap<ConsumerId, Instant>>,
}

impl Counters {
    /// Records a lease of a consumer. Returns the time since its previous one.
    pub(crate) fn saw(&self, consumer: &ConsumerId) -> Option<Duration> {
        let before = self.seen().insert(consumer.clone(), Instant::now());
        before.map(|before| before.elapsed())
    }

    /// Removes a disconnected consumer.
    pub(crate) fn forget(&self, consumer: &ConsumerId) {
        self.seen().remove(consumer);
    }

    /// The stats kept here; `holding` are the consumers with deliveries.
    pub(crate) fn stats(&self, queue: &QueueName, holding: Vec<ConsumerId>) -> Stats {
        let total = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut consumers: BTreeSet<ConsumerId> = holding.into_iter().collect();
        let mut seen = self.seen();
        seen.retain(|_, at| at.elapsed() < PRESENT);
        consumers.extend(seen.keys().cloned());
        Stats {
            queue: queue.clone(),
            ready: 0,
            delayed: 0,
            leased: 0,
            dead: 0,
            enqueued: 0,
            acked: total(&self.acked),
            retried: total(&self.retried),
            dropped: total(&self.dropped),
            duplicates: 0,
            oldest_age: None,
            oldest_ready_age: None,
            oldest_leased_age: None,
            oldest_delayed_age: None,
            consumers: consumers.len() as u64,
            paused: false,
        }
    }

    /// Derives `enqueued` from the messages present, acked and dropped.
    pub(crate) fn balanced(mut stats: Stats) -> Stats {
        let there = stats.ready + stats.delayed + stats.leased + stats.dead;
        stats.enqueued = there + stats.acked + stats.dropped;
        stats
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, HashMap<ConsumerId, Instant>> {
        self.consumers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
