//! A line a message, to a writer: standard output as a rule.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use towpath_core::port::Sink;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, Result};

use super::escape::escape;

/// Writes lines and flushes them. Done means that the writer took them: whoever reads them may still lose them,
/// so a crash can repeat lines.
pub struct LineSink {
    writer: Arc<Mutex<dyn Write + Send>>,
}

impl LineSink {
    /// A sink on this writer.
    pub fn new(writer: impl Write + Send + 'static) -> Self {
        Self {
            writer: Arc::new(Mutex::new(writer)),
        }
    }
}

/// `<RFC 3339 with nanoseconds> | <message>` and a newline.
pub(super) fn line(message: &[u8], now: jiff::Timestamp) -> String {
    format!("{now} | {}\n", escape(message))
}

#[async_trait]
impl Sink for LineSink {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>> {
        let text: String = batch
            .iter()
            .map(|delivery| line(&delivery.message.payload, jiff::Timestamp::now()))
            .collect();
        let writer = Arc::clone(&self.writer);
        // A pipe that nobody reads blocks, and must not block the others.
        tokio::task::spawn_blocking(move || {
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            writer
                .write_all(text.as_bytes())
                .and_then(|()| writer.flush())
        })
        .await
        .map_err(|error| Error::unavailable("writing lines panicked").with_source(error))?
        .map_err(|error| Error::unavailable("lines cannot be written").with_source(error))?;
        Ok(vec![Outcome::Done; batch.len()])
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
