//! Ingest with queue and output on one disk: a message that was answered with 200 is one line, after any cut.

use std::ops::Range;
use std::time::Duration;

use libtest_mimic::Failed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::ledger::{Account, violations};
use towpath_testkit::power_cut::{Cut, Disk, FileSystem};

use crate::CUTS_PER_DISK;
use crate::process::{World, seeds};
use crate::producers::{Producers, ledger, read_output, up};

/// Cuts as often as `TOWPATH_SEEDS` says.
pub(crate) fn keeps_everything(
    name: &str,
    file_system: FileSystem,
    cut: Cut,
) -> Result<(), Failed> {
    let all = seeds(2);
    for seed in 0..all.div_ceil(CUTS_PER_DISK) {
        let cuts = (all - seed * CUTS_PER_DISK).min(CUTS_PER_DISK);
        let mut rng = StdRng::seed_from_u64(seed);
        let mut disk = Disk::new(file_system)?;
        let mut world = world(&disk);
        // Half of the time most is still in the queue at the cut, half of the time most is in the file.
        if rng.random() {
            world.set("PROCESSING_DELAY_MS", rng.random_range(1..20));
        }
        let ledger = ledger(&format!("power-cut-{name}-{seed}"));
        let mut running = up(&world, &ledger);
        let producers = Producers::start(&world, 8, &ledger);
        for _ in 0..cuts {
            pause(&mut rng, 5..600);
            ledger.fault("disk", "power cut");
            disk.cut(cut)?;
            // The process meets the dead disk, and may not say anything now that is not so. A sync that lied (see
            // `Disk::cut`) spoils no answer: segments are overwritten in place, and whatever follows an append fails.
            pause(&mut rng, 0..50);
            running.kill();
            disk.restart()?;
            if rng.random_ratio(1, 3) {
                let starting = world.spawn(&["up"]);
                pause(&mut rng, 0..100);
                ledger.fault("disk", "power cut while it starts");
                disk.cut(cut)?;
                starting.kill();
                disk.restart()?;
            }
            running = up(&world, &ledger);
        }
        producers.stop();
        world.set("PROCESSING_DELAY_MS", "");
        drop(running.stop());
        let running = up(&world, &ledger);
        world.wait_drained();
        drop(running);
        read_output(&world, &ledger);
        let account = ledger
            .settle()
            .map_err(|wrong| format!("{name}, seed {seed}: {wrong}"))?;
        eprintln!("{name}, seed {seed}: {account}");
    }
    Ok(())
}

/// The same without syncs must lose something, and the checker must say so: otherwise neither proves anything.
pub(crate) fn shows_the_loss_without_syncs(
    name: &str,
    file_system: FileSystem,
    cut: Cut,
) -> Result<(), Failed> {
    let mut disk = Disk::new(file_system)?;
    let mut world = world(&disk);
    world
        .set("TOWPATH_EMBEDDED__DURABILITY", "os")
        .set("PROCESSING_DELAY_MS", 20);
    let ledger = ledger(&format!("power-cut-{name}-without-syncs"));
    let running = up(&world, &ledger);
    let producers = Producers::start(&world, 8, &ledger);
    std::thread::sleep(Duration::from_millis(500));
    ledger.fault("disk", "power cut");
    disk.cut(cut)?;
    running.kill();
    producers.stop();
    disk.restart()?;
    world.set("PROCESSING_DELAY_MS", "");
    let running = up(&world, &ledger);
    world.wait_drained();
    drop(running);
    read_output(&world, &ledger);
    let history = ledger.history()?;
    eprintln!("{name}, durability `os`: {}", Account::of(&history));
    let lost = violations(&history)
        .iter()
        .any(|violation| violation.name == "acknowledged_is_present");
    if lost {
        ledger.discard();
        Ok(())
    } else {
        Err("a power cut without any sync was not noticed".into())
    }
}

/// Waits so many milliseconds.
pub(crate) fn pause(rng: &mut StdRng, milliseconds: Range<u64>) {
    std::thread::sleep(Duration::from_millis(rng.random_range(milliseconds)));
}

fn world(disk: &Disk) -> World {
    let mut world = World::at(&disk.path());
    // Small, so that segments are made, checkpointed and removed all the time.
    world.set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "256KiB");
    world
}
