//! Dedup ids and what they stand for, until their window closes.

use std::collections::{HashMap, VecDeque};

use serde::{Deserialize, Serialize};
use towpath_core::Timestamp;

/// What each id was first used for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Dedup<T> {
    known: HashMap<String, (T, Timestamp)>,
    order: VecDeque<(Timestamp, String)>,
}

impl<T> Default for Dedup<T> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
        }
    }
}

impl<T: Copy> Dedup<T> {
    /// What the id was first used for, if its window is still open.
    pub(super) fn first(&self, id: &str, now: Timestamp) -> Option<T> {
        self.known
            .get(id)
            .filter(|(_, until)| *until > now)
            .map(|(first, _)| *first)
    }

    pub(super) fn remember(&mut self, id: &str, first: T, until: Timestamp) {
        self.known.insert(id.to_owned(), (first, until));
        self.order.push_back((until, id.to_owned()));
    }

    /// Forgets the ids whose window has closed.
    pub(super) fn tick(&mut self, now: Timestamp) {
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            if let Some((until, id)) = self.order.pop_front()
                && self
                    .known
                    .get(&id)
                    .is_some_and(|(_, known)| *known <= until)
            {
                self.known.remove(&id);
            }
        }
    }
}
