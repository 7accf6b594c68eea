//! Promises of the store that only a crash, a long life or an unlucky order put to the test.

#![expect(clippy::disallowed_methods, reason = "tests have no supervisor")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use towpath_core::port::Queue;
use towpath_core::port::kv::{Kv, Op};
use towpath_core::port::queue::{Disposition, LeaseRequest, Settings, Settlement};
use towpath_core::port::routes::{Binding, Publication, Routes};
use towpath_core::{
    ConsumerId, Delivery, ErrorKind, ExchangeName, ManualClock, NewMessage, QueueName, Timestamp,
};

use super::config::Config;
use super::store::Store;

const START: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn open(folder: &Path, clock: &Arc<ManualClock>) -> Arc<Store> {
    let url = format!("embedded:{}?segment=64KiB&reserve=0", folder.display());
    Store::open(Config::parse(&url).unwrap(), Arc::clone(clock) as _).unwrap()
}

/// The folder as a crash at this moment leaves it.
fn crash_image(from: &Path) -> tempfile::TempDir {
    let image = tempfile::tempdir().unwrap();
    super::model_test::copy(from, image.path());
    image
}

fn queue(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

async fn lease(store: &Arc<Store>, name: &str, max: usize, wait: Duration) -> Vec<Delivery> {
    let request = LeaseRequest {
        queue: queue(name),
        consumer: ConsumerId::new("one").unwrap(),
        max,
        in_flight: max,
        lease: Duration::from_secs(600),
        wait,
    };
    store.lease(request).await.unwrap()
}

fn settlement(delivery: &Delivery, disposition: Disposition) -> Settlement {
    Settlement {
        receipt: delivery.receipt.clone(),
        disposition,
    }
}

#[tokio::test]
async fn a_receipt_from_before_a_crash_settles_nothing_after_it() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    store
        .enqueue(&queue("jobs"), vec![NewMessage::new("one")])
        .await
        .unwrap();
    // The lease's note may be lost with the power: the image is from before it.
    let image = crash_image(folder.path());
    let old = lease(&store, "jobs", 1, Duration::ZERO).await;
    store.close().unwrap();
    clock.advance(Duration::from_millis(1));
    let store = open(image.path(), &clock);
    let new = lease(&store, "jobs", 1, Duration::ZERO).await;
    assert!(new[0].receipt.fence > old[0].receipt.fence);
    let outcome = store
        .settle(vec![settlement(&old[0], Disposition::Ack)])
        .await
        .unwrap()
        .remove(0);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test]
async fn a_delayed_message_does_not_block_its_key_after_a_restart() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    let of_key = |payload: &'static str, not_before| NewMessage {
        key: Some("customer".to_owned()),
        not_before,
        ..NewMessage::new(payload)
    };
    let tomorrow = START.after(Duration::from_secs(86_400));
    let messages = vec![of_key("tomorrow", Some(tomorrow)), of_key("now", None)];
    store.enqueue(&queue("jobs"), messages).await.unwrap();
    store.close().unwrap();
    let store = open(folder.path(), &clock);
    let leased = lease(&store, "jobs", 10, Duration::ZERO).await;
    assert_eq!(leased.len(), 1, "the one that is due now");
}

#[tokio::test]
async fn one_stuck_message_a_segment_does_not_keep_the_segments() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    for _ in 0..40 {
        // A segment's worth of messages of which one becomes a dead letter.
        let messages = (0..20).map(|_| NewMessage::new(vec![7; 3_000])).collect();
        store.enqueue(&queue("jobs"), messages).await.unwrap();
        let mut settled: Vec<Settlement> = lease(&store, "jobs", 100, Duration::ZERO)
            .await
            .iter()
            .map(|delivery| settlement(delivery, Disposition::Ack))
            .collect();
        settled[0].disposition = Disposition::DeadLetter {
            reason: "poison".to_owned(),
        };
        store.settle(settled).await.unwrap();
    }
    for _ in 0..3 {
        store.checkpoint().unwrap();
        store.compact().unwrap();
        store
            .enqueue(&queue("other"), vec![NewMessage::new("x")])
            .await
            .unwrap();
    }
    store.checkpoint().unwrap();
    let segments = store.log.segments().len();
    assert!(segments < 12, "{segments} segments for 40 dead letters");
    let dead = store.dead_letters(&queue("jobs"), None, 100).await.unwrap();
    assert!(dead.iter().all(|one| one.message.payload.len() == 3_000));
    assert_eq!(dead.len(), 40);
}

