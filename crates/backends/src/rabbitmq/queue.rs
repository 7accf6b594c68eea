//! The queue port.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::options::QueuePurgeOptions;
use tokio::sync::oneshot;
use towpath_core::port::queue::{
    DeadLetter, Enqueued, LeaseRequest, Peeked, Queue, Selection, Settings, Settlement, Stats,
    Stranded, check_batch, check_lease,
};
use towpath_core::{
    ConsumerId, Delivery, Error, MessageId, NewMessage, QueueName, Receipt, Result, ResultExt,
};

use crate::broker::counters::Counters;
use crate::broker::envelope::Envelope;
use crate::broker::in_flight::stale;

use super::envelope;
use super::error;
use super::publisher::Publish;
use super::store::{QueueHandle, Store, lock};

/// The queues of a broker.
pub(super) struct Queues(pub(super) Arc<Store>);

#[async_trait]
impl Queue for Queues {
    async fn declare(&self, queue: &QueueName, settings: &Settings) -> Result<()> {
        if settings.max_depth.is_some() {
            return Err(lacks(
                "a maximum depth; set `max-length` by a policy of the broker",
            ));
        }
        let handle = self.0.handle(queue)?;
        *lock(&handle.settings) = settings.clone();
        handle.is_declared.store(true, Ordering::Release);
        let declared = self.0.queue_channel(&handle).await.map(drop);
        declared.context(|| format!("declare `{queue}`"))
    }

    async fn settings(&self, queue: &QueueName) -> Result<Settings> {
        let handle = self.0.handle(queue)?;
        let settings = lock(&handle.settings).clone();
        Ok(settings)
    }

