//! Wrong limits: right in all but one way.

use std::sync::Arc;

use async_trait::async_trait;
use towpath_core::Result;
use towpath_core::limiter::{Decision, Policy};
use towpath_core::port::RateLimit;
use towpath_core::port::rate_limit::Take;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Admits,
    OneByOne,
    ShortTime,
}

pub(super) fn wrong(inner: Arc<dyn RateLimit>, way: Way) -> Arc<dyn RateLimit> {
    Arc::new(Wrong { inner, way })
}

struct Wrong {
    inner: Arc<dyn RateLimit>,
    way: Way,
}

#[async_trait]
impl RateLimit for Wrong {
    async fn take(&self, takes: Vec<Take>) -> Result<Vec<Decision>> {
        let mut decisions = Vec::with_capacity(takes.len());
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
                Way::OneByOne => {}
            }
        }
        Ok(decisions)
    }

    async fn peek(&self, key: &str, policy: Policy) -> Result<Decision> {
        self.inner.peek(key, policy).await
    }

    async fn reset(&self, key: &str) -> Result<()> {
        self.inner.reset(key).await
    }
}
