//! The store: state under one lock, the log behind it, and waiting callers.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use towpath_core::backend::Health;
use towpath_core::{Clock, Error, Message, QueueName, Result, ResultExt, StreamName, units};

use super::blob;
use super::checkpoint;
use super::config::Config;
use super::lock::FolderLock;
use super::log::reserve::NAME as RESERVE;
use super::log::{ACCEPT_LOSS, Class, Durability, Lacking, Log, Options, Position, Recovery};
use super::memory::Memory;
use super::presence::Presence;
use super::record::Record;
use super::restoring::refuse_restoring;
use super::state::{BlobLocation, State, Stored};
use super::upkeep::maintain;

/// Neighbours are read in one go when the gap between them and the whole are not larger.
const READ_GAP: u32 = 4096;
const READ_SPAN: u32 = 1 << 20;

/// A message that is smaller than this fraction of one read gets bytes of its own.
const SHARE_OF_SPAN: usize = 4;
/// A difference from the clock that is worth a warning.
const STEP: Duration = Duration::from_secs(5);

/// State under the lock.
pub(super) struct Inner {
    pub(super) state: State,
    record: Vec<u8>,
    pub(super) blobs: Vec<u8>,
}

/// Room that is kept for the next record and its blobs.
const ROOM: usize = 256 * 1024;

impl Inner {
    /// Releases the buffer of the largest record so far.
    pub(super) fn shrink(&mut self) {
        self.record.shrink_to(ROOM);
        self.blobs.shrink_to(ROOM);
    }
}

/// An open store.
pub(super) struct Store {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) log: Log,
    inner: Mutex<Inner>,
    waiting: Arc<Waiting>,
    pub(super) config: Config,
    recovery: Recovery,
    skipped: Vec<(PathBuf, String)>,
    pub(super) checkpointed: Mutex<Checkpointed>,
    /// Number of backups under way.
    pub(super) keeps_segments: AtomicUsize,
    closed: AtomicBool,
    maintenance: Mutex<Option<JoinHandle<()>>>,
    pub(super) wake_maintenance: (Mutex<()>, Condvar),
    lock: Mutex<Option<FolderLock>>,
    pub(super) presence: Presence,
    memory: Memory,
    /// Maximum memory of keys and values before they are moved to tables.
    pub(super) keys_in_memory: AtomicUsize,
}

/// A source that callers can wait for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Queue(QueueName),
    Stream(StreamName),
}

impl From<&QueueName> for Source {
    fn from(queue: &QueueName) -> Self {
        Self::Queue(queue.clone())
    }
}

impl From<&StreamName> for Source {
    fn from(stream: &StreamName) -> Self {
        Self::Stream(stream.clone())
    }
}

/// The last checkpoint.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpointed {
    pub(super) position: Position,
    pub(super) bytes: u64,
}

/// Callers that wait for messages, and the events that wake them.
#[derive(Default)]
struct Waiting {
    sources: Mutex<HashMap<Source, Arc<Notify>>>,
    /// Records on their way, in log order: once committed, their source has something new.
    coming: Mutex<VecDeque<(Position, Arc<Notify>)>>,
}

impl Waiting {
    fn at(&self, source: Source) -> Arc<Notify> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(sources.entry(source).or_default())
    }

    /// Drops sources without waiting callers.
    fn forget(&self, source: &Source) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if sources
            .get(source)
            .is_some_and(|notify| Arc::strong_count(notify) == 1)
        {
            sources.remove(source);
        }
    }

    fn wake_up_to(&self, committed: Position) {
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last: Option<Arc<Notify>> = None;
        while coming.front().is_some_and(|(end, _)| *end <= committed) {
            let Some((_, notify)) = coming.pop_front() else {
                break;
            };
            if last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, &notify)) {
                notify.notify_waiters();
                last = Some(notify);
            }
        }
    }
}

