//! Ending deliveries: what the consumers of this process say goes to the task that settles.

use std::sync::atomic::Ordering;

use towpath_core::Result;
use towpath_core::port::queue::{Settlement, Verdict};

use crate::broker::in_flight::stale;

use super::queue::Known;
use super::retry;
use super::settler::{Job, To};
use super::store::Store;

impl Store {
    pub(super) async fn settle(
        &self,
        known: &Known,
        settlements: Vec<(usize, Settlement)>,
    ) -> Vec<(usize, Result<()>)> {
        let mut outcomes = Vec::with_capacity(settlements.len());
        let Some(desk) = known.desk_if_any().await else {
            let all = settlements.iter();
            return all
                .map(|(at, one)| (*at, Err(stale(&one.receipt))))
                .collect();
        };
        let (mut places, mut jobs) = (Vec::new(), Vec::new());
        let attempts = known.attempts();
        let mut is_released = false;
        for (at, Settlement { receipt, verdict }) in settlements {
            let mut shelf = desk.members.ready.shelf();
            let Some(mut held) = shelf.take(&receipt) else {
                outcomes.push((at, Err(stale(&receipt))));
                continue;
            };
            let now = self.clock.now();
            let mut released = 0;
            let (to, counter) = match verdict {
                Verdict::Ack => (To::Gone, Some(&known.tally.acked)),
                Verdict::Release { after } if after.is_zero() => {
                    shelf.release(receipt.number, held);
                    is_released = true;
                    outcomes.push((at, Ok(())));
                    continue;
                }
                Verdict::Release { after } => {
                    released = 1;
                    let due = now.after(after);
                    held.envelope.not_before = Some(due);
                    (retry::place(Some(due), now), None)
                }
                Verdict::Retry { after, error } if held.charged < attempts => {
                    held.fail(&error);
                    let due = now.after(after);
                    held.envelope.not_before = Some(due);
                    (retry::place(Some(due), now), Some(&known.tally.retried))
                }
                Verdict::Retry { error: reason, .. } | Verdict::DeadLetter { reason } => {
                    held.envelope.die(&reason, now);
                    (To::Dead, None)
                }
            };
            drop(shelf);
            places.push((at, counter));
            jobs.push(Job {
                number: receipt.number,
                attempts: held.charged - released,
                held,
                to,
                is_cut: false,
            });
        }
        if is_released {
            desk.members.ready.wake();
            desk.ready.count();
        }
        for ((at, counter), outcome) in places.into_iter().zip(desk.ready.settle(jobs).await) {
            if let (Ok(()), Some(counter)) = (&outcome, counter) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            outcomes.push((at, outcome));
        }
        outcomes
    }
}
