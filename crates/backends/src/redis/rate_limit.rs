//! The rate limit port: `limiter::decide` in exact integers on the server, with the server's clock.

use std::time::Duration;

use async_trait::async_trait;
use redis::Value;
use towpath_core::limiter::{Amount, Decision, Policy};
use towpath_core::port::rate_limit::{RateLimit, Take};
use towpath_core::{Error, Result, ResultExt};

use super::config::Config;
use super::reply;
use super::script;
use super::store::{Store, millis};

#[async_trait]
impl RateLimit for Store {
    async fn take(&self, takes: Vec<Take>) -> Result<Vec<Decision>> {
        for take in &takes {
            check_key(&take.key)?;
            take.policy.check(take.amount)?;
        }
        self.decide("take", &takes, None).await
    }

    async fn peek(&self, key: &str, policy: Policy) -> Result<Decision> {
        check_key(key)?;
        policy.check(Amount::default())?;
        let take = Take {
            key: key.to_owned(),
            policy,
            amount: Amount::default(),
        };
        self.decide("peek", &[take], None)
            .await?
            .pop()
            .ok_or_else(|| Error::corrupt("a limit was not answered"))
    }

    async fn reset(&self, key: &str) -> Result<()> {
        check_key(key)?;
        let name = self.keys.limit(key);
        let mut del = redis::cmd("DEL");
        del.arg(&name);
        self.servers
            .query(name.as_bytes(), &del)
            .await
            .map(drop)
            .context(|| format!("reset limit `{key}`"))
    }
}

impl Store {
    /// Runs the script, at a time set by a test.
    async fn decide(
        &self,
        what: &str,
        takes: &[Take],
        at_ms: Option<u64>,
    ) -> Result<Vec<Decision>> {
        if takes.is_empty() {
            return Ok(Vec::new());
        }
        let mut call = script::LIMIT.on(takes.iter().map(|take| self.keys.limit(&take.key)));
        call.arg(what)
            .arg(at_ms.map(|at| at.to_string()).unwrap_or_default());
        for take in takes {
            let (algorithm, capacity, refill, span) = match take.policy {
                Policy::TokenBucket {
                    capacity,
                    refill,
                    period,
                } => ("token_bucket", capacity, refill, period),
                Policy::SlidingWindow { limit, window } => ("sliding_window", limit, limit, window),
            };
            call.arg(algorithm)
                .arg(capacity.as_micros())
                .arg(refill.as_micros())
                .arg(millis(span))
                .arg(take.amount.as_micros());
        }
        let answers = self.servers.run(call).await.context(|| "ask limits")?;
        reply::list(answers)?
            .into_iter()
            .map(|answer| {
                let [allowed, remaining, retry, reset] = reply::tuple(answer)?;
                Ok(Decision {
                    allowed: reply::number(allowed)? == 1,
                    remaining: Amount::micros(saturating(remaining)?),
                    retry_after: Duration::from_millis(saturating(retry)?),
                    reset_after: Duration::from_millis(saturating(reset)?),
                })
            })
            .collect()
    }
}

/// Takes one after the other, each at a time set by the test.
///
/// # Errors
/// As `RateLimit::take`.
#[doc(hidden)]
pub async fn decide_at_for_testing(url: &str, steps: &[(u64, Take)]) -> Result<Vec<Decision>> {
    let store = Store::open(Config::parse(url)?)?;
    let mut decisions = Vec::with_capacity(steps.len());
    for (at_ms, take) in steps {
        decisions.extend(
            store
                .decide("take", std::slice::from_ref(take), Some(*at_ms))
                .await?,
        );
    }
    Ok(decisions)
}

/// A natural number of any size, clamped to the largest `u64`.
fn saturating(digits: Value) -> Result<u64> {
    let digits = reply::text(digits)?;
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(Error::corrupt(format!(
            "unexpected answer of redis `{digits}`; expected a number"
        )));
    }
    Ok(digits.parse().unwrap_or(u64::MAX))
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > 1024 {
        return Err(Error::invalid(
            "the key of a limit must have 1 to 1,024 bytes",
        ));
    }
    Ok(())
}
