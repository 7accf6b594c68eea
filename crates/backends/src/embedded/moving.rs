//! Keys that leave memory for tables, when there are too many of them.
//!
//! ```text
//! lock: snapshot -> unlock -> write a table -> write the checkpoint that names it -> lock: rest on the table
//!   -> remove each key that is unchanged from memory, some at a time
//! ```

use std::path::Path;
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;

use imbl::OrdMap;
use towpath_core::{Result, Timestamp};

use super::checkpoint::Throttle;
use super::log::make_folder;
use super::state::{Slot, Snapshot};
use super::store::{Checkpointed, Inner, Store};
use super::tables::Tables;
use crate::private;

/// Keys removed from memory in one step, which holds the lock.
const AT_ONCE: usize = 500;

/// A checkpoint of this size lets as many keys more stay in memory as without one.
const PART: u64 = 16 << 20;

/// Keys on their way to a table. Meanwhile a key that goes leaves a mark in memory.
pub(super) struct Moving<'a> {
    store: &'a Store,
    keys: OrdMap<String, Slot>,
    bytes: u64,
    now: Timestamp,
    before: Tables,
    /// The tables with the new one, once it is written.
    after: Option<Tables>,
    is_done: bool,
}

impl<'a> Moving<'a> {
    pub(super) fn begin(store: &'a Store, inner: &mut MutexGuard<'_, Inner>) -> Self {
        let kv = &mut inner.state.kv;
        kv.start_moving();
        Self {
            store,
            keys: kv.snapshot(),
            bytes: kv.bytes() as u64,
            now: store.clock.now(),
            before: kv.tables().clone(),
            after: None,
            is_done: false,
        }
    }

    /// Writes the table, on which the snapshot rests then.
    pub(super) fn write(
        &mut self,
        folder: &Path,
        state: &mut Snapshot,
        throttle: Option<Throttle<'_>>,
    ) -> Result<()> {
        let staying = self.keys.iter().filter(|(_, slot)| slot.stays());
        let staying: OrdMap<_, _> = staying
            .map(|(key, slot)| (key.clone(), slot.clone()))
            .collect();
        for key in staying.keys() {
            self.keys.remove(key);
        }
        let made = make_folder(folder).and_then(|()| private::close_folder(folder));
        made.map_err(|error| {
            towpath_core::Error::unavailable("the folder of tables cannot be made")
                .with_source(error)
        })?;
        let (before, keys) = (&self.before, &self.keys);
        let after = before.take_in(folder, keys, self.bytes, self.now, throttle)?;
        state.rest_on(self.after.insert(after), staying);
        Ok(())
    }

    /// Rests on the table, which the checkpoint names by now.
    pub(super) fn finish(mut self) {
        let Some(after) = &self.after else {
            return;
        };
        self.store.lock().state.kv.install(after.clone());
        self.is_done = true;
        let mut keys = self.keys.iter().peekable();
        while keys.peek().is_some() {
            let mut inner = self.store.lock();
            for (key, slot) in keys.by_ref().take(AT_ONCE) {
                inner.state.kv.let_go(key, slot);
            }
            drop(inner);
            // The lock may go to another thread in between.
            std::thread::yield_now();
        }
    }
}

impl Drop for Moving<'_> {
    fn drop(&mut self) {
        self.store.lock().state.kv.stop_moving();
        if let Some(after) = self.after.as_ref().filter(|_| !self.is_done) {
            after.remove_new(&self.before);
        }
    }
}

impl Store {
    /// Whether the keys in memory take more than they may: a bound, and as much again for each [`PART`] of the checkpoint
    /// that moving them writes.
    pub(super) fn keys_are_due(&self, inner: &Inner, last: Checkpointed) -> bool {
        let bound = self.keys_in_memory.load(Ordering::Relaxed) as u64;
        inner.state.kv.bytes() as u64 > bound.saturating_mul(1 + last.bytes / PART)
    }
}
