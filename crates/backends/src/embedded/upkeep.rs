//! Maintenance: checkpoints, and the release of space.

use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use towpath_core::{Error, QueueName, Result};

use super::blob;
use super::checkpoint;
use super::log::reserve::is_full;
use super::log::{Class, Position};
use super::moving::Moving;
use super::record::Record;
use super::state::{BlobLocation, Snapshot, Stored};
use super::store::{Checkpointed, Source, Store};

/// A checkpoint follows this many segments of log, or as many as the last one filled: a long backlog is not written
/// again and again.
const CHECKPOINT_SEGMENTS: u64 = 4;

/// Interval of the store's maintenance.
const MAINTENANCE: Duration = Duration::from_millis(250);

/// Segments below this share of live bytes are written again, so that they can go.
const LIVE_SHARE: u64 = 4;

/// Fewer segments than this are not worth compacting.
const COMPACT_FROM: usize = 6;

/// Most bytes written again in one step, which holds the lock.
const MOVE_BYTES: u32 = 256 * 1024;

/// Interval of checks for space that can be freed although there were too few writes for a checkpoint.
const TIDY: Duration = Duration::from_secs(2);

/// Minimum ratio of the space that moving frees to the bytes that it writes.
const TIDY_SHARE: u64 = 2;

/// Most queues looked at while others wait.
const TICK_QUEUES: usize = 256;

impl Store {
    /// Saves the state, and removes segments that hold nothing any more.
    ///
    /// The lock is held for a snapshot only: the state is written and its messages are counted outside of it.
    pub(super) fn checkpoint(&self) -> Result<()> {
        self.save(Some(&|took| {
            // Half of the disk and of a core at most.
            let guard = self
                .wake_maintenance
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !self.is_closed() {
                drop(self.wake_maintenance.1.wait_timeout(guard, took));
            }
            if self.is_closed() {
                // The one that closing writes knows more.
                return Err(Error::unavailable("the store is closing"));
            }
            Ok(())
        }))
    }

    /// As [`Store::checkpoint`], throttled or as fast as the disk allows.
    pub(super) fn save(&self, throttle: Option<checkpoint::Throttle<'_>>) -> Result<()> {
        // Held to the end: one checkpoint at a time.
        let mut checkpointed = self
            .checkpointed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let began = Instant::now();
        let (position, mut state, mut moving, locked) = {
            let mut inner = self.lock();
            let locked = Instant::now();
            let position = self.log.records_end();
            if checkpointed.position == position {
                return Ok(());
            }
            // The next start reads from it how late it is.
            inner.state.raise_fence(self.clock.now());
            let state = inner.state.snapshot();
            let is_due = throttle.is_some() && self.keys_are_due(&inner, *checkpointed);
            let moving = is_due.then(|| Moving::begin(self, &mut inner));
            (position, state, moving, locked.elapsed())
        };
        let live = state.live();
        // A checkpoint must never know more than the log behind it.
        self.log.sync_all()?;
        // Another store may be in its place by now.
        self.check_presence()?;
        let folder = self.config.folder.join("checkpoint");
        if let Some(moving) = &mut moving {
            moving.write(&folder, &mut state, throttle)?;
        }
        let has_tables = !state.tables.is_empty();
        let written = checkpoint::write(&folder, position, state, throttle)?;
        self.presence
            .rests_on(checkpoint::path(&folder, position))?;
        if let Some(moving) = moving {
            moving.finish();
        }
        *checkpointed = Checkpointed {
            position,
            bytes: written.bytes,
        };
        tracing::debug!(
            bytes = written.bytes,
            ?locked,
            took = ?began.elapsed(),
            "checkpoint written"
        );
        if has_tables {
            checkpoint::remove_tables(&folder)?;
        }
        if self.keeps_segments.load(Ordering::SeqCst) > 0 {
            // A backup needs them; the next checkpoint after it removes them.
            return Ok(());
        }
        for (number, _) in self.log.segments() {
            if number < written.oldest.segment && !live.contains_key(&number) {
                self.log.remove(number)?;
            }
        }
        Ok(())
    }

    fn checkpoint_is_due(&self) -> bool {
        let last = *self
            .checkpointed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let end = self.log.records_end();
        let behind = u64::from(end.segment.saturating_sub(last.position.segment));
        let filled = last.bytes / u64::from(self.config.segment_bytes);
        behind >= filled.max(CHECKPOINT_SEGMENTS)
            || (behind > 0 && self.log.is_disk_low())
            || self.keys_are_due(&self.lock(), last)
    }

