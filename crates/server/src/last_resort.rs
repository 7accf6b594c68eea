//! The end of a process that cannot end in order.
//!
//! A thread that waits for a disk that hangs cannot be cancelled, and may hold locks that the others need. So the end is kept by
//! threads that touch neither a disk nor a lock of the process.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Time limit of the last line of the log: it goes to a file on a disk, perhaps.
const SAID: Duration = Duration::from_millis(100);

/// Time limit of the exit.
const EXIT: Duration = Duration::from_secs(1);

/// Ends the process with `code` when it is still there after `limit`, and says `why`.
#[expect(
    clippy::exit,
    reason = "threads that a disk holds cannot be joined, so that main cannot return"
)]
pub(crate) fn end_after(limit: Duration, code: u8, why: &'static str) {
    let end = move || {
        thread::sleep(limit);
        let (logged, done) = mpsc::sync_channel(1);
        thread::spawn(move || {
            tracing::error!(?limit, code, "{why}");
            crate::telemetry::flush_logs();
            logged.send(())
        });
        done.recv_timeout(SAID).ok();
        thread::spawn(|| {
            thread::sleep(EXIT);
            std::process::abort();
        });
        std::process::exit(code.into());
    };
    let thread = thread::Builder::new().name("towpath-end".to_owned());
    if let Err(error) = thread.spawn(end) {
        tracing::warn!(%error, "shutdown watchdog not started");
    }
}
