//! The two limiter algorithms, in exact integers, as pure functions over a small state.
//!
//! Every backend runs these same rules (some as a script of their own, tested
//! against these). Amounts are millionths of a token, so fractions are kept
//! and nothing is rounded away.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// An amount of tokens, in millionths.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Amount(u64);

impl Amount {
    /// `tokens` whole tokens, at most 2^64 millionths.
    pub const fn whole(tokens: u64) -> Self {
        Self(tokens.saturating_mul(1_000_000))
    }

    /// `millionths` millionths of a token.
    pub const fn micros(micros: u64) -> Self {
        Self(micros)
    }

    /// In millionths.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// As a number of tokens, for people and JSON.
    #[expect(
        clippy::cast_precision_loss,
        reason = "for display; the exact value is in millionths"
    )]
    pub fn as_f64(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// From a number of tokens, rounded to the nearest millionth.
    ///
    /// # Errors
    /// `Invalid` for NaN, infinities, negative numbers and numbers over 10^12.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "range checked before the cast"
    )]
    pub fn from_f64(tokens: f64) -> Result<Self> {
        if (0.0..=1e12).contains(&tokens) {
            Ok(Self((tokens * 1e6).round() as u64))
        } else {
            Err(Error::invalid(format!(
                "`{tokens}` is not an amount of tokens; it must be 0 to 10^12"
            )))
        }
    }
}

/// A limit's rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "algorithm")]
pub enum Policy {
    /// Holds up to `capacity` tokens and gains `refill` per `period`, continuously. Starts full.
    TokenBucket {
        /// Most tokens it holds.
        capacity: Amount,
        /// Refill per period.
        refill: Amount,
        /// Length of the period; 1 ms or more.
        period: Duration,
    },
    /// At most `limit` in any stretch of `window`.
    ///
    /// Takes are counted in sixtieths of the window and a sixtieth counts
    /// until all of it has left the window: never over the limit, at most a
    /// sixtieth of the window late in giving back.
    SlidingWindow {
        /// Most tokens in a window.
        limit: Amount,
        /// Length of the window; 60 ms or more.
        window: Duration,
    },
}

/// Slots a sliding window is counted in.
const SLOTS: u64 = 60;

impl Policy {
    /// The largest amount that can ever be taken at once.
    pub const fn capacity(&self) -> Amount {
        match self {
            Self::TokenBucket { capacity, .. } => *capacity,
            Self::SlidingWindow { limit, .. } => *limit,
        }
    }

    /// Checks the rule and a wanted amount against it.
    ///
    /// # Errors
    /// `Invalid` for a zero capacity, refill or limit, a period under 1 ms, a window under 60 ms,
    /// periods and windows over a year, or an amount over the capacity.
    pub fn check(&self, amount: Amount) -> Result<()> {
        let (least, span) = match self {
            Self::TokenBucket { refill, period, .. } => {
                if refill.0 == 0 {
                    return Err(Error::invalid(
                        "the refill of a token bucket must be over zero",
                    ));
                }
                (Duration::from_millis(1), *period)
            }
            Self::SlidingWindow { window, .. } => (Duration::from_millis(SLOTS), *window),
        };
        if self.capacity().0 == 0 {
            return Err(Error::invalid("the capacity of a limit must be over zero"));
        }
        if span < least || span > Duration::from_secs(366 * 86_400) {
            return Err(Error::invalid(format!(
                "a limit over {span:?} is out of range; it must be {least:?} to one year"
            )));
        }
        if amount > self.capacity() {
            return Err(Error::invalid(format!(
                "amount {} is over the capacity {}; it can never be allowed",
                amount.as_f64(),
                self.capacity().as_f64()
            )));
        }
        Ok(())
    }
}

/// State of a limit after a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Whether the amount was (or, for a peek, could be) taken.
    pub allowed: bool,
    /// Tokens that can be taken now.
    pub remaining: Amount,
    /// Time until the same request would be allowed, if no other request takes tokens; zero when it was allowed.
    pub retry_after: Duration,
    /// Time until the limit is full again, if no request takes tokens.
    pub reset_after: Duration,
}

