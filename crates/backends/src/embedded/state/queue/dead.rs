//! Dead letters, by number and by id.

use std::collections::BTreeSet;
use std::ops::Bound;

use imbl::OrdMap;
use serde::Deserialize;
use towpath_core::MessageId;
use towpath_core::port::queue::Selection;

use super::Dead;

/// The dead letters of a queue, oldest first.
#[derive(Debug, Default, Deserialize)]
pub(in super::super::super) struct DeadLetters {
    #[serde(deserialize_with = "crate::embedded::state::snapshot::map")]
    letters: OrdMap<u64, Dead>,
    /// Several may have one id: a relay sends an event again under the same.
    #[serde(skip)]
    numbers: BTreeSet<(MessageId, u64)>,
}

impl DeadLetters {
    pub(in super::super) fn snapshot(&self) -> OrdMap<u64, Dead> {
        self.letters.clone()
    }

    /// Makes the index that a checkpoint leaves out.
    pub(super) fn rebuild(&mut self) {
        let letters = self.letters.iter();
        self.numbers = letters
            .map(|(number, dead)| (dead.entry.id, *number))
            .collect();
    }

    pub(in super::super::super) fn len(&self) -> usize {
        self.letters.len()
    }

    pub(super) fn get(&self, number: u64) -> Option<&Dead> {
        self.letters.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Dead> {
        self.letters.get_mut(&number)
    }

    pub(in super::super) fn insert(&mut self, dead: Dead) {
        self.numbers.insert((dead.entry.id, dead.entry.number));
        self.letters.insert(dead.entry.number, dead);
    }

    pub(super) fn remove(&mut self, number: u64) -> Option<Dead> {
        let dead = self.letters.remove(&number)?;
        self.numbers.remove(&(dead.entry.id, number));
        Some(dead)
    }

    /// The numbers of the letters with this id.
    fn of(&self, id: MessageId) -> impl Iterator<Item = u64> {
        let numbers = self.numbers.range((id, 0)..=(id, u64::MAX));
        numbers.map(|(_, number)| *number)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Dead> {
        self.letters.values()
    }

    /// Up to `max` letters, those behind the one with the id when it is there.
    pub(in super::super::super) fn page(&self, after: Option<MessageId>, max: usize) -> Vec<Dead> {
        let after = after.and_then(|after| self.of(after).next());
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let letters = self.letters.range((from, Bound::Unbounded));
        letters.take(max).map(|(_, dead)| dead.clone()).collect()
    }

    /// The next numbers of a selection behind `after`, at most `max`; those of ids come in their order.
    pub(in super::super::super) fn select(
        &self,
        selection: &Selection,
        after: u64,
        last: u64,
        max: usize,
    ) -> Vec<u64> {
        if after >= last {
            return Vec::new();
        }
        match selection {
            Selection::All => {
                let range = (Bound::Excluded(after), Bound::Included(last));
                let letters = self.letters.range(range);
                letters.take(max).map(|(number, _)| *number).collect()
            }
            Selection::Ids(ids) => {
                let numbers = ids.iter().flat_map(|id| self.of(*id));
                let mut numbers: Vec<u64> = numbers
                    .filter(|number| (after + 1..=last).contains(number))
                    .collect();
                numbers.sort_unstable();
                numbers.dedup();
                numbers.truncate(max);
                numbers
            }
        }
    }

    /// The number of the newest letter.
    pub(in super::super::super) fn last(&self) -> u64 {
        self.letters.get_max().map_or(0, |(number, _)| *number)
    }
}
