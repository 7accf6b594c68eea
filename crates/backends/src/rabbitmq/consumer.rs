//! Prefetch consumers: while a consumer leases repeatedly, the broker sends ahead, up to the size of one lease.
//!
//! Fetching each message costs the broker a consensus step; a consumer with a prefetch shares one among many.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::Consumer;
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::{FieldTable, ShortString};
use tokio::task::JoinHandle;
use towpath_core::port::queue::LeaseRequest;
use towpath_core::{ConsumerId, Result};
use tracing::warn;

use super::consumer_channel::{ConsumerChannel, InFlightMessage};
use super::error;
use super::lease::ENOUGH_BYTES;
use super::store::{QueueChannel, QueueHandle, Store, lock};

/// Time after which an unused consumer is cancelled.
const IDLE: Duration = Duration::from_secs(1);

/// Longest wait of a new consumer for its first deliveries.
const MOMENT: Duration = Duration::from_millis(20);

/// Time that its channel stays open after it was cancelled.
const LINGER: Duration = Duration::from_secs(5);

/// Messages added in flight before waiting leases are woken.
const CHUNK: usize = 1_000;

/// A basic.consume consumer that serves one of our consumers.
pub(super) struct PrefetchConsumer {
    queue_channel: QueueChannel,
    consumer_channel: Arc<ConsumerChannel>,
    tag: ShortString,
    /// Prefetch count.
    window: u16,
    used: Mutex<Instant>,
    received: Mutex<Option<JoinHandle<()>>>,
    end: Arc<End>,
}

/// Reason of the consumer's end.
#[derive(Default)]
struct End {
    /// It was cancelled here.
    asked: AtomicBool,
    /// It delivers no more.
    came: AtomicBool,
}

impl PrefetchConsumer {
    /// Records a lease.
    pub(super) fn touch(&self) {
        *lock(&self.used) = Instant::now();
    }

    /// Whether the broker still delivers to it.
    fn is_consuming(&self) -> bool {
        self.consumer_channel.channel.status().connected() && !self.end.came.load(Ordering::Acquire)
    }

    /// Cancels it, and returns once every delivery is in flight.
    async fn end(&self, store: &Store) {
        self.end.asked.store(true, Ordering::Release);
        if self.end.came.load(Ordering::Acquire) {
            return;
        }
        let options = BasicCancelOptions::default();
        let cancel = self
            .consumer_channel
            .channel
            .basic_cancel(self.tag.clone(), options);
        // A connection that fails here is abandoned, and its consumer with it.
        if store
            .broker
            .call(&self.queue_channel.open, cancel)
            .await
            .is_err()
        {
            return;
        }
        let received = lock(&self.received).take();
        if let Some(received) = received {
            drop(tokio::time::timeout(store.config.timeout, received).await);
        }
        // The broker drops acks that it has read and not processed when their channel closes.
        let consumer_channel = Arc::clone(&self.consumer_channel);
        // Ends with the close of the channel.
        crate::task::spawn(async move {
            tokio::time::sleep(LINGER).await;
            drop(consumer_channel);
        });
    }
}

