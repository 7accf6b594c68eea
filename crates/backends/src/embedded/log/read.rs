//! Reading bodies back.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use towpath_core::{Error, Result};

use super::{Log, Position};

impl Log {
    /// Reads bytes of a record's body, also before they are written. Records carry their own checksums.
    ///
    /// # Errors
    /// `Corrupt` when the segment or the bytes are not there; `Unavailable` for I/O, which may pass.
    pub(crate) fn read(&self, position: Position, length: u32) -> Result<Bytes> {
        let end = position.plus(length).to_u64();
        if end > self.shared.written.load(Ordering::Acquire) {
            if let Some(bytes) = self.read_buffered(position, length) {
                return Ok(bytes);
            }
            // Partly in the file and partly in memory; a single record is never split.
            if end > self.shared.written.load(Ordering::Acquire) {
                return Err(Error::unavailable(format!(
                    "{length} bytes at {position} are being written"
                )));
            }
        }
        let gone = || Error::corrupt(format!("segment {} is not there", position.segment));
        let unreadable = |error: io::Error| {
            if error.kind() == io::ErrorKind::NotFound {
                return gone();
            }
            Error::unavailable(format!("{length} bytes at {position} cannot be read"))
                .with_source(error)
        };
        let size = self.shared.files.size(position.segment).ok_or_else(gone)?;
        if position
            .offset
            .checked_add(length)
            .is_none_or(|end| end > size)
        {
            return Err(Error::corrupt(format!(
                "{length} bytes at {position} are outside of their segment"
            )));
        }
        let mut bytes = vec![0; length as usize];
        let offset = u64::from(position.offset);
        let files = &self.shared.files;
        if let Some(file) = files.opened(position.segment)
            && is_cached(&file, &mut bytes, offset)
        {
            return Ok(bytes.into());
        }
        may_wait(|| {
            let file = files.file(position.segment)?;
            file.read_exact_at(&mut bytes, offset)
        })
        .map_err(unreadable)?;
        Ok(bytes.into())
    }

    fn read_buffered(&self, position: Position, length: u32) -> Option<Bytes> {
        let buffers = self.shared.lock();
        buffers
            .writing
            .iter()
            .chain(&buffers.pending)
            .find_map(|chunk| {
                if chunk.start.segment != position.segment {
                    return None;
                }
                let start = position.offset.checked_sub(chunk.start.offset)? as usize;
                chunk
                    .bytes
                    .get(start..start + length as usize)
                    .map(Bytes::copy_from_slice)
            })
    }
}

/// Fills the bytes from a file, without keeping a thread of the runtime from its work while the disk is waited for.
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    if is_cached(file, bytes, offset) {
        return Ok(());
    }
    may_wait(|| file.read_exact_at(bytes, offset))
}

/// Reads bytes that the system has in memory; false when some of it is on the disk, or the file system cannot tell.
fn is_cached(file: &File, bytes: &mut [u8], offset: u64) -> bool {
    let length = bytes.len();
    let buffers = &mut [IoSliceMut::new(bytes)];
    preadv2(file, buffers, offset, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == length)
}

/// Runs a call that may wait for the disk. On a thread of the runtime others do its work meanwhile: a disk that hangs must not
/// take the threads that answer probes and signals.
fn may_wait<T>(work: impl FnOnce() -> T) -> T {
    match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => block_in_place(work),
        _ => work(),
    }
}
