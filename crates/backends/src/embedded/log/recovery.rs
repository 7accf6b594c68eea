//! Reading the log after a stop: clean, torn, or damaged.
//!
//! A place without an intact frame is
//! - the end, when nothing but zeros follows;
//! - a torn tail, when no later frame knows it to have been synced: it was never acknowledged, and is cut;
//! - damage, when a later frame says it was synced, or its sequence number says that something is missing:
//!   the range is saved, reported, and passed over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use towpath_core::{Error, Result};

use super::frame::{self, ALIGN};
use super::segment::{self, HEADER_BYTES, Header, Segment};
use super::{Options, Position};

/// What opening the log found.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recovery {
    /// Records replayed.
    pub(crate) records: u64,
    /// Where a torn tail was cut, and how many bytes it had.
    pub(crate) cut: Option<(Position, u64)>,
    /// Ranges that were acknowledged once and cannot be read.
    pub(crate) damaged: Vec<Damage>,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

/// A range that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Where it starts.
    pub(crate) start: Position,
    /// How long it is; 0 for a segment that is not there at all.
    pub(crate) bytes: u64,
    /// Where its bytes were saved.
    pub(crate) saved_as: Option<PathBuf>,
}

pub(super) struct Recovered {
    pub(super) segments: BTreeMap<u32, Segment>,
    pub(super) spare: Option<Segment>,
    pub(super) end: Position,
    pub(super) sequence: u32,
    pub(super) report: Recovery,
}

type Replay<'a> = &'a mut dyn FnMut(Position, &[u8]) -> Result<()>;

pub(super) fn recover(
    options: &Options,
    from: Option<Position>,
    replay: Replay<'_>,
) -> Result<Recovered> {
    let began = Instant::now();
    let io = |error: io::Error| Error::unavailable("the log cannot be read").with_source(error);
    fs::create_dir_all(&options.folder).map_err(io)?;
    let numbers = segment::list(&options.folder).map_err(io)?;
    let first = from.map_or_else(
        || numbers.first().copied().unwrap_or(1),
        |from| from.segment,
    );
    let start = from.unwrap_or(Position {
        segment: first,
        offset: HEADER_BYTES,
    });
    let mut scan = Scan {
        options,
        later: numbers
            .iter()
            .copied()
            .filter(|number| *number >= first)
            .collect(),
        segments: BTreeMap::new(),
        end: start,
        sequence: None,
        report: Recovery::default(),
    };
    for number in &numbers {
        scan.segments.insert(
            *number,
            segment::open(&options.folder, *number).map_err(io)?,
        );
    }
    scan.run(start, replay)?;
    scan.finish(numbers.is_empty(), began)
}

/// Whether `bytes`, taken for the first segment of a log, can be read without harm. Gives the number of
/// intact frames; for the fuzzer.
#[doc(hidden)]
pub fn scan_for_fuzzing(bytes: &[u8]) -> usize {
    let mut place = Position {
        segment: 1,
        offset: HEADER_BYTES,
    };
    let mut intact = 0;
    while let Some((found, frame)) = next_intact(bytes, place) {
        intact += 1;
        place = found.plus(u32::try_from(frame.size).unwrap_or(u32::MAX));
    }
    intact
}

struct Scan<'a> {
    options: &'a Options,
    later: Vec<u32>,
    segments: BTreeMap<u32, Segment>,
    end: Position,
    /// Of the next frame, once one was seen.
    sequence: Option<u32>,
    report: Recovery,
}

