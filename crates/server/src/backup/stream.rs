//! A snapshot on its way from the process that has the store to the command that writes the backup.
//!
//! One line of JSON that lists the files, then their bytes, one file after the other. An early end is an error.

use std::collections::VecDeque;
use std::io::Read;

use bytes::Bytes;
use futures_util::stream::{BoxStream, Stream, StreamExt};
use tokio::sync::mpsc;
use towpath_core::backend::{Snapshot, SnapshotFile};
use towpath_core::{Error, Result};

/// Most bytes of the first line: a store of 100 TiB has less.
const HEAD_BYTES: usize = 1 << 30;

/// Bytes that are read at once, and pieces that wait for the other side.
const PIECE: usize = 256 << 10;
const PIECES: usize = 8;

/// The bytes of a snapshot. Dropping them ends it, and so does `stops`, which is asked before each piece.
///
/// # Errors
/// `Invalid` when the list cannot be encoded.
pub fn outgoing(
    snapshot: Snapshot,
    stops: impl Fn() -> bool + Send + 'static,
) -> Result<impl Stream<Item = std::io::Result<Bytes>> + Send + 'static> {
    let mut head = serde_json::to_vec(&snapshot.files).map_err(|error| {
        Error::invalid("the list of files cannot be encoded").with_source(error)
    })?;
    head.push(b'\n');
    let (sender, receiver) = mpsc::channel(PIECES);
    let mut bytes = snapshot.bytes;
    // Ends with the receiver, the snapshot or the process.
    tokio::task::spawn_blocking(move || {
        let mut next = Ok(Bytes::from(head));
        loop {
            let failed = next.is_err();
            if sender.blocking_send(next).is_err() || failed {
                return;
            }
            let mut piece = vec![0; PIECE];
            next = if stops() {
                Err(std::io::Error::other("the process is stopping"))
            } else {
                bytes.read(&mut piece).map(|read| {
                    piece.truncate(read);
                    Bytes::from(piece)
                })
            };
            if next.as_ref().is_ok_and(Bytes::is_empty) {
                return;
            }
            if let Err(error) = &next {
                tracing::error!(%error, "backup failed");
            }
        }
    });
    Ok(futures_util::stream::unfold(
        receiver,
        |mut receiver| async { Some((receiver.recv().await?, receiver)) },
    ))
}

/// A snapshot as it arrives.
pub struct SnapshotReader {
    stream: BoxStream<'static, Result<Bytes>>,
    /// Arrived and not read yet.
    rest: Bytes,
    /// Files that are still to come.
    files: VecDeque<SnapshotFile>,
    /// Bytes of the present file that are still to come.
    left: u64,
}

impl SnapshotReader {
    /// Reads the list of files.
    ///
    /// # Errors
    /// Those of the stream; `Corrupt` when it is something else.
    pub async fn begin(mut stream: BoxStream<'static, Result<Bytes>>) -> Result<Self> {
        let mut head = Vec::new();
        let rest = loop {
            let Some(piece) = stream.next().await else {
                return Err(Error::unavailable(
                    "the backup is incomplete: it ended before its list of files; repeat it",
                ));
            };
            let piece = piece?;
            if let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
                head.extend_from_slice(&piece[..end]);
                break piece.slice(end + 1..);
            }
            head.extend_from_slice(&piece);
            if head.len() > HEAD_BYTES {
                return Err(Error::corrupt("the answer is not a snapshot"));
            }
        };
        let files = serde_json::from_slice(&head)
            .map_err(|error| Error::corrupt("the answer is not a snapshot").with_source(error))?;
        Ok(Self {
            stream,
            rest,
            files,
            left: 0,
        })
    }

    /// The next file, once the one before was read to its end; absent behind the last.
    ///
    /// # Errors
    /// `Corrupt` when more came than was said.
    pub async fn next_file(&mut self) -> Result<Option<SnapshotFile>> {
        if let Some(file) = self.files.pop_front() {
            self.left = file.bytes;
            return Ok(Some(file));
        }
        if !self.rest.is_empty() || self.stream.next().await.transpose()?.is_some() {
            return Err(Error::corrupt(
                "the snapshot is longer than its list of files",
            ));
        }
        Ok(None)
    }

    /// Some bytes of the present file; absent at its end.
    ///
    /// # Errors
    /// `Unavailable` when the snapshot ends before the file does.
    pub async fn piece(&mut self) -> Result<Option<Bytes>> {
        if self.left == 0 {
            return Ok(None);
        }
        while self.rest.is_empty() {
            let Some(piece) = self.stream.next().await else {
                return Err(Error::unavailable("the snapshot ended early"));
            };
            self.rest = piece?;
        }
        let most =
            usize::try_from(self.left).map_or(self.rest.len(), |left| left.min(self.rest.len()));
        let piece = self.rest.split_to(most);
        self.left -= piece.len() as u64;
        Ok(Some(piece))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(said: u64, bytes: &'static [u8]) -> Snapshot {
        let file = |name: &str, bytes| SnapshotFile {
            name: name.to_owned(),
            bytes,
        };
        Snapshot {
            files: vec![file("a", 0), file("b", said)],
            bytes: Box::new(bytes),
        }
    }

    async fn read(snapshot: Snapshot, stops: bool) -> Result<Vec<u8>> {
        let stream = outgoing(snapshot, move || stops)?;
        let stream =
            stream.map(|piece| piece.map_err(|error| Error::unavailable(error.to_string())));
        let mut incoming = SnapshotReader::begin(stream.boxed()).await?;
        let mut all = Vec::new();
        while let Some(file) = incoming.next_file().await? {
            all.extend_from_slice(file.name.as_bytes());
            while let Some(piece) = incoming.piece().await? {
                all.extend_from_slice(&piece);
            }
        }
        Ok(all)
    }

    #[tokio::test]
    async fn a_snapshot_arrives_whole_or_not_at_all() {
        assert_eq!(read(snapshot(3, b"xyz"), false).await.unwrap(), b"abxyz");
        assert!(read(snapshot(4, b"xyz"), false).await.is_err());
        assert!(read(snapshot(2, b"xyz"), false).await.is_err());
        assert!(read(snapshot(3, b"xyz"), true).await.is_err());
    }
}
