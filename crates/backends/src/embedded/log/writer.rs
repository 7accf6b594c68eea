//! The log as its caller sees it: append, wait until committed, read.

use std::collections::BTreeMap;
use std::fs;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use towpath_core::stall::{Watch, unknown};
use towpath_core::{Error, Result, wait_limit};

use super::frame::{self, MAX_BODY_BYTES};
use super::recovery::{self, Recovery};
use super::reserve::Reserve;
use super::segment::{self, HEADER_BYTES};
use super::shared::{Buffers, Shared, Waiter, push_frame};
use super::wakeups::Wakeups;
use super::{Needed, Options, Position, committer};
use crate::identity::{Pinned, lost};

/// Most bytes that may wait to be written; more is refused.
const MAX_PENDING_BYTES: usize = 64 * 1024 * 1024;

/// The longest that a record waits for its segment to be prepared: its caller holds up the whole store meanwhile.
const PREPARED: Duration = Duration::from_secs(2);

/// When a refused producer may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The effect of a record on the size of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Brings something in: refused while the disk is low.
    Grow,
    /// Ends something, and so leads to space: taken as long as there is any.
    Settle,
    /// As [`Class::Settle`], but the caller does not wait for it: taken also while the disk does not answer.
    Count,
    /// As [`Class::Settle`], but no caller waits for it: it is written at once and synced with the next group.
    Note,
}

/// Where a record went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    /// Where its body starts.
    pub(crate) body: Position,
    /// Its ticket: committed once everything before this place is.
    pub(crate) end: Position,
}

