//! Order per key: one message of a key is on its way, the others are parked behind it.

use std::collections::BTreeSet;

use super::{MessagePhase, QueueState};

/// Messages of one key: one is on its way, the others wait.
#[derive(Debug, Default)]
pub(super) struct KeyLine {
    pub(super) holder: u64,
    pub(super) parked: BTreeSet<u64>,
}

impl QueueState {
    /// Whether the message may go, as the one of its key that is on its way.
    pub(super) fn take_key(&mut self, key: Option<std::num::NonZeroU64>, number: u64) -> bool {
        let Some(key) = key else { return true };
        let line = self.keys.entry(key.get()).or_default();
        if line.holder == 0 {
            line.holder = number;
        }
        line.holder == number
    }

    pub(super) fn reserve_key(&mut self, key: Option<std::num::NonZeroU64>, number: u64) {
        if let Some(key) = key {
            self.keys.entry(key.get()).or_default().holder = number;
        }
    }

    pub(super) fn free_key(&mut self, number: u64) {
        let key = self.held.get(&number).and_then(|held| held.entry.key);
        self.free_key_of(key, number);
    }

    /// Lets the next message of the key be ready.
    pub(super) fn free_key_of(&mut self, key: Option<std::num::NonZeroU64>, number: u64) {
        let Some(key) = key else { return };
        let Some(line) = self
            .keys
            .get_mut(&key.get())
            .filter(|line| line.holder == number)
        else {
            return;
        };
        line.holder = 0;
        match line.parked.first().copied() {
            Some(next) => self.stand(next, MessagePhase::Ready),
            None => _ = self.keys.remove(&key.get()),
        }
    }
}
