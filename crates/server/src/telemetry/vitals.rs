//! The figures of metrics that the problem rules compare, and the metric that they set.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;

use super::disk_usage::DiskUsage;
use super::registry::{AgentState, Metrics, Outcome, ProblemLabels};
use super::{process, registry::set};

/// Figures of one moment.
#[derive(Debug, Clone, Default)]
pub struct Vitals {
    /// Deliveries since the start, by queue, of the queues that this process works on.
    pub deliveries: BTreeMap<String, Deliveries>,
    /// Events that were not sent yet.
    pub outbox_new: u64,
    /// Events that the relay stopped trying to send.
    pub outbox_failed: u64,
    /// Age of the oldest event that was not sent yet.
    pub outbox_age: Duration,
    /// Agents that do not report.
    pub agents_stale: u64,
    /// Agents that could not apply the configuration.
    pub agents_failed: u64,
    /// Agents that applied another version than they were sent.
    pub agents_behind: u64,
    /// Agents whose identity several processes use.
    pub agents_shared: u64,
    /// The disks that the process writes to.
    pub rooms: Vec<DiskUsage>,
    /// Open files, and how many there may be.
    pub files: (u64, u64),
}

/// Deliveries by outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deliveries {
    /// Acked.
    pub done: u64,
    /// To be tried again.
    pub failed: u64,
    /// Dead letters.
    pub dead: u64,
    /// Attempts at an unavailable sink or destination, released without a charge.
    pub unavailable: u64,
}

impl Deliveries {
    /// Those since an earlier moment.
    pub const fn since(self, before: Self) -> Self {
        Self {
            done: self.done.saturating_sub(before.done),
            failed: self.failed.saturating_sub(before.failed),
            dead: self.dead.saturating_sub(before.dead),
            unavailable: self.unavailable.saturating_sub(before.unavailable),
        }
    }

    /// The sum of two queues.
    pub const fn and(self, other: Self) -> Self {
        Self {
            done: self.done + other.done,
            failed: self.failed + other.failed,
            dead: self.dead + other.dead,
            unavailable: self.unavailable + other.unavailable,
        }
    }

    /// Every attempt.
    pub const fn all(self) -> u64 {
        self.done + self.not_done()
    }

    /// Attempts that did not succeed.
    pub const fn not_done(self) -> u64 {
        self.failed + self.dead + self.unavailable
    }
}

impl Metrics {
    /// The figures now. Disks that do not respond `within` this time are left out.
    pub async fn vitals(&self, within: Duration) -> Vitals {
        let rooms = tokio::time::timeout(within, self.0.disks.look()).await;
        let ours = self.0.shown.ours().into_iter();
        let deliveries = ours.map(|queue| {
            let count = |outcome| {
                let queue = queue.clone();
                let counter = self.0.deliveries.get(&Outcome { queue, outcome });
                counter.map_or(0, |counter| counter.get())
            };
            let counts = Deliveries {
                done: count("done"),
                failed: count("retry"),
                dead: count("reject"),
                unavailable: count("unavailable"),
            };
            (queue, counts)
        });
        let agents = |state| {
            let agents = self.0.fleet_agents.get(&AgentState { state });
            agents.map_or(0, |gauge| gauge_value(&gauge))
        };
        Vitals {
            deliveries: deliveries.collect(),
            outbox_new: gauge_value(&self.0.outbox_new),
            outbox_failed: gauge_value(&self.0.outbox_failed),
            outbox_age: Duration::from_secs(gauge_value(&self.0.outbox_oldest_age)),
            agents_stale: agents("stale"),
            agents_failed: agents("failed"),
            agents_behind: agents("behind"),
            agents_shared: agents("shared"),
            rooms: rooms.unwrap_or_default(),
            files: process::files(),
        }
    }

    /// Puts these problems in place of the last ones: names of rules, and subjects.
    pub fn problems<'a>(&self, problems: impl Iterator<Item = (&'static str, &'a str)>) {
        self.0.problems.clear();
        for (problem, subject) in problems {
            let labels = ProblemLabels {
                problem,
                subject: subject.to_owned(),
            };
            set(&self.0.problems, &labels, 1);
        }
    }
}

fn gauge_value(gauge: &Gauge) -> u64 {
    u64::try_from(gauge.get()).unwrap_or_default()
}
