//! Baselines of comparisons: hand-written queues on the same server, with the same client.
//!
//! No role uses one. A baseline stores messages as a plain program would: bare
//! payloads, no ids, no retries, nothing for a worker that dies.

mod rabbitmq;
mod redis;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use towpath_core::{Error, Result};

/// A hand-written queue on a server.
#[async_trait]
pub(crate) trait Baseline: Send + Sync {
    /// Stores the payloads in one call, the next one to be consumed first in front.
    ///
    /// # Errors
    /// `Unavailable` when the server did not answer.
    async fn publish(&self, payloads: Vec<Bytes>) -> Result<()>;

    /// Takes up to `max` payloads, oldest first, so that a worker that dies would leave them to be found, and then
    /// removes them. Waits at most `wait` for the first one.
    ///
    /// # Errors
    /// As [`Baseline::publish`].
    async fn consume(&self, max: usize, wait: Duration) -> Result<Vec<Bytes>>;

    /// Forgets every payload, and makes the queue ready; the first thing to call.
    ///
    /// # Errors
    /// As [`Baseline::publish`].
    async fn clear(&self) -> Result<()>;

    /// CPU time the server has used since it was started.
    ///
    /// # Errors
    /// As [`Baseline::publish`], and `Unsupported` when the server does not report it.
    async fn server_cpu(&self) -> Result<Duration>;
}

/// The hand-written queue for the server at a URL.
///
/// # Errors
/// `Unsupported` when there is none for this kind of server; `Unavailable` when it does not answer.
pub(crate) async fn connect(url: &str) -> Result<Arc<dyn Baseline>> {
    if url.starts_with("redis://") {
        return Ok(Arc::new(redis::Baseline::connect(url).await?));
    }
    if url.starts_with("amqp://") {
        return Ok(Arc::new(rabbitmq::Baseline::connect(url).await?));
    }
    let scheme = url.split(':').next().unwrap_or_default();
    Err(Error::unsupported(format!(
        "no baseline for `{scheme}`; available: redis, rabbitmq"
    )))
}
