//! The log as its caller sees it: append, wait until committed, read.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use towpath_core::{Error, Result};

use super::frame::{self, MAX_BODY_BYTES};
use super::recovery::{self, Recovery};
use super::segment::{self, HEADER_BYTES, Segment};
use super::{Options, Position, committer};

/// Most bytes that may wait to be written; more is refused.
const MAX_PENDING_BYTES: usize = 64 * 1024 * 1024;

/// When a refused producer may come back.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What a record does to the size of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Brings something in: refused while the disk is low.
    Grow,
    /// Ends something, and so leads to space: taken as long as there is any.
    Settle,
    /// As [`Class::Settle`], but nobody waits for it: it is written at once and synced with what comes next.
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

/// Bytes on their way to one place.
#[derive(Debug)]
pub(super) struct Chunk {
    pub(super) start: Position,
    pub(super) bytes: Vec<u8>,
}

/// What waits for the committer thread.
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
    pub(super) pending: Vec<Chunk>,
    pub(super) pending_bytes: usize,
    pub(super) writing: Arc<Vec<Chunk>>,
    pub(super) waiters: Vec<(Position, oneshot::Sender<()>)>,
    /// Where the last record ended that is more than a note.
    pub(super) awaited_end: Position,
    /// Somebody waits for what is pending; a note alone is written and not synced.
    pub(super) awaited: bool,
    pub(super) sync_requested: bool,
    pub(super) closing: bool,
}

impl Buffers {
    /// Whether it is time to prepare the next segment.
    pub(super) const fn wants_spare(&self) -> bool {
        self.spare.is_none() && !self.preparing && self.end.offset > self.segment_size / 2
    }
}

/// What the caller's side and the threads share.
pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) buffers: Mutex<Buffers>,
    /// There is something to write, to sync or to end.
    pub(super) work: Condvar,
    /// The present segment is half full, or the log ends.
    pub(super) room: Condvar,
    /// A group was written or synced, a spare was prepared, or the log failed.
    pub(super) progress: Condvar,
    pub(super) segments: RwLock<BTreeMap<u32, Segment>>,
    pub(super) written: AtomicU64,
    pub(super) synced: AtomicU64,
    pub(super) committed: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) disk_low: AtomicBool,
    pub(super) free_bytes: AtomicU64,
    pub(super) failure: OnceLock<String>,
    pub(super) failed: Notify,
    pub(super) on_commit: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Buffers> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn segment(&self, number: u32) -> Option<Segment> {
        self.segments
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
    }

    pub(super) fn keep(&self, number: u32, segment: Segment) {
        self.segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, segment);
    }

    /// Stops the log for good: nothing later is ever acknowledged.
    pub(super) fn fail(&self, reason: String) {
        tracing::error!(reason, "the log has failed, the store stops");
        self.failure.get_or_init(|| reason);
        // Their receivers see the failure.
        self.lock().waiters.clear();
        self.progress.notify_all();
        self.failed.notify_waiters();
    }

    fn failure(&self) -> Option<Error> {
        self.failure
            .get()
            .map(|reason| Error::unavailable(format!("the store has stopped: {reason}")))
    }
}

/// The log. Dropping it closes it.
pub(crate) struct Log {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Log {
    /// Opens the log and replays every intact frame from `from` (without it: from the oldest segment), in order.
    ///
    /// # Errors
    /// `Corrupt` for a segment of a newer format, those of `replay`, and `Unavailable` for I/O.
    pub(crate) fn open(
        options: Options,
        from: Option<Position>,
        replay: &mut dyn FnMut(Position, &[u8]) -> Result<()>,
    ) -> Result<(Self, Recovery)> {
        let recovered = recovery::recover(&options, from, replay)?;
        let end = recovered.end;
        let segment_size = recovered
            .segments
            .get(&end.segment)
            .map_or(0, |segment| segment.size);
        let shared = Arc::new(Shared {
            buffers: Mutex::new(Buffers {
                end,
                records_end: end,
                sequence: recovered.sequence,
                segment_size,
                spare: recovered.spare,
                preparing: false,
                pending: Vec::new(),
                pending_bytes: 0,
                writing: Arc::default(),
                waiters: Vec::new(),
                awaited_end: end,
                awaited: false,
                sync_requested: false,
                closing: false,
            }),
            options,
            work: Condvar::new(),
            room: Condvar::new(),
            progress: Condvar::new(),
            segments: RwLock::new(recovered.segments),
            written: AtomicU64::new(end.to_u64()),
            synced: AtomicU64::new(end.to_u64()),
            committed: AtomicU64::new(end.to_u64()),
            syncs: AtomicU64::new(0),
            disk_low: AtomicBool::new(false),
            free_bytes: AtomicU64::new(0),
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

    /// Buffers a record; the committer thread writes it. Never waits for the disk, but for a segment that is not prepared in time.
    ///
    /// # Errors
    /// Nothing was buffered: overloaded for [`Class::Grow`] while the disk is low or too much waits,
    /// `Invalid` over [`MAX_BODY_BYTES`], `Unavailable` when the log has failed or is closed.
    pub(crate) fn append(&self, class: Class, body: &[u8]) -> Result<Appended> {
        if body.len() > MAX_BODY_BYTES {
            return Err(Error::invalid(format!(
                "a record of {} bytes is over the limit of {MAX_BODY_BYTES}",
                body.len()
            )));
        }
        let mut buffers = self.shared.lock();
        self.check_open(&buffers)?;
        if class == Class::Grow {
            self.check_room(&buffers)?;
        }
        let size = u32::try_from(frame::size_of(body.len())).unwrap_or(u32::MAX);
        // A file that was cut short may end in the padding of its last frame.
        if size > buffers.segment_size.saturating_sub(buffers.end.offset) {
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
        let wants_spare = buffers.wants_spare();
        drop(buffers);
        self.shared.work.notify_all();
        if wants_spare {
            self.shared.room.notify_all();
        }
        Ok(Appended {
            body: start.plus(u32::try_from(frame::HEADER_BYTES).unwrap_or(0)),
            end,
        })
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
                "the disk is slower than what comes in",
                RETRY_AFTER,
            ));
        }
        Ok(())
    }

    /// Goes on in the next segment, which is big enough for a frame of `size`.
    fn roll<'a>(
        &'a self,
        mut buffers: MutexGuard<'a, Buffers>,
        class: Class,
        size: u32,
    ) -> Result<MutexGuard<'a, Buffers>> {
        while buffers.preparing {
            buffers = self
                .shared
                .progress
                .wait(buffers)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let number = buffers.end.segment + 1;
        let next = match buffers.spare.take() {
            Some(spare) if spare.size >= HEADER_BYTES + size => spare,
            _ => {
                let bytes = self.shared.options.segment_bytes.max(HEADER_BYTES + size);
                segment::create(&self.shared.options.folder, number, bytes).map_err(|error| {
                    self.shared.disk_low.store(true, Ordering::Relaxed);
                    let refusal = match class {
                        Class::Grow => disk_low(),
                        Class::Settle | Class::Note => Error::unavailable(
                            "no space is left for the log; free some on its disk",
                        ),
                    };
                    refusal.with_source(error)
                })?
            }
        };
        buffers.segment_size = next.size;
        self.shared.keep(number, next);
        buffers.end = Position {
            segment: number,
            offset: HEADER_BYTES,
        };
        Ok(buffers)
    }

