//! State shared by the log's callers and its threads: the buffers under one lock, and their progress.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;
use std::time::Duration;

use tokio::sync::Notify;
use towpath_core::Error;
use towpath_core::stall::Watch;

use super::files::Files;
use super::frame;
use super::reserve::Reserve;
use super::segment::{Segment, Whole};
use super::wakeups::Wakeups;
use super::{Options, Position};
use crate::identity::Pinned;

/// Bytes on their way to one place.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) start: Position,
    pub(super) bytes: Vec<u8>,
}

/// Frames that wait for the committer thread.
pub(super) struct Buffers {
    /// Where the next frame will start.
    pub(super) end: Position,
    /// Where the last record ended; behind it there may be a seal.
    pub(super) records_end: Position,
    pub(super) sequence: u32,
    /// Size of the segment that `end` is in.
    pub(super) segment_size: u32,
    /// The next segment, prepared.
    pub(super) spare: Option<Segment>,
    pub(super) preparing: bool,
    /// A record waits for a segment that is large enough for this frame.
    pub(super) wanted: Option<u32>,
    /// Why the last segment could not be prepared.
    pub(super) unprepared: Option<Arc<std::io::Error>>,
    pub(super) pending: Vec<Chunk>,
    pub(super) pending_bytes: usize,
    pub(super) writing: Arc<Vec<Chunk>>,
    pub(super) waiters: Vec<Waiter>,
    /// As many waiters call the committer.
    pub(super) expected: usize,
    /// Waiters so far.
    pub(super) tickets: u64,
    /// Where the last record ended that is more than a note.
    pub(super) awaited_end: Position,
    /// A caller waits for the pending frames; a note alone is written and not synced.
    pub(super) awaited: bool,
    pub(super) sync_requested: bool,
    pub(super) closing: bool,
    /// The committer waits for work.
    pub(super) idle: bool,
    /// The committer has ended.
    pub(super) ended: bool,
}

/// A caller that waits until everything before `end` is committed.
pub(super) struct Waiter {
    pub(super) end: Position,
    pub(super) ticket: u64,
    pub(super) waker: Waker,
}

impl Buffers {
    /// Whether a frame of `size` bytes fits into the present segment.
    pub(super) const fn has_room(&self, size: u32) -> bool {
        size <= self.segment_size.saturating_sub(self.end.offset)
    }

    /// Whether the next segment is to be prepared: at once, so that the loss of the present one leaves a gap.
    ///
    /// While the disk is low it waits until the present one is half full.
    pub(super) const fn wants_spare(&self, disk_low: bool) -> bool {
        self.spare.is_none()
            && !self.preparing
            && (self.wanted.is_some() || !disk_low || self.is_half_full())
    }

    /// The committer must not wait for more.
    pub(super) const fn is_urgent(&self) -> bool {
        self.sync_requested || self.closing
    }

    pub(super) const fn is_half_full(&self) -> bool {
        self.end.offset > self.segment_size / 2
    }
}

/// State shared by the callers and the threads.
pub(super) struct Shared {
    pub(super) options: Options,
    /// Which log this is.
    pub(super) log: u64,
    /// The folder of the segments.
    pub(super) folder: Pinned,
    pub(super) buffers: Mutex<Buffers>,
    /// There is something to write, to sync or to end.
    pub(super) work: Arc<Condvar>,
    pub(super) wakeups: Arc<Wakeups>,
    /// The present segment is half full, or the log ends.
    pub(super) room: Condvar,
    /// A group was written or synced, a spare was prepared, or the log failed.
    pub(super) progress: Condvar,
    pub(super) files: Files,
    pub(super) written: AtomicU64,
    pub(super) synced: AtomicU64,
    pub(super) committed: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) reserve: Reserve,
    pub(super) disk_low: AtomicBool,
    pub(super) free_bytes: AtomicU64,
    /// The calls of the committer and of the thread that prepares segments to the disk.
    pub(super) commits: Watch,
    pub(super) prepares: Watch,
    pub(super) failure: OnceLock<String>,
    pub(super) failed: Notify,
    pub(super) on_commit: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Shared {
    /// The header of a new segment.
    pub(super) const fn whole(&self, size: u32) -> Whole {
        Whole {
            size,
            log: self.log,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the committer is called, or for so long.
    pub(super) fn wait_for_work<'a>(
        &self,
        buffers: MutexGuard<'a, Buffers>,
        limit: Option<Duration>,
    ) -> MutexGuard<'a, Buffers> {
        match limit {
            Some(limit) => self
                .work
                .wait_timeout(buffers, limit)
                .map_or_else(|error| error.into_inner().0, |(guard, _)| guard),
            None => self
                .work
                .wait(buffers)
                .unwrap_or_else(PoisonError::into_inner),
        }
    }

    /// Stops the log for good: nothing later is ever acknowledged.
    pub(super) fn fail(&self, reason: String) {
        tracing::error!(reason, "log failed; store stopping");
        self.failure.get_or_init(|| reason);
        self.end_waiters();
        self.progress.notify_all();
        self.failed.notify_waiters();
    }

    /// Wakes callers that nothing commits any more; they see why.
    pub(super) fn end_waiters(&self) {
        let waiters = std::mem::take(&mut self.lock().waiters);
        self.wakeups
            .wake(waiters.into_iter().map(|waiter| waiter.waker).collect());
    }

    /// Time without an answer of the disk, once that is longer than the timeout.
    pub(super) fn stalled(&self) -> Option<Duration> {
        let lasts = self.commits.lasts().max(self.prepares.lasts());
        lasts.filter(|lasts| *lasts >= self.options.timeout)
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.failure
            .get()
            .map(|reason| Error::unavailable(format!("the store has stopped: {reason}")))
    }
}

/// Adds a frame behind those that wait.
pub(super) fn push_frame(buffers: &mut Buffers, synced: Position, body: &[u8]) {
    let (start, sequence) = (buffers.end, buffers.sequence);
    let size = frame::size_of(body.len());
    match buffers.pending.last_mut() {
        Some(chunk) if chunk.start.segment == start.segment => {
            frame::write(&mut chunk.bytes, start, synced, sequence, body)
        }
        _ => {
            let mut bytes = Vec::with_capacity(size.max(4096));
            frame::write(&mut bytes, start, synced, sequence, body);
            buffers.pending.push(Chunk { start, bytes });
        }
    }
    buffers.pending_bytes += size;
    buffers.sequence = sequence.wrapping_add(1);
    buffers.end = start.plus(u32::try_from(size).unwrap_or(u32::MAX));
}
