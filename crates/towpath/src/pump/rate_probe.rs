//! The rate at which a destination takes deliveries, found from its own refusals.
//!
//! After a refusal one delivery is under way at a time until the next refusal. The number of accepted deliveries between
//! two refusals, pauses included, is the rate of the destination; a little less is sent from then on, raised by two
//! percent a second.

use std::time::Duration;

use tokio::time::Instant;

use super::destination::Capacity;

/// The share of the measured rate that is sent after a refusal.
const BACK_OFF: f64 = 0.9;

/// By how much the rate grows in a second.
const GROWTH: f64 = 1.02;

/// Deliveries a second above which a rate is as good as none.
const UNLIMITED: f64 = 20_000.0;

/// The slowest rate: one delivery in ten seconds.
const SLOWEST: f64 = 0.1;

/// Delay before the next check for the end of another consumer's delivery.
const LOOK: Duration = Duration::from_millis(50);

/// Shortest time over which a rate is measured.
const SHORTEST: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct RateProbe {
    limit: Option<Limit>,
}

#[derive(Debug)]
struct Limit {
    /// Since the last refusal.
    since: Instant,
    served: u64,
    /// Deliveries a second at `since`; unknown until the second refusal.
    rate: Option<f64>,
    /// The next delivery may begin at this moment.
    next: Instant,
}

impl Limit {
    /// When the next delivery may begin; `None` for now.
    fn free_at(&self, now: Instant, under_way: usize) -> Option<Instant> {
        if now < self.next {
            return Some(self.next);
        }
        // The pump asks again when one ends.
        (self.rate.is_none() && under_way > 0).then(|| now + LOOK)
    }

    /// Deliveries a second now.
    fn rate(&self, now: Instant) -> Option<f64> {
        let since = now.saturating_duration_since(self.since).as_secs_f64();
        self.rate.map(|rate| rate * GROWTH.powf(since))
    }
}

impl RateProbe {
    pub(super) const fn is_limited(&self) -> bool {
        self.limit.is_some()
    }

    pub(super) fn room(&self, now: Instant, under_way: usize) -> Capacity {
        match &self.limit {
            None => Capacity::For(usize::MAX),
            Some(limit) => match limit.free_at(now, under_way) {
                Some(at) => Capacity::NotBefore(at),
                None => Capacity::For(1),
            },
        }
    }

    /// Takes a place, or says when to ask again.
    pub(super) fn take(&mut self, now: Instant, under_way: usize) -> Result<(), Instant> {
        let Some(limit) = &mut self.limit else {
            return Ok(());
        };
        if let Some(at) = limit.free_at(now, under_way) {
            return Err(at);
        }
        let Some(rate) = limit.rate(now) else {
            return Ok(());
        };
        if rate > UNLIMITED {
            self.limit = None;
        } else {
            limit.next = now + Duration::from_secs_f64(1.0 / rate);
        }
        Ok(())
    }

    pub(super) fn served(&mut self) {
        if let Some(limit) = &mut self.limit {
            limit.served += 1;
        }
    }

    pub(super) fn refused(&mut self, now: Instant) {
        let rate = self.limit.as_ref().and_then(|limit| {
            let elapsed = now.saturating_duration_since(limit.since);
            // Too short to measure: the previous rate holds.
            if elapsed < SHORTEST || limit.served == 0 {
                return limit.rate.map(|rate| rate / 2.0);
            }
            #[expect(
                clippy::cast_precision_loss,
                reason = "a count of messages within seconds"
            )]
            let served = limit.served as f64;
            Some(BACK_OFF * served / elapsed.as_secs_f64())
        });
        self.limit = Some(Limit {
            since: now,
            served: 0,
            rate: rate.map(|rate| rate.max(SLOWEST)),
            next: now,
        });
    }
}
