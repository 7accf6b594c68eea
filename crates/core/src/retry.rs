//! Retry policy as data: number of attempts and delays between them.

use std::time::Duration;

use rand::Rng;
use serde::{Deserialize, Serialize};

/// Retry policy of a failed delivery.
///
/// The delay before attempt `n + 1` is drawn evenly from half of
/// `min(max, first × 2^(n-1))` to all of it: exponential backoff with equal
/// jitter, so that a number of attempts stands for a least span of time.
///
/// Source: AWS Architecture Blog, "Exponential Backoff And Jitter"; Standard
/// Webhooks, "Retries", for a default that spans more than a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Attempts in all, the first included; 1 or more. After the last one the message is a dead letter.
    pub attempts: u32,
    /// Upper bound of the first delay.
    pub first: Duration,
    /// Upper bound of every delay.
    pub max: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            attempts: 25,
            first: Duration::from_secs(1),
            max: Duration::from_secs(6 * 60 * 60),
        }
    }
}

impl Policy {
    /// A policy without a last attempt: for loops around a dependency that must come back.
    pub const fn forever(first: Duration, max: Duration) -> Self {
        Self {
            attempts: u32::MAX,
            first,
            max,
        }
    }

    /// Whether attempt number `attempt` (1 for the first) was the last one.
    pub const fn is_spent(&self, attempt: u32) -> bool {
        attempt >= self.attempts
    }

    /// The longest delay that may follow attempt number `attempt`.
    pub fn longest_delay(&self, attempt: u32) -> Duration {
        let doublings = attempt.saturating_sub(1).min(31);
        self.first.saturating_mul(1 << doublings).min(self.max)
    }

    /// A delay drawn for attempt number `attempt`.
    pub fn next_delay(&self, attempt: u32, rng: &mut impl Rng) -> Duration {
        let longest = u64::try_from(self.longest_delay(attempt).as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(rng.random_range(longest / 2..=longest))
    }

    /// The least time between the first attempt and the last one.
    pub fn span(&self) -> Duration {
        let mut span = Duration::ZERO;
        for attempt in 1..self.attempts {
            let delay = self.longest_delay(attempt);
            if delay == self.max {
                let rest = self.attempts - attempt;
                return span.saturating_add((delay / 2).saturating_mul(rest));
            }
            span += delay / 2;
        }
        span
    }
}

/// The delays between failures in a row of one loop.
#[derive(Debug, Clone)]
pub struct Backoff {
    policy: Policy,
    failures: u32,
}

impl Backoff {
    /// No failure so far.
    pub const fn new(policy: Policy) -> Self {
        Self {
            policy,
            failures: 0,
        }
    }

    /// Counts a failure, and draws the delay until the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        self.failures = self.failures.saturating_add(1);
        // Drawn here, because the source of randomness must not live across the caller's await.
        self.policy.next_delay(self.failures, &mut rand::rng())
    }

    /// Begins with the first delay again, after a success.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_maximum() {
        let policy = Policy {
            attempts: 5,
            first: Duration::from_secs(1),
            max: Duration::from_secs(6),
        };
        let longest: Vec<u64> = (1..=5).map(|n| policy.longest_delay(n).as_secs()).collect();
        assert_eq!(longest, [1, 2, 4, 6, 6]);
        assert!(!policy.is_spent(4));
        assert!(policy.is_spent(5));
    }

    #[test]
    fn a_backoff_grows_with_each_failure_until_it_is_reset() {
        let policy = Policy::forever(Duration::from_secs(1), Duration::from_secs(30));
        let mut backoff = Backoff::new(policy);
        for failure in 1..=8 {
            let longest = policy.longest_delay(failure);
            let delay = backoff.next_delay();
            assert!(
                (longest / 2..=longest).contains(&delay),
                "{failure}: {delay:?}"
            );
        }
        backoff.reset();
        assert!(backoff.next_delay() <= policy.first);
    }

    #[test]
    fn the_default_policy_spans_a_day() {
        let policy = Policy::default();
        let shortest = (1..policy.attempts).map(|attempt| policy.longest_delay(attempt) / 2);
        assert_eq!(policy.span(), shortest.sum());
        assert!(policy.span() >= Duration::from_secs(24 * 60 * 60));
    }

    #[test]
    fn a_drawn_delay_is_between_half_of_the_longest_and_all_of_it() {
        let policy = Policy::forever(Duration::from_millis(10), Duration::from_secs(1));
        for attempt in [1, 2, 7, 40, u32::MAX] {
            let delay = policy.next_delay(attempt, &mut rand::rng());
            let longest = policy.longest_delay(attempt);
            assert!(
                (longest / 2..=longest).contains(&delay),
                "attempt {attempt}: {delay:?}"
            );
        }
    }
}
