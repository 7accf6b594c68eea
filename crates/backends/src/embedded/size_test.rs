//! Disk space that queued messages take, and its release.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, LeaseRequest, Settlement};
use towpath_core::{ConsumerId, NewMessage, QueueName, SystemClock};

use super::config::Config;
use super::store::Store;

const MESSAGES: usize = 40_000;
const BATCH: usize = 1_000;
const PAYLOAD: [u8; 100] = [b'x'; 100];

fn open(folder: &Path) -> Arc<Store> {
    let url = format!(
        "embedded:{}?segment=64KiB&reserve=0&durability=os",
        folder.display()
    );
    Store::open(Config::parse(&url).unwrap(), Arc::new(SystemClock::new())).unwrap()
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    // Upkeep may remove one meanwhile.
    let sizes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        metadata => metadata.map_or(0, |metadata| metadata.len()),
    });
    sizes.sum()
}

async fn fill(store: &Arc<Store>, queue: &QueueName) {
    for _ in 0..MESSAGES / BATCH {
        let batch = (0..BATCH).map(|_| NewMessage::new(PAYLOAD.as_slice()));
        for outcome in store.enqueue(queue, batch.collect()).await.unwrap() {
            outcome.unwrap();
        }
    }
}

#[tokio::test]
async fn a_byte_queued_in_batches_takes_at_most_1_3_bytes_of_disk() {
    let (folder, queue) = (
        tempfile::tempdir().unwrap(),
        QueueName::new("jobs").unwrap(),
    );
    let store = open(folder.path());
    fill(&store, &queue).await;
    store.checkpoint().unwrap();
    let more = vec![NewMessage::new("one more")];
    store.enqueue(&queue, more).await.unwrap();
    store.checkpoint().unwrap();
    let (bytes, queued) = (bytes_below(folder.path()), MESSAGES * PAYLOAD.len());
    assert!(bytes * 10 <= queued as u64 * 13, "{bytes} for {queued}");
}

#[tokio::test]
async fn the_disk_of_a_drained_queue_comes_back_without_a_restart() {
    let (folder, queue) = (
        tempfile::tempdir().unwrap(),
        QueueName::new("jobs").unwrap(),
    );
    let store = open(folder.path());
    fill(&store, &queue).await;
    store.checkpoint().unwrap();
    let full = bytes_below(folder.path());
    let request = LeaseRequest {
        queue: queue.clone(),
        consumer: ConsumerId::new("one").unwrap(),
        max: BATCH,
        in_flight: BATCH,
        lease: Duration::from_secs(60),
        wait: Duration::ZERO,
    };
    for _ in 0..MESSAGES / BATCH {
        let leased = store.lease(request.clone()).await.unwrap();
        let settlements = leased.into_iter().map(|delivery| Settlement {
            receipt: delivery.receipt,
            disposition: Disposition::Ack,
        });
        store.settle(settlements.collect()).await.unwrap();
    }
    let began = Instant::now();
    while bytes_below(folder.path()) * 10 > full {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{} of {full}",
            bytes_below(folder.path())
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
