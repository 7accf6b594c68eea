//! Backups: a copy of the folder while the store works.
//!
//! ```text
//! sync -> checkpoints -> segments, the oldest first; none is removed meanwhile
//! ```
//!
//! The log only grows at its end, so the copy is a state that a crash could have left: everything that was acknowledged
//! before it began, some of what came during it, and perhaps a torn tail, which opening cuts off.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use towpath_core::backend::Copied;
use towpath_core::{Error, Result};

use super::log::sync_folder;
use super::store::Store;

/// What a store has in its folder: what a backup holds and a restored one needs.
const PARTS: [&str; 2] = ["checkpoint", "log"];

impl Store {
    /// Copies the store into a folder that is not there yet or empty. Blocks.
    pub(super) fn backup(&self, to: &Path) -> Result<Copied> {
        refuse_full(to)?;
        self.keeps_segments.fetch_add(1, Ordering::SeqCst);
        let copied = self.copy(to);
        self.keeps_segments.fetch_sub(1, Ordering::SeqCst);
        copied.map_err(|error| failed(to, error))
    }

    fn copy(&self, to: &Path) -> io::Result<Copied> {
        self.log.sync_all().map_err(io::Error::other)?;
        let mut copied = Copied::default();
        {
            // No other checkpoint takes the place of these.
            let _checkpoint = self.checkpointing();
            copy_folder(
                &self.folder().join("checkpoint"),
                &to.join("checkpoint"),
                &mut copied,
            )?;
        }
        copy_folder(&self.folder().join("log"), &to.join("log"), &mut copied)?;
        sync_folder(to)?;
        Ok(copied)
    }
}

/// Puts a backup into a folder that has no store.
///
/// # Errors
/// `Invalid` when there is no backup, `Conflict` when the folder has a store, `Unavailable` when it cannot be written.
pub fn restore(from: &Path, to: &Path) -> Result<Copied> {
    if !from.join("log").is_dir() {
        let text = format!("`{}` is no backup: it has no folder `log`", from.display());
        return Err(Error::invalid(text));
    }
    for part in PARTS {
        refuse_full(&to.join(part))?;
    }
    let mut copied = Copied::default();
    let mut copy = || -> io::Result<()> {
        for part in PARTS {
            // A store that never had a checkpoint has no such folder.
            if from.join(part).is_dir() {
                copy_folder(&from.join(part), &to.join(part), &mut copied)?;
            }
        }
        sync_folder(to)
    };
    copy().map_err(|error| failed(to, error))?;
    Ok(copied)
}

fn refuse_full(folder: &Path) -> Result<()> {
    match fs::read_dir(folder)
        .ok()
        .and_then(|mut entries| entries.next())
    {
        Some(_) => Err(Error::conflict(format!(
            "`{}` is not empty; name a folder that is not there yet",
            folder.display()
        ))),
        None => Ok(()),
    }
}

fn copy_folder(from: &Path, to: &Path, copied: &mut Copied) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let mut names = match fs::read_dir(from) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    // The oldest first: what is appended meanwhile is behind all that was copied.
    names.sort();
    for name in names {
        copied.bytes += fs::copy(from.join(&name), to.join(&name))?;
        copied.files += 1;
        File::open(to.join(&name))?.sync_all()?;
    }
    sync_folder(to)
}

fn failed(to: &Path, error: io::Error) -> Error {
    Error::unavailable(format!("the copy in `{}` is not complete", to.display())).with_source(error)
}
