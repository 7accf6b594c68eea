//! Continuing behind a reader that keeps no position.

use towpath_core::retry::Backoff;
use towpath_core::{Error, ErrorKind, Result};
use tracing::{info, warn};

use super::reader::{AGAIN, Reader};
use crate::source::{self, Resumed, Saved};
use towpath::supervisor::Stop;

/// Newest lines of another reader that say where it was.
const RESUMED_BY: usize = 256;

impl Reader {
    /// Moves positions behind the last line that another reader, which keeps no positions, sent of a file.
    pub(super) async fn resume(&self, saved: &mut Saved, stop: &Stop) -> Result<()> {
        let mut backoff = Backoff::new(AGAIN);
        let lines = loop {
            let stream = &self.settings.stream;
            match self.streams.newest_of_others(stream, RESUMED_BY).await {
                Ok(lines) => break lines,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    self.metrics.backend_failed();
                    self.health.set(self.role, Some(error.chain()));
                    if !stop.sleep(backoff.next_delay()).await {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        };
        if lines.is_empty() {
            return Ok(());
        }
        let (inputs, host) = (self.settings.inputs.clone(), self.settings.host.clone());
        let (found, back) = tokio::task::spawn_blocking({
            let before = std::mem::take(saved);
            move || (source::resume(&inputs, &before, &host, &lines), before)
        })
        .await
        .map_err(|panic| Error::unavailable("reading the inputs panicked").with_source(panic))?;
        *saved = back;
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                warn!(%error, "last line of another reader not found");
                None
            }
        };
        let Some(Resumed { position, matched }) = found else {
            return Ok(());
        };
        let (key, read) = (position.key(), position.offset);
        let input = position.path.display();
        info!(%input, read, matched, "another reader appended to the stream; continuing behind its last line");
        saved.positions.insert(key, position);
        // It is stored with the first lines that are sent; until then the next start finds the same.
        Ok(())
    }
}
