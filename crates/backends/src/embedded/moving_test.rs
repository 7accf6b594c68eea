//! Keys that left memory: they read, change, expire and end as if they were there.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use towpath_core::port::kv::{Committed, Kv, Op};
use towpath_core::{ManualClock, Timestamp};

use super::config::Config;
use super::model_test::{checkpoint_with_all_keys, copy};
use super::store::Store;
use super::verify::{Depth, verify};

fn open(folder: &Path, clock: &Arc<ManualClock>) -> Arc<Store> {
    let url = format!("embedded:{}?segment=64KiB&reserve=0", folder.display());
    let store = Store::open(Config::parse(&url).unwrap(), Arc::clone(clock) as _).unwrap();
    // Only when a test wants it.
    store.keys_in_memory.store(usize::MAX, Ordering::Relaxed);
    store
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp::from_millis(1_700_000_000_000)))
}

fn key(number: usize) -> String {
    format!("order:{number:05}")
}

/// Keys with a value each, out of memory.
async fn moved(folder: &Path, clock: &Arc<ManualClock>, count: usize) -> Arc<Store> {
    let store = open(folder, clock);
    for number in 0..count {
        let value = format!("value {number}").into();
        store.put(&key(number), value, None).await.unwrap();
    }
    checkpoint_with_all_keys(&store);
    assert_eq!(in_memory(&store), 0);
    store
}

fn in_memory(store: &Store) -> usize {
    let inner = store.lock();
    inner.state.kv.snapshot().len()
}

async fn text(store: &Store, key: &str) -> Option<String> {
    let value = store.get(key).await.unwrap();
    value.map(|value| String::from_utf8(value.to_vec()).unwrap())
}

#[tokio::test]
async fn keys_out_of_memory_are_read_changed_and_listed() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = moved(folder.path(), &clock, 300).await;
    assert_eq!(text(&store, &key(7)).await.unwrap(), "value 7");
    assert_eq!(text(&store, "order:x").await, None);

    // Conditions see keys on disk.
    assert!(
        !store
            .put_if_absent(&key(7), "other".into(), None)
            .await
            .unwrap()
    );
    let swap = |expected: &str| Op::CompareAndSwap {
        key: key(8),
        expected: Some(expected.to_owned().into()),
        value: "swapped".into(),
        ttl: None,
    };
    let refused = store.commit(vec![swap("value 9")]).await.unwrap();
    let current = Some("value 8".into());
    assert_eq!(refused, Committed::Refused { index: 0, current });
    store.commit(vec![swap("value 8")]).await.unwrap();
    assert_eq!(text(&store, &key(8)).await.unwrap(), "swapped");

    // One that is deleted stays so when tables are merged and when the store opens.
    store
        .commit(vec![Op::Delete { key: key(9) }])
        .await
        .unwrap();
    let ttl = Some(Duration::from_secs(10));
    store.put(&key(10), "short".into(), ttl).await.unwrap();
    clock.advance(Duration::from_secs(11));
    for round in 0..4 {
        assert_eq!(text(&store, &key(9)).await, None, "round {round}");
        assert_eq!(text(&store, &key(10)).await, None, "round {round}");
        let mut all = Vec::new();
        while let page = store
            .keys("order:", all.last().map(String::as_str), 37)
            .await
            .unwrap()
            && !page.is_empty()
        {
            all.extend(page);
        }
        let expected = (0..300).filter(|number| ![9, 10].contains(number)).map(key);
        assert!(all.into_iter().eq(expected), "round {round}");
        store
            .put("other", round.to_string().into(), None)
            .await
            .unwrap();
        checkpoint_with_all_keys(&store);
    }
    store.close().unwrap();
    let verified = verify(folder.path(), Depth::All).unwrap();
    assert_eq!(verified.faults, [""; 0]);
    let store = open(folder.path(), &clock);
    assert_eq!(in_memory(&store), 0);
    assert_eq!(text(&store, &key(8)).await.unwrap(), "swapped");
    assert_eq!(text(&store, &key(9)).await, None);
    assert_eq!(text(&store, "other").await.unwrap(), "3");
    store.close().unwrap();
}

