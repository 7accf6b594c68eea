//! Settling deliveries: a message that moves is published, confirmed, and only then acked at its source.

use std::sync::atomic::Ordering;

use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::{Error, Result, Timestamp};

use crate::broker::in_flight::stale;

use super::consumer_channel::InFlightMessage;
use super::store::{QueueChannel, QueueHandle, Store, lock};

/// The move of a message that is not acked.
enum Move {
    /// Another attempt at this time.
    Retry(Timestamp),
    /// The same attempt at this time.
    Release(Timestamp),
    /// Dead letter, with the reason.
    DeadLetter(String),
}

impl Store {
    pub(super) async fn settle(
        &self,
        handle: &QueueHandle,
        settlements: Vec<(usize, Settlement)>,
    ) -> Vec<(usize, Result<()>)> {
        let queue_channel = match self.queue_channel(handle).await {
            Ok(queue_channel) => queue_channel,
            Err(error) => {
                let text = error.chain();
                let failed = |(at, _)| (at, Err(Error::unavailable(text.clone())));
                return settlements.into_iter().map(failed).collect();
            }
        };
        let mut outcomes = Vec::with_capacity(settlements.len());
        let (mut done, mut moves) = (Vec::new(), Vec::new());
        for (
            at,
            Settlement {
                receipt,
                disposition,
            },
        ) in settlements
        {
            let Some(mut held) = handle.in_flight(self).take(&receipt) else {
                outcomes.push((at, Err(stale(&receipt))));
                continue;
            };
            let attempts = lock(&handle.settings).retry.attempts;
            match disposition {
                Disposition::Ack => done.push((at, held, Some(&handle.counters.acked))),
                Disposition::Release { after } if after.is_zero() => {
                    handle.in_flight(self).release(receipt.number, held);
                    handle.changed.notify_waiters();
                    outcomes.push((at, Ok(())));
                }
                Disposition::DeadLetter { reason } => {
                    moves.push((at, receipt.number, held, Move::DeadLetter(reason)));
                }
                Disposition::Retry { error, .. } if held.charged >= attempts => {
                    moves.push((at, receipt.number, held, Move::DeadLetter(error)));
                }
                Disposition::Retry { after, error } => {
                    held.fail(&error);
                    let due = self.clock.now().after(after);
                    moves.push((at, receipt.number, held, Move::Retry(due)));
                }
                Disposition::Release { after } => {
                    let due = self.clock.now().after(after);
                    moves.push((at, receipt.number, held, Move::Release(due)));
                }
            }
        }
        let (mut publishes, mut underway) = (Vec::new(), Vec::new());
        for (at, number, mut held, to) in moves {
            let (is_retry, is_release) =
                (matches!(to, Move::Retry(_)), matches!(to, Move::Release(_)));
            let place = match to {
                Move::Retry(due) | Move::Release(due) => {
                    held.envelope.not_before = Some(due);
                    self.place_until(handle, Some(due)).await
                }
                Move::DeadLetter(reason) => {
                    held.envelope.mark_dead(&reason, self.clock.now());
                    self.dead_place(handle, &queue_channel.open).await
                }
            };
            match place {
                Ok(place) => {
                    let attempts = held.charged - u32::from(is_release);
                    publishes.push(Self::publish_with_attempts(place, &held, attempts));
                    underway.push((at, number, held, is_retry));
                }
                Err(error) => {
                    handle.in_flight(self).put_back(number, held);
                    outcomes.push((at, Err(error)));
                }
            }
        }
        let sent = self.post(handle, publishes).await;
        for ((at, number, held, is_retry), sent) in underway.into_iter().zip(sent) {
            match sent {
                Ok(()) => done.push((at, held, is_retry.then_some(&handle.counters.retried))),
                Err(error) => {
                    handle.in_flight(self).put_back(number, held);
                    outcomes.push((at, Err(error)));
                }
            }
        }
        let (places, done): (Vec<_>, Vec<InFlightMessage>) = done
            .into_iter()
            .map(|(at, held, counter)| ((at, counter), held))
            .unzip();
        let acked = self.ack(&queue_channel, &done).await;
        let text = acked.err().map(|error| error.chain());
        for (at, counter) in places {
            let outcome = match &text {
                Some(text) => Err(Error::unavailable(text.clone())),
                None => {
                    // Only now: an unacked message is redelivered, and counted then.
                    if let Some(counter) = counter {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                }
            };
            outcomes.push((at, outcome));
        }
        outcomes
    }

    /// Moves a message to the dead letters.
    pub(super) async fn dead_letter(
        &self,
        handle: &QueueHandle,
        queue_channel: &QueueChannel,
        mut held: InFlightMessage,
        reason: &str,
    ) -> Result<()> {
        held.envelope.mark_dead(reason, self.clock.now());
        let place = self.dead_place(handle, &queue_channel.open).await?;
        self.move_on(handle, queue_channel, place, held).await
    }
}
