//! The limiter's script against the core's algorithm.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use towpath_core::limiter::{self, Amount, Policy, State};
use towpath_core::port::rate_limit::Take;
use towpath_testkit::Own;

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![decides_as_the_core_does_for_any_numbers]
}

fn amount(rng: &mut StdRng) -> u64 {
    let largest = [9, 1_000, 1_000_000, 1 << 40, u64::MAX][rng.random_range(0..5)];
    rng.random_range(1..=largest)
}

fn policy(rng: &mut StdRng) -> Policy {
    let longest = [1_000, 60_000, 86_400_000, 31_000_000_000_u64][rng.random_range(0..4)];
    if rng.random() {
        Policy::TokenBucket {
            capacity: Amount::micros(amount(rng)),
            refill: Amount::micros(amount(rng)),
            period: Duration::from_millis(rng.random_range(1..=longest)),
        }
    } else {
        Policy::SlidingWindow {
            limit: Amount::micros(amount(rng)),
            window: Duration::from_millis(rng.random_range(60..=longest)),
        }
    }
}

/// Rounds of 720 steps for each of `TOWPATH_SEEDS`: with 200 of them half a million steps of each kind of rule.
const ROUNDS: u64 = 7;

async fn decides_as_the_core_does_for_any_numbers() {
    let seeds = std::env::var("TOWPATH_SEEDS").ok();
    let rounds = seeds
        .and_then(|seeds| seeds.parse::<u64>().ok())
        .map_or(1, |seeds| seeds * ROUNDS);
    for _ in 0..rounds {
        let seed = rand::random();
        decides_as_the_core_does(seed).await;
    }
}

/// Random rules, amounts and times, also times that go back and rules that change in between.
async fn decides_as_the_core_does(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (prefix, mut steps, mut expected) = (prefix(), Vec::new(), Vec::new());
    for key in 0..60 {
        let (mut rule, mut state) = (policy(&mut rng), None::<State>);
        let mut now = 1_795_000_000_000_u64;
        for _ in 0..12 {
            if rng.random_ratio(1, 12) {
                rule = policy(&mut rng);
            }
            let most = rule.capacity().as_micros();
            let wanted = Amount::micros(match rng.random_range(0..4) {
                0 => most,
                1 => 0,
                _ => rng.random_range(0..=most),
            });
            let (decision, next) = limiter::decide(&rule, state.as_ref(), wanted, now);
            // What is refused changes nothing on the server but a time that was put back.
            if decision.allowed {
                state = Some(next);
            } else {
                let (_, stands) = limiter::decide(&rule, state.as_ref(), Amount::default(), now);
                if stands.is_earlier(state.as_ref()) {
                    state = Some(stands);
                }
            }
            let take = Take {
                key: key.to_string(),
                policy: rule,
                amount: wanted,
            };
            steps.push((now, take));
            expected.push(decision);
            now = match rng.random_range(0..8) {
                0 => now - rng.random_range(0..5_000),
                1 => now + rng.random_range(0..100_000_000),
                _ => now + rng.random_range(0..2_000),
            };
        }
    }
    let url = url(&prefix, "");
    let decisions = towpath_backends::redis::decide_at_for_testing(&url, &steps)
        .await
        .expect("decide");
    for (at, (found, expected)) in decisions.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "seed {seed}, step {at}: {:?}", steps[at]);
    }
    assert_eq!(decisions.len(), expected.len());
}
