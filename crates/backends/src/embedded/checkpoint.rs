//! Checkpoints: the state as of a place in the log, so that opening costs the tail and not the history.
//!
//! A file is magic, version, place, length and CRC32C of the state, the state.
//! The newest two are kept; a damaged one is passed over for the one before.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use towpath_core::{Error, Result};

use super::log::{Position, make_folder, oldest_segment, sync_folder};
use super::state::State;

const MAGIC: [u8; 8] = *b"TOWPCKP\0";
pub(super) const VERSION: u32 = 4;
const HEADER_BYTES: usize = 32;

/// How many are kept.
const KEPT: usize = 2;

/// What was found at the start.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) state: State,
    /// Where replay starts; `None` from the beginning.
    pub(super) position: Option<Position>,
    /// Files that could not be used, and why.
    pub(super) passed_over: Vec<(PathBuf, String)>,
}

/// Reads the newest checkpoint that is intact.
///
/// # Errors
/// `Corrupt` for one of a newer version: going back behind it could lose what only a newer Towpath understands.
pub(super) fn load(folder: &Path) -> Result<Found> {
    let mut found = Found::default();
    for (position, path) in list(folder)?.into_iter().rev() {
        match read(&path, position) {
            Ok(state) => {
                return Ok(Found {
                    state,
                    position: Some(position),
                    ..found
                });
            }
            Err(Problem::Newer(version)) => {
                return Err(Error::corrupt(format!(
                    "`{}` was written by a newer Towpath (format {version}); this one reads up to {VERSION}",
                    path.display()
                )));
            }
            Err(Problem::Damaged(reason)) => {
                tracing::error!(path = %path.display(), reason, "a checkpoint is damaged and was passed over");
                found.passed_over.push((path, reason));
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
    let bytes = fs::read(path).map_err(|error| Problem::Damaged(error.to_string()))?;
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Err(damaged("too short"));
    };
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
    if crc32c::crc32c_append(crc32c::crc32c(&header[16..]), body) != checksum {
        return Err(damaged("does not match its checksum"));
    }
    State::decode(version, body).map_err(|error| Problem::Damaged(error.chain()))
}

/// Refuses to go on from the log alone when it does not reach back to the start.
pub(super) fn check_history(folder: &Path, passed_over: &[(PathBuf, String)]) -> Result<()> {
    let oldest = oldest_segment(&folder.join("log"))
        .map_err(|error| Error::unavailable("the log cannot be listed").with_source(error))?;
    if oldest == Some(1) {
        return Ok(());
    }
    let before = oldest.map_or_else(String::new, |oldest| format!("before segment {oldest}"));
    let files: Vec<String> = passed_over
        .iter()
        .map(|(path, reason)| format!("`{}` ({reason})", path.display()))
        .collect();
    Err(Error::corrupt(format!(
        "no checkpoint can be used: {}; they stood for the log {before}, which is gone. \
         Restore one from a backup; or move `{}` away to open with what the log still has: \
         settings, keys, routes and counts would be missing, and messages that were acked might come again",
        files.join(", "),
        folder.join("checkpoint").display()
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

/// Writes a checkpoint and removes those that are too many. Returns the place of the oldest one kept,
/// or the start of the log while there are fewer than are kept.
///
/// The caller has made the log durable up to `position`.
pub(super) fn write(folder: &Path, position: Position, state: &[u8]) -> Result<Position> {
    let io =
        |error: io::Error| Error::unavailable("a checkpoint cannot be written").with_source(error);
    make_folder(folder).map_err(io)?;
    let path = path(folder, position);
    let temporary = path.with_extension("tmp");
    let written = write_file(&temporary, position, state)
        .and_then(|()| fs::rename(&temporary, &path))
        .and_then(|()| sync_folder(folder));
    if let Err(error) = written {
        fs::remove_file(&temporary).ok();
        return Err(io(error));
    }
    let mut kept = list(folder)?;
    while kept.len() > KEPT {
        let (_, oldest) = kept.remove(0);
        fs::remove_file(oldest).map_err(io)?;
    }
    // While one is all there is, the log must do in its place.
    let oldest = kept.first().filter(|_| kept.len() == KEPT);
    Ok(oldest.map_or_else(Position::default, |(oldest, _)| *oldest))
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

fn write_file(path: &Path, position: Position, state: &[u8]) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&place_bytes(position));
    header[24..].copy_from_slice(&(state.len() as u64).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[16..]), state);
    header[12..16].copy_from_slice(&checksum.to_le_bytes());
    let mut file = File::create(path)?;
    file.write_all(&header)?;
    file.write_all(state)?;
    file.sync_all()
}

/// The checkpoints of a folder, oldest first; leftovers of an interrupted write are removed.
fn list(folder: &Path) -> Result<Vec<(Position, PathBuf)>> {
    let io =
        |error: io::Error| Error::unavailable("checkpoints cannot be listed").with_source(error);
    let mut found = Vec::new();
    if !folder.exists() {
        return Ok(found);
    }
    for entry in fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|ending| ending == "tmp") {
            fs::remove_file(&path).map_err(io)?;
            continue;
        }
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