    /// Removes segments that hold nothing any more, also when too little has happened for a checkpoint.
    ///
    /// Two checkpoints, so that neither of the two that are kept needs the log before its end.
    fn make_room(&self) -> Result<()> {
        let end = self.log.records_end();
        let live = self.state().live();
        let mut older = self.log.segments().into_iter();
        if !older.any(|(number, _)| number < end.segment && !live.contains_key(&number)) {
            return Ok(());
        }
        self.checkpoint_twice()
    }

    fn checkpoint_twice(&self) -> Result<()> {
        self.checkpoint()?;
        // A record of nothing, or the second one would take the place of the first.
        self.write(&mut self.lock(), Class::Settle, &Record::All(Vec::new()))?;
        self.checkpoint()
    }

    fn state(&self) -> Snapshot {
        self.lock().state.snapshot()
    }

    /// Gives the space of a drained backlog back without waiting for as much traffic as a checkpoint wants: that of
    /// segments without messages, and that of checkpoints that are larger than the next ones. False when there was
    /// nothing to do.
    fn tidy(&self) -> Result<bool> {
        let end = self.log.records_end();
        let state = self.state();
        let live = state.live();
        let segments = self.log.segments().into_iter();
        let empty =
            segments.filter(|(number, _)| *number < end.segment && !live.contains_key(number));
        let last = *self
            .checkpointed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Removing segments takes two checkpoints, which take the places of two.
        let (freed, written) = (
            empty.map(|(_, size)| u64::from(size)).sum::<u64>() + 2 * last.bytes,
            2 * state.bytes(),
        );
        drop(state);
        let worth = TIDY_SHARE * written.max(self.config.segment_bytes.into());
        if freed.saturating_sub(written) >= worth {
            self.checkpoint_twice()?;
            return Ok(true);
        }
        self.compact()?;
        Ok(self.log.records_end() != end)
    }

