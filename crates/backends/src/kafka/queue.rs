//! The queue port: a topic with a group of the same name, one for delayed messages, one for dead letters.

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

use crate::broker::counters::Counters;
use crate::broker::envelope::Envelope;
use crate::broker::in_flight::stale;

use super::produce::Record;
use super::queue_session::QueueSession;
use super::settler::Action;
use super::store::Store;
use super::{consumer::lock, dead, envelope, retry};

/// The queues of a cluster.
pub(super) struct Queues(pub(super) Arc<Store>);

/// A queue in use.
pub(super) struct QueueHandle {
    pub(super) name: QueueName,
    pub(super) topic: String,
    pub(super) delayed_topic: String,
    pub(super) dead_topic: String,
    settings: Mutex<Settings>,
    pub(super) session: tokio::sync::Mutex<Option<Arc<QueueSession>>>,
    pub(super) dead: tokio::sync::Mutex<dead::Index>,
    /// Behind the newest dead letter written by this process.
    pub(super) dead_end: AtomicI64,
    pub(super) counters: Counters,
}

impl QueueHandle {
    pub(super) fn new(name: QueueName, topic: String) -> Self {
        Self {
            name,
            delayed_topic: format!("{topic}.retry"),
            dead_topic: format!("{topic}.dead"),
            topic,
            settings: Mutex::default(),
            session: tokio::sync::Mutex::default(),
            dead: tokio::sync::Mutex::default(),
            dead_end: AtomicI64::new(0),
            counters: Counters::default(),
        }
    }

    /// Topic and partition for an action; without a partition the client chooses.
    pub(super) fn destination(&self, action: Action) -> (&str, Option<i32>) {
        match action {
            Action::Ack | Action::Requeue => (&self.topic, None),
            Action::Delay(step) => (&self.delayed_topic, Some(step)),
            Action::DeadLetter => (&self.dead_topic, Some(0)),
        }
    }

    /// The session, if one is open.
    pub(super) async fn session_if_any(&self) -> Option<Arc<QueueSession>> {
        self.session.lock().await.clone()
    }

    /// Records the offset of a dead letter written by this process.
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
        let handle = self.0.handle(queue)?;
        *lock(&handle.settings) = settings.clone();
        let declared = self.0.ensure_queue(&handle).await;
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
        self.0.ensure_queue(&handle).await.context(what)?;
        let now = self.0.clock.now();
        let mut outcomes = Vec::with_capacity(messages.len());
        let mut taken = Vec::with_capacity(messages.len());
        for message in messages {
            match Envelope::begin("Kafka", message, now) {
                Err(refused) => outcomes.push(Err(refused)),
                Ok(envelope) => {
                    let action = retry::action(envelope.not_before, now);
                    if action != Action::Requeue {
                        self.0.ensure_delayed(&handle).await.context(what)?;
                    }
                    outcomes.push(Ok(Enqueued::New(envelope.message.id)));
                    taken.push((outcomes.len() - 1, action, envelope));
                }
            }
        }
        let record = |at: usize| {
            let (_, action, envelope) = &taken[at];
            let (topic, partition) = handle.destination(*action);
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
            self.0.ensure_queue(&handle).await?;
            self.0.ensure_delayed(&handle).await
        };
        let produced = self.0.produce(taken.len(), record, declare).await?;
        let session = handle.session_if_any().await;
        for ((at, action, _), produced) in taken.iter().zip(produced) {
            match (produced, &session) {
                (Ok(place), Some(session)) => session.members.note_produced(*action, place),
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
            let session = self.0.handle(&receipt.queue)?.session_if_any().await;
            let extended = session.is_some_and(|session| {
                let mut buffer = session.members.ready.buffer();
                buffer.extend(receipt, lease)
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
        for handle in self.0.handles() {
            if let Some(session) = handle.session_if_any().await {
                count += session.members.ready.buffer().disconnect(consumer);
                session.members.ready.wake();
            }
            handle.counters.forget(consumer);
        }
        Ok(count)
    }

    async fn list(&self) -> Result<Vec<Stats>> {
        let mut all = Vec::new();
        for handle in self.0.handles() {
            all.extend(self.0.count(&handle).await?);
        }
        Ok(all)
    }

    async fn stats(&self, queue: &QueueName) -> Result<Stats> {
        let handle = self.0.handle(queue)?;
        let found = self.0.count(&handle).await;
        found
            .context(|| format!("count `{queue}`"))?
            .ok_or_else(|| Error::not_found(format!("unknown queue `{queue}`")))
    }

    async fn peek(&self, queue: &QueueName, _: usize) -> Result<Vec<Peeked>> {
        let how = format!("; `towpath stream tail {queue}` reads its topic");
        Err(lacks(&format!("peek{how}")))
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

fn lacks(what: &str) -> Error {
    Error::unsupported(format!("queues on Kafka have no {what}"))
}
