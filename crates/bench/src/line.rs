//! The subject of a measurement: a queue of ours, one written by hand, or the orders app.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::try_join_all;
use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, LeaseRequest, Settlement};
use towpath_core::{ConsumerId, NewMessage, QueueName, Result};

use super::payload::LEAST;
use crate::baseline::Baseline;
use crate::orders::BenchOrders;

/// A queue under measurement.
pub(crate) enum Line {
    /// Through the port, as every role works.
    Queue {
        queue: Arc<dyn Queue>,
        name: QueueName,
        consumer: ConsumerId,
    },
    /// Without any of our code between the client and the server.
    Bare(Arc<dyn Baseline>),
    /// Accepted orders, and those whose customers were notified.
    Orders(Box<BenchOrders>),
}

impl Line {
    /// The queue called `name` of a backend, emptied.
    pub(crate) async fn open(backend: &Backend, name: &str) -> Result<Self> {
        let (queue, name) = (backend.require_queue("bench")?, QueueName::new(name)?);
        queue.declare(&name, &Default::default()).await?;
        queue.purge(&name).await?;
        let consumer = ConsumerId::unique("bench")?;
        Ok(Self::Queue {
            queue,
            name,
            consumer,
        })
    }

    /// Stores the messages and returns when the target says that they are kept.
    pub(crate) async fn publish(&self, payloads: Vec<Bytes>) -> Result<()> {
        match self {
            Self::Queue { queue, name, .. } => {
                let messages = payloads.into_iter().map(NewMessage::new).collect();
                for outcome in queue.enqueue(name, messages).await? {
                    outcome?;
                }
                Ok(())
            }
            Self::Bare(baseline) => baseline.publish(payloads).await,
            Self::Orders(orders) => {
                // The start of a payload is text that no other has.
                let ids = payloads
                    .iter()
                    .map(|payload| String::from_utf8_lossy(&payload[..LEAST]).into_owned());
                let accept = ids.map(|id| async move { orders.accept(&id).await });
                try_join_all(accept).await.map(drop)
            }
        }
    }

    /// Takes up to `max` messages, waiting at most `wait` for the first, and settles them.
    pub(crate) async fn consume(&self, max: usize, wait: Duration) -> Result<Vec<Bytes>> {
        let (queue, name, consumer) = match self {
            Self::Queue {
                queue,
                name,
                consumer,
            } => (queue, name, consumer),
            Self::Bare(baseline) => return baseline.consume(max, wait).await,
            Self::Orders(orders) => return orders.notified(max, wait).await,
        };
        let request = LeaseRequest {
            queue: name.clone(),
            consumer: consumer.clone(),
            max,
            in_flight: max,
            lease: Duration::from_secs(60),
            wait,
        };
        let deliveries = queue.lease(request).await?;
        let mut payloads = Vec::with_capacity(deliveries.len());
        let mut settlements = Vec::with_capacity(deliveries.len());
        for delivery in deliveries {
            payloads.push(delivery.message.payload);
            settlements.push(Settlement {
                receipt: delivery.receipt,
                disposition: Disposition::Ack,
            });
        }
        if !settlements.is_empty() {
            for outcome in queue.settle(settlements).await? {
                outcome?;
            }
        }
        Ok(payloads)
    }
}