/// A limit's history, which a store keeps per key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Of a token bucket.
    TokenBucket {
        /// Missing tokens, in millionths times milliseconds of the period, so that refilling is exact.
        missing: u128,
        /// The period that scale was made for, in milliseconds.
        period_ms: u64,
        /// When `missing` was true, in milliseconds of the store's clock.
        at_ms: u64,
    },
    /// Of a sliding window.
    SlidingWindow {
        /// Length of a slot, in milliseconds.
        slot_ms: u64,
        /// Slot number and the amount taken in it, oldest first, at most 61.
        slots: Vec<(u64, u64)>,
        /// The latest moment seen.
        at_ms: u64,
    },
}

impl State {
    /// The latest moment seen.
    pub const fn at_ms(&self) -> u64 {
        match self {
            Self::TokenBucket { at_ms, .. } | Self::SlidingWindow { at_ms, .. } => *at_ms,
        }
    }

    /// Whether this state puts the clock of the limit back from the `known` state.
    pub fn is_earlier(&self, known: Option<&Self>) -> bool {
        let is_same = |known: &Self| std::mem::discriminant(self) == std::mem::discriminant(known);
        known.is_some_and(|known| is_same(known) && self.at_ms() < known.at_ms())
    }
}

/// The moment that a state made at `at_ms` counts as one of.
const fn counts_as(at_ms: u64, now_ms: u64, length_ms: u64) -> u64 {
    if at_ms > now_ms.saturating_add(length_ms) {
        now_ms
    } else {
        at_ms
    }
}

/// Decides one request at `now_ms`. Returns the decision and, when allowed, the state to keep.
///
/// Time that goes back counts as standing still, so a clock set back gives
/// nothing away. A state that lies further ahead than the limit is long (until an empty bucket is full, or a window)
/// counts as one of now: no caller waits longer than that because of a clock. It has to be kept also when the request was
/// refused ([`State::is_earlier`]), or time would never advance. A state of another algorithm or scale is started afresh, empty of
/// tokens for a bucket's changed period, full when the key is new.
pub fn decide(
    policy: &Policy,
    state: Option<&State>,
    amount: Amount,
    now_ms: u64,
) -> (Decision, State) {
    match *policy {
        Policy::TokenBucket {
            capacity,
            refill,
            period,
        } => token_bucket(capacity, refill, period, state, amount, now_ms),
        Policy::SlidingWindow { limit, window } => {
            sliding_window(limit, window, state, amount, now_ms)
        }
    }
}

/// `missing * scale / known`, rounded up, where the product alone may be too large a number.
fn rescale(missing: u128, scale: u128, known: u128) -> u128 {
    let (whole, rest) = (missing / known, missing % known);
    whole
        .saturating_mul(scale)
        .saturating_add((rest * scale).div_ceil(known))
}

fn token_bucket(
    capacity: Amount,
    refill: Amount,
    period: Duration,
    state: Option<&State>,
    amount: Amount,
    now_ms: u64,
) -> (Decision, State) {
    let period_ms = millis(period).max(1);
    let scale = u128::from(period_ms);
    let full = u128::from(capacity.0) * scale;
    let per_ms = u128::from(refill.0).max(1);
    let (missing, then_ms) = match state {
        Some(State::TokenBucket {
            missing,
            period_ms: known,
            at_ms,
        }) => {
            let length_ms = u64::try_from(full.div_ceil(per_ms)).unwrap_or(u64::MAX);
            let at_ms = counts_as(*at_ms, now_ms, length_ms);
            let then_ms = now_ms.max(at_ms);
            // A changed period keeps the missing tokens, rounded up to the new scale.
            let missing = if *known == period_ms {
                *missing
            } else {
                rescale(*missing, scale, u128::from(*known).max(1))
            };
            (
                missing
                    .min(full)
                    .saturating_sub(per_ms * u128::from(then_ms - at_ms)),
                then_ms,
            )
        }
        _ => (0, now_ms),
    };
    // Time does not advance until then.
    let still_ms = then_ms - now_ms;
    let wanted = u128::from(amount.0) * scale;
    let available = full - missing;
    let allowed = wanted <= available;
    let missing_after = if allowed { missing + wanted } else { missing };
    let wait_ms = |tokens: u128| match tokens {
        0 => 0,
        _ => u64::try_from(tokens.div_ceil(per_ms))
            .unwrap_or(u64::MAX)
            .saturating_add(still_ms),
    };
    let decision = Decision {
        allowed,
        remaining: Amount(u64::try_from((full - missing_after) / scale).unwrap_or(u64::MAX)),
        retry_after: Duration::from_millis(if allowed {
            0
        } else {
            wait_ms(wanted - available)
        }),
        reset_after: Duration::from_millis(wait_ms(missing_after)),
    };
    (
        decision,
        State::TokenBucket {
            missing: missing_after,
            period_ms,
            at_ms: then_ms,
        },
    )
}

