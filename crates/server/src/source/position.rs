//! The read position of a file, and the file's identity: a position belongs to a file, never to a path.
//!
//! Device, inode and the moment of birth tell files apart while both exist; an inode is given to another file in time,
//! and a file can be overwritten in place. So a position also holds checksums of the first bytes and of those before it:
//! lines with the same head, as a log with a fixed banner has it, differ in the second.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Bytes that a checksum covers at most.
const COVERED: u64 = 256;

/// The read position of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Position {
    /// The device of the file. Some restarts of a machine number devices differently, so it is not part of the identity.
    pub device: u64,
    /// The file's number on its device.
    pub inode: u64,
    /// When the file was made, in nanoseconds since 1970; `None` where the file system does not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub birth: Option<u64>,
    /// Bytes that were read, up to the end of a line.
    pub offset: u64,
    /// Number of first bytes that `checksum` covers, at most 256.
    pub head: u64,
    /// CRC32C of these.
    pub checksum: u32,
    /// Number of bytes before the offset that `tail_checksum` covers, at most 256. 0 in positions of release 0.1.0.
    #[serde(default)]
    pub tail: u64,
    /// CRC32C of these.
    #[serde(default)]
    pub tail_checksum: u32,
    /// The input at which the file was first seen.
    #[serde(default)]
    pub path: PathBuf,
    /// Where the file really was then, behind symbolic links.
    #[serde(default)]
    pub real: PathBuf,
    /// The host that read it.
    #[serde(default)]
    pub host: String,
    /// When the file was closed because it was gone or renamed, read to its end and quiet; seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed: Option<u64>,
}

impl Position {
    /// The beginning of a file.
    pub(super) fn beginning(file: &File, path: PathBuf, real: PathBuf) -> io::Result<Self> {
        let identity = Identity::of(&file.metadata()?);
        Ok(Self {
            device: identity.device,
            inode: identity.inode,
            birth: identity.birth,
            path,
            real,
            ..Self::default()
        })
    }

    /// The same file, read up to `offset`.
    pub(super) fn moved(&self, file: &File, offset: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        let (head, tail) = (offset.min(COVERED), offset.min(COVERED));
        Ok(Self {
            device: metadata.dev(),
            offset,
            head,
            checksum: checksum(file, 0, head)?,
            tail,
            tail_checksum: checksum(file, offset - tail, tail)?,
            closed: None,
            ..self.clone()
        })
    }

    /// Whether a file still has the bytes that were read.
    pub(super) fn holds_in(&self, file: &File) -> io::Result<bool> {
        Ok(file.metadata()?.len() >= self.offset
            && checksum(file, 0, self.head)? == self.checksum
            && (self.tail == 0
                || checksum(file, self.offset - self.tail, self.tail)? == self.tail_checksum))
    }

    /// Whether another file contains the read part of this one: the copy that was made before the original was truncated.
    pub(super) fn was_copied_to(&self, file: &File) -> io::Result<bool> {
        Ok(self.tail > 0 && self.holds_in(file)?)
    }

    pub(super) fn identity(&self) -> Identity {
        Identity {
            device: self.device,
            inode: self.inode,
            birth: self.birth,
        }
    }

    /// Under which name the position is stored, after the stream's.
    ///
    /// Where the file system records no moment of birth, the folder takes its place.
    pub fn key(&self) -> String {
        match self.birth {
            Some(birth) => format!("file-{:x}-{birth:x}", self.inode),
            None => {
                let folder = towpath::disk::folder_of(&self.real).as_os_str();
                let folder = crc32c::crc32c(folder.as_encoded_bytes());
                format!("file-{:x}-in-{folder:08x}", self.inode)
            }
        }
    }
}

/// Distinguishes files that exist at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
    pub(super) birth: Option<u64>,
}

impl Identity {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            birth: metadata.created().ok().and_then(nanoseconds),
        }
    }

    /// Whether both are one file, also when the devices were numbered differently in between.
    pub(super) fn is_same_file(self, other: Self) -> bool {
        self.inode == other.inode
            && self.birth == other.birth
            && (self.birth.is_some() || self.device == other.device)
    }
}

fn nanoseconds(moment: SystemTime) -> Option<u64> {
    let since = moment.duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

fn checksum(file: &File, offset: u64, length: u64) -> io::Result<u32> {
    let length = usize::try_from(length.min(COVERED)).unwrap_or(0);
    read_at(file, offset, length).map(|bytes| crc32c::crc32c(&bytes))
}

/// Up to `most` bytes from `offset`.
pub(super) fn read_at(file: &File, offset: u64, most: usize) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len().saturating_sub(offset);
    let size = usize::try_from(length).unwrap_or(usize::MAX).min(most);
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while filled < size {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}
