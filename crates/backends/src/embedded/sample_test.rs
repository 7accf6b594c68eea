//! A store of each format version, read by every later build.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use towpath_core::port::effects::{Effects, Transaction};
use towpath_core::port::queue::{Disposition, LeaseRequest, Queue, Settlement};
use towpath_core::port::routes::{Binding, Routes};
use towpath_core::port::stream::{ReadRequest, Start, Stream};
use towpath_core::port::{Kv, kv};
use towpath_core::{
    ConsumerId, Delivery, ExchangeName, GroupName, ManualClock, NewMessage, QueueName, StreamName,
    Timestamp,
};

use super::config::Config;
use super::store::Store;
use super::verify::{Depth, verify};

/// The moment at which the samples were made and are read.
const MOMENT: Timestamp = Timestamp::from_millis(1_790_000_000_000);

fn sample(version: u32) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/samples/store-v{version}"))
}

fn open(folder: &std::path::Path) -> Arc<Store> {
    let url = format!("embedded:{}?segment=64KiB&reserve=0", folder.display());
    Store::open(
        Config::parse(&url).unwrap(),
        Arc::new(ManualClock::at(MOMENT)),
    )
    .unwrap()
}

fn lines() -> StreamName {
    StreamName::new("lines").unwrap()
}

fn readers() -> GroupName {
    GroupName::new("readers").unwrap()
}

fn jobs() -> QueueName {
    QueueName::new("jobs").unwrap()
}

async fn lease(store: &Arc<Store>, max: usize) -> Vec<Delivery> {
    let (consumer, lease) = (
        ConsumerId::new("one").unwrap(),
        std::time::Duration::from_secs(60),
    );
    let request = LeaseRequest {
        queue: jobs(),
        consumer,
        max,
        in_flight: max,
        lease,
        wait: std::time::Duration::ZERO,
    };
    store.lease(request).await.unwrap()
}

/// Run with `cargo test -p towpath-backends -- --ignored makes_the_sample` when a format gets a new version.
#[tokio::test]
#[ignore = "makes the sample of a new format version"]
async fn makes_the_sample() {
    let folder = sample(7);
    std::fs::create_dir_all(&folder).unwrap();
    let store = open(&folder);
    let mut message = NewMessage::new("with everything");
    message.headers.set("content-type", "text/plain");
    message.key = Some("key".to_owned());
    message.dedup_id = Some("dedup".to_owned());
    let later = NewMessage {
        not_before: Some(MOMENT.after(std::time::Duration::from_secs(60))),
        ..NewMessage::new("later")
    };
    let messages = vec![
        NewMessage::new("acked"),
        NewMessage::new("dead"),
        message,
        later,
    ];
    store.enqueue(&jobs(), messages).await.unwrap();
    let held = lease(&store, 2).await;
    let settle = |delivery: &Delivery, disposition| Settlement {
        receipt: delivery.receipt.clone(),
        disposition,
    };
    let dead = Disposition::DeadLetter {
        reason: "poison".to_owned(),
    };
    store
        .settle(vec![
            settle(&held[0], Disposition::Ack),
            settle(&held[1], dead),
        ])
        .await
        .unwrap();
    store.put("stock", "7".into(), None).await.unwrap();
    store.put("cold", "value".into(), None).await.unwrap();
    let exchange = ExchangeName::new("orders").unwrap();
    store
        .bind(&Binding {
            exchange,
            pattern: "order.*".to_owned(),
            queue: jobs(),
        })
        .await
        .unwrap();
    let entries = ["one", "two", "three"].map(NewMessage::new);
    let appended = store.append(&lines(), entries.into()).await.unwrap();
    store
        .create_group(&lines(), &readers(), Start::Beginning)
        .await
        .unwrap();
    let second = *appended[1].as_ref().unwrap();
    Stream::commit(store.as_ref(), &lines(), &readers(), &[second])
        .await
        .unwrap();
    // Leased, and without an outcome.
    lease(&store, 1).await;
    store.keys_in_memory.store(0, Ordering::Relaxed);
    store.checkpoint().unwrap();
    store.keys_in_memory.store(usize::MAX, Ordering::Relaxed);
    // Behind the checkpoint, so that both are read.
    store
        .apply(Transaction {
            kv: vec![kv::Op::Add {
                key: "stock".to_owned(),
                delta: -2,
                min: 0,
                max: 9,
            }],
            append: vec![(lines(), NewMessage::new("four"))],
            ..Transaction::default()
        })
        .await
        .unwrap();
    // Not closed: closing would write a checkpoint of everything.
    std::mem::forget(store);
}