fn sliding_window(
    limit: Amount,
    window: Duration,
    state: Option<&State>,
    amount: Amount,
    now_ms: u64,
) -> (Decision, State) {
    let slot_ms = millis(window).div_ceil(SLOTS).max(1);
    let length_ms = slot_ms.saturating_mul(SLOTS + 1);
    let (mut slots, then_ms) = match state {
        Some(State::SlidingWindow {
            slot_ms: known,
            slots,
            at_ms,
        }) => {
            let at = counts_as(*at_ms, now_ms, length_ms);
            // The amounts taken move as far as the state does.
            let back = (*at_ms - at) / slot_ms;
            let rescaled = slots.iter().map(|(slot, taken)| {
                let slot = slot.saturating_mul(*known) / slot_ms;
                (slot.saturating_sub(back), *taken)
            });
            (rescaled.collect::<Vec<_>>(), now_ms.max(at))
        }
        _ => (Vec::new(), now_ms),
    };
    let current = then_ms / slot_ms;
    // Slot `s` may hold a take made at its last millisecond, so it counts for SLOTS whole slots after its own.
    slots.retain(|(slot, _)| slot + SLOTS >= current);
    let used: u64 = slots.iter().map(|(_, taken)| *taken).sum();
    let available = limit.0.saturating_sub(used);
    let allowed = amount.0 <= available;
    if allowed && amount.0 > 0 {
        match slots.last_mut() {
            Some((slot, taken)) if *slot == current => *taken += amount.0,
            _ => slots.push((current, amount.0)),
        }
    }
    let leaves_at =
        |slot: u64| Duration::from_millis(((slot + SLOTS + 1) * slot_ms).saturating_sub(now_ms));
    let mut short = amount.0.saturating_sub(available);
    let mut retry_after = Duration::ZERO;
    for (slot, taken) in &slots {
        if allowed || short == 0 {
            break;
        }
        short = short.saturating_sub(*taken);
        retry_after = leaves_at(*slot);
    }
    let decision = Decision {
        allowed,
        remaining: Amount(if allowed {
            available - amount.0
        } else {
            available
        }),
        retry_after,
        reset_after: slots
            .last()
            .map_or(Duration::ZERO, |(slot, _)| leaves_at(*slot)),
    };
    (
        decision,
        State::SlidingWindow {
            slot_ms,
            slots,
            at_ms: then_ms,
        },
    )
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bucket(capacity: u64, per_second: u64) -> Policy {
        Policy::TokenBucket {
            capacity: Amount::whole(capacity),
            refill: Amount::whole(per_second),
            period: Duration::from_secs(1),
        }
    }

    #[test]
    fn a_changed_period_of_the_largest_bucket_is_exact() {
        let year = Duration::from_secs(366 * 86_400);
        let rule = |period| Policy::TokenBucket {
            capacity: Amount::micros(u64::MAX),
            refill: Amount::micros(1),
            period,
        };
        let all = Amount::micros(u64::MAX);
        let (taken, empty) = decide(&rule(year), None, all, 0);
        assert!(taken.allowed);
        for period in [year, year / 3, Duration::from_millis(1)] {
            let (decision, _) = decide(&rule(period), Some(&empty), Amount::micros(1), 0);
            assert!(
                !decision.allowed && decision.remaining == Amount::default(),
                "{period:?}"
            );
        }
    }

    #[test]
    fn a_bucket_starts_full_and_returns_the_retry_time() {
        let policy = bucket(2, 1);
        let (first, state) = decide(&policy, None, Amount::whole(2), 0);
        assert!(first.allowed);
        assert_eq!(first.reset_after, Duration::from_secs(2));
        let (second, state) = decide(&policy, Some(&state), Amount::whole(1), 250);
        assert!(!second.allowed);
        assert_eq!(second.retry_after, Duration::from_millis(750));
        assert_eq!(second.remaining, Amount::micros(250_000));
        let (third, _) = decide(&policy, Some(&state), Amount::whole(1), 1_000);
        assert!(third.allowed, "the time it named is the time it keeps");
    }

    /// Numbers that look random, the same each time.
    struct Dice(std::cell::Cell<u64>);

    impl Dice {
        fn below(&self, most: u64) -> u64 {
            let mut number = self.0.get();
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            self.0.set(number);
            number % most
        }
    }

    /// A reference implementation of a rule, computed from every take.
    enum Oracle {
        /// Level of the bucket, in millionths times milliseconds of the period, and since when.
        Bucket { level: u128, at: u64 },
        /// When how much was taken.
        Window(Vec<(u64, u64)>),
    }

    impl Oracle {
        /// The amount that can be taken at a moment: a numerator in millionths, and its denominator.
        fn available(&mut self, policy: &Policy, now: u64) -> (u128, u128) {
            match (self, policy) {
                (
                    Self::Bucket { level, at },
                    Policy::TokenBucket {
                        capacity,
                        refill,
                        period,
                    },
                ) => {
                    let parts = period.as_millis();
                    let gained = u128::from(refill.0) * u128::from(now - *at);
                    *level = (*level + gained).min(u128::from(capacity.0) * parts);
                    *at = now;
                    (*level, parts)
                }
                (Self::Window(takes), Policy::SlidingWindow { limit, window }) => {
                    let slot = (window.as_millis() as u64).div_ceil(SLOTS).max(1);
                    takes.retain(|(at, _)| at / slot + SLOTS >= now / slot);
                    let used: u64 = takes.iter().map(|(_, amount)| amount).sum();
                    (u128::from(limit.0 - used), 1)
                }
                _ => unreachable!("an oracle has the rule that it was made for"),
            }
        }

        fn take(&mut self, amount: u64, now: u64, parts: u128) {
            match self {
                Self::Bucket { level, .. } => *level -= u128::from(amount) * parts,
                Self::Window(takes) => takes.push((now, amount)),
            }
        }
    }

    #[test]
    fn a_million_steps_of_each_rule_match_the_oracle() {
        let dice = Dice(std::cell::Cell::new(0x9E37_79B9_7F4A_7C15));
        for is_bucket in [true, false] {
            for _ in 0..1_000 {
                let size = Amount(1 + dice.below(10u64.pow(1 + dice.below(17) as u32)));
                let span =
                    Duration::from_millis(60 + dice.below(10u64.pow(1 + dice.below(9) as u32)));
                let (policy, mut oracle) = match is_bucket {
                    true => {
                        let refill = Amount(1 + dice.below(size.0.saturating_mul(2)));
                        let policy = Policy::TokenBucket {
                            capacity: size,
                            refill,
                            period: span,
                        };
                        let level = u128::from(size.0) * span.as_millis();
                        (policy, Oracle::Bucket { level, at: 0 })
                    }
                    false => (
                        Policy::SlidingWindow {
                            limit: size,
                            window: span,
                        },
                        Oracle::Window(Vec::new()),
                    ),
                };
                let (mut state, mut now) = (None, 1_700_000_000_000);
                oracle.available(&policy, now);
                for _ in 0..1_000 {
                    now += dice.below(1 + span.as_millis() as u64 / (1 + dice.below(100)));
                    let amount = 1 + dice
                        .below(size.0 / (1 + dice.below(20)) + 1)
                        .min(size.0 - 1);
                    let (available, parts) = oracle.available(&policy, now);
                    let is_allowed = u128::from(amount) * parts <= available;
                    let (decision, next) = decide(&policy, state.as_ref(), Amount(amount), now);
                    assert_eq!(
                        decision.allowed, is_allowed,
                        "{policy:?} {state:?} {amount} at {now}"
                    );
                    if is_allowed {
                        oracle.take(amount, now, parts);
                    } else {
                        // The retry time is exact: a millisecond before it the request is refused, at it allowed.
                        let after = decision.retry_after.as_millis() as u64;
                        let at = |moment| {
                            decide(&policy, Some(&next), Amount(amount), moment)
                                .0
                                .allowed
                        };
                        assert!(
                            at(now + after) && !at(now + after - 1),
                            "{policy:?} {amount}: {after}"
                        );
                    }
                    let (left, parts) = oracle.available(&policy, now);
                    assert_eq!(u128::from(decision.remaining.0), left / parts, "{policy:?}");
                    state = Some(next);
                }
            }
        }
    }

    #[test]
    fn a_clock_set_back_gives_nothing_away() {
        let policy = bucket(1, 1);
        let (_, state) = decide(&policy, None, Amount::whole(1), 10_000);
        let (back, state) = decide(&policy, Some(&state), Amount::whole(1), 9_100);
        assert!(!back.allowed);
        assert_eq!(back.retry_after, Duration::from_millis(1_900));
        let (later, _) = decide(&policy, Some(&state), Amount::whole(1), 10_500);
        assert!(!later.allowed, "only half a token came back");
    }

    #[test]
    fn state_further_ahead_than_its_limit_is_long_counts_as_now() {
        let hour = 3_600_000;
        let window = Policy::SlidingWindow {
            limit: Amount::whole(10),
            window: Duration::from_secs(10),
        };
        for (policy, longest) in [(bucket(10, 10), 1_000), (window, 10_200)] {
            let (_, drained) = decide(&policy, None, Amount::whole(10), 2 * hour);
            let now = hour + 77;
            let (refused, state) = decide(&policy, Some(&drained), Amount::whole(1), now);
            assert!(!refused.allowed, "a step gives nothing away");
            assert!(state.is_earlier(Some(&drained)));
            let wait = refused.retry_after.as_millis() as u64;
            assert!(wait <= longest, "{policy:?}: {wait}");
            let at = |moment| {
                decide(&policy, Some(&state), Amount::whole(1), moment)
                    .0
                    .allowed
            };
            assert!(at(now + wait) && !at(now + wait - 1), "{policy:?}: {wait}");
        }
    }

    proptest! {
        /// In every stretch of time a bucket admits at most its capacity plus the refill of that stretch.
        #[test]
        fn a_bucket_never_admits_more_than_capacity_and_refill(
            capacity in 1u64..20, per_second in 1u64..50,
            steps in prop::collection::vec((0u64..700, 1u64..5), 1..60),
        ) {
            let policy = bucket(capacity, per_second);
            let (mut now, mut state, mut admitted) = (0, None, Vec::new());
            for (pause, tokens) in steps {
                now += pause;
                let amount = Amount::whole(tokens.min(capacity));
                let (decision, next) = decide(&policy, state.as_ref(), amount, now);
                state = Some(next);
                if decision.allowed { admitted.push((now, amount.as_micros())); }
            }
            for (from, _) in &admitted {
                for (to, _) in &admitted {
                    if to < from { continue; }
                    let sum: u64 = admitted.iter().filter(|(at, _)| (from..=to).contains(&at)).map(|(_, n)| n).sum();
                    let allowance = capacity * 1_000_000 + per_second * 1_000 * (to - from);
                    prop_assert!(sum <= allowance, "{sum} > {allowance} between {from} and {to}");
                }
            }
        }

        /// No stretch as long as the window ever holds more than the limit.
        #[test]
        fn a_window_never_admits_more_than_its_limit(
            limit in 1u64..10,
            steps in prop::collection::vec((0u64..200, 1u64..4), 1..80),
        ) {
            let policy = Policy::SlidingWindow { limit: Amount::whole(limit), window: Duration::from_millis(600) };
            let (mut now, mut state, mut admitted) = (0, None, Vec::new());
            for (pause, tokens) in steps {
                now += pause;
                let amount = Amount::whole(tokens.min(limit));
                let (decision, next) = decide(&policy, state.as_ref(), amount, now);
                if !decision.allowed {
                    let (retried, _) = decide(&policy, Some(&next), amount, now + decision.retry_after.as_millis() as u64);
                    prop_assert!(retried.allowed, "the time it named is the time it keeps");
                }
                state = Some(next);
                if decision.allowed { admitted.push((now, amount.as_micros())); }
            }
            for (from, _) in &admitted {
                let sum: u64 = admitted.iter().filter(|(at, _)| (*from..from + 600).contains(at)).map(|(_, n)| n).sum();
                prop_assert!(sum <= limit * 1_000_000);
            }
        }
    }
}
