//! Metrics of a pump, with their handles kept.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use towpath::pump::{Counters, PumpMetrics};
use towpath_core::Clock;

use super::Metrics;

/// Outcomes of deliveries.
const OUTCOMES: [&str; 5] = ["done", "retry", "reject", "lost", "unavailable"];

/// The metrics of one pump on one queue.
struct QueueCounters {
    outcomes: [Counter; OUTCOMES.len()],
    sink_failures: Counter,
    process_duration: Histogram,
    end_to_end: Histogram,
}

impl Metrics {
    /// The metrics of a pump on `queue`.
    pub fn pump(&self, queue: &str, clock: Arc<dyn Clock>) -> PumpMetrics {
        let counters = QueueCounters {
            outcomes: OUTCOMES.map(|outcome| self.delivery_counter(queue, outcome)),
            sink_failures: self.sink_failures(queue),
            process_duration: self.process_duration(queue),
            end_to_end: self.end_to_end(queue),
        };
        PumpMetrics::new(Arc::new(counters), queue, clock)
    }
}

impl Counters for QueueCounters {
    fn ended(&self, outcome: &'static str, deliveries: u64) {
        if let Some(at) = OUTCOMES.iter().position(|known| *known == outcome) {
            self.outcomes[at].inc_by(deliveries);
        }
    }

    fn sink_failed(&self) {
        self.sink_failures.inc();
    }

    fn sink_took(&self, elapsed: Duration) {
        self.process_duration.observe(elapsed.as_secs_f64());
    }

    fn end_to_end(&self, age: Duration) {
        self.end_to_end.observe(age.as_secs_f64());
    }
}
