//! The disk's own rate: the yardstick of every durable figure.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Row;
use super::limit::Limit;
use super::measure::{Latencies, Measurement};

const BLOCK: [u8; 4096] = [7; 4096];
const BLOCKS: u64 = 1024;

/// Writes 4 KiB and syncs, again and again, in a preallocated file of 4 MiB.
///
/// With a pause before each it is another disk: many take longer for a sync that follows on none.
pub(crate) fn measure(pause: Duration, folder: &Path, limit: &Limit) -> io::Result<Row> {
    let path = folder.join("disk.probe");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .open(&path)?;
    for _ in 0..BLOCKS {
        file.write_all(&BLOCK)?;
    }
    file.sync_all()?;
    let what = if pause.is_zero() {
        "disk: 4 KiB write + fdatasync"
    } else {
        "disk, idle"
    };
    let measurement = Measurement::start(what, "fsync", 1, 1);
    let (mut latencies, mut count) = (Latencies::default(), 0);
    while limit.take(1) {
        std::thread::sleep(pause);
        let call = Instant::now();
        file.write_all_at(&BLOCK, (count % BLOCKS) * 4096)?;
        file.sync_data()?;
        latencies.record(call);
        count += 1;
    }
    std::fs::remove_file(&path)?;
    Ok(measurement.finish(count, latencies, None))
}
