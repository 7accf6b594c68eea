//! Keeps a reader near the writer of its own process: lines between them take memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath_core::port::Stream;
use towpath_core::{ErrorKind, GroupName, Result, StreamName};

/// Most lines that wait for the writer; a step has at most a tenth of that.
const AHEAD: u64 = 100_000;

/// Interval of checks whether the writer caught up by half.
const LOOK: Duration = Duration::from_millis(5);

/// The remaining room of the readers of one stream; cheap to clone.
#[derive(Clone)]
pub struct Backpressure {
    stream: Arc<dyn Stream>,
    name: StreamName,
    group: GroupName,
    room: Arc<AtomicU64>,
}

impl Backpressure {
    /// Of a stream, by the group of its writer.
    pub fn new(stream: Arc<dyn Stream>, name: StreamName, group: GroupName) -> Self {
        Self {
            stream,
            name,
            group,
            room: Arc::default(),
        }
    }

    /// Waits until this many lines may be sent. Does not wait when the stream cannot be inspected: sending reports the error.
    pub(super) async fn wait(&self, lines: u64) {
        let take = |room: u64| room.checked_sub(lines);
        while self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
            .is_err()
        {
            match self.waiting().await {
                Ok(waiting) if waiting > AHEAD / 2 => tokio::time::sleep(LOOK).await,
                Ok(waiting) => self.room.store(AHEAD - waiting, Ordering::Relaxed),
                Err(_) => return,
            }
        }
    }

    /// Lines in the stream that the writer has not finished.
    async fn waiting(&self) -> Result<u64> {
        match self.stream.stats(&self.name).await {
            Ok(stats) => {
                let mut groups = stats.groups.into_iter();
                let group = groups.find(|stats| stats.group == self.group);
                Ok(group.map_or(stats.entries, |group| group.lag))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }
}
