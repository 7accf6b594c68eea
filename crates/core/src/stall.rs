//! Detects a thread that waits for a hung disk.
//!
//! A hung disk returns no error, and the thread that called it is blocked, so another thread has to observe it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Error;

/// The calls of one thread to the disk, as other threads see them.
#[derive(Debug)]
pub struct Watch {
    started: Instant,
    /// Milliseconds from `started` to the beginning of the call, plus one; 0 while there is none.
    since: AtomicU64,
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

impl Watch {
    /// Without a call.
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            since: AtomicU64::new(0),
        }
    }

    /// Runs a call to the disk.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        let _ended = self.begin();
        work()
    }

    /// A call that lasts until this is dropped.
    pub fn begin(&self) -> impl Drop + '_ {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.since
            .store(millis.saturating_add(1), Ordering::Relaxed);
        Ended(self)
    }

    /// The present call may take as long as it likes.
    pub fn pause(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// Duration of the current call.
    pub fn lasts(&self) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed).checked_sub(1)?;
        Some(
            self.started
                .elapsed()
                .saturating_sub(Duration::from_millis(since)),
        )
    }
}

/// The answer of a request that waited `limit` for the disk.
pub fn unknown(limit: Duration) -> Error {
    Error::outcome_unknown(format!(
        "the disk did not confirm within {limit:?}: the outcome is unknown; repeat with the same idempotency key, or query the result"
    ))
}

struct Ended<'a>(&'a Watch);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.since.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn call_is_seen_while_it_lasts() {
        let watch = Watch::new();
        assert_eq!(watch.lasts(), None);
        watch.during(|| {
            std::thread::sleep(Duration::from_millis(5));
            assert!(watch.lasts().unwrap() >= Duration::from_millis(4));
        });
        assert_eq!(watch.lasts(), None);
    }
}