/// The log. Dropping it closes it.
pub(crate) struct Log {
    pub(super) shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Log {
    /// Opens the log and replays every intact frame from `from` (without it: from the oldest segment), in order.
    /// Then `needed` returns the parts of each segment that the replayed state needs.
    ///
    /// # Errors
    /// `Corrupt` for a segment of a newer format and for segments that are missing or cut short, those of `replay`,
    /// and `Unavailable` for I/O.
    pub(crate) fn open(
        options: Options,
        from: Option<Position>,
        replay: &mut dyn FnMut(Position, &[u8]) -> Result<()>,
        needed: &dyn Fn() -> BTreeMap<u32, Needed>,
    ) -> Result<(Self, Recovery)> {
        let recovered = recovery::recover(&options, from, replay, needed)?;
        let end = recovered.end;
        let segment_size = recovered.files.size(end.segment).unwrap_or(end.offset);
        let folder = Pinned::folder("log folder", &options.folder)
            .map_err(|error| lost("log folder", &options.folder, error))?;
        let reserve = Reserve::new(options.reserve.clone(), options.reserve_bytes);
        let work = Arc::<Condvar>::default();
        let committer = Arc::clone(&work);
        let shared = Arc::new(Shared {
            wakeups: Wakeups::new(move || committer.notify_all()),
            buffers: Mutex::new(Buffers {
                end,
                records_end: end,
                sequence: recovered.sequence,
                segment_size,
                spare: recovered.spare,
                preparing: false,
                wanted: None,
                unprepared: None,
                pending: Vec::new(),
                pending_bytes: 0,
                writing: Arc::default(),
                waiters: Vec::new(),
                expected: usize::MAX,
                tickets: 0,
                awaited_end: end,
                awaited: false,
                sync_requested: false,
                closing: false,
                idle: false,
                ended: false,
            }),
            options,
            log: recovered.log,
            folder,
            work,
            room: Condvar::new(),
            progress: Condvar::new(),
            files: recovered.files,
            written: AtomicU64::new(end.to_u64()),
            synced: AtomicU64::new(end.to_u64()),
            committed: AtomicU64::new(end.to_u64()),
            syncs: AtomicU64::new(0),
            reserve,
            disk_low: AtomicBool::new(false),
            free_bytes: AtomicU64::new(0),
            commits: Watch::new(),
            prepares: Watch::new(),
            failure: OnceLock::new(),
            failed: Notify::new(),
            on_commit: OnceLock::new(),
        });
        committer::measure_disk(&shared);
        let threads = committer::start(&shared).map_err(|error| {
            Error::unavailable("threads of the log cannot be started").with_source(error)
        })?;
        Ok((
            Self {
                shared,
                threads: Mutex::new(threads),
            },
            recovered.report,
        ))
    }

    /// Buffers a record; the committer thread writes it. Never waits for the disk, but for a segment that is not prepared in
    /// time, and for that a bounded time.
    ///
    /// # Errors
    /// Nothing was buffered: overloaded for [`Class::Grow`] while the disk is low or too much waits,
    /// `Invalid` over [`MAX_BODY_BYTES`], `Unavailable` when the log has failed or is closed, or its disk does not answer.
    pub(crate) fn append(&self, class: Class, body: &[u8]) -> Result<Appended> {
        if body.len() > MAX_BODY_BYTES {
            return Err(Error::invalid(format!(
                "a record of {} bytes is over the limit of {MAX_BODY_BYTES}",
                body.len()
            )));
        }
        let size = u32::try_from(frame::size_of(body.len())).unwrap_or(u32::MAX);
        let mut buffers = self.shared.lock();
        self.check_open(&buffers)?;
        if matches!(class, Class::Grow | Class::Settle) {
            self.check_answers()?;
        }
        if class == Class::Grow {
            self.check_room(&buffers)?;
        }
        if !buffers.has_room(size) {
            buffers = self.roll(buffers, class, size)?;
        }
        let start = buffers.end;
        push_frame(
            &mut buffers,
            Position::from_u64(self.shared.synced.load(Ordering::Acquire)),
            body,
        );
        let end = buffers.end;
        buffers.records_end = end;
        if class != Class::Note {
            buffers.awaited = true;
            buffers.awaited_end = end;
        }
        if self.shared.options.durability == super::Durability::None {
            self.shared.committed.store(end.to_u64(), Ordering::Release);
        }
        let wants_spare = buffers.wants_spare(self.is_disk_low());
        let is_first = std::mem::take(&mut buffers.idle);
        drop(buffers);
        match class {
            _ if !is_first => {}
            // Its caller continues, maybe reading payloads, and a queued call would have to wait for that.
            Class::Note => self.shared.work.notify_all(),
            _ => self.shared.wakeups.call(),
        }
        if wants_spare {
            self.shared.room.notify_all();
        }
        Ok(Appended {
            body: start.plus(u32::try_from(frame::HEADER_BYTES).unwrap_or(0)),
            end,
        })
    }

    /// Whether the disk answers; writes are rejected while it does not.
    ///
    /// # Errors
    /// `Unavailable` when a call to it has lasted longer than the timeout.
    pub(crate) fn check_answers(&self) -> Result<()> {
        self.stalled().map_or(Ok(()), |lasts| {
            Err(Error::unavailable(format!(
                "the disk of `{}` has not answered for {} s; writes are rejected until it does",
                self.shared.options.folder.display(),
                lasts.as_secs()
            )))
        })
    }

    /// Time without an answer of the disk, once that is longer than the timeout.
    pub(crate) fn stalled(&self) -> Option<Duration> {
        self.shared.stalled()
    }

    fn check_open(&self, buffers: &Buffers) -> Result<()> {
        if let Some(failure) = self.shared.failure() {
            return Err(failure);
        }
        if buffers.closing {
            Err(Error::unavailable("the store is closed"))
        } else {
            Ok(())
        }
    }

    fn check_room(&self, buffers: &Buffers) -> Result<()> {
        if self.shared.disk_low.load(Ordering::Relaxed) {
            return Err(disk_low());
        }
        if buffers.pending_bytes > MAX_PENDING_BYTES {
            return Err(Error::overloaded(
                "the disk is slower than the incoming writes",
                RETRY_AFTER,
            ));
        }
        Ok(())
    }

    /// Continues in the next segment, which is big enough for a frame of `size`. Only the thread of the segments calls the
    /// disk; a segment that it cannot prepare is refused.
    fn roll<'a>(
        &'a self,
        mut buffers: MutexGuard<'a, Buffers>,
        class: Class,
        size: u32,
    ) -> Result<MutexGuard<'a, Buffers>> {
        let until = Instant::now() + PREPARED;
        while !buffers.has_room(size) {
            if buffers
                .spare
                .as_ref()
                .is_some_and(|spare| spare.size >= HEADER_BYTES + size)
                && let Some(next) = buffers.spare.take()
            {
                let number = buffers.end.segment + 1;
                buffers.segment_size = next.size;
                self.shared.files.insert(number, next);
                buffers.end = Position {
                    segment: number,
                    offset: HEADER_BYTES,
                };
                buffers.wanted = None;
                break;
            }
            if !buffers.preparing {
                // One that is too small gives way to a larger one of the same name.
                buffers.spare = None;
            }
            if buffers.wanted.is_none() {
                // The last try had no record waiting, and left the reserve alone.
                buffers.unprepared = None;
            }
            buffers.wanted = buffers.wanted.max(Some(size));
            self.shared.room.notify_all();
            if let Some(error) = &buffers.unprepared {
                return Err(no_space(class).with_source(Arc::clone(error)));
            }
            let lasts = self.shared.prepares.lasts().unwrap_or_default();
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || lasts >= PREPARED {
                return Err(not_prepared(class));
            }
            buffers = self
                .shared
                .progress
                .wait_timeout(buffers, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            self.check_open(&buffers)?;
        }
        Ok(buffers)
    }

