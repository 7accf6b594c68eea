//! Which consumer has which messages, so that no question about consumers looks at every message.

use std::collections::{BTreeSet, HashMap};

use towpath_core::ConsumerId;

use super::message::TrackedMessage;
use super::{MessagePhase, QueueState};

/// Messages by the consumer of their last lease.
#[derive(Debug, Default)]
pub(super) struct Holders(HashMap<ConsumerId, Holding>);

#[derive(Debug, Default)]
struct Holding {
    numbers: BTreeSet<u64>,
    /// Those whose lease has not expired.
    leased: usize,
}

impl Holders {
    /// Notes a message that is put into its place.
    pub(super) fn enter(&mut self, held: &TrackedMessage) {
        let Some(lease) = &held.lease else { return };
        let leased = usize::from(matches!(held.phase, MessagePhase::Leased { .. }));
        let number = held.entry.number;
        // Without a clone of the name for each message.
        match self.0.get_mut(&lease.consumer) {
            Some(holding) => {
                holding.numbers.insert(number);
                holding.leased += leased;
            }
            None => {
                let numbers = BTreeSet::from([number]);
                let holding = Holding { numbers, leased };
                self.0.insert(lease.consumer.clone(), holding);
            }
        }
    }

    /// Forgets a message that is taken out of its place.
    pub(super) fn leave(&mut self, held: &TrackedMessage) {
        let Some(lease) = &held.lease else { return };
        let Some(holding) = self.0.get_mut(&lease.consumer) else {
            return;
        };
        holding.numbers.remove(&held.entry.number);
        holding.leased -= usize::from(matches!(held.phase, MessagePhase::Leased { .. }));
        if holding.numbers.is_empty() {
            self.0.remove(&lease.consumer);
        }
    }

    /// Consumers that hold a delivery.
    pub(super) fn active(&self) -> impl Iterator<Item = &ConsumerId> {
        let active = self.0.iter().filter(|(_, holding)| holding.leased > 0);
        active.map(|(consumer, _)| consumer)
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

impl QueueState {
    /// Releases the consumer's messages; attempts stay counted, and its receipts become invalid.
    pub(in super::super::super) fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        self.consumers.remove(gone);
        let Some(holding) = self.holders.0.get(gone) else {
            return 0;
        };
        let mut count = 0;
        for number in holding.numbers.clone() {
            let Some(mut held) = self.detach(number) else {
                continue;
            };
            held.lease = None;
            let leased = matches!(held.phase, MessagePhase::Leased { .. });
            if leased {
                held.phase = MessagePhase::Ready;
                count += 1;
            }
            self.hold(held);
            if leased {
                self.free_key(number);
            }
        }
        count
    }
}
