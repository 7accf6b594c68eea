//! Snapshots: the files of the store as of one moment, read while it works.
//!
//! ```text
//! keep segments -> open checkpoints -> sync -> end of the log -> read checkpoints, segments up to that end
//! ```
//!
//! The log only grows at its end. A backup reads the log up to a synced position, and zeros after it: a restored store
//! has everything that was acknowledged before the snapshot began, no gap and no torn tail.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use towpath_core::backend::{Snapshot, SnapshotFile};
use towpath_core::{Error, Result};

use super::checkpoint;
use super::log::{Position, segment_path};
use super::store::Store;

impl Store {
    /// Begins to read the store as it is now. Blocks.
    pub(super) fn snapshot(self: &Arc<Self>) -> Result<Snapshot> {
        let kept = Kept::new(self);
        let io = |error: io::Error| {
            Error::unavailable("a file of the store cannot be read for the backup")
                .with_source(error)
        };
        let (mut files, mut sources) = (Vec::new(), Vec::new());
        {
            // No other checkpoint takes the place of these. Once open, they may be removed.
            let _checkpoint = self.checkpointing();
            for (name, file) in checkpoint::open_all(&self.folder().join("checkpoint"))? {
                let bytes = file.metadata().map_err(io)?.len();
                files.push(SnapshotFile { name, bytes });
                sources.push(Source::Open(file));
            }
        }
        let end = self.log.records_end();
        self.log.sync_all()?;
        let segments = self.log.segments();
        for (number, size) in segments {
            if number > end.segment {
                break;
            }
            let path = segment_path(&self.folder().join("log"), number);
            let found = std::fs::metadata(&path).map_err(io)?.len();
            if found < u64::from(size) {
                return Err(Error::corrupt(format!(
                    "segment `{}` has {found} of {size} bytes; a complete backup of this store is impossible",
                    path.display()
                )));
            }
            files.push(SnapshotFile {
                name: segment_name(number),
                bytes: u64::from(size),
            });
            sources.push(Source::Segment(number));
        }
        let lengths: Vec<u64> = files.iter().map(|file| file.bytes).collect();
        let bytes = SnapshotReader {
            kept,
            end,
            files: sources
                .into_iter()
                .zip(lengths)
                .collect::<Vec<_>>()
                .into_iter(),
            present: None,
        };
        Ok(Snapshot {
            files,
            bytes: Box::new(bytes),
        })
    }
}

/// The name of a segment in a snapshot.
fn segment_name(number: u32) -> String {
    format!("log/{number:010}.log")
}

/// While it lives no segment of the store is removed.
struct Kept(Arc<Store>);

impl Kept {
    fn new(store: &Arc<Store>) -> Self {
        store.keeps_segments.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(store))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.keeps_segments.fetch_sub(1, Ordering::SeqCst);
    }
}

enum Source {
    Open(File),
    Segment(u32),
}

struct SnapshotReader {
    kept: Kept,
    /// Of the log, synced.
    end: Position,
    files: std::vec::IntoIter<(Source, u64)>,
    present: Option<Part>,
}

/// The rest of a file to read.
struct Part {
    file: File,
    name: String,
    left: u64,
    /// Zeros that follow.
    zeros: u64,
}

impl SnapshotReader {
    fn open(&self, source: Source, bytes: u64) -> io::Result<Part> {
        let (mut file, name, used) = match source {
            Source::Open(file) => (file, "a checkpoint".to_owned(), bytes),
            Source::Segment(number) => {
                let path = segment_path(&self.kept.0.folder().join("log"), number);
                let used = match number == self.end.segment {
                    true => u64::from(self.end.offset).min(bytes),
                    false => bytes,
                };
                (File::open(path)?, segment_name(number), used)
            }
        };
        file.seek(SeekFrom::Start(0))?;
        Ok(Part {
            file,
            name,
            left: used,
            zeros: bytes - used,
        })
    }
}

impl Read for SnapshotReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.kept.0.is_closed() {
                return Err(io::Error::other("the store was closed during the backup"));
            }
            let Some(part) = &mut self.present else {
                let Some((source, bytes)) = self.files.next() else {
                    return Ok(0);
                };
                self.present = Some(self.open(source, bytes)?);
                continue;
            };
            let most = |left: u64| {
                usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()))
            };
            if part.left > 0 {
                let most = most(part.left);
                let read = part.file.read(&mut buffer[..most])?;
                if read == 0 {
                    let text = format!("`{}` ended {} bytes early", part.name, part.left);
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                part.left -= read as u64;
                return Ok(read);
            }
            if part.zeros > 0 {
                let most = most(part.zeros);
                buffer[..most].fill(0);
                part.zeros -= most as u64;
                return Ok(most);
            }
            self.present = None;
        }
    }
}
