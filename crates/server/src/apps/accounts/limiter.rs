//! Decides requests by their rules, also while the store is unavailable.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use towpath_core::limiter::{self, Amount, Decision, State};
use towpath_core::port::RateLimit;
use towpath_core::port::rate_limit::Take;
use towpath_core::{Clock, Error, ErrorKind, Result};

use crate::telemetry::{LastCall, Metrics, log_failure};

use super::rule::{OnFailure, Rule, Rules};

/// Timeout after which the store counts as unavailable.
const DEADLINE: Duration = Duration::from_secs(5);

/// Most keys that are decided here; more are refused.
const LOCAL_KEYS: usize = 100_000;

/// Longest key in bytes.
pub(super) const KEY_BYTES: usize = 1_024;

/// One request.
pub(super) struct LimitRequest<'a> {
    pub(super) key: &'a str,
    pub(super) rule: &'a Rule,
    pub(super) amount: Amount,
}

/// Limits in a shared store.
#[derive(Clone)]
pub struct Limiter {
    store: Arc<dyn RateLimit>,
    clock: Arc<dyn Clock>,
    pub(super) rules: Arc<Rules>,
    local: Arc<Mutex<HashMap<String, State>>>,
    metrics: Metrics,
    /// The last call that takes.
    pub calls: LastCall,
}

impl Limiter {
    /// Limits by these rules, kept in `store`.
    pub fn new(
        store: Arc<dyn RateLimit>,
        clock: Arc<dyn Clock>,
        rules: Rules,
        metrics: Metrics,
    ) -> Self {
        Self {
            store,
            clock,
            rules: Arc::new(rules),
            local: Arc::default(),
            metrics,
            calls: LastCall::default(),
        }
    }