    /// Waits until everything before `end` is as durable as configured.
    ///
    /// # Errors
    /// `Unavailable` when the log failed before; what was appended may or may not be durable.
    pub(crate) async fn committed(&self, end: Position) -> Result<()> {
        let receiver = {
            let mut buffers = self.shared.lock();
            if self.is_committed(end) {
                return Ok(());
            }
            if let Some(failure) = self.shared.failure() {
                return Err(failure);
            }
            let (sender, receiver) = oneshot::channel();
            buffers.waiters.push((end, sender));
            receiver
        };
        receiver.await.map_err(|_| {
            self.shared
                .failure()
                .unwrap_or_else(|| Error::unavailable("the store is closed"))
        })
    }

    /// Whether everything before `end` is as durable as configured.
    pub(crate) fn is_committed(&self, end: Position) -> bool {
        end <= self.committed_position()
    }

    /// Everything before this place is as durable as configured.
    pub(crate) fn committed_position(&self) -> Position {
        Position::from_u64(self.shared.committed.load(Ordering::Acquire))
    }

    /// Where the last record ended that is more than a note: what an answer may rest on.
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

    /// Reads bytes of a record's body, also before they are written. Records carry their own checksums.
    ///
    /// # Errors
    /// `Corrupt` when the segment or the bytes are not there, `Unavailable` for I/O.
    pub(crate) fn read(&self, position: Position, length: u32) -> Result<Bytes> {
        let end = position.plus(length).to_u64();
        if end > self.shared.written.load(Ordering::Acquire) {
            if let Some(bytes) = self.read_buffered(position, length) {
                return Ok(bytes);
            }
            // Partly in the file and partly not; a record by itself is in one place.
            if end > self.shared.written.load(Ordering::Acquire) {
                return Err(Error::unavailable(format!(
                    "{length} bytes at {position} are being written"
                )));
            }
        }
        let gone = || Error::corrupt(format!("segment {} is not there", position.segment));
        let segment = self.shared.segment(position.segment).ok_or_else(gone)?;
        if position
            .offset
            .checked_add(length)
            .is_none_or(|end| end > segment.size)
        {
            return Err(Error::corrupt(format!(
                "{length} bytes at {position} are outside of their segment"
            )));
        }
        let mut bytes = vec![0; length as usize];
        segment
            .file
            .read_exact_at(&mut bytes, u64::from(position.offset))
            .map_err(|error| {
                Error::unavailable(format!("{length} bytes at {position} cannot be read"))
                    .with_source(error)
            })?;
        Ok(bytes.into())
    }

    fn read_buffered(&self, position: Position, length: u32) -> Option<Bytes> {
        let buffers = self.shared.lock();
        buffers
            .writing
            .iter()
            .chain(&buffers.pending)
            .find_map(|chunk| {
                if chunk.start.segment != position.segment {
                    return None;
                }
                let start = position.offset.checked_sub(chunk.start.offset)? as usize;
                chunk
                    .bytes
                    .get(start..start + length as usize)
                    .map(Bytes::copy_from_slice)
            })
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
        self.shared
            .segments
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number);
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
        let segments = self
            .shared
            .segments
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        segments
            .iter()
            .map(|(number, segment)| (*number, segment.size))
            .collect()
    }

    /// Whether the disk has less space left than the reserve.
    pub(crate) fn is_disk_low(&self) -> bool {
        self.shared.disk_low.load(Ordering::Relaxed)
    }

    /// Free bytes of the disk, looked up within the last second.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.shared.free_bytes.load(Ordering::Relaxed)
    }

    /// How often the disk was synced since the log was opened.
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
        let synced = self.sync_all();
        self.shared.lock().closing = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        let threads =
            std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the log panicked");
            }
        }
        synced
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(error = error.chain(), "the log was not closed in order");
        }
    }
}

/// Adds a frame at the end of what waits.
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

fn disk_low() -> Error {
    Error::overloaded(
        "the disk is low, nothing more is taken; free some space",
        RETRY_AFTER,
    )
}
