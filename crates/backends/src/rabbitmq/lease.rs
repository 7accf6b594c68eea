//! Handing out: from what waits in this process, from the broker, and waiting for either.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::{FutureExt, join_all};
use lapin::Channel;
use lapin::message::Delivery as Arrival;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions};
use lapin::types::FieldTable;
use tokio::sync::oneshot;
use towpath_core::port::queue::LeaseRequest;
use towpath_core::{Delivery, Error, QueueName, Result};

use super::envelope::{Envelope, returns};
use super::hand::{Held, Terms};
use super::store::{Desk, Known, Store, lock};

/// Messages asked for at once; more than thirty calls are not sent in order by `join_all`.
const AT_ONCE: usize = 30;

/// Payload bytes after which no more messages are fetched for one lease.
const ENOUGH_BYTES: usize = 32 << 20;

/// The longest sleep while waiting.
const LOOK: Duration = Duration::from_secs(10);

/// Why a message is given up that no consumer ever settled.
const SPENT: &str =
    "its attempts are spent: every consumer that had it let the lease expire or died";

impl Store {
    /// Leases, and waits as long as somebody waits for the answer.
    pub(super) async fn lease(
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
    pub(super) async fn move_on(&self, desk: &Desk, to: String, held: Held) -> Result<()> {
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
    pub(super) fn take_back(&self, queue: &QueueName, deliveries: &[Delivery]) {
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
}
