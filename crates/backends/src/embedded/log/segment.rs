//! Segment files: named by number, written full of zeros before their first frame.
//!
//! Writing into blocks that exist needs no metadata at sync; measured 1.6 times
//! faster than growing the file, and `fallocate` alone was the slowest choice.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(super) const HEADER_BYTES: u32 = 64;
pub(crate) const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"TOWPLOG\0";

/// An open segment.
#[derive(Debug, Clone)]
pub(super) struct Segment {
    pub(super) file: Arc<File>,
    /// Bytes of the file.
    pub(super) size: u32,
}

pub(super) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:010}.log"))
}

/// Makes a segment of `size` bytes, durable with its name.
pub(super) fn create(folder: &Path, number: u32, size: u32) -> io::Result<Segment> {
    let temporary = folder.join(format!("{number:010}.new"));
    let result = fill(&temporary, number, size).and_then(|file| {
        // The name comes last, so that a segment by its name is whole.
        fs::rename(&temporary, path(folder, number))?;
        sync_folder(folder)?;
        Ok(Segment {
            file: Arc::new(file),
            size,
        })
    });
    if result.is_err() {
        // Half a file on a full disk would keep the space that is missing.
        fs::remove_file(&temporary).ok();
    }
    result
}

fn fill(path: &Path, number: u32, size: u32) -> io::Result<File> {
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path)?;
    file.write_all(&header(number))?;
    let zeros = vec![0; 1 << 20];
    let mut left = (size - HEADER_BYTES) as usize;
    while left > 0 {
        let some = left.min(zeros.len());
        file.write_all(&zeros[..some])?;
        left -= some;
    }
    file.sync_all()?;
    Ok(file)
}

/// The first bytes of a segment: magic, version, number, their CRC32C, zeros.
fn header(number: u32) -> [u8; HEADER_BYTES as usize] {
    let mut header = [0; HEADER_BYTES as usize];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&number.to_le_bytes());
    let checksum = crc32c::crc32c(&header[..16]);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// What the header of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// Ours.
    Intact,
    /// Intact, of a version that this build does not know.
    Newer(u32),
    /// Not readable; frames carry the segment number in their checksum, so they can still be trusted.
    Damaged,
}

pub(super) fn check_header(bytes: &[u8], number: u32) -> Header {
    let Some(found) = bytes.first_chunk::<{ HEADER_BYTES as usize }>() else {
        return Header::Damaged;
    };
    if *found == header(number) {
        return Header::Intact;
    }
    let version = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
    let checksum = u32::from_le_bytes([found[16], found[17], found[18], found[19]]);
    if found[..8] == MAGIC && version > VERSION && checksum == crc32c::crc32c(&found[..16]) {
        return Header::Newer(version);
    }
    Header::Damaged
}

/// Writes the header anew.
pub(super) fn mend_header(file: &File, number: u32) -> io::Result<()> {
    file.write_all_at(&header(number), 0)?;
    file.sync_data()
}

/// The oldest segment of a log; `None` when it has none, or no folder.
pub(crate) fn oldest(folder: &Path) -> io::Result<Option<u32>> {
    match list(folder) {
        Ok(numbers) => Ok(numbers.first().copied()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The numbers of the segments in a folder, in order; leftovers of an interrupted creation are removed.
pub(super) fn list(folder: &Path) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .and_then(|stem| stem.parse().ok());
        match (path.extension().and_then(|ending| ending.to_str()), stem) {
            (Some("log"), Some(number)) => numbers.push(number),
            (Some("new"), Some(_)) => fs::remove_file(&path)?,
            _ => {}
        }
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn open(folder: &Path, number: u32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path(folder, number))
}

/// Bytes of a segment's file.
pub(super) fn size(folder: &Path, number: u32) -> io::Result<u32> {
    let length = fs::metadata(path(folder, number))?.len();
    Ok(u32::try_from(length).unwrap_or(u32::MAX))
}

/// Makes a folder and those above it, durable with their names.
pub(crate) fn make_folder(folder: &Path) -> io::Result<()> {
    let above = match folder.parent() {
        None => return Ok(()),
        Some(above) if above.as_os_str().is_empty() => Path::new("."),
        Some(above) => above,
    };
    if folder.is_dir() {
        return Ok(());
    }
    make_folder(above)?;
    match fs::create_dir(folder) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    sync_folder(above)
}

/// A new, renamed or removed name is durable only when its folder is synced.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_as_deep_as_needed_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("a/b/c");
        make_folder(&deep).unwrap();
        make_folder(&deep).unwrap();
        assert!(deep.is_dir());
        fs::write(folder.path().join("file"), "").unwrap();
        assert!(make_folder(&folder.path().join("file/a")).is_err());
    }
}
