//! One power cut under load, and how many of them.

use std::io;
use std::ops::Range;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use towpath_testkit::power_cut::{Cut, Disk};

use crate::process::{Running, World, seeds};

/// Number of cuts of one file system, so that the state after a cut is cut again.
const CUTS_PER_DISK: u64 = 4;

/// A seed for each file system, and how many cuts it goes through: together as many as `TOWPATH_SEEDS` says.
pub(crate) fn rounds() -> impl Iterator<Item = (u64, u64)> {
    let all = seeds(2);
    let disks = 0..all.div_ceil(CUTS_PER_DISK);
    disks.map(move |seed| (seed, (all - seed * CUTS_PER_DISK).min(CUTS_PER_DISK)))
}

/// Waits this many milliseconds.
pub(crate) fn pause(rng: &mut StdRng, milliseconds: Range<u64>) {
    std::thread::sleep(Duration::from_millis(rng.random_range(milliseconds)));
}

/// Cuts the power at a random moment, now and then once more while the process starts; `note` is called beforehand.
///
/// Afterwards the disk is back and nothing runs.
pub(crate) fn cut_under_load(
    world: &World,
    disk: &mut Disk,
    cut: Cut,
    running: Running,
    rng: &mut StdRng,
    note: impl Fn(&str),
) -> io::Result<()> {
    pause(rng, 5..600);
    note("power cut");
    disk.cut(cut)?;
    // The process meets the dead disk, and may not say anything now that is not so. A sync that lied (see
    // `Disk::cut`) spoils no answer: segments are overwritten in place, and whatever follows an append fails.
    pause(rng, 0..50);
    running.kill();
    disk.restart()?;
    if rng.random_ratio(1, 3) {
        let starting = world.spawn(&["up"]);
        pause(rng, 0..100);
        note("power cut while it starts");
        disk.cut(cut)?;
        starting.kill();
        disk.restart()?;
    }
    Ok(())
}
