//! How deliveries end.

use std::collections::{BTreeMap, HashSet};

use towpath_core::port::queue::{Settlement, Verdict};
use towpath_core::{Error, QueueName, Receipt, Result};

use super::super::log::{Class, Position};
use super::super::record::{Ending, Record};
use super::super::store::{Inner, Store};

/// What settlements come to.
pub(in super::super) struct Endings<'a> {
    /// One each.
    pub(in super::super) outcomes: Vec<Result<()>>,
    /// Numbers and endings of those that hold.
    pub(in super::super) by_queue: BTreeMap<QueueName, Vec<(u64, Ending<'a>)>>,
}

impl Store {
    /// Ends what the receipts still hold, queue by queue.
    pub(super) fn end_deliveries(
        &self,
        settlements: &[Settlement],
    ) -> Result<(Vec<Result<()>>, Position)> {
        let now = self.clock.now();
        let mut guard = self.lock();
        let inner = &mut *guard;
        let plan = self.plan_endings(inner, settlements);
        let mut end = self.log.awaited_end();
        for (queue, settled) in plan.by_queue {
            let gives_back = settled
                .iter()
                .any(|(_, ending)| !matches!(ending, Ending::Ack));
            end = self.write(
                inner,
                Class::Settle,
                &Record::Settle {
                    queue: queue.clone(),
                    at: now,
                    settled,
                },
            )?;
            // A key that was let go may let another message go.
            if gives_back || inner.state.queue(&queue).has_ready() {
                self.news(&queue).notify_waiters();
            }
        }
        Ok((plan.outcomes, end))
    }

    /// What the receipts still hold, and what becomes of it.
    pub(in super::super) fn plan_endings<'a>(
        &self,
        inner: &mut Inner,
        settlements: &'a [Settlement],
    ) -> Endings<'a> {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let mut plan = Endings {
            outcomes: Vec::with_capacity(settlements.len()),
            by_queue: BTreeMap::new(),
        };
        // One receipt ends one delivery, also within one call; no two leases have one fence.
        let (mut seen, mut ticked) = (HashSet::new(), None);
        for Settlement { receipt, verdict } in settlements {
            let Some(state) = inner.state.queues.get_mut(&receipt.queue) else {
                plan.outcomes.push(Err(stale(receipt)));
                continue;
            };
            if ticked.replace(&receipt.queue) != Some(&receipt.queue) {
                state.tick(now, monotonic);
            }
            if !state.holds(receipt.number, receipt.fence) || !seen.insert(receipt.fence) {
                plan.outcomes.push(Err(stale(receipt)));
                continue;
            }
            let spent = state
                .settings
                .retry
                .is_spent(state.attempts(receipt.number));
            let ending = match verdict {
                Verdict::Ack => Ending::Ack,
                Verdict::Release { after } if after.is_zero() => Ending::Release,
                Verdict::Release { after } => Ending::Defer {
                    due: now.after(*after),
                },
                Verdict::DeadLetter { reason } => Ending::Dead {
                    reason: reason.as_str().into(),
                },
                Verdict::Retry { error, .. } if spent => Ending::Dead {
                    reason: error.as_str().into(),
                },
                Verdict::Retry { after, error } => Ending::Retry {
                    due: now.after(*after),
                    error: error.as_str().into(),
                },
            };
            plan.by_queue
                .entry(receipt.queue.clone())
                .or_default()
                .push((receipt.number, ending));
            plan.outcomes.push(Ok(()));
        }
        plan
    }
}

pub(super) fn stale(receipt: &Receipt) -> Error {
    Error::conflict(format!(
        "lease of message number {} of `{}` expired and the message was delivered again or returned",
        receipt.number, receipt.queue
    ))
}
