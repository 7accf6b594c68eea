//! Metrics of a pump, with their handles kept.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use towpath_core::log_throttle::LogThrottle;
use towpath_core::port::queue::Disposition;
use towpath_core::{Clock, Delivery, Timestamp};
use tracing::warn;

use super::Metrics;

/// The metrics of one pump on one queue.
#[derive(Clone)]
pub struct PumpMetrics {
    done: Counter,
    retry: Counter,
    reject: Counter,
    lost: Counter,
    unavailable: Counter,
    sink_failures: Counter,
    process_duration: Histogram,
    end_to_end: Histogram,
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
    pub fn new(metrics: &Metrics, queue: &str, clock: Arc<dyn Clock>) -> Self {
        Self {
            done: metrics.delivery_counter(queue, "done"),
            retry: metrics.delivery_counter(queue, "retry"),
            reject: metrics.delivery_counter(queue, "reject"),
            lost: metrics.delivery_counter(queue, "lost"),
            unavailable: metrics.delivery_counter(queue, "unavailable"),
            sink_failures: metrics.sink_failures(queue),
            process_duration: metrics.process_duration(queue),
            end_to_end: metrics.end_to_end(queue),
            clock,
            queue: queue.to_owned(),
            throttles: Arc::default(),
        }
    }

    /// Counts a batch of `messages` that the sink did not accept, or one delivery to an unavailable destination.
    pub fn sink_failed(&self, messages: usize) {
        self.sink_failures.inc();
        self.unavailable.inc_by(messages as u64);
    }

    /// Measures the sink's time for a batch.
    pub fn sink_took(&self, elapsed: Duration) {
        self.process_duration.observe(elapsed.as_secs_f64());
    }

    /// The moment, by the clock that ages are measured with.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Counts the outcome of a delivery; a released one is not counted.
    pub fn settled(&self, delivery: &Delivery, disposition: &Disposition) {
        match disposition {
            Disposition::Ack => {
                self.done.inc();
                let age = self.clock.now().since(delivery.message.enqueued_at);
                self.end_to_end.observe(age.as_secs_f64());
            }
            // Without the reason: it may repeat the payload, and is kept with the message.
            Disposition::Retry { .. } => {
                self.retry.inc();
                if let Some(count) = self.throttles.failed.count() {
                    let attempt = delivery.attempt;
                    warn!(queue = self.queue, count, attempt, "deliveries failed");
                }
            }
            Disposition::DeadLetter { reason } => {
                self.reject.inc();
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
    pub fn lease_lost(&self) {
        self.lost.inc();
    }
}

/// The beginning of a reason: text behind a colon may repeat the payload.
fn summary(reason: &str) -> &str {
    let end = reason.find([':', '\n']).unwrap_or(reason.len()).min(120);
    &reason[..reason.floor_char_boundary(end)]
}
