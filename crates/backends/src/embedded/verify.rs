//! Reading a store without opening it: what `towpath verify` and `towpath doctor` say of a folder.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use towpath_core::{Error, Result};

use super::blob;
use super::checkpoint;
use super::lock;
use super::log::{Position, inspect, segment_path};
use super::record::Record;
use super::state::{State, Stored};

/// Bytes of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Reads like a start: the newest checkpoint, the log behind it, and whether every other segment exists.
    Start,
    /// Everything: each checkpoint, each record of the log, each message.
    All,
}

/// Counts and faults of a store that was read completely.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verified {
    /// Checkpoints.
    pub checkpoints: u64,
    /// Segments of the log that are there.
    pub segments: u64,
    /// Records that were read.
    pub records: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Queues.
    pub queues: u64,
    /// Messages and entries of streams that are kept, dead letters included.
    pub messages: u64,
    /// Messages that wait in queues.
    pub waiting: u64,
    /// Each thing that was acknowledged once and is missing or cannot be read.
    pub faults: Vec<String>,
    /// Deviations from the state after a clean stop, which the next start fixes.
    pub notes: Vec<String>,
}

/// Reads the store in a folder, and changes nothing.
///
/// # Errors
/// `NotFound` when the folder has no store, `Unavailable` when a process has it open or for I/O, `Corrupt` for one that a
/// newer Towpath wrote.
pub fn verify(folder: &Path, depth: Depth) -> Result<Verified> {
    let (log, checkpoints) = (folder.join("log"), folder.join("checkpoint"));
    if !log.is_dir() && !checkpoints.is_dir() {
        let text = format!("`{}` has no store: no folder `log`", folder.display());
        return Err(Error::not_found(text));
    }
    let _held = lock::hold(folder)?;
    let mut verified = Verified::default();
    let found = checkpoint::inspect(&checkpoints, depth == Depth::All)?;
    verified.checkpoints = found.files;
    verified.bytes = found.bytes;
    verified.faults = found.faults;
    let (from, state) = found.newest.map_or_else(
        || (None, State::default()),
        |(position, state)| (Some(position), state),
    );
    if !log.is_dir() {
        let text = format!("the folder `{}` is missing", log.display());
        verified.faults.push(text);
        return Ok(verified);
    }
    let state = RefCell::new(state);
    let log_found = inspect(&log, from, depth == Depth::All, &mut |body, bytes| {
        let (record, blobs) = Record::decode(bytes)?;
        state.borrow_mut().apply(&record, body.plus(blobs));
        Ok(())
    })?;
    let state = state.into_inner();
    verified.segments = log_found.sizes.len() as u64;
    verified.records = log_found.records;
    verified.bytes += log_found.bytes;
    verified.faults.extend(log_found.faults);
    verified.notes.extend(log_found.notes);
    verified.queues = state.queues.len() as u64;
    verified.messages = state.placed().count() as u64;
    verified.waiting = state.queues.values().map(|queue| queue.depth()).sum();
    for (number, needed) in state.needed() {
        let fault = match log_found.sizes.get(&number) {
            None => format!("segment {number} of the log is missing"),
            Some(size) if *size < needed.end => format!(
                "segment {number} of the log has {size} bytes, and messages reach to {}",
                needed.end
            ),
            Some(_) => continue,
        };
        let known = |known: &String| known == &fault;
        if !verified.faults.iter().any(known) {
            verified.faults.push(fault);
        }
    }
    if depth == Depth::All {
        messages(&log, &state, &mut verified);
    }
    Ok(verified)
}

/// Reads every message that is kept, a segment at a time.
fn messages(log: &Path, state: &State, verified: &mut Verified) {
    let mut places: BTreeMap<u32, Vec<Stored>> = BTreeMap::new();
    for stored in state.placed() {
        let segment = stored.place.position.segment;
        places.entry(segment).or_default().push(stored);
    }
    for (number, places) in places {
        // Those that are missing have been named.
        let Ok(bytes) = fs::read(segment_path(log, number)) else {
            continue;
        };
        let bytes = Bytes::from(bytes);
        let unreadable: Vec<Position> = places
            .iter()
            .filter(|stored| !is_intact(&bytes, stored))
            .map(|stored| stored.place.position)
            .collect();
        if let Some(first) = unreadable.iter().min() {
            verified.faults.push(format!(
                "{} of {} messages in segment {number} of the log cannot be read, the first at {first}",
                unreadable.len(),
                places.len()
            ));
        }
    }
}

/// Whether this message stands there; a segment of another store holds others.
fn is_intact(segment: &Bytes, stored: &Stored) -> bool {
    let start = stored.place.position.offset as usize;
    let end = start.saturating_add(stored.place.bytes as usize);
    end <= segment.len() && blob::decode(&segment.slice(start..end), stored).is_ok()
}
