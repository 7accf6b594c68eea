//! The two threads of the log: one writes and syncs, one prepares segments and watches the disk.
//!
//! While a sync is in flight the next group gathers. On a slow disk the next
//! sync also gives callers that were just answered a moment to come back: without
//! it half of the callers would always wait for the sync of the other half.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::StatVfsMountFlags;
use towpath_core::{Error, units};

use super::presence::check_linked;
use super::reserve::is_full;
use super::segment::{self, HEADER_BYTES};
use super::shared::{Buffers, Chunk, Shared, push_frame};
use super::{Durability, Position, frame};

/// A sync that took less costs less than the waiting does.
const SLOW: Duration = Duration::from_millis(1);

/// The next sync waits for callers for at most this fraction of the last one's time: a half.
const PATIENCE: u32 = 2;

/// The longest that is waited for callers, on the slowest disk.
const LONGEST: Duration = Duration::from_millis(8);

/// The time of a sync is divided by this for how long after the last caller another one is expected. Over HTTP the
/// first caller comes back only when the answers of all were written.
const QUIET: u32 = 8;
const QUIET_FROM: Duration = Duration::from_micros(200);
const QUIET_TO: Duration = Duration::from_micros(2500);

/// Interval of writes without a waiting caller, when the durability is `none`.
const LAPSE: Duration = Duration::from_millis(1);

/// Interval of checks of the disk's free space.
const LOOK: Duration = Duration::from_secs(1);

/// The first and the longest pause before a segment that could not be prepared is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Vec<JoinHandle<()>>> {
    let (one, two) = (Arc::clone(shared), Arc::clone(shared));
    Ok(vec![
        Builder::new()
            .name("towpath-commit".to_owned())
            .spawn(move || commit(&one))?,
        Builder::new()
            .name("towpath-segments".to_owned())
            .spawn(move || keep(&two))?,
    ])
}

/// The work of one round of the committer.
struct Group {
    chunks: Arc<Vec<Chunk>>,
    end: Position,
    sync: bool,
}

fn commit(shared: &Shared) {
    // A panic too: the waiting callers would never get an answer.
    match std::panic::catch_unwind(AssertUnwindSafe(|| write_and_sync(shared))) {
        Ok(Ok(())) => {}
        Ok(Err(reason)) => shared.fail(reason),
        Err(_) => shared.fail("the thread that writes the log panicked".to_owned()),
    }
    shared.lock().ended = true;
    shared.end_waiters();
}

/// The life of the committer: ends when the log is closed, or with the reason why it cannot continue.
fn write_and_sync(shared: &Shared) -> Result<(), String> {
    let write_failed = |error: io::Error| {
        let error = Error::unavailable("writing the log failed").with_source(error);
        error.chain()
    };
    let mut last = Sync {
        ended: Instant::now(),
        took: Duration::ZERO,
        callers: 0,
    };
    let mut unsynced = Unsynced::new();
    while let Some(group) = next_group(shared, &last, !unsynced.is_empty()) {
        write(shared, &group.chunks, &mut unsynced).map_err(write_failed)?;
        // Before anything of it is acknowledged; a note or a seal alone is not.
        if group.sync || shared.options.durability != Durability::Fsync {
            for chunk in group.chunks.iter() {
                let number = chunk.start.segment;
                if let Some(file) = unsynced.get(&number) {
                    let _call = shared.commits.begin();
                    check_linked(shared, number, file).map_err(write_failed)?;
                }
            }
        }
        shared.written.store(group.end.to_u64(), Ordering::Release);
        if group.sync {
            let began = Instant::now();
            sync(shared, &unsynced).map_err(|error| format!("syncing the log failed: {error}"))?;
            unsynced.clear();
            last.took = began.elapsed();
            shared.synced.store(group.end.to_u64(), Ordering::Release);
        }
        let (callers, seal) = finish(shared, &group);
        if group.sync {
            last.callers = callers;
            last.ended = Instant::now();
        }
        if let Some(seal) = seal {
            write(shared, &[seal], &mut unsynced).map_err(write_failed)?;
        }
    }
    Ok(())
}

/// The newest sync.
struct Sync {
    ended: Instant,
    took: Duration,
    /// Callers that were answered by it or waited for the next one.
    callers: usize,
}

