//! Messages held back: queues from which the broker moves them on after a fixed time.
//!
//! There is one for each doubling of an eighth of a second. A message goes into the longest that is not too long, and
//! when it is fetched before its moment into the next one, so that it comes within an eighth of a second of it.

use std::collections::BTreeSet;
use std::time::Duration;

use towpath_core::{Result, Timestamp};

use super::connection::Open;
use super::declare::after_millis;
use super::store::{Known, Store, lock};

/// The shortest delay, in milliseconds.
const SHORTEST: u64 = 125;

/// Doublings; the longest delay is 36 hours.
const LEVELS: u32 = 21;

/// Moments that are as good as now: clocks count milliseconds.
const CLOSE: Duration = Duration::from_millis(1);

/// The delays there are, in milliseconds.
fn levels() -> impl DoubleEndedIterator<Item = u64> {
    (0..LEVELS).map(|doublings| SHORTEST << doublings)
}

/// The delay that brings a message closest to its moment without missing it; `None` when it is there.
fn level(left: Duration) -> Option<u64> {
    let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let long = levels().rev().find(|level| *level <= left);
    (left > CLOSE.as_millis() as u64).then(|| long.unwrap_or(SHORTEST))
}

fn name(known: &Known, level: u64) -> String {
    format!("{}.delay.{level}", known.wire)
}

impl Store {
    /// The queue that a message goes into which is due at this moment.
    pub(super) async fn place_until(
        &self,
        known: &Known,
        due: Option<Timestamp>,
    ) -> Result<String> {
        let left = due.map_or(Duration::ZERO, |due| due.since(self.clock.now()));
        let Some(level) = level(left) else {
            return Ok(known.wire.clone());
        };
        let name = name(known, level);
        let is_there = lock(&known.delays)
            .as_ref()
            .is_some_and(|there| there.contains(&level));
        if !is_there {
            let open = self.link.open().await?;
            self.make(&open, known, level, &name).await?;
            if let Some(there) = &mut *lock(&known.delays) {
                there.insert(level);
            }
        }
        Ok(name)
    }

    async fn make(&self, open: &Open, known: &Known, level: u64, name: &str) -> Result<()> {
        let shape = after_millis(self.side().dead_lettering_to(&known.wire), level);
        self.declare_side(open, name, shape).await
    }

    /// Makes the queue of this name again when it is one of the delays.
    pub(super) async fn declare_delay(&self, known: &Known, name: &str) -> Result<()> {
        let is_it = |level: &u64| self::name(known, *level) == name;
        let Some(level) = levels().find(is_it) else {
            return Ok(());
        };
        let open = self.link.open().await?;
        self.make(&open, known, level, name).await
    }

    /// The queues of delays that are there, by name. The first time it is asked of the broker.
    pub(super) async fn delays(&self, known: &Known) -> Result<Vec<String>> {
        let found = lock(&known.delays).clone();
        let there = match found {
            Some(there) => there,
            None => {
                let names: Vec<String> = levels().map(|level| name(known, level)).collect();
                let counts = self.count(&names).await?;
                let there: BTreeSet<u64> = levels()
                    .zip(counts)
                    .filter_map(|(level, count)| count.map(|_| level))
                    .collect();
                lock(&known.delays)
                    .get_or_insert_with(BTreeSet::new)
                    .extend(&there);
                lock(&known.delays).clone().unwrap_or_default()
            }
        };
        Ok(there.into_iter().map(|level| name(known, level)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_reached_in_steps_that_never_pass_it() {
        let level = |millis| level(Duration::from_millis(millis));
        assert_eq!(level(1), None);
        assert_eq!(level(2), Some(125), "the last step may be a little long");
        assert_eq!(level(249), Some(125));
        assert_eq!(level(250), Some(250));
        assert_eq!(level(400), Some(250));
        assert_eq!(level(u64::MAX), Some(131_072_000));
    }
}
