//! Medians, their spread, and ratios that say when they mean nothing.

use serde::Serialize;

use super::target::Round;

/// A figure over all rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Figure {
    /// The median.
    pub(crate) median: f64,
    /// Half of the rounds lie between the quartiles.
    pub(crate) low: f64,
    /// The upper quartile.
    pub(crate) high: f64,
}

/// One figure of the first target by that of another, in the same round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Ratio {
    /// The median over the rounds.
    pub(crate) median: f64,
    /// Whether the spread of either side is larger than the difference of their medians: then it says nothing.
    pub(crate) uncertain: bool,
}

/// The first target by another one.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Ratios {
    /// Messages a second: over 1 the first is faster.
    pub(crate) per_second: Ratio,
    /// Median latency: under 1 the first is quicker.
    pub(crate) p50_ms: Ratio,
    /// The same at the 99th percentile.
    pub(crate) p99_ms: Ratio,
    /// CPU per message of client and server together: under 1 the first is cheaper.
    pub(crate) cpu_us: Ratio,
}

/// The figures of a target under a workload.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Measured {
    /// The target.
    pub(crate) target: String,
    /// Messages a second.
    pub(crate) per_second: Figure,
    /// Latency of a call at the median, in milliseconds.
    pub(crate) p50_ms: Figure,
    /// At the 99th percentile.
    pub(crate) p99_ms: Figure,
    /// CPU microseconds per message of this process: the client, and a store or an API inside of it.
    pub(crate) client_cpu_us: Figure,
    /// CPU microseconds per message of the server, where there is one that says it.
    pub(crate) server_cpu_us: Option<Figure>,
    /// Acknowledged messages, all rounds.
    pub(crate) messages: u64,
    /// Acknowledged messages that never came. Anything but 0 is a defect.
    pub(crate) lost: u64,
    /// Messages that came more than once without a reason. Anything but 0 is a defect.
    pub(crate) duplicated: u64,
    /// The first target by this one; nothing for the first itself.
    pub(crate) first_by_this: Option<Ratios>,
}

/// A workload and every target that can do it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Compared {
    /// As on the command line.
    pub(crate) workload: String,
    /// Concurrent callers or connections.
    pub(crate) callers: usize,
    /// Messages in one call.
    pub(crate) batch: usize,
    /// In the order of the command line.
    pub(crate) targets: Vec<Measured>,
}

/// The meaning of a target's acknowledgement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Stated {
    /// The target.
    pub(crate) target: String,
    /// As it says itself.
    pub(crate) durability: String,
}

/// A whole comparison.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// Interleaved rounds of each workload.
    pub(crate) rounds: usize,
    /// Every target.
    pub(crate) targets: Vec<Stated>,
    /// Every workload.
    pub(crate) workloads: Vec<Compared>,
}

impl Report {
    /// Whether any target lost or doubled something.
    pub(crate) fn is_defect(&self) -> bool {
        let mut all = self.workloads.iter().flat_map(|one| &one.targets);
        all.any(|target| target.lost > 0 || target.duplicated > 0)
    }
}

impl Measured {
    /// The rounds of a target, beside those of the first one.
    pub(super) fn new(target: &str, rounds: &[Round], first: Option<&[Round]>) -> Self {
        let figure = |value: fn(&Round) -> f64| Figure::new(rounds.iter().map(value).collect());
        let server = rounds.iter().map(|round| round.server_cpu_us);
        let server: Option<Vec<f64>> = server.collect();
        Self {
            target: target.to_owned(),
            per_second: figure(|round| round.row.per_second),
            p50_ms: figure(|round| round.row.p50_ms),
            p99_ms: figure(|round| round.row.p99_ms),
            client_cpu_us: figure(|round| round.row.cpu_us),
            server_cpu_us: server.map(Figure::new),
            messages: rounds.iter().map(|round| round.row.messages).sum(),
            lost: rounds.iter().map(|round| round.row.lost).sum(),
            duplicated: rounds.iter().map(|round| round.row.duplicated).sum(),
            first_by_this: first.map(|first| Ratios {
                per_second: Ratio::new(first, rounds, |round| round.row.per_second),
                p50_ms: Ratio::new(first, rounds, |round| round.row.p50_ms),
                p99_ms: Ratio::new(first, rounds, |round| round.row.p99_ms),
                cpu_us: Ratio::new(first, rounds, |round| {
                    round.row.cpu_us + round.server_cpu_us.unwrap_or(0.0)
                }),
            }),
        }
    }
}

impl Figure {
    /// Of at least one value.
    fn new(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let last = values.len().saturating_sub(1);
        let at = |index: usize| values.get(index).copied().unwrap_or(0.0);
        Self {
            median: f64::midpoint(at(last / 2), at(last.div_ceil(2))),
            low: at(last / 4),
            high: at(last - last / 4),
        }
    }

    fn spread(self) -> f64 {
        self.high - self.low
    }
}

impl Ratio {
    fn new(first: &[Round], other: &[Round], value: fn(&Round) -> f64) -> Self {
        let pair = |rounds: &[Round]| rounds.iter().map(value).collect::<Vec<f64>>();
        Self::of(&pair(first), &pair(other))
    }

    /// Round by round.
    fn of(first: &[f64], other: &[f64]) -> Self {
        let pairs = first.iter().zip(other);
        let median = Figure::new(pairs.map(|(first, other)| first / other).collect()).median;
        let (first, other) = (Figure::new(first.to_vec()), Figure::new(other.to_vec()));
        let difference = (first.median - other.median).abs();
        Self {
            median,
            uncertain: first.spread().max(other.spread()) > difference,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_the_median_between_its_quartiles() {
        let figure = Figure::new(vec![9.0, 1.0, 3.0, 2.0, 4.0]);
        assert_eq!((figure.low, figure.median, figure.high), (2.0, 3.0, 4.0));
        assert_eq!(Figure::new(vec![1.0, 2.0]).median, 1.5);
        assert_eq!(Figure::new(vec![7.0]).high, 7.0);
    }

    #[test]
    fn a_ratio_is_taken_round_by_round_and_flagged_when_the_spread_is_larger_than_the_difference() {
        // The machine slows down: each round still says twice.
        let slowing = Ratio::of(
            &[80.0, 40.0, 20.0, 10.0, 4.0],
            &[40.0, 20.0, 10.0, 5.0, 2.0],
        );
        assert_eq!(
            slowing,
            Ratio {
                median: 2.0,
                uncertain: true
            }
        );
        let clear = Ratio::of(
            &[20.0, 21.0, 20.0, 19.0, 20.0],
            &[10.0, 10.0, 11.0, 10.0, 9.0],
        );
        assert_eq!(
            clear,
            Ratio {
                median: 2.0,
                uncertain: false
            }
        );
    }
}
