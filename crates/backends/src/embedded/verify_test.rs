//! Files of a store that are missing, cut short, longer, flipped or another store's: never a silent success.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use towpath_core::port::queue::{Disposition, LeaseRequest, Settlement};
use towpath_core::port::{Kv, Queue};
use towpath_core::{
    ConsumerId, ErrorKind, ManualClock, MessageId, NewMessage, QueueName, Timestamp,
};

use super::config::Config;
use super::model_test::{checkpoint_with_all_keys, copy};
use super::store::Store;
use super::verify::{Depth, verify};

fn open(folder: &Path) -> towpath_core::Result<Arc<Store>> {
    let url = format!("embedded:{}?segment=64KiB&reserve=0", folder.display());
    let clock = ManualClock::at(Timestamp::from_millis(1_700_000_000_000));
    Store::open(Config::parse(&url)?, Arc::new(clock))
}

fn jobs() -> QueueName {
    QueueName::new("jobs").unwrap()
}

async fn lease(store: &Arc<Store>, max: usize) -> Vec<towpath_core::Delivery> {
    let request = LeaseRequest {
        queue: jobs(),
        consumer: ConsumerId::new("one").unwrap(),
        max,
        in_flight: max,
        lease: Duration::from_secs(600),
        wait: Duration::ZERO,
    };
    store.lease(request).await.unwrap()
}

/// A store with two checkpoints, several segments before them and some behind. Returns its waiting messages.
async fn filled(folder: &Path) -> (Arc<Store>, BTreeSet<MessageId>) {
    let store = open(folder).unwrap();
    let mut waiting = BTreeSet::new();
    for round in 0..40_u8 {
        let messages: Vec<_> = (0..4)
            .map(|_| NewMessage::new(vec![round; 2_000]))
            .collect();
        waiting.extend(messages.iter().map(|message| message.id));
        store.enqueue(&jobs(), messages).await.unwrap();
        let delivery = lease(&store, 1).await.remove(0);
        waiting.remove(&delivery.message.id);
        let receipt = delivery.receipt;
        let disposition = Disposition::Ack;
        store
            .settle(vec![Settlement {
                receipt,
                disposition,
            }])
            .await
            .unwrap();
        let (key, value) = (format!("key {round}"), vec![round; 200]);
        store.put(&key, value.into(), None).await.unwrap();
        if round == 15 || round == 25 {
            checkpoint_with_all_keys(&store);
        }
    }
    (store, waiting)
}

/// The files of the store that hold something.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for part in ["checkpoint", "log"] {
        for entry in fs::read_dir(folder.join(part)).unwrap() {
            let name = Path::new(part).join(entry.unwrap().file_name());
            let bytes = fs::read(folder.join(&name)).unwrap();
            if bytes[64..].iter().any(|byte| *byte != 0) {
                found.push(name);
            }
        }
    }
    found.sort();
    found
}

type Fault = fn(&Path, &Path);

const FAULTS: &[(&str, Fault)] = &[
    ("missing", |file, _| fs::remove_file(file).unwrap()),
    ("empty", |file, _| fs::write(file, "").unwrap()),
    ("short", |file, _| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    }),
    ("shorter by one", |file, _| {
        let bytes = fs::read(file).unwrap();
        fs::write(file, &bytes[..bytes.len() - 1]).unwrap();
    }),
    ("longer", |file, _| {
        let mut bytes = fs::read(file).unwrap();
        bytes.extend_from_slice(b"more");
        fs::write(file, bytes).unwrap();
    }),
    ("flipped", |file, _| {
        let mut bytes = fs::read(file).unwrap();
        let at = (bytes.len() - 10).min(3_000);
        bytes[at] ^= 4;
        fs::write(file, bytes).unwrap();
    }),
    ("another one", |file, other| {
        fs::copy(other, file).unwrap();
    }),
];

