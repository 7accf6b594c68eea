//! When a measurement ends: after its time, or after its messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Shared by every caller of a measurement.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    until: Instant,
    left: Arc<AtomicU64>,
}

impl Limit {
    /// A limit of this length from now on, and of this number of messages.
    pub(crate) fn new(length: Duration, messages: Option<u64>) -> Self {
        Self {
            until: Instant::now() + length,
            left: Arc::new(AtomicU64::new(messages.unwrap_or(u64::MAX))),
        }
    }

    /// Whether a call with this number of messages may still be made. The last one may pass the limit by less than a batch.
    pub(crate) fn take(&self, messages: usize) -> bool {
        let took = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left > 0).then(|| left.saturating_sub(messages as u64))
            });
        took.is_ok() && Instant::now() < self.until
    }
}
