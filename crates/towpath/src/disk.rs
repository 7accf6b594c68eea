//! Folders of files, and small files that are whole or not there, also when the machine stops in between.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The folder that a path's last name is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Puts a file with these bytes in the place of the one that is there, readable by its owner only.
///
/// # Errors
/// When the folder cannot be made or written; the old file is there then.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = folder_of(path);
    std::fs::create_dir_all(folder)?;
    // A temporary file is readable by its owner only from the first moment.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// The space on the disk of an embedded store that its reserve file holds, and that others leave to it.
#[derive(Debug, Clone)]
pub(crate) struct Floor {
    /// The store's reserve file.
    pub(crate) file: PathBuf,
    /// Bytes that are kept free, the file included.
    pub(crate) reserve: u64,
}

impl Floor {
    /// Whether this many more bytes in `folder` leave the store enough room to free space; always on another disk.
    ///
    /// # Errors
    /// `StorageFull` when they do not.
    pub(crate) fn check(&self, folder: &Path, bytes: u64) -> io::Result<()> {
        let store = fs::metadata(folder_of(&self.file))?.dev();
        if fs::metadata(folder)?.dev() != store {
            return Ok(());
        }
        let disk = rustix::fs::statvfs(folder)?;
        let held = fs::metadata(&self.file).map_or(0, |file| file.len());
        let room = disk
            .f_bavail
            .saturating_mul(disk.f_frsize)
            .saturating_add(held);
        if room.saturating_sub(bytes) < self.reserve / 2 {
            let text =
                "No space left on device beyond the store's reserve; remove files from its disk";
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        Ok(())
    }
}
