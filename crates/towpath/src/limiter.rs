//! A rate limit that all processes on a store share.

use std::sync::Arc;

use towpath_core::limiter::{Amount, Decision, Policy};
use towpath_core::port::RateLimit;
use towpath_core::port::rate_limit::Take;
use towpath_core::{Error, Result};

/// A rate limit of one policy, counted for each key. Made by [`Engine::limiter`](crate::Engine::limiter).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towpath::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let engine = towpath::Engine::open(&format!("embedded:{}", folder.path().display())).await?;
/// use std::time::Duration;
/// use towpath::limit::{Amount, Policy};
///
/// let logins = engine.limiter(Policy::SlidingWindow {
///     limit: Amount::whole(2),
///     window: Duration::from_secs(60),
/// })?;
/// assert!(logins.take("zoe", 1).await?.allowed);
/// assert!(logins.take("zoe", 1).await?.allowed);
/// let third = logins.take("zoe", 1).await?;
/// assert!(!third.allowed && third.retry_after > Duration::from_secs(50));
/// # engine.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct Limiter {
    port: Arc<dyn RateLimit>,
    policy: Policy,
}

impl std::fmt::Debug for Limiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Limiter")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Limiter {
    pub(crate) fn new(port: Arc<dyn RateLimit>, policy: Policy) -> Self {
        Self { port, policy }
    }

    /// Takes this many tokens of a key, all of them or none.
    ///
    /// # Errors
    /// `Invalid` for a bad policy, or more tokens than its capacity; those of the store.
    pub async fn take(&self, key: &str, tokens: u64) -> Result<Decision> {
        let take = Take {
            key: key.to_owned(),
            policy: self.policy,
            amount: Amount::whole(tokens),
        };
        let decision = self.port.take(vec![take]).await?.pop();
        decision.ok_or_else(|| Error::unavailable("the store gave no decision"))
    }

    /// Makes the limit of a key full again.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn reset(&self, key: &str) -> Result<()> {
        self.port.reset(key).await
    }
}
