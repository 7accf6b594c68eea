//! The output file: each message one line, written once.
//!
//! ```text
//! announce in the journal, sync -> append, sync -> done
//! ```
//!
//! After a crash the last announcement is compared with the file: either all of
//! its bytes are there, then its messages are written, or they are cut away, and
//! the messages come again. A message that comes again although it was written is
//! recognised by its id among the last 100,000, and is done without a second line.

mod journal;
#[cfg(test)]
mod tests;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use towpath_core::port::Sink;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, MessageId, Result};

use self::journal::{Intent, Journal};
use super::lines::line;

/// Appends to one file, at least once with duplicates dropped among the last 100,000 messages: effectively once.
pub struct FileSink {
    open: Arc<Mutex<Output>>,
}

impl FileSink {
    /// A sink on this file. It is opened by the first delivery, so that a path that
    /// cannot be written now can be mended while the process runs.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            open: Arc::new(Mutex::new(Output {
                path: path.into(),
                files: None,
            })),
        }
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>> {
        let now = jiff::Timestamp::now();
        let lines: Vec<(MessageId, String)> = batch
            .iter()
            .map(|delivery| (delivery.message.id, line(&delivery.message.payload, now)))
            .collect();
        let open = Arc::clone(&self.open);
        // Goes on when this call is dropped; the journal then knows what it did.
        tokio::task::spawn_blocking(move || {
            open.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write(&lines)
        })
        .await
        .map_err(|error| Error::unavailable("writing the output panicked").with_source(error))??;
        Ok(vec![Outcome::Done; batch.len()])
    }

    async fn close(&self) -> Result<()> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .files = None;
        Ok(())
    }
}

struct Output {
    path: PathBuf,
    files: Option<Files>,
}

struct Files {
    output: File,
    journal: Journal,
}

impl Output {
    /// Writes those lines that are not written yet, all or none.
    fn write(&mut self, lines: &[(MessageId, String)]) -> Result<()> {
        let result = self.try_write(lines);
        if result.is_err() {
            // Opening anew compares the file with the journal and mends what was left half done.
            self.files = None;
        }
        result.map_err(|error| {
            Error::unavailable(format!(
                "output `{}` cannot be written",
                self.path.display()
            ))
            .with_source(error)
        })
    }

    fn try_write(&mut self, lines: &[(MessageId, String)]) -> io::Result<()> {
        let files = self.files()?;
        let mut ids = Vec::with_capacity(lines.len());
        let mut text = String::new();
        for (id, line) in lines {
            if !files.journal.knows(id) {
                ids.push(*id);
                text.push_str(line);
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        let start = files.output.seek(SeekFrom::End(0))?;
        let checksum = crc32c::crc32c(text.as_bytes());
        let intent = Intent {
            start,
            bytes: text.len() as u64,
            checksum,
            ids,
        };
        files.journal.announce(&intent)?;
        files.append(&intent, text.as_bytes())?;
        files.journal.confirm(intent)
    }

    /// The open files; opened anew when the path leads to another file than before.
    fn files(&mut self) -> io::Result<&mut Files> {
        let same = |files: &Files| {
            let (there, ours) = (
                fs::metadata(&self.path).ok()?,
                files.output.metadata().ok()?,
            );
            (there.ino() == ours.ino() && there.dev() == ours.dev()).then_some(())
        };
        if self.files.as_ref().and_then(same).is_none() {
            self.files = None;
        }
        match self.files.take() {
            Some(files) => Ok(self.files.insert(files)),
            None => Ok(self.files.insert(Files::open(&self.path)?)),
        }
    }
}

impl Files {
    fn open(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            fs::create_dir_all(parent)?;
        }
        let mut name = path.as_os_str().to_owned();
        name.push(".journal");
        let (journal, last) = Journal::open(Path::new(&name))?;
        let fresh = !path.exists();
        let output = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .open(path)?;
        if fresh {
            journal::sync_parent(path)?;
        }
        let mut files = Self { output, journal };
        if let Some(intent) = last {
            files.settle(intent)?;
        }
        Ok(files)
    }

    /// Finds out whether the last announced append happened, and makes it so that it did or did not.
    fn settle(&mut self, intent: Intent) -> io::Result<()> {
        let length = self.output.metadata()?.len();
        let end = intent.start + intent.bytes;
        if length >= end {
            let mut bytes = vec![0; usize::try_from(intent.bytes).unwrap_or(usize::MAX)];
            self.output.seek(SeekFrom::Start(intent.start))?;
            self.output.read_exact(&mut bytes)?;
            if crc32c::crc32c(&bytes) == intent.checksum {
                self.output.sync_data()?;
                return self.journal.confirm(intent);
            }
        }
        if length > intent.start && length <= end {
            tracing::warn!(
                from = intent.start,
                to = length,
                "a torn tail of the output is cut, its messages come again"
            );
            self.output.set_len(intent.start)?;
            self.output.sync_data()?;
        } else if length > end {
            // Somebody else wrote here: nothing that is not ours is cut.
            tracing::warn!(
                at = intent.start,
                "the output was changed by others, its last messages are written again"
            );
        } else if length < intent.start {
            // A new or shortened file. Whether the lines were in the old one cannot be known: should their
            // messages come again, they are written again.
            tracing::warn!(
                length,
                expected = intent.start,
                "the output is shorter than it was, or another file"
            );
        }
        self.journal.withdraw(&intent)
    }

    /// Appends; a write that fails leaves the file as it was.
    fn append(&mut self, intent: &Intent, bytes: &[u8]) -> io::Result<()> {
        let written = self
            .output
            .write_all(bytes)
            .and_then(|()| self.output.sync_data());
        let Err(error) = written else { return Ok(()) };
        self.output.set_len(intent.start)?;
        self.journal.withdraw(intent)?;
        Err(error)
    }
}
