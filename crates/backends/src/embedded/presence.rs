//! Whether the files of an open store are still its own.
//!
//! Files removed, renamed or replaced under a running process still take writes, and no later process finds them:
//! the store stops, so that nothing more is acknowledged.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use towpath_core::{Error, Result};

use super::config::Config;
use super::lock::FolderLock;
use super::log::Looked;
use super::store::Store;
use crate::identity::{Pinned, lost};

/// The files whose identity a check compares with the start.
pub(super) struct Presence {
    folder: Pinned,
    lock: Pinned,
    checkpoints: Mutex<Checkpoints>,
    segments: Mutex<Looked>,
}

/// The folder of checkpoints, once there is one, and the newest of them.
#[derive(Default)]
struct Checkpoints {
    folder: Option<Pinned>,
    newest: Option<PathBuf>,
}

impl Presence {
    /// Of a store that holds its lock.
    pub(super) fn new(config: &Config, lock: &FolderLock) -> Result<Self> {
        let folder = Pinned::folder("data folder", &config.folder)
            .map_err(|error| lost("data folder", &config.folder, error))?;
        Ok(Self {
            folder,
            lock: lock.pin(&config.folder)?,
            checkpoints: Mutex::default(),
            segments: Mutex::default(),
        })
    }

    /// From now on the log rests on this checkpoint.
    pub(super) fn rests_on(&self, checkpoint: PathBuf) -> Result<()> {
        let mut checkpoints = self.checkpoints();
        if checkpoints.folder.is_none()
            && let Some(folder) = checkpoint.parent()
        {
            let pinned = Pinned::folder("checkpoint folder", folder)
                .map_err(|error| lost("checkpoint folder", folder, error))?;
            checkpoints.folder = Some(pinned);
        }
        checkpoints.newest = Some(checkpoint);
        Ok(())
    }

    /// No look at the segments while this is held.
    #[cfg(test)]
    pub(super) fn hold_looks(&self) -> impl Sized + '_ {
        self.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checkpoints(&self) -> std::sync::MutexGuard<'_, Checkpoints> {
        self.checkpoints
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Compares the files with their identity at the start; stops the store when they were replaced.
    ///
    /// # Errors
    /// `Unavailable` when the store has stopped.
    pub(super) fn check_presence(&self) -> Result<()> {
        if let Some(failure) = self.log.failed() {
            return Err(failure);
        }
        self.look().inspect_err(|gone| self.log.fail(gone.chain()))
    }

    /// Whether the file system accepts writes. Without traffic only a write shows it: a file system that became read-only
    /// gives no other sign.
    ///
    /// # Errors
    /// `Unavailable` when it is read-only.
    pub(super) fn check_writable(&self) -> Result<()> {
        match self.folder_lock().as_ref().map(FolderLock::touch) {
            Some(Err(error)) if error.kind() == std::io::ErrorKind::ReadOnlyFilesystem => {
                let folder = self.folder().display();
                Err(
                    Error::unavailable(format!("the file system of `{folder}` is read-only"))
                        .with_source(error),
                )
            }
            _ => Ok(()),
        }
    }

    fn look(&self) -> Result<()> {
        self.presence.folder.check()?;
        self.presence.lock.check()?;
        {
            let checkpoints = self.presence.checkpoints();
            if let Some(folder) = &checkpoints.folder {
                folder.check()?;
            }
            if let Some(newest) = &checkpoints.newest {
                std::fs::metadata(newest).map_err(|error| lost("checkpoint", newest, error))?;
            }
        }
        let tables = self.lock().state.kv.tables().clone();
        for table in tables.iter() {
            if let Err(error) = std::fs::metadata(&table.path)
                // Merged tables are removed.
                && self.lock().state.kv.tables().are(&tables)
            {
                return Err(lost("table of keys", &table.path, error));
            }
        }
        let segments = &self.presence.segments;
        let mut looked = segments.lock().unwrap_or_else(PoisonError::into_inner);
        self.log.look(&mut looked)
    }
}
