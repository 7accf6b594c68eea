//! Effects: the changes of a handler, committed in one step where ports share a store.
//!
//! This turns "at least once" into "effectively once": the handler's
//! changes and the ack of the message that caused them stand or fall together.

use async_trait::async_trait;
use bytes::Bytes;

use crate::port::{kv, queue, routes::Publication, stream::Offset};
use crate::{ExchangeName, GroupName, NewMessage, QueueName, Result, StreamName};

/// Changes across the ports of one store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Changes to keys and values.
    pub kv: Vec<kv::Op>,
    /// Messages to enqueue; a repeated dedup id is skipped.
    pub enqueue: Vec<(QueueName, NewMessage)>,
    /// Messages to route.
    pub publish: Vec<(ExchangeName, Publication)>,
    /// Entries to append.
    pub append: Vec<(StreamName, NewMessage)>,
    /// Deliveries to end.
    pub settle: Vec<queue::Settlement>,
    /// Stream entries to mark as finished.
    pub commit: Vec<(StreamName, GroupName, Vec<Offset>)>,
}

/// Outcome of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Applied; the values of the kv ops as in [`kv::Committed::Applied`].
    Applied(Vec<Option<Bytes>>),
    /// Refused, nothing changed: the condition of kv op number `index` did not hold.
    Refused {
        /// Which op.
        index: usize,
        /// The current value of its key.
        current: Option<Bytes>,
    },
}

/// Atomic steps over several ports of one store.
#[async_trait]
pub trait Effects: Send + Sync {
    /// Applies every change or none; durable when it returns.
    ///
    /// # Errors
    /// Nothing changed: `Conflict` when a receipt is stale, `NotFound` when
    /// a publication matches no route, `Invalid` or overloaded as in the ports themselves.
    async fn apply(&self, transaction: Transaction) -> Result<Outcome>;
}
