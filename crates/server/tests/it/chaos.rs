//! Random `kill -9` under load: every acknowledged message in the file exactly once, no line torn, none merged.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustix::fs::{CWD, RenameFlags};

use crate::process::{World, seeds, wait_until};
use crate::producers::{Producers, ledger, read_output, up};

#[test]
fn killed_at_random_every_acknowledged_message_is_written_once() {
    for seed in 0..seeds(4) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        world.set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "1MiB");
        let ledger = ledger(&format!("killed-{seed}"));
        let mut running = up(&world, &ledger);
        let producers = Producers::start(&world, 8, &ledger);
        for _ in 0..rng.random_range(1..=3) {
            std::thread::sleep(Duration::from_millis(rng.random_range(5..400)));
            ledger.fault("towpath", "kill -9");
            running.kill();
            running = up(&world, &ledger);
        }
        std::thread::sleep(Duration::from_millis(50));
        producers.stop();
        world.wait_drained();
        let (status, log, _) = running.stop();
        assert!(status.success(), "{log}");
        read_output(&world, &ledger);
        let account = ledger.settle().unwrap_or_else(|wrong| panic!("{wrong}"));
        eprintln!("seed {seed}: {account}");
    }
}

#[test]
fn killed_at_random_while_it_continues_with_a_store_of_an_older_format() {
    let samples =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../backends/tests/samples");
    let mut versions: Vec<_> = std::fs::read_dir(samples)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir())
        .collect();
    versions.sort();
    for (seed, version) in (0_u64..).zip(versions) {
        let mut rng = StdRng::seed_from_u64(3_000_000 + seed);
        let mut world = World::new();
        world.set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "1MiB");
        let store = world.data();
        for part in ["checkpoint", "log"] {
            std::fs::create_dir_all(store.join(part)).unwrap();
            for file in std::fs::read_dir(version.join(part)).unwrap() {
                let file = file.unwrap();
                std::fs::copy(file.path(), store.join(part).join(file.file_name())).unwrap();
            }
        }
        let ledger = ledger(&format!("older-{seed}"));
        let mut running = up(&world, &ledger);
        let before = world.json(&["queue", "show", "jobs"]);
        let letters = world.json(&["dlq", "ls", "jobs"]);
        let producers = Producers::start(&world, 8, &ledger);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(rng.random_range(5..400)));
            ledger.fault("towpath", "kill -9");
            running.kill();
            running = up(&world, &ledger);
        }
        std::thread::sleep(Duration::from_millis(50));
        producers.stop();
        world.wait_drained();
        let after = world.json(&["queue", "show", "jobs"]);
        for counted in ["ready", "delayed", "dead", "enqueued", "acked", "dropped"] {
            assert_eq!(
                before[counted],
                after[counted],
                "{counted} of {}",
                version.display()
            );
        }
        assert_eq!(letters, world.json(&["dlq", "ls", "jobs"]));
        drop(running);
        read_output(&world, &ledger);
        let account = ledger.settle().unwrap_or_else(|wrong| panic!("{wrong}"));
        eprintln!("{}: {account}", version.display());
    }
}

#[test]
fn killed_while_the_worker_is_slow_no_line_is_doubled() {
    for seed in 0..seeds(2) {
        let mut rng = StdRng::seed_from_u64(1_000_000 + seed);
        let mut world = World::new();
        world.set("PROCESSING_DELAY_MS", 5);
        let ledger = ledger(&format!("slow-{seed}"));
        let mut running = up(&world, &ledger);
        let producers = Producers::start(&world, 2, &ledger);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(rng.random_range(5..150)));
            ledger.fault("towpath", "kill -9");
            running.kill();
            running = up(&world, &ledger);
        }
        producers.stop();
        running.kill();
        world.set("PROCESSING_DELAY_MS", "");
        let running = up(&world, &ledger);
        world.wait_drained();
        drop(running);
        read_output(&world, &ledger);
        let account = ledger.settle().unwrap_or_else(|wrong| panic!("{wrong}"));
        eprintln!("seed {seed}: {account}");
    }
}

#[test]
fn an_output_that_cannot_be_written_for_a_while_loses_and_charges_nothing() {
    for seed in 0..seeds(2) {
        let mut rng = StdRng::seed_from_u64(2_000_000 + seed);
        let world = World::new();
        let ledger = ledger(&format!("unwritable-{seed}"));
        let running = up(&world, &ledger);
        let producers = Producers::start(&world, 4, &ledger);
        let (output, aside) = (world.output(), world.folder.join("aside"));
        wait_until("the first line", Duration::from_secs(30), || {
            output.is_file()
        });
        // A folder in the file's place cannot be written by any user, root included.
        std::fs::create_dir(&aside).unwrap();
        let swap = || rustix::fs::renameat_with(CWD, &output, CWD, &aside, RenameFlags::EXCHANGE);
        for _ in 0..rng.random_range(1..=3) {
            std::thread::sleep(Duration::from_millis(rng.random_range(5..300)));
            swap().unwrap();
            ledger.fault("output", "unwritable");
            std::thread::sleep(Duration::from_millis(rng.random_range(5..300)));
            swap().unwrap();
        }
        producers.stop();
        world.wait_drained();
        let stats = world.json(&["queue", "show", "messages"]);
        assert_eq!((&stats["dead"], &stats["retried"]), (&0.into(), &0.into()));
        drop(running);
        read_output(&world, &ledger);
        let account = ledger.settle().unwrap_or_else(|wrong| panic!("{wrong}"));
        eprintln!("seed {seed}: {account}");
    }
}
