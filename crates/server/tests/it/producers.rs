//! Producers that post numbered messages while things break, and the ledger they keep.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use towpath_testkit::ledger::{Event, Ledger};

use crate::client::Client;
use crate::process::{Running, World};

/// A new ledger of this name; its file is kept when the test fails.
pub(crate) fn ledger(name: &str) -> Arc<Ledger> {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.jsonl"));
    Arc::new(Ledger::begin(path).unwrap())
}

/// Producers that continue until stopped.
///
/// Every third message is retried with its idempotency key until it is acknowledged, so
/// it must come out exactly once whatever happened in between.
pub(crate) struct Producers {
    over: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Producers {
    pub(crate) fn start(world: &World, count: usize, ledger: &Arc<Ledger>) -> Self {
        let over = Arc::<AtomicBool>::default();
        let threads = (0..count)
            .map(|producer| {
                let (mut client, ledger, over) =
                    (world.client(), Arc::clone(ledger), Arc::clone(&over));
                std::thread::spawn(move || {
                    let who = format!("p{producer}");
                    for number in 0.. {
                        if over.load(Ordering::SeqCst) {
                            break;
                        }
                        let id = format!("{who}-{number}");
                        offer(&mut client, &who, &id, number % 3 == 0, &ledger, &over);
                    }
                })
            })
            .collect();
        Self { over, threads }
    }

    /// Waits for the answers to work in progress.
    pub(crate) fn stop(self) {
        self.over.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// The payload of a message. Some are large, so that segments fill up.
pub(crate) fn text(id: &str) -> String {
    let number = id.rsplit('-').next().and_then(|number| number.parse().ok());
    let number: usize = number.unwrap_or_default();
    let filler = if number % 8 == 5 {
        30_000
    } else {
        number % 300
    };
    format!("{id} {}", "x".repeat(filler))
}

/// Which message has this payload; another payload is a message of its own.
fn id(payload: &str) -> &str {
    match payload.split_once(' ') {
        Some((id, _)) if text(id) == payload => id,
        _ => payload,
    }
}

/// Sends a message, until its outcome is known or, without a key, can no more be known.
fn offer(
    client: &mut Client,
    who: &str,
    id: &str,
    keyed: bool,
    ledger: &Ledger,
    over: &AtomicBool,
) {
    let (text, key) = (text(id), [("idempotency-key", id)]);
    let headers = if keyed { &key[..] } else { &[] };
    loop {
        // One message at a time, so that the order of a producer is that of its answers.
        ledger.offered(who, id, Some(who));
        let answer = client.send("POST", "/enqueue", headers, text.as_bytes());
        match answer.as_ref().map(|answer| answer.status) {
            Ok(200) => return ledger.acknowledged(who, id),
            Ok(429) => ledger.refused(who, id),
            // Says itself that the outcome is unknown, as does no answer at all.
            Ok(503) | Err(_) if !keyed => return,
            Ok(503) | Err(_) => {}
            Ok(status) => panic!("answered {status}"),
        }
        if over.load(Ordering::SeqCst) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Starts `towpath up`, and notes how long it takes.
pub(crate) fn up(world: &World, ledger: &Ledger) -> Running {
    ledger.record("towpath", Event::Started);
    let running = world.up();
    ledger.record("towpath", Event::Ready);
    running
}

/// Notes every line of the output file, whole or torn.
pub(crate) fn read_output(world: &World, ledger: &Ledger) {
    let bytes = std::fs::read(world.output()).unwrap_or_default();
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line);
        let message = line.strip_suffix('\n').and_then(|line| {
            let (timestamp, message) = line.split_once(" | ")?;
            timestamp.parse::<jiff::Timestamp>().ok().map(|_| message)
        });
        match message {
            Some(message) => ledger.written("output", id(message)),
            None => ledger.record("output", Event::Torn { text: line.into() }),
        }
    }
}
