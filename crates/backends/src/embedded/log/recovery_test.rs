//! Recovery of exact images that a crash or a bad disk leaves behind.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::segment::HEADER_BYTES;
use super::*;

const SEGMENT_BYTES: u32 = 64 * 1024;

fn options(folder: &Path) -> Options {
    Options {
        folder: folder.join("log"),
        quarantine: folder.join("quarantine"),
        durability: Durability::Fsync,
        segment_bytes: SEGMENT_BYTES,
        reserve: folder.join("reserve"),
        reserve_bytes: 0,
        timeout: Duration::from_secs(5),
        accepts_loss: false,
    }
}

fn at(segment: u32, offset: u32) -> Position {
    Position { segment, offset }
}

/// Makes an empty segment.
fn make(folder: &Path, number: u32, bytes: u32) {
    std::fs::create_dir_all(folder.join("log")).unwrap();
    let whole = segment::Whole {
        size: bytes,
        log: 7,
    };
    segment::create(&folder.join("log"), number, whole).unwrap();
}

/// Writes a frame at its place, and returns where it ends.
fn put(folder: &Path, place: Position, synced: Position, sequence: u32, body: &[u8]) -> Position {
    let mut bytes = Vec::new();
    frame::write(&mut bytes, place, synced, sequence, body);
    overwrite(folder, place, &bytes);
    place.plus(bytes.len() as u32)
}

fn overwrite(folder: &Path, place: Position, bytes: &[u8]) {
    std::fs::File::options()
        .write(true)
        .open(segment::path(&folder.join("log"), place.segment))
        .unwrap()
        .write_all_at(bytes, u64::from(place.offset))
        .unwrap();
}

fn open(folder: &Path, from: Option<Position>) -> (Log, Vec<String>, Recovery) {
    let mut bodies = Vec::new();
    let mut replay = |_, body: &[u8]| {
        bodies.push(String::from_utf8_lossy(body).into_owned());
        Ok(())
    };
    let options = Options {
        accepts_loss: folder.join("accept-loss").exists(),
        ..options(folder)
    };
    let (log, recovery) = Log::open(options, from, &mut replay, &BTreeMap::new).unwrap();
    (log, bodies, recovery)
}

/// Expects a refusal that names `what` and changes nothing, and accepts the loss from now on.
fn refused(folder: &Path, from: Option<Position>, what: &str) {
    let before = files(folder);
    let refused = Log::open(options(folder), from, &mut |_, _| Ok(()), &BTreeMap::new);
    let error = refused.map(drop).unwrap_err();
    assert_eq!(error.kind(), towpath_core::ErrorKind::Corrupt);
    assert!(error.to_string().contains(what), "{error}");
    assert!(error.to_string().contains("accept-loss"), "{error}");
    assert_eq!(files(folder), before, "something was changed");
    std::fs::write(folder.join("accept-loss"), "").unwrap();
}

fn files(folder: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder.join("log"));
    let entries = entries.into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// Runs `work` on a thread of its own and fails when it takes longer than `limit`.
fn within<T: Send + 'static>(limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || sender.send(work()));
    receiver.recv_timeout(limit).expect("it takes too long")
}

#[test]
fn a_group_torn_across_two_segments_is_cut_without_a_report_of_damage() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, 1, SEGMENT_BYTES);
    make(folder, 2, SEGMENT_BYTES);
    let synced = put(folder, at(1, HEADER_BYTES), at(1, HEADER_BYTES), 1, b"kept");
    // One group of two records, never synced: the page of the first was lost, that of the second was not.
    put(
        folder,
        at(2, HEADER_BYTES),
        synced,
        3,
        b"never acknowledged",
    );

    let (log, replayed, recovery) = open(folder, None);
    assert_eq!(replayed, ["kept"]);
    assert!(recovery.damaged.is_empty(), "{recovery:?}");
    assert!(recovery.cut.is_some(), "{recovery:?}");
    log.append(Class::Grow, b"next").unwrap();
    log.close().unwrap();
    let (_log, replayed, recovery) = open(folder, None);
    assert_eq!(replayed, ["kept", "next"]);
    assert!(
        recovery.damaged.is_empty() && recovery.cut.is_none(),
        "{recovery:?}"
    );
}

