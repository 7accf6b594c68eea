//! One look at everything that the rules compare.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::time::Instant;
use towpath_core::port::{queue, stream};

use crate::telemetry::{Checked, Health, Metrics, Vitals};

/// How long a backend may take to list its queues and streams.
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
    /// Takes at most 2 s: what does not answer by then is left out, and its backend is reported.
    pub(super) async fn make(health: &Health, metrics: &Metrics) -> Self {
        let backends = health.backends();
        let listed = join_all(backends.iter().map(|backend| async {
            let listing = async {
                let queues = match &backend.queue {
                    Some(queue) => queue.list().await.unwrap_or_default(),
                    None => Vec::new(),
                };
                let streams = match &backend.stream {
                    Some(stream) => stream.list().await.unwrap_or_default(),
                    None => Vec::new(),
                };
                (queues, streams)
            };
            let listed = tokio::time::timeout(DEADLINE, listing).await;
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
