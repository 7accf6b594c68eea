//! Follows a file line by line, across rotation, truncation and replacement, and says where it stands.
//!
//! A file is known by its inode and its first bytes, because both a path and an inode are given to other files in time.
//! Nothing is kept here that must survive: the caller saves the [`Position`] with the lines, in one step where it can.
//!
//! ```text
//! at the path, as it was    -> go on at the offset
//! shorter, or begins anew   -> it was truncated: from its beginning
//! another file at the path  -> finish the one that was renamed, then those that came and went since, then this one
//! nothing at the path       -> go on with what is open until its successor is there
//! ```

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::disk::folder_of;

/// Bytes at the beginning of a file by which it is recognised.
const HEAD: u64 = 256;

/// Fewer bytes are not worth a read of their own.
const LEAST: usize = 64 * 1024;

/// How far a file was read.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// The device that the file is on; numbered anew by some restarts, so it is not compared.
    pub device: u64,
    /// The file's number on its device.
    pub inode: u64,
    /// Bytes that were read, up to the end of a line.
    pub offset: u64,
    /// How many of the first bytes the checksum covers, at most 256.
    pub head: u64,
    /// CRC32C of these.
    pub checksum: u32,
}

/// Bounds of what is read at once.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest line in bytes; of a longer one only the beginning is kept.
    pub line: usize,
    /// Most lines of a chunk.
    pub lines: usize,
    /// Most bytes of a chunk, unless one line is longer.
    pub bytes: usize,
    /// After how long without a change a last line counts although it has no newline.
    pub quiet: Option<Duration>,
}

/// A line without its newline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// Any bytes, also none and no UTF-8.
    Whole(Vec<u8>),
    /// One over the limit: its beginning, and its length.
    TooLong(Vec<u8>, u64),
}

impl Line {
    /// Its length in the file, without the newline.
    pub fn length(&self) -> u64 {
        match self {
            Self::Whole(bytes) => bytes.len() as u64,
            Self::TooLong(_, length) => *length,
        }
    }
}

/// Lines, and where the file stands behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// In the order of the file.
    pub lines: Vec<Line>,
    /// Behind the last of them.
    pub position: Position,
}

/// What comes behind a position.
enum Found {
    Chunk(Chunk),
    Nothing,
    /// Nothing, and the file is no longer at the path.
    Successor(File),
}

/// A followed file.
pub struct Tail {
    path: PathBuf,
    limits: Limits,
    /// Where to go on in a file that is not open yet.
    saved: Option<Position>,
    open: Option<(File, Position)>,
    /// Where the search for the end of a line over the limit goes on.
    scanned: u64,
    /// How many bytes are read at once.
    reach: usize,
}

impl Tail {
    /// Goes on at `saved`; without it at the beginning of the file.
    pub const fn new(path: PathBuf, limits: Limits, saved: Option<Position>) -> Self {
        Self {
            path,
            limits,
            saved,
            open: None,
            scanned: 0,
            reach: LEAST,
        }
    }

    /// The position behind the last whole line that is there now; `None` while there is no file.
    pub fn end(path: &Path) -> io::Result<Option<Position>> {
        let Some(file) = open(path)? else {
            return Ok(None);
        };
        let mut at = file.metadata()?.len();
        let mut byte = [0];
        while at > 0 {
            file.read_exact_at(&mut byte, at - 1)?;
            if byte == *b"\n" {
                break;
            }
            at -= 1;
        }
        position(&file, at).map(Some)
    }

    /// Bytes read of the file that is open, and its size.
    pub fn progress(&self) -> Option<(u64, u64)> {
        let (file, position) = self.open.as_ref()?;
        Some((position.offset, file.metadata().ok()?.len()))
    }

    /// The next lines; `None` when there is nothing new. The same again until [`Tail::accept`].
    ///
    /// # Errors
    /// Those of reading; the next call tries again.
    pub fn read(&mut self) -> io::Result<Option<Chunk>> {
        self.find()?;
        let Some((file, mut at)) = self.open.take() else {
            return Ok(None);
        };
        let found = self.read_on(&file, &mut at);
        // Also when it went wrong: the next call goes on where this one was.
        self.open = Some((file, at));
        match found? {
            Found::Chunk(chunk) => Ok(Some(chunk)),
            Found::Nothing => Ok(None),
            Found::Successor(next) => {
                info!(input = %self.path.display(), "the input was rotated");
                self.scanned = 0;
                let at = position(&next, 0)?;
                self.open = Some((next, at));
                self.read()
            }
        }
    }

