//! Settling deliveries: turns settlements of this process's consumers into tasks of the settler.

use std::sync::atomic::Ordering;

use towpath_core::Result;
use towpath_core::port::queue::{Disposition, Settlement};

use crate::broker::in_flight::stale;

use super::queue::QueueHandle;
use super::retry;
use super::settler::{Action, SettleItem};
use super::store::Store;

impl Store {
    pub(super) async fn settle(
        &self,
        handle: &QueueHandle,
        settlements: Vec<(usize, Settlement)>,
    ) -> Vec<(usize, Result<()>)> {
        let mut outcomes = Vec::with_capacity(settlements.len());
        let Some(session) = handle.session_if_any().await else {
            let all = settlements.iter();
            return all
                .map(|(at, one)| (*at, Err(stale(&one.receipt))))
                .collect();
        };
        let (mut places, mut items) = (Vec::new(), Vec::new());
        let attempts = handle.attempts();
        let mut is_released = false;
        for (
            at,
            Settlement {
                receipt,
                disposition,
            },
        ) in settlements
        {
            let mut buffer = session.members.ready.buffer();
            let Some(mut held) = buffer.take(&receipt) else {
                outcomes.push((at, Err(stale(&receipt))));
                continue;
            };
            let now = self.clock.now();
            let mut released = 0;
            let (action, counter) = match disposition {
                Disposition::Ack => (Action::Ack, Some(&handle.counters.acked)),
                Disposition::Release { after } if after.is_zero() => {
                    buffer.release(receipt.number, held);
                    is_released = true;
                    outcomes.push((at, Ok(())));
                    continue;
                }
                Disposition::Release { after } => {
                    released = 1;
                    let due = now.after(after);
                    held.envelope.not_before = Some(due);
                    (retry::action(Some(due), now), None)
                }
                Disposition::Retry { after, error } if held.charged < attempts => {
                    held.fail(&error);
                    let due = now.after(after);
                    held.envelope.not_before = Some(due);
                    (
                        retry::action(Some(due), now),
                        Some(&handle.counters.retried),
                    )
                }
                Disposition::Retry { error: reason, .. } | Disposition::DeadLetter { reason } => {
                    held.envelope.mark_dead(&reason, now);
                    (Action::DeadLetter, None)
                }
            };
            drop(buffer);
            places.push((at, counter));
            items.push(SettleItem {
                number: receipt.number,
                attempts: held.charged - released,
                held,
                action,
                is_cut: false,
            });
        }
        if is_released {
            session.members.ready.wake();
            session.ready.count();
        }
        for ((at, counter), outcome) in places.into_iter().zip(session.ready.settle(items).await) {
            if let (Ok(()), Some(counter)) = (&outcome, counter) {
                counter.fetch_add(1, Ordering::Relaxed);
            }
            outcomes.push((at, outcome));
        }
        outcomes
    }
}
