//! Flipped bits on the disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_core::port::Queue;
use towpath_core::{ManualClock, NewMessage, QueueName, Timestamp};

use super::model_test::{copy, lease, open};

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
    // Later frames prove earlier ones; the very last frame has none after it for a moment.
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
