//! The log against random appends, crashes and damage.

#![expect(clippy::disallowed_methods, reason = "tests have no supervisor")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

fn options(folder: &Path, durability: Durability) -> Options {
    Options {
        folder: folder.join("log"),
        quarantine: folder.join("quarantine"),
        durability,
        segment_bytes: 64 * 1024,
        reserve: folder.join("reserve"),
        reserve_bytes: 0,
        timeout: Duration::from_secs(5),
        accepts_loss: false,
    }
}

fn open(folder: &Path, durability: Durability) -> (Log, Vec<Vec<u8>>, Recovery) {
    let mut bodies = Vec::new();
    let mut replay = |_, body: &[u8]| {
        bodies.push(body.to_vec());
        Ok(())
    };
    let options = options(folder, durability);
    let (log, recovery) = Log::open(options, None, &mut replay, &BTreeMap::new).unwrap();
    (log, bodies, recovery)
}

fn body(rng: &mut StdRng) -> Vec<u8> {
    let length = if rng.random_bool(0.02) {
        rng.random_range(1..200_000)
    } else {
        rng.random_range(1..600)
    };
    (0..length).map(|_| rng.random()).collect()
}

#[tokio::test]
async fn committed_records_are_replayed_in_order_and_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(1);
    let mut written = Vec::new();
    for durability in [
        Durability::Fsync,
        Durability::Os,
        Durability::None,
        Durability::Interval(std::time::Duration::from_millis(5)),
    ] {
        let (log, replayed, recovery) = open(folder.path(), durability);
        assert_eq!(replayed, written);
        assert!(
            recovery.cut.is_none() && recovery.damaged.is_empty(),
            "{recovery:?}"
        );
        for _ in 0..200 {
            let body = body(&mut rng);
            let appended = log.append(Class::Grow, &body).unwrap();
            assert_eq!(log.read(appended.body, body.len() as u32).unwrap(), body);
            if rng.random_bool(0.2) {
                log.committed(appended.end).await.unwrap();
                assert_eq!(log.read(appended.body, body.len() as u32).unwrap(), body);
            }
            written.push(body);
        }
        log.close().unwrap();
        assert!(log.append(Class::Grow, b"late").is_err());
    }
}

#[tokio::test]
async fn a_torn_tail_is_cut_and_reported_and_the_log_continues() {
    for seed in 0..30 {
        let mut rng = StdRng::seed_from_u64(seed);
        let folder = tempfile::tempdir().unwrap();
        let (log, _, _) = open(folder.path(), Durability::Fsync);
        let mut committed = Vec::new();
        for _ in 0..rng.random_range(1..40) {
            committed.push(body(&mut rng));
            let end = log
                .append(Class::Grow, committed.last().unwrap())
                .unwrap()
                .end;
            log.committed(end).await.unwrap();
        }
        let torn = log.append(Class::Grow, &body(&mut rng)).unwrap();
        log.close().unwrap();

        let image = tempfile::tempdir().unwrap();
        crate::embedded::model_test::copy(folder.path(), image.path());
        // The last frame and its seal, as they look when only a part reached the disk.
        let path = image
            .path()
            .join(format!("log/{:010}.log", torn.body.segment));
        let mut bytes = std::fs::read(&path).unwrap();
        let (start, end) = (torn.body.offset as usize - 24, torn.end.offset as usize);
        let keep = rng.random_range(start..end);
        bytes[keep..].fill(0);
        std::fs::write(&path, &bytes).unwrap();

        let (log, replayed, recovery) = open(image.path(), Durability::Fsync);
        assert_eq!(replayed, committed, "seed {seed}");
        assert!(recovery.damaged.is_empty(), "seed {seed}: {recovery:?}");
        assert_eq!(
            recovery.cut.is_some(),
            bytes[start..].iter().any(|byte| *byte != 0),
            "seed {seed}: {recovery:?}"
        );
        let end = log.append(Class::Grow, b"after").unwrap().end;
        log.committed(end).await.unwrap();
        log.close().unwrap();
        let (_, replayed, recovery) = open(image.path(), Durability::Fsync);
        assert_eq!(replayed.last().unwrap(), b"after");
        assert!(
            recovery.cut.is_none() && recovery.damaged.is_empty(),
            "seed {seed}: {recovery:?}"
        );
    }
}

#[tokio::test]
async fn damage_is_named_and_never_silent() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let (log, _, _) = open(folder.path(), Durability::Fsync);
    let mut written = Vec::new();
    for _ in 0..150 {
        written.push(body(&mut rng));
        let end = log
            .append(Class::Grow, written.last().unwrap())
            .unwrap()
            .end;
        log.committed(end).await.unwrap();
    }
    let newest = log.records_end().segment;
    log.close().unwrap();
    for round in 0..150 {
        let image = tempfile::tempdir().unwrap();
        crate::embedded::model_test::copy(folder.path(), image.path());
        let mut numbers = segment::list(&image.path().join("log")).unwrap();
        numbers.retain(|number| *number <= newest);
        let number = numbers[rng.random_range(0..numbers.len())];
        let path = image.path().join(format!("log/{number:010}.log"));
        let mut bytes = std::fs::read(&path).unwrap();
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        match round % 3 {
            0 | 1 => {
                let bit = rng.random_range(0..used * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            _ => {
                // A range that does not reach the last seal: a file that lost its end cannot know it.
                let last = number == *numbers.last().unwrap() || used < 4096;
                let start = rng.random_range(0..used.saturating_sub(1024).max(1));
                let end = if last {
                    (start + 512).min(used.saturating_sub(48))
                } else {
                    (start + 5000).min(bytes.len())
                };
                if start < end {
                    bytes[start..end].fill(0);
                }
            }
        }
        std::fs::write(&path, &bytes).unwrap();
        let (_, replayed, recovery) = open(image.path(), Durability::Fsync);
        assert!(
            replayed.iter().all(|body| written.contains(body)),
            "round {round}: something was made up"
        );
        if replayed != written {
            assert!(
                !recovery.damaged.is_empty(),
                "round {round}: {} of {} and no word",
                replayed.len(),
                written.len()
            );
        }
        assert!(
            recovery.cut.is_none(),
            "round {round}: acknowledged data was taken for a torn tail"
        );
    }
}

#[tokio::test]
async fn a_panic_of_the_writing_thread_stops_the_log_and_answers_every_caller() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _, _) = open(folder.path(), Durability::Fsync);
    log.on_commit(|| panic!("as a defect would"));
    let end = log.append(Class::Grow, b"one").unwrap().end;
    log.committed(end).await.unwrap();
    log.wait_failed().await;
    let refused = log.append(Class::Grow, b"two").unwrap_err();
    assert!(refused.to_string().contains("panicked"), "{refused}");
    assert!(log.close().is_err());
}

