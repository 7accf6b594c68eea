//! The queue port: a topic with a group of the same name, one for what comes later, one for dead letters.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use towpath_core::port::queue::{
    DeadLetter, Enqueued, LeaseRequest, Peeked, Queue, Selection, Settings, Settlement, Stats,
    check_batch, check_lease,
};
use towpath_core::{
    ConsumerId, Delivery, Error, MessageId, NewMessage, QueueName, Receipt, Result, ResultExt,
};

use crate::broker::counters::Tally;
use crate::broker::envelope::Envelope;
use crate::broker::in_flight::stale;

use super::produce::Record;
use super::queue_session::Desk;
use super::settler::To;
use super::store::Store;
use super::{consumer::lock, dead, envelope, retry};

/// The queues of a cluster.
pub(super) struct Queues(pub(super) Arc<Store>);

/// A queue in use.
pub(super) struct Known {
    pub(super) name: QueueName,
    pub(super) topic: String,
    pub(super) later_topic: String,
    pub(super) dead_topic: String,
    settings: Mutex<Settings>,
    pub(super) desk: tokio::sync::Mutex<Option<Arc<Desk>>>,
    pub(super) dead: tokio::sync::Mutex<dead::Index>,
    /// Behind the newest record that this process wrote there.
    pub(super) dead_end: AtomicI64,
    pub(super) tally: Tally,
}

impl Known {
    pub(super) fn new(name: QueueName, topic: String) -> Self {
        Self {
            name,
            later_topic: format!("{topic}.retry"),
            dead_topic: format!("{topic}.dead"),
            topic,
            settings: Mutex::default(),
            desk: tokio::sync::Mutex::default(),
            dead: tokio::sync::Mutex::default(),
            dead_end: AtomicI64::new(0),
            tally: Tally::default(),
        }
    }

    /// Topic and partition of what goes there; of none the client chooses.
    pub(super) fn place(&self, to: To) -> (&str, Option<i32>) {
        match to {
            To::Gone | To::Queue => (&self.topic, None),
            To::Later(step) => (&self.later_topic, Some(step)),
            To::Dead => (&self.dead_topic, Some(0)),
        }
    }

    /// Our desk at it, if there is one.
    pub(super) async fn desk_if_any(&self) -> Option<Arc<Desk>> {
        self.desk.lock().await.clone()
    }

    /// Notes what this process wrote to the dead letters.
    pub(super) fn note_dead(&self, at: i64) {
        self.dead_end.fetch_max(at + 1, Ordering::AcqRel);
    }

    pub(super) fn attempts(&self) -> u32 {
        lock(&self.settings).retry.attempts
    }
}

#[async_trait]
impl Queue for Queues {
    async fn declare(&self, queue: &QueueName, settings: &Settings) -> Result<()> {
        if settings.max_depth.is_some() {
            return Err(lacks("a maximum depth"));
        }
        let known = self.0.known(queue)?;
        *lock(&known.settings) = settings.clone();
        let declared = self.0.ensure_queue(&known).await;
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
        self.0.ensure_queue(&known).await.context(what)?;
        let now = self.0.clock.now();
        let mut outcomes = Vec::with_capacity(messages.len());
        let mut taken = Vec::with_capacity(messages.len());
        for message in messages {
            match Envelope::begin("Kafka", message, now) {
                Err(refused) => outcomes.push(Err(refused)),
                Ok(envelope) => {
                    let to = retry::place(envelope.not_before, now);
                    if to != To::Queue {
                        self.0.ensure_later(&known).await.context(what)?;
                    }
                    outcomes.push(Ok(Enqueued::New(envelope.message.id)));
                    taken.push((outcomes.len() - 1, to, envelope));
                }
            }
        }
        let record = |at: usize| {
            let (_, to, envelope) = &taken[at];
            let (topic, partition) = known.place(*to);
            Record {
                topic,
                partition,
                key: None,
                payload: Some(&envelope.message.payload),
                headers: envelope::of_queue(envelope, None),
                at: None,
            }
        };
        let declare = async {
            self.0.ensure_queue(&known).await?;
            self.0.ensure_later(&known).await
        };
        let produced = self.0.produce(taken.len(), record, declare).await?;
        let desk = known.desk_if_any().await;
        for ((at, to, _), produced) in taken.iter().zip(produced) {
            match (produced, &desk) {
                (Ok(place), Some(desk)) => desk.members.note_produced(*to, place),
                (Ok(_), None) => {}
                (Err(error), _) => outcomes[*at] = Err(error).context(what),
            }
        }
        Ok(outcomes)
    }

    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Delivery>> {
        request.check()?;
        let leased = self.0.lease(&request).await;
        leased.context(|| format!("lease from `{}`", request.queue))
    }

    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>> {
        self.0.check_open()?;
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
            let desk = self.0.known(&receipt.queue)?.desk_if_any().await;
            let extended = desk.is_some_and(|desk| {
                let mut shelf = desk.members.ready.shelf();
                shelf.extend(receipt, lease)
            });
            outcomes.push(match extended {
                true => Ok(()),
                false => Err(stale(receipt)),
            });
        }
        Ok(outcomes)
    }

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let mut count = 0;
        for known in self.0.all_known() {
            if let Some(desk) = known.desk_if_any().await {
                count += desk.members.ready.shelf().disconnect(consumer);
                desk.members.ready.wake();
            }
            known.tally.forget(consumer);
        }
        Ok(count)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for known in self.0.all_known() {
            all.extend(self.0.count(&known).await?);
        }
        Ok(all)
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let known = self.0.known(queue)?;
        let found = self.0.count(&known).await;
        found
            .context(|| format!("count `{queue}`"))?
            .ok_or_else(|| Error::not_found(format!("there is no queue `{queue}`")))
    }

    async fn peek(&self, queue: &QueueName, _: usize) -> Result<Vec<Peeked>> {
        let how = format!("; `towpath stream tail {queue}` reads its topic");
        Err(lacks(&format!("a way to look at what waits{how}")))
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

fn lacks(what: &str) -> Error {
    Error::unsupported(format!("queues on Kafka have no {what}"))
}
