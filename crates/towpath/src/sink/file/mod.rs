//! The output file: each message one line, written once.
//!
//! ```text
//! lock -> announce in the journal, sync -> append, sync -> done -> unlock
//! ```
//!
//! The announcement holds the text itself. After a crash it is compared with the
//! file, and its missing part is written. A message that is delivered again after it was written is
//! recognised by its id among the last 100,000, and is done without a second line. Workers that share
//! the file take turns, a batch each, and know of each other's messages.

#![expect(clippy::disallowed_methods, reason = "lines have the machine's time")]

mod folder;
mod journal;
mod lock;
mod output;
mod record;
mod rotation;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::timeout;
use towpath_core::database::Waits;
use towpath_core::port::Sink;
use towpath_core::port::sink::Outcome;
use towpath_core::stall::Watch;
use towpath_core::{Delivery, Error, MessageId, Result};

use self::output::Output;
pub use self::rotation::Rotation;
use super::line::LineFormat;
use crate::disk::Floor;

/// Timeout of the disk, after which a batch is released.
const DEADLINE: Duration = Duration::from_secs(60);

/// The most text that is announced and appended at once, unless one line is longer.
const PART_BYTES: usize = 4 * 1024 * 1024;

/// Appends to one file, at least once with duplicates dropped among the last 100,000 messages: effectively once.
pub struct FileSink {
    output: Arc<Mutex<Output>>,
    format: LineFormat,
    name: String,
    watch: Arc<Watch>,
}

impl FileSink {
    /// A sink on this file. It is opened by the first delivery, so that a path that
    /// cannot be written now can be fixed while the process runs.
    pub fn new(path: impl Into<PathBuf>, format: LineFormat) -> Self {
        let path = path.into();
        Self {
            name: path.display().to_string(),
            output: Arc::new(Mutex::new(Output::new(path))),
            format,
            watch: Arc::new(Watch::new()),
        }
    }

    /// Begins new outputs as `rotation` says.
    #[must_use]
    pub fn rotating(self, rotation: Rotation) -> Self {
        self.with(|output| output.rotation = rotation)
    }

    /// Whether a batch is synced to the disk before it is done. It is by default.
    #[must_use]
    pub fn synced(self, is_synced: bool) -> Self {
        self.with(|output| output.set_synced(is_synced))
    }

    /// Makes new outputs with this mode.
    #[must_use]
    pub fn with_mode(self, mode: u32) -> Self {
        self.with(|output| output.mode = mode)
    }

    /// Stops when a store on the same disk has only its reserve left.
    #[must_use]
    pub fn above(self, floor: Option<Floor>) -> Self {
        self.with(|output| output.floor = floor)
    }

    /// Since when it waits for its disk.
    pub fn waits(&self) -> Waits {
        let watch = Arc::clone(&self.watch);
        Arc::new(move || watch.lasts())
    }

    fn with(mut self, change: impl FnOnce(&mut Output)) -> Self {
        // There is no other handle before the first delivery.
        if let Some(output) = Arc::get_mut(&mut self.output) {
            change(output.get_mut());
        }
        self
    }

    /// Where the journal of an output is.
    pub fn journal_of(path: &Path) -> PathBuf {
        output::journal_of(path)
    }

    fn unavailable(&self) -> Error {
        Error::unavailable(format!("output `{}` cannot be written", self.name))
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>> {
        let messages: Vec<(MessageId, Bytes)> = batch
            .iter()
            .map(|Delivery { message, .. }| (message.id, message.payload.clone()))
            .collect();
        let format = self.format;
        let (output, watch) = (Arc::clone(&self.output), Arc::clone(&self.watch));
        let write = async {
            let mut output = output.lock_owned().await;
            // Continues when this call is dropped; the journal then has its result.
            tokio::task::spawn_blocking(move || {
                let mut append = |part: &[_]| watch.during(|| output.write(part));
                write(&mut append, format, &messages)
            })
            .await
        };
        match timeout(DEADLINE, write).await {
            Ok(Ok(Ok(outcomes))) => Ok(outcomes),
            Ok(Ok(Err(error))) => Err(self.unavailable().with_source(error)),
            Ok(Err(panic)) => Err(self.unavailable().with_source(panic)),
            Err(late) => Err(self.unavailable().with_source(late)),
        }
    }

    async fn close(&self) -> Result<()> {
        self.output.lock().await.close();
        Ok(())
    }
}

/// A message and the bytes appended for it.
type Line = (MessageId, Vec<u8>);

/// Writes a batch in parts of a few MiB, so that large messages do not all stand in memory as lines.
///
/// After an error some parts may be written; the journal has them when the batch is delivered again.
fn write(
    append: &mut dyn FnMut(&[Line]) -> io::Result<()>,
    format: LineFormat,
    messages: &[(MessageId, Bytes)],
) -> io::Result<Vec<Outcome>> {
    let head = format.head(jiff::Timestamp::now());
    let mut outcomes = Vec::with_capacity(messages.len());
    let (mut part, mut part_bytes) = (Vec::new(), 0);
    for (id, payload) in messages {
        let mut line = Vec::with_capacity(payload.len() + head.len() + 1);
        match format.write(payload, &head, &mut line) {
            Ok(()) => outcomes.push(Outcome::Done),
            Err(reason) => {
                outcomes.push(Outcome::Reject { reason });
                continue;
            }
        }
        if part_bytes + line.len() > PART_BYTES && !part.is_empty() {
            append(&std::mem::take(&mut part))?;
            part_bytes = 0;
        }
        part_bytes += line.len();
        part.push((*id, line));
    }
    append(&part)?;
    Ok(outcomes)
}