impl Store {
    /// The prefetch consumer of this lease, created when there is none, and again when all of
    /// its prefetch is leased or its prefetch is too large.
    pub(super) async fn consume(
        self: &Arc<Self>,
        handle: &Arc<QueueHandle>,
        request: &LeaseRequest,
    ) -> Result<Arc<PrefetchConsumer>> {
        let queue_channel = self.queue_channel(handle).await?;
        let largest = handle.largest.load(Ordering::Relaxed).max(1);
        let window = request.in_flight.max(request.max);
        let window = window.min(ENOUGH_BYTES / largest).max(1);
        let window = u16::try_from(window).unwrap_or(u16::MAX);
        // One at a time: two leases of one consumer share it.
        let mut all = handle.consumers.lock().await;
        if let Some(consumer) = all.get(&request.consumer)
            && consumer.queue_channel.open.number == queue_channel.open.number
            && consumer.is_consuming()
        {
            let ours = |held: &&InFlightMessage| {
                Arc::ptr_eq(&held.origin.consumer_channel, &consumer.consumer_channel)
            };
            let leased = handle.in_flight(self).leased().filter(ours).count();
            if leased < usize::from(consumer.window) && consumer.window <= window {
                consumer.touch();
                return Ok(Arc::clone(consumer));
            }
            consumer.end(self).await;
        }
        all.remove(&request.consumer);
        let channel = self.broker.channel(&queue_channel.open).await?;
        let bound = channel.basic_qos(window, BasicQosOptions::default());
        self.broker.call(&queue_channel.open, bound).await?;
        let consume = channel.basic_consume(
            handle.wire.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let deliveries = match self.broker.ask(&queue_channel.open, consume).await? {
            Ok(deliveries) => deliveries,
            Err(error) => {
                // The next call declares it.
                handle
                    .missing
                    .fetch_or(error::is_not_found(&error), Ordering::AcqRel);
                return Err(self.broker.failed(&queue_channel.open, error));
            }
        };
        let consumer_channel = ConsumerChannel::in_order(channel);
        let end = Arc::new(End::default());
        let consumer = Arc::new(PrefetchConsumer {
            tag: deliveries.tag(),
            consumer_channel: Arc::clone(&consumer_channel),
            window,
            used: Mutex::new(Instant::now()),
            received: Mutex::default(),
            queue_channel: queue_channel.clone(),
            end: Arc::clone(&end),
        });
        let receiving = receive(
            Arc::downgrade(self),
            Arc::clone(handle),
            queue_channel,
            consumer_channel,
            deliveries,
            end,
        );
        let mut changed = std::pin::pin!(handle.changed.notified());
        changed.as_mut().enable();
        // Ends with the consumer, at the latest with its connection.
        *lock(&consumer.received) = Some(crate::task::spawn(receiving));
        all.insert(request.consumer.clone(), Arc::clone(&consumer));
        drop(all);
        // The first lease is then as full as one with basic.get.
        drop(tokio::time::timeout(MOMENT, changed).await);
        Ok(consumer)
    }

    /// Cancels unused consumers.
    pub(super) async fn cancel_idle(&self, handle: &QueueHandle) {
        let is_idle = |_: &ConsumerId, consumer: &Arc<PrefetchConsumer>| {
            let waits = Arc::strong_count(consumer) > 1;
            !waits && lock(&consumer.used).elapsed() >= IDLE
        };
        self.cancel_where(handle, is_idle).await;
    }

    /// Cancels the consumers that match. Their deliveries are in flight then.
    pub(super) async fn cancel_where(
        &self,
        handle: &QueueHandle,
        which: impl Fn(&ConsumerId, &Arc<PrefetchConsumer>) -> bool,
    ) {
        let mut all = handle.consumers.lock().await;
        let gone: Vec<_> = all
            .extract_if(|who, consumer| which(who, consumer))
            .collect();
        drop(all);
        for (_, consumer) in gone {
            if self.broker.is_live(consumer.queue_channel.open.number) {
                consumer.end(self).await;
            }
        }
    }
}

/// Adds the broker's deliveries to the in-flight messages, until the consumer ends.
async fn receive(
    store: Weak<Store>,
    handle: Arc<QueueHandle>,
    queue_channel: QueueChannel,
    consumer_channel: Arc<ConsumerChannel>,
    deliveries: Consumer,
    end: Arc<End>,
) {
    let mut chunks = deliveries.ready_chunks(CHUNK);
    while let Some(arrivals) = chunks.next().await {
        let Some(store) = store.upgrade() else { return };
        for arrival in arrivals {
            if let Err(error) =
                put(&store, &handle, &queue_channel, &consumer_channel, arrival).await
            {
                warn!(queue = %handle.name, error = error.chain(), "delivery failed; requeued when the connection closes");
            }
        }
        handle.changed.notify_waiters();
    }
    end.came.store(true, Ordering::Release);
    let is_live = |store: Arc<Store>| store.broker.is_live(queue_channel.open.number);
    if !end.asked.load(Ordering::Acquire) && store.upgrade().is_some_and(is_live) {
        handle.missing.store(true, Ordering::Release);
        warn!(
            queue = %handle.name,
            node = queue_channel.open.node,
            "consumer cancelled by rabbitmq; consuming again"
        );
    }
    // Waiting leases check again.
    handle.changed.notify_waiters();
}

async fn put(
    store: &Store,
    handle: &QueueHandle,
    queue_channel: &QueueChannel,
    consumer_channel: &Arc<ConsumerChannel>,
    arrival: lapin::Result<Delivery>,
) -> Result<()> {
    match arrival {
        Ok(arrival) => {
            store
                .arrive(handle, queue_channel, consumer_channel, arrival)
                .await
        }
        Err(error) => Err(store.broker.failed(&queue_channel.open, error)),
    }
}