#[tokio::test]
async fn a_store_of_version_1_reads_back() {
    let folder = copy(1);
    let store = open(folder.path());
    reads_back(&store).await;
    assert!(Stream::list(store.as_ref()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_store_of_version_2_reads_back() {
    let folder = copy(2);
    let store = open(folder.path());
    let held = reads_back(&store).await;
    assert_eq!((held.attempt, held.interrupted), (1, false));
    streams_read_back(&store).await;
}

#[tokio::test]
async fn a_store_of_version_3_reads_back() {
    let folder = copy(3);
    let store = open(folder.path());
    let held = reads_back(&store).await;
    assert_eq!((held.attempt, held.interrupted), (2, true));
    streams_read_back(&store).await;
}

#[tokio::test]
async fn a_store_of_version_4_reads_back() {
    let folder = copy(4);
    let store = open(folder.path());
    let held = reads_back(&store).await;
    assert_eq!((held.attempt, held.interrupted), (2, true));
    streams_read_back(&store).await;
}

#[tokio::test]
async fn a_store_of_version_5_reads_back() {
    let folder = copy(5);
    let store = open(folder.path());
    let held = reads_back(&store).await;
    assert_eq!((held.attempt, held.interrupted), (2, true));
    streams_read_back(&store).await;
}

#[tokio::test]
async fn a_store_of_version_6_reads_back() {
    let folder = copy(6);
    let store = open(folder.path());
    let held = reads_back(&store).await;
    assert_eq!((held.attempt, held.interrupted), (2, true));
    streams_read_back(&store).await;
    let cold = store.get("cold").await.unwrap();
    assert_eq!(cold.as_deref(), Some(&b"value"[..]));
    assert_eq!(store.lock().state.kv.tables().named().len(), 1);
}

#[tokio::test]
async fn a_store_of_version_7_reads_back() {
    let folder = copy(7);
    let store = open(folder.path());
    let held = reads_back(&store).await;
    assert_eq!((held.attempt, held.interrupted), (2, true));
    streams_read_back(&store).await;
}

/// Messages of an older version, written again as they are and named by a checkpoint of this one.
#[tokio::test]
async fn messages_of_version_6_are_read_after_they_moved() {
    let folder = copy(6);
    let store = open(folder.path());
    // None of them fits into the rest of the first segment.
    for number in 0..8 {
        let payload = vec![number; 64_500];
        store
            .enqueue(&jobs(), vec![NewMessage::new(payload)])
            .await
            .unwrap();
    }
    let state = store.lock().state.snapshot();
    assert!(!state.some_of(1).is_empty());
    store.compact().unwrap();
    store.checkpoint().unwrap();
    let state = store.lock().state.snapshot();
    assert!(state.some_of(1).is_empty());
    store.close().unwrap();
    drop(store);
    let found = verify(folder.path(), Depth::All).unwrap();
    assert_eq!(found.faults, Vec::<String>::new());
    let store = open(folder.path());
    let held = lease(&store, 1).await;
    assert_eq!(held[0].message.payload.as_ref(), b"with everything");
    streams_read_back(&store).await;
}

/// The contents of every version since 2.
async fn streams_read_back(store: &Arc<Store>) {
    let stats = Stream::stats(store.as_ref(), &lines()).await.unwrap();
    assert_eq!((stats.entries, stats.groups[0].lag), (4, 3));
    let request = ReadRequest {
        stream: lines(),
        group: readers(),
        consumer: ConsumerId::new("one").unwrap(),
        max: 10,
        wait: std::time::Duration::ZERO,
    };
    let entries = Stream::read(store.as_ref(), request).await.unwrap();
    let payloads: Vec<&[u8]> = entries
        .iter()
        .map(|entry| entry.message.payload.as_ref())
        .collect();
    assert_eq!(payloads, [&b"one"[..], b"three", b"four"]);
}

/// The sample of a version, where it can be written to.
fn copy(version: u32) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for part in ["log", "checkpoint"] {
        std::fs::create_dir(folder.path().join(part)).unwrap();
        for entry in std::fs::read_dir(sample(version).join(part)).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(
                &path,
                folder.path().join(part).join(path.file_name().unwrap()),
            )
            .unwrap();
        }
    }
    folder
}

/// The contents of every version.
async fn reads_back(store: &Arc<Store>) -> Delivery {
    assert_eq!(store.health().unwrap().warnings, Vec::<String>::new());
    let stats = Queue::stats(store.as_ref(), &jobs()).await.unwrap();
    assert_eq!(
        (
            stats.ready,
            stats.delayed,
            stats.dead,
            stats.acked,
            stats.enqueued
        ),
        (1, 1, 1, 1, 4)
    );
    let held = lease(store, 10).await;
    let message = &held[0].message;
    assert_eq!(
        (message.payload.as_ref(), message.key.as_deref()),
        (&b"with everything"[..], Some("key"))
    );
    assert_eq!(message.headers.get("Content-Type"), Some("text/plain"));
    let again = NewMessage {
        dedup_id: Some("dedup".to_owned()),
        ..NewMessage::new("again")
    };
    let known = store
        .enqueue(&jobs(), vec![again])
        .await
        .unwrap()
        .remove(0)
        .unwrap();
    assert_eq!(known.id(), message.id);
    assert_eq!(
        store.dead_letters(&jobs(), None, 10).await.unwrap()[0].reason,
        "poison"
    );
    assert_eq!(
        store.get("stock").await.unwrap().as_deref(),
        Some(&b"5"[..])
    );
    assert_eq!(
        store
            .bindings(&ExchangeName::new("orders").unwrap())
            .await
            .unwrap()[0]
            .pattern,
        "order.*"
    );
    held[0].clone()
}