#[tokio::test]
async fn one_full_queue_refuses_its_own_publications_and_no_others() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    let exchange = ExchangeName::new("orders").unwrap();
    for name in ["small", "large"] {
        let binding = Binding {
            exchange: exchange.clone(),
            pattern: name.to_owned(),
            queue: queue(name),
        };
        store.bind(&binding).await.unwrap();
    }
    let settings = Settings {
        max_depth: Some(1),
        ..Settings::default()
    };
    store.declare(&queue("small"), &settings).await.unwrap();
    let publication = |routing_key: &str| Publication {
        routing_key: routing_key.to_owned(),
        message: NewMessage::new("x"),
    };
    let publications = ["small", "small", "large"].map(publication).to_vec();
    let outcomes = store.publish(&exchange, publications).await.unwrap();
    assert_eq!(*outcomes[0].as_ref().unwrap(), 1);
    assert!(outcomes[1].as_ref().unwrap_err().retry_after().is_some());
    assert_eq!(*outcomes[2].as_ref().unwrap(), 1);
}

#[tokio::test]
async fn refused_duplicates_stay_counted_after_a_crash() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    for _ in 0..3 {
        let message = NewMessage {
            dedup_id: Some("same".to_owned()),
            ..NewMessage::new("x")
        };
        store.enqueue(&queue("jobs"), vec![message]).await.unwrap();
    }
    store
        .enqueue(&queue("jobs"), vec![NewMessage::new("y")])
        .await
        .unwrap();
    let image = crash_image(folder.path());
    let store = open(image.path(), &clock);
    assert_eq!(store.stats(&queue("jobs")).await.unwrap().duplicates, 2);
}

#[tokio::test]
async fn a_consumer_may_wait_for_ever() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    store
        .enqueue(&queue("jobs"), vec![NewMessage::new("x")])
        .await
        .unwrap();
    assert_eq!(lease(&store, "jobs", 1, Duration::MAX).await.len(), 1);
}

#[tokio::test]
async fn a_consumer_that_holds_a_delivery_counts_however_long() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    store
        .enqueue(&queue("jobs"), vec![NewMessage::new("x")])
        .await
        .unwrap();
    let held = lease(&store, "jobs", 1, Duration::ZERO).await;
    clock.advance(Duration::from_secs(120));
    assert_eq!(store.stats(&queue("jobs")).await.unwrap().consumers, 1);
    store
        .settle(vec![settlement(&held[0], Disposition::Ack)])
        .await
        .unwrap();
    assert_eq!(store.stats(&queue("jobs")).await.unwrap().consumers, 0);
}

