//! A queue of messages, each handled by one worker.

use std::sync::Arc;
use std::time::Duration;

use towpath_core::port;
use towpath_core::port::queue::{DeadLetter, Enqueued, Selection, Settings, Stats};
use towpath_core::{Clock, Error, MessageId, NewMessage, QueueName, Result};

/// A handle to a queue; clones share it. Made by [`Engine::queue`](crate::Engine::queue).
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towpath::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let engine = towpath::Engine::open(&format!("embedded:{}", folder.path().display())).await?;
/// use std::time::Duration;
/// use towpath::NewMessage;
///
/// let queue = engine.queue("reports").await?;
/// // A second message with this id within 24 hours is not stored.
/// let report = NewMessage {
///     dedup_id: Some("2026-w48".to_owned()),
///     ..NewMessage::new("week 48")
/// };
/// let first = queue.send(report.clone()).await?;
/// assert_eq!(queue.send(report).await?, first);
/// queue.send_in(Duration::from_secs(60), "later").await?;
/// let stats = queue.stats().await?;
/// assert_eq!((stats.ready, stats.delayed), (1, 1));
/// # engine.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct Queue {
    pub(crate) port: Arc<dyn port::Queue>,
    pub(crate) name: QueueName,
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Queue {
    pub(crate) fn new(
        port: Arc<dyn port::Queue>,
        name: QueueName,
        settings: Settings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            port,
            name,
            settings,
            clock,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Stores a message: text, bytes, or a [`NewMessage`] with headers, a key or a dedup id. It is durable when this returns.
    ///
    /// The id is that of the stored message: of the first one with this dedup id.
    ///
    /// # Errors
    /// `Invalid` for a message over its limits; `Overloaded` for a full queue; `Unavailable` when it may not have been
    /// stored: send the same [`NewMessage`] again.
    pub async fn send(&self, message: impl Into<NewMessage>) -> Result<MessageId> {
        let mut outcomes = self.send_all([message.into()]).await?;
        let outcome = outcomes.pop();
        outcome.unwrap_or_else(|| Err(Error::unavailable("the store gave no outcome")))
    }

    /// Stores a message that is delivered after this time at the earliest.
    ///
    /// # Errors
    /// As [`Queue::send`], and `Unsupported` by a store without delays.
    pub async fn send_in(
        &self,
        delay: Duration,
        message: impl Into<NewMessage>,
    ) -> Result<MessageId> {
        let mut message = message.into();
        message.not_before = Some(self.clock.now().after(delay));
        self.send(message).await
    }

    /// Stores up to 10,000 messages with one sync; one outcome each.
    ///
    /// # Errors
    /// Of the whole batch, as [`Queue::send`].
    pub async fn send_all(
        &self,
        messages: impl IntoIterator<Item = NewMessage>,
    ) -> Result<Vec<Result<MessageId>>> {
        let messages: Vec<NewMessage> = messages.into_iter().collect();
        let outcomes = self.port.enqueue(&self.name, messages).await?;
        Ok(outcomes
            .into_iter()
            .map(|outcome| outcome.map(Enqueued::id))
            .collect())
    }

    /// Its counts.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn stats(&self) -> Result<Stats> {
        self.port.stats(&self.name).await
    }

    /// Up to `max` dead letters, oldest first, with the reason of each.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn dead_letters(&self, max: usize) -> Result<Vec<DeadLetter>> {
        self.port.dead_letters(&self.name, None, max).await
    }

    /// Puts up to `max` dead letters back at the end of the queue, oldest first, and returns their number.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn redrive(&self, max: usize) -> Result<u64> {
        let dead = self.dead_letters(max).await?;
        let ids = dead.iter().map(|dead| dead.message.id).collect();
        self.port.redrive(&self.name, &Selection::Ids(ids)).await
    }

    /// The port behind it, for leases, dead letters and everything else that a store can do.
    pub fn port(&self) -> &Arc<dyn port::Queue> {
        &self.port
    }
}
