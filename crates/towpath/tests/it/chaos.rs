//! Random `kill -9` under load: every acknowledged message in the file exactly once, no line torn, none merged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::process::{World, seeds};

/// What the producers know: the only witness, because the system under test is never asked what it did.
#[derive(Default)]
struct Ledger {
    acknowledged: BTreeSet<String>,
    unknown: BTreeSet<String>,
}

/// Producers that post numbered messages until told to stop.
///
/// Every third message is retried with its idempotency key until it is acknowledged, so
/// it must come out exactly once whatever happened in between.
struct Producers {
    ledger: Arc<Mutex<Ledger>>,
    over: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Producers {
    fn start(world: &World, count: usize) -> Self {
        let ledger = Arc::<Mutex<Ledger>>::default();
        let over = Arc::<AtomicBool>::default();
        let threads = (0..count)
            .map(|producer| {
                let (mut client, ledger, over) =
                    (world.client(), Arc::clone(&ledger), Arc::clone(&over));
                std::thread::spawn(move || {
                    for number in 0.. {
                        if over.load(Ordering::SeqCst) {
                            break;
                        }
                        let text = format!("p{producer}-{number}-{}", "x".repeat(number % 300));
                        let key = [("idempotency-key", text.as_str())];
                        let headers = if number % 3 == 0 { &key[..] } else { &[] };
                        loop {
                            match client.send("POST", "/enqueue", headers, text.as_bytes()) {
                                Ok(answer) if answer.status == 200 => {
                                    ledger.lock().unwrap().acknowledged.insert(text);
                                    break;
                                }
                                // Refused: known not to be stored.
                                Ok(answer) => assert!(
                                    [429, 503].contains(&answer.status),
                                    "{}",
                                    answer.text()
                                ),
                                Err(_) if headers.is_empty() => {
                                    ledger.lock().unwrap().unknown.insert(text);
                                    break;
                                }
                                Err(_) if over.load(Ordering::SeqCst) => {
                                    ledger.lock().unwrap().unknown.insert(text);
                                    break;
                                }
                                Err(_) => {}
                            }
                            std::thread::sleep(Duration::from_millis(5));
                        }
                    }
                })
            })
            .collect();
        Self {
            ledger,
            over,
            threads,
        }
    }

    fn stop(self) -> Ledger {
        self.over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
        Arc::into_inner(self.ledger).unwrap().into_inner().unwrap()
    }
}

/// Compares what came out with what the producers know.
fn check(ledger: &Ledger, messages: &[String], story: &str) {
    let mut counts = BTreeMap::<&str, usize>::new();
    for message in messages {
        *counts.entry(message).or_default() += 1;
    }
    for message in &ledger.acknowledged {
        assert_eq!(
            counts.get(message.as_str()),
            Some(&1),
            "{story}: acknowledged {message:?}"
        );
    }
    for (message, count) in counts {
        assert_eq!(count, 1, "{story}: {message:?} written {count} times");
        assert!(
            ledger.acknowledged.contains(message) || ledger.unknown.contains(message),
            "{story}: nobody sent {message:?}"
        );
    }
}

#[test]
fn killed_at_random_every_acknowledged_message_is_written_once() {
    for seed in 0..seeds(4) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::new();
        world.set("TOWPATH_EMBEDDED__SEGMENT_SIZE", "1MiB");
        let mut running = world.up();
        let producers = Producers::start(&world, 8);
        let kills = rng.random_range(1..=3);
        for _ in 0..kills {
            std::thread::sleep(Duration::from_millis(rng.random_range(5..400)));
            running.kill();
            running = world.up();
        }
        std::thread::sleep(Duration::from_millis(50));
        let ledger = producers.stop();
        world.wait_drained();
        let (status, log, _) = running.stop();
        assert!(status.success(), "{log}");
        let story = format!("seed {seed}, {kills} kills");
        check(&ledger, &world.messages(), &story);
        eprintln!(
            "{story}: {} acknowledged, {} unknown, all accounted for",
            ledger.acknowledged.len(),
            ledger.unknown.len()
        );
    }
}

#[test]
fn killed_while_the_worker_is_slow_no_line_is_doubled() {
    for seed in 0..seeds(2) {
        let mut rng = StdRng::seed_from_u64(1_000_000 + seed);
        let mut world = World::new();
        world.set("PROCESSING_DELAY_MS", 5);
        let mut running = world.up();
        let producers = Producers::start(&world, 2);
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(rng.random_range(5..150)));
            running.kill();
            running = world.up();
        }
        let ledger = producers.stop();
        running.kill();
        world.set("PROCESSING_DELAY_MS", "");
        let running = world.up();
        world.wait_drained();
        drop(running);
        check(&ledger, &world.messages(), &format!("seed {seed}"));
    }
}
