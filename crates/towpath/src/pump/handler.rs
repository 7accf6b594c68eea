//! Handlers: where messages go one by one.

use async_trait::async_trait;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Result};

use super::Destination;

/// Handles single messages: several at once, in any order, each with an outcome of its own.
#[async_trait]
pub trait Handler: Send + Sync {
    /// Handles one delivery.
    ///
    /// A delivery that was `Done` before, by message id, is `Done` again without a second effect as far as the
    /// handler's own documentation says.
    ///
    /// - Ends within a deadline of the handler's own: the pump waits for it, and renews the lease meanwhile.
    /// - Cancel: a dropped call may have had its effect or not.
    /// - A panic is a failed attempt of the message.
    async fn handle(&self, delivery: &Delivery) -> Outcome;

    /// The destination that every delivery goes to, when there is only one.
    ///
    /// The pump leases nothing while it is paused, and reports the outcome of each delivery to it. A handler with many
    /// destinations does both itself.
    fn destination(&self) -> Option<&Destination>;

    /// Notes that deliveries under way will be cut off in a few seconds.
    fn hurry(&self) {}

    /// Releases resources. Idempotent.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
