//! The journal beside an output file: announces each append, with its text and message ids.
//!
//! A record is written and synced before the bytes that it announces; so after a
//! crash the last record shows whether they are complete. Workers that share an output share its
//! journal: the worker that gets its lock first reads the records of the others.
//!
//! The file starts with `TOWPJNL` and its version, 1; the records are described in `record.rs`.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use towpath_core::MessageId;

use super::folder::sync_parent;
use super::lock::{identity, lock};
use super::record::{Intent, encode, scan};
use crate::disk;

const MAGIC: [u8; 8] = *b"TOWPJNL\x01";

/// Number of remembered messages: more than can ever wait for their ack.
pub(super) const WINDOW: usize = 100_000;

/// The journal is written again when it is larger than this.
const COMPACT_BYTES: u64 = 8 * 1024 * 1024;

/// The journal of one output, and the ids of the messages that are known to be written.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Option<File>,
    /// Up to where the file is read.
    length: u64,
    /// Whether damage was found that is still in the file.
    damaged: bool,
    /// Whether the announced bytes are on the disk.
    pub(super) is_synced: bool,
    recent: VecDeque<MessageId>,
    known: HashSet<MessageId>,
}

impl Journal {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            length: 0,
            damaged: false,
            is_synced: true,
            recent: VecDeque::new(),
            known: HashSet::new(),
        }
    }

    /// Takes the lock, reads new records, and returns the last one when its append may be incomplete.
    ///
    /// Waits for other workers as long as [`lock`] does.
    pub(super) fn lock(&mut self) -> io::Result<Option<Intent>> {
        loop {
            let file = match self.file.take() {
                Some(file) => file,
                None => {
                    self.length = 0;
                    disk::private()
                        .create(true)
                        .truncate(false)
                        .read(true)
                        .append(true)
                        .open(&self.path)?
                }
            };
            lock(&file, &self.path)?;
            // Another worker may have replaced it while we waited.
            if identity(&file.metadata()?) == identity(&fs::metadata(&self.path)?) {
                self.file = Some(file);
                return self.catch_up();
            }
        }
    }

    /// Lets others write. Nothing may be announced and neither confirmed nor withdrawn.
    pub(super) fn unlock(&mut self) -> io::Result<()> {
        Ok(flock(self.file()?, FlockOperation::Unlock)?)
    }

    /// Closes the file; known ids are kept, and the file is read from its beginning when it is locked again.
    pub(super) fn close(&mut self) {
        self.file = None;
    }

    fn catch_up(&mut self) -> io::Result<Option<Intent>> {
        let length = self.file()?.metadata()?.len();
        if length == self.length && length > 0 {
            return Ok(None);
        }
        if length < self.length {
            self.length = 0;
        }
        let (from, mut bytes) = (self.length, Vec::new());
        self.file()?.seek(SeekFrom::Start(from))?;
        self.file()?.read_to_end(&mut bytes)?;
        let mut records = &bytes[..];
        if from == 0 {
            if bytes.len() < MAGIC.len() {
                self.begin()?;
                return Ok(None);
            }
            if !bytes.starts_with(&MAGIC) {
                return Err(unreadable(&self.path, &bytes));
            }
            self.length = MAGIC.len() as u64;
            records = &bytes[MAGIC.len()..];
        }
        let mut found = scan(records);
        if !found.damaged.is_empty() {
            self.damaged = true;
            let kept = self.keep_aside()?;
            for range in &found.damaged {
                tracing::warn!(
                    journal = %self.path.display(), kept = %kept.display(),
                    from = self.length + range.start as u64, to = self.length + range.end as u64,
                    "output journal damaged; a message of that record may be written twice"
                );
            }
        }
        self.length += found.end as u64;
        if found.end < records.len() {
            // The append of a torn record was never begun.
            let length = self.length;
            self.file()?.set_len(length)?;
            self.file()?.sync_all()?;
        }
        let last = found.intents.pop();
        for intent in found.intents {
            self.remember(&intent);
        }
        Ok(last.filter(|last| !last.ids.iter().all(|id| self.known.contains(id))))
    }

    /// Makes an empty journal.
    fn begin(&mut self) -> io::Result<()> {
        let file = self.file()?;
        file.set_len(0)?;
        file.write_all(&MAGIC)?;
        file.sync_all()?;
        sync_parent(&self.path)?;
        self.length = MAGIC.len() as u64;
        Ok(())
    }

    /// Copies the damaged journal; the same damage has the same name.
    fn keep_aside(&self) -> io::Result<PathBuf> {
        let checksum = crc32c::crc32c(&fs::read(&self.path)?);
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".damaged-{checksum:08x}"));
        let kept = PathBuf::from(name);
        fs::copy(&self.path, &kept)?;
        File::open(&kept)?.sync_all()?;
        Ok(kept)
    }

    /// Whether the message was written before, as far as is remembered.
    pub(super) fn knows(&self, id: &MessageId) -> bool {
        self.known.contains(id)
    }

    /// Announces an append, durably.
    pub(super) fn announce(&mut self, intent: &Intent) -> io::Result<()> {
        let sync = if self.is_synced {
            File::sync_data
        } else {
            |_: &File| Ok(())
        };
        self.append(&encode(intent), sync)
    }

    fn append(&mut self, bytes: &[u8], sync: fn(&File) -> io::Result<()>) -> io::Result<()> {
        let length = self.length;
        let file = self.file()?;
        if let Err(error) = file.write_all(bytes).and_then(|()| sync(file)) {
            // Half a record must not stand in the way of the next one.
            file.set_len(length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The append that was announced last has not happened and will not.
    pub(super) fn withdraw(&mut self, intent: &Intent) -> io::Result<()> {
        self.length -= encode(intent).len() as u64;
        let length = self.length;
        self.file()?.set_len(length)?;
        self.file()?.sync_data()
    }

    /// The append that was announced last has happened.
    pub(super) fn confirm(&mut self, intent: &Intent) -> io::Result<()> {
        self.remember(intent);
        if self.damaged || self.length > COMPACT_BYTES {
            return self.compact();
        }
        // Not synced: without it the output itself is asked.
        self.append(&encode(&Intent::default()), |_| Ok(()))
    }

    fn remember(&mut self, intent: &Intent) {
        for id in &intent.ids {
            if self.known.insert(*id) {
                self.recent.push_back(*id);
            }
            if self.recent.len() > WINDOW
                && let Some(oldest) = self.recent.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    /// Writes the remembered ids into a new file, which replaces the old one.
    fn compact(&mut self) -> io::Result<()> {
        let everything = Intent {
            ids: self.recent.iter().copied().collect(),
            ..Intent::default()
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(encode(&everything));
        let temporary = self.path.with_extension("journal.new");
        let mut file = disk::private()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&temporary)?;
        lock(&file, &temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        sync_parent(&self.path)?;
        self.file = Some(file);
        self.length = bytes.len() as u64;
        self.damaged = false;
        Ok(())
    }

    fn file(&mut self) -> io::Result<&mut File> {
        self.file
            .as_mut()
            .ok_or_else(|| io::Error::other("the journal is closed"))
    }
}

fn unreadable(path: &Path, bytes: &[u8]) -> io::Error {
    let path = path.display();
    let what = if bytes.starts_with(&MAGIC[..7]) {
        format!("`{path}` is of a version that this Towpath cannot read; use the one that wrote it")
    } else {
        format!("`{path}` is not a Towpath journal; move it away to start a new one")
    };
    io::Error::new(io::ErrorKind::InvalidData, what)
}
