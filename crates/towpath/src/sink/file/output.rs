//! The file itself: announced appends, and the repair of one that a crash interrupted.

#![expect(
    clippy::disallowed_methods,
    reason = "compared with times of the file system"
)]

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use towpath_core::MessageId;

use crate::disk::{Floor, folder_of};

use super::folder::{make_parent, sync_parent};
use super::journal::Journal;
use super::lock::{identity, lock};
use super::record::Intent;
use super::rotation::{Rotation, kept_as};

/// The mode of outputs: readable by the group.
const MODE: u32 = 0o640;

/// An output and its journal.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    journal: Journal,
    file: Option<File>,
    pub(super) rotation: Rotation,
    is_synced: bool,
    /// The mode of a new file, whatever the umask is.
    pub(super) mode: u32,
    /// Space that is left to a store on the same disk.
    pub(super) floor: Option<Floor>,
}

/// The path of the journal beside an output.
pub(super) fn journal_of(path: &Path) -> PathBuf {
    let mut journal = path.as_os_str().to_owned();
    journal.push(".journal");
    journal.into()
}

impl Output {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            journal: Journal::new(journal_of(&path)),
            path,
            file: None,
            rotation: Rotation::default(),
            is_synced: true,
            mode: MODE,
            floor: None,
        }
    }

    /// Whether files are synced.
    pub(super) fn set_synced(&mut self, is_synced: bool) {
        self.is_synced = is_synced;
        self.journal.is_synced = is_synced;
    }

    /// Closes the files, which gives their locks free.
    pub(super) fn close(&mut self) {
        self.journal.close();
        self.file = None;
    }

    /// Writes those lines that are not written yet, all or none.
    pub(super) fn write(&mut self, lines: &[(MessageId, Vec<u8>)]) -> io::Result<()> {
        self.try_write(lines).inspect_err(|_| self.close())
    }

    fn try_write(&mut self, lines: &[(MessageId, Vec<u8>)]) -> io::Result<()> {
        // Kept only when all went well: opening again compares the file with the journal
        // and repairs an append that an error or a panic interrupted.
        let file = self.file.take();
        if file.is_none() {
            self.journal.close();
        }
        make_parent(&self.path)?;
        if let Some(floor) = &self.floor {
            // Once in the journal and once in the file; before anything is announced.
            let bytes: usize = lines.iter().map(|(_, line)| line.len() + 64).sum();
            floor.check(folder_of(&self.path), 2 * bytes as u64)?;
        }
        let pending = self.journal.lock()?;
        let mut file = self.current(file)?;
        lock(&file, &self.path)?;
        if let Some(intent) = pending {
            self.settle(&mut file, &intent)?;
        }
        if self.rotate(&file, lines)? {
            flock(&file, FlockOperation::Unlock)?;
            file = self.current(Some(file))?;
            lock(&file, &self.path)?;
        }
        self.append(&mut file, lines)?;
        flock(&file, FlockOperation::Unlock)?;
        self.journal.unlock()?;
        self.file = Some(file);
        Ok(())
    }

    /// The file that the path leads to: the one that is open, or another one when it was renamed or removed.
    fn current(&self, file: Option<File>) -> io::Result<File> {
        let there = fs::metadata(&self.path).ok();
        if there.as_ref().is_some_and(|there| !there.is_file()) {
            let what = "not a regular file; choose another path, or the stdout sink";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        if let (Some(file), Some(there)) = (file, &there)
            && identity(&file.metadata()?) == identity(there)
        {
            return Ok(file);
        }
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .mode(self.mode)
            .open(&self.path)?;
        if there.is_none() {
            // The umask may have taken bits from the mode.
            file.set_permissions(Permissions::from_mode(self.mode))?;
            sync_parent(&self.path)?;
        }
        Ok(file)
    }

    /// Lets the file go by another name when it is full or its time is over.
    fn rotate(&self, file: &File, lines: &[(MessageId, Vec<u8>)]) -> io::Result<bool> {
        if self.rotation.is_never() {
            return Ok(false);
        }
        let new = lines.iter().filter(|(id, _)| !self.journal.knows(id));
        let adding: usize = new.map(|(_, line)| line.len()).sum();
        if adding == 0 {
            return Ok(false);
        }
        let (there, now) = (file.metadata()?, jiff::Timestamp::now());
        let written = there.modified()?.try_into().unwrap_or(now);
        if !self
            .rotation
            .is_due(there.len(), written, adding as u64, now)
        {
            return Ok(false);
        }
        let kept = kept_as(&self.path, now);
        tracing::info!(output = %self.path.display(), kept = %kept.display(), "output rotated");
        fs::rename(&self.path, &kept)?;
        sync_parent(&self.path)?;
        Ok(true)
    }

    fn append(&mut self, file: &mut File, lines: &[(MessageId, Vec<u8>)]) -> io::Result<()> {
        let bytes = lines.iter().map(|(_, line)| line.len()).sum();
        let mut intent = Intent {
            ids: Vec::with_capacity(lines.len()),
            text: Vec::with_capacity(bytes),
            ..Intent::default()
        };
        let mut in_batch = HashSet::with_capacity(lines.len());
        for (id, line) in lines {
            if !self.journal.knows(id) && in_batch.insert(*id) {
                intent.ids.push(*id);
                intent.text.extend_from_slice(line);
            }
        }
        if intent.ids.is_empty() {
            return Ok(());
        }
        intent.start = file.seek(SeekFrom::End(0))?;
        intent.file = identity(&file.metadata()?);
        // Another client's half line must not become the beginning of ours.
        if !ends_a_line(file, intent.start)? {
            intent.text.insert(0, b'\n');
        }
        self.journal.announce(&intent)?;
        let written = file.write_all(&intent.text);
        let is_synced = self.is_synced;
        let sync = |()| if is_synced { file.sync_data() } else { Ok(()) };
        if let Err(error) = written.and_then(sync) {
            // A write that fails leaves the file as it was.
            if is_prefix(file, &intent)? {
                file.set_len(intent.start)?;
            }
            self.journal.withdraw(&intent)?;
            return Err(error);
        }
        self.journal.confirm(&intent)
    }

    /// Finds out whether the last announced append happened, and makes it so that it did or did not.
    fn settle(&mut self, file: &mut File, intent: &Intent) -> io::Result<()> {
        let path = self.path.display();
        if intent.text.is_empty() {
            return self.journal.confirm(intent);
        }
        let length = file.metadata()?.len();
        // By the inode alone: after a restart of the machine the same device may have another number.
        if intent.file.1 != identity(&file.metadata()?).1 || length < intent.start {
            // Whether a missing file had the lines is unknown: they are written again when they are delivered again.
            tracing::warn!(%path, length, expected = intent.start, "output replaced or truncated");
            return self.journal.withdraw(intent);
        }
        if tail(file, intent)? == intent.text {
            file.sync_data()?;
            return self.journal.confirm(intent);
        }
        if is_prefix(file, intent)? {
            tracing::warn!(%path, from = intent.start, to = length, "completing interrupted append to the output");
            file.set_len(intent.start)?;
            file.write_all(&intent.text)?;
            file.sync_data()?;
            return self.journal.confirm(intent);
        }
        // Nothing that is not ours is touched.
        tracing::warn!(%path, at = intent.start, "output changed by another program; its last messages may be written again");
        self.journal.withdraw(intent)
    }
}

/// The bytes at the position of the text.
fn tail(file: &mut File, intent: &Intent) -> io::Result<Vec<u8>> {
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(intent.start))?;
    Read::take(file, intent.text.len() as u64).read_to_end(&mut tail)?;
    Ok(tail)
}

/// Whether the file ends with a beginning of the text, and with nothing else.
fn is_prefix(file: &mut File, intent: &Intent) -> io::Result<bool> {
    let tail = tail(file, intent)?;
    // A power cut can leave zeros where bytes were to be.
    let written = tail.len() - tail.iter().rev().take_while(|byte| **byte == 0).count();
    Ok(file.metadata()?.len() == intent.start + tail.len() as u64
        && intent.text.starts_with(&tail[..written]))
}

/// Whether the next byte at `end` starts a line.
fn ends_a_line(file: &mut File, end: u64) -> io::Result<bool> {
    let Some(before) = end.checked_sub(1) else {
        return Ok(true);
    };
    let mut last = [0];
    file.seek(SeekFrom::Start(before))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}
