//! Consumers: the read half of a port, as the pump sees it.
//!
//! A queue, a stream group, an outbox or a configuration watch differ only in
//! how work is leased and settled; everything else is the pump's.

mod queue;
mod stream;

use async_trait::async_trait;
use towpath_core::port::queue::Settlement;
use towpath_core::{ConsumerId, Delivery, Receipt, Result};

pub use queue::QueueConsumer;
pub use stream::{Done, GroupMember, StreamConsumer};

/// Where the pump leases work and settles it, for one consumer.
#[async_trait]
pub trait Consumer: Send + Sync {
    /// Leases up to `max` deliveries; waits a short while (at most half a second) for the first.
    ///
    /// `in_flight` is how many the consumer works on at once, those that it holds included.
    ///
    /// The pump never drops this call halfway, so an consumer may block in it but must not outstay that wait by much.
    async fn lease(&self, max: usize, in_flight: usize) -> Result<Vec<Delivery>>;

    /// Ends deliveries; one outcome each.
    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>>;

    /// Makes the leases start afresh; one outcome each.
    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>>;

    /// Takes back whatever this consumer still holds, attempts counted.
    async fn disconnect(&self) -> Result<u64>;

    /// The consumer that records of its failed attempts name; `None` where dead letters keep no records.
    fn recorded_as(&self) -> Option<&ConsumerId>;

    /// Whether the next batch may be leased before the one at work is settled. Not where the order across batches counts.
    fn leases_ahead(&self) -> bool {
        false
    }

    /// Duration of a lease.
    fn lease_time(&self) -> std::time::Duration;
}
