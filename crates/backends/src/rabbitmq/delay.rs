//! Delayed messages: queues with a fixed message TTL, from which the broker dead-letters into the target queue.
//!
//! There is one queue for each doubling of 125 ms. A message goes into the longest TTL within its delay, and
//! into a shorter one when it is fetched before it is due, so that it is delivered within 125 ms of its due time.

use std::collections::BTreeSet;
use std::time::Duration;

use towpath_core::{Result, Timestamp};

use super::connection::OpenConnection;
use super::declare::after_millis;
use super::store::{QueueHandle, Store, lock};

/// The shortest delay, in milliseconds.
const SHORTEST: u64 = 125;

/// Doublings; the longest delay is 36 hours.
const LEVELS: u32 = 21;

/// Delays that count as due: clocks count milliseconds.
const CLOSE: Duration = Duration::from_millis(1);

/// The delays, in milliseconds.
fn levels() -> impl DoubleEndedIterator<Item = u64> {
    (0..LEVELS).map(|doublings| SHORTEST << doublings)
}

/// The longest delay that does not pass the due time; `None` when due.
fn level(left: Duration) -> Option<u64> {
    let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let long = levels().rev().find(|level| *level <= left);
    (left > CLOSE.as_millis() as u64).then(|| long.unwrap_or(SHORTEST))
}

fn name(handle: &QueueHandle, level: u64) -> String {
    format!("{}.delay.{level}", handle.wire)
}

impl Store {
    /// The queue for a message with this due time.
    pub(super) async fn place_until(
        &self,
        handle: &QueueHandle,
        due: Option<Timestamp>,
    ) -> Result<String> {
        let left = due.map_or(Duration::ZERO, |due| due.since(self.clock.now()));
        let Some(level) = level(left) else {
            return Ok(handle.wire.clone());
        };
        let name = name(handle, level);
        let is_there = lock(&handle.delays)
            .as_ref()
            .is_some_and(|there| there.contains(&level));
        if !is_there {
            let open = self.broker.open().await?;
            self.make(&open, handle, level, &name).await?;
            if let Some(there) = &mut *lock(&handle.delays) {
                there.insert(level);
            }
        }
        Ok(name)
    }

    async fn make(
        &self,
        open: &OpenConnection,
        handle: &QueueHandle,
        level: u64,
        name: &str,
    ) -> Result<()> {
        let definition = after_millis(self.side().dead_lettering_to(&handle.wire), level);
        self.declare_side(open, name, definition).await
    }

    /// Declares the delay queue of this name again.
    pub(super) async fn declare_delay(&self, handle: &QueueHandle, name: &str) -> Result<()> {
        let is_it = |level: &u64| self::name(handle, *level) == name;
        let Some(level) = levels().find(is_it) else {
            return Ok(());
        };
        let open = self.broker.open().await?;
        self.make(&open, handle, level, name).await
    }

    /// Names of the existing delay queues. The first call asks the broker.
    pub(super) async fn delays(&self, handle: &QueueHandle) -> Result<Vec<String>> {
        let found = lock(&handle.delays).clone();
        let there = match found {
            Some(there) => there,
            None => {
                let names: Vec<String> = levels().map(|level| name(handle, level)).collect();
                let counts = self.count(&names).await?;
                let there: BTreeSet<u64> = levels()
                    .zip(counts)
                    .filter_map(|(level, count)| count.map(|_| level))
                    .collect();
                lock(&handle.delays)
                    .get_or_insert_with(BTreeSet::new)
                    .extend(&there);
                lock(&handle.delays).clone().unwrap_or_default()
            }
        };
        Ok(there.into_iter().map(|level| name(handle, level)).collect())
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
