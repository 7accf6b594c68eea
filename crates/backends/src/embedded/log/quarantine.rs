//! Keeps the damaged ranges that recovery takes out of the log, so that an operator can examine them.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use towpath_core::{Error, Result};

use super::segment::{self, HEADER_BYTES};
use super::{Options, Position};
use crate::private;

/// The folder for ranges that were damaged or cut.
pub(super) struct Quarantine<'a> {
    folder: &'a Path,
    log: &'a Path,
}

impl<'a> Quarantine<'a> {
    pub(super) fn new(options: &'a Options) -> Self {
        Self {
            folder: &options.quarantine,
            log: &options.folder,
        }
    }

    /// Saves a copy of a range, durably. Returns where.
    pub(super) fn save(&self, what: &str, place: Position, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.path(what, place);
        segment::make_folder(self.folder)
            .and_then(|()| {
                let mut file = private::create(&path)?;
                file.write_all(bytes)?;
                file.sync_all()
            })
            .and_then(|()| segment::sync_folder(self.folder))
            .map_err(|error| failed(&path, error))?;
        Ok(path)
    }

    /// Moves a whole segment out of the log; one that holds nothing is removed.
    pub(super) fn take(&self, number: u32) -> Result<()> {
        let path = segment::path(self.log, number);
        let saved = self.path(
            "cut",
            Position {
                segment: number,
                offset: 0,
            },
        );
        self.move_away(&path, &saved)
            .map_err(|error| failed(&saved, error))
    }

    fn move_away(&self, path: &Path, saved: &Path) -> io::Result<()> {
        let bytes = fs::read(path)?;
        if bytes
            .iter()
            .skip(HEADER_BYTES as usize)
            .all(|byte| *byte == 0)
        {
            return fs::remove_file(path);
        }
        segment::make_folder(self.folder)?;
        fs::rename(path, saved)?;
        segment::sync_folder(self.folder)
    }

    fn path(&self, what: &str, place: Position) -> PathBuf {
        self.folder
            .join(format!("{what}-{:010}-{}.bin", place.segment, place.offset))
    }
}

fn failed(path: &Path, error: io::Error) -> Error {
    Error::unavailable(format!("`{}` cannot be written", path.display())).with_source(error)
}