impl Scan<'_> {
    fn run(&mut self, start: Position, replay: Replay<'_>) -> Result<()> {
        let mut expected = start.segment;
        for number in self.later.clone() {
            for missing in expected..number {
                self.damage(
                    Position {
                        segment: missing,
                        offset: 0,
                    },
                    0,
                    None,
                );
            }
            expected = number + 1;
            let bytes = self.load(number)?;
            let offset = if number == start.segment {
                start.offset
            } else {
                HEADER_BYTES
            };
            if !self.segment(
                Position {
                    segment: number,
                    offset,
                },
                &bytes,
                replay,
            )? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Replays one segment. False when the log was cut in it.
    fn segment(&mut self, start: Position, bytes: &[u8], replay: Replay<'_>) -> Result<bool> {
        let mut place = start;
        loop {
            let rest = bytes.get(place.offset as usize..).unwrap_or_default();
            if let Some(frame) = frame::read(rest, place) {
                if self
                    .sequence
                    .is_some_and(|expected| expected != frame.sequence)
                {
                    // Frames before this one are gone: zeros at the end of the segment before, most likely.
                    self.damage(self.end, 0, None);
                }
                self.accept(place, frame, replay)?;
                place = self.end;
                continue;
            }
            if rest.iter().all(|byte| *byte == 0) {
                return Ok(true);
            }
            let next = next_intact(bytes, place).map(|(found, _)| found);
            if self.knows_synced(place, bytes)? {
                let until = next.map_or(bytes.len(), |found| found.offset as usize);
                let saved = self.save("damaged", place, &bytes[place.offset as usize..until])?;
                self.damage(place, (until - place.offset as usize) as u64, Some(saved));
                self.sequence = None;
                match next {
                    Some(found) => place = found,
                    None => return Ok(true),
                }
            } else {
                self.cut(place, rest)?;
                return Ok(false);
            }
        }
    }

    fn accept(
        &mut self,
        place: Position,
        frame: frame::Frame<'_>,
        replay: Replay<'_>,
    ) -> Result<()> {
        self.sequence = Some(frame.sequence.wrapping_add(1));
        self.end = place.plus(u32::try_from(frame.size).unwrap_or(u32::MAX));
        if frame.body.is_empty() {
            return Ok(());
        }
        self.report.records += 1;
        replay(
            place.plus(u32::try_from(frame::HEADER_BYTES).unwrap_or(0)),
            frame.body,
        )
    }

    /// Whether a later frame says that this place had been synced.
    fn knows_synced(&self, place: Position, bytes: &[u8]) -> Result<bool> {
        let mut at = place;
        while let Some((found, frame)) = next_intact(bytes, at) {
            if frame.synced > place {
                return Ok(true);
            }
            at = found.plus(u32::try_from(frame.size).unwrap_or(u32::MAX));
        }
        for number in self.later.iter().filter(|number| **number > place.segment) {
            let bytes = self.load(*number)?;
            let mut at = Position {
                segment: *number,
                offset: HEADER_BYTES,
            };
            while let Some((found, frame)) = next_intact(&bytes, at) {
                if frame.synced > place {
                    return Ok(true);
                }
                at = found.plus(u32::try_from(frame.size).unwrap_or(u32::MAX));
            }
        }
        Ok(false)
    }

    fn load(&self, number: u32) -> Result<Vec<u8>> {
        let path = segment::path(&self.options.folder, number);
        let bytes = fs::read(&path).map_err(|error| {
            Error::unavailable(format!("segment {number} cannot be read")).with_source(error)
        })?;
        match segment::check_header(&bytes, number) {
            Header::Intact => {}
            Header::Newer(version) => {
                return Err(Error::corrupt(format!(
                    "segment {number} was written by a newer Towpath (format {version}); this one reads up to {}",
                    segment::VERSION
                )));
            }
            Header::Damaged => {
                tracing::warn!(
                    segment = number,
                    "the header of a segment was damaged and is written anew"
                );
                if let Some(segment) = self.segments.get(&number) {
                    segment::mend_header(&segment.file, number).map_err(|error| {
                        Error::unavailable("a header cannot be mended").with_source(error)
                    })?;
                }
            }
        }
        Ok(bytes)
    }

    /// Takes away a tail that was never acknowledged; what there was of it is saved all the same.
    fn cut(&mut self, place: Position, rest: &[u8]) -> Result<()> {
        let used = rest.len() - rest.iter().rev().take_while(|byte| **byte == 0).count();
        self.save("cut", place, &rest[..used])?;
        self.report.cut = Some((place, used as u64));
        let io =
            |error: io::Error| Error::unavailable("a torn tail cannot be cut").with_source(error);
        // Later segments go first: once the place is zeros again nothing behind it may be found by the next start.
        for number in self
            .later
            .iter()
            .copied()
            .filter(|number| *number > place.segment)
        {
            self.segments.remove(&number);
            fs::remove_file(segment::path(&self.options.folder, number)).map_err(io)?;
        }
        segment::sync_folder(&self.options.folder).map_err(io)?;
        if let Some(segment) = self.segments.get(&place.segment) {
            segment
                .file
                .write_all_at(&vec![0; used], u64::from(place.offset))
                .map_err(io)?;
            segment.file.sync_data().map_err(io)?;
        }
        self.end = self.end.max(place);
        Ok(())
    }

    fn save(&self, what: &str, place: Position, bytes: &[u8]) -> Result<PathBuf> {
        let folder = &self.options.quarantine;
        let path = folder.join(format!("{what}-{:010}-{}.bin", place.segment, place.offset));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(&path, bytes))
            .and_then(|()| fs::File::open(&path)?.sync_all())
            .and_then(|()| segment::sync_folder(folder))
            .map_err(|error| {
                Error::unavailable(format!("`{}` cannot be written", path.display()))
                    .with_source(error)
            })?;
        Ok(path)
    }

    fn damage(&mut self, start: Position, bytes: u64, saved_as: Option<PathBuf>) {
        tracing::error!(%start, bytes, ?saved_as, "a range of the log is damaged and was passed over");
        self.report.damaged.push(Damage {
            start,
            bytes,
            saved_as,
        });
    }

    /// Makes what was read durable and says where to go on.
    fn finish(mut self, empty: bool, began: Instant) -> Result<Recovered> {
        let io =
            |error: io::Error| Error::unavailable("the log cannot be opened").with_source(error);
        // What a killed process wrote may still be in memory only, and is about to be acted on.
        for segment in self
            .segments
            .range(self.end.segment..)
            .map(|(_, segment)| segment)
        {
            segment.file.sync_data().map_err(io)?;
        }
        if !self.segments.contains_key(&self.end.segment) {
            if !empty {
                self.damage(
                    Position {
                        segment: self.end.segment,
                        offset: 0,
                    },
                    0,
                    None,
                );
            }
            let newest = self
                .segments
                .keys()
                .next_back()
                .map_or(0, |newest| newest + 1);
            let number = newest.max(self.end.segment);
            let made = segment::create(&self.options.folder, number, self.options.segment_bytes)
                .map_err(io)?;
            self.segments.insert(number, made);
            self.end = Position {
                segment: number,
                offset: HEADER_BYTES,
            };
        }
        // Behind the last frame there is at most the segment that was prepared.
        let behind: Vec<u32> = self
            .segments
            .range(self.end.segment + 1..)
            .map(|(number, _)| *number)
            .collect();
        let mut spare = None;
        for number in behind {
            let segment = self.segments.remove(&number);
            if number == self.end.segment + 1 {
                spare = segment;
            } else {
                fs::remove_file(segment::path(&self.options.folder, number)).map_err(io)?;
            }
        }
        self.report.elapsed = began.elapsed();
        Ok(Recovered {
            segments: self.segments,
            spare,
            end: self.end,
            sequence: self.sequence.unwrap_or(1),
            report: self.report,
        })
    }
}

/// The first intact frame at or behind `place`.
fn next_intact(bytes: &[u8], place: Position) -> Option<(Position, frame::Frame<'_>)> {
    let mut offset = (place.offset as usize).next_multiple_of(ALIGN);
    while offset < bytes.len() {
        let at = Position {
            segment: place.segment,
            offset: u32::try_from(offset).ok()?,
        };
        if let Some(frame) = frame::read(&bytes[offset..], at) {
            return Some((at, frame));
        }
        offset += ALIGN;
    }
    None
}
