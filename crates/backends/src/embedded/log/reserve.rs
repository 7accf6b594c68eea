//! A file that holds disk space for the moment in which there is none.
//!
//! Leaving a full disk takes space: a checkpoint has to be written before segments can be removed, and a segment may be
//! needed for the records that end messages. Free space alone is not a reserve, because other processes write to the disk as well.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FallocateFlags, fallocate};

use crate::private;

/// Its name in the data folder.
pub const NAME: &str = "reserve";

/// The file, and whether it is there.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    bytes: u64,
    held: Mutex<bool>,
}

impl Reserve {
    /// Half of the configured reserve; the log refuses writes at the other half.
    pub(super) fn new(path: PathBuf, reserve_bytes: u64) -> Self {
        let bytes = reserve_bytes / 2;
        let found = fs::metadata(&path).is_ok_and(|found| bytes > 0 && found.len() == bytes);
        Self {
            path,
            bytes,
            held: Mutex::new(found),
        }
    }

    /// Bytes that it holds now.
    pub(super) fn held(&self) -> u64 {
        match *self.held.lock().unwrap_or_else(PoisonError::into_inner) {
            true => self.bytes,
            false => 0,
        }
    }

    /// Makes the file again when so much is free that the log does not stop because of it.
    pub(super) fn refill(&self, free: u64) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held || self.bytes == 0 || free / 3 < self.bytes {
            return;
        }
        match self.allocate() {
            Ok(()) => *held = true,
            Err(error) => {
                fs::remove_file(&self.path).ok();
                tracing::debug!(%error, "disk reserve not allocated");
            }
        }
    }

    fn allocate(&self) -> io::Result<()> {
        let mut options = private::options();
        let file = options
            .create(true)
            .truncate(true)
            .write(true)
            .open(&self.path)?;
        fallocate(&file, FallocateFlags::empty(), 0, self.bytes)?;
        Ok(())
    }

    /// Gives the space to the caller. False when there is none to give.
    pub(super) fn release(&self) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::take(&mut *held) {
            return false;
        }
        match fs::remove_file(&self.path) {
            Ok(()) => {
                tracing::info!(bytes = self.bytes, "disk reserve released");
                true
            }
            Err(error) => {
                tracing::warn!(%error, "disk reserve not released");
                false
            }
        }
    }
}

/// Whether an error says that the disk is full, itself or behind others.
pub(crate) fn is_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let full = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    };
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(full) {
            return true;
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_held_released_once_and_held_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let reserve = Reserve::new(path.clone(), 2 << 20);
        reserve.refill(2 << 20);
        assert_eq!(reserve.held(), 0, "too little is free");
        reserve.refill(1 << 30);
        assert_eq!(reserve.held(), 1 << 20);
        assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
        assert_eq!(Reserve::new(path.clone(), 2 << 20).held(), 1 << 20);
        assert!(reserve.release() && !reserve.release());
        assert!(!path.exists());
        reserve.refill(1 << 30);
        assert!(path.exists());
    }

    #[test]
    fn full_disk_is_found_behind_other_errors() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = towpath_core::Error::unavailable("a checkpoint cannot be written");
        assert!(is_full(&error.with_source(full)));
        assert!(!is_full(&towpath_core::Error::unavailable("else")));
    }
}