    async fn enqueue(
        &self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>> {
        check_batch(messages.len())?;
        self.0.check_open()?;
        let handle = self.0.handle(queue)?;
        let what = || format!("enqueue into `{queue}`");
        self.0.queue_channel(&handle).await.context(what)?;
        let mut outcomes = Vec::with_capacity(messages.len());
        let (mut publishes, mut places) = (Vec::new(), Vec::new());
        for message in messages {
            let id = message.id;
            match Envelope::begin("RabbitMQ", message, self.0.clock.now()) {
                Err(refused) => outcomes.push(Err(refused)),
                Ok(envelope) => {
                    let to = self.0.place_until(&handle, envelope.not_before).await;
                    publishes.push(Publish {
                        exchange: String::new(),
                        routing_key: to.context(what)?,
                        properties: envelope::properties(&envelope),
                        payload: envelope.message.payload,
                    });
                    places.push(outcomes.len());
                    outcomes.push(Ok(Enqueued::New(id)));
                }
            }
        }
        let sent = self.0.post(&handle, publishes).await;
        for (place, sent) in places.into_iter().zip(sent) {
            if let Err(error) = sent {
                outcomes[place] = Err(error).context(what);
            }
        }
        Ok(outcomes)
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Delivery>> {
        request.check()?;
        self.0.check_open()?;
        let what = format!("lease from `{}`", request.queue);
        let (answer, leased) = oneshot::channel();
        let store = Arc::clone(&self.0);
        // A separate task, so that a dropped call leaves nothing half fetched: it ends soon after the call.
        crate::task::spawn(async move {
            let mut answer = answer;
            let outcome = store.lease(&request, &mut answer).await;
            if let Err(Ok(unwanted)) = answer.send(outcome) {
                store.release_unclaimed(&request.queue, &unwanted);
            }
        });
        match leased.await {
            Ok(outcome) => outcome.context(|| what),
            Err(_) => Err(Error::unavailable("the backend is closed")),
        }
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        let mut outcomes: Vec<Result<()>> = settlements.iter().map(|_| Ok(())).collect();
        let mut by_queue: BTreeMap<QueueName, Vec<(usize, Settlement)>> = BTreeMap::new();
        for (at, settlement) in settlements.into_iter().enumerate() {
            let queue = settlement.receipt.queue.clone();
            by_queue.entry(queue).or_default().push((at, settlement));
        }
        for (queue, settlements) in by_queue {
            let handle = self.0.handle(&queue)?;
            for (at, outcome) in self.0.settle(&handle, settlements).await {
                outcomes[at] = outcome.context(|| format!("settle on `{queue}`"));
            }
        }
        Ok(outcomes)
    }

    async fn extend(&self, receipts: &[Receipt], lease: Duration) -> Result<Vec<Result<()>>> {
        check_lease(lease)?;
        self.0.check_open()?;
        let mut outcomes = Vec::with_capacity(receipts.len());
        for receipt in receipts {
            let handle = self.0.handle(&receipt.queue)?;
            let extended = handle.in_flight(&self.0).extend(receipt, lease);
            outcomes.push(if extended {
                Ok(())
            } else {
                Err(stale(receipt))
            });
        }
        Ok(outcomes)
    }

    async fn stranded(&self, queue: &QueueName) -> Result<Vec<Stranded>> {
        Ok(self.0.other_brokers.of(queue))
    }

    async fn collect(&self, queue: &QueueName) -> Result<u64> {
        let handle = self.0.handle(queue)?;
        let collected = self.0.collect(&handle).await;
        collected.context(|| format!("collect `{queue}` from other brokers"))
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let mut count = 0;
        for handle in self.0.handles() {
            count += handle.in_flight(&self.0).disconnect(consumer);
            handle.counters.forget(consumer);
            handle.changed.notify_waiters();
        }
        Ok(count)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for handle in self.0.handles() {
            all.extend(self.0.stats(&handle).await?);
        }
        Ok(all)
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let handle = self.0.handle(queue)?;
        let found = self.0.stats(&handle).await;
        found
            .context(|| format!("count `{queue}`"))?
            .ok_or_else(|| Error::not_found(format!("unknown queue `{queue}`")))
    }

    async fn peek(&self, _: &QueueName, _: usize) -> Result<Vec<Peeked>> {
        Err(lacks("peek"))
    }

    async fn pause(&self, _: &QueueName) -> Result<()> {
        Err(lacks("a pause; stop the consumers instead"))
    }

    async fn resume(&self, _: &QueueName) -> Result<()> {
        Err(lacks("a pause"))
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64> {
        let handle = self.0.handle(queue)?;
        let purged = self.0.purge(&handle).await;
        purged.context(|| format!("purge `{queue}`"))
    }

    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let handle = self.0.handle(queue)?;
        self.0.dead_letters(&handle, after, max).await
    }

    async fn redrive(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let handle = self.0.handle(queue)?;
        self.0.redrive(&handle, selection).await
    }

    async fn drop_dead(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let handle = self.0.handle(queue)?;
        self.0.drop_dead(&handle, selection).await
    }
}

impl Store {
    async fn purge(&self, handle: &QueueHandle) -> Result<u64> {
        let queue_channel = self.queue_channel(handle).await?;
        let _returning = handle.returning.lock().await;
        let waiting = handle.in_flight(self).drain_ready();
        self.ack(&queue_channel, &waiting).await?;
        let mut dropped = waiting.len() as u64;
        handle
            .counters
            .dropped
            .fetch_add(dropped, Ordering::Relaxed);
        let mut names = self.delays(handle).await?;
        names.push(handle.wire.clone());
        for name in names {
            // A refusal closes the channel, and would requeue its deliveries.
            let channel = self.broker.channel(&queue_channel.open).await?;
            let purge = channel.queue_purge(name.into(), QueuePurgeOptions::default());
            let purged = match self.broker.ask(&queue_channel.open, purge).await? {
                Ok(count) => u64::from(count),
                // A missing queue is empty.
                Err(error) if error::is_not_found(&error) => 0,
                Err(error) => return Err(self.broker.failed(&queue_channel.open, error)),
            };
            handle.counters.dropped.fetch_add(purged, Ordering::Relaxed);
            dropped += purged;
        }
        Ok(dropped)
    }

    async fn stats(&self, handle: &QueueHandle) -> Result<Option<Stats>> {
        let mut names = vec![handle.wire.clone(), handle.dead()];
        names.extend(self.delays(handle).await?);
        let _returning = handle.returning.lock().await;
        let counts = self.count(&names).await?;
        let Some((waiting, consumers)) = counts[0] else {
            return Ok(None);
        };
        let stuck = handle.stuck(waiting, consumers);
        let (here, leased) = handle.in_flight(self).counts();
        let in_flight = handle.in_flight(self);
        let holding = in_flight.consumers().cloned().collect();
        let mut stats = handle.counters.stats(&handle.name, holding);
        stats.ready = waiting + here;
        let messages = |count: &Option<(u64, u64)>| count.map_or(0, |(messages, _)| messages);
        stats.delayed = counts[2..].iter().map(messages).sum();
        stats.leased = leased;
        stats.dead = messages(&counts[1]);
        let oldest = in_flight.oldest().map(|at| self.clock.now().since(at));
        stats.oldest_age = oldest.max(stuck);
        stats.oldest_ready_age = in_flight.longest_ready().max(stuck);
        stats.oldest_leased_age = in_flight.longest_leased();
        Ok(Some(Counters::balanced(stats)))
    }
}

impl QueueHandle {
    /// Age of messages without a consumer. AMQP does not show waiting messages, so this is less
    /// than the age of the oldest.
    fn stuck(&self, waiting: u64, consumers: u64) -> Option<Duration> {
        let mut since = lock(&self.stuck_since);
        if waiting == 0 || consumers > 0 {
            *since = None;
        } else {
            since.get_or_insert_with(Instant::now);
        }
        since.map(|since| since.elapsed())
    }
}

fn lacks(what: &str) -> Error {
    Error::unsupported(format!("queues on RabbitMQ have no {what}"))
}
