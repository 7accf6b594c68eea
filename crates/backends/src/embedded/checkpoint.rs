//! Checkpoints: the state as of a place in the log, so that opening costs the tail and not the history.
//!
//! A file is a header and blocks, each of some pieces of the state with a checksum of its own, so that it is written and
//! read as a stream and neither needs the state in memory once more. Format: `docs/format/store.md`.
//! The newest two are kept; a damaged one is skipped for the one before.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use towpath_core::{Error, Result, Timestamp};

use super::log::{ACCEPT_LOSS, Position, make_folder, oldest_segment, sync_folder};
use super::state::{Loading, Piece, Snapshot, State};
use super::tables;
use crate::private;

const MAGIC: [u8; 8] = *b"TOWPCKP\0";
pub(super) const VERSION: u32 = 7;
const HEADER_BYTES: usize = 32;

/// The newest version whose state is one value, read whole.
pub(super) const WHOLE: u32 = 4;

/// A block is full from here on; a large value makes a larger one.
const BLOCK_BYTES: usize = 64 * 1024;

/// Checksum and length of a block.
const BLOCK_HEADER_BYTES: usize = 8;

/// Bytes that are written between two syncs: the log's own syncs wait for writes to the same disk.
const STRETCH: u64 = 1 << 20;

/// Number of checkpoints that are kept.
const KEPT: usize = 2;

/// The state that the store starts with.
#[derive(Debug, Default)]
pub(super) struct LoadedCheckpoint {
    pub(super) state: State,
    /// Where replay starts; `None` from the beginning.
    pub(super) position: Option<Position>,
    /// Size of its file.
    pub(super) bytes: u64,
    /// Files that could not be used, and why.
    pub(super) skipped: Vec<(PathBuf, String)>,
}

/// Reads the newest checkpoint that is intact.
///
/// # Errors
/// `Corrupt` for one of a newer version: going back behind it could lose records that only a newer Towpath understands.
pub(super) fn load(folder: &Path) -> Result<LoadedCheckpoint> {
    remove_leftovers(folder)?;
    let mut found = LoadedCheckpoint::default();
    for (position, path) in list(folder)?.into_iter().rev() {
        match read(&path, position) {
            Ok(state) => {
                return Ok(LoadedCheckpoint {
                    state,
                    position: Some(position),
                    bytes: fs::metadata(&path).map_or(0, |file| file.len()),
                    ..found
                });
            }
            Err(Problem::Newer(version)) => return Err(newer(&path, version)),
            Err(Problem::Damaged(reason)) => {
                tracing::error!(path = %path.display(), reason, "damaged checkpoint skipped");
                found.skipped.push((path, reason));
            }
        }
    }
    Ok(found)
}

enum Problem {
    Newer(u32),
    Damaged(String),
}

fn read(path: &Path, position: Position) -> Result<State, Problem> {
    let damaged = |reason: &str| Problem::Damaged(reason.to_owned());
    let unreadable = |error: io::Error| Problem::Damaged(error.to_string());
    let file = File::open(path).map_err(unreadable)?;
    let left = file.metadata().map_err(unreadable)?.len();
    let Some(left) = left.checked_sub(HEADER_BYTES as u64) else {
        return Err(damaged("too short"));
    };
    let mut file = BufReader::with_capacity(BLOCK_BYTES, file);
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header).map_err(unreadable)?;
    if header[..8] != MAGIC {
        return Err(damaged("no checkpoint"));
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version > VERSION {
        return Err(Problem::Newer(version));
    }
    if version == 0 || header[16..24] != place_bytes(position) {
        return Err(damaged("is not the one that its name says"));
    }
    let checksum = u32::from_le_bytes([header[12], header[13], header[14], header[15]]);
    if version <= WHOLE {
        let mut body = Vec::new();
        file.read_to_end(&mut body).map_err(unreadable)?;
        if crc32c::crc32c_append(crc32c::crc32c(&header[16..]), &body) != checksum {
            return Err(damaged("does not match its checksum"));
        }
        return State::decode(version, &body).map_err(|error| Problem::Damaged(error.chain()));
    }
    if crc32c::crc32c(&header[16..]) != checksum {
        return Err(damaged("its header does not match its checksum"));
    }
    let state = read_blocks(&mut file, left, position).and_then(|mut state| {
        let folder = path.parent().unwrap_or(Path::new("."));
        state.kv.open_tables(folder).map(|()| state)
    });
    state.map_err(|error| Problem::Damaged(error.chain()))
}

