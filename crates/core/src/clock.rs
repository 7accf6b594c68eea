//! Time as a dependency, so that tests own it.

#![expect(
    clippy::disallowed_methods,
    reason = "the clock of the process reads it here"
)]

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// A moment of wall-clock time, in whole milliseconds since 1970-01-01T00:00:00Z.
///
/// Prints as RFC 3339 in UTC.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The moment this many milliseconds after the epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// This moment plus `duration`, kept to the millisecond, at most the last representable one.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    /// Time since `earlier`; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = i64::try_from(self.0).unwrap_or(i64::MAX);
        match jiff::Timestamp::from_millisecond(millis) {
            Ok(moment) => write!(f, "{moment:.3}"),
            Err(_) => write!(f, "{}ms", self.0),
        }
    }
}

/// Where time comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Wall-clock time: for delays, expiry and display. It may jump forward.
    fn now(&self) -> Timestamp;

    /// From now on `now` gives no earlier moment: `newest` was read from a store.
    fn raise(&self, newest: Timestamp) {
        _ = newest;
    }

    /// Lead of `now` over the machine's clock, which was set back.
    fn ahead(&self) -> Duration {
        Duration::ZERO
    }

    /// Time since this clock was made: for leases and ages. It never goes back.
    fn monotonic(&self) -> Duration;
}

/// The machine's clocks.
///
/// Wall-clock time follows steps forward and never goes back: after a step back it continues at its own pace, so that a
/// delay, an expiry or the refill of a limit keeps its length. Timestamps stored before a restart count as well, once
/// [`Clock::raise`] is called.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
    /// Offset added to the monotonic side, in milliseconds; it only grows.
    offset: AtomicU64,
}

impl SystemClock {
    /// A clock whose monotonic side starts now.
    #[expect(
        clippy::new_without_default,
        reason = "construction reads the clock, which a default should not"
    )]
    pub fn new() -> Self {
        Self {
            started: Instant::now(),
            offset: AtomicU64::new(0),
        }
    }

    /// `now` for this reading of the machine's clock.
    fn at(&self, wall: Timestamp) -> Timestamp {
        let elapsed = self.elapsed();
        let offset = wall.as_millis().saturating_sub(elapsed);
        let mut known = self.offset.load(Ordering::Relaxed);
        if known < offset {
            known = self.offset.fetch_max(offset, Ordering::Relaxed).max(offset);
        }
        Timestamp::from_millis(elapsed.saturating_add(known))
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX)
    }
}

/// Reading of the machine's wall clock.
fn wall() -> Timestamp {
    let elapsed = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp::default().after(elapsed)
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        self.at(wall())
    }

    fn raise(&self, newest: Timestamp) {
        self.at(newest);
    }

    fn ahead(&self) -> Duration {
        let wall = wall();
        self.at(wall).since(wall)
    }

    fn monotonic(&self) -> Duration {
        self.started.elapsed()
    }
}

/// A clock that moves only through its methods.
#[derive(Debug)]
pub struct ManualClock {
    wall: AtomicU64,
    monotonic: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `now`.
    pub fn at(now: Timestamp) -> Self {
        Self {
            wall: AtomicU64::new(now.as_millis()),
            monotonic: AtomicU64::new(0),
        }
    }

    /// Moves both sides forward by whole milliseconds.
    pub fn advance(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.wall.fetch_add(millis, Ordering::SeqCst);
        self.monotonic.fetch_add(millis, Ordering::SeqCst);
    }

    /// Sets wall-clock time alone, as an operator or NTP does.
    pub fn set_wall(&self, now: Timestamp) {
        self.wall.store(now.as_millis(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.wall.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_continues_at_its_own_rate_after_a_step_back() {
        let clock = SystemClock::new();
        let hour = Duration::from_secs(3_600);
        let noon = Timestamp::from_millis(1_800_000_000_000);
        let before = clock.at(noon.after(hour));
        std::thread::sleep(Duration::from_millis(5));
        let after = clock.at(noon);
        assert!(
            after.since(before) >= Duration::from_millis(4),
            "{after} {before}"
        );
        assert!(after.since(noon) < hour + Duration::from_secs(60));
        // A step forward is followed.
        assert!(clock.at(noon.after(2 * hour)) >= noon.after(2 * hour));
    }

    #[test]
    fn time_begins_after_stored_timestamps() {
        let clock = SystemClock::new();
        let stored = clock.now().after(Duration::from_secs(3_600));
        clock.raise(stored);
        assert!(clock.now() >= stored);
        assert!(clock.ahead() > Duration::from_secs(3_500));
    }
}
