//! The entrance: an opened store, and the handles to its queues, streams and limits.

use std::sync::Arc;

use towpath_core::backend::Backend;
use towpath_core::limiter::Policy;
use towpath_core::port::queue::Settings;
use towpath_core::{Clock, QueueName, Result, StreamName, SystemClock};

use crate::{Limiter, Queue, Stream};

/// An opened store.
///
/// | URL | store |
/// | --- | --- |
/// | `embedded:./data` | files in a folder of this machine, used by one process at a time |
/// | `redis://host:6379`, `amqp://host:5672`, `kafka://host:9092` | a server, shared by many processes; each needs the feature of its name |
///
/// Clones share the store. Call [`Engine::close`] before the program ends.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towpath::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let url = format!("embedded:{}", folder.path().display());
/// let engine = towpath::Engine::open(&url).await?;
/// let emails = engine.queue("emails").await?;
/// emails.send("to: zoe@example.com").await?;
/// assert_eq!(emails.stats().await?.ready, 1);
/// engine.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct Engine {
    backend: Backend,
    clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the store that a URL names. A folder that is missing is created.
    ///
    /// # Errors
    /// `Invalid` for an unknown scheme or a bad URL; `Unavailable` when the store cannot be opened, for instance because
    /// another process has the folder open; `Corrupt` for a damaged store.
    pub async fn open(url: &str) -> Result<Self> {
        Self::open_at(url, Arc::new(SystemClock::new())).await
    }

    /// The same by this clock, for tests of delays and limits.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub async fn open_at(url: &str, clock: Arc<dyn Clock>) -> Result<Self> {
        let backend = towpath_backends::open(url, Arc::clone(&clock)).await?;
        Ok(Self { backend, clock })
    }

    /// A queue, declared with default settings when it is new.
    ///
    /// # Errors
    /// `Invalid` for a bad name; `Unsupported` by a store without queues; those of the store.
    pub async fn queue(&self, name: &str) -> Result<Queue> {
        self.queue_with(name, Settings::default()).await
    }

    /// A queue, declared with these settings.
    ///
    /// # Errors
    /// As [`Engine::queue`], and `Unsupported` for a setting that the store lacks.
    pub async fn queue_with(&self, name: &str, settings: Settings) -> Result<Queue> {
        let port = self.backend.require_queue("a queue")?;
        let name = QueueName::new(name)?;
        port.declare(&name, &settings).await?;
        Ok(Queue::new(port, name, settings, Arc::clone(&self.clock)))
    }

    /// A stream. It begins with its first entry.
    ///
    /// # Errors
    /// `Invalid` for a bad name; `Unsupported` by a store without streams, such as RabbitMQ.
    pub fn stream(&self, name: &str) -> Result<Stream> {
        let port = self.backend.require_stream("a stream")?;
        Ok(Stream::new(
            port,
            StreamName::new(name)?,
            self.backend.queue.clone(),
            Arc::clone(&self.clock),
        ))
    }

    /// A rate limit of this policy, which all processes on the store share.
    ///
    /// # Errors
    /// `Unsupported` by a store without limits, such as RabbitMQ and Kafka.
    pub fn limiter(&self, policy: Policy) -> Result<Limiter> {
        let port = self.backend.require_rate_limit("a rate limit")?;
        Ok(Limiter::new(port, policy))
    }

    /// The store behind the handles, with every port that it has.
    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Writes pending changes and releases the store. Calls that still wait end with `Unavailable`.
    ///
    /// # Errors
    /// `Unavailable` when a pending change could not be written.
    pub async fn close(&self) -> Result<()> {
        self.backend.lifecycle.close().await
    }
}