    /// Waits until everything before `end` is as durable as configured.
    ///
    /// # Errors
    /// `Unavailable` when the log failed before, or the disk took longer than the request waits; the appended records
    /// may or may not be durable.
    pub(crate) async fn committed(&self, end: Position) -> Result<()> {
        if self.is_committed(end) {
            return Ok(());
        }
        self.shared.wakeups.start();
        let mut ticket = None;
        let waiting = poll_fn(|context| self.poll_committed(end, &mut ticket, context));
        match wait_limit::limit() {
            None => waiting.await,
            Some(limit) => match tokio::time::timeout(limit, waiting).await {
                Ok(answered) => answered,
                Err(_) => Err(unknown(limit)),
            },
        }
    }

    fn poll_committed(
        &self,
        end: Position,
        ticket: &mut Option<u64>,
        context: &Context<'_>,
    ) -> Poll<Result<()>> {
        if self.is_committed(end) {
            return Poll::Ready(Ok(()));
        }
        let mut buffers = self.shared.lock();
        if self.is_committed(end) {
            return Poll::Ready(Ok(()));
        }
        if let Some(failure) = self.shared.failure() {
            return Poll::Ready(Err(failure));
        }
        if buffers.ended {
            return Poll::Ready(Err(Error::unavailable("the store is closed")));
        }
        let known = ticket.and_then(|ticket| {
            let mut waiters = buffers.waiters.iter_mut();
            waiters.find(|waiter| waiter.ticket == ticket)
        });
        match known {
            Some(waiter) => waiter.waker.clone_from(context.waker()),
            None => {
                buffers.tickets += 1;
                let number = buffers.tickets;
                *ticket = Some(number);
                buffers.waiters.push(Waiter {
                    end,
                    ticket: number,
                    waker: context.waker().clone(),
                });
                if buffers.waiters.len() == buffers.expected {
                    self.shared.work.notify_all();
                }
            }
        }
        Poll::Pending
    }

    /// Whether everything before `end` is as durable as configured.
    pub(crate) fn is_committed(&self, end: Position) -> bool {
        end <= self.committed_position()
    }

    /// Everything before this place is as durable as configured.
    pub(crate) fn committed_position(&self) -> Position {
        Position::from_u64(self.shared.committed.load(Ordering::Acquire))
    }

    /// The end of the last record that is more than a note: the position that an answer may rely on.
    pub(crate) fn awaited_end(&self) -> Position {
        self.shared.lock().awaited_end
    }

    /// Where the last record ended.
    pub(crate) fn records_end(&self) -> Position {
        self.shared.lock().records_end
    }