    /// Writes the few live messages of old segments again, so that the next checkpoints can remove them.
    ///
    /// All of them each time: with one stuck message in every segment, fewer would let the log grow for ever.
    pub(super) fn compact(&self) -> Result<()> {
        let segments = self.log.segments();
        if segments.len() < COMPACT_FROM || self.log.is_disk_low() {
            return Ok(());
        }
        let state = self.state();
        let live = state.live();
        let old = &segments[..segments.len() - 3];
        let sparse = old.iter().filter(|(number, size)| {
            live.get(number)
                .is_some_and(|live| live.bytes * LIVE_SHARE < u64::from(*size))
        });
        for (number, _) in sparse {
            for (source, places) in state.some_of(*number) {
                if !self.move_all(&source, &places)? {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Writes messages of one segment again, some at a time. False when one of them cannot be read.
    fn move_all(&self, source: &Source, places: &[(u64, Stored)]) -> Result<bool> {
        let mut left = places;
        while !left.is_empty() {
            let mut sum = 0;
            let more = left.iter().take_while(|(_, stored)| {
                let first = sum == 0;
                sum += stored.place.bytes;
                first || sum <= MOVE_BYTES
            });
            let (some, rest) = left.split_at(more.count());
            left = rest;
            // Read outside of the lock, so that no caller waits for the disk.
            let mut read = Vec::with_capacity(some.len());
            for (number, stored) in some {
                let place = stored.place;
                let blob = self.log.read(place.position, place.bytes)?;
                if blob::decode(&blob, stored).is_err() {
                    // Its consumer gets the error; until then the segment stays as evidence.
                    return Ok(false);
                }
                read.push((*number, place, blob));
            }
            self.move_some(source, &read)?;
        }
        Ok(true)
    }

    fn move_some(&self, source: &Source, read: &[(u64, BlobLocation, Bytes)]) -> Result<()> {
        let mut inner = self.lock();
        let mut moved = Vec::with_capacity(read.len());
        inner.blobs.clear();
        for (number, place, blob) in read {
            // Some may be gone, or somewhere else, since the snapshot.
            if inner.state.is_at(source, *number, *place) {
                inner.blobs.extend_from_slice(blob);
                moved.push((*number, place.bytes));
            }
        }
        if moved.is_empty() {
            return Ok(());
        }
        let record = match source.clone() {
            Source::Queue(queue) => Record::Move { queue, moved },
            Source::Stream(stream) => Record::MoveEntries { stream, moved },
        };
        let end = self.write(&mut inner, Class::Settle, &record)?;
        // Moved messages are not shown before they are durable at their new place.
        self.wake_when_committed(source.clone(), end);
        Ok(())
    }

    /// Moves due messages, and wakes the callers that wait for them; some queues at a time, so that no request waits for
    /// all.
    fn tick(&self) {
        while self.tick_some() {
            // The lock may go to another thread in between.
            std::thread::yield_now();
        }
    }

    /// A bounded part of that. Whether there is more.
    fn tick_some(&self) -> bool {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        let mut has_more = {
            let mut inner = self.lock();
            inner.shrink();
            let mut has_more = inner.state.kv.tick(now);
            has_more |= inner.state.limits.tick(now.as_millis());
            for stream in inner.state.streams.values_mut() {
                has_more |= stream.tick(now);
            }
            has_more
        };
        let mut last = None;
        loop {
            let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut inner = self.lock();
            let queues = &mut inner.state.queues;
            let mut newest = None;
            let queues = queues.range_mut::<QueueName, _>((from, Bound::Unbounded));
            for (name, queue) in queues.take(TICK_QUEUES) {
                let had = queue.has_ready();
                has_more |= queue.tick(now, monotonic);
                if !had && queue.has_ready() {
                    self.news(name).notify_waiters();
                }
                newest = Some(name);
            }
            let Some(newest) = newest.cloned() else {
                return has_more;
            };
            last = Some(newest);
        }
    }
}

/// The upkeep thread: ends when the store is closed or gone.
pub(super) fn maintain(store: &Weak<Store>) {
    let (mut seen, mut tidied) = (Position::default(), Position::default());
    let mut looked = Instant::now();
    let mut trouble = Trouble::default();
    while let Some(store) = store.upgrade() {
        if store.is_closed() {
            return;
        }
        if store.check_presence().is_err() {
            // The store has stopped, and said so.
            return;
        }
        store.tick();
        let quiet = std::mem::replace(&mut seen, store.log.records_end()) == seen;
        let worked = if trouble.lasts() {
            Ok(())
        } else if store.checkpoint_is_due() {
            store.checkpoint().and_then(|()| store.compact())
        } else if quiet && store.log.is_disk_low() && tidied != seen {
            // Once each time that things have calmed down: it looks at every message.
            store
                .make_room()
                .inspect(|()| tidied = store.log.records_end())
        } else if tidied != seen && looked.elapsed() >= TIDY {
            looked = Instant::now();
            store
                .tidy()
                .inspect(|has_changed| {
                    if !has_changed {
                        tidied = seen;
                    }
                })
                .map(drop)
        } else {
            Ok(())
        };
        match worked {
            // A checkpoint frees space once it is written: the next try gets the reserve.
            Err(error) if is_full(&error) && store.log.release_reserve() => {}
            // A checkpoint under way is abandoned when the store closes.
            Err(_) if store.is_closed() => {}
            Err(error) => trouble.failed(&error),
            Ok(()) => trouble.ended(),
        }
        let guard = store
            .wake_maintenance
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        drop(store.wake_maintenance.1.wait_timeout(guard, MAINTENANCE));
    }
}

/// The first and the longest pause before upkeep that failed is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Upkeep that failed, one time after the other.
#[derive(Default)]
struct Trouble {
    failures: u32,
    again: Option<Instant>,
}

impl Trouble {
    /// Whether it is too soon to try again.
    fn lasts(&self) -> bool {
        self.again.is_some_and(|again| Instant::now() < again)
    }

    fn failed(&mut self, error: &Error) {
        let pause = (FIRST_PAUSE * (1 << self.failures.min(16))).min(LONGEST_PAUSE);
        self.failures = self.failures.saturating_add(1);
        self.again = Some(Instant::now() + pause);
        let (error, failures) = (error.chain(), self.failures);
        tracing::warn!(
            error,
            failures,
            ?pause,
            "store maintenance failed; retrying"
        );
    }

    fn ended(&mut self) {
        if !self.lasts() && self.failures > 0 {
            let failures = std::mem::take(self).failures;
            tracing::info!(failures, "store maintenance succeeded again");
        }
    }
}
