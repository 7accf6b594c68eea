//! Wrong limits: right in all but one way.

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::limiter::{Decision, Policy};
use towpath_core::port::RateLimit;
use towpath_core::port::rate_limit::Take;
use towpath_core::{MessageId, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Admits,
    OneByOne,
    ShortTime,
    NoReset,
    AnswersNothing,
    OwnKeys,
}

pub(super) fn wrong(inner: Arc<dyn RateLimit>, way: Way) -> Arc<dyn RateLimit> {
    let own = MessageId::new().to_string();
    Arc::new(Wrong { inner, way, own })
}

struct Wrong {
    inner: Arc<dyn RateLimit>,
    way: Way,
    /// New whenever the backend is opened.
    own: String,
}

#[async_trait]
impl RateLimit for Wrong {
    async fn take(&self, mut takes: Vec<Take>) -> Result<Vec<Decision>> {
        let mut decisions = Vec::with_capacity(takes.len());
        if self.way == Way::OwnKeys {
            for take in &mut takes {
                take.key.push_str(&self.own);
            }
        }
        if self.way == Way::AnswersNothing {
            return Ok(self.inner.take(takes).await.unwrap_or_default());
        }
        if self.way == Way::OneByOne {
            for take in takes {
                decisions.extend(self.inner.take(vec![take]).await?);
            }
            return Ok(decisions);
        }
        decisions = self.inner.take(takes).await?;
        for decision in &mut decisions {
            match self.way {
                Way::Admits => decision.allowed = true,
                Way::ShortTime => decision.retry_after /= 4,
                _ => {}
            }
        }
        Ok(decisions)
    }

    async fn peek(&self, key: &str, policy: Policy) -> Result<Decision> {
        self.inner.peek(key, policy).await
    }

    async fn reset(&self, key: &str) -> Result<()> {
        if self.way == Way::NoReset {
            return Ok(());
        }
        self.inner.reset(key).await
    }
}
