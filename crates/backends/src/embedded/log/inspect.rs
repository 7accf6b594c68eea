//! Reads a log without changing it: every frame, and the fault of each frame that cannot be read.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use towpath_core::{Error, Result};

use super::Position;
use super::frame::{self, Frame};
use super::search::Search;
use super::segment::{self, HEADER_BYTES, Header};
use super::whole::Segments;

/// The contents of a log.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    /// Segments with their lengths.
    pub(crate) sizes: BTreeMap<u32, u32>,
    /// Bytes that were read.
    pub(crate) bytes: u64,
    pub(crate) records: u64,
    /// Acknowledged data that is missing or cannot be read.
    pub(crate) faults: Vec<String>,
    /// Deviations that the next start fixes.
    pub(crate) notes: Vec<String>,
}

/// Reads the log, and replays the records behind `from`. Segments before it are read only when all are wanted.
///
/// # Errors
/// `Corrupt` for a segment of a newer format, those of `replay`, `Unavailable` for I/O.
pub(crate) fn inspect(
    folder: &Path,
    from: Option<Position>,
    all: bool,
    replay: &mut dyn FnMut(Position, &[u8]) -> Result<()>,
) -> Result<Inspected> {
    let io = |error: io::Error| Error::unavailable("the log cannot be read").with_source(error);
    let mut found = Inspected::default();
    for number in segment::list(folder).map_err(io)? {
        found
            .sizes
            .insert(number, segment::size(folder, number).map_err(io)?);
    }
    let start = from.unwrap_or(Position {
        segment: 1,
        offset: HEADER_BYTES,
    });
    let newest = found.sizes.keys().next_back().copied().unwrap_or_default();
    for number in start.segment..=newest.max(start.segment) {
        if !found.sizes.contains_key(&number) {
            let text = format!("segment {number} of the log is missing");
            found.faults.push(text);
        }
    }
    let segments = Segments::read(folder, &found.sizes).map_err(io)?;
    if !all {
        let numbers = found
            .sizes
            .keys()
            .take_while(|number| **number < start.segment);
        found
            .faults
            .extend(numbers.filter_map(|number| segments.fault(*number)));
    }
    let mut walk = Walk {
        segments,
        start,
        end: start,
        vouched: Position::default(),
        sequence: None,
        unreadable: Vec::new(),
        replay,
        found,
    };
    let numbers: Vec<u32> = walk.found.sizes.keys().copied().collect();
    let mut before = None;
    for number in numbers {
        if before != Some(number - 1) {
            walk.sequence = None;
        }
        if all || number >= start.segment {
            walk.segment(folder, number)?;
            before = Some(number);
        }
    }
    Ok(walk.finish())
}

struct Walk<'a> {
    segments: Segments,
    start: Position,
    /// Behind the last intact frame.
    end: Position,
    /// The synced position that the last intact frame states.
    vouched: Position,
    /// Of the next frame, when it is known.
    sequence: Option<u32>,
    /// Ranges without an intact frame.
    unreadable: Vec<(Position, usize)>,
    replay: &'a mut dyn FnMut(Position, &[u8]) -> Result<()>,
    found: Inspected,
}

impl Walk<'_> {
    fn segment(&mut self, folder: &Path, number: u32) -> Result<()> {
        let bytes = match fs::read(segment::path(folder, number)) {
            Ok(bytes) => bytes,
            Err(error) => {
                let text = format!("segment {number} of the log cannot be read: {error}");
                self.found.faults.push(text);
                self.sequence = None;
                return Ok(());
            }
        };
        self.found.bytes += bytes.len() as u64;
        self.header(number, &bytes)?;
        let mut search = None;
        let mut place = Position {
            segment: number,
            offset: HEADER_BYTES,
        };
        loop {
            let rest = bytes.get(place.offset as usize..).unwrap_or_default();
            if let Some(frame) = frame::read(rest, place) {
                self.frame(place, frame, rest)?;
                place = self.end;
                continue;
            }
            if rest.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            let search = search.get_or_insert_with(|| Search::new(number, &bytes));
            let next = search.next(place.offset).map(|(found, _)| found);
            let until = next.map_or(bytes.len(), |found| found.offset as usize);
            self.unreadable.push((place, until - place.offset as usize));
            self.sequence = None;
            match next {
                Some(found) => place = found,
                None => return Ok(()),
            }
        }
    }

    fn header(&mut self, number: u32, bytes: &[u8]) -> Result<()> {
        let length = bytes.len();
        let fault = match segment::check_header(bytes, number) {
            Header::Newer(version) => {
                return Err(Error::corrupt(format!(
                    "segment {number} was written by a newer Towpath (format {version}); this one reads up to {}",
                    segment::VERSION
                )));
            }
            _ if self.segments.fault(number).is_some() => {
                self.segments.fault(number).unwrap_or_default()
            }
            Header::Damaged => format!("the header of segment {number} of the log is damaged"),
            Header::Intact(Some(whole)) if whole.size as usize != length => {
                format!(
                    "segment {number} of the log has {length} of {} bytes",
                    whole.size
                )
            }
            _ if number == self.start.segment && length < self.start.offset as usize => format!(
                "segment {number} of the log has {length} bytes, and records reach to {}",
                self.start.offset
            ),
            Header::Intact(_) | Header::Other(_) => return Ok(()),
        };
        self.found.faults.push(fault);
        Ok(())
    }

    fn frame(&mut self, place: Position, frame: Frame<'_>, rest: &[u8]) -> Result<()> {
        if self.sequence.is_some_and(|next| next != frame.sequence) {
            self.unreadable.push((self.end, 0));
        }
        let used = frame::HEADER_BYTES + frame.body.len();
        let padding = rest.get(used..frame.size).unwrap_or_default();
        if padding.iter().any(|byte| *byte != 0) {
            let text = format!("the padding of the record at {place} of the log is damaged");
            self.found.faults.push(text);
        }
        self.sequence = Some(frame.sequence.wrapping_add(1));
        self.vouched = frame.synced;
        self.end = place.plus(u32::try_from(frame.size).unwrap_or(u32::MAX));
        if frame.body.is_empty() {
            return Ok(());
        }
        self.found.records += 1;
        if place < self.start {
            return Ok(());
        }
        let body = place.plus(u32::try_from(frame::HEADER_BYTES).unwrap_or(0));
        (self.replay)(body, frame.body)
    }

    /// A range that no later frame knows to have been synced was never acknowledged.
    fn finish(self) -> Inspected {
        let mut found = self.found;
        for (place, bytes) in self.unreadable {
            if place >= self.vouched {
                found.notes.push(format!(
                    "a torn tail at {place} of the log, not acknowledged; the next start cuts it"
                ));
            } else if bytes == 0 {
                let text = format!("records of the log are missing at {place}");
                found.faults.push(text);
            } else {
                let text = format!("{bytes} bytes of the log at {place} are damaged");
                found.faults.push(text);
            }
        }
        found
    }
}
