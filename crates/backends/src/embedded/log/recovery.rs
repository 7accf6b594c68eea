//! Reading the log after a stop: clean, torn, or damaged.
//!
//! A place without an intact frame, or before one whose sequence number leaves some out, is
//! - the end, when nothing but zeros follows;
//! - a torn tail, when no later frame knows it to have been synced: it was never acknowledged, and is cut;
//! - damage, when a later frame says it was synced: the range is saved, reported and skipped.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towpath_core::{Error, Result};

use super::files::Files;
use super::frame;
use super::quarantine::Quarantine;
use super::search::Search;
use super::segment::{self, HEADER_BYTES, Header, Segment, Whole};
use super::whole::{Lacking, Needed, Segments};
use super::{Options, Position};
use crate::private;

/// The file in the data folder that accepts the loss of segments, once.
pub(crate) const ACCEPT_LOSS: &str = "accept-loss";

/// The result of opening the log.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recovery {
    /// Records replayed.
    pub(crate) records: u64,
    /// Where a torn tail was cut, and how many bytes it had.
    pub(crate) cut: Option<(Position, u64)>,
    /// Ranges that were acknowledged once and cannot be read.
    pub(crate) damaged: Vec<Damage>,
    /// The oldest segment, when it is not the first and no checkpoint stands for those before it.
    pub(crate) begins_late: Option<u32>,
    /// Segments that are needed and missing, cut short or other ones; their loss was accepted, or follows from damage.
    pub(crate) lacking: Vec<Lacking>,
    /// Duration of the recovery.
    pub(crate) elapsed: Duration,
}

/// A range that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// Where it starts.
    pub(crate) start: Position,
    /// Its length; 0 for missing records.
    pub(crate) bytes: u64,
    /// Where its bytes were saved.
    pub(crate) saved_as: Option<PathBuf>,
}

pub(super) struct Recovered {
    pub(super) log: u64,
    pub(super) files: Files,
    pub(super) spare: Option<Segment>,
    pub(super) end: Position,
    pub(super) sequence: u32,
    pub(super) report: Recovery,
}

type Replay<'a> = &'a mut dyn FnMut(Position, &[u8]) -> Result<()>;

/// The parts of each segment that the replayed state needs.
type NeededOf<'a> = &'a dyn Fn() -> BTreeMap<u32, Needed>;

pub(super) fn recover(
    options: &Options,
    from: Option<Position>,
    replay: Replay<'_>,
    needed: NeededOf<'_>,
) -> Result<Recovered> {
    let began = Instant::now();
    let io = |error: io::Error| Error::unavailable("the log cannot be read").with_source(error);
    segment::make_folder(&options.folder)
        .and_then(|()| private::close_folder(&options.folder))
        .map_err(io)?;
    segment::remove_leftovers(&options.folder).map_err(io)?;
    let mut sizes = BTreeMap::new();
    for number in segment::list(&options.folder).map_err(io)? {
        sizes.insert(number, segment::size(&options.folder, number).map_err(io)?);
    }
    // Before anything is changed, so that missing files can still be put back.
    let segments = Segments::read(&options.folder, &sizes).map_err(io)?;
    let log = segments.log.unwrap_or_else(rand::random);
    let lacking = segments.behind(from);
    if !lacking.is_empty() && !options.accepts_loss {
        return Err(refusal(&options.folder, &lacking));
    }
    let oldest = sizes.keys().next().copied();
    let start = from.unwrap_or(Position {
        segment: oldest.unwrap_or(1),
        offset: HEADER_BYTES,
    });
    let mut scan = Scan {
        options,
        log,
        quarantine: Quarantine::new(options),
        replayed: sizes
            .range(start.segment..)
            .map(|(number, _)| *number)
            .collect(),
        fresh: from.is_none() && sizes.is_empty(),
        files: Files::new(options.folder.clone(), sizes),
        end: start,
        synced: start,
        vouched: None,
        sequence: None,
        report: Recovery {
            begins_late: oldest.filter(|oldest| from.is_none() && *oldest > 1),
            ..Recovery::default()
        },
    };
    if from.is_some() {
        scan.sequence = scan.sequence_at(start)?;
    }
    scan.run(start, replay)?;
    let lost = segments.lacking(&needed());
    // After damage, messages may only seem to be needed: the record that ended them is lost.
    if !lost.is_empty() && !options.accepts_loss && scan.report.damaged.is_empty() {
        return Err(refusal(&options.folder, &lost));
    }
    scan.report.lacking = lacking;
    let known: Vec<u32> = scan.report.lacking.iter().map(|one| one.segment).collect();
    let lost = lost.into_iter().filter(|one| !known.contains(&one.segment));
    scan.report.lacking.extend(lost);
    for Lacking { what, bytes, .. } in &scan.report.lacking {
        tracing::error!(what, bytes, "segment not whole; its records are lost");
    }
    scan.finish(began)
}

