//! Locks on files, between the processes of one machine.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Longest wait for the lock of another worker; a batch takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Short beside the syncs of a batch.
const PAUSE: Duration = Duration::from_millis(1);

/// Locks the file, waiting while another process has it.
///
/// # Errors
/// `WouldBlock` when it is held for longer than ten seconds.
pub(super) fn lock(file: &File, path: &Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) if began.elapsed() < PATIENCE => sleep(PAUSE),
            Err(Errno::WOULDBLOCK) => {
                let what = format!(
                    "`{}` is held by another process for longer than {PATIENCE:?}",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Device and inode: which file it is, whatever its name.
pub(super) fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
