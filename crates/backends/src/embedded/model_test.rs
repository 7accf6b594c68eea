//! Random steps and random crashes against a simple model of what must be there.
//!
//! A crash is a copy of the folder while the store is open, with a random part of
//! what was not yet acknowledged taken away; the copy is opened and compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_core::port::Queue;
use towpath_core::port::queue::{Enqueued, LeaseRequest, Settings, Settlement, Verdict};
use towpath_core::{
    ConsumerId, Delivery, ManualClock, MessageId, NewMessage, QueueName, Timestamp, retry,
};

use super::config::Config;
use super::store::Store;

fn open(folder: &Path, clock: &Arc<ManualClock>) -> Arc<Store> {
    let url = format!("embedded:{}?segment=64KiB&reserve=0", folder.display());
    let clock = Arc::clone(clock);
    Store::open(Config::parse(&url).unwrap(), clock).unwrap()
}

fn copy(from: &Path, to: &Path) {
    for folder in ["log", "checkpoint"] {
        std::fs::create_dir_all(to.join(folder)).unwrap();
        let Ok(entries) = std::fs::read_dir(from.join(folder)) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            // A file may go while it is copied, as a segment does after a checkpoint.
            std::fs::copy(&path, to.join(folder).join(path.file_name().unwrap())).ok();
        }
    }
}

/// What the callers know.
#[derive(Debug, Default, Clone)]
struct Model {
    /// Acknowledged and not acked: must be there, with at least so many attempts begun and settled.
    present: BTreeMap<MessageId, u32>,
    /// Acked, or dropped: must never come again.
    gone: BTreeSet<MessageId>,
    dedup: BTreeMap<String, MessageId>,
    dead: BTreeSet<MessageId>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reopened_store_has_everything_that_was_acknowledged() {
    let seeds = std::env::var("TOWPATH_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(12);
    for seed in 0..seeds {
        run(seed).await;
    }
}

async fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000)));
    let folder = tempfile::tempdir().unwrap();
    let mut crashes = Vec::new();
    let mut path = folder.path().to_owned();
    let mut store = open(&path, &clock);
    let queue = QueueName::new("jobs").unwrap();
    let settings = Settings {
        retry: retry::Policy {
            attempts: 3,
            ..Default::default()
        },
        ..Default::default()
    };
    store.declare(&queue, &settings).await.unwrap();
    let mut model = Model::default();
    let mut in_hand: Vec<Delivery> = Vec::new();
    for step in 0..400 {
        let at = format!("seed {seed} step {step}");
        match rng.random_range(0..100) {
            0..40 => {
                let messages: Vec<NewMessage> = (0..rng.random_range(1..8))
                    .map(|_| message(&mut rng))
                    .collect();
                let outcomes = store.enqueue(&queue, messages.clone()).await.unwrap();
                for (message, outcome) in messages.iter().zip(outcomes) {
                    match (outcome.unwrap(), &message.dedup_id) {
                        (Enqueued::New(id), dedup_id) => {
                            model.present.insert(id, 0);
                            if let Some(dedup_id) = dedup_id {
                                assert_eq!(model.dedup.insert(dedup_id.clone(), id), None, "{at}");
                            }
                        }
                        (Enqueued::Duplicate(id), Some(dedup_id)) => {
                            assert_eq!(model.dedup.get(dedup_id), Some(&id), "{at}")
                        }
                        other => panic!("{at}: {other:?}"),
                    }
                }
            }
            40..65 => {
                let leased = lease(&store, &queue, rng.random_range(1..10)).await;
                for delivery in &leased {
                    let id = delivery.message.id;
                    assert!(
                        !model.gone.contains(&id) && !model.dead.contains(&id),
                        "{at}: {id} came again"
                    );
                    let attempts = model
                        .present
                        .get_mut(&id)
                        .unwrap_or_else(|| panic!("{at}: {id} was never sent"));
                    assert!(
                        delivery.attempt > *attempts,
                        "{at}: attempt {} after {attempts}",
                        delivery.attempt
                    );
                    assert!(delivery.attempt <= 3, "{at}");
                }
                in_hand.extend(leased);
            }
            65..85 => {
                let count = rng.random_range(0..=in_hand.len());
                let settled: Vec<(Delivery, Verdict)> = in_hand
                    .drain(..count)
                    .map(|delivery| (delivery, verdict(&mut rng)))
                    .collect();
                let outcomes = store
                    .settle(
                        settled
                            .iter()
                            .map(|(delivery, verdict)| Settlement {
                                receipt: delivery.receipt.clone(),
                                verdict: verdict.clone(),
                            })
                            .collect(),
                    )
                    .await
                    .unwrap();
                for ((delivery, verdict), outcome) in settled.into_iter().zip(outcomes) {
                    if outcome.is_ok() {
                        note(&mut model, &delivery, &verdict);
                    }
                }
            }
            85..92 => clock.advance(Duration::from_millis(rng.random_range(1..20_000))),
            92..95 => store.checkpoint().unwrap(),
            95..97 => store.compact().unwrap(),
            _ => {
                // Power is cut: the folder as it is, and the process is gone.
                let image = tempfile::tempdir().unwrap();
                copy(&path, image.path());
                store.close().unwrap();
                path = image.path().to_owned();
                crashes.push(image);
                in_hand.clear();
                store = open(&path, &clock);
            }
        }
        balance(&store, &queue, &at).await;
    }
    finish(&store, &queue, &clock, &model, seed).await;
}

