//! Counts and log messages of a delivery loop.

use std::sync::Arc;
use std::time::Duration;

use towpath_core::log_throttle::LogThrottle;
use towpath_core::port::queue::Disposition;
use towpath_core::{Clock, Delivery, Timestamp};
use tracing::warn;

/// Where a delivery loop counts; by default nowhere.
pub trait Counters: Send + Sync {
    /// Deliveries that ended: `done`, `retry`, `reject`, `lost` (their lease) or `unavailable` (their destination).
    fn ended(&self, outcome: &'static str, deliveries: u64) {
        let _ = (outcome, deliveries);
    }

    /// A batch that the sink did not accept, or a delivery to an unavailable destination.
    fn sink_failed(&self) {}

    /// The time of a sink or handler for a batch or a message.
    fn sink_took(&self, elapsed: Duration) {
        let _ = elapsed;
    }

    /// The time from enqueue to done.
    fn end_to_end(&self, age: Duration) {
        let _ = age;
    }
}

/// Counts nothing.
impl Counters for () {}

/// The metrics of one pump on one queue.
#[derive(Clone)]
pub struct PumpMetrics {
    counters: Arc<dyn Counters>,
    clock: Arc<dyn Clock>,
    queue: String,
    throttles: Arc<LogThrottles>,
}

/// When failed deliveries and dead letters were logged.
struct LogThrottles {
    failed: LogThrottle,
    dead: LogThrottle,
}

impl Default for LogThrottles {
    fn default() -> Self {
        Self {
            failed: LogThrottle::new(),
            // Each is a line, but for floods.
            dead: LogThrottle::with_interval(Duration::from_secs(1)),
        }
    }
}

impl PumpMetrics {
    /// The metrics of a pump on `queue`.
    pub fn new(counters: Arc<dyn Counters>, queue: &str, clock: Arc<dyn Clock>) -> Self {
        Self {
            counters,
            clock,
            queue: queue.to_owned(),
            throttles: Arc::default(),
        }
    }

    /// Counts a batch of `messages` that the sink did not accept, or one delivery to an unavailable destination.
    pub(super) fn sink_failed(&self, messages: usize) {
        self.counters.sink_failed();
        self.counters.ended("unavailable", messages as u64);
    }

    /// Measures the sink's time for a batch.
    pub(super) fn sink_took(&self, elapsed: Duration) {
        self.counters.sink_took(elapsed);
    }

    /// The moment, by the clock that ages are measured with.
    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Counts the outcome of a delivery; a released one is not counted.
    pub(super) fn settled(&self, delivery: &Delivery, disposition: &Disposition) {
        match disposition {
            Disposition::Ack => {
                self.counters.ended("done", 1);
                let age = self.clock.now().since(delivery.message.enqueued_at);
                self.counters.end_to_end(age);
            }
            // Without the reason: it may repeat the payload, and is kept with the message.
            Disposition::Retry { .. } => {
                self.counters.ended("retry", 1);
                if let Some(count) = self.throttles.failed.count() {
                    let attempt = delivery.attempt;
                    warn!(queue = self.queue, count, attempt, "deliveries failed");
                }
            }
            Disposition::DeadLetter { reason } => {
                self.counters.ended("reject", 1);
                if let Some(count) = self.throttles.dead.count() {
                    let (id, attempts) = (delivery.message.id, delivery.attempt);
                    let (queue, reason) = (&self.queue, summary(reason));
                    warn!(queue, %id, attempts, reason, count, "message became a dead letter");
                }
            }
            Disposition::Release { .. } => {}
        }
    }

    /// Counts a delivery whose outcome did not count, because its lease was lost.
    pub(super) fn lease_lost(&self) {
        self.counters.ended("lost", 1);
    }
}

/// The beginning of a reason: text behind a colon may repeat the payload.
fn summary(reason: &str) -> &str {
    let end = reason.find([':', '\n']).unwrap_or(reason.len()).min(120);
    &reason[..reason.floor_char_boundary(end)]
}
