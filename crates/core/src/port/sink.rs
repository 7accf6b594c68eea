//! Sinks: where data leaves.

use std::time::Duration;

use async_trait::async_trait;

use crate::{Delivery, Error, ErrorKind, Result};

/// What became of one delivery at the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is where it should be, as durable as the sink can make it.
    Done,
    /// It is, and the sink acked the delivery in the same step as its effect ([`crate::port::Effects`]).
    Settled,
    /// It is not, and trying again may help.
    Retry {
        /// When the far side said how long to wait.
        after: Option<Duration>,
        /// Why.
        error: String,
    },
    /// It is not, and trying again will not help.
    Reject {
        /// Why.
        reason: String,
    },
    /// It is not, because of a condition of the destination: no attempt is charged, and the destination is left alone
    /// for a while.
    Unavailable {
        /// How far the delivery came.
        cause: Cause,
        /// When the destination named a time: nothing is sent to it before.
        after: Option<Duration>,
        /// Why.
        error: String,
    },
}

/// Why a destination did not take a delivery that another moment would.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Nothing of the delivery reached it, so the message cannot be the reason.
    Unreachable,
    /// It failed with the delivery: no answer, an answer that broke off, an answer that says it is not available.
    Failed,
    /// It refused the delivery because of how many it gets.
    Overloaded,
    /// One of our own backends did not answer; nothing is known of the destination.
    Backend,
    /// The delivery did not begin, or was ended by us.
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
    /// without a second effect as far as the sink's own documentation says.
    ///
    /// - Ends within a deadline of the sink's own: the caller waits for it, and renews the leases meanwhile.
    /// - Cancel: a dropped call may have delivered any part of the batch.
    /// - A panic is a failed attempt of the message that it happened over.
    ///
    /// # Errors
    /// The sink as a whole cannot work now (disk full, path not writable);
    /// none of the batch was delivered, no attempt should be charged, and the
    /// caller gives the batch back and waits before it tries again.
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>>;

    /// Makes durable what is still on its way and lets go of resources. Idempotent.
    async fn close(&self) -> Result<()>;
}