    /// Takes all amounts or none.
    ///
    /// # Errors
    /// `Invalid` for a key of no or more than 1,024 bytes and an amount over the capacity; `Unavailable` when the store
    /// is unavailable and a rule rejects then.
    pub(super) async fn take(&self, requests: &[LimitRequest<'_>]) -> Result<Vec<Decision>> {
        for one in requests {
            check_key(one.key)?;
        }
        self.take_any(requests).await
    }

    /// The same for any key: those with control characters cannot be named by callers of the API.
    ///
    /// # Errors
    /// As [`Limiter::take`], the key aside.
    pub(super) async fn take_any(&self, requests: &[LimitRequest<'_>]) -> Result<Vec<Decision>> {
        check_sums(requests)?;
        let takes = requests.iter().map(|one| Take {
            key: one.key.to_owned(),
            policy: one.rule.policy,
            amount: one.amount,
        });
        let taken = within(self.store.take(takes.collect())).await;
        self.calls.note(&taken);
        let decided = self.or_without(taken, requests);
        for (number, one) in requests.iter().enumerate() {
            let outcome = match &decided {
                Ok(decisions) if decisions.get(number).is_some_and(|one| one.allowed) => "allowed",
                Ok(_) => "denied",
                Err(_) => "undecided",
            };
            self.metrics.limit_decision(&one.rule.name, outcome);
        }
        decided
    }

    /// State of a limit.
    ///
    /// # Errors
    /// As [`Limiter::take`].
    pub(super) async fn peek(&self, key: &str, rule: &Rule) -> Result<Decision> {
        check_key(key)?;
        let seen = within(self.store.peek(key, rule.policy)).await;
        let amount = Amount::default();
        let requests = LimitRequest { key, rule, amount };
        let mut decided = self.or_without(seen.map(|one| vec![one]), &[requests])?;
        decided
            .pop()
            .ok_or_else(|| Error::unavailable("the store gave no decision"))
    }

    /// Makes a limit full again.
    ///
    /// # Errors
    /// As [`Limiter::take`]; `Unavailable` when the store is unavailable, whatever the rule.
    pub(super) async fn reset(&self, key: &str) -> Result<()> {
        check_key(key)?;
        self.local().remove(key);
        within(self.store.reset(key)).await
    }

    /// Whether the store answers.
    ///
    /// # Errors
    /// Those of the store.
    pub(super) async fn check(&self) -> Result<()> {
        let Some(rule) = self.rules.find(None) else {
            return Ok(());
        };
        within(self.store.peek("health", rule.policy))
            .await
            .map(drop)
    }

    /// The store's decisions; those of the rules when it is unavailable.
    fn or_without(
        &self,
        outcome: Result<Vec<Decision>>,
        requests: &[LimitRequest<'_>],
    ) -> Result<Vec<Decision>> {
        let error = match outcome {
            Err(error) => error,
            answered => return answered,
        };
        if requests
            .iter()
            .any(|one| one.rule.on_failure == OnFailure::Closed)
        {
            return Err(error);
        }
        log_failure("rate limit store unavailable; deciding without it", &error);
        self.without_store(requests)
    }

    fn without_store(&self, requests: &[LimitRequest<'_>]) -> Result<Vec<Decision>> {
        let now = self.clock.now().as_millis();
        let mut known = self.local();
        let decided: Vec<(Decision, Option<State>)> = requests
            .iter()
            .map(|one| match one.rule.on_failure {
                OnFailure::Local => {
                    let state = known.get(one.key);
                    let (decision, state) =
                        limiter::decide(&one.rule.policy, state, one.amount, now);
                    (decision, Some(state))
                }
                OnFailure::Open | OnFailure::Closed => (allowed(one.rule), None),
            })
            .collect();
        if decided.iter().all(|(decision, _)| decision.allowed) {
            for (one, (_, state)) in requests.iter().zip(&decided) {
                if let Some(state) = state {
                    if known.len() >= LOCAL_KEYS && !known.contains_key(one.key) {
                        return Err(Error::unavailable(
                            "too many limits while the store is unavailable",
                        ));
                    }
                    known.insert(one.key.to_owned(), state.clone());
                }
            }
        }
        Ok(decided.into_iter().map(|(decision, _)| decision).collect())
    }

    fn local(&self) -> std::sync::MutexGuard<'_, HashMap<String, State>> {
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The tokens of one key in one decision must fit into its capacity: else it would be refused for ever.
fn check_sums(requests: &[LimitRequest<'_>]) -> Result<()> {
    let mut sums: HashMap<&str, u64> = HashMap::with_capacity(requests.len());
    for one in requests {
        one.rule.policy.check(one.amount)?;
        let sum = sums.entry(one.key).or_default();
        *sum = sum.saturating_add(one.amount.as_micros());
        let sum = Amount::micros(*sum);
        one.rule.policy.check(sum).map_err(|error| {
            Error::invalid(format!(
                "the takes of `{}` add up to {}",
                one.key,
                sum.as_f64()
            ))
            .with_source(error)
        })?;
    }
    Ok(())
}

fn allowed(rule: &Rule) -> Decision {
    Decision {
        allowed: true,
        remaining: rule.policy.capacity(),
        retry_after: Duration::ZERO,
        reset_after: Duration::ZERO,
    }
}

fn check_key(key: &str) -> Result<()> {
    if key.is_empty() || key.len() > KEY_BYTES || key.chars().any(char::is_control) {
        return Err(Error::invalid(format!(
            "`key` must have 1 to {KEY_BYTES} bytes and no control characters"
        )));
    }
    Ok(())
}

/// The store's answer, with a deadline. Keys and amounts were checked before, so an error of any kind is the store's.
async fn within<T>(asked: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(DEADLINE, asked).await {
        Ok(Err(error)) if error.kind() != ErrorKind::Unavailable => {
            Err(Error::unavailable("the store of the limits refused").with_source(error))
        }
        Ok(answer) => answer,
        Err(_) => Err(Error::unavailable(format!("no answer within {DEADLINE:?}"))),
    }
}
