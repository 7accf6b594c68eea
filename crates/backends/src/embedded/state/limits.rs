//! Rate limits: what is kept per key, until it would be full again.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use towpath_core::limiter;

/// Every limit that is not full.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(in super::super) struct Limits {
    known: HashMap<String, (limiter::State, u64)>,
    #[serde(skip)]
    full_at: BTreeSet<(u64, String)>,
}

impl Limits {
    pub(super) fn rebuild(&mut self) {
        self.full_at = self
            .known
            .iter()
            .map(|(key, (_, at))| (*at, key.clone()))
            .collect();
    }

    pub(in super::super) fn get(&self, key: &str) -> Option<&limiter::State> {
        self.known.get(key).map(|(state, _)| state)
    }

    pub(super) fn set(&mut self, key: &str, state: &limiter::State, full_at: u64) {
        self.reset(key);
        self.known.insert(key.to_owned(), (state.clone(), full_at));
        self.full_at.insert((full_at, key.to_owned()));
    }

    pub(super) fn reset(&mut self, key: &str) {
        if let Some((_, at)) = self.known.remove(key) {
            self.full_at.remove(&(at, key.to_owned()));
        }
    }

    /// Forgets limits that are full again: a new one starts full.
    pub(in super::super) fn tick(&mut self, now_ms: u64) {
        while self.full_at.first().is_some_and(|(at, _)| *at <= now_ms) {
            if let Some((_, key)) = self.full_at.pop_first() {
                self.known.remove(&key);
            }
        }
    }
}
