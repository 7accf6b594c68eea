//! Standard error behind a thread and a bounded buffer: a log that is closed, or a pipe that is full because its reader
//! stopped, never makes the process wait and never ends it.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait for the reader of the log; further ones are dropped and counted.
const WAITING: usize = 8_192;

/// Longest wait for the last lines at the end of the process.
const LAST_LINES: Duration = Duration::from_millis(200);

/// Longest hold of lines for a banner; a longer start shows its lines.
const HOLD: Duration = Duration::from_secs(2);

static SENDER: OnceLock<SyncSender<Entry>> = OnceLock::new();

enum Entry {
    Line {
        text: Vec<u8>,
        /// A warning or an error is never held.
        is_urgent: bool,
    },
    /// Lines that are not urgent wait from now on.
    Hold,
    /// All lines before it were written.
    Mark(SyncSender<()>),
}

/// Takes lines for the thread.
#[derive(Clone)]
pub(super) struct LogWriter {
    sender: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
    is_urgent: bool,
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
        let is_urgent = true;
        let writer = Self {
            sender,
            dropped,
            is_urgent,
        };
        (writer, lines)
    }
}

/// The thread's side.
struct Lines {
    receiver: Receiver<Entry>,
    dropped: Arc<AtomicU64>,
}

impl Lines {
    fn write(self, log: &mut impl Write, dropped: fn(u64) -> String) {
        let (mut held, mut until) = (Vec::new(), None::<Instant>);
        loop {
            let entry = match until {
                None => self.receiver.recv().map_err(RecvTimeoutError::from),
                Some(end) => self
                    .receiver
                    .recv_timeout(end.saturating_duration_since(Instant::now())),
            };
            let is_held = matches!(
                &entry,
                Ok(Entry::Line {
                    is_urgent: false,
                    ..
                })
            );
            if !(is_held && until.is_some()) {
                // A log that is closed has no reader; the process works on.
                log.write_all(&held).ok();
                held.clear();
            }
            match entry {
                Ok(Entry::Line { text, .. }) if is_held && until.is_some() => held.extend(text),
                Ok(Entry::Line { text, .. }) => log.write_all(&text).unwrap_or(()),
                Ok(Entry::Hold) => until = Some(Instant::now() + HOLD),
                Ok(Entry::Mark(written)) => {
                    until = None;
                    // The one who waits may be gone.
                    written.try_send(()).unwrap_or(());
                }
                Err(RecvTimeoutError::Timeout) => until = None,
                Err(RecvTimeoutError::Disconnected) => return,
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

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self {
        let is_urgent = *metadata.level() <= Level::WARN;
        Self {
            is_urgent,
            ..self.clone()
        }
    }
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let (text, is_urgent) = (line.to_vec(), self.is_urgent);
        let entry = Entry::Line { text, is_urgent };
        if let Err(TrySendError::Full(_)) = self.sender.try_send(entry) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Holds lines below a warning until [`flush`], at most for two seconds, so that a banner comes first.
pub fn hold() {
    if let Some(sender) = SENDER.get() {
        sender.try_send(Entry::Hold).ok();
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
    fn held_lines_wait_for_a_warning_or_the_mark() {
        let (writer, lines) = LogWriter::new(9);
        let line = |text: &str, is_urgent| {
            let mut writer = LogWriter {
                is_urgent,
                ..writer.clone()
            };
            writer.write_all(text.as_bytes()).unwrap();
        };
        /// Keeps each write apart.
        struct Writes(Vec<String>);
        impl Write for Writes {
            fn write(&mut self, text: &[u8]) -> io::Result<usize> {
                if !text.is_empty() {
                    self.0.push(String::from_utf8_lossy(text).into_owned());
                }
                Ok(text.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        writer.sender.send(Entry::Hold).unwrap();
        line("one ", false);
        line("two ", false);
        line("warning ", true);
        line("three ", false);
        line("four ", false);
        let (written, _mark) = sync_channel(1);
        writer.sender.send(Entry::Mark(written)).unwrap();
        line("five ", false);
        drop(writer);
        let mut log = Writes(Vec::new());
        lines.write(&mut log, |_| String::new());
        let expected = ["one two ", "warning ", "three four ", "five "];
        assert_eq!(log.0, expected);
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
