//! Standard error behind a thread and a bounded buffer: a log that is closed, or a pipe that is full because its reader
//! stopped, never makes the process wait and never ends it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait for the reader of the log; further ones are dropped and counted.
const WAITING: usize = 8_192;

/// Longest wait for the last lines at the end of the process.
const LAST_LINES: Duration = Duration::from_millis(200);

static SENDER: OnceLock<SyncSender<Entry>> = OnceLock::new();

enum Entry {
    Line(Vec<u8>),
    /// All lines before it were written.
    Mark(SyncSender<()>),
}

/// Takes lines for the thread.
#[derive(Clone)]
pub(super) struct LogWriter {
    sender: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
}

impl LogWriter {
    /// Starts the thread that writes to standard error; `dropped` words the line that counts those that were dropped.
    ///
    /// # Errors
    /// When the system has no thread.
    pub(super) fn start(dropped: fn(u64) -> String) -> io::Result<Self> {
        let (writer, lines) = Self::new(WAITING);
        let builder = thread::Builder::new().name("towpath-log".to_owned());
        builder.spawn(move || lines.write(&mut io::stderr(), dropped))?;
        SENDER.get_or_init(|| writer.sender.clone());
        Ok(writer)
    }

    fn new(waiting: usize) -> (Self, Lines) {
        let (sender, receiver) = sync_channel(waiting);
        let dropped = Arc::new(AtomicU64::new(0));
        let lines = Lines {
            receiver,
            dropped: Arc::clone(&dropped),
        };
        (Self { sender, dropped }, lines)
    }
}

/// The thread's side.
struct Lines {
    receiver: Receiver<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    fn write(self, log: &mut impl Write, dropped: fn(u64) -> String) {
        for entry in self.receiver {
            match entry {
                // A log that is closed has no reader; the process works on.
                Entry::Line(line) => log.write_all(&line).unwrap_or(()),
                // The one who waits may be gone.
                Entry::Mark(written) => written.try_send(()).unwrap_or(()),
            }
            let count = self.dropped.swap(0, Ordering::Relaxed);
            if count > 0 {
                log.write_all(dropped(count).as_bytes()).ok();
            }
        }
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Err(TrySendError::Full(_)) = self.sender.try_send(Entry::Line(line.to_vec())) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until the lines so far were written, at most a moment.
pub fn flush() {
    let Some(sender) = SENDER.get() else { return };
    let (written, mark) = sync_channel(1);
    // A full buffer has no reader to wait for.
    if sender.try_send(Entry::Mark(written)).is_ok() {
        mark.recv_timeout(LAST_LINES).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_written_in_order_and_dropped_ones_are_counted() {
        let (mut writer, lines) = LogWriter::new(2);
        for text in ["one\n", "two\n", "three\n"] {
            writer.write_all(text.as_bytes()).unwrap();
        }
        drop(writer);
        let mut log = Vec::new();
        lines.write(&mut log, |count| format!("{count} dropped\n"));
        assert_eq!(log, b"one\n1 dropped\ntwo\n");
    }

    #[test]
    fn a_closed_log_stops_no_line() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut writer, lines) = LogWriter::new(2);
        writer.write_all(b"one\n").unwrap();
        drop(writer);
        lines.write(&mut Closed, |_| String::new());
    }
}