/// The state in the `left` bytes of blocks behind the header.
fn read_blocks(file: &mut impl Read, mut left: u64, position: Position) -> Result<State> {
    let io = |error: io::Error| Error::corrupt("a checkpoint cannot be read").with_source(error);
    let mut loading = Loading::default();
    let (mut index, mut bytes) = (0, Vec::new());
    while left > 0 {
        let mut head = [0; BLOCK_HEADER_BYTES];
        file.read_exact(&mut head).map_err(io)?;
        let [a, b, c, d, length @ ..] = head;
        let (checksum, length) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(length));
        let size = BLOCK_HEADER_BYTES as u64 + u64::from(length);
        left = left
            .checked_sub(size)
            .ok_or_else(|| Error::corrupt(format!("block {index} is cut off")))?;
        bytes.resize(length as usize, 0);
        file.read_exact(&mut bytes).map_err(io)?;
        if block_checksum(position, index, &bytes) != checksum {
            let text = format!("block {index} does not match its checksum");
            return Err(Error::corrupt(text));
        }
        load_block(&bytes, &mut loading)?;
        index += 1;
    }
    loading.finish()
}

/// The numbers of the tables that a checkpoint names, which are all in its first block.
fn tables_of(path: &Path) -> Result<BTreeSet<u32>> {
    let io = |error: io::Error| Error::corrupt("a checkpoint cannot be read").with_source(error);
    let mut file = File::open(path).map_err(io)?;
    let mut header = [0; HEADER_BYTES];
    file.read_exact(&mut header).map_err(io)?;
    let mut numbers = BTreeSet::new();
    if u32::from_le_bytes([header[8], header[9], header[10], header[11]]) <= WHOLE {
        return Ok(numbers);
    }
    let mut head = [0; BLOCK_HEADER_BYTES];
    file.read_exact(&mut head).map_err(io)?;
    let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
    let mut block = Vec::new();
    file.take(length.into())
        .read_to_end(&mut block)
        .map_err(io)?;
    let mut rest = &block[..];
    while let Ok((piece, behind)) = postcard::take_from_bytes(rest) {
        match piece {
            Piece::Fence(_) => {}
            Piece::Table(named) => _ = numbers.insert(named.number),
            _ => break,
        }
        rest = behind;
    }
    Ok(numbers)
}

/// Removes the tables that none of the checkpoints names which are kept.
pub(super) fn remove_tables(folder: &Path) -> Result<()> {
    let mut named = BTreeSet::new();
    for (_, path) in list(folder)? {
        named.extend(tables_of(&path)?);
    }
    tables::remove_others(folder, &named)
}

/// Takes in the pieces of a block.
pub(super) fn load_block(block: &[u8], loading: &mut Loading) -> Result<()> {
    let mut rest = block;
    while !rest.is_empty() {
        let (piece, behind) = postcard::take_from_bytes(rest)
            .map_err(|error| Error::corrupt("a piece cannot be decoded").with_source(error))?;
        loading.add(piece)?;
        rest = behind;
    }
    Ok(())
}

/// Covers kind, position and length of the block.
fn block_checksum(position: Position, index: u64, block: &[u8]) -> u32 {
    let checksum = crc32c::crc32c(&place_bytes(position));
    let checksum = crc32c::crc32c_append(checksum, &index.to_le_bytes());
    crc32c::crc32c_append(checksum, block)
}

/// Refuses to start from the log alone when it does not reach back to the first record.
pub(super) fn check_history(folder: &Path, skipped: &[(PathBuf, String)]) -> Result<()> {
    let oldest = oldest_segment(&folder.join("log"))
        .map_err(|error| Error::unavailable("the log cannot be listed").with_source(error))?;
    if oldest == Some(1) {
        return Ok(());
    }
    let before = oldest.map_or_else(String::new, |oldest| format!("before segment {oldest}"));
    let files: Vec<String> = skipped
        .iter()
        .map(|(path, reason)| format!("`{}` ({reason})", path.display()))
        .collect();
    Err(Error::corrupt(format!(
        "no checkpoint can be used: {}; they stood for the log {before}, which is gone. \
         Restore a backup; or create the file `{}` to open with the remaining log: \
         settings, keys, routes and counts would be missing, and messages that were acked might come again",
        files.join(", "),
        folder.join(ACCEPT_LOSS).display()
    )))
}