#[tokio::test]
async fn fields_and_lifetimes_are_continued_from_disk() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = moved(folder.path(), &clock, 10).await;
    let set = |field: &str, value: &str| Op::SetField {
        key: "hash".to_owned(),
        field: field.to_owned(),
        value: value.to_owned().into(),
    };
    let expire = |seconds| Op::Expire {
        key: "hash".to_owned(),
        ttl: Some(Duration::from_secs(seconds)),
    };
    store
        .commit(vec![set("a", "1"), set("b", "1")])
        .await
        .unwrap();
    checkpoint_with_all_keys(&store);
    assert_eq!(in_memory(&store), 0);
    store.commit(vec![set("b", "2"), expire(60)]).await.unwrap();
    // In place, now that it is in memory again.
    store.commit(vec![set("c", "3")]).await.unwrap();
    let add = Op::Add {
        key: "count".to_owned(),
        delta: 5,
        min: 0,
        max: 100,
    };
    for _ in 0..3 {
        store.commit(vec![add.clone()]).await.unwrap();
        checkpoint_with_all_keys(&store);
    }
    // A kill: the log is replayed over tables that know more than the older checkpoint.
    let image = tempfile::tempdir().unwrap();
    copy(folder.path(), image.path());
    let newest = std::fs::read_dir(image.path().join("checkpoint")).unwrap();
    let newest = newest.map(|entry| entry.unwrap().path());
    let newest = newest.filter(|path| path.extension().is_some_and(|ending| ending == "ckpt"));
    std::fs::remove_file(newest.max().unwrap()).unwrap();
    store.close().unwrap();
    for folder in [folder.path(), image.path()] {
        let store = open(folder, &clock);
        let fields = store.fields("hash").await.unwrap();
        let fields = fields
            .into_iter()
            .map(|(field, value)| (field, value.to_vec()));
        let fields: Vec<(String, Vec<u8>)> = fields.collect();
        let field = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        assert_eq!(fields, [field("a", "1"), field("b", "2"), field("c", "3")]);
        assert_eq!(text(&store, "count").await.unwrap(), "15");
        let left = store.ttl("hash").await.unwrap().unwrap().unwrap();
        assert!(left <= Duration::from_secs(60), "{left:?}");
        store.close().unwrap();
    }
    clock.advance(Duration::from_secs(61));
    let store = open(folder.path(), &clock);
    assert_eq!(store.fields("hash").await.unwrap(), []);
    assert!(store.clock.now() > Timestamp::default());
    store.close().unwrap();
}

#[tokio::test]
async fn a_damaged_block_is_named_to_its_reader_and_does_not_keep_others_from_moving() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = moved(folder.path(), &clock, 1_000).await;
    store.close().unwrap();
    for entry in std::fs::read_dir(folder.path().join("checkpoint")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "keys") {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[100] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let faults = verify(folder.path(), Depth::All).unwrap().faults;
    let is_named = |fault: &String| fault.contains("block 0");
    assert!(
        !faults.is_empty() && faults.iter().all(is_named),
        "{faults:?}"
    );
    let store = open(folder.path(), &clock);
    let error = store.get(&key(0)).await.unwrap_err();
    assert!(
        error.chain().contains("does not match its checksum"),
        "{}",
        error.chain()
    );
    assert_eq!(text(&store, &key(999)).await.unwrap(), "value 999");
    // Enough for a merge with it.
    for number in 1_000..1_500 {
        store.put(&key(number), "new".into(), None).await.unwrap();
    }
    checkpoint_with_all_keys(&store);
    assert_eq!(in_memory(&store), 0);
    assert_eq!(text(&store, &key(1_499)).await.unwrap(), "new");
    store.close().unwrap();
}

#[tokio::test]
async fn few_keys_stay_in_memory_and_many_do_not() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let url = format!(
        "embedded:{}?segment=64KiB&reserve=0",
        folder.path().display()
    );
    let store = Store::open(Config::parse(&url).unwrap(), clock as _).unwrap();
    let put = async |number: usize| {
        let value = vec![0; 100].into();
        store.put(&key(number), value, None).await.unwrap();
    };
    for number in 0..50 {
        put(number).await;
    }
    store.checkpoint().unwrap();
    assert_eq!(in_memory(&store), 50);
    for number in 50..500 {
        put(number).await;
    }
    store.checkpoint().unwrap();
    // The upkeep may have moved most of them before.
    let left = in_memory(&store);
    assert!(left < 150, "{left} keys");
    store.close().unwrap();
}

#[tokio::test]
async fn a_large_hash_stays_and_is_not_counted() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), clock());
    let store = moved(folder.path(), &clock, 10).await;
    let set = |field: usize| Op::SetField {
        key: "hash".to_owned(),
        field: format!("field {field}"),
        value: vec![b'x'; 50].into(),
    };
    // Small at first, so that a table has it too.
    store.commit(vec![set(0)]).await.unwrap();
    checkpoint_with_all_keys(&store);
    assert_eq!(in_memory(&store), 0);
    store.commit((1..100).map(set).collect()).await.unwrap();
    checkpoint_with_all_keys(&store);
    assert_eq!((in_memory(&store), store.lock().state.kv.bytes()), (1, 0));
    store.close().unwrap();
    let store = open(folder.path(), &clock);
    assert_eq!(store.fields("hash").await.unwrap().len(), 100);
    let gone = Op::Delete {
        key: "hash".to_owned(),
    };
    store.commit(vec![gone]).await.unwrap();
    checkpoint_with_all_keys(&store);
    assert_eq!(store.fields("hash").await.unwrap(), []);
    store.close().unwrap();
}