/// The error of a log of which a part is missing.
fn refusal(folder: &Path, lacking: &[Lacking]) -> Error {
    const NAMED: usize = 8;
    let mut named: Vec<String> = lacking.iter().take(NAMED).map(Lacking::to_string).collect();
    if lacking.len() > NAMED {
        named.push(format!("and {} more", lacking.len() - NAMED));
    }
    let above = folder.parent().unwrap_or(folder);
    Error::corrupt(format!(
        "files of the store are missing or not whole: {}. Put them back, or restore a backup. To start without \
         them, create the file `{}`: messages in them become dead letters, and records behind them are lost",
        named.join("; "),
        above.join(ACCEPT_LOSS).display()
    ))
}

/// Whether `bytes`, taken for the first segment of a log, can be read without harm. Gives the number of
/// intact frames; for the fuzzer.
#[doc(hidden)]
pub fn scan_for_fuzzing(bytes: &[u8]) -> usize {
    Search::new(1, bytes).frames(HEADER_BYTES).count()
}

struct Scan<'a> {
    options: &'a Options,
    /// Which log this is.
    log: u64,
    quarantine: Quarantine<'a>,
    /// The segments to replay.
    replayed: Vec<u32>,
    /// There was nothing: a new store.
    fresh: bool,
    files: Files,
    /// Behind the last intact frame.
    end: Position,
    /// The synced position that the last intact frame states.
    synced: Position,
    /// The synced position that the last intact frame of all segments states, once it was searched.
    vouched: Option<Position>,
    /// Of the next frame, when it is known.
    sequence: Option<u32>,
    report: Recovery,
}

