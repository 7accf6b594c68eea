//! The limits of a backend: decisions a second, each durable as the backend makes it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;
use tokio::task::JoinSet;
use towpath_core::limiter::{Amount, Policy};
use towpath_core::port::rate_limit::{RateLimit, Take};
use towpath_core::{Error, Result};

use super::limit::Limit;
use super::load::{Outcome, join};
use super::measure::Measurement;
use super::{LimitsArgs, Row};
use crate::wiring;

/// Runs both algorithms with each number of callers.
///
/// # Errors
/// Those of the backend.
pub(in crate::cli) async fn run(args: &LimitsArgs) -> Result<Vec<Row>> {
    let folder = tempfile::Builder::new()
        .prefix("towpath-bench-")
        .tempdir_in(&args.folder)
        .map_err(|error| {
            Error::unavailable("the folder for the temporary store cannot be made")
                .with_source(error)
        })?;
    let own = format!("embedded:{}", folder.path().display());
    let backend = wiring::open(args.backend.as_deref().unwrap_or(&own)).await?;
    let durability = super::durability(&backend).await?;
    let limits = backend.require_rate_limit("bench")?;
    let minute = Duration::from_secs(60);
    // So much that every take is allowed: refusals write nothing.
    let plenty = Amount::whole(1_000_000_000);
    let policies = [
        (
            "token bucket",
            Policy::TokenBucket {
                capacity: plenty,
                refill: plenty,
                period: minute,
            },
        ),
        (
            "sliding window",
            Policy::SlidingWindow {
                limit: plenty,
                window: minute,
            },
        ),
    ];
    let mut rows = Vec::new();
    for callers in args.callers.map_or_else(|| vec![1, 64], |one| vec![one]) {
        for (what, policy) in policies {
            let measurement = Measurement::start(what, &durability, callers, 1);
            let limit = Limit::new(Duration::from_secs(args.seconds), args.messages);
            let outcome = decide(&limits, what, policy, callers, args.keys, &limit).await?;
            let decisions = outcome.seen.len() as u64;
            rows.push(measurement.finish(decisions, outcome.latencies, None));
        }
    }
    backend.lifecycle.close().await?;
    Ok(rows)
}

async fn decide(
    limits: &Arc<dyn RateLimit>,
    what: &'static str,
    policy: Policy,
    callers: usize,
    keys: u64,
    limit: &Limit,
) -> Result<Outcome> {
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (limits, limit) = (Arc::clone(limits), limit.clone());
        tasks.spawn(async move {
            let mut outcome = Outcome::default();
            while limit.take(1) {
                let key = rand::rng().random_range(0..keys.max(1));
                let take = Take {
                    key: format!("bench {what} {key}"),
                    policy,
                    amount: Amount::whole(1),
                };
                let call = Instant::now();
                limits.take(vec![take]).await?;
                outcome.latencies.record(call);
                outcome.seen.push(key);
            }
            Ok(outcome)
        });
    }
    join(tasks).await
}
