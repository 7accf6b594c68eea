//! A queue as an consumer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use towpath_core::port::Queue;
use towpath_core::port::queue::{LeaseRequest, Settlement};
use towpath_core::{ConsumerId, Delivery, QueueName, Receipt, Result};

use super::Consumer;

/// Short enough to end soon after a stop, long enough to cost nothing when idle.
const WAIT: Duration = Duration::from_millis(500);

/// One consumer of one queue.
pub struct QueueConsumer {
    queue: Arc<dyn Queue>,
    name: QueueName,
    consumer: ConsumerId,
    lease: Duration,
}

impl QueueConsumer {
    /// A consumer of `name` that leases for `lease` at a time.
    pub fn new(
        queue: Arc<dyn Queue>,
        name: QueueName,
        consumer: ConsumerId,
        lease: Duration,
    ) -> Self {
        Self {
            queue,
            name,
            consumer,
            lease,
        }
    }
}

#[async_trait]
impl Consumer for QueueConsumer {
    async fn lease(&self, max: usize, in_flight: usize) -> Result<Vec<Delivery>> {
        self.queue
            .lease(LeaseRequest {
                queue: self.name.clone(),
                consumer: self.consumer.clone(),
                max,
                in_flight,
                lease: self.lease,
                wait: WAIT,
            })
            .await
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        self.queue.settle(settlements).await
    }

    async fn extend(&self, receipts: &[Receipt]) -> Result<Vec<Result<()>>> {
        self.queue.extend(receipts, self.lease).await
    }

    async fn disconnect(&self) -> Result<u64> {
        self.queue.disconnect(&self.consumer).await
    }

    fn recorded_as(&self) -> Option<&ConsumerId> {
        Some(&self.consumer)
    }

    fn leases_ahead(&self) -> bool {
        true
    }

    fn lease_time(&self) -> Duration {
        self.lease
    }
}
