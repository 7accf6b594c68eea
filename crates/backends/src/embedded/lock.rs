//! One process per folder.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use towpath_core::{Error, Result};

use super::log::make_folder;
use crate::identity::{Pinned, lost};
use crate::private;

const NAME: &str = "LOCK";

/// Holds the folder until dropped; the operating system releases it when the process dies.
#[derive(Debug)]
pub(super) struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Takes the folder, made when it is not there.
    pub(super) fn take(folder: &Path) -> Result<Self> {
        let shown = folder.display();
        let io = |error: std::io::Error| {
            Error::unavailable(format!("data folder `{shown}` cannot be used")).with_source(error)
        };
        private::check_folder(folder)?;
        make_folder(folder).map_err(io)?;
        let mut file = private::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(folder.join(NAME))
            .map_err(io)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(io)?;
            return Err(Error::unavailable(format!(
                "data folder `{shown}` is in use by process {}; stop it, or choose another folder",
                holder.trim()
            )));
        }
        file.set_len(0).map_err(io)?;
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { file })
    }

    /// Writes the process's id again.
    pub(super) fn touch(&self) -> std::io::Result<()> {
        let holder = format!("{}\n", std::process::id());
        self.file.write_all_at(holder.as_bytes(), 0)
    }

    /// Identity of the lock file, which shows whether other processes still find it.
    pub(super) fn pin(&self, folder: &Path) -> Result<Pinned> {
        let path = folder.join(NAME);
        let open = self.file.metadata();
        let open = open.map_err(|error| lost("lock file", &path, error))?;
        Ok(Pinned::file("lock file", &path, &open))
    }
}

/// Keeps other processes from opening the store in a folder, and writes nothing; absent where there is no lock file.
///
/// # Errors
/// `Unavailable` when a process has it open.
pub(super) fn hold(folder: &Path) -> Result<Option<File>> {
    let path = folder.join(NAME);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        // A backup has none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let text = format!("`{}` cannot be read", path.display());
            return Err(Error::unavailable(text).with_source(error));
        }
    };
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
        return Ok(Some(file));
    }
    let mut holder = String::new();
    // Only its name is missing then.
    file.read_to_string(&mut holder).ok();
    Err(Error::unavailable(format!(
        "data folder `{}` is in use by process {}; stop it, or make a backup and verify that",
        folder.display(),
        holder.trim()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_taken_once_and_free_again_when_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderLock::take(folder.path()).unwrap();
        let error = FolderLock::take(folder.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("is in use by process {};", std::process::id())),
            "{error}"
        );
        drop(first);
        FolderLock::take(folder.path()).unwrap();
    }
}
