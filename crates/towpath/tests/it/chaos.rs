//! Random `kill -9` under load: every acknowledged message in the file exactly once, no line torn, none merged.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::process::{World, seeds};
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