    /// Calls `hook` after each commit, from the committer thread. The first hook stays.
    pub(crate) fn on_commit(&self, hook: impl Fn() + Send + Sync + 'static) {
        self.shared.on_commit.get_or_init(|| Box::new(hook));
    }

    /// Syncs everything appended so far, whatever the durability. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when the log fails.
    pub(crate) fn sync_all(&self) -> Result<()> {
        let mut buffers = self.shared.lock();
        let target = buffers.records_end.to_u64();
        while self.shared.synced.load(Ordering::Acquire) < target {
            if let Some(failure) = self.shared.failure() {
                return Err(failure);
            }
            buffers.sync_requested = true;
            self.shared.work.notify_all();
            buffers = self
                .shared
                .progress
                .wait(buffers)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    /// Removes a segment that holds nothing live. The one being written stays.
    ///
    /// # Errors
    /// `Unavailable` for I/O; removing again is fine.
    pub(crate) fn remove(&self, number: u32) -> Result<()> {
        if number >= self.shared.lock().end.segment {
            return Ok(());
        }
        self.shared.folder.check()?;
        self.shared.files.remove(number);
        let folder = &self.shared.options.folder;
        match fs::remove_file(segment::path(folder, number))
            .and_then(|()| segment::sync_folder(folder))
        {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::unavailable(
                format!("segment {number} cannot be removed"),
            )
            .with_source(error)),
            _ => Ok(()),
        }
    }

    /// Every segment with its size, oldest first.
    pub(crate) fn segments(&self) -> Vec<(u32, u32)> {
        self.shared.files.list()
    }

    /// Whether the disk has less space left than the reserve.
    pub(crate) fn is_disk_low(&self) -> bool {
        self.shared.disk_low.load(Ordering::Relaxed)
    }

    /// Releases the reserved disk space for work that frees more. False when there is none.
    pub(crate) fn release_reserve(&self) -> bool {
        self.shared.reserve.release()
    }

    /// Free bytes of the disk, looked up within the last second.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.shared.free_bytes.load(Ordering::Relaxed)
    }

    /// Number of syncs since the log was opened.
    pub(crate) fn syncs(&self) -> u64 {
        self.shared.syncs.load(Ordering::Relaxed)
    }

    /// Why the log has stopped, if it has.
    pub(crate) fn failed(&self) -> Option<Error> {
        self.shared.failure()
    }

    /// Resolves with the reason when the log has stopped for good.
    pub(crate) async fn wait_failed(&self) -> Error {
        loop {
            let notified = self.shared.failed.notified();
            if let Some(failure) = self.shared.failure() {
                return failure;
            }
            notified.await;
        }
    }

    /// Makes everything durable and ends the threads. Idempotent. Blocks.
    ///
    /// # Errors
    /// `Unavailable` when something could not be made durable.
    pub(crate) fn close(&self) -> Result<()> {
        {
            // Both at once: callers that continue to append would delay a sync for ever.
            let mut buffers = self.shared.lock();
            let synced = Position::from_u64(self.shared.synced.load(Ordering::Acquire));
            buffers.sync_requested |= !buffers.closing && synced < buffers.records_end;
            buffers.closing = true;
        }
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("log thread panicked");
            }
        }
        self.shared.wakeups.close();
        self.shared.failure().map_or(Ok(()), Err)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(error = error.chain(), "log not closed cleanly");
        }
    }
}

fn disk_low() -> Error {
    Error::overloaded(
        "free disk space is below `embedded.disk_reserve`; new messages are rejected until space is freed",
        RETRY_AFTER,
    )
}

/// The refusal of a record whose segment the disk has no space for.
fn no_space(class: Class) -> Error {
    match class {
        Class::Grow => disk_low(),
        _ => Error::unavailable("no space is left for the log; free some on its disk"),
    }
}

/// The refusal of a record whose segment is not prepared in time.
fn not_prepared(class: Class) -> Error {
    let text = "the disk is too slow: the next segment of the log is not ready; nothing was taken";
    match class {
        Class::Grow => Error::overloaded(text, RETRY_AFTER),
        _ => Error::unavailable(text),
    }
}