#[tokio::test]
async fn one_damaged_message_does_not_keep_the_others_from_being_looked_at() {
    use std::os::unix::fs::FileExt;
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    let payloads = ["first payload", "second payload", "third payload"];
    store
        .enqueue(&queue("jobs"), payloads.map(NewMessage::new).to_vec())
        .await
        .unwrap();
    let path = folder.path().join("log/0000000001.log");
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes
        .windows(14)
        .position(|window| window == b"second payload")
        .unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"S", at as u64).unwrap();
    let seen = store.peek(&queue("jobs"), 10).await.unwrap();
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_field_of_a_large_hash_is_written_alone() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    let set = |field: usize, value: &str| Op::SetField {
        key: "hash".to_owned(),
        field: format!("field {field}"),
        value: value.repeat(10).into(),
    };
    let all = (0..500).map(|field| set(field, "a")).collect();
    store.commit(all).await.unwrap();
    store.checkpoint().unwrap();
    let before = store.log.records_end();
    for field in 0..20 {
        store.commit(vec![set(field, "b")]).await.unwrap();
    }
    let end = store.log.records_end();
    let written = end.offset - before.offset;
    assert!(
        end.segment == before.segment && written < 20 * 200,
        "{written}"
    );
    let image = crash_image(folder.path());
    let expected = store.fields("hash").await.unwrap();
    assert_eq!(
        expected
            .iter()
            .filter(|(_, value)| value[0] == b'b')
            .count(),
        20
    );
    let store = open(image.path(), &clock);
    assert_eq!(store.fields("hash").await.unwrap(), expected);
    store.close().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_that_is_half_written_is_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let url = format!(
        "embedded:{}?durability=none&reserve=0",
        folder.path().display()
    );
    let clock = Arc::new(ManualClock::at(START));
    let store = Store::open(Config::parse(&url).unwrap(), clock).unwrap();
    // Which read meets which write is luck.
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"] {
        store
            .declare(&queue(name), &Settings::default())
            .await
            .unwrap();
        let producers: Vec<_> = (0..16)
            .map(|_| {
                let store = Arc::clone(&store);
                // Ends on its own, awaited below.
                tokio::spawn(async move {
                    for _ in 0..50 {
                        let batch = vec![NewMessage::new(vec![b'x'; 100]); 8];
                        store.enqueue(&queue(name), batch).await.unwrap();
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let mut read = 0;
        while read < 16 * 50 * 8 {
            let deliveries = lease(&store, name, 100, Duration::from_secs(5)).await;
            let dead = store.stats(&queue(name)).await.unwrap().dead;
            assert!(
                dead == 0 && !deliveries.is_empty(),
                "{dead} dead, {read} read"
            );
            read += deliveries.len();
        }
        for producer in producers {
            producer.await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_message_that_moves_while_it_is_leased_is_delivered() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    let lonely = vec![NewMessage::new("lonely")];
    store.enqueue(&queue("jobs"), lonely).await.unwrap();
    let request = LeaseRequest {
        queue: queue("jobs"),
        consumer: ConsumerId::new("one").unwrap(),
        max: 1,
        in_flight: 1,
        lease: Duration::from_secs(600),
        wait: Duration::ZERO,
    };
    let batch = store.lease_ready(&request).unwrap();
    for _ in 0..8 {
        let messages = (0..20).map(|_| NewMessage::new(vec![7; 3_000])).collect();
        store.enqueue(&queue("other"), messages).await.unwrap();
        store.purge(&queue("other")).await.unwrap();
    }
    store.compact().unwrap();
    for _ in 0..2 {
        store.pause(&queue("other")).await.unwrap();
        store.checkpoint().unwrap();
    }
    assert!(!folder.path().join("log/0000000001.log").exists());
    let deliveries = store.deliveries(&request, batch.leased).unwrap();
    assert_eq!(deliveries[0].message.payload, "lonely");
}

/// A store that removed its first segments, closed.
async fn long_lived(folder: &Path, clock: &Arc<ManualClock>) {
    let store = open(folder, clock);
    for _ in 0..6 {
        let messages = (0..20).map(|_| NewMessage::new(vec![7; 3_000])).collect();
        store.enqueue(&queue("jobs"), messages).await.unwrap();
        let settled = lease(&store, "jobs", 100, Duration::ZERO)
            .await
            .iter()
            .map(|delivery| settlement(delivery, Disposition::Ack))
            .collect();
        store.settle(settled).await.unwrap();
        store.checkpoint().unwrap();
    }
    store.close().unwrap();
    assert!(!folder.join("log/0000000001.log").exists());
}

fn checkpoints(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found: Vec<_> = std::fs::read_dir(folder.join("checkpoint"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "ckpt"))
        .collect();
    found.sort();
    found
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[40] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_missing_segment_without_a_checkpoint_is_refused_by_name() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    long_lived(folder.path(), &clock).await;
    checkpoints(folder.path())
        .iter()
        .for_each(|path| flip(path));
    let url = format!(
        "embedded:{}?segment=64KiB&reserve=0",
        folder.path().display()
    );
    let config = Config::parse(&url).unwrap();
    for _ in 0..2 {
        let error = Store::open(config.clone(), Arc::clone(&clock) as _)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("before segment"), "{error}");
    }
    std::fs::write(folder.path().join("accept-loss"), "").unwrap();
    let store = open(folder.path(), &clock);
    let warnings = store.health().unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|one| one.contains("the log begins with segment")),
        "{warnings:?}"
    );
}

#[tokio::test]
async fn an_only_checkpoint_that_is_damaged_costs_nothing() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    for _ in 0..3 {
        let messages = (0..20).map(|_| NewMessage::new(vec![7; 3_000])).collect();
        store.enqueue(&queue("jobs"), messages).await.unwrap();
        let settled = lease(&store, "jobs", 100, Duration::ZERO)
            .await
            .iter()
            .map(|delivery| settlement(delivery, Disposition::Ack))
            .collect();
        store.settle(settled).await.unwrap();
    }
    store.checkpoint().unwrap();
    let image = crash_image(folder.path());
    assert_eq!(checkpoints(image.path()).len(), 1);
    flip(&checkpoints(image.path())[0]);
    let store = open(image.path(), &clock);
    assert_eq!(store.stats(&queue("jobs")).await.unwrap().acked, 60);
}

#[tokio::test]
async fn a_damaged_checkpoint_does_not_count_as_one_that_is_kept() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    long_lived(folder.path(), &clock).await;
    flip(&checkpoints(folder.path())[1]);
    let store = open(folder.path(), &clock);
    assert_eq!(store.health().unwrap().warnings.len(), 1);
    let messages = vec![NewMessage::new("x")];
    store.enqueue(&queue("jobs"), messages).await.unwrap();
    store.close().unwrap();
    // The newest goes too: the one before it must do.
    flip(checkpoints(folder.path()).last().unwrap());
    let store = open(folder.path(), &clock);
    assert_eq!(lease(&store, "jobs", 10, Duration::ZERO).await.len(), 1);
}

