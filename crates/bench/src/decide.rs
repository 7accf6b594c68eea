//! The limits of a backend: decisions a second, each durable as the backend makes it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rand::Rng;
use tokio::task::JoinSet;
use towpath_core::Result;
use towpath_core::limiter::{Amount, Policy};
use towpath_core::port::rate_limit::{RateLimit, Take};

use super::http::{connect, exchange, request};
use super::limit::Limit;
use super::load::{Outcome, join};
use super::measure::Measurement;
use crate::Row;
use crate::args::LimitsArgs;
use towpath_server::wiring;

/// So much that every take is allowed: refusals write nothing.
const PLENTY: u64 = 1_000_000_000;

/// Runs both algorithms with each number of callers, and the API's default one over connections.
///
/// # Errors
/// Those of the backend.
pub(crate) async fn run(args: &LimitsArgs) -> Result<Vec<Row>> {
    let folder = super::temporary(&args.folder)?;
    let own = format!("embedded:{}", folder.path().display());
    let backend = wiring::open(args.backend.as_deref().unwrap_or(&own)).await?;
    let durability = super::durability(&backend).await?;
    let limits = backend.require_rate_limit("bench")?;
    let minute = Duration::from_secs(60);
    let plenty = Amount::whole(PLENTY);
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
    let rule = format!("default=token_bucket:{PLENTY}:{PLENTY}/1m");
    let api = crate::api::limits(&backend, &[rule]).await?;
    let mut rows = Vec::new();
    for callers in args.callers.map_or_else(|| vec![1, 64], |one| vec![one]) {
        for (what, policy) in policies {
            let measurement = Measurement::start(what, &durability, callers, 1);
            let outcome = decide(
                &limits,
                what,
                policy,
                callers,
                args.keys,
                &args.bound.limit(),
            )
            .await?;
            let decisions = outcome.seen.len() as u64;
            rows.push(measurement.finish(decisions, outcome.latencies, None));
        }
        let measurement = Measurement::start("token bucket, http", &durability, callers, 1);
        let outcome = ask(api.address, callers, args.keys, &args.bound.limit()).await?;
        let decisions = outcome.seen.len() as u64;
        rows.push(measurement.finish(decisions, outcome.latencies, None));
    }
    api.stop().await?;
    backend.lifecycle.close().await?;
    Ok(rows)
}

/// Takes through the API, over as many connections as callers.
async fn ask(address: SocketAddr, callers: usize, keys: u64, limit: &Limit) -> Result<Outcome> {
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (mut sender, limit) = (connect(address).await?, limit.clone());
        let host = address.to_string();
        tasks.spawn(async move {
            let mut outcome = Outcome::default();
            while limit.take(1) {
                let key = rand::rng().random_range(0..keys.max(1));
                let path = format!("/api/bucket/consume?key=bench-{key}");
                let request = request(&host, &path, Bytes::new())?;
                let call = Instant::now();
                exchange(&mut sender, request).await?;
                outcome.latencies.record(call);
                outcome.seen.push(key);
            }
            Ok(outcome)
        });
    }
    join(tasks).await
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
