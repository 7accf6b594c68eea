//! Leasing: messages of this process, messages of the broker, and waiting for either.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::message::Delivery as AmqpDelivery;
use lapin::options::BasicGetOptions;
use tokio::sync::oneshot;
use towpath_core::port::queue::LeaseRequest;
use towpath_core::{Delivery, QueueName, Result};

use crate::broker::in_flight::{ATTEMPTS_EXHAUSTED, LeaseTerms};

use super::consumer_channel::{self, ConsumerChannel, DeliveryTag, InFlightMessage};
use super::envelope::{self, returns};
use super::store::{QueueChannel, QueueHandle, Store, lock};

/// Concurrent fetches; `join_all` keeps the order of no more than thirty.
const AT_ONCE: usize = 30;

/// Payload bytes after which no more messages are fetched for one lease.
pub(super) const ENOUGH_BYTES: usize = 32 << 20;

/// A consumer that leases again within this time is sent messages ahead.
const BRISK: Duration = Duration::from_millis(500);

/// Longest sleep while waiting.
const LOOK: Duration = Duration::from_secs(10);

impl Store {
    /// Leases, and waits as long as the caller waits for the answer.
    pub(super) async fn lease(
        self: &Arc<Self>,
        request: &LeaseRequest,
        answer: &mut oneshot::Sender<Result<Vec<Delivery>>>,
    ) -> Result<Vec<Delivery>> {
        let until = Instant::now().checked_add(request.wait);
        let handle = self.handle(&request.queue)?;
        let before = handle.counters.saw(&request.consumer);
        let is_brisk = before.is_some_and(|before| before < BRISK);
        let is_consuming = handle
            .consumers
            .lock()
            .await
            .contains_key(&request.consumer);
        // A fetch would overtake deliveries in flight to a prefetch consumer.
        let mut sends_ahead = (is_brisk || is_consuming) && !request.wait.is_zero();
        if request.wait.is_zero() {
            // No delivery may be in flight.
            self.cancel_where(&handle, |who, _| *who == request.consumer)
                .await;
        }
        loop {
            self.check_open()?;
            let consumer = if sends_ahead {
                Some(self.consume(&handle, request).await?)
            } else {
                None
            };
            let mut changed = std::pin::pin!(handle.changed.notified());
            changed.as_mut().enable();
            let deliveries = self.lease_ready(&handle, request, !sends_ahead).await?;
            let left = until.map_or(LOOK, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if !deliveries.is_empty() || left.is_zero() || answer.is_closed() {
                return Ok(deliveries);
            }
            if let Some(consumer) = consumer {
                let expiry = handle.in_flight(self).next_expiry();
                let until_expiry = expiry.map(|at| at.saturating_duration_since(Instant::now()));
                let limit = left.min(LOOK).min(until_expiry.unwrap_or(LOOK));
                tokio::select! {
                    () = changed => {}
                    () = answer.closed() => {}
                    () = tokio::time::sleep(limit) => {}
                }
                consumer.touch();
            }
            // The queue is empty: from now on the broker pushes.
            sends_ahead = true;
        }
    }

    /// Leases waiting messages of this process first, then, with `fetches`, those of the broker.
    async fn lease_ready(
        &self,
        handle: &QueueHandle,
        request: &LeaseRequest,
        fetches: bool,
    ) -> Result<Vec<Delivery>> {
        let queue_channel = self.queue_channel(handle).await?;
        let mut deliveries = Vec::new();
        let mut bytes = 0;
        loop {
            let terms = LeaseTerms {
                queue: &handle.name,
                consumer: &request.consumer,
                lease: request.lease,
                max: request.max - deliveries.len(),
                attempts: lock(&handle.settings).retry.attempts,
            };
            let (leased, spent) = handle.in_flight(self).lease(&terms, || self.next_number());
            bytes += leased
                .iter()
                .map(|one| one.message.payload.len())
                .sum::<usize>();
            deliveries.extend(leased);
            for held in spent {
                self.dead_letter(handle, &queue_channel, held, ATTEMPTS_EXHAUSTED)
                    .await?;
            }
            let missing = request.max - deliveries.len();
            if missing == 0 || bytes >= ENOUGH_BYTES || !fetches {
                return Ok(deliveries);
            }
            // Requeued messages are visible soon.
            drop(handle.returning.lock().await);
            // Start small: the queue is mostly empty.
            let count = missing
                .min(AT_ONCE)
                .min(if deliveries.is_empty() { 4 } else { AT_ONCE });
            let wire = || {
                queue_channel
                    .consumer_channel
                    .channel
                    .basic_get(handle.wire.as_str().into(), BasicGetOptions::default())
            };
            let answers = join_all((0..count).map(|_| wire()));
            let answers = self.broker.ask(&queue_channel.open, answers).await?;
            let mut came = 0;
            for answer in answers {
                let answer = self
                    .broker
                    .call(&queue_channel.open, async { answer })
                    .await?;
                if let Some(message) = answer {
                    came += 1;
                    self.arrive(
                        handle,
                        &queue_channel,
                        &queue_channel.consumer_channel,
                        message.delivery,
                    )
                    .await?;
                }
            }
            if came == 0 {
                return Ok(deliveries);
            }
        }
    }

    /// Adds a delivery to the in-flight messages, or moves it to its queue.
    pub(super) async fn arrive(
        &self,
        handle: &QueueHandle,
        queue_channel: &QueueChannel,
        consumer_channel: &Arc<ConsumerChannel>,
        arrival: AmqpDelivery,
    ) -> Result<()> {
        consumer_channel.note(arrival.delivery_tag);
        *lock(&handle.stuck_since) = None;
        let counted = returns(&arrival.properties);
        let now = self.clock.now();
        let envelope = envelope::read(&arrival.properties, arrival.data, now);
        let before = envelope.attempts;
        let charged = match counted {
            Some(returns) => before.saturating_add(returns),
            None => before,
        };
        let counts = queue_channel.renew_after.is_some() || counted.is_some();
        let by_return = if counts { charged } else { before }.saturating_add(1);
        let mut held = InFlightMessage::new(
            envelope,
            charged,
            consumer_channel::IncomingMessage {
                charged_by_return: by_return,
                returns: counted.unwrap_or(0),
                tag: DeliveryTag {
                    number: arrival.delivery_tag,
                    acker: arrival.acker,
                },
                connection: queue_channel.open.number,
                consumer_channel: Arc::clone(consumer_channel),
            },
        );
        if !counts && arrival.redelivered {
            // A classic queue reports only that it was redelivered: the copy carries the count.
            held.charged = held.charged.saturating_add(1);
            return self
                .move_on(handle, queue_channel, handle.wire.clone(), held)
                .await;
        }
        if let (Some(returns), Some(renew_after)) = (counted, queue_channel.renew_after)
            && returns >= renew_after
        {
            // The broker drops a message at its delivery limit; here the attempts decide, and the copy starts from zero.
            return self
                .move_on(handle, queue_channel, handle.wire.clone(), held)
                .await;
        }
        let due = held.envelope.not_before;
        let place = self.place_until(handle, due).await?;
        if place != handle.wire {
            return self.move_on(handle, queue_channel, place, held).await;
        }
        held.envelope.not_before = None;
        let size = held.envelope.message.payload.len();
        handle.largest.fetch_max(size, Ordering::Relaxed);
        handle.in_flight(self).add(self.next_number(), held);
        Ok(())
    }

    /// Publishes a copy, and acks the original.
    pub(super) async fn move_on(
        &self,
        handle: &QueueHandle,
        queue_channel: &QueueChannel,
        to: String,
        held: InFlightMessage,
    ) -> Result<()> {
        let publish = Self::publish(to, &held);
        for sent in self.post(handle, vec![publish]).await {
            sent?;
        }
        self.ack(queue_channel, &[held]).await
    }

    /// Releases the deliveries of a dropped call.
    pub(super) fn release_unclaimed(&self, queue: &QueueName, deliveries: &[Delivery]) {
        let Ok(handle) = self.handle(queue) else {
            return;
        };
        let mut in_flight = handle.in_flight(self);
        for delivery in deliveries {
            if let Some(held) = in_flight.take(&delivery.receipt) {
                in_flight.release(delivery.receipt.number, held);
            }
        }
        drop(in_flight);
        handle.changed.notify_waiters();
    }
}
