//! The output file: each message one line, written once.
//!
//! ```text
//! announce in the journal, sync -> append, sync -> done
//! ```
//!
//! The announcement holds the text itself. After a crash it is compared with the
//! file, and what is missing of it is written. A message that comes again although it was written is
//! recognised by its id among the last 100,000, and is done without a second line.

mod journal;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
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
        let (mut ids, mut text, mut in_batch) = (
            Vec::with_capacity(lines.len()),
            String::new(),
            HashSet::new(),
        );
        for (id, line) in lines {
            if !files.journal.knows(id) && in_batch.insert(*id) {
                ids.push(*id);
                text.push_str(line);
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        let start = files.output.seek(SeekFrom::End(0))?;
        // Somebody else's half line must not become the beginning of ours.
        if !files.ends_a_line(start)? {
            text.insert(0, '\n');
        }
        let intent = Intent {
            start,
            file: identity(&files.output)?,
            ids,
            text: text.into_bytes(),
        };
        files.journal.announce(&intent)?;
        files.append(&intent)?;
        files.journal.confirm(intent)
    }

    /// The open files. When the path leads to another file than before, that one is opened, and the journal,
    /// which knows what was written, stays.
    fn files(&mut self) -> io::Result<&mut Files> {
        let files = match self.files.take() {
            Some(mut files) => {
                let there = fs::metadata(&self.path)
                    .ok()
                    .map(|there| (there.dev(), there.ino()));
                if there != Some(identity(&files.output)?) {
                    files.output = open_output(&self.path)?;
                }
                files
            }
            None => Files::open(&self.path)?,
        };
        Ok(self.files.insert(files))
    }
}

/// Device and inode of an open file.
fn identity(file: &File) -> io::Result<(u64, u64)> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Opens the output, made with its folder when it is not there.
fn open_output(path: &Path) -> io::Result<File> {
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent)?;
    }
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
    Ok(output)
}

impl Files {
    fn open(path: &Path) -> io::Result<Self> {
        let output = open_output(path)?;
        let mut name = path.as_os_str().to_owned();
        name.push(".journal");
        let (journal, last) = Journal::open(Path::new(&name))?;
        let mut files = Self { output, journal };
        if let Some(intent) = last {
            files.settle(intent)?;
        }
        Ok(files)
    }

    /// Whether the next byte at `end` starts a line.
    fn ends_a_line(&mut self, end: u64) -> io::Result<bool> {
        let Some(before) = end.checked_sub(1) else {
            return Ok(true);
        };
        let mut last = [0];
        self.output.seek(SeekFrom::Start(before))?;
        self.output.read_exact(&mut last)?;
        Ok(last == *b"\n")
    }

    /// Finds out whether the last announced append happened, and makes it so that it did or did not.
    fn settle(&mut self, intent: Intent) -> io::Result<()> {
        if intent.text.is_empty() {
            return self.journal.confirm(intent);
        }
        let length = self.output.metadata()?.len();
        if intent.file != identity(&self.output)? || length < intent.start {
            // Whether the lines were in a file that is not there cannot be known: should they come again, they are written again.
            tracing::warn!(
                length,
                expected = intent.start,
                "the output is another file than it was, or shorter"
            );
            return self.journal.withdraw(&intent);
        }
        let mut tail = Vec::new();
        self.output.seek(SeekFrom::Start(intent.start))?;
        Read::take(&mut self.output, intent.text.len() as u64).read_to_end(&mut tail)?;
        if tail == intent.text {
            self.output.sync_data()?;
            return self.journal.confirm(intent);
        }
        // A power cut can leave zeros where bytes were to be.
        let written = tail.len() - tail.iter().rev().take_while(|byte| **byte == 0).count();
        let ends_there = length == intent.start + tail.len() as u64;
        if ends_there && intent.text.starts_with(&tail[..written]) {
            tracing::warn!(
                from = intent.start,
                to = length,
                "an append to the output was cut short and is completed"
            );
            self.output.set_len(intent.start + written as u64)?;
            self.output.write_all(&intent.text[written..])?;
            self.output.sync_data()?;
            return self.journal.confirm(intent);
        }
        // Nothing that is not ours is touched.
        tracing::warn!(
            at = intent.start,
            "the output was changed by others, its last messages may be written again"
        );
        self.journal.withdraw(&intent)
    }

    /// Appends; a write that fails leaves the file as it was.
    fn append(&mut self, intent: &Intent) -> io::Result<()> {
        let written = self
            .output
            .write_all(&intent.text)
            .and_then(|()| self.output.sync_data());
        let Err(error) = written else { return Ok(()) };
        self.output.set_len(intent.start)?;
        self.journal.withdraw(intent)?;
        Err(error)
    }
}
