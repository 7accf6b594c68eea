//! Rate limits: the state of each key, until its limit would be full again.

use std::collections::BTreeSet;

use imbl::OrdMap;
use serde::Deserialize;
use towpath_core::limiter;

use super::AT_ONCE;

/// State of a limit, and when it is full again.
pub(super) type Limited = (limiter::State, u64);

/// Every limit that is not full.
#[derive(Debug, Default, Deserialize)]
pub(in super::super) struct Limits {
    #[serde(deserialize_with = "super::snapshot::map")]
    known: OrdMap<String, Limited>,
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

    pub(super) fn snapshot(&self) -> OrdMap<String, Limited> {
        self.known.clone()
    }

    /// Keeps a limit of a checkpoint.
    pub(super) fn keep(&mut self, key: String, limited: Limited) {
        self.full_at.insert((limited.1, key.clone()));
        self.known.insert(key, limited);
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

    /// Forgets some of the limits that are full again: a new one starts full. Whether there are more.
    pub(in super::super) fn tick(&mut self, now_ms: u64) -> bool {
        for _ in 0..AT_ONCE {
            if self.full_at.first().is_none_or(|(at, _)| *at > now_ms) {
                return false;
            }
            if let Some((_, key)) = self.full_at.pop_first() {
                self.known.remove(&key);
            }
        }
        true
    }
}
