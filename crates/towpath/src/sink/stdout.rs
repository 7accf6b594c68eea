//! A line a message, to a writer: standard output as a rule.

#![expect(clippy::disallowed_methods, reason = "lines have the machine's time")]

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::time::timeout;
use towpath_core::port::Sink;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, Result};

use super::line::LineFormat;

/// Timeout of a pipe's reader, after which the batch is released.
const DEADLINE: Duration = Duration::from_secs(30);

/// Writes lines and flushes them. Done means that the writer took them: their reader may still lose them, and a crash
/// can repeat lines.
pub struct LineSink {
    writer: Arc<Mutex<dyn Write + Send>>,
    format: LineFormat,
    deadline: Duration,
}

impl LineSink {
    /// A sink on this writer.
    pub fn new(writer: impl Write + Send + 'static, format: LineFormat) -> Self {
        Self {
            writer: Arc::new(Mutex::new(writer)),
            format,
            deadline: DEADLINE,
        }
    }
}

#[async_trait]
impl Sink for LineSink {
    async fn deliver(&self, batch: &[Delivery]) -> Result<Vec<Outcome>> {
        let (mut text, head) = (Vec::new(), self.format.head(jiff::Timestamp::now()));
        let outcomes = batch
            .iter()
            .map(|delivery| {
                match self
                    .format
                    .write(&delivery.message.payload, &head, &mut text)
                {
                    Ok(()) => Outcome::Done,
                    Err(reason) => Outcome::Reject { reason },
                }
            })
            .collect();
        let writer = Arc::clone(&self.writer);
        let write = async {
            let mut writer = writer.lock_owned().await;
            // A pipe without a reader blocks, and must not block the others.
            tokio::task::spawn_blocking(move || {
                writer.write_all(&text).and_then(|()| writer.flush())
            })
            .await
        };
        match timeout(self.deadline, write).await {
            Ok(Ok(Ok(()))) => Ok(outcomes),
            Ok(Ok(Err(error))) => {
                Err(Error::unavailable("lines cannot be written").with_source(error))
            }
            Ok(Err(error)) => Err(Error::unavailable("writing lines panicked").with_source(error)),
            Err(_) => Err(Error::unavailable(format!(
                "no process has read standard output for {:?}",
                self.deadline
            ))),
        }
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Mutex;

    use super::*;
    use crate::sink::testing::delivery;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.lock().unwrap().extend_from_slice(b"<flushed>");
            Ok(())
        }
    }

    #[tokio::test]
    async fn lines_are_written_in_order_and_flushed() {
        let page = Page::default();
        let sink = LineSink::new(page.clone(), LineFormat::Raw);
        let batch = [delivery("one"), delivery("t\nwo"), delivery("three")];
        let outcomes = sink.deliver(&batch).await.unwrap();
        assert_eq!(
            (&outcomes[0], &outcomes[2]),
            (&Outcome::Done, &Outcome::Done)
        );
        assert!(matches!(&outcomes[1], Outcome::Reject { reason } if reason.contains("newline")));
        assert_eq!(&*page.0.lock().unwrap(), b"one\nthree\n<flushed>");
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_or_hangs_is_named() {
        let (reader, writer) = io::pipe().unwrap();
        let mut sink = LineSink::new(writer, LineFormat::Stamped);
        sink.deadline = Duration::from_millis(200);
        // More than a pipe holds, without a reader.
        let batch = [delivery("x".repeat(1 << 20))];
        for _ in 0..2 {
            let error = sink.deliver(&batch).await.unwrap_err();
            assert_eq!(
                error.chain(),
                "no process has read standard output for 200ms"
            );
        }
        drop(reader);
        let error = sink.deliver(&batch).await.unwrap_err();
        assert!(
            error.chain().starts_with("lines cannot be written: "),
            "{error:?}"
        );
    }
}
