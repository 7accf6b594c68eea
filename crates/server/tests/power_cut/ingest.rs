//! Ingest with queue and output on one disk: a message that was answered with 200 is one line, after any cut.

use std::time::Duration;

use libtest_mimic::Failed;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_testkit::ledger::{Account, violations};
use towpath_testkit::power_cut::{Cut, Disk, FileSystem};

use crate::cuts::{cut_under_load, rounds};
use crate::process::World;
use crate::producers::{Producers, ledger, read_output, up};

/// Cuts as often as `TOWPATH_SEEDS` says.
pub(crate) fn keeps_everything(
    name: &str,
    file_system: FileSystem,
    cut: Cut,
) -> Result<(), Failed> {
    for (seed, cuts) in rounds() {
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
            let note = |what: &str| ledger.fault("disk", what);
            cut_under_load(&world, &mut disk, cut, running, &mut rng, note)?;
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

fn world(disk: &Disk) -> World {
    let mut world = World::at(&disk.path());
    // Small, so that segments are made, checkpointed and removed all the time.
    world.set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "256KiB");
    world
}