#[test]
fn a_synced_record_missing_at_the_end_of_a_segment_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, 1, SEGMENT_BYTES);
    make(folder, 2, SEGMENT_BYTES);
    let hole = put(folder, at(1, HEADER_BYTES), at(1, HEADER_BYTES), 1, b"kept");
    put(folder, at(2, HEADER_BYTES), hole.plus(32), 3, b"behind");
    let (_log, replayed, recovery) = open(folder, None);
    assert_eq!(replayed, ["kept", "behind"]);
    assert_eq!(recovery.damaged.len(), 1, "{recovery:?}");
    assert_eq!(recovery.damaged[0].start, hole);
}

#[test]
fn records_zeroed_right_behind_the_checkpoint_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, 1, SEGMENT_BYTES);
    make(folder, 2, SEGMENT_BYTES);
    let from = put(
        folder,
        at(1, HEADER_BYTES),
        at(1, HEADER_BYTES),
        1,
        b"in the checkpoint",
    );
    // Record 2 stood here, and the disk gives zeros.
    put(folder, at(2, HEADER_BYTES), from.plus(32), 3, b"behind");
    let (_log, replayed, recovery) = open(folder, Some(from));
    assert_eq!(replayed, ["behind"]);
    assert_eq!(recovery.damaged.len(), 1, "{recovery:?}");
}

#[test]
fn appending_behind_a_checkpoint_does_not_damage_a_start_from_an_older_one() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, 1, SEGMENT_BYTES);
    let second = put(folder, at(1, HEADER_BYTES), at(1, HEADER_BYTES), 1, b"one");
    let from = put(folder, second, second, 2, b"two");
    let (log, _, _) = open(folder, Some(from));
    log.append(Class::Grow, b"three").unwrap();
    log.close().unwrap();
    let (_log, replayed, recovery) = open(folder, None);
    assert_eq!(replayed, ["one", "two", "three"]);
    assert!(recovery.damaged.is_empty(), "{recovery:?}");
}

#[tokio::test]
async fn the_seal_of_a_segment_is_synced_with_the_group_that_follows_it() {
    let folder = tempfile::tempdir().unwrap();
    let (log, _, _) = open(folder.path(), None);
    let end = log.append(Class::Grow, &[1; 40_000]).unwrap().end;
    log.committed(end).await.unwrap();
    let before = log.syncs();
    let end = log.append(Class::Grow, &[2; 40_000]).unwrap().end;
    assert_eq!(end.segment, 2);
    log.committed(end).await.unwrap();
    // Else a power cut leaves a gap in the sequence, which looks like lost records.
    assert_eq!(log.syncs() - before, 2);
}

#[test]
fn a_log_that_vanished_behind_its_checkpoint_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = "segment 3 of the log is missing";
    refused(folder.path(), Some(at(3, 640)), missing);
    let (_log, _, recovery) = open(folder.path(), Some(at(3, 640)));
    assert!(!recovery.damaged.is_empty(), "{recovery:?}");
}

#[test]
fn a_segment_cut_short_before_the_checkpoint_is_named_and_the_log_continues() {
    for length in [0, 10, 100, 4_999] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make(folder, 1, SEGMENT_BYTES);
        let path = segment::path(&folder.join("log"), 1);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length)
            .unwrap();
        let from = at(1, 5_000);
        refused(folder, Some(from), "segment 1 of the log has");
        let (log, _, recovery) = open(folder, Some(from));
        assert!(!recovery.damaged.is_empty(), "{length}: {recovery:?}");
        let appended = log.append(Class::Grow, b"next").unwrap();
        assert!(appended.body > from, "{length}");
        log.close().unwrap();
        let (_log, replayed, _) = open(folder, Some(from));
        assert_eq!(replayed, ["next"], "{length}");
    }
}

