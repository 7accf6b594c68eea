//! Settles deliveries.

use std::collections::{BTreeMap, HashSet};

use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::{Error, QueueName, Receipt, Result};

use super::super::log::{Class, Position};
use super::super::record::{DeliveryOutcome, Record};
use super::super::store::{Inner, Store};

/// The changes that settlements make.
pub(in super::super) struct SettlePlan<'a> {
    /// One each.
    pub(in super::super) outcomes: Vec<Result<()>>,
    /// Numbers and outcomes of settlements whose lease is current.
    pub(in super::super) by_queue: BTreeMap<QueueName, Vec<(u64, DeliveryOutcome<'a>)>>,
}

impl Store {
    /// Ends the deliveries whose receipts are current, queue by queue.
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
                .any(|(_, outcome)| !matches!(outcome, DeliveryOutcome::Ack));
            end = self.write(
                inner,
                Class::Settle,
                &Record::Settle {
                    queue: queue.clone(),
                    at: now,
                    settled,
                },
            )?;
            // A released key may make another message ready.
            if gives_back || inner.state.queue(&queue).has_ready() {
                self.news(&queue).notify_waiters();
            }
        }
        Ok((plan.outcomes, end))
    }

    /// The deliveries whose receipts are current, and their outcomes.
    pub(in super::super) fn plan_endings<'a>(
        &self,
        inner: &mut Inner,
        settlements: &'a [Settlement],
    ) -> SettlePlan<'a> {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let mut plan = SettlePlan {
            outcomes: Vec::with_capacity(settlements.len()),
            by_queue: BTreeMap::new(),
        };
        // One receipt ends one delivery, also within one call; no two leases have one fence.
        let (mut seen, mut ticked) = (HashSet::new(), None);
        for Settlement {
            receipt,
            disposition,
        } in settlements
        {
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
            let outcome = match disposition {
                Disposition::Ack => DeliveryOutcome::Ack,
                Disposition::Release { after } if after.is_zero() => DeliveryOutcome::Release,
                Disposition::Release { after } => DeliveryOutcome::Defer {
                    due: now.after(*after),
                },
                Disposition::DeadLetter { reason } => DeliveryOutcome::Dead {
                    reason: reason.as_str().into(),
                },
                Disposition::Retry { error, .. } if spent => DeliveryOutcome::Dead {
                    reason: error.as_str().into(),
                },
                Disposition::Retry { after, error } => DeliveryOutcome::Retry {
                    due: now.after(*after),
                    error: error.as_str().into(),
                },
            };
            plan.by_queue
                .entry(receipt.queue.clone())
                .or_default()
                .push((receipt.number, outcome));
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
