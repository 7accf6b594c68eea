//! The queue port.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::future::{FutureExt, join_all};
use lapin::Channel;
use lapin::message::Delivery as Arrival;
use lapin::options::QueuePurgeOptions;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::oneshot;
use towpath_core::port::queue::{
    DeadLetter, Enqueued, LeaseRequest, MAX_BATCH, Peeked, Queue, Selection, Settings, Settlement,
    Stats, Verdict, check_lease,
};
use towpath_core::{
    ConsumerId, Delivery, Error, MessageId, NewMessage, QueueName, Receipt, Result, ResultExt,
};

use super::envelope::{Envelope, returns};
use super::hand::{Held, Terms};
use super::publisher::Letter;
use super::store::{Desk, Known, Store, lock};

/// Messages asked for at once; more than thirty calls are not sent in order by `join_all`.
const AT_ONCE: usize = 30;

/// Payload bytes after which no more messages are fetched for one lease.
const ENOUGH_BYTES: usize = 32 << 20;

/// The longest sleep while waiting.
const LOOK: Duration = Duration::from_secs(10);

/// A consumer that leased within this time counts as there.
const PRESENT: Duration = Duration::from_secs(60);

/// Why a message is given up that no consumer ever settled.
const SPENT: &str =
    "its attempts are spent: every consumer that had it let the lease expire or died";

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
        let declared = self.0.desk(&known).await.map(drop);
        declared.context(|| format!("declare `{queue}`"))
    }

    async fn enqueue(
        &self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>> {
        if messages.len() > MAX_BATCH {
            return Err(Error::invalid(format!(
                "a batch of {} is over the limit of {MAX_BATCH}",
                messages.len()
            )));
        }
        self.0.check_open()?;
        let known = self.0.known(queue)?;
        let what = || format!("enqueue into `{queue}`");
        self.0.desk(&known).await.context(what)?;
        let mut outcomes = Vec::with_capacity(messages.len());
        let (mut letters, mut places) = (Vec::new(), Vec::new());
        for message in messages {
            let id = message.id;
            match Envelope::new(message, self.0.clock.now()) {
                Err(refused) => outcomes.push(Err(refused)),
                Ok(envelope) => {
                    let to = self.0.place_until(&known, envelope.not_before).await;
                    letters.push(Letter {
                        exchange: String::new(),
                        routing_key: to.context(what)?,
                        properties: envelope.properties(),
                        payload: envelope.message.payload,
                    });
                    places.push(outcomes.len());
                    outcomes.push(Ok(Enqueued::New(id)));
                }
            }
        }
        let sent = self.0.publisher.send(letters).await;
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

    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64> {
        let mut count = 0;
        for known in self.0.all_known() {
            count += known.hand(&self.0).disconnect(consumer);
            lock(&known.consumers).remove(consumer);
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
    /// Leases, and waits as long as somebody waits for the answer.
    async fn lease(
        &self,
        request: &LeaseRequest,
        answer: &mut oneshot::Sender<Result<Vec<Delivery>>>,
    ) -> Result<Vec<Delivery>> {
        let until = Instant::now().checked_add(request.wait);
        let known = self.known(&request.queue)?;
        lock(&known.consumers).insert(request.consumer.clone(), Instant::now());
        loop {
            self.check_open()?;
            let deliveries = self.hand_out(&known, request).await?;
            let left = until.map_or(LOOK, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if !deliveries.is_empty() || left.is_zero() || answer.is_closed() {
                return Ok(deliveries);
            }
            self.wait(&known, left.min(LOOK), answer).await?;
        }
    }

    /// Leases what is there: first what waits in this process, then what the broker has.
    async fn hand_out(&self, known: &Known, request: &LeaseRequest) -> Result<Vec<Delivery>> {
        let desk = self.desk(known).await?;
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        loop {
            let terms = Terms {
                queue: &known.name,
                consumer: &request.consumer,
                lease: request.lease,
                max: request.max - deliveries.len(),
                attempts: lock(&known.settings).retry.attempts,
            };
            let (leased, spent) = known.hand(self).lease(&terms, || self.next_number());
            bytes += leased
                .iter()
                .map(|one| one.message.payload.len())
                .sum::<usize>();
            deliveries.extend(leased);
            for held in spent {
                self.bury(known, &desk, held, SPENT).await?;
            }
            let missing = request.max - deliveries.len();
            if missing == 0 || bytes >= ENOUGH_BYTES {
                return Ok(deliveries);
            }
            // A few first: mostly there is little or nothing.
            let count = missing
                .min(AT_ONCE)
                .min(if deliveries.is_empty() { 4 } else { AT_ONCE });
            let wire = || {
                desk.channel
                    .basic_get(known.wire.as_str().into(), BasicGetOptions::default())
            };
            let answers = join_all((0..count).map(|_| wire()));
            let answers = self.link.ask(&desk.open, answers).await?;
            let mut came = 0;
            for answer in answers {
                let answer = self.link.call(&desk.open, async { answer }).await?;
                if let Some(message) = answer {
                    came += 1;
                    self.arrive(known, &desk, &desk.channel, message.delivery)
                        .await?;
                }
            }
            if came == 0 {
                return Ok(deliveries);
            }
        }
    }

    /// Puts a message into the hand, or sends it where it belongs.
    async fn arrive(
        &self,
        known: &Known,
        desk: &Desk,
        channel: &Channel,
        arrival: Arrival,
    ) -> Result<()> {
        let counted = returns(&arrival.properties);
        let now = self.clock.now();
        let envelope = Envelope::read(&arrival.properties, arrival.data, now);
        let before = envelope.attempts;
        let charged = match counted {
            Some(returns) => before.saturating_add(returns),
            None => before,
        };
        let counts = desk.counts_returns || counted.is_some();
        let by_return = if counts { charged } else { before }.saturating_add(1);
        let mut held = Held::new(
            envelope,
            charged,
            by_return,
            arrival.acker,
            desk.open.number,
            channel.clone(),
        );
        if !counts && arrival.redelivered {
            // A classic queue says only that somebody had it: the copy carries the number.
            held.charged = held.charged.saturating_add(1);
            return self.move_on(desk, known.wire.clone(), held).await;
        }
        let due = held.envelope.not_before;
        let place = self.place_until(known, due).await?;
        if place != known.wire {
            return self.move_on(desk, place, held).await;
        }
        held.envelope.not_before = None;
        known.hand(self).add(self.next_number(), held);
        Ok(())
    }

    /// Publishes a copy, and lets go of the original.
    async fn move_on(&self, desk: &Desk, to: String, held: Held) -> Result<()> {
        let letter = Self::letter(to, &held);
        for sent in self.publisher.send(vec![letter]).await {
            sent?;
        }
        self.ack(desk, &[held]).await
    }

    /// Waits for a message as a consumer of the broker, or for one in this process.
    async fn wait(
        &self,
        known: &Known,
        limit: Duration,
        answer: &mut oneshot::Sender<Result<Vec<Delivery>>>,
    ) -> Result<()> {
        let mut news = std::pin::pin!(known.news.notified());
        news.as_mut().enable();
        let mut closing = std::pin::pin!(self.closing.notified());
        closing.as_mut().enable();
        self.check_open()?;
        let desk = self.desk(known).await?;
        let (ready, _) = known.hand(self).counts();
        if ready > 0 {
            return Ok(());
        }
        let expiry = known.hand(self).next_expiry();
        let limit = expiry.map_or(limit, |at| {
            limit.min(at.saturating_duration_since(Instant::now()))
        });
        // One message, and no more before it is acked: others shall have the rest.
        let channel = self.link.channel(&desk.open).await?;
        let bound = channel.basic_qos(1, BasicQosOptions::default());
        self.link.call(&desk.open, bound).await?;
        let consume = channel.basic_consume(
            known.wire.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        );
        let mut consumer = self.link.call(&desk.open, consume).await?;
        let came = tokio::select! {
            came = consumer.next() => Some(came),
            () = &mut news => None,
            () = &mut closing => None,
            () = answer.closed() => None,
            () = tokio::time::sleep(limit) => None,
        };
        let mut arrivals = Vec::new();
        match came {
            Some(Some(arrival)) => {
                arrivals.push(self.link.call(&desk.open, async { arrival }).await?);
            }
            Some(None) => {
                let error = Error::unavailable(format!(
                    "rabbitmq at `{}` ended the consumer of `{}`",
                    desk.open.node, known.name
                ));
                self.link.give_up(&desk.open, &error);
                return Err(error);
            }
            None => {}
        }
        let cancel = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
        self.link.call(&desk.open, cancel).await?;
        // What was on its way when the consumer ended.
        while let Some(Some(Ok(arrival))) = consumer.next().now_or_never() {
            arrivals.push(arrival);
        }
        for arrival in arrivals {
            self.arrive(known, &desk, &channel, arrival).await?;
        }
        Ok(())
    }

    /// Gives back leases that nobody came for.
    fn take_back(&self, queue: &QueueName, deliveries: &[Delivery]) {
        let Ok(known) = self.known(queue) else {
            return;
        };
        let mut hand = known.hand(self);
        for delivery in deliveries {
            if let Some(held) = hand.take(&delivery.receipt) {
                hand.release(delivery.receipt.number, held);
            }
        }
        drop(hand);
        known.news.notify_waiters();
    }

    async fn settle(
        &self,
        known: &Known,
        settlements: Vec<(usize, Settlement)>,
    ) -> Vec<(usize, Result<()>)> {
        let desk = match self.desk(known).await {
            Ok(desk) => desk,
            Err(error) => {
                let text = error.chain();
                let failed = |(at, _)| (at, Err(Error::unavailable(text.clone())));
                return settlements.into_iter().map(failed).collect();
            }
        };
        let mut outcomes = Vec::with_capacity(settlements.len());
        let (mut done, mut moves) = (Vec::new(), Vec::new());
        for (at, Settlement { receipt, verdict }) in settlements {
            let Some(mut held) = known.hand(self).take(&receipt) else {
                outcomes.push((at, Err(stale(&receipt))));
                continue;
            };
            let attempts = lock(&known.settings).retry.attempts;
            match verdict {
                Verdict::Ack => {
                    known.acked.fetch_add(1, Ordering::Relaxed);
                    done.push((at, held));
                }
                Verdict::Release => {
                    known.hand(self).release(receipt.number, held);
                    known.news.notify_waiters();
                    outcomes.push((at, Ok(())));
                }
                Verdict::DeadLetter { reason } => {
                    moves.push((at, receipt.number, held, None, reason));
                }
                Verdict::Retry { error, .. } if held.charged >= attempts => {
                    moves.push((at, receipt.number, held, None, error));
                }
                Verdict::Retry { after, error } => {
                    held.envelope.note(&error);
                    let due = self.clock.now().after(after);
                    moves.push((at, receipt.number, held, Some(due), error));
                }
            }
        }
        let (mut letters, mut underway) = (Vec::new(), Vec::new());
        for (at, number, mut held, due, text) in moves {
            let place = match due {
                Some(_) => {
                    held.envelope.not_before = due;
                    self.place_until(known, due).await
                }
                None => {
                    held.envelope.die(&text, self.clock.now());
                    self.dead_place(known, &desk.open).await
                }
            };
            match place {
                Ok(place) => {
                    letters.push(Self::letter(place, &held));
                    underway.push((at, number, held, due.is_some()));
                }
                Err(error) => {
                    known.hand(self).put_back(number, held);
                    outcomes.push((at, Err(error)));
                }
            }
        }
        let sent = self.publisher.send(letters).await;
        for ((at, number, held, is_retry), sent) in underway.into_iter().zip(sent) {
            match sent {
                Ok(()) => {
                    known
                        .retried
                        .fetch_add(u64::from(is_retry), Ordering::Relaxed);
                    done.push((at, held));
                }
                Err(error) => {
                    known.hand(self).put_back(number, held);
                    outcomes.push((at, Err(error)));
                }
            }
        }
        let (places, done): (Vec<usize>, Vec<Held>) = done.into_iter().unzip();
        let acked = self.ack(&desk, &done).await;
        let text = acked.err().map(|error| error.chain());
        for at in places {
            let outcome = text
                .clone()
                .map_or(Ok(()), |text| Err(Error::unavailable(text)));
            outcomes.push((at, outcome));
        }
        outcomes
    }

    /// Makes a dead letter of a message.
    async fn bury(&self, known: &Known, desk: &Desk, mut held: Held, reason: &str) -> Result<()> {
        held.envelope.die(reason, self.clock.now());
        let place = self.dead_place(known, &desk.open).await?;
        self.move_on(desk, place, held).await
    }

    async fn purge(&self, known: &Known) -> Result<u64> {
        let desk = self.desk(known).await?;
        let waiting = known.hand(self).drain_ready();
        self.ack(&desk, &waiting).await?;
        let mut dropped = waiting.len() as u64;
        let mut names = self.delays(known).await?;
        names.push(known.wire.clone());
        for name in names {
            let purge = desk
                .channel
                .queue_purge(name.into(), QueuePurgeOptions::default());
            dropped += u64::from(self.link.call(&desk.open, purge).await?);
        }
        known.dropped.fetch_add(dropped, Ordering::Relaxed);
        Ok(dropped)
    }

    async fn stats(&self, known: &Known) -> Result<Option<Stats>> {
        let mut names = vec![known.wire.clone(), known.dead()];
        names.extend(self.delays(known).await?);
        let counts = self.count(&names).await?;
        let Some(waiting) = counts[0] else {
            return Ok(None);
        };
        let (here, leased) = known.hand(self).counts();
        let total = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let (ready, dead) = (waiting + here, counts[1].unwrap_or(0));
        let delayed = counts[2..].iter().flatten().sum::<u64>();
        let (acked, dropped) = (total(&known.acked), total(&known.dropped));
        let now = Instant::now();
        let mut consumers = lock(&known.consumers);
        consumers.retain(|_, seen| now.duration_since(*seen) < PRESENT);
        let hand = known.hand(self);
        let holding = hand.consumers().filter(|who| !consumers.contains_key(*who));
        let holding: std::collections::BTreeSet<&ConsumerId> = holding.collect();
        Ok(Some(Stats {
            queue: known.name.clone(),
            ready,
            delayed,
            leased,
            dead,
            enqueued: ready + delayed + leased + dead + acked + dropped,
            acked,
            retried: total(&known.retried),
            dropped,
            duplicates: 0,
            oldest_age: hand.oldest().map(|at| self.clock.now().since(at)),
            consumers: (consumers.len() + holding.len()) as u64,
            paused: false,
        }))
    }
}

fn lacks(what: &str) -> Error {
    Error::unsupported(format!("queues on RabbitMQ have no {what}"))
}

fn stale(receipt: &Receipt) -> Error {
    Error::conflict(format!(
        "the lease of message number {} of `{}` had expired, and the message went on",
        receipt.number, receipt.queue
    ))
}