#[test]
fn an_only_segment_cut_short_takes_records_again() {
    for length in [0, 10, 64, 70] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        make(folder, 1, SEGMENT_BYTES);
        let path = segment::path(&folder.join("log"), 1);
        std::fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(length)
            .unwrap();
        refused(folder, None, "segment 1 of the log has");
        let (log, _, recovery) = open(folder, None);
        assert_eq!(recovery.lacking.len(), 1, "{length}");
        log.append(Class::Grow, b"next").unwrap();
        log.close().unwrap();
        let (_log, replayed, _) = open(folder, None);
        assert_eq!(replayed, ["next"], "{length}");
    }
}

#[test]
fn a_segment_between_others_that_is_missing_or_another_one_is_refused() {
    for (fault, what) in [
        ("missing", "segment 2 of the log is missing"),
        ("swapped", "segment 2 of the log is a copy of segment 3"),
        ("short", "segment 2 of the log has 65528 of 65536 bytes"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        for number in 1..4 {
            make(folder, number, SEGMENT_BYTES);
        }
        let path = |number| segment::path(&folder.join("log"), number);
        match fault {
            "missing" => std::fs::remove_file(path(2)).unwrap(),
            "swapped" => {
                std::fs::copy(path(3), path(2)).unwrap();
            }
            _ => {
                let file = std::fs::File::options().write(true).open(path(2)).unwrap();
                file.set_len(u64::from(SEGMENT_BYTES) - 8).unwrap();
            }
        }
        refused(folder, None, what);
        let (_, _, recovery) = open(folder, None);
        assert_eq!(recovery.lacking.len(), 1, "{fault}");
    }
}

#[test]
fn whole_segments_behind_a_torn_place_are_kept_for_a_person_to_look_at() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    make(folder, 1, SEGMENT_BYTES);
    make(folder, 2, SEGMENT_BYTES);
    let place = put(folder, at(1, HEADER_BYTES), at(1, HEADER_BYTES), 1, b"kept");
    overwrite(folder, place, b"half a frame");
    put(
        folder,
        at(2, HEADER_BYTES),
        at(1, HEADER_BYTES),
        3,
        b"intact, written, not synced",
    );
    let (_log, replayed, _) = open(folder, None);
    assert_eq!(replayed, ["kept"]);
    let saved = std::fs::read_dir(folder.join("quarantine"))
        .unwrap()
        .any(|entry| {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            bytes
                .windows(27)
                .any(|window| window == b"intact, written, not synced")
        });
    assert!(saved);
}

#[test]
fn closing_while_others_append_ends() {
    for round in 0..60 {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            durability: Durability::Os,
            ..options(folder.path())
        };
        let (log, _) = Log::open(options, None, &mut |_, _| Ok(()), &BTreeMap::new).unwrap();
        within(Duration::from_secs(60), move || {
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| while log.append(Class::Note, b"x").is_ok() {});
                }
                std::thread::sleep(Duration::from_micros(round * 15));
                log.close().unwrap();
            });
            drop(log);
        });
    }
}

#[test]
fn a_payload_made_to_look_like_frames_does_not_hold_up_recovery() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let size = 16 * 1024 * 1024;
    make(folder, 1, size);
    let mut hostile = Vec::new();
    while hostile.len() < 1024 * 1024 {
        hostile.extend_from_slice(b"TWPF");
        hostile.extend_from_slice(&(14_u32 << 20).to_le_bytes());
    }
    overwrite(folder, at(1, HEADER_BYTES), &hostile);
    let began = Instant::now();
    let (_log, _, recovery) = open(folder, None);
    assert!(recovery.cut.is_some());
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
}
