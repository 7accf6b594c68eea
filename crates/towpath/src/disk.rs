//! Folders of files, and small files that are whole or not there, also when the machine stops in between.

use std::fs::File;
use std::io::Write;
use std::path::Path;

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