/// Results of opening and of verifying such files.
async fn judge(image: &Path, waiting: &BTreeSet<MessageId>, at: &str) {
    let before = content(image);
    let verified = verify(image, Depth::All).unwrap();
    assert_eq!(content(image), before, "{at}: verify changed something");
    let named = !verified.faults.is_empty() || !verified.notes.is_empty();
    let store = match open(image) {
        Ok(store) => store,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{at}");
            assert!(named, "{at}: refused, and verify finds nothing");
            assert_eq!(content(image), before, "{at}: a refusal changed something");
            return;
        }
    };
    let mut seen = BTreeSet::new();
    loop {
        let leased = lease(&store, 100).await;
        if leased.is_empty() && store.stats(&jobs()).await.unwrap().ready == 0 {
            break;
        }
        seen.extend(leased.into_iter().map(|delivery| delivery.message.id));
    }
    let warnings = store.health().unwrap().warnings;
    for round in 0..40_u8 {
        match store.get(&format!("key {round}")).await {
            Ok(Some(value)) => assert_eq!(value, vec![round; 200], "{at}"),
            Ok(None) => assert!(!warnings.is_empty(), "{at}: key {round}"),
            Err(error) => assert!(named && error.kind() == ErrorKind::Corrupt, "{at}: {error}"),
        }
    }
    let dead = store.stats(&jobs()).await.unwrap().dead as usize;
    store.close().unwrap();
    let came_again = !seen.is_subset(waiting);
    assert!(
        !came_again || !warnings.is_empty(),
        "{at}: a message was delivered again"
    );
    if seen != *waiting {
        assert!(
            named,
            "{at}: {} of {} and verify finds nothing",
            seen.len(),
            waiting.len()
        );
        let is_named = !warnings.is_empty() || seen.len() + dead == waiting.len();
        assert!(is_named, "{at}: {} of {}", seen.len(), waiting.len());
    }
}

fn content(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(content(&path)),
            // The process that last had it, and that is trying to.
            false if path.ends_with("LOCK") => {}
            false => found.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

async fn every_fault(original: &Path, other: &Path, waiting: &BTreeSet<MessageId>, how: &str) {
    let whole = verify(original, Depth::All).unwrap();
    assert_eq!(whole.faults, [""; 0], "{how}");
    assert_eq!(whole.waiting as usize, waiting.len(), "{how}");
    assert!(whole.checkpoints == 2 && whole.segments > 4, "{whole:?}");
    assert_eq!(verify(original, Depth::Start).unwrap().faults, [""; 0]);
    let names = files(original);
    for (index, name) in names.iter().enumerate() {
        for (fault, apply) in FAULTS {
            let image = tempfile::tempdir().unwrap();
            copy(original, image.path());
            let neighbour = original.join(&names[(index + 1) % names.len()]);
            apply(&image.path().join(name), &neighbour);
            let at = format!("{how}: {} {fault}", name.display());
            judge(image.path(), waiting, &at).await;
        }
        if other.join(name).exists() {
            let image = tempfile::tempdir().unwrap();
            copy(original, image.path());
            fs::copy(other.join(name), image.path().join(name)).unwrap();
            let at = format!("{how}: {} of another store", name.display());
            judge(image.path(), waiting, &at).await;
        }
    }
}

#[tokio::test]
async fn no_fault_of_a_file_is_silent() {
    let (closed, killed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = tempfile::tempdir().unwrap();
    // Of the same messages, so that places are the same and ids differ.
    let (store, _) = filled(other.path()).await;
    store.close().unwrap();
    let (store, waiting) = filled(closed.path()).await;
    // The last seal and the next segment are there then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    copy(closed.path(), killed.path());
    store.close().unwrap();
    every_fault(closed.path(), other.path(), &waiting, "closed").await;
    every_fault(killed.path(), other.path(), &waiting, "killed").await;
}

#[tokio::test]
async fn an_open_store_is_not_verified() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path()).unwrap();
    let error = verify(folder.path(), Depth::All).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(
        error.to_string().contains("is in use by process"),
        "{error}"
    );
    store.close().unwrap();
    verify(folder.path(), Depth::All).unwrap();
    let nowhere = verify(&folder.path().join("log"), Depth::All).unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn a_snapshot_is_the_log_up_to_its_moment() {
    use std::io::Read;
    let folder = tempfile::tempdir().unwrap();
    let (store, waiting) = filled(folder.path()).await;
    let mut snapshot = store.snapshot().unwrap();
    // Later messages are not in it, and do not damage it.
    store
        .enqueue(&jobs(), vec![NewMessage::new(vec![9; 30_000]); 1])
        .await
        .unwrap();
    store.checkpoint().unwrap();
    let restored = tempfile::tempdir().unwrap();
    for file in &snapshot.files {
        let mut bytes = vec![0; usize::try_from(file.bytes).unwrap()];
        snapshot.bytes.read_exact(&mut bytes).unwrap();
        let path = restored.path().join(&file.name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    assert_eq!(snapshot.bytes.read(&mut [0]).unwrap(), 0);
    let verified = verify(restored.path(), Depth::All).unwrap();
    assert!(
        verified.faults.is_empty() && verified.notes.is_empty(),
        "{verified:?}"
    );
    assert_eq!(verified.waiting as usize, waiting.len());
    drop(snapshot);
    let mut late = store.snapshot().unwrap();
    store.close().unwrap();
    assert!(late.bytes.read(&mut [0; 8]).is_err());
    fs::write(folder.path().join("log/0000000002.log"), "").unwrap();
    assert!(open(folder.path()).is_err());
}
