//! Checks that all segments exist and are long enough, by their names, lengths and headers alone.
//!
//! A copy that was cut off or a removed file loses records that no later frame refers to. Both are found before the log
//! is read for replay and before anything is changed, so that missing files can still be put back.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::Path;

use super::Position;
use super::segment::{self, HEADER_BYTES, Header, Whole};

/// The part of a segment that the state still needs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Needed {
    /// Bytes of messages.
    pub(crate) bytes: u64,
    /// The end of the last of them in the file.
    pub(crate) end: u32,
}

/// A segment that is not as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lacking {
    pub(crate) segment: u32,
    /// `segment 7 of the log is missing`.
    pub(crate) what: String,
    /// Bytes of messages that need it, as far as they are known.
    pub(crate) bytes: u64,
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            0 => f.write_str(&self.what),
            bytes => write!(f, "{} ({bytes} bytes of messages)", self.what),
        }
    }
}

/// The segments of a folder: their lengths and headers.
pub(super) struct Segments {
    sizes: BTreeMap<u32, u32>,
    /// Absent for a file that is something else.
    headers: BTreeMap<u32, Option<Header>>,
    /// The log that most of them belong to; absent for new logs and those of Towpath 0.1.0.
    pub(super) log: Option<u64>,
}

impl Segments {
    /// Reads the headers of segments of these lengths.
    pub(super) fn read(folder: &Path, sizes: &BTreeMap<u32, u32>) -> io::Result<Self> {
        let mut headers = BTreeMap::new();
        let mut logs: BTreeMap<u64, usize> = BTreeMap::new();
        for number in sizes.keys() {
            let header = segment::read_header(folder, *number)?;
            headers.insert(*number, header);
            if let Some(Header::Intact(Some(Whole { log, .. }))) = header {
                *logs.entry(log).or_default() += 1;
            }
        }
        let log = logs.into_iter().max_by_key(|(_, count)| *count);
        Ok(Self {
            sizes: sizes.clone(),
            headers,
            log: log.map(|(log, _)| log),
        })
    }

    /// Segments that replay from this place needs and that are missing, cut short or other ones.
    ///
    /// Without a place the log must begin with segment 1.
    pub(super) fn behind(&self, from: Option<Position>) -> Vec<Lacking> {
        let newest = self.sizes.keys().next_back().copied().unwrap_or_default();
        let start = from.unwrap_or(Position {
            segment: 1,
            offset: HEADER_BYTES,
        });
        if from.is_none() && self.sizes.is_empty() {
            // A new store.
            return Vec::new();
        }
        let numbers = start.segment..=newest.max(start.segment);
        let looked = numbers.map(|number| {
            let end = match number == start.segment {
                true => start.offset,
                false => HEADER_BYTES,
            };
            self.look(number, Needed { bytes: 0, end })
        });
        looked.flatten().collect()
    }

    /// Segments that hold needed messages and are missing, cut short or other ones.
    pub(super) fn lacking(&self, needed: &BTreeMap<u32, Needed>) -> Vec<Lacking> {
        let looked = needed.iter();
        let looked = looked.map(|(number, needed)| self.look(*number, *needed));
        looked.flatten().collect()
    }

    /// The fault in the header or the length of an existing segment.
    pub(super) fn fault(&self, number: u32) -> Option<String> {
        let size = self.sizes.get(&number)?;
        let Some(header) = self.headers.get(&number)? else {
            return Some(format!("segment {number} of the log is another file"));
        };
        match header {
            Header::Other(other) => Some(format!(
                "segment {number} of the log is a copy of segment {other}"
            )),
            Header::Intact(Some(whole)) if Some(whole.log) != self.log => Some(format!(
                "segment {number} of the log belongs to another store"
            )),
            Header::Intact(Some(whole)) if *size < whole.size => Some(format!(
                "segment {number} of the log has {size} of {} bytes",
                whole.size
            )),
            _ => None,
        }
    }

    fn look(&self, number: u32, needed: Needed) -> Option<Lacking> {
        let what = match self.sizes.get(&number) {
            None => format!("segment {number} of the log is missing"),
            Some(size) => match self.fault(number) {
                Some(fault) => fault,
                None if *size < needed.end => format!(
                    "segment {number} of the log has {size} bytes, and records reach to {}",
                    needed.end
                ),
                None => return None,
            },
        };
        Some(Lacking {
            segment: number,
            what,
            bytes: needed.bytes,
        })
    }
}