/// Takes files that cannot be used out of the count of those kept; they stay for a person to look at.
pub(super) fn set_aside(files: &[(PathBuf, String)]) -> Result<()> {
    for (path, _) in files {
        fs::rename(path, path.with_extension("damaged")).map_err(|error| {
            Error::unavailable(format!("`{}` cannot be renamed", path.display())).with_source(error)
        })?;
    }
    Ok(())
}

/// The result of writing a checkpoint.
#[derive(Debug)]
pub(super) struct Written {
    /// The place of the oldest checkpoint kept, or the start of the log while there are fewer than are kept.
    pub(super) oldest: Position,
    /// Size of the new one.
    pub(super) bytes: u64,
}

/// Slows the writing of a checkpoint down.
pub(super) type Throttle<'a> = &'a dyn Fn(Duration) -> Result<()>;

/// Writes a checkpoint and removes those that are too many.
///
/// With a throttle each stretch is synced, and then `throttle` is called with the time that it took; its error abandons
/// the checkpoint.
/// The caller has made the log durable up to `position`.
pub(super) fn write(
    folder: &Path,
    position: Position,
    state: Snapshot,
    throttle: Option<Throttle<'_>>,
) -> Result<Written> {
    let io =
        |error: io::Error| Error::unavailable("a checkpoint cannot be written").with_source(error);
    make_folder(folder)
        .and_then(|()| private::close_folder(folder))
        .map_err(io)?;
    let path = path(folder, position);
    let temporary = path.with_extension("tmp");
    let written = write_file(&temporary, position, state, throttle).and_then(|bytes| {
        fs::rename(&temporary, &path).map_err(io)?;
        sync_folder(folder).map_err(io)?;
        Ok(bytes)
    });
    let bytes = written.inspect_err(|_| {
        fs::remove_file(&temporary).ok();
    })?;
    let mut kept = list(folder)?;
    while kept.len() > KEPT {
        let (_, oldest) = kept.remove(0);
        fs::remove_file(oldest).map_err(io)?;
    }
    // While one is all there is, the log must do in its place.
    let oldest = kept.first().filter(|_| kept.len() == KEPT);
    Ok(Written {
        oldest: oldest.map_or_else(Position::default, |(oldest, _)| *oldest),
        bytes,
    })
}

/// The checkpoints of a folder.
#[derive(Debug, Default)]
pub(super) struct Inspected {
    pub(super) newest: Option<(Position, State)>,
    /// Number of checkpoints that were read, and their bytes.
    pub(super) files: u64,
    pub(super) bytes: u64,
    /// Those that are damaged, and why.
    pub(super) faults: Vec<String>,
}

/// Reads the newest intact checkpoint, or all of them, and changes nothing.
///
/// # Errors
/// As [`load`].
pub(super) fn inspect(folder: &Path, all: bool) -> Result<Inspected> {
    let mut found = Inspected::default();
    for (position, path) in list(folder)?.into_iter().rev() {
        if found.newest.is_some() && !all {
            break;
        }
        found.files += 1;
        found.bytes += fs::metadata(&path).map_or(0, |metadata| metadata.len());
        match read(&path, position) {
            Ok(state) => {
                let tables = state.kv.tables();
                found.bytes += tables.named().iter().map(|named| named.bytes).sum::<u64>();
                if all {
                    found.faults.extend(tables.faults());
                }
                found.newest.get_or_insert((position, state));
            }
            Err(Problem::Newer(version)) => return Err(newer(&path, version)),
            Err(Problem::Damaged(reason)) => {
                let text = format!("checkpoint `{}`: {reason}", path.display());
                found.faults.push(text);
            }
        }
    }
    // Checkpoints may share a table.
    found.faults.dedup();
    Ok(found)
}

fn newer(path: &Path, version: u32) -> Error {
    Error::corrupt(format!(
        "`{}` was written by a newer Towpath (format {version}); this one reads up to {VERSION}",
        path.display()
    ))
}

/// Every checkpoint and table, opened, with its name in a backup.
pub(super) fn open_all(folder: &Path) -> Result<Vec<(String, File)>> {
    let mut open = Vec::new();
    let checkpoints = list(folder)?.into_iter().map(|(_, path)| path);
    for path in checkpoints.chain(tables::files(folder)?) {
        let file = File::open(&path).map_err(|error| {
            Error::unavailable(format!("`{}` cannot be read", path.display())).with_source(error)
        })?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        open.push((format!("checkpoint/{name}"), file));
    }
    Ok(open)
}

/// The file of the checkpoint of this place.
pub(super) fn path(folder: &Path, position: Position) -> PathBuf {
    let Position { segment, offset } = position;
    folder.join(format!("{segment:010}-{offset:010}.ckpt"))
}