    /// What comes behind a position, which is set back when the file was truncated.
    fn read_on(&mut self, file: &File, at: &mut Position) -> io::Result<Found> {
        if !is_as_it_was(file, at)? {
            warn!(input = %self.path.display(), read = at.offset, "the input was truncated, it is read from its beginning");
            self.scanned = 0;
            *at = position(file, 0)?;
        }
        // Asked before reading: what is written before the rename is read before the new file.
        let left = self.was_left(file)?;
        match self.cut(file, at, left)? {
            Some(chunk) => Ok(Found::Chunk(chunk)),
            None if left => self.successor(file).map(Found::Successor),
            None => Ok(Found::Nothing),
        }
    }

    /// Goes on behind a chunk.
    pub fn accept(&mut self, position: Position) {
        self.scanned = 0;
        if let Some((_, at)) = &mut self.open {
            *at = position;
        }
    }

    /// Makes sure that a file is open, when there is one.
    fn find(&mut self) -> io::Result<()> {
        if self.open.is_some() {
            return Ok(());
        }
        // Kept until something is open: the old one may come back.
        let Some(saved) = self.saved.clone() else {
            return self.find_new().map(drop);
        };
        let known = match open(&self.path)? {
            Some(file) if is_same(&file, &saved)? => Some((file, saved.clone())),
            _ => self.renamed(&saved)?,
        };
        if known.is_some() {
            self.open = known;
        } else if self.find_new()? {
            warn!(
                input = %self.path.display(), read = saved.offset,
                "the input is another file than before, it is read from its beginning"
            );
        } else {
            return Ok(());
        }
        self.saved = None;
        Ok(())
    }

    /// Opens what is at the path now. Whether there is anything.
    fn find_new(&mut self) -> io::Result<bool> {
        let Some(file) = open(&self.path)? else {
            return Ok(false);
        };
        let at = position(&file, 0)?;
        self.open = Some((file, at));
        Ok(true)
    }

    /// The file that was read, under another name in the same folder, and where to go on in it: at its beginning when
    /// it was truncated before it was renamed.
    fn renamed(&self, saved: &Position) -> io::Result<Option<(File, Position)>> {
        let entries = match fs::read_dir(folder_of(&self.path)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.ino() != saved.inode || !self.is_alike(&entry) {
                continue;
            }
            if let Some(file) = open(&entry.path())? {
                let at = if is_as_it_was(&file, saved)? {
                    saved.clone()
                } else {
                    position(&file, 0)?
                };
                return Ok(Some((file, at)));
            }
        }
        Ok(None)
    }

    /// Whether a file may have been the input once: its name begins as the input's does.
    fn is_alike(&self, entry: &fs::DirEntry) -> bool {
        let stem = self.path.file_stem().unwrap_or_default();
        let name = entry.file_name();
        name.as_encoded_bytes().starts_with(stem.as_encoded_bytes())
    }

    /// The file that came after this one: at the path, or renamed itself by now. A renamed one is known by its name,
    /// which begins as the input's does, and by when it was made.
    fn successor(&self, file: &File) -> io::Result<File> {
        let newest = open(&self.path)?.ok_or(io::ErrorKind::NotFound)?;
        let made = |metadata: &Metadata| metadata.created().ok();
        let (Some(mine), Some(last)) = (made(&file.metadata()?), made(&newest.metadata()?)) else {
            return Ok(newest);
        };
        let mut next = (last, newest);
        for entry in fs::read_dir(folder_of(&self.path))? {
            let entry = entry?;
            if let Ok(metadata) = entry.metadata()
                && self.is_alike(&entry)
                && metadata.is_file()
                && let Some(when) = made(&metadata)
                && when > mine
                && when < next.0
                && let Some(file) = open(&entry.path())?
            {
                next = (when, file);
            }
        }
        Ok(next.1)
    }

