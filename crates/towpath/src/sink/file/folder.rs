//! Folders whose entries survive a power cut.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::disk::folder_of;

/// Syncs the folder that holds `path`: a new name is not durable without it.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Makes the folder that holds `path`, and those above it, durably.
pub(super) fn make_parent(path: &Path) -> io::Result<()> {
    let folder = folder_of(path);
    if folder.exists() {
        return Ok(());
    }
    make_parent(folder)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_parent(folder),
    }
}