impl Store {
    /// Opens the folder: takes its lock, loads the newest checkpoint, replays the log behind it.
    pub(super) fn open(config: Config, clock: Arc<dyn Clock>) -> Result<Arc<Self>> {
        refuse_restoring(&config.folder)?;
        let is_new = !config.folder.join("log").exists();
        let lock = FolderLock::take(&config.folder)?;
        let presence = Presence::new(&config, &lock)?;
        let checkpoint::LoadedCheckpoint {
            state,
            position,
            bytes,
            skipped,
        } = checkpoint::load(&config.folder.join("checkpoint"))?;
        let accept_loss = config.folder.join(ACCEPT_LOSS);
        let accepts_loss = accept_loss.exists();
        if position.is_none() && !skipped.is_empty() && !accepts_loss {
            checkpoint::check_history(&config.folder, &skipped)?;
        }
        let options = Options {
            folder: config.folder.join("log"),
            quarantine: config.folder.join("quarantine"),
            durability: config.durability,
            segment_bytes: config.segment_bytes,
            reserve: config.folder.join(RESERVE),
            reserve_bytes: config.reserve_bytes,
            timeout: config.timeout,
            accepts_loss,
        };
        let mut newest = state.newest().max(checkpoint::newest_write(&config.folder));
        let state = RefCell::new(state);
        let mut replay = |body: Position, bytes: &[u8]| {
            let (record, blobs) = Record::decode(bytes)?;
            newest = newest.max(record.at());
            state.borrow_mut().apply(&record, body.plus(blobs));
            Ok(())
        };
        let needed = || state.borrow().needed();
        let (log, recovery) = Log::open(options, position, &mut replay, &needed)
            .context(|| format!("open the store in `{}`", config.folder.display()))?;
        let mut state = state.into_inner();
        if let Some(failure) = state.kv.take_failure() {
            return Err(failure);
        }
        if accepts_loss {
            // Of this start only.
            fs::remove_file(&accept_loss).map_err(|error| {
                let shown = accept_loss.display();
                Error::unavailable(format!("`{shown}` cannot be removed")).with_source(error)
            })?;
        }
        checkpoint::set_aside(&skipped)?;
        if let Some(position) = position {
            presence.rests_on(checkpoint::path(
                &config.folder.join("checkpoint"),
                position,
            ))?;
        }
        if is_new {
            tracing::info!(folder = %config.folder.display(), "created a new store");
        }
        let is_as_saved = recovery.records == 0 && recovery.damaged.is_empty();
        let checkpointed = Checkpointed {
            // With nothing behind the checkpoint but a seal it is one of the end.
            position: match position {
                Some(_) if is_as_saved => log.records_end(),
                position => position.unwrap_or_default(),
            },
            bytes,
        };
        // Time continues from the newest record, also when the clock was set back meanwhile.
        clock.raise(newest);
        state.raise_fence(clock.now());
        let waiting = Arc::<Waiting>::default();
        let memory = Memory::new(config.memory);
        let keys_in_memory = AtomicUsize::new(config.segment_bytes as usize / 2);
        let store = Arc::new(Self {
            clock,
            inner: Mutex::new(Inner {
                state,
                record: Vec::new(),
                blobs: Vec::new(),
            }),
            waiting,
            config,
            recovery,
            skipped,
            checkpointed: Mutex::new(checkpointed),
            keeps_segments: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            maintenance: Mutex::new(None),
            wake_maintenance: (Mutex::new(()), Condvar::new()),
            lock: Mutex::new(Some(lock)),
            presence,
            memory,
            keys_in_memory,
            log,
        });
        store.wake_on_commit();
        let weak = Arc::downgrade(&store);
        let thread = std::thread::Builder::new()
            .name("towpath-upkeep".to_owned())
            .spawn(move || maintain(&weak))
            .map_err(|error| {
                Error::unavailable("a thread of the store cannot be started").with_source(error)
            })?;
        *store
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(store)
    }

