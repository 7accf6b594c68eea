//! Handing out: from what waits in this process, from the broker, and waiting for either.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use lapin::message::Delivery as Arrival;
use lapin::options::BasicGetOptions;
use tokio::sync::oneshot;
use towpath_core::port::queue::LeaseRequest;
use towpath_core::{Delivery, QueueName, Result};

use crate::broker::in_flight::{SPENT, Terms};

use super::consumer_channel::{self, Held, Incoming, Ticket};
use super::envelope::{self, returns};
use super::store::{Desk, Known, Store, lock};

/// Messages asked for at once; more than thirty calls are not sent in order by `join_all`.
const AT_ONCE: usize = 30;

/// Payload bytes after which no more messages are fetched for one lease.
pub(super) const ENOUGH_BYTES: usize = 32 << 20;

/// A consumer that leases again within this time is sent messages ahead.
const BRISK: Duration = Duration::from_millis(500);

/// The longest sleep while waiting.
const LOOK: Duration = Duration::from_secs(10);

impl Store {
    /// Leases, and waits as long as somebody waits for the answer.
    pub(super) async fn lease(
        self: &Arc<Self>,
        request: &LeaseRequest,
        answer: &mut oneshot::Sender<Result<Vec<Delivery>>>,
    ) -> Result<Vec<Delivery>> {
        let until = Instant::now().checked_add(request.wait);
        let known = self.known(&request.queue)?;
        let before = known.tally.saw(&request.consumer);
        let is_brisk = before.is_some_and(|before| before < BRISK);
        let stands = known.standing.lock().await.contains_key(&request.consumer);
        // What is fetched would overtake what is on its way to one that stands.
        let mut sends_ahead = (is_brisk || stands) && !request.wait.is_zero();
        if request.wait.is_zero() {
            // Nothing that is there may be on its way.
            self.end_where(&known, |who, _| *who == request.consumer)
                .await;
        }
        loop {
            self.check_open()?;
            let standing = if sends_ahead {
                Some(self.stand(&known, request).await?)
            } else {
                None
            };
            let mut news = std::pin::pin!(known.news.notified());
            news.as_mut().enable();
            let deliveries = self.hand_out(&known, request, !sends_ahead).await?;
            let left = until.map_or(LOOK, |until| {
                until.saturating_duration_since(Instant::now())
            });
            if !deliveries.is_empty() || left.is_zero() || answer.is_closed() {
                return Ok(deliveries);
            }
            if let Some(standing) = standing {
                let expiry = known.hand(self).next_expiry();
                let until_expiry = expiry.map(|at| at.saturating_duration_since(Instant::now()));
                let limit = left.min(LOOK).min(until_expiry.unwrap_or(LOOK));
                tokio::select! {
                    () = news => {}
                    () = answer.closed() => {}
                    () = tokio::time::sleep(limit) => {}
                }
                standing.touch();
            }
            // Nothing is there: from now on it comes by itself.
            sends_ahead = true;
        }
    }

    /// Leases what is there: first what waits in this process, then, where it is to be fetched, what the broker has.
    async fn hand_out(
        &self,
        known: &Known,
        request: &LeaseRequest,
        fetches: bool,
    ) -> Result<Vec<Delivery>> {
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
            if missing == 0 || bytes >= ENOUGH_BYTES || !fetches {
                return Ok(deliveries);
            }
            // What is on its way back is there in a moment.
            drop(known.returning.lock().await);
            // A few first: mostly there is little or nothing.
            let count = missing
                .min(AT_ONCE)
                .min(if deliveries.is_empty() { 4 } else { AT_ONCE });
            let wire = || {
                desk.incoming
                    .channel
                    .basic_get(known.wire.as_str().into(), BasicGetOptions::default())
            };
            let answers = join_all((0..count).map(|_| wire()));
            let answers = self.link.ask(&desk.open, answers).await?;
            let mut came = 0;
            for answer in answers {
                let answer = self.link.call(&desk.open, async { answer }).await?;
                if let Some(message) = answer {
                    came += 1;
                    self.arrive(known, &desk, &desk.incoming, message.delivery)
                        .await?;
                }
            }
            if came == 0 {
                return Ok(deliveries);
            }
        }
    }

    /// Puts a message into the hand, or sends it where it belongs.
    pub(super) async fn arrive(
        &self,
        known: &Known,
        desk: &Desk,
        incoming: &Arc<Incoming>,
        arrival: Arrival,
    ) -> Result<()> {
        incoming.note(arrival.delivery_tag);
        *lock(&known.stuck_since) = None;
        let counted = returns(&arrival.properties);
        let now = self.clock.now();
        let envelope = envelope::read(&arrival.properties, arrival.data, now);
        let before = envelope.attempts;
        let charged = match counted {
            Some(returns) => before.saturating_add(returns),
            None => before,
        };
        let counts = desk.renew_after.is_some() || counted.is_some();
        let by_return = if counts { charged } else { before }.saturating_add(1);
        let mut held = Held::new(
            envelope,
            charged,
            consumer_channel::Arrival {
                charged_by_return: by_return,
                returns: counted.unwrap_or(0),
                ticket: Ticket {
                    tag: arrival.delivery_tag,
                    acker: arrival.acker,
                },
                connection: desk.open.number,
                incoming: Arc::clone(incoming),
            },
        );
        if !counts && arrival.redelivered {
            // A classic queue says only that somebody had it: the copy carries the number.
            held.charged = held.charged.saturating_add(1);
            return self.move_on(known, desk, known.wire.clone(), held).await;
        }
        if let (Some(returns), Some(renew_after)) = (counted, desk.renew_after)
            && returns >= renew_after
        {
            // The broker drops a message at its limit of returns; the attempts decide here, and the copy has none.
            return self.move_on(known, desk, known.wire.clone(), held).await;
        }
        let due = held.envelope.not_before;
        let place = self.place_until(known, due).await?;
        if place != known.wire {
            return self.move_on(known, desk, place, held).await;
        }
        held.envelope.not_before = None;
        let size = held.envelope.message.payload.len();
        known.largest.fetch_max(size, Ordering::Relaxed);
        known.hand(self).add(self.next_number(), held);
        Ok(())
    }

    /// Publishes a copy, and lets go of the original.
    pub(super) async fn move_on(
        &self,
        known: &Known,
        desk: &Desk,
        to: String,
        held: Held,
    ) -> Result<()> {
        let letter = Self::letter(to, &held);
        for sent in self.post(known, vec![letter]).await {
            sent?;
        }
        self.ack(desk, &[held]).await
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