#[test]
fn a_newer_format_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    open(folder.path(), Durability::Fsync).0.close().unwrap();
    let path = folder.path().join("log/0000000001.log");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8] = 2;
    let checksum = crc32c::crc32c(&bytes[..16]);
    bytes[16..20].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = Log::open(
        options(folder.path(), Durability::Fsync),
        None,
        &mut |_, _| Ok(()),
        &BTreeMap::new,
    )
    .map(drop)
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "segment 1 was written by a newer Towpath (format 2); this one reads up to 1"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_low_disk_refuses_new_records_and_accepts_settlements() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        reserve_bytes: u64::MAX,
        ..options(folder.path(), Durability::Fsync)
    };
    let (log, _) = Log::open(options, None, &mut |_, _| Ok(()), &BTreeMap::new).unwrap();
    let error = log.append(Class::Grow, b"x").unwrap_err();
    assert!(error.retry_after().is_some(), "{error:?}");
    assert!(log.is_disk_low());
    log.append(Class::Settle, b"x").unwrap();
}

#[test]
fn mutations_of_a_segment_never_harm_the_reader() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _, _) = open(folder.path(), Durability::Os);
    for number in 0..40_u8 {
        log.append(Class::Grow, &vec![number; usize::from(number) * 3 + 1])
            .unwrap();
    }
    log.close().unwrap();
    let sample = std::fs::read(folder.path().join("log/0000000001.log")).unwrap();
    let sample = &sample[..8192];
    let intact = scan_for_fuzzing(sample);
    assert!(intact >= 40);
    for seed in 0..20_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut bytes = sample.to_vec();
        for _ in 0..rng.random_range(1..5) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => bytes.truncate(at.max(1)),
                _ => bytes[at..].fill(rng.random()),
            }
        }
        assert!(scan_for_fuzzing(&bytes) <= intact, "seed {seed}");
    }
}

/// A runtime that looks at its driver only when nothing is ready, so that tests know the tasks that run before a deferred call.
fn one_worker() -> tokio::runtime::Runtime {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).event_interval(1_000_000);
    runtime.enable_all().build().unwrap()
}

/// Commits `count` records at once, from tasks that are ready together.
async fn commit_together(log: &Arc<Log>, count: usize) {
    let (start, _) = tokio::sync::broadcast::channel::<()>(1);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (log, mut start) = (Arc::clone(log), start.subscribe());
        tasks.spawn(async move {
            start.recv().await.unwrap_err();
            let end = log.append(Class::Grow, b"record").unwrap().end;
            log.committed(end).await.unwrap();
        });
    }
    // All wait for the start by then.
    tokio::time::sleep(Duration::from_millis(50)).await;
    while !log.shared.lock().idle {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // On the worker, so that all of them are ready in one turn of it.
    tokio::spawn(async move { drop(start) }).await.unwrap();
    tasks.join_all().await;
}

#[test]
fn records_of_tasks_that_are_ready_together_share_syncs() {
    let folder = tempfile::tempdir().unwrap();
    let log = Arc::new(open(folder.path(), Durability::Fsync).0);
    one_worker().block_on(async {
        commit_together(&log, 1).await;
        let before = log.syncs();
        commit_together(&log, 40).await;
        let syncs = log.syncs() - before;
        assert!(syncs < 10, "{syncs} syncs of 40 records");
    });
    log.close().unwrap();
}

#[test]
fn callers_are_answered_after_the_runtime_of_the_first_has_ended() {
    let folder = tempfile::tempdir().unwrap();
    for durability in [Durability::Fsync, Durability::Os] {
        let log = Arc::new(open(folder.path(), durability).0);
        one_worker().block_on(commit_together(&log, 8));
        let alone = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        alone.block_on(commit_together(&log, 8));
        one_worker().block_on(commit_together(&log, 8));
        log.close().unwrap();
    }
}

#[tokio::test]
async fn a_caller_that_stops_waiting_holds_up_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (log, ..) = open(folder.path(), Durability::Fsync);
    for _ in 0..20 {
        let end = log.append(Class::Grow, b"one").unwrap().end;
        let first = tokio::time::timeout(Duration::ZERO, log.committed(end)).await;
        let end = log.append(Class::Grow, b"two").unwrap().end;
        log.committed(end).await.unwrap();
        first.ok();
    }
    log.close().unwrap();
}