    fn wake_on_commit(self: &Arc<Self>) {
        let (waiting, store) = (Arc::clone(&self.waiting), Arc::downgrade(self));
        self.log.on_commit(move || {
            if let Some(store) = store.upgrade() {
                waiting.wake_up_to(store.log.committed_position());
            }
        });
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Milliseconds of the monotonic clock.
    pub(super) fn monotonic(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// Appends a record with the blobs gathered in `inner.blobs`, and applies it. Returns its ticket.
    ///
    /// # Errors
    /// Overloaded for [`Class::Grow`] while the disk or the memory is low.
    pub(super) fn write(
        &self,
        inner: &mut Inner,
        class: Class,
        record: &Record<'_>,
    ) -> Result<Position> {
        if class == Class::Grow {
            self.memory.check()?;
        }
        let Inner {
            state,
            record: bytes,
            blobs,
        } = inner;
        bytes.clear();
        record.encode(bytes)?;
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes.append(blobs);
        let appended = self.log.append(class, bytes)?;
        state.apply(record, appended.body.plus(length));
        Ok(appended.end)
    }

    /// Appends a record of something that the state knows already.
    pub(super) fn note(&self, inner: &mut Inner, record: &Record<'_>) -> Result<()> {
        inner.record.clear();
        record.encode(&mut inner.record)?;
        self.log.append(Class::Note, &inner.record).map(drop)
    }

    /// Wakes the callers that wait at this source, once `end` is committed.
    pub(super) fn wake_when_committed(&self, source: impl Into<Source>, end: Position) {
        let notify = self.waiting.at(source.into());
        self.waiting
            .coming
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push_back((end, notify));
        // It may be committed already, and then no commit would come.
        let committed = self.log.committed_position();
        if end <= committed {
            self.waiting.wake_up_to(committed);
        }
    }

    /// The notification that the source may have new messages.
    pub(super) fn news(&self, source: impl Into<Source>) -> Arc<Notify> {
        self.waiting.at(source.into())
    }

    /// The source is gone.
    pub(super) fn forget_source(&self, source: impl Into<Source>) {
        self.waiting.forget(&source.into());
    }

    /// Reads messages back, neighbours together. One outcome each.
    pub(super) fn read_back(&self, stored: &[Stored]) -> Vec<Result<Message>> {
        let mut messages = Vec::with_capacity(stored.len());
        let mut start = 0;
        while start < stored.len() {
            let BlobLocation { position, bytes } = stored[start].place;
            let first = position;
            let (mut end, mut until) = (start + 1, first.offset + bytes);
            while let Some(Stored { place: next, .. }) = stored.get(end) {
                let gap = next.position.offset.checked_sub(until);
                if next.position.segment != first.segment
                    || gap.is_none_or(|gap| gap > READ_GAP)
                    || next.position.offset + next.bytes - first.offset > READ_SPAN
                {
                    break;
                }
                until = next.position.offset + next.bytes;
                end += 1;
            }
            let span = self.log.read(first, until - first.offset);
            messages.extend(
                stored[start..end]
                    .iter()
                    .map(|stored| self.message(stored, first, &span)),
            );
            start = end;
        }
        messages
    }

    fn message(&self, stored: &Stored, start: Position, span: &Result<Bytes>) -> Result<Message> {
        let place = stored.place;
        let blob = match span {
            Ok(bytes) => {
                let offset = (place.position.offset - start.offset) as usize;
                let blob = bytes.slice(offset..offset + place.bytes as usize);
                // A leased message must not keep all the bytes that were read beside it.
                match blob.len() * SHARE_OF_SPAN < bytes.len() {
                    true => Bytes::copy_from_slice(&blob),
                    false => blob,
                }
            }
            // Each one alone may be readable.
            Err(_) => self.log.read(place.position, place.bytes)?,
        };
        blob::decode(&blob, stored).context(|| format!("message at {} of the log", place.position))
    }

    pub(super) fn health(&self) -> Result<Health> {
        if let Some(failure) = self.log.failed() {
            return Err(failure);
        }
        if self.closed.load(Ordering::SeqCst) {
            return Err(Error::unavailable("the store is closed"));
        }
        self.log.check_answers()?;
        let segments = self.log.segments();
        let bytes: u64 = segments.iter().map(|(_, size)| u64::from(*size)).sum();
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let facts = vec![
            fact("folder", self.config.folder.display().to_string()),
            fact("durability", self.config.durability.to_string()),
            fact(
                "log",
                format!(
                    "{}, {}",
                    units::counted(segments.len() as u64, "segment"),
                    units::bytes(bytes)
                ),
            ),
            fact("syncs", self.log.syncs().to_string()),
            fact("memory", self.memory.describe()),
            fact("free disk", units::bytes(self.log.free_bytes())),
            fact(
                "recovery",
                format!(
                    "{} in {} ms",
                    units::counted(self.recovery.records, "record"),
                    self.recovery.elapsed.as_millis()
                ),
            ),
        ];
        let figures = vec![
            ("log_bytes", bytes),
            ("log_segments", segments.len() as u64),
            ("log_syncs", self.log.syncs()),
            ("free_disk_bytes", self.log.free_bytes()),
            ("used_memory_bytes", self.memory.used_bytes()),
            ("recovered_records", self.recovery.records),
            (
                "recovery_ms",
                u64::try_from(self.recovery.elapsed.as_millis()).unwrap_or(u64::MAX),
            ),
        ];
        let mut warnings: Vec<String> = self
            .skipped
            .iter()
            .map(|(path, reason)| {
                format!("damaged checkpoint skipped: {}: {reason}", path.display())
            })
            .collect();
        if let Some(oldest) = self.recovery.begins_late {
            warnings.push(format!(
                "the log begins with segment {oldest}, and there is no checkpoint of the time before: settings, keys, routes \
                 and counts of that time are missing, and acked messages may be delivered again"
            ));
        }
        for Lacking { what, bytes, .. } in &self.recovery.lacking {
            warnings.push(format!(
                "{what}: {bytes} bytes of messages in it are lost, and become dead letters"
            ));
        }
        for damage in &self.recovery.damaged {
            let saved = damage.saved_as.as_ref().map_or_else(String::new, |path| {
                format!(", saved as `{}`", path.display())
            });
            warnings.push(match damage.bytes {
                0 => format!("records of the log are missing at {}", damage.start),
                bytes => format!(
                    "{bytes} bytes of the log at {} were damaged{saved}",
                    damage.start
                ),
            });
        }
        if let Some((place, bytes)) = self.recovery.cut {
            warnings.push(format!(
                "a torn tail of {bytes} bytes at {place} was cut and saved in `quarantine`"
            ));
        }
        let ahead = self.clock.ahead();
        if ahead >= STEP {
            warnings.push(format!(
                "the clock was set back: stored records are up to {} s ahead of it, and the time of this process continues from them",
                ahead.as_secs()
            ));
        }
        if self.config.durability == Durability::None {
            warnings.push(
                "durability is `none`: a crash loses records that are not yet written".to_owned(),
            );
        }
        Ok(Health {
            facts,
            figures,
            warnings,
        })
    }

    /// Why intake may be refused, and whether it is.
    pub(super) fn refusals(&self) -> Vec<(&'static str, bool)> {
        let disk = ("disk", self.log.is_disk_low());
        vec![disk, ("memory", self.memory.is_low())]
    }

    pub(super) async fn failed(&self) -> Error {
        self.log.wait_failed().await
    }

    /// Writes a last checkpoint, makes everything durable, releases the folder. Idempotent. Blocks.
    pub(super) fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        self.wake_maintenance.1.notify_all();
        let thread = self
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!("store maintenance panicked");
        }
        let checkpointed = self.check_presence().and_then(|()| self.save(None));
        let closed = self.log.close();
        for notify in self
            .waiting
            .sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
        {
            notify.notify_waiters();
        }
        self.folder_lock().take();
        checkpointed.and(closed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Held, it keeps the checkpoints that there are.
    pub(super) fn checkpointing(&self) -> impl Sized + '_ {
        self.checkpointed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn folder_lock(&self) -> MutexGuard<'_, Option<FolderLock>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.config.folder
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(error = error.chain(), "store not closed cleanly");
        }
    }
}