impl Scan<'_> {
    fn run(&mut self, start: Position, replay: Replay<'_>) -> Result<()> {
        let mut expected = start.segment;
        for number in self.replayed.clone() {
            for segment in expected..number {
                self.damage(Position { segment, offset: 0 }, 0, None);
            }
            expected = number + 1;
            let offset = if number == start.segment {
                start.offset
            } else {
                HEADER_BYTES
            };
            let place = Position {
                segment: number,
                offset,
            };
            let bytes = self.load(number)?;
            if bytes.len() < offset as usize {
                // A segment by its name was whole once.
                self.damage(place, 0, None);
            } else if !self.segment(place, &bytes, replay)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Replays one segment. False when the log was cut in it, or before it.
    fn segment(&mut self, start: Position, bytes: &[u8], replay: Replay<'_>) -> Result<bool> {
        let mut place = start;
        let mut search = None;
        loop {
            let rest = bytes.get(place.offset as usize..).unwrap_or_default();
            if let Some(frame) = frame::read(rest, place) {
                // Zeros at the end of the segment before: its last frames, or nothing.
                let missing = place != self.end
                    && self
                        .sequence
                        .is_some_and(|expected| expected != frame.sequence);
                if missing && self.vouched()? > self.end {
                    self.damage(self.end, 0, None);
                } else if missing {
                    self.cut(self.end)?;
                    return Ok(false);
                }
                self.accept(place, frame, replay)?;
                place = self.end;
                continue;
            }
            if rest.iter().all(|byte| *byte == 0) {
                return Ok(true);
            }
            if self.vouched()? <= place {
                self.cut(place)?;
                return Ok(false);
            }
            let search = search.get_or_insert_with(|| Search::new(place.segment, bytes));
            let next = search.next(place.offset).map(|(found, _)| found);
            let until = next.map_or(bytes.len(), |found| found.offset as usize);
            let range = used(&bytes[place.offset as usize..until]);
            let saved = self.quarantine.save("damaged", place, range)?;
            self.damage(place, range.len() as u64, Some(saved));
            match next {
                Some(found) => place = found,
                None => return Ok(true),
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
        self.synced = self.synced.max(frame.synced);
        if frame.body.is_empty() {
            return Ok(());
        }
        self.report.records += 1;
        replay(
            place.plus(u32::try_from(frame::HEADER_BYTES).unwrap_or(0)),
            frame.body,
        )
    }

    /// Everything before this place was synced: the last intact frame says so, which knows most.
    fn vouched(&mut self) -> Result<Position> {
        if let Some(vouched) = self.vouched {
            return Ok(vouched);
        }
        let mut vouched = Position::default();
        for number in self.replayed.iter().rev() {
            let bytes = self.load(*number)?;
            let last = Search::new(*number, &bytes).frames(HEADER_BYTES).last();
            if let Some((_, frame)) = last {
                vouched = frame.synced;
                break;
            }
        }
        self.vouched = Some(vouched);
        Ok(vouched)
    }

    /// The sequence number of the frame at `place`, from the one before it; `None` when that cannot be read.
    fn sequence_at(&self, place: Position) -> Result<Option<u32>> {
        if self.files.size(place.segment).is_none() {
            return Ok(None);
        }
        let bytes = self.load(place.segment)?;
        let before = bytes.get(..place.offset as usize).unwrap_or(&bytes);
        let last = Search::new(place.segment, before)
            .frames(HEADER_BYTES)
            .last();
        Ok(last
            .filter(|(found, frame)| found.offset as usize + frame.size == place.offset as usize)
            .map(|(_, frame)| frame.sequence.wrapping_add(1)))
    }

    fn load(&self, number: u32) -> Result<Vec<u8>> {
        let path = segment::path(&self.options.folder, number);
        let bytes = fs::read(&path).map_err(|error| {
            Error::unavailable(format!(
                "segment {number} cannot be read; if that stays, open a copy of the store on another disk"
            ))
            .with_source(error)
        })?;
        match segment::check_header(&bytes, number) {
            Header::Newer(version) => {
                return Err(Error::corrupt(format!(
                    "segment {number} was written by a newer Towpath (format {version}); this one reads up to {}",
                    segment::VERSION
                )));
            }
            Header::Damaged | Header::Other(_) if bytes.len() >= HEADER_BYTES as usize => {
                tracing::warn!(segment = number, "rewriting damaged segment header");
                self.files
                    .file(number)
                    .and_then(|file| segment::mend_header(&file, number, self.log))
                    .map_err(|error| {
                        Error::unavailable("a header cannot be repaired").with_source(error)
                    })?;
            }
            Header::Intact(_) | Header::Other(_) | Header::Damaged => {}
        }
        Ok(bytes)
    }

    /// Cuts a tail that was never acknowledged, and saves its bytes nevertheless.
    fn cut(&mut self, place: Position) -> Result<()> {
        let bytes = self.load(place.segment)?;
        let tail = used(bytes.get(place.offset as usize..).unwrap_or_default());
        if !tail.is_empty() {
            self.quarantine.save("cut", place, tail)?;
        }
        tracing::warn!(%place, bytes = tail.len(), "torn tail of the log cut and saved");
        self.report.cut = Some((place, tail.len() as u64));
        let io =
            |error: io::Error| Error::unavailable("a torn tail cannot be cut").with_source(error);
        // Later segments go first: once the place is zeros again nothing behind it may be found by the next start.
        // The last one first: a kill in between must not leave a gap.
        let later = self.replayed.iter().rev();
        for number in later.take_while(|number| **number > place.segment) {
            self.files.remove(*number);
            self.quarantine.take(*number)?;
        }
        segment::sync_folder(&self.options.folder).map_err(io)?;
        let file = self.files.file(place.segment).map_err(io)?;
        file.write_all_at(&vec![0; tail.len()], u64::from(place.offset))
            .map_err(io)?;
        file.sync_data().map_err(io)?;
        self.end = self.end.max(place);
        Ok(())
    }

    /// Reports a skipped range; the next frame may have any sequence number.
    fn damage(&mut self, start: Position, bytes: u64, saved_as: Option<PathBuf>) {
        tracing::error!(%start, bytes, ?saved_as, "damaged range of the log skipped");
        self.sequence = None;
        self.report.damaged.push(Damage {
            start,
            bytes,
            saved_as,
        });
    }

    /// Makes the frames that were read durable, and returns the position to append at.
    fn finish(mut self, began: Instant) -> Result<Recovered> {
        let io =
            |error: io::Error| Error::unavailable("the log cannot be opened").with_source(error);
        self.write_back().map_err(io)?;
        let size = self.files.size(self.end.segment);
        if size.is_none_or(|size| size < self.end.offset) {
            if !self.fresh && self.report.damaged.is_empty() {
                self.damage(self.end, 0, None);
            }
            // A checkpoint may refer to positions in a segment that is gone; new records come behind them.
            let newest = self.files.list().last().map_or(0, |(number, _)| *number);
            let number = if self.fresh {
                1
            } else {
                newest.max(self.end.segment) + 1
            };
            let whole = Whole {
                size: self.options.segment_bytes,
                log: self.log,
            };
            let made = segment::create(&self.options.folder, number, whole).map_err(io)?;
            self.files.insert(number, made);
            self.end = Position {
                segment: number,
                offset: HEADER_BYTES,
            };
        }
        // Behind the last frame there is at most the segment that was prepared.
        let mut spare = None;
        for (number, size) in self.files.list().into_iter().rev() {
            if number == self.end.segment + 1 {
                let file = self.files.file(number).map_err(io)?;
                self.files.remove(number);
                spare = Some(Segment { file, size });
            } else if number > self.end.segment {
                self.files.remove(number);
                fs::remove_file(segment::path(&self.options.folder, number)).map_err(io)?;
            }
        }
        self.report.elapsed = began.elapsed();
        Ok(Recovered {
            log: self.log,
            files: self.files,
            spare,
            end: self.end,
            sequence: self.sequence.unwrap_or(1),
            report: self.report,
        })
    }

    /// Writes and syncs the frames again that no later frame states to be synced, because callers are about to act on them.
    ///
    /// After a failed sync the system may hold it in memory, take it for written, and sync nothing.
    fn write_back(&self) -> io::Result<()> {
        for (number, size) in self.files.list() {
            if number < self.synced.segment {
                continue;
            }
            let file = self.files.file(number)?;
            let start = if number == self.synced.segment {
                self.synced.offset
            } else {
                0
            };
            let end = match number.cmp(&self.end.segment) {
                std::cmp::Ordering::Less => size,
                std::cmp::Ordering::Equal => self.end.offset.min(size),
                std::cmp::Ordering::Greater => 0,
            };
            if start < end {
                let mut bytes = vec![0; (end - start) as usize];
                file.read_exact_at(&mut bytes, u64::from(start))?;
                file.write_all_at(&bytes, u64::from(start))?;
            }
            file.sync_data()?;
        }
        Ok(())
    }
}

/// Without the zeros at the end.
fn used(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().rev().take_while(|byte| **byte == 0).count();
    &bytes[..bytes.len() - zeros]
}
