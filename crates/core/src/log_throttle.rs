//! Throttles repeated log lines: logs the first occurrence, then one line per interval with the count.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The shortest time between two lines, unless another one is given.
const EVERY: Duration = Duration::from_secs(60);

/// Occurrences since the last line.
#[derive(Debug)]
pub struct LogThrottle {
    since: Mutex<Since>,
    every: Duration,
}

#[derive(Debug, Default)]
struct Since {
    count: u64,
    logged: Option<Instant>,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self::new()
    }
}

impl LogThrottle {
    /// Of something that has not happened yet.
    pub const fn new() -> Self {
        Self::with_interval(EVERY)
    }

    /// The same with another interval.
    pub const fn with_interval(every: Duration) -> Self {
        let since = Since {
            count: 0,
            logged: None,
        };
        Self {
            since: Mutex::new(since),
            every,
        }
    }

    /// Counts once more. Gives the count since the last line when it is time for another one.
    pub fn count(&self) -> Option<u64> {
        self.count_at(Instant::now())
    }

    fn count_at(&self, now: Instant) -> Option<u64> {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        since.count += 1;
        if since
            .logged
            .is_some_and(|logged| now.saturating_duration_since(logged) < self.every)
        {
            return None;
        }
        since.logged = Some(now);
        Some(std::mem::take(&mut since.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_is_logged_and_then_each_minute_with_the_count() {
        let (throttle, now) = (LogThrottle::new(), Instant::now());
        assert_eq!(throttle.count_at(now), Some(1));
        for second in 1..60 {
            assert_eq!(throttle.count_at(now + Duration::from_secs(second)), None);
        }
        assert_eq!(throttle.count_at(now + EVERY), Some(60));
        assert_eq!(throttle.count_at(now + EVERY), None);
    }
}
