//! Positions of the reader, for its operator.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use towpath_core::port::SourceOffsets;
use towpath_core::port::source_offsets::{AppendAt, AppendOutcome};
use towpath_core::{Error, ErrorKind, QueueName, Result, StreamName};

use super::reader::POSITION;
use crate::source::{Position, position_at};

/// Number of conflicts with another reader that moves the position, before this one gives way.
const TRIES: usize = 10;

/// The positions of a stream's inputs.
pub struct Stored {
    /// Where they are.
    pub positions: Arc<dyn SourceOffsets>,
    /// The stream.
    pub stream: StreamName,
    /// The name of this host.
    pub host: String,
}

/// A position of an input.
pub struct Shown {
    /// The position.
    pub position: Position,
    /// Whether it is stored.
    pub is_saved: bool,
}

impl Stored {
    /// The position of a file, after it was set behind a number of lines, or behind the last one.
    ///
    /// # Errors
    /// `NotFound` and `Invalid` for the file; those of the backend; `Conflict` when a reader kept moving it.
    pub async fn show_or_set(&self, path: &Path, set: Option<Option<u64>>) -> Result<Shown> {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let lines = set.unwrap_or(Some(0));
        let host = self.host.clone();
        let read = tokio::task::spawn_blocking(move || {
            let position = position_at(&path, lines, &host);
            position.map_err(|error| unreadable(&path, error))
        });
        let position = read.await.map_err(|panic| {
            Error::unavailable("reading the input panicked").with_source(panic)
        })??;
        let name = format!("{POSITION}{}:{}", self.stream, position.key());
        let mut from = self.positions.position(&name).await?;
        if set.is_none() {
            let stored = from.and_then(|stored| serde_json::from_slice(&stored).ok());
            let is_saved = stored.is_some();
            let position = stored.unwrap_or(position);
            return Ok(Shown { position, is_saved });
        }
        let to = Bytes::from(serde_json::to_vec(&position).unwrap_or_default());
        for _ in 0..TRIES {
            let step = AppendAt {
                source: name.clone(),
                from,
                to: to.clone(),
                stream: self.stream.clone(),
                entries: Vec::new(),
                dead: QueueName::new(format!("{}.dead", self.stream))?,
                rejected: Vec::new(),
            };
            match self.positions.append_at(step).await? {
                AppendOutcome::Appended => {
                    let is_saved = true;
                    return Ok(Shown { position, is_saved });
                }
                AppendOutcome::OffsetConflict(now) => from = now,
            }
        }
        Err(Error::conflict(
            "a reader moves the position; stop it, and set the position again",
        ))
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        _ => ErrorKind::Invalid,
    };
    Error::new(kind, format!("input `{}`: {error}", path.display()))
}
