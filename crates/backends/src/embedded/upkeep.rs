//! Upkeep: checkpoints, and space given back.

use std::ops::Bound;
use std::sync::{PoisonError, Weak};
use std::time::{Duration, Instant};

use towpath_core::{QueueName, Result};

use super::log::{Class, Position};
use super::record::{self, Record};
use super::store::{Source, Store};

/// A checkpoint follows this many segments of log, or as many as the last one filled: a long backlog is not written
/// again and again.
const CHECKPOINT_SEGMENTS: u64 = 4;

/// How often the store looks after itself.
const MAINTENANCE: Duration = Duration::from_millis(250);

/// Segments below this share of live bytes are written again, so that they can go.
const LIVE_SHARE: u64 = 4;

/// Fewer segments than this are not worth compacting.
const COMPACT_FROM: usize = 6;

/// Most bytes written again in one step.
const MOVE_BYTES: u32 = 1 << 20;

/// How often the store looks for segments that can go although too little has happened for a checkpoint.
const TIDY: Duration = Duration::from_secs(2);

/// Most messages that such a look passes; more wait for the next checkpoint.
const TIDY_MESSAGES: u64 = 100_000;

/// How many times the bytes of a checkpoint the removed segments must free: removing them takes two checkpoints.
const TIDY_BYTES: u64 = 4;

/// Most queues looked at while others wait.
const TICK_QUEUES: usize = 256;

impl Store {
    fn checkpoint_is_due(&self) -> bool {
        let last = *self
            .checkpointed
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let end = self.log.records_end();
        let behind = u64::from(end.segment.saturating_sub(last.position.segment));
        let filled = last.bytes / u64::from(self.config.segment_bytes);
        behind >= filled.max(CHECKPOINT_SEGMENTS) || (behind > 0 && self.log.is_disk_low())
    }

    /// Removes segments that hold nothing any more, also when too little has happened for a checkpoint.
    ///
    /// Two checkpoints, so that neither of the two that are kept needs what the log holds before its end.
    fn make_room(&self) -> Result<()> {
        let end = self.log.records_end();
        let live = self.lock().state.live_bytes();
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

    /// Gives the space of a drained burst back without waiting for as much traffic as a checkpoint wants. False when there
    /// was nothing to do.
    fn tidy(&self) -> Result<bool> {
        let end = self.log.records_end();
        let mut older = self.log.segments();
        older.retain(|(number, _)| *number < end.segment);
        if older.len() < 2 {
            return Ok(false);
        }
        let live = {
            let state = &self.lock().state;
            if state.messages() > TIDY_MESSAGES {
                return Ok(false);
            }
            state.live_bytes()
        };
        let empty = older
            .iter()
            .filter(|(number, _)| !live.contains_key(number))
            .map(|(_, size)| u64::from(*size));
        let (count, bytes) = empty.fold((0, 0), |(count, sum), size| (count + 1, sum + size));
        let checkpoint = self
            .checkpointed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes;
        if count >= 2 && bytes >= checkpoint * TIDY_BYTES {
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
        let live = self.lock().state.live_bytes();
        let sparse = segments
            .iter()
            .rev()
            .skip(3)
            .rev()
            .filter(|(number, size)| {
                live.get(number)
                    .is_some_and(|bytes| bytes * LIVE_SHARE < u64::from(*size))
            });
        for (number, _) in sparse {
            while self.move_some(*number)? {}
        }
        Ok(())
    }

    /// Moves up to [`MOVE_BYTES`] out of a segment. False when nothing that can be read is left in it.
    fn move_some(&self, segment: u32) -> Result<bool> {
        let mut inner = self.lock();
        let Some((source, places)) = inner.state.some_of(segment, MOVE_BYTES) else {
            return Ok(false);
        };
        let mut moved = Vec::with_capacity(places.len());
        inner.blobs.clear();
        for (number, place) in places {
            let blob = self.log.read(place.position, place.bytes)?;
            if record::decode_blob(&blob).is_err() {
                // Its consumer will be told; until then the segment stays as evidence.
                inner.blobs.clear();
                return Ok(false);
            }
            inner.blobs.extend_from_slice(&blob);
            moved.push((number, place.bytes));
        }
        let record = match source.clone() {
            Source::Queue(queue) => Record::Move { queue, moved },
            Source::Stream(stream) => Record::MoveEntries { stream, moved },
        };
        let end = self.write(&mut inner, Class::Settle, &record)?;
        // What moved is not shown until it is durable at its new place.
        self.wake_when_committed(source, end);
        Ok(true)
    }

    /// Moves what has fallen due, and wakes those who wait for it; some queues at a time, so that no request waits for all.
    fn tick(&self) {
        let (now, monotonic) = (self.clock.now(), self.monotonic());
        {
            let mut inner = self.lock();
            inner.state.kv.tick(now);
            inner.state.limits.tick(now.as_millis());
            for stream in inner.state.streams.values_mut() {
                stream.tick(now);
            }
        }
        let mut last = None;
        loop {
            let from = last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let mut inner = self.lock();
            let queues = &mut inner.state.queues;
            let mut newest = None;
            let queues = queues.range_mut::<QueueName, _>((from, Bound::Unbounded));
            for (name, queue) in queues.take(TICK_QUEUES) {
                let had = queue.has_ready();
                queue.tick(now, monotonic);
                if !had && queue.has_ready() {
                    self.news(name).notify_waiters();
                }
                newest = Some(name);
            }
            let Some(newest) = newest.cloned() else {
                return;
            };
            last = Some(newest);
        }
    }
}

/// The upkeep thread: ends when the store is closed or gone.
pub(super) fn maintain(store: &Weak<Store>) {
    let (mut seen, mut tidied) = (Position::default(), Position::default());
    let mut looked = Instant::now();
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
        let worked = if store.checkpoint_is_due() {
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
        if let Err(error) = worked {
            tracing::warn!(
                error = error.chain(),
                "upkeep of the store failed, it will be tried again"
            );
        }
        let guard = store
            .wake_maintenance
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        drop(store.wake_maintenance.1.wait_timeout(guard, MAINTENANCE));
    }
}