#[tokio::test]
async fn a_temporarily_unreadable_message_is_not_dead_lettered() {
    let (folder, clock) = (
        tempfile::tempdir().unwrap(),
        Arc::new(ManualClock::at(START)),
    );
    let store = open(folder.path(), &clock);
    let messages = (0..30).map(|_| NewMessage::new(vec![7; 3_000])).collect();
    store.enqueue(&queue("jobs"), messages).await.unwrap();
    let messages = (0..30).map(|_| NewMessage::new(vec![8; 3_000])).collect();
    store.enqueue(&queue("jobs"), messages).await.unwrap();
    store.close().unwrap();
    let store = open(folder.path(), &clock);
    // A folder replaces the segment: opening it fails with an error of the disk.
    let (path, aside) = (
        folder.path().join("log/0000000002.log"),
        folder.path().join("aside"),
    );
    let looks = store.presence.hold_looks();
    std::fs::rename(&path, &aside).unwrap();
    std::fs::create_dir(&path).unwrap();
    let request = LeaseRequest {
        queue: queue("jobs"),
        consumer: ConsumerId::new("one").unwrap(),
        max: 1,
        in_flight: 1,
        lease: Duration::from_secs(600),
        wait: Duration::ZERO,
    };
    for _ in 0..3 {
        let error = store
            .lease(request.clone())
            .await
            .map(|leased| leased.len())
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    }
    std::fs::remove_dir(&path).unwrap();
    std::fs::rename(&aside, &path).unwrap();
    drop(looks);
    let leased = lease(&store, "jobs", 100, Duration::ZERO).await;
    assert_eq!(leased.len(), 60);
    assert!(leased.iter().all(|delivery| delivery.attempt == 1));
}
