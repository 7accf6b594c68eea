//! Folders whose entries survive a power cut.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Syncs the folder that holds `path`: a new name is not durable without it.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path).unwrap_or(Path::new(".")))?.sync_all()
}

/// Makes the folder that holds `path`, and those above it, durably.
pub(super) fn make_parent(path: &Path) -> io::Result<()> {
    let Some(folder) = parent(path).filter(|folder| !folder.exists()) else {
        return Ok(());
    };
    make_parent(folder)?;
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_parent(folder),
    }
}

fn parent(path: &Path) -> Option<&Path> {
    path.parent()
        .filter(|parent| !parent.as_os_str().is_empty())
}
