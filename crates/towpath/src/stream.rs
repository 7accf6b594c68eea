//! A stream of entries, read by any number of groups.

use std::sync::Arc;

use towpath_core::port;
use towpath_core::port::stream::{Offset, Start, Stats};
use towpath_core::{Clock, Error, GroupName, NewMessage, QueueName, Result, StreamName};

/// A handle to a stream; clones share it. Made by [`Engine::stream`](crate::Engine::stream).
///
/// Entries stay after they were read, and each [`Group`] reads all of them.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> towpath::Result<()> {
/// # let folder = tempfile::tempdir().unwrap();
/// # let engine = towpath::Engine::open(&format!("embedded:{}", folder.path().display())).await?;
/// let changes = engine.stream("changes")?;
/// changes.append("a row was inserted").await?;
/// let group = changes.group("search").await?;
/// assert_eq!(changes.stats().await?.entries, 1);
/// # drop(group);
/// # engine.close().await
/// # }
/// ```
#[derive(Clone)]
pub struct Stream {
    pub(crate) port: Arc<dyn port::Stream>,
    name: StreamName,
    dead_letters: Option<Arc<dyn port::Queue>>,
    clock: Arc<dyn Clock>,
}

/// A group of workers that share the entries of a stream: each entry goes to one of them.
#[derive(Clone)]
pub struct Group {
    pub(crate) stream: Arc<dyn port::Stream>,
    pub(crate) stream_name: StreamName,
    pub(crate) name: GroupName,
    pub(crate) dead_letters: Arc<dyn port::Queue>,
    pub(crate) dead: QueueName,
    pub(crate) clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group")
            .field("stream", &self.stream_name)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Stream {
    pub(crate) fn new(
        port: Arc<dyn port::Stream>,
        name: StreamName,
        dead_letters: Option<Arc<dyn port::Queue>>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            port,
            name,
            dead_letters,
            clock,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// Appends an entry. It is durable when this returns.
    ///
    /// # Errors
    /// `Invalid` for an entry over its limits, or with a delay or an expiry; `Unavailable` when it may not have been
    /// stored.
    pub async fn append(&self, entry: impl Into<NewMessage>) -> Result<Offset> {
        let mut outcomes = self.port.append(&self.name, vec![entry.into()]).await?;
        let outcome = outcomes.pop();
        outcome.unwrap_or_else(|| Err(Error::unavailable("the store gave no outcome")))
    }

    /// The group of this name, which begins with the first entry of the stream when it is new.
    ///
    /// An entry that no attempt could handle goes to the queue `STREAM.GROUP.dead`, as a message with the header `reason`.
    ///
    /// # Errors
    /// `Invalid` for a bad name; `Unsupported` by a store without queues for dead letters; those of the store.
    pub async fn group(&self, name: &str) -> Result<Group> {
        let dead_letters = self.dead_letters.clone();
        let dead_letters = dead_letters.ok_or_else(|| {
            Error::unsupported("a group needs a store with queues for dead letters")
        })?;
        let dead = QueueName::new(format!("{}.{name}.dead", self.name))?;
        let name = GroupName::new(name)?;
        match self
            .port
            .create_group(&self.name, &name, Start::Beginning)
            .await
        {
            Ok(()) => {}
            // It is there, with its position.
            Err(error) if error.kind() == towpath_core::ErrorKind::Conflict => {}
            Err(error) => return Err(error),
        }
        Ok(Group {
            stream: Arc::clone(&self.port),
            stream_name: self.name.clone(),
            name,
            dead_letters,
            dead,
            clock: Arc::clone(&self.clock),
        })
    }

    /// Its counts, and those of its groups.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn stats(&self) -> Result<Stats> {
        self.port.stats(&self.name).await
    }

    /// The port behind it.
    pub fn port(&self) -> &Arc<dyn port::Stream> {
        &self.port
    }
}
