//! Limits shared by all clients of the same backend.

use async_trait::async_trait;

use crate::Result;
use crate::limiter::{Amount, Decision, Policy};

/// One request against one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Take {
    /// Which limit, for instance `user:42`; 1 to 1,024 bytes.
    pub key: String,
    /// Its rule; the caller's rule counts, also when it changed since the last call.
    pub policy: Policy,
    /// Requested amount; zero asks without taking.
    pub amount: Amount,
}

/// Shared limits. The backend's clock decides, not the caller's.
#[async_trait]
pub trait RateLimit: Send + Sync {
    /// Takes each amount, all or none, in one atomic step. One decision per
    /// request; when one is refused nothing is taken, and each decision carries the state of its own limit.
    ///
    /// # Errors
    /// `Invalid` for an amount that can never be allowed (over the capacity), an empty or over-long key.
    async fn take(&self, takes: Vec<Take>) -> Result<Vec<Decision>>;

    /// State of a limit, without taking.
    async fn peek(&self, key: &str, policy: Policy) -> Result<Decision>;

    /// Forgets a limit's history: full again.
    async fn reset(&self, key: &str) -> Result<()>;
}
