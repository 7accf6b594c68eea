//! Files that are removed, renamed or replaced under an open store.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use towpath_core::port::queue::LeaseRequest;
use towpath_core::port::{Kv, Queue};
use towpath_core::{ConsumerId, Error, ErrorKind, ManualClock, NewMessage, QueueName, Timestamp};

use super::config::Config;
use super::store::Store;

/// The issue promises a second; the machine of a test may be busy.
const NOTICED: Duration = Duration::from_secs(5);

fn open(folder: &Path) -> Arc<Store> {
    let url = format!("embedded:{}?segment=64KiB&reserve=0", folder.display());
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000)));
    Store::open(Config::parse(&url).unwrap(), clock).unwrap()
}

fn queue() -> QueueName {
    QueueName::new("jobs").unwrap()
}

async fn enqueue(store: &Store, count: usize) -> Result<(), Error> {
    let messages = (0..count)
        .map(|_| NewMessage::new(vec![7; 3_000]))
        .collect();
    store.enqueue(&queue(), messages).await.map(drop)
}

/// A store with four segments and a checkpoint.
async fn filled(folder: &Path) -> Arc<Store> {
    let store = open(folder);
    enqueue(&store, 70).await.unwrap();
    store.put("key", "value".into(), None).await.unwrap();
    store.keys_in_memory.store(0, Ordering::Relaxed);
    store.checkpoint().unwrap();
    enqueue(&store, 1).await.unwrap();
    store
}

/// The newest segment or checkpoint with a record.
fn newest(folder: &Path) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    // The store prepares the next segment meanwhile: first as `.new`, then without a record.
    let is_used = |path: &PathBuf| match path.extension() {
        Some(ending) if ending == "new" => false,
        _ => fs::read(path).unwrap()[64..].iter().any(|byte| *byte != 0),
    };
    paths.filter(is_used).max().unwrap()
}

fn failure(store: &Store) -> Error {
    let until = Instant::now() + NOTICED;
    loop {
        match store.log.failed() {
            Some(failure) => return failure,
            None if Instant::now() > until => panic!("the store did not stop"),
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// Every file below a folder, with its bytes.
fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(content(&path)),
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

type Fault = fn(&Path);

const FAULTS: &[(&str, Fault, &str)] = &[
    (
        "data folder removed",
        |data| fs::remove_dir_all(data).unwrap(),
        "was removed or renamed while it was in use",
    ),
    (
        "data folder renamed",
        |data| fs::rename(data, data.with_extension("old")).unwrap(),
        "data folder `",
    ),
    (
        "data folder replaced by an empty one",
        |data| {
            fs::rename(data, data.with_extension("old")).unwrap();
            fs::create_dir(data).unwrap();
        },
        "was replaced while it was in use",
    ),
    (
        "data folder removed and made again",
        |data| {
            fs::remove_dir_all(data).unwrap();
            fs::create_dir(data).unwrap();
        },
        "while it was in use",
    ),
    (
        "lock file removed",
        |data| fs::remove_file(data.join("LOCK")).unwrap(),
        "lock file `",
    ),
    (
        "lock file replaced",
        |data| {
            fs::write(data.join("other"), "1\n").unwrap();
            fs::rename(data.join("other"), data.join("LOCK")).unwrap();
        },
        "lock file `",
    ),
    (
        "log folder renamed",
        |data| fs::rename(data.join("log"), data.join("log.old")).unwrap(),
        "log folder `",
    ),
    (
        "checkpoint folder removed",
        |data| fs::remove_dir_all(data.join("checkpoint")).unwrap(),
        "checkpoint folder `",
    ),
    (
        "checkpoint removed",
        |data| fs::remove_file(newest(&data.join("checkpoint"))).unwrap(),
        "checkpoint `",
    ),
    (
        "table of keys removed",
        |data| fs::remove_file(data.join("checkpoint/0000000001.keys")).unwrap(),
        "table of keys `",
    ),
    (
        "segment being written removed",
        |data| fs::remove_file(newest(&data.join("log"))).unwrap(),
        "segment `",
    ),
    (
        "segment of the backlog removed",
        |data| fs::remove_file(data.join("log/0000000002.log")).unwrap(),
        "segment `",
    ),
    (
        "segment of the backlog replaced",
        |data| {
            let segment = data.join("log/0000000002.log");
            fs::copy(&segment, data.join("copy")).unwrap();
            fs::rename(data.join("copy"), &segment).unwrap();
        },
        "was replaced while it was in use",
    ),
    (
        "segment cut short",
        |data| fs::write(data.join("log/0000000002.log"), "").unwrap(),
        "was cut from",
    ),
];

#[tokio::test]
async fn a_store_whose_files_are_gone_stops_and_says_so() {
    for (name, fault, reason) in FAULTS {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let store = filled(&data).await;
        // The upkeep has seen the files as they were.
        std::thread::sleep(Duration::from_millis(600));
        assert!(store.health().is_ok(), "{name}");
        fault(&data);
        let failure = failure(&store).chain();
        assert!(failure.contains(reason), "{name}: {failure}");
        assert!(store.health().is_err(), "{name}");
        let refused = enqueue(&store, 1).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{name}");
        // The path may lead to another store now.
        let before = content(&data);
        assert!(store.close().is_err(), "{name}");
        assert_eq!(content(&data), before, "{name}");
    }
}

#[tokio::test]
async fn a_store_closed_before_it_noticed_writes_nothing_into_another_folder() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let store = filled(&data).await;
    let other = folder.path().join("other");
    filled(&other).await.close().unwrap();
    fs::rename(&data, folder.path().join("old")).unwrap();
    fs::rename(&other, &data).unwrap();
    let before = content(&data);
    assert!(store.close().is_err());
    assert_eq!(content(&data), before);
    let reopened = open(&data);
    assert_eq!(reopened.stats(&queue()).await.unwrap().ready, 71);
    reopened.close().unwrap();
}

#[tokio::test]
async fn nothing_is_acknowledged_once_the_segment_has_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let store = filled(&data).await;
    fs::remove_file(newest(&data.join("log"))).unwrap();
    let refused = enqueue(&store, 1).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(store.close().is_err());
}

#[tokio::test]
async fn a_missing_segment_whose_loss_is_accepted_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    filled(&data).await.close().unwrap();
    fs::remove_file(data.join("log/0000000002.log")).unwrap();
    fs::write(data.join("accept-loss"), "").unwrap();
    let store = open(&data);
    assert!(!data.join("accept-loss").exists());
    let warnings = store.health().unwrap().warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.starts_with("segment 2 of the log is missing: ")),
        "{warnings:?}"
    );
    let request = LeaseRequest {
        queue: queue(),
        consumer: ConsumerId::new("one").unwrap(),
        max: 100,
        in_flight: 100,
        lease: Duration::from_secs(600),
        wait: Duration::ZERO,
    };
    let leased = store.lease(request).await.unwrap().len() as u64;
    let stats = store.stats(&queue()).await.unwrap();
    assert_eq!(leased + stats.dead, 71);
    assert!(stats.dead > 0);
    store.close().unwrap();
}
