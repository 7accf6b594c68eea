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

use crate::broker::envelope::Envelope;
use crate::broker::hand::stale;
use crate::broker::tally::Tally;

use super::envelope;
use super::error;
use super::publisher::Letter;
use super::store::{Known, Store, lock};

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
        let known = self.0.known(queue)?;
        *lock(&known.settings) = settings.clone();
        known.is_declared.store(true, Ordering::Release);
        let declared = self.0.desk(&known).await.map(drop);
        declared.context(|| format!("declare `{queue}`"))
    }

    async fn enqueue(
        &self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>> {
        check_batch(messages.len())?;
        self.0.check_open()?;
        let known = self.0.known(queue)?;
        let what = || format!("enqueue into `{queue}`");
        self.0.desk(&known).await.context(what)?;
        let mut outcomes = Vec::with_capacity(messages.len());
        let (mut letters, mut places) = (Vec::new(), Vec::new());
        for message in messages {
            let id = message.id;
            match Envelope::begin("RabbitMQ", message, self.0.clock.now()) {
                Err(refused) => outcomes.push(Err(refused)),
                Ok(envelope) => {
                    let to = self.0.place_until(&known, envelope.not_before).await;
                    letters.push(Letter {
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
        let sent = self.0.post(&known, letters).await;
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
        // A task of its own, so that a dropped call leaves nothing half fetched: it ends soon after the call does.
        tokio::spawn(async move {
            let mut answer = answer;
            let outcome = store.lease(&request, &mut answer).await;
            if let Err(Ok(unwanted)) = answer.send(outcome) {
                store.take_back(&request.queue, &unwanted);
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
            let known = self.0.known(&queue)?;
            for (at, outcome) in self.0.settle(&known, settlements).await {
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
            let known = self.0.known(&receipt.queue)?;
            let extended = known.hand(&self.0).extend(receipt, lease);
            outcomes.push(if extended {
                Ok(())
            } else {
                Err(stale(receipt))
            });
        }
        Ok(outcomes)
    }

    async fn stranded(&self, queue: &QueueName) -> Result<Vec<Stranded>> {
        Ok(self.0.elsewhere.of(queue))
    }

    async fn collect(&self, queue: &QueueName) -> Result<u64> {
        let known = self.0.known(queue)?;
        let collected = self.0.collect(&known).await;
        collected.context(|| format!("collect `{queue}` from other brokers"))
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let mut count = 0;
        for known in self.0.all_known() {
            count += known.hand(&self.0).disconnect(consumer);
            known.tally.forget(consumer);
            known.news.notify_waiters();
        }
        Ok(count)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for known in self.0.all_known() {
            all.extend(self.0.stats(&known).await?);
        }
        Ok(all)
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let known = self.0.known(queue)?;
        let found = self.0.stats(&known).await;
        found
            .context(|| format!("count `{queue}`"))?
            .ok_or_else(|| Error::not_found(format!("there is no queue `{queue}`")))
    }

    async fn peek(&self, _: &QueueName, _: usize) -> Result<Vec<Peeked>> {
        Err(lacks("a way to look at messages without taking them"))
    }

    async fn pause(&self, _: &QueueName) -> Result<()> {
        Err(lacks("a pause; stop the consumers instead"))
    }

    async fn resume(&self, _: &QueueName) -> Result<()> {
        Err(lacks("a pause"))
    }

    async fn purge(&self, queue: &QueueName) -> Result<u64> {
        let known = self.0.known(queue)?;
        let purged = self.0.purge(&known).await;
        purged.context(|| format!("purge `{queue}`"))
    }

    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>> {
        let known = self.0.known(queue)?;
        self.0.dead_letters(&known, after, max).await
    }

    async fn redrive(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let known = self.0.known(queue)?;
        self.0.redrive(&known, selection).await
    }

    async fn drop_dead(&self, queue: &QueueName, selection: &Selection) -> Result<u64> {
        let known = self.0.known(queue)?;
        self.0.drop_dead(&known, selection).await
    }
}

impl Store {
    async fn purge(&self, known: &Known) -> Result<u64> {
        let desk = self.desk(known).await?;
        let _returning = known.returning.lock().await;
        let waiting = known.hand(self).drain_ready();
        self.ack(&desk, &waiting).await?;
        let mut dropped = waiting.len() as u64;
        known.tally.dropped.fetch_add(dropped, Ordering::Relaxed);
        let mut names = self.delays(known).await?;
        names.push(known.wire.clone());
        for name in names {
            // A refusal ends the channel, and with it what came by it.
            let channel = self.link.channel(&desk.open).await?;
            let purge = channel.queue_purge(name.into(), QueuePurgeOptions::default());
            let purged = match self.link.ask(&desk.open, purge).await? {
                Ok(count) => u64::from(count),
                // A queue that is missing holds nothing.
                Err(told) if error::is_not_found(&told) => 0,
                Err(told) => return Err(self.link.failed(&desk.open, told)),
            };
            known.tally.dropped.fetch_add(purged, Ordering::Relaxed);
            dropped += purged;
        }
        Ok(dropped)
    }

    async fn stats(&self, known: &Known) -> Result<Option<Stats>> {
        let mut names = vec![known.wire.clone(), known.dead()];
        names.extend(self.delays(known).await?);
        let _returning = known.returning.lock().await;
        let counts = self.count(&names).await?;
        let Some((waiting, consumers)) = counts[0] else {
            return Ok(None);
        };
        let stuck = known.stuck(waiting, consumers);
        let (here, leased) = known.hand(self).counts();
        let hand = known.hand(self);
        let holding = hand.consumers().cloned().collect();
        let mut stats = known.tally.stats(&known.name, holding);
        stats.ready = waiting + here;
        let messages = |count: &Option<(u64, u64)>| count.map_or(0, |(messages, _)| messages);
        stats.delayed = counts[2..].iter().map(messages).sum();
        stats.leased = leased;
        stats.dead = messages(&counts[1]);
        let oldest = hand.oldest().map(|at| self.clock.now().since(at));
        stats.oldest_age = oldest.max(stuck);
        stats.oldest_ready_age = hand.longest_ready().max(stuck);
        stats.oldest_leased_age = hand.longest_leased();
        Ok(Some(Tally::balanced(stats)))
    }
}

impl Known {
    /// How long messages were seen to wait without a consumer. The protocol shows no message that waits, so it is less
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
