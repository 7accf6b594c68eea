//! Source offsets: how far a source was read, moved in the step that appends the entries read from it.
//!
//! So a reader that crashes at any moment resumes exactly where the stream ends. A store with keys and atomic steps
//! offers this through [`KvSourceOffsets`]; a broker may have its own implementation.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::port::effects::{self, Effects, Transaction};
use crate::port::kv::{Committed, Kv, Op};
use crate::{NewMessage, QueueName, Result, StreamName};

/// Entries read from a source, and the move of its position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppendAt {
    /// The source's name, 1 to 1,000 bytes.
    pub source: String,
    /// The position that it has, `None` before the first.
    pub from: Option<Bytes>,
    /// The position that it gets.
    pub to: Bytes,
    /// Where the entries go; without entries the stream need not exist, and is not made.
    pub stream: StreamName,
    /// The entries, in order.
    pub entries: Vec<NewMessage>,
    /// Destination of rejected input: a queue, or a stream of that name on a backend without queues.
    pub dead: QueueName,
    /// Rejected input.
    pub rejected: Vec<NewMessage>,
}

/// Outcome of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppendOutcome {
    /// Appended, and the position moved.
    Appended,
    /// Nothing changed: the source has this position.
    OffsetConflict(Option<Bytes>),
}

/// Positions of sources beside the streams that they are read into.
#[async_trait]
pub trait SourceOffsets: Send + Sync {
    /// The source's position.
    ///
    /// # Errors
    /// `Unavailable` when the backend did not answer.
    async fn position(&self, source: &str) -> Result<Option<Bytes>>;

    /// Appends and moves the position, or does neither; durable when it returns.
    ///
    /// # Errors
    /// As `Stream::append` and `Queue::enqueue`. With `Unavailable` the outcome is unknown: read the position.
    async fn append_at(&self, step: AppendAt) -> Result<AppendOutcome>;

    /// The sources whose names start with `prefix`, each with its position; sources are not claimed.
    ///
    /// # Errors
    /// `Unavailable` when the backend did not answer.
    async fn sources(&self, prefix: &str) -> Result<Vec<(String, Bytes)>>;

    /// Removes the position of a source, unless it is another one than `last`. Returns whether it was removed.
    ///
    /// # Errors
    /// `Unavailable` when the backend did not answer.
    async fn forget(&self, source: &str, last: Bytes) -> Result<bool>;

    /// Number of entries in one step of a source that is far behind: fewer wait for the backend more often than they
    /// need to, more hold up its other callers, and gain nothing.
    fn batch_entries(&self) -> usize;
}

/// Entries of one atomic step: while it is under way the store does nothing else, as Redis in a script.
const ENTRIES: usize = 2_000;

/// Keys listed at once.
const PAGE: usize = 1_000;

/// Positions as keys of a store, moved by its atomic steps.
pub struct KvSourceOffsets {
    /// Where the positions are: the source's name is the key.
    pub kv: Arc<dyn Kv>,
    /// Its steps.
    pub effects: Arc<dyn Effects>,
}

#[async_trait]
impl SourceOffsets for KvSourceOffsets {
    async fn position(&self, source: &str) -> Result<Option<Bytes>> {
        self.kv.get(source).await
    }

    async fn append_at(&self, step: AppendAt) -> Result<AppendOutcome> {
        let move_position = Op::CompareAndSwap {
            key: step.source,
            expected: step.from,
            value: step.to,
            ttl: None,
        };
        let entries = step.entries.into_iter();
        let rejected = step.rejected.into_iter();
        let transaction = Transaction {
            kv: vec![move_position],
            append: entries.map(|one| (step.stream.clone(), one)).collect(),
            enqueue: rejected.map(|one| (step.dead.clone(), one)).collect(),
            ..Transaction::default()
        };
        Ok(match self.effects.apply(transaction).await? {
            effects::Outcome::Applied(_) => AppendOutcome::Appended,
            effects::Outcome::Refused { current, .. } => AppendOutcome::OffsetConflict(current),
        })
    }

    async fn sources(&self, prefix: &str) -> Result<Vec<(String, Bytes)>> {
        let (mut found, mut after) = (Vec::new(), None::<String>);
        loop {
            let keys = self.kv.keys(prefix, after.as_deref(), PAGE).await?;
            let Some(last) = keys.last().cloned() else {
                return Ok(found);
            };
            for key in keys {
                // One that was removed since it was listed is skipped.
                if let Some(position) = self.kv.get(&key).await? {
                    found.push((key, position));
                }
            }
            after = Some(last);
        }
    }

    async fn forget(&self, source: &str, last: Bytes) -> Result<bool> {
        let is_the_last = Op::CompareAndSwap {
            key: source.to_owned(),
            expected: Some(last.clone()),
            value: last,
            ttl: None,
        };
        let key = source.to_owned();
        let committed = self
            .kv
            .commit(vec![is_the_last, Op::Delete { key }])
            .await?;
        Ok(matches!(committed, Committed::Applied(_)))
    }

    fn batch_entries(&self) -> usize {
        ENTRIES
    }
}
