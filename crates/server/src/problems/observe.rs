//! One look at everything that the rules compare.

#![expect(
    clippy::disallowed_methods,
    reason = "steps of the machine's clock are observed here"
)]

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::time::Instant;
use towpath_core::port::{queue, stream};

use crate::telemetry::{Checked, Health, Metrics, Vitals, listing};

/// Timeout of a backend's list of queues and streams.
const DEADLINE: Duration = Duration::from_secs(2);

/// The process at one moment.
pub(super) struct Observation {
    pub(super) at: Instant,
    pub(super) wall: SystemTime,
    pub(super) checked: Checked,
    pub(super) queues: Vec<queue::Stats>,
    pub(super) streams: Vec<stream::Stats>,
    pub(super) vitals: Vitals,
}

impl Observation {
    /// Takes at most 2 s: a backend that does not answer by then is left out and reported.
    pub(super) async fn make(health: &Health, metrics: &Metrics) -> Self {
        let backends = health.backends();
        let listed = join_all(backends.iter().map(|backend| async {
            let listed = tokio::time::timeout(DEADLINE, listing(backend)).await;
            listed.unwrap_or_default()
        }));
        let (checked, listed) = tokio::join!(health.check(), listed);
        let (mut queues, mut streams) = (Vec::new(), Vec::new());
        for (some_queues, some_streams) in listed {
            queues.extend(some_queues);
            streams.extend(some_streams);
        }
        let vitals = metrics.vitals(DEADLINE).await;
        Self {
            at: Instant::now(),
            wall: SystemTime::now(),
            checked,
            queues,
            streams,
            vitals,
        }
    }
}