fn message(rng: &mut StdRng) -> NewMessage {
    let mut message = NewMessage::new(vec![rng.random::<u8>(); rng.random_range(0..3000)]);
    if rng.random_bool(0.3) {
        message.key = Some(format!("key {}", rng.random_range(0..5)));
    }
    if rng.random_bool(0.3) {
        message.dedup_id = Some(format!("dedup {}", rng.random_range(0..60)));
    }
    if rng.random_bool(0.1) {
        message.not_before = Some(Timestamp::from_millis(
            1_700_000_000_000 + rng.random_range(0..500_000),
        ));
    }
    message
}

fn verdict(rng: &mut StdRng) -> Verdict {
    match rng.random_range(0..10) {
        0..6 => Verdict::Ack,
        6..8 => Verdict::Retry {
            after: Duration::from_millis(rng.random_range(0..5_000)),
            error: "no".to_owned(),
        },
        8 => Verdict::Release,
        _ => Verdict::DeadLetter {
            reason: "poison".to_owned(),
        },
    }
}

fn note(model: &mut Model, delivery: &Delivery, verdict: &Verdict) {
    let id = delivery.message.id;
    match verdict {
        Verdict::Ack => {
            model.present.remove(&id);
            model.gone.insert(id);
        }
        Verdict::Retry { .. } if delivery.attempt < 3 => {
            model.present.insert(id, delivery.attempt);
        }
        Verdict::Release => {}
        Verdict::Retry { .. } | Verdict::DeadLetter { .. } => {
            model.present.remove(&id);
            model.dead.insert(id);
        }
    }
}

async fn lease(store: &Arc<Store>, queue: &QueueName, max: usize) -> Vec<Delivery> {
    let consumer = ConsumerId::new("one").unwrap();
    let request = LeaseRequest {
        queue: queue.clone(),
        consumer,
        max,
        lease: Duration::from_secs(10),
        wait: Duration::ZERO,
    };
    store.lease(request).await.unwrap()
}

async fn balance(store: &Arc<Store>, queue: &QueueName, at: &str) {
    let stats = store.stats(queue).await.unwrap();
    let there =
        stats.ready + stats.delayed + stats.leased + stats.dead + stats.acked + stats.dropped;
    assert_eq!(stats.enqueued, there, "{at}: {stats:?}");
}

/// Everything that must be there comes, in the end, as a delivery or a dead letter.
async fn finish(
    store: &Arc<Store>,
    queue: &QueueName,
    clock: &ManualClock,
    model: &Model,
    seed: u64,
) {
    let mut seen = BTreeSet::new();
    for _ in 0..400 {
        clock.advance(Duration::from_secs(11));
        let leased = lease(store, queue, 100).await;
        let settled = leased.iter().map(|delivery| Settlement {
            receipt: delivery.receipt.clone(),
            verdict: Verdict::Ack,
        });
        for outcome in store.settle(settled.collect()).await.unwrap() {
            outcome.unwrap();
        }
        seen.extend(leased.iter().map(|delivery| delivery.message.id));
        let stats = store.stats(queue).await.unwrap();
        if stats.ready + stats.delayed + stats.leased == 0 {
            break;
        }
    }
    let dead: BTreeSet<MessageId> = store
        .dead_letters(queue, None, 10_000)
        .await
        .unwrap()
        .iter()
        .map(|one| one.message.id)
        .collect();
    for id in model.present.keys() {
        assert!(
            seen.contains(id) || dead.contains(id),
            "seed {seed}: {id} is lost"
        );
    }
    for id in &seen {
        assert!(
            model.present.contains_key(id),
            "seed {seed}: {id} came again"
        );
    }
    assert!(model.dead.is_subset(&dead), "seed {seed}");
    store.close().unwrap();
}

#[tokio::test]
async fn one_flipped_bit_never_loses_a_message_silently() {
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000)));
    let folder = tempfile::tempdir().unwrap();
    let queue = QueueName::new("jobs").unwrap();
    let store = open(folder.path(), &clock);
    let mut sent = BTreeSet::new();
    for number in 0..120_u32 {
        let message = NewMessage::new(number.to_le_bytes().repeat(50));
        sent.insert(message.id);
        store.enqueue(&queue, vec![message]).await.unwrap();
    }
    let log = folder.path().join("log/0000000001.log");
    let bytes = std::fs::read(&log).unwrap();
    let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
    // What comes after vouches for what was there; the very last frame has nothing behind it for a moment.
    let message = NewMessage::new(7_u32.to_le_bytes().repeat(50));
    sent.insert(message.id);
    store.enqueue(&queue, vec![message]).await.unwrap();
    let bytes = std::fs::read(&log).unwrap();
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let image = tempfile::tempdir().unwrap();
        copy(folder.path(), image.path());
        let mut bytes = bytes.clone();
        let bit = rng.random_range(0..used * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(image.path().join("log/0000000001.log"), &bytes).unwrap();
        let store = open(image.path(), &clock);
        let mut seen = BTreeSet::new();
        loop {
            let leased = lease(&store, &queue, 50).await;
            if leased.is_empty() {
                break;
            }
            for delivery in leased {
                assert_eq!(delivery.message.payload.len(), 200, "seed {seed}");
                seen.insert(delivery.message.id);
            }
        }
        let warnings = store.health().unwrap().warnings;
        assert!(seen.is_subset(&sent), "seed {seed}");
        assert!(
            seen == sent || warnings.iter().any(|warning| warning.contains("damaged")),
            "seed {seed}: {warnings:?}"
        );
        store.close().unwrap();
    }
}
