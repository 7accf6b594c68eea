//! Splits the bytes after an offset of a file into lines.

use std::fs::File;
use std::io;
use std::time::Duration;

use rustix::fs::SeekFrom;
use tracing::warn;

use super::position::read_at;

/// Fewer bytes are not worth a read of their own.
const LEAST: usize = 64 * 1024;

/// This many NUL bytes at the beginning of a file are a gap that a writer left after a truncation.
const GAP: usize = 4;

/// Bounds of one read.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest line in bytes; of a longer one only the beginning is kept.
    pub line: usize,
    /// Most lines of a chunk.
    pub lines: usize,
    /// Most bytes of a chunk, unless one line is longer.
    pub bytes: usize,
    /// Idle time after which a last line counts without its newline.
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

/// Lines, and the offset behind the last of them.
pub(super) type Cut = (Vec<Line>, u64);

/// Position in one file.
#[derive(Debug)]
pub(super) struct Cutter {
    /// Bytes of one read.
    reach: usize,
    /// Position of the search for the end of a line over the limit.
    scanned: u64,
}

impl Default for Cutter {
    fn default() -> Self {
        Self {
            reach: LEAST,
            scanned: 0,
        }
    }
}

impl Cutter {
    /// Forgets where the search for the end of a long line was, because the file is at another offset.
    pub(super) fn moved(&mut self) {
        self.scanned = 0;
    }

    /// The next lines behind `offset`; of a finished file the last line counts as it is.
    pub(super) fn cut(
        &mut self,
        file: &File,
        offset: u64,
        limits: &Limits,
        is_finished: bool,
    ) -> io::Result<Option<Cut>> {
        let Some(start) = behind_gap(file, offset)? else {
            return Ok(None);
        };
        if start > offset {
            warn!(bytes = start - offset, offset, "sparse gap skipped");
            self.scanned = 0;
        }
        let most = limits.bytes.max(limits.line + 1);
        let reach = self.reach.min(limits.bytes);
        let mut bytes = read_at(file, start, reach)?;
        let (mut lines, mut used) = split(&bytes, limits);
        if lines.is_empty() && bytes.len() == reach {
            bytes = read_at(file, start, most)?;
            (lines, used) = split(&bytes, limits);
        }
        // Bytes behind the last line are read again, so a read is about as long as the lines that are taken.
        let next = if lines.len() == limits.lines {
            used + used / 8
        } else {
            reach * 2
        };
        self.reach = next.max(LEAST);
        if !lines.is_empty() {
            return Ok(Some((lines, start + used as u64)));
        }
        if bytes.len() > limits.line {
            return self.skip(file, start, &bytes, limits, is_finished);
        }
        if bytes.is_empty() || !is_finished {
            return Ok(None);
        }
        let end = start + bytes.len() as u64;
        Ok(Some((vec![Line::Whole(bytes)], end)))
    }

    /// Looks for the end of a line over the limit, a piece at a time.
    fn skip(
        &mut self,
        file: &File,
        start: u64,
        beginning: &[u8],
        limits: &Limits,
        is_finished: bool,
    ) -> io::Result<Option<Cut>> {
        let mut from = self.scanned.max(start + beginning.len() as u64);
        loop {
            let piece = read_at(file, from, limits.bytes.max(1))?;
            if let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                let end = from + end as u64;
                let line = line(beginning, end - start, limits);
                return Ok(Some((vec![line], end + 1)));
            }
            from += piece.len() as u64;
            self.scanned = from;
            if piece.is_empty() {
                return Ok(is_finished.then(|| (vec![line(beginning, from - start, limits)], from)));
            }
        }
    }
}

/// The whole lines at the beginning, and how many bytes they take. A possible gap is left for the next cut.
fn split(bytes: &[u8], limits: &Limits) -> (Vec<Line>, usize) {
    let (mut lines, mut used) = (Vec::new(), 0);
    while lines.len() < limits.lines {
        let rest = &bytes[used..];
        if used > 0 && rest.starts_with(&[0; GAP]) {
            break;
        }
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            break;
        };
        lines.push(line(&rest[..end], end as u64, limits));
        used += end + 1;
    }
    (lines, used)
}

fn line(bytes: &[u8], length: u64, limits: &Limits) -> Line {
    if length > limits.line as u64 {
        Line::TooLong(bytes[..limits.line.min(bytes.len())].to_vec(), length)
    } else {
        Line::Whole(bytes.to_vec())
    }
}

/// Where text begins at or after an offset: behind a gap that a writer left, which continues at its old offset after the
/// file was truncated. NUL bytes are a gap at the beginning of a file, and elsewhere where the file system has a hole
/// among them. `None` while nothing but a gap is there.
fn behind_gap(file: &File, offset: u64) -> io::Result<Option<u64>> {
    if read_at(file, offset, GAP)? != [0; GAP] {
        return Ok(Some(offset));
    }
    let mut at = offset;
    let text = loop {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => at = data,
            Err(rustix::io::Errno::NXIO) => return Ok(None),
            // The file system does not know holes.
            Err(_) => {}
        }
        let piece = read_at(file, at, LEAST)?;
        if piece.is_empty() {
            return Ok(None);
        }
        if let Some(text) = piece.iter().position(|byte| *byte != 0) {
            break at + text as u64;
        }
        at += piece.len() as u64;
    };
    let hole = rustix::fs::seek(file, SeekFrom::Hole(offset));
    let is_gap = offset == 0 || hole.is_ok_and(|hole| hole < text);
    Ok(Some(if is_gap { text } else { offset }))
}

/// Behind the last newline.
pub(super) fn end_of_lines(file: &File) -> io::Result<u64> {
    let mut end = file.metadata()?.len();
    while end > 0 {
        let length = (LEAST as u64).min(end);
        let piece = read_at(file, end - length, usize::try_from(length).unwrap_or(LEAST))?;
        if let Some(newline) = piece.iter().rposition(|byte| *byte == b'\n') {
            return Ok(end - length + newline as u64 + 1);
        }
        end -= length;
    }
    Ok(0)
}