/// Gives callers that were just answered a moment to come back, as long as some do.
fn gather<'a>(
    shared: &'a Shared,
    mut buffers: MutexGuard<'a, Buffers>,
    last: &Sync,
) -> MutexGuard<'a, Buffers> {
    if last.took < SLOW {
        return buffers;
    }
    let until = last.ended + (last.took / PATIENCE).min(LONGEST);
    let quiet = (last.took / QUIET).clamp(QUIET_FROM, QUIET_TO);
    // The last one of them calls.
    buffers.expected = last.callers;
    loop {
        let before = buffers.waiters.len();
        let left = until.saturating_duration_since(Instant::now()).min(quiet);
        if before >= last.callers || buffers.is_urgent() || left.is_zero() {
            break;
        }
        buffers = shared.wait_for_work(buffers, Some(left));
        if buffers.waiters.len() == before {
            break;
        }
    }
    buffers.expected = usize::MAX;
    buffers
}

/// Waits for work; `None` when the log is closed and everything is written.
fn next_group(shared: &Shared, last: &Sync, dirty: bool) -> Option<Group> {
    let mut buffers = shared.lock();
    let mut gathered = shared.options.durability != Durability::Fsync;
    let mut lapsed = shared.options.durability != Durability::None;
    loop {
        if !lapsed && !buffers.pending.is_empty() && !buffers.is_urgent() {
            lapsed = true;
            buffers = shared.wait_for_work(buffers, Some(LAPSE));
            continue;
        }
        if !gathered && buffers.awaited {
            gathered = true;
            buffers = gather(shared, buffers, last);
        }
        let due = match shared.options.durability {
            Durability::Interval(every) if dirty => {
                Some(every.saturating_sub(last.ended.elapsed()))
            }
            _ => None,
        };
        let due_now = due.is_some_and(|due| due.is_zero());
        if !buffers.pending.is_empty() || buffers.sync_requested || due_now {
            buffers.writing = Arc::new(std::mem::take(&mut buffers.pending));
            buffers.pending_bytes = 0;
            let requested = std::mem::take(&mut buffers.sync_requested);
            let awaited = std::mem::take(&mut buffers.awaited);
            let sync =
                requested || due_now || (awaited && shared.options.durability == Durability::Fsync);
            return Some(Group {
                chunks: Arc::clone(&buffers.writing),
                end: buffers.end,
                sync,
            });
        }
        if buffers.closing {
            return None;
        }
        buffers.idle = true;
        buffers = shared.wait_for_work(buffers, due);
        buffers.idle = false;
    }
}

/// Files that were written and not synced, held open: a file that is opened again may not report that its write-back failed.
type Unsynced = BTreeMap<u32, Arc<File>>;

fn write(shared: &Shared, chunks: &[Chunk], unsynced: &mut Unsynced) -> io::Result<()> {
    for chunk in chunks {
        let _call = shared.commits.begin();
        let number = chunk.start.segment;
        let file = shared.files.file(number)?;
        file.write_all_at(&chunk.bytes, u64::from(chunk.start.offset))?;
        // A seal too: without it the next segment would seem to follow a gap.
        unsynced.insert(number, file);
    }
    Ok(())
}

