//! What a pump measures, with its handles kept.

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use towpath_core::port::sink::Outcome;
use towpath_core::{Clock, Delivery, Timestamp};

use super::Metrics;

/// The metrics of one pump on one queue.
#[derive(Clone)]
pub struct PumpMetrics {
    done: Counter,
    retry: Counter,
    reject: Counter,
    sink_failures: Counter,
    process_duration: Histogram,
    end_to_end: Histogram,
    clock: std::sync::Arc<dyn Clock>,
}

impl PumpMetrics {
    /// The metrics of a pump on `queue`.
    pub fn new(metrics: &Metrics, queue: &str, clock: std::sync::Arc<dyn Clock>) -> Self {
        Self {
            done: metrics.delivery_counter(queue, "done"),
            retry: metrics.delivery_counter(queue, "retry"),
            reject: metrics.delivery_counter(queue, "reject"),
            sink_failures: metrics.sink_failures(queue),
            process_duration: metrics.process_duration(queue),
            end_to_end: metrics.end_to_end(queue),
            clock,
        }
    }

    /// Counts a batch that the sink could not take at all.
    pub fn sink_failed(&self) {
        self.sink_failures.inc();
    }

    /// Starts to measure the delivery of a batch.
    pub fn start(&self, batch: &[Delivery]) -> Timer<'_> {
        let enqueued_at = batch
            .iter()
            .map(|delivery| delivery.message.enqueued_at)
            .collect();
        Timer {
            metrics: self,
            began: Instant::now(),
            enqueued_at,
        }
    }
}

/// A delivery that is being measured; one that is given up is not counted.
pub struct Timer<'a> {
    metrics: &'a PumpMetrics,
    began: Instant,
    enqueued_at: Vec<Timestamp>,
}

impl Timer<'_> {
    /// Counts what became of the batch.
    pub fn finish(self, outcomes: &[Outcome]) {
        self.metrics
            .process_duration
            .observe(self.began.elapsed().as_secs_f64());
        let now = self.metrics.clock.now();
        for (outcome, enqueued_at) in outcomes.iter().zip(self.enqueued_at) {
            match outcome {
                Outcome::Done => {
                    self.metrics.done.inc();
                    self.metrics
                        .end_to_end
                        .observe(now.since(enqueued_at).as_secs_f64());
                }
                Outcome::Retry { .. } => _ = self.metrics.retry.inc(),
                Outcome::Reject { .. } => _ = self.metrics.reject.inc(),
            }
        }
    }
}
