//! The rate limit port.
//!
//! Takes are logged and not waited for: a killed process forgets none, a power
//! cut those of its last sync, and a limit is then that much too generous.

use async_trait::async_trait;
use towpath_core::limiter::{self, Amount, Decision, Policy};
use towpath_core::port::rate_limit::{RateLimit, Take};
use towpath_core::{Error, Result};

use super::log::Class;
use super::record::Record;
use super::store::Store;

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
            let full_at = now.saturating_add(
                u64::try_from(decision.reset_after.as_millis()).unwrap_or(u64::MAX),
            );
            draft.insert(take.key.clone(), (state, full_at));
            decisions.push(decision);
        }
        if decisions.iter().any(|decision| !decision.allowed) {
            // Nothing is taken: each limit as it stands.
            return Ok(takes
                .iter()
                .zip(decisions)
                .map(|(take, decision)| {
                    let known = inner.state.limits.get(&take.key);
                    let (untouched, _) =
                        limiter::decide(&take.policy, known, Amount::default(), now);
                    Decision {
                        allowed: decision.allowed,
                        retry_after: decision.retry_after,
                        ..untouched
                    }
                })
                .collect());
        }
        let changes = draft
            .into_iter()
            .map(|(key, (state, full_at))| (key, state, full_at))
            .collect();
        self.write(&mut inner, Class::Settle, &Record::Limit { changes })?;
        Ok(decisions)
    }

    async fn peek(&self, key: &str, policy: Policy) -> Result<Decision> {
        check_key(key)?;
        policy.check(Amount::default())?;
        let inner = self.lock();
        let known = inner.state.limits.get(key);
        Ok(limiter::decide(
            &policy,
            known,
            Amount::default(),
            self.clock.now().as_millis(),
        )
        .0)
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

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > 1024 {
        return Err(Error::invalid(
            "the key of a limit must have 1 to 1,024 bytes",
        ));
    }
    Ok(())
}
