//! Mutants of the rate limit port.

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::limiter::{Decision, Policy};
use towpath_core::port::RateLimit;
use towpath_core::port::rate_limit::Take;
use towpath_core::{MessageId, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutation {
    Admits,
    OneByOne,
    ShortTime,
    NoReset,
    AnswersNothing,
    OwnKeys,
}

pub(super) fn mutate(inner: Arc<dyn RateLimit>, mutation: Mutation) -> Arc<dyn RateLimit> {
    let own = MessageId::new().to_string();
    Arc::new(Mutated {
        inner,
        mutation,
        own,
    })
}

struct Mutated {
    inner: Arc<dyn RateLimit>,
    mutation: Mutation,
    /// New whenever the backend is opened.
    own: String,
}

#[async_trait]
impl RateLimit for Mutated {
    async fn take(&self, mut takes: Vec<Take>) -> Result<Vec<Decision>> {
        let mut decisions = Vec::with_capacity(takes.len());
        if self.mutation == Mutation::OwnKeys {
            for take in &mut takes {
                take.key.push_str(&self.own);
            }
        }
        if self.mutation == Mutation::AnswersNothing {
            return Ok(self.inner.take(takes).await.unwrap_or_default());
        }
        if self.mutation == Mutation::OneByOne {
            for take in takes {
                decisions.extend(self.inner.take(vec![take]).await?);
            }
            return Ok(decisions);
        }
        decisions = self.inner.take(takes).await?;
        for decision in &mut decisions {
            match self.mutation {
                Mutation::Admits => decision.allowed = true,
                Mutation::ShortTime => decision.retry_after /= 4,
                _ => {}
            }
        }
        Ok(decisions)
    }

    async fn peek(&self, key: &str, policy: Policy) -> Result<Decision> {
        self.inner.peek(key, policy).await
    }

    async fn reset(&self, key: &str) -> Result<()> {
        if self.mutation == Mutation::NoReset {
            return Ok(());
        }
        self.inner.reset(key).await
    }
}
