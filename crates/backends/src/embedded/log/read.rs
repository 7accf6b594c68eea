//! Reading bodies back.

use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use bytes::Bytes;
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
            // Partly in the file and partly not; a record by itself is in one place.
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
        let file = self
            .shared
            .files
            .file(position.segment)
            .map_err(unreadable)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, u64::from(position.offset))
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
