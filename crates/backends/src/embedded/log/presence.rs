//! Whether the files of an open log are still where they were.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;

use rustix::fs::{AtFlags, StatxFlags, statx};
use towpath_core::{Error, Result};

use super::Log;
use super::segment;
use super::shared::Shared;
use crate::identity::{Identity, lost, replaced};

/// Most segments that one look compares, besides the one being written.
const SEGMENTS: usize = 512;

/// Results of the checks so far.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    known: BTreeMap<u32, Identity>,
    /// The segment that the next check begins with.
    next: u32,
}

impl Log {
    /// Compares the folder, the segment being written and some of the others with their recorded identities.
    ///
    /// # Errors
    /// `Unavailable` when one was removed, renamed, replaced or cut short.
    pub(crate) fn look(&self, looked: &mut Looked) -> Result<()> {
        self.shared.folder.check()?;
        let segments = self.segments();
        let is_listed = |number: &u32| {
            segments
                .binary_search_by_key(number, |(number, _)| *number)
                .is_ok()
        };
        looked.known.retain(|number, _| is_listed(number));
        let from = segments.partition_point(|(number, _)| *number < looked.next);
        let some = segments[from..].iter().take(SEGMENTS);
        looked.next = match segments.get(from + SEGMENTS) {
            Some((next, _)) => *next,
            None => 0,
        };
        for (number, size) in some.chain(segments.last()) {
            self.look_at(*number, *size, looked)?;
        }
        Ok(())
    }

    fn look_at(&self, number: u32, size: u32, looked: &mut Looked) -> Result<()> {
        let path = segment::path(&self.shared.options.folder, number);
        let problem = match fs::metadata(&path) {
            Ok(found) => {
                let identity = Identity::from(&found);
                let is_same = *looked.known.entry(number).or_insert(identity) == identity;
                match is_same {
                    true if found.len() >= u64::from(size) => return Ok(()),
                    true => Error::unavailable(format!(
                        "segment `{}` was cut from {size} to {} bytes while it was in use",
                        path.display(),
                        found.len()
                    )),
                    false => replaced("segment", &path),
                }
            }
            Err(error) => lost("segment", &path, error),
        };
        // The log itself may have removed it since it was listed.
        match self.shared.files.size(number) {
            Some(_) => Err(problem),
            None => Ok(()),
        }
    }

    /// Stops the log for good, for a reason that its owner found.
    pub(crate) fn fail(&self, reason: String) {
        self.shared.fail(reason);
    }
}

/// Refuses a segment that was written to and has no name any more: its records would be lost with the process.
pub(super) fn check_linked(shared: &Shared, number: u32, file: &File) -> io::Result<()> {
    // Nothing but the links: asking for its times makes the next write change them, and the sync half as long again.
    let links = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::NLINK)?;
    if links.stx_nlink > 0 {
        return Ok(());
    }
    let open = file.metadata()?;
    // A file system that does not count links says zero for every file.
    let path = segment::path(&shared.options.folder, number);
    match fs::metadata(&path) {
        Ok(found) if Identity::from(&found) == Identity::from(&open) => Ok(()),
        Ok(_) => Err(io::Error::other(replaced("segment", &path))),
        Err(error) => Err(io::Error::other(lost("segment", &path, error))),
    }
}