    /// Whether the path leads to another file by now, or to none.
    fn was_left(&self, file: &File) -> io::Result<bool> {
        let mine = file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) != (mine.dev(), mine.ino())),
            // A file that is moved before its successor is made goes on until that is there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads and splits; of a file that was left the last line counts as it is.
    fn cut(&mut self, file: &File, at: &Position, left: bool) -> io::Result<Option<Chunk>> {
        let most = self.limits.bytes.max(self.limits.line + 1);
        let reach = self.reach.min(self.limits.bytes);
        let mut bytes = read_at(file, at.offset, reach)?;
        let (mut lines, mut used) = self.split(&bytes);
        if lines.is_empty() && bytes.len() == reach {
            bytes = read_at(file, at.offset, most)?;
            (lines, used) = self.split(&bytes);
        }
        // What lies behind the last line is read again: about as much is asked for as lines are taken of.
        let next = if lines.len() == self.limits.lines {
            used + used / 8
        } else {
            reach * 2
        };
        self.reach = next.max(LEAST);
        if !lines.is_empty() {
            return self.chunk(file, lines, at.offset + used as u64);
        }
        if bytes.len() > self.limits.line {
            return self.skip(file, at, &bytes, left);
        }
        let finished = left || self.is_quiet(&file.metadata()?);
        if bytes.is_empty() || !finished {
            return Ok(None);
        }
        let end = at.offset + bytes.len() as u64;
        self.chunk(file, vec![Line::Whole(bytes)], end)
    }

    /// The whole lines at the beginning, and how many bytes they take.
    fn split(&self, bytes: &[u8]) -> (Vec<Line>, usize) {
        let (mut lines, mut used) = (Vec::new(), 0);
        while lines.len() < self.limits.lines {
            let rest = &bytes[used..];
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                break;
            };
            lines.push(self.line(&rest[..end], end as u64));
            used += end + 1;
        }
        (lines, used)
    }

    /// Looks for the end of a line over the limit, a piece at a time.
    fn skip(
        &mut self,
        file: &File,
        at: &Position,
        beginning: &[u8],
        left: bool,
    ) -> io::Result<Option<Chunk>> {
        let mut from = self.scanned.max(at.offset + beginning.len() as u64);
        loop {
            let piece = read_at(file, from, self.limits.bytes.max(1))?;
            if let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                let end = from + end as u64;
                let line = self.line(beginning, end - at.offset);
                return self.chunk(file, vec![line], end + 1);
            }
            from += piece.len() as u64;
            self.scanned = from;
            if piece.is_empty() {
                if !left {
                    return Ok(None);
                }
                let line = self.line(beginning, from - at.offset);
                return self.chunk(file, vec![line], from);
            }
        }
    }

    fn line(&self, bytes: &[u8], length: u64) -> Line {
        if length > self.limits.line as u64 {
            Line::TooLong(bytes[..self.limits.line.min(bytes.len())].to_vec(), length)
        } else {
            Line::Whole(bytes.to_vec())
        }
    }

    #[expect(clippy::unused_self, reason = "reads as the last step of its callers")]
    fn chunk(&self, file: &File, lines: Vec<Line>, end: u64) -> io::Result<Option<Chunk>> {
        let position = position(file, end)?;
        Ok(Some(Chunk { lines, position }))
    }

    fn is_quiet(&self, metadata: &Metadata) -> bool {
        let Some(quiet) = self.limits.quiet else {
            return false;
        };
        let changed = metadata.modified().unwrap_or(SystemTime::now());
        SystemTime::now()
            .duration_since(changed)
            .is_ok_and(|since| since >= quiet)
    }
}

/// The file at a path, when there is one.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) if file.metadata()?.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where a file stands that was read up to `offset`.
fn position(file: &File, offset: u64) -> io::Result<Position> {
    let metadata = file.metadata()?;
    let head = offset.min(HEAD);
    Ok(Position {
        device: metadata.dev(),
        inode: metadata.ino(),
        offset,
        head,
        checksum: checksum(file, head)?,
    })
}

fn checksum(file: &File, head: u64) -> io::Result<u32> {
    Ok(crc32c::crc32c(&read_at(
        file,
        0,
        usize::try_from(head).unwrap_or(0),
    )?))
}

/// Whether a file that was found is the one of the position.
fn is_same(file: &File, at: &Position) -> io::Result<bool> {
    Ok(file.metadata()?.ino() == at.inode && checksum(file, at.head)? == at.checksum)
}

/// Whether an open file still has what was read of it.
fn is_as_it_was(file: &File, at: &Position) -> io::Result<bool> {
    Ok(file.metadata()?.len() >= at.offset && checksum(file, at.head)? == at.checksum)
}

/// Up to `most` bytes from `offset`.
fn read_at(file: &File, offset: u64, most: usize) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len().saturating_sub(offset);
    let size = usize::try_from(length).unwrap_or(usize::MAX).min(most);
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests;
