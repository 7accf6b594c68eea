//! Sinks: where data leaves.

use std::time::Duration;

use async_trait::async_trait;

use crate::{Delivery, Result};

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
}

/// Where data leaves.
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