fn sync(shared: &Shared, unsynced: &Unsynced) -> io::Result<()> {
    for file in unsynced.values() {
        shared.commits.during(|| file.sync_data())?;
        shared.syncs.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Answers the callers whose record is committed now. Returns their number together with those that wait for the next
/// sync, and the seal of a group behind which nothing waits.
fn finish(shared: &Shared, group: &Group) -> (usize, Option<Chunk>) {
    let committed = match shared.options.durability {
        Durability::Fsync if !group.sync => None,
        _ => Some(group.end),
    };
    let mut done = Vec::new();
    let mut seal = None;
    let callers;
    {
        let mut buffers = shared.lock();
        callers = buffers.waiters.len();
        buffers.writing = Arc::default();
        if let Some(committed) = committed {
            shared
                .committed
                .fetch_max(committed.to_u64(), Ordering::AcqRel);
            let committed = Position::from_u64(shared.committed.load(Ordering::Acquire));
            (done, buffers.waiters) = std::mem::take(&mut buffers.waiters)
                .into_iter()
                .partition(|waiter| waiter.end <= committed);
        }
        // A frame without a body states that all frames before it were synced, which distinguishes damage to the
        // last group from a torn tail. It is written, not synced: it only has to be there when the disk was not cut.
        let room = buffers.segment_size.saturating_sub(buffers.end.offset) as usize;
        let records_end_here = buffers.pending.is_empty() && buffers.records_end == group.end;
        if group.sync && records_end_here && room >= frame::size_of(0) {
            push_frame(&mut buffers, group.end, b"");
            seal = buffers.pending.pop();
            buffers.pending_bytes = 0;
            if let Some(seal) = &seal {
                shared.written.store(seal.start.to_u64(), Ordering::Release);
            }
        }
    }
    shared.progress.notify_all();
    shared
        .wakeups
        .wake(done.into_iter().map(|waiter| waiter.waker).collect());
    if let Some(hook) = shared.on_commit.get() {
        hook();
    }
    (callers, seal)
}

/// Prepares the next segment, and watches the disk.
fn keep(shared: &Shared) {
    let mut looked = Instant::now();
    let mut trouble = Trouble::default();
    let mut buffers = shared.lock();
    while !buffers.closing && shared.failure.get().is_none() {
        let is_new = buffers.wanted.is_some() && buffers.unprepared.is_none();
        if buffers.wants_spare(shared.disk_low.load(Ordering::Relaxed))
            && (is_new || trouble.left().is_none())
        {
            let number = buffers.end.segment + 1;
            let wanted = buffers.wanted.map_or(0, |size| HEADER_BYTES + size);
            let size = shared.options.segment_bytes.max(wanted);
            buffers.preparing = true;
            drop(buffers);
            let call = shared.prepares.begin();
            if let Err(gone) = shared.folder.check() {
                shared.fail(gone.chain());
                return;
            }
            let whole = shared.whole(size);
            let create = || segment::create(&shared.options.folder, number, whole);
            let made = create().or_else(|error| {
                // On a full disk only records that end something still come.
                let is_needed = wanted > 0 && is_full(&error);
                match is_needed && shared.reserve.release() {
                    true => create(),
                    false => Err(error),
                }
            });
            drop(call);
            buffers = shared.lock();
            buffers.preparing = false;
            match made {
                Ok(spare) => {
                    buffers.spare = Some(spare);
                    buffers.unprepared = None;
                    trouble.ended();
                }
                // It is tried again when the present one is half full, and may go well by then.
                Err(error) if wanted == 0 && !buffers.is_half_full() => {
                    tracing::debug!(%error, "next segment of the log not prepared yet");
                }
                Err(error) => {
                    shared.disk_low.store(true, Ordering::Relaxed);
                    trouble.failed(&error);
                    buffers.unprepared = Some(Arc::new(error));
                }
            }
            shared.progress.notify_all();
        }
        if looked.elapsed() >= LOOK {
            drop(buffers);
            shared.prepares.during(|| measure_disk(shared));
            looked = Instant::now();
            buffers = shared.lock();
        }
        let wait = trouble.left().map_or(LOOK, |left| left.min(LOOK));
        buffers = shared
            .room
            .wait_timeout(buffers, wait)
            .map_or_else(|error| error.into_inner().0, |(guard, _)| guard);
    }
}

/// Segments that could not be prepared, one after the other.
#[derive(Default)]
struct Trouble {
    failures: u32,
    again: Option<Instant>,
}

impl Trouble {
    /// Until the next try.
    fn left(&self) -> Option<Duration> {
        let left = self.again?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    fn failed(&mut self, error: &io::Error) {
        self.failures += 1;
        let doublings = (self.failures - 1).min(16);
        self.again = Some(Instant::now() + (FIRST_PAUSE * (1 << doublings)).min(LONGEST_PAUSE));
        if self.failures == 1 {
            tracing::warn!(%error, "preparing a log segment failed; retrying");
        }
    }

    fn ended(&mut self) {
        let failures = std::mem::take(self).failures;
        if failures > 0 {
            tracing::info!(failures, "log segment prepared again");
        }
    }
}

/// Looks up the free space, and whether it is below the reserve.
pub(super) fn measure_disk(shared: &Shared) {
    let Ok(stat) = rustix::fs::statvfs(&shared.options.folder) else {
        return;
    };
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) && shared.failure.get().is_none() {
        let folder = shared.options.folder.display();
        shared.fail(format!("the file system of `{folder}` became read-only"));
    }
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    shared.free_bytes.store(free, Ordering::Relaxed);
    shared.reserve.refill(free);
    let room = free.saturating_add(shared.reserve.held());
    let low = room < shared.options.reserve_bytes.max(u64::from(HEADER_BYTES));
    if shared.disk_low.swap(low, Ordering::Relaxed) != low {
        let reserve = units::bytes(shared.options.reserve_bytes);
        let free = units::bytes(free);
        match low {
            true => tracing::warn!(
                free,
                reserve,
                "free disk space below the reserve; rejecting writes"
            ),
            false => tracing::info!(
                free,
                reserve,
                "free disk space above the reserve; accepting writes"
            ),
        }
    }
}
