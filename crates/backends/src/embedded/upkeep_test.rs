//! Space that is released without more traffic.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, LeaseRequest, Settlement};
use towpath_core::{ConsumerId, ManualClock, MessageId, NewMessage, QueueName, Timestamp};

use super::config::Config;
use super::store::Store;

#[tokio::test]
async fn a_drained_burst_gives_its_segments_back() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!(
        "embedded:{}?segment=64KiB&reserve=0",
        folder.path().display()
    );
    let open = || {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000)));
        Store::open(Config::parse(&url).unwrap(), clock).unwrap()
    };
    let store = open();
    let queue = QueueName::new("jobs").unwrap();
    for _ in 0..10 {
        let messages = (0..100).map(|_| NewMessage::new(vec![7; 3_000])).collect();
        store.enqueue(&queue, messages).await.unwrap();
    }
    let request = LeaseRequest {
        queue: queue.clone(),
        consumer: ConsumerId::new("one").unwrap(),
        max: 1_000,
        in_flight: 1_000,
        lease: Duration::from_secs(600),
        wait: Duration::ZERO,
    };
    let leased = store.lease(request.clone()).await.unwrap();
    assert_eq!(leased.len(), 1_000);
    let kept = |number: usize| number == 100 || number == 700;
    let settled = leased.iter().enumerate().map(|(number, delivery)| {
        let disposition = match kept(number) {
            true => Disposition::DeadLetter {
                reason: "poison".to_owned(),
            },
            false => Disposition::Ack,
        };
        Settlement {
            receipt: delivery.receipt.clone(),
            disposition,
        }
    });
    store.settle(settled.collect()).await.unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    while store.log.segments().len() > 5 {
        let count = store.log.segments().len();
        assert!(Instant::now() < until, "{count} segments for two messages");
        std::thread::sleep(Duration::from_millis(50));
    }
    // With nothing to do it does nothing.
    std::thread::sleep(Duration::from_secs(5));
    let end = store.log.records_end();
    std::thread::sleep(Duration::from_secs(5));
    assert_eq!(store.log.records_end(), end);
    store.close().unwrap();
    let store = open();
    let dead = store.dead_letters(&queue, None, 10).await.unwrap();
    assert_eq!(dead.len(), 2);
    assert!(dead.iter().all(|one| one.message.payload.len() == 3_000));
}

/// Bytes of the checkpoints in a folder.
fn checkpoints(folder: &Path) -> (Vec<PathBuf>, u64) {
    let entries = std::fs::read_dir(folder.join("checkpoint")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let sizes = paths
        .iter()
        .map(|path| path.metadata().map_or(0, |file| file.len()));
    let sum = sizes.sum();
    (paths, sum)
}

fn open_in(folder: &Path) -> Arc<Store> {
    let url = format!("embedded:{}?segment=64KiB&reserve=0", folder.display());
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000)));
    Store::open(Config::parse(&url).unwrap(), clock).unwrap()
}

#[tokio::test]
async fn a_drained_backlog_gives_the_space_of_its_checkpoints_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_in(folder.path());
    let queue = QueueName::new("jobs").unwrap();
    for _ in 0..40 {
        // Ids that do not follow each other take their whole length.
        let messages = (0..1_000).map(|_| NewMessage {
            id: MessageId::from_bytes(rand::random()),
            ..NewMessage::new("small")
        });
        store.enqueue(&queue, messages.collect()).await.unwrap();
        store.checkpoint().unwrap();
    }
    let (_, full) = checkpoints(folder.path());
    assert!(full > 500_000, "{full} bytes");
    store.purge(&queue).await.unwrap();
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let (left, segments) = (checkpoints(folder.path()).1, store.log.segments().len());
        if left < 10_000 && segments < 5 {
            break;
        }
        assert!(
            Instant::now() < until,
            "{left} bytes of checkpoints and {segments} segments for nothing"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[tokio::test]
async fn a_store_that_did_not_change_writes_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let store = open_in(folder.path());
    let queue = QueueName::new("jobs").unwrap();
    store
        .enqueue(&queue, vec![NewMessage::new("one")])
        .await
        .unwrap();
    store.close().unwrap();
    let (before, _) = checkpoints(folder.path());
    for _ in 0..2 {
        open_in(folder.path()).close().unwrap();
        assert_eq!(checkpoints(folder.path()).0, before);
    }
    // Replayed changes are saved.
    let store = open_in(folder.path());
    store
        .enqueue(&queue, vec![NewMessage::new("two")])
        .await
        .unwrap();
    store.close().unwrap();
    assert_ne!(checkpoints(folder.path()).0, before);
    assert_eq!(open_in(folder.path()).stats(&queue).await.unwrap().ready, 2);
}
