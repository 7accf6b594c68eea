//! The limiter's script against the core's algorithm.

use rand::Rng;
use rand::SeedableRng;
use rand::rngs::StdRng;
use towpath_core::limiter::{self, Amount, Decision, Policy, State};
use towpath_core::port::rate_limit::Take;
use towpath_testkit::Own;

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        decides_as_the_core_does_for_any_numbers,
        a_bucket_is_shared_with_the_reference_system,
    ]
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

/// Random rules, amounts and times, also times that go back and rules that change in between, with the core's decisions.
pub(crate) fn random_steps(seed: u64) -> (Vec<(u64, Take)>, Vec<Decision>) {
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut steps, mut expected) = (Vec::new(), Vec::new());
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
            // A refusal changes nothing on the server but a clock that was set back.
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
    (steps, expected)
}

async fn decides_as_the_core_does(seed: u64) {
    let (steps, expected) = random_steps(seed);
    let url = url(&prefix(), "");
    let decisions = towpath_backends::redis::decide_at_for_testing(&url, &steps)
        .await
        .expect("decide");
    for (at, (found, expected)) in decisions.iter().zip(&expected).enumerate() {
        assert_eq!(found, expected, "seed {seed}, step {at}: {:?}", steps[at]);
    }
    assert_eq!(decisions.len(), expected.len());
}

/// The reference system's bucket: `KEYS[1]`, capacity, tokens a second, tokens wanted.
const REFERENCE: &str = "
local bucket = redis.call('HMGET', KEYS[1], 'tokens', 'last_refill')
local capacity, rate, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local tokens, last = tonumber(bucket[1]), tonumber(bucket[2])
if tokens == nil then tokens, last = capacity, now end
tokens = math.min(capacity, tokens + math.max(0, now - last) * rate)
local allowed = 0
if tokens >= wanted then tokens, allowed = tokens - wanted, 1 end
redis.call('HMSET', KEYS[1], 'tokens', tokens, 'last_refill', now, 'capacity', capacity, 'refill_rate', rate)
redis.call('EXPIRE', KEYS[1], 300)
return allowed";

async fn a_bucket_is_shared_with_the_reference_system() {
    let (backend, prefix) = fresh("").await;
    let limits = backend.require_rate_limit("the test").expect("limits");
    let name = format!("{prefix}token_bucket:k");
    let policy = Policy::TokenBucket {
        capacity: Amount::whole(100),
        refill: Amount::micros(1_000),
        period: Duration::from_secs(1),
    };
    let take = async |amount: u64| {
        let take = Take {
            key: "k".to_owned(),
            policy,
            amount: Amount::micros(amount),
        };
        let decided = limits.take(vec![take]).await.expect("decided");
        (decided[0].allowed, decided[0].remaining)
    };
    let theirs = |wanted: &str| bare(&["EVAL", REFERENCE, "1", &name, "100", "0.001", wanted]);
    // Either program first, then in turn: one capacity.
    for ours_first in [true, false] {
        limits.reset("k").await.expect("reset");
        let (mut ours, mut others) = (0, 0);
        for turn in 0..130 {
            if (turn % 2 == 0) == ours_first {
                ours += u32::from(take(1_000_000).await.0);
            } else {
                others += u32::from(theirs("1").trim() == ":1");
            }
        }
        assert_eq!((ours, others), (50, 50));
    }
    // Fractions are kept, and its fields are there to be read.
    limits.reset("k").await.expect("reset");
    assert!(take(500_000).await.0);
    let field = |name_of: &str| bare(&["HGET", &name, name_of]);
    assert!(
        field("tokens").trim().ends_with("99.5"),
        "{}",
        field("tokens")
    );
    assert!(field("capacity").trim().ends_with("100"));
    assert!(field("refill_rate").trim().ends_with("0.001"));
    assert_eq!(theirs("99").trim(), ":1");
    let (allowed, remaining) = take(600_000).await;
    assert!(
        !allowed && remaining.as_micros() >= 500_000,
        "{remaining:?}"
    );
    // Values that no program can have written are ignored.
    bare(&[
        "HSET",
        &name,
        "tokens",
        "many",
        "last_refill",
        "now",
        "told",
        "",
    ]);
    assert!(take(600_000).await.0, "our own state counts");
}
