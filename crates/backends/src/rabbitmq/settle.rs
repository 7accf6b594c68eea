//! Ending deliveries: what moves is published first, confirmed, and only then acked where it was.

use std::sync::atomic::Ordering;

use towpath_core::port::queue::{Settlement, Verdict};
use towpath_core::{Error, Result, Timestamp};

use crate::broker::in_flight::stale;

use super::consumer_channel::Held;
use super::store::{Desk, Known, Store, lock};

/// Where a message goes that is not acked.
enum To {
    /// Another attempt at this moment.
    Retry(Timestamp),
    /// The same attempt at this moment.
    Later(Timestamp),
    /// The dead letters, with the reason.
    Dead(String),
}

impl Store {
    pub(super) async fn settle(
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
                Verdict::Ack => done.push((at, held, Some(&known.tally.acked))),
                Verdict::Release { after } if after.is_zero() => {
                    known.hand(self).release(receipt.number, held);
                    known.news.notify_waiters();
                    outcomes.push((at, Ok(())));
                }
                Verdict::DeadLetter { reason } => {
                    moves.push((at, receipt.number, held, To::Dead(reason)));
                }
                Verdict::Retry { error, .. } if held.charged >= attempts => {
                    moves.push((at, receipt.number, held, To::Dead(error)));
                }
                Verdict::Retry { after, error } => {
                    held.fail(&error);
                    let due = self.clock.now().after(after);
                    moves.push((at, receipt.number, held, To::Retry(due)));
                }
                Verdict::Release { after } => {
                    let due = self.clock.now().after(after);
                    moves.push((at, receipt.number, held, To::Later(due)));
                }
            }
        }
        let (mut letters, mut underway) = (Vec::new(), Vec::new());
        for (at, number, mut held, to) in moves {
            let (is_retry, is_release) = (matches!(to, To::Retry(_)), matches!(to, To::Later(_)));
            let place = match to {
                To::Retry(due) | To::Later(due) => {
                    held.envelope.not_before = Some(due);
                    self.place_until(known, Some(due)).await
                }
                To::Dead(reason) => {
                    held.envelope.die(&reason, self.clock.now());
                    self.dead_place(known, &desk.open).await
                }
            };
            match place {
                Ok(place) => {
                    let attempts = held.charged - u32::from(is_release);
                    letters.push(Self::letter_of(place, &held, attempts));
                    underway.push((at, number, held, is_retry));
                }
                Err(error) => {
                    known.hand(self).put_back(number, held);
                    outcomes.push((at, Err(error)));
                }
            }
        }
        let sent = self.post(known, letters).await;
        for ((at, number, held, is_retry), sent) in underway.into_iter().zip(sent) {
            match sent {
                Ok(()) => done.push((at, held, is_retry.then_some(&known.tally.retried))),
                Err(error) => {
                    known.hand(self).put_back(number, held);
                    outcomes.push((at, Err(error)));
                }
            }
        }
        let (places, done): (Vec<_>, Vec<Held>) = done
            .into_iter()
            .map(|(at, held, counter)| ((at, counter), held))
            .unzip();
        let acked = self.ack(&desk, &done).await;
        let text = acked.err().map(|error| error.chain());
        for (at, counter) in places {
            let outcome = match &text {
                Some(text) => Err(Error::unavailable(text.clone())),
                None => {
                    // Not before: what was not acked comes again, and is counted then.
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

    /// Makes a dead letter of a message.
    pub(super) async fn bury(
        &self,
        known: &Known,
        desk: &Desk,
        mut held: Held,
        reason: &str,
    ) -> Result<()> {
        held.envelope.die(reason, self.clock.now());
        let place = self.dead_place(known, &desk.open).await?;
        self.move_on(known, desk, place, held).await
    }
}
