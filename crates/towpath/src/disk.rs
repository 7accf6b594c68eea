//! Folders of files, and small files that are whole or not there, also when the machine stops in between.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use towpath_core::{Error, Result};

/// The folder that a path's last name is in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent()
        .filter(|folder| !folder.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Options that make a file which only its owner can read.
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Makes a folder that only its owner can use.
pub fn private_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(folder)
}

/// Makes a folder that only its owner can use, and the missing ones above it.
pub fn private_folders(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// Refuses a file with secrets that another user owns: that user knows them, or chose them.
///
/// # Errors
/// `Invalid`.
pub fn check_owner(path: &Path, found: &fs::Metadata) -> Result<()> {
    let user = rustix::process::geteuid().as_raw();
    // The user 0 is root.
    if [user, 0].contains(&found.uid()) {
        return Ok(());
    }
    let path = path.display();
    Err(Error::invalid(format!(
        "`{path}` belongs to user {}, and this process runs as user {user}; delete it for a new one, or run `chown {user} {path}` after checking its contents",
        found.uid()
    )))
}

/// Puts a file with these bytes in the place of the one that is there, readable by its owner only.
///
/// # Errors
/// When the folder cannot be made or written; the old file is there then.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = folder_of(path);
    private_folders(folder)?;
    // A temporary file is readable by its owner only from the first moment.
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

/// The space on the disk of an embedded store that its reserve file holds, and that others leave to it.
#[derive(Debug, Clone)]
pub struct Floor {
    /// The store's reserve file.
    pub file: PathBuf,
    /// Bytes that are kept free, the file included.
    pub reserve: u64,
}

impl Floor {
    /// Whether this many more bytes in `folder` leave the store enough room to free space; always on another disk.
    ///
    /// # Errors
    /// `StorageFull` when they do not.
    pub fn check(&self, folder: &Path, bytes: u64) -> io::Result<()> {
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
