//! The rate limit port.
//!
//! Takes are logged and not waited for: a killed process forgets those that were not yet written, a power cut those of
//! its last sync, and a limit is then that much too generous.

use async_trait::async_trait;
use towpath_core::limiter::{self, Amount, Decision, Policy};
use towpath_core::port::rate_limit::{RateLimit, Take};
use towpath_core::{Error, Result};

use super::log::Class;
use super::record::Record;
use super::store::{Inner, Store};

#[async_trait]
impl RateLimit for Store {
    async fn take(&self, takes: Vec<Take>) -> Result<Vec<Decision>> {
        for take in &takes {
            check_key(&take.key)?;
            take.policy.check(take.amount)?;
        }
        let now = self.clock.now().as_millis();
        let mut inner = self.lock();
        let mut draft = std::collections::BTreeMap::new();
        let mut decisions = Vec::with_capacity(takes.len());
        for take in &takes {
            let known = draft
                .get(&take.key)
                .map(|(state, _)| state)
                .or_else(|| inner.state.limits.get(&take.key));
            let (decision, state) = limiter::decide(&take.policy, known, take.amount, now);
            draft.insert(take.key.clone(), (state, full_at(now, &decision)));
            decisions.push(decision);
        }
        if decisions.iter().any(|decision| !decision.allowed) {
            // Nothing is taken: each limit as it stands.
            let mut stand = Vec::with_capacity(takes.len());
            for (take, decision) in takes.iter().zip(decisions) {
                let untouched = self.stand(&mut inner, &take.key, &take.policy)?;
                stand.push(Decision {
                    allowed: decision.allowed,
                    retry_after: decision.retry_after,
                    ..untouched
                });
            }
            return Ok(stand);
        }
        let changes = draft
            .into_iter()
            .map(|(key, (state, full_at))| (key, state, full_at))
            .collect();
        self.write(&mut inner, Class::Count, &Record::Limit { changes })?;
        Ok(decisions)
    }

    async fn peek(&self, key: &str, policy: Policy) -> Result<Decision> {
        check_key(key)?;
        policy.check(Amount::default())?;
        self.stand(&mut self.lock(), key, &policy)
    }

    async fn reset(&self, key: &str) -> Result<()> {
        check_key(key)?;
        let record = Record::LimitReset {
            key: key.to_owned(),
        };
        let end = self.write(&mut self.lock(), Class::Settle, &record)?;
        self.log.committed(end).await
    }
}

impl Store {
    /// State of a limit. One whose clock was put back is stored, or time would never advance for it.
    fn stand(&self, inner: &mut Inner, key: &str, policy: &Policy) -> Result<Decision> {
        let now = self.clock.now().as_millis();
        let known = inner.state.limits.get(key);
        let (decision, state) = limiter::decide(policy, known, Amount::default(), now);
        if state.is_earlier(known) {
            let changes = vec![(key.to_owned(), state, full_at(now, &decision))];
            self.write(inner, Class::Count, &Record::Limit { changes })?;
        }
        Ok(decision)
    }
}

/// When a limit that stands like this is full again.
fn full_at(now: u64, decision: &Decision) -> u64 {
    now.saturating_add(u64::try_from(decision.reset_after.as_millis()).unwrap_or(u64::MAX))
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > 1024 {
        return Err(Error::invalid(
            "the key of a limit must have 1 to 1,024 bytes",
        ));
    }
    Ok(())
}
