//! Sinks: where data leaves.

use std::time::Duration;

use async_trait::async_trait;

use crate::{Delivery, Error, ErrorKind, Result};

/// Outcome of one delivery at the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Delivered, as durable as the sink can make it.
    Done,
    /// Delivered, and the sink acked the delivery in the same step as its effect ([`crate::port::Effects`]).
    Settled,
    /// Failed; a retry may succeed.
    Retry {
        /// The delay that the destination asked for.
        after: Option<Duration>,
        /// Why.
        error: String,
    },
    /// Failed for good; a retry would fail too.
    Reject {
        /// Why.
        reason: String,
    },
    /// Failed because of a condition of the destination: no attempt is charged, and the destination is paused
    /// for a while.
    Unavailable {
        /// Progress of the delivery.
        cause: Cause,
        /// The time that the destination named: nothing is sent to it before.
        after: Option<Duration>,
        /// Why.
        error: String,
    },
}

/// The condition of a destination that failed a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing of the delivery reached it, so the message cannot be the reason.
    Unreachable,
    /// It failed during the delivery: no answer, an incomplete answer, or an answer that it is unavailable.
    Failed,
    /// It refused the delivery because of how many it gets.
    Overloaded,
    /// One of our own backends did not answer; the state of the destination is unknown.
    Backend,
    /// The delivery did not begin, or was cancelled here.
    Deferred,
}

/// A backend that did not answer is a condition of the destination; every other error is the message's own.
impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Unavailable => Self::Unavailable {
                cause: Cause::Backend,
                after: error.retry_after(),
                error: error.chain(),
            },
            _ => Self::Retry {
                after: None,
                error: error.chain(),
            },
        }
    }
}

/// Where data leaves a batch at a time, because its unit is the batch: a file, a stream.
#[async_trait]
pub trait Sink: Send + Sync {
    /// Delivers a batch, in order. One outcome per delivery.
    ///
    /// A delivery that was `Done` before, by message id, is `Done` again
    /// without a second effect, within the bounds that the sink documents.
    ///
    /// - Ends within a deadline of the sink's own: the caller waits for it, and renews the leases meanwhile.
    /// - Cancel: a dropped call may have delivered any part of the batch.
    /// - A panic is a failed attempt of the message that it happened over.
    ///
    /// # Errors
    /// The sink as a whole cannot work now (disk full, path not writable);
    /// none of the batch was delivered, no attempt should be charged, and the
    /// caller returns the batch and waits before it retries.
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>>;

    /// Flushes pending writes and releases resources. Idempotent.
    async fn close(&self) -> Result<()>;
}