fn place_bytes(position: Position) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&position.segment.to_le_bytes());
    bytes[4..].copy_from_slice(&position.offset.to_le_bytes());
    bytes
}

fn write_file(
    path: &Path,
    position: Position,
    state: Snapshot,
    throttle: Option<Throttle<'_>>,
) -> Result<u64> {
    let io =
        |error: io::Error| Error::unavailable("a checkpoint cannot be written").with_source(error);
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&place_bytes(position));
    let checksum = crc32c::crc32c(&header[16..]);
    header[12..16].copy_from_slice(&checksum.to_le_bytes());
    let mut blocks = Blocks {
        file: private::create(path).map_err(io)?,
        position,
        index: 0,
        block: vec![0; BLOCK_HEADER_BYTES],
        bytes: HEADER_BYTES as u64,
        stretch: (0, Instant::now()),
        throttle,
    };
    blocks.file.write_all(&header).map_err(io)?;
    state.write(&mut |piece| blocks.add(piece))?;
    blocks.write().map_err(io)?;
    blocks.file.sync_all().map_err(io)?;
    Ok(blocks.bytes)
}

/// Pieces on their way to the file.
struct Blocks<'a> {
    file: File,
    position: Position,
    index: u64,
    /// Its header, and the pieces so far.
    block: Vec<u8>,
    bytes: u64,
    /// Where the present stretch began, and when.
    stretch: (u64, Instant),
    throttle: Option<Throttle<'a>>,
}

impl Blocks<'_> {
    fn add(&mut self, piece: &Piece<'_>) -> Result<()> {
        postcard::to_io(piece, &mut self.block)
            .map_err(|error| Error::invalid("the state cannot be encoded").with_source(error))?;
        if self.block.len() < BLOCK_BYTES {
            return Ok(());
        }
        let io = |error: io::Error| {
            Error::unavailable("a checkpoint cannot be written").with_source(error)
        };
        self.write().map_err(io)?;
        let (start, began) = self.stretch;
        if let Some(throttle) = self.throttle.filter(|_| self.bytes - start >= STRETCH) {
            self.file.sync_data().map_err(io)?;
            throttle(began.elapsed())?;
            self.stretch = (self.bytes, Instant::now());
        }
        Ok(())
    }

    fn write(&mut self) -> io::Result<()> {
        let (header, pieces) = self.block.split_at_mut(BLOCK_HEADER_BYTES);
        if pieces.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(pieces.len()).map_err(io::Error::other)?;
        let checksum = block_checksum(self.position, self.index, pieces);
        header[..4].copy_from_slice(&checksum.to_le_bytes());
        header[4..].copy_from_slice(&length.to_le_bytes());
        self.file.write_all(&self.block)?;
        self.bytes += self.block.len() as u64;
        self.index += 1;
        self.block.truncate(BLOCK_HEADER_BYTES);
        Ok(())
    }
}

/// Removes the files of an interrupted write.
fn remove_leftovers(folder: &Path) -> Result<()> {
    let io = |error: io::Error| {
        Error::unavailable("checkpoints cannot be looked through").with_source(error)
    };
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|ending| ending == "tmp") {
            fs::remove_file(&path).map_err(io)?;
        }
    }
    Ok(())
}

/// The checkpoints of a folder, oldest first.
fn list(folder: &Path) -> Result<Vec<(Position, PathBuf)>> {
    let io =
        |error: io::Error| Error::unavailable("checkpoints cannot be listed").with_source(error);
    let mut found = Vec::new();
    if !folder.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_none_or(|ending| ending != "ckpt") {
            continue;
        }
        let place = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| {
                let (segment, offset) = stem.split_once('-')?;
                Some(Position {
                    segment: segment.parse().ok()?,
                    offset: offset.parse().ok()?,
                })
            });
        if let Some(position) = place {
            found.push((position, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// When a segment of the log was written to last, as the machine's clock was then.
pub(super) fn newest_write(folder: &Path) -> Timestamp {
    let written = |entry: std::io::Result<std::fs::DirEntry>| {
        let modified = entry.ok()?.metadata().ok()?.modified().ok()?;
        modified.duration_since(std::time::UNIX_EPOCH).ok()
    };
    let segments = std::fs::read_dir(folder.join("log")).into_iter().flatten();
    let newest = segments.filter_map(written).max().unwrap_or_default();
    Timestamp::default().after(newest)
}
