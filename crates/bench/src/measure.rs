//! Latencies, CPU time, and the row they make.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::Row;

/// Collects the samples of one task; merged at the end.
#[derive(Debug, Default)]
pub(crate) struct Latencies(Vec<Duration>);

impl Latencies {
    pub(crate) fn record(&mut self, since: Instant) {
        self.0.push(since.elapsed());
    }

    pub(crate) fn push(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The latency that `share` (0 to 1) of the calls did not pass, in milliseconds; call after [`Latencies::sort`].
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an index into a few million samples"
    )]
    pub(crate) fn at(&self, share: f64) -> f64 {
        let index = ((self.0.len() as f64 * share) as usize).min(self.0.len().saturating_sub(1));
        self.0
            .get(index)
            .map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    }

    pub(crate) fn sort(&mut self) {
        self.0.sort_unstable();
    }
}

/// CPU time of this process so far, all threads.
pub(crate) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// A measurement under way.
pub(crate) struct Measurement {
    what: &'static str,
    durability: String,
    callers: usize,
    batch: usize,
    began: Instant,
    cpu: Duration,
}

impl Measurement {
    pub(crate) fn start(
        what: &'static str,
        durability: &str,
        callers: usize,
        batch: usize,
    ) -> Self {
        Self {
            what,
            durability: durability.to_owned(),
            callers,
            batch,
            began: Instant::now(),
            cpu: cpu_time(),
        }
    }

    /// The row of `messages` messages; `ended` is when the last was done, by default now.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
    pub(crate) fn finish(
        self,
        messages: u64,
        mut latencies: Latencies,
        ended: Option<Instant>,
    ) -> Row {
        let elapsed = ended.unwrap_or_else(Instant::now) - self.began;
        let cpu = cpu_time().saturating_sub(self.cpu);
        latencies.sort();
        Row {
            what: self.what.to_owned(),
            durability: self.durability,
            callers: self.callers,
            batch: self.batch,
            messages,
            per_second: messages as f64 / elapsed.as_secs_f64(),
            p50_ms: latencies.at(0.5),
            p99_ms: latencies.at(0.99),
            p999_ms: latencies.at(0.999),
            max_ms: latencies.at(1.0),
            cpu_us: cpu.as_secs_f64() * 1e6 / messages.max(1) as f64,
            lost: 0,
            duplicated: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_values_at_their_rank() {
        let mut latencies = Latencies((1..=1000).rev().map(Duration::from_millis).collect());
        latencies.sort();
        assert_eq!(
            (latencies.at(0.5), latencies.at(0.99), latencies.at(0.999)),
            (501.0, 991.0, 1000.0)
        );
        assert_eq!(Latencies::default().at(0.5), 0.0);
    }
}
