//! The rate limit port: `limiter::decide` in exact integers in the database, by the database's clock.

use std::time::Duration;

use async_trait::async_trait;
use tokio_postgres::Row;
use tokio_postgres::types::Type;
use towpath_core::limiter::{Amount, Decision, Policy};
use towpath_core::port::rate_limit::{RateLimit, Take};
use towpath_core::{Error, Result, ResultExt};

use super::config::Config;
use super::store::{Parameter, Store};

/// Numbers beyond 64 bits with a sign go as text.
const TAKE: &str = "SELECT allowed, remaining, retry_ms, reset_ms FROM towpath.limit_take(
    $1, $2, $3, $4, $5::text[]::numeric[], $6::text[]::numeric[], $7, $8::text[]::numeric[])";

#[async_trait]
impl RateLimit for Store {
    async fn take(&self, takes: Vec<Take>) -> Result<Vec<Decision>> {
        for take in &takes {
            check_key(&take.key)?;
            take.policy.check(take.amount)?;
        }
        self.decide(false, &takes, None).await
    }

    async fn peek(&self, key: &str, policy: Policy) -> Result<Decision> {
        check_key(key)?;
        policy.check(Amount::default())?;
        let take = Take {
            key: key.to_owned(),
            policy,
            amount: Amount::default(),
        };
        self.decide(true, &[take], None)
            .await?
            .pop()
            .ok_or_else(|| Error::corrupt("a limit was not answered"))
    }

    async fn reset(&self, key: &str) -> Result<()> {
        check_key(key)?;
        let reset = "SELECT towpath.limit_reset($1)";
        let done = self.ask(reset, &[(&key, Type::TEXT)]).await;
        done.map(drop).context(|| format!("reset limit `{key}`"))
    }
}

impl Store {
    /// Calls the function, at a time set by a test.
    async fn decide(
        &self,
        is_look: bool,
        takes: &[Take],
        at_ms: Option<i64>,
    ) -> Result<Vec<Decision>> {
        if takes.is_empty() {
            return Ok(Vec::new());
        }
        let (mut rules, mut spans) = (Vec::new(), Vec::new());
        let (mut capacities, mut refills, mut amounts) = (Vec::new(), Vec::new(), Vec::new());
        let keys: Vec<&str> = takes.iter().map(|take| take.key.as_str()).collect();
        for take in takes {
            let (rule, capacity, refill, span) = match take.policy {
                Policy::TokenBucket {
                    capacity,
                    refill,
                    period,
                } => ("token_bucket", capacity, refill, period),
                Policy::SlidingWindow { limit, window } => ("sliding_window", limit, limit, window),
            };
            rules.push(rule);
            capacities.push(capacity.as_micros().to_string());
            refills.push(refill.as_micros().to_string());
            spans.push(i64::try_from(span.as_millis()).unwrap_or(i64::MAX));
            amounts.push(take.amount.as_micros().to_string());
        }
        let values: [Parameter<'_>; 8] = [
            (&at_ms, Type::INT8),
            (&is_look, Type::BOOL),
            (&rules, Type::TEXT_ARRAY),
            (&keys, Type::TEXT_ARRAY),
            (&capacities, Type::TEXT_ARRAY),
            (&refills, Type::TEXT_ARRAY),
            (&spans, Type::INT8_ARRAY),
            (&amounts, Type::TEXT_ARRAY),
        ];
        let rows = self.ask(TAKE, &values).await.context(|| "ask limits")?;
        Ok(rows.iter().map(decision).collect())
    }
}

/// Takes one after the other, each at a time set by the test.
///
/// # Errors
/// As `RateLimit::take`.
#[doc(hidden)]
pub async fn decide_at_for_testing(url: &str, steps: &[(u64, Take)]) -> Result<Vec<Decision>> {
    let store = Store::open(&Config::parse(url)?).await?;
    let mut decisions = Vec::with_capacity(steps.len());
    for (at_ms, take) in steps {
        let at_ms = i64::try_from(*at_ms).unwrap_or(i64::MAX);
        let takes = std::slice::from_ref(take);
        decisions.extend(store.decide(false, takes, Some(at_ms)).await?);
    }
    Ok(decisions)
}

fn decision(row: &Row) -> Decision {
    Decision {
        allowed: row.get(0),
        remaining: Amount::micros(saturating(row.get(1))),
        retry_after: Duration::from_millis(saturating(row.get(2))),
        reset_after: Duration::from_millis(saturating(row.get(3))),
    }
}

/// A natural number of any size, clamped to the largest `u64`.
fn saturating(digits: &str) -> u64 {
    digits.parse().unwrap_or(u64::MAX)
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > 1024 {
        return Err(Error::invalid(
            "the key of a limit must have 1 to 1,024 bytes",
        ));
    }
    if key.contains('\0') {
        return Err(Error::invalid(
            "the key of a limit must not contain the character U+0000, which PostgreSQL cannot store",
        ));
    }
    Ok(())
}
