//! Every state that a crash can leave behind, and everything else that happens to files.

#![expect(clippy::disallowed_methods, reason = "tests have no supervisor")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use super::journal::Journal;
use super::record::Intent;
use super::*;
use crate::sink::testing::delivery;

fn sink(path: &Path) -> FileSink {
    FileSink::new(path, LineFormat::Stamped)
}

fn messages(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "torn: {text:?}");
    text.lines()
        .map(|line| line.split_once(" | ").unwrap().1.to_owned())
        .collect()
}

async fn deliver(path: &Path, batch: &[Delivery]) {
    let sink = sink(path);
    assert_eq!(
        sink.deliver(batch).await.unwrap(),
        vec![Outcome::Done; batch.len()]
    );
    sink.close().await.unwrap();
}

#[tokio::test]
async fn whatever_a_crash_leaves_every_line_is_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let (output, journal) = (folder.path().join("out"), folder.path().join("out.journal"));
    let (first, second) = (
        [delivery("one"), delivery("two")],
        [delivery("three"), delivery("four\nfive")],
    );
    deliver(&output, &first).await;
    let before = (fs::read(&output).unwrap(), fs::read(&journal).unwrap());
    deliver(&output, &second).await;
    let after = (fs::read(&output).unwrap(), fs::read(&journal).unwrap());

    // The record that says that everything was carried out comes last.
    let announcement = after.1.len() - 40;
    let announced = (before.1.len()..=announcement).map(|length| (before.0.len(), length));
    let appended = (before.0.len()..=after.0.len()).map(|length| (length, announcement));
    let confirmed = (announcement..=after.1.len()).map(|length| (after.0.len(), length));
    for (output_bytes, journal_bytes) in announced.chain(appended).chain(confirmed) {
        fs::write(&output, &after.0[..output_bytes]).unwrap();
        fs::write(&journal, &after.1[..journal_bytes]).unwrap();
        // After a crash messages that were not acked are delivered again, and maybe others.
        deliver(&output, &first).await;
        deliver(&output, &second).await;
        let state = format!("output of {output_bytes}, journal of {journal_bytes} bytes");
        assert_eq!(
            messages(&output),
            ["one", "two", "three", r"four\nfive"],
            "{state}"
        );
        deliver(&output, &[delivery("six")]).await;
        assert_eq!(messages(&output).len(), 5, "{state}");
    }
}

#[tokio::test]
async fn a_restart_that_renumbers_the_devices_duplicates_no_line() {
    let folder = tempfile::tempdir().unwrap();
    let (output, journal) = (folder.path().join("out"), folder.path().join("out.journal"));
    deliver(&output, &[delivery("one")]).await;
    let (length, announced) = (
        fs::read(&output).unwrap().len(),
        fs::read(&journal).unwrap().len(),
    );
    let last = [delivery("two"), delivery("three")];
    deliver(&output, &last).await;
    let (text, mut bytes) = (fs::read(&output).unwrap(), fs::read(&journal).unwrap());
    // The record that says that everything was carried out comes last, and is lost.
    bytes.truncate(bytes.len() - 40);
    let record = &mut bytes[announced..];
    // The device's number, and the checksum over everything behind itself.
    record[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
    let checksum = crc32c::crc32c(&record[4..]);
    record[..4].copy_from_slice(&checksum.to_le_bytes());
    for written in length..=text.len() {
        fs::write(&output, &text[..written]).unwrap();
        fs::write(&journal, &bytes).unwrap();
        deliver(&output, &last).await;
        assert_eq!(messages(&output), ["one", "two", "three"], "at {written}");
    }
}

#[tokio::test]
async fn a_large_batch_is_written_in_parts() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let batch: Vec<Delivery> = (0..10)
        .map(|number| delivery(number.to_string().repeat(600_000)))
        .collect();
    deliver(&output, &batch).await;
    let written = messages(&output);
    assert!(
        written
            .iter()
            .map(String::as_bytes)
            .eq(batch.iter().map(|one| &one.message.payload))
    );
    let journal = fs::read(folder.path().join("out.journal")).unwrap();
    let parts = super::record::scan(&journal[8..]).intents;
    let largest = parts.iter().map(|part| part.text.len()).max();
    assert!(
        parts.len() > 2 && largest <= Some(PART_BYTES),
        "{largest:?}"
    );
    deliver(&output, &batch).await;
    assert_eq!(messages(&output).len(), batch.len());
}

#[tokio::test]
async fn a_file_that_is_rotated_or_removed_is_created_again() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("deep/er/out");
    let sink = sink(&output);
    sink.deliver(&[delivery("one")]).await.unwrap();
    fs::rename(&output, folder.path().join("rotated")).unwrap();
    sink.deliver(&[delivery("two")]).await.unwrap();
    assert_eq!(messages(&output), ["two"]);
    fs::remove_file(&output).unwrap();
    sink.deliver(&[delivery("three")]).await.unwrap();
    assert_eq!(messages(&output), ["three"]);
    assert_eq!(messages(&folder.path().join("rotated")), ["one"]);
}

#[tokio::test]
async fn appends_of_other_programs_are_never_cut() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    deliver(&output, &[delivery("one")]).await;
    let mut foreign = OpenOptions::new().append(true).open(&output).unwrap();
    foreign.write_all(b"x | foreign\n").unwrap();
    deliver(&output, &[delivery("two")]).await;
    assert_eq!(messages(&output), ["one", "foreign", "two"]);
}

#[tokio::test]
async fn a_path_that_cannot_be_written_is_named_and_works_once_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    fs::create_dir(&output).unwrap();
    let sink = sink(&output);
    let error = sink.deliver(&[delivery("one")]).await.unwrap_err();
    assert!(
        error
            .chain()
            .contains(&format!("output `{}` cannot be written", output.display())),
        "{error:?}"
    );
    fs::remove_dir(&output).unwrap();
    sink.deliver(&[delivery("one")]).await.unwrap();
    assert_eq!(messages(&output), ["one"]);
}

#[tokio::test]
async fn the_journal_stays_small_and_still_knows() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let sink = sink(&output);
    let mut last = Vec::new();
    for _ in 0..60 {
        last = (0..10_000).map(|_| delivery("x")).collect();
        sink.deliver(&last).await.unwrap();
    }
    sink.close().await.unwrap();
    let bytes = fs::metadata(folder.path().join("out.journal"))
        .unwrap()
        .len();
    assert!(bytes < 10 << 20, "{bytes}");
    deliver(&output, &last).await;
    assert_eq!(messages(&output).len(), 600_000);
}

#[tokio::test]
async fn lines_that_others_took_or_added_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (output, journal) = (folder.path().join("out"), folder.path().join("out.journal"));
    let batch = [delivery("one"), delivery("two"), delivery("three")];
    deliver(&output, &batch).await;
    // Another program removes a line between two deliveries.
    let text = fs::read_to_string(&output).unwrap();
    let shorter: String = text
        .lines()
        .filter(|line| !line.ends_with("| two"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&output, shorter).unwrap();
    deliver(&output, &[delivery("four")]).await;
    assert_eq!(messages(&output), ["one", "three", "four"]);

    // A crash between announcing and appending, and another client's line where ours was to be.
    let before = (fs::read(&output).unwrap(), fs::read(&journal).unwrap());
    let last = [delivery("five, and long enough")];
    deliver(&output, &last).await;
    fs::write(&output, [&before.0[..], b"x | foreign\n"].concat()).unwrap();
    let announced = fs::metadata(&journal).unwrap().len() - 40;
    let file = OpenOptions::new().write(true).open(&journal).unwrap();
    file.set_len(announced).unwrap();
    deliver(&output, &last).await;
    assert_eq!(
        messages(&output),
        ["one", "three", "four", "foreign", "five, and long enough"]
    );
}

#[tokio::test]
async fn a_rotation_forgets_nothing_and_a_half_line_is_not_continued() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let sink = sink(&output);
    let first = [delivery("one")];
    sink.deliver(&first).await.unwrap();
    fs::rename(&output, folder.path().join("rotated")).unwrap();
    fs::write(&output, b"x | header").unwrap();
    let again = [first[0].clone(), delivery("two"), delivery("two")];
    let twice = [again[1].clone(), again[1].clone()];
    sink.deliver(&[again[0].clone()]).await.unwrap();
    sink.deliver(&twice).await.unwrap();
    assert_eq!(messages(&output), ["header", "two"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_share_a_file_write_each_message_once() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let workers = [sink(&output), sink(&output), sink(&output)].map(Arc::new);
    let batches: Vec<Vec<Delivery>> = (0..60)
        .map(|batch| {
            (0..3)
                .map(|line| delivery(format!("{batch}.{line}")))
                .collect()
        })
        .collect();
    let tasks: Vec<_> = workers
        .iter()
        .enumerate()
        .map(|(number, worker)| {
            let (worker, batches) = (Arc::clone(worker), batches.clone());
            // Side by side, as processes are.
            tokio::spawn(async move {
                // Every batch goes to two of the workers, as after a lease that expired.
                for batch in batches
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| at % 3 != number)
                {
                    worker.deliver(batch.1).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut written = messages(&output);
    assert_eq!(written.len(), 180);
    written.sort_unstable();
    written.dedup();
    assert_eq!(written.len(), 180);
}

#[tokio::test]
async fn a_worker_knows_the_messages_of_another_one_before_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let (one, other) = (sink(&output), sink(&output));
    let batch = [delivery("one")];
    other.deliver(&[delivery("zero")]).await.unwrap();
    one.deliver(&batch).await.unwrap();
    fs::rename(&output, folder.path().join("rotated")).unwrap();
    other.deliver(&batch).await.unwrap();
    other.deliver(&[delivery("two")]).await.unwrap();
    one.deliver(&[delivery("three")]).await.unwrap();
    assert_eq!(messages(&output), ["two", "three"]);
}

#[tokio::test]
async fn a_compacted_journal_is_found_by_those_who_share_it() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let (one, other) = (sink(&output), sink(&output));
    other.deliver(&[delivery("zero")]).await.unwrap();
    // Two of these are more than a journal may hold, so the third is in a new one.
    let large: Vec<_> = (0..3).map(|_| [delivery("x".repeat(5 << 20))]).collect();
    for batch in &large {
        one.deliver(batch).await.unwrap();
    }
    for batch in &large {
        other.deliver(batch).await.unwrap();
    }
    assert_eq!(messages(&output).len(), 4);
}

#[tokio::test]
async fn a_flipped_bit_in_the_journal_costs_at_most_its_own_message() {
    let folder = tempfile::tempdir().unwrap();
    let (output, journal) = (folder.path().join("out"), folder.path().join("out.journal"));
    let batches =
        [["one", "two"], ["three", "four"], ["five", "six"]].map(|pair| pair.map(delivery));
    for batch in &batches {
        deliver(&output, batch).await;
    }
    let whole = (fs::read(&output).unwrap(), fs::read(&journal).unwrap());
    for byte in 8..whole.1.len() {
        let mut damaged = whole.1.clone();
        damaged[byte] ^= 1 << (byte % 8);
        fs::write(&output, &whole.0).unwrap();
        fs::write(&journal, &damaged).unwrap();
        for batch in &batches {
            deliver(&output, batch).await;
        }
        deliver(&output, &[delivery("seven")]).await;
        let written = messages(&output);
        let text = format!("flip in byte {byte}: {written:?}");
        let each = ["one", "two", "three", "four", "five", "six"];
        assert_eq!(written[..6], each, "{text}");
        assert!((7..=8).contains(&written.len()), "{text}");
        let kept = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.display().to_string().contains(".journal.damaged-"));
        if let Some(kept) = kept {
            assert_eq!(fs::read(&kept).unwrap(), damaged, "flip in byte {byte}");
            fs::remove_file(kept).unwrap();
        } else {
            assert!(
                byte + 40 >= whole.1.len(),
                "flip in byte {byte} was not named"
            );
        }
    }
}

#[tokio::test]
async fn a_file_of_another_program_in_place_of_the_journal_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (output, journal) = (folder.path().join("out"), folder.path().join("out.journal"));
    for (content, advice) in [
        (
            &b"a diary of a person"[..],
            "is not a Towpath journal; move it away to start a new one",
        ),
        (
            b"TOWPJNL\x02 and more",
            "is of a version that this Towpath cannot read; use the one that wrote it",
        ),
    ] {
        fs::write(&journal, content).unwrap();
        let error = sink(&output).deliver(&[delivery("x")]).await.unwrap_err();
        assert!(error.chain().contains(advice), "{error:?}");
        assert_eq!(fs::read(&journal).unwrap(), content);
    }
}

#[tokio::test]
async fn a_file_that_is_copied_and_truncated_continues_from_its_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let sink = sink(&output);
    let first = [delivery("one"), delivery("two")];
    sink.deliver(&first).await.unwrap();
    OpenOptions::new()
        .write(true)
        .open(&output)
        .unwrap()
        .set_len(0)
        .unwrap();
    sink.deliver(&[first[1].clone(), delivery("three")])
        .await
        .unwrap();
    assert_eq!(messages(&output), ["three"]);
    // The same between two processes: written messages are still known.
    sink.close().await.unwrap();
    fs::write(&output, b"").unwrap();
    deliver(&output, &[first[0].clone(), delivery("four")]).await;
    assert_eq!(messages(&output), ["four"]);
}

#[tokio::test]
async fn a_link_is_followed_and_other_kinds_of_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (link, target) = (folder.path().join("link"), folder.path().join("target"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    deliver(&link, &[delivery("one")]).await;
    // By its own name it has a journal of its own, and the lines of both are whole.
    deliver(&target, &[delivery("two")]).await;
    deliver(&link, &[delivery("three")]).await;
    assert_eq!(messages(&target), ["one", "two", "three"]);
    assert!(folder.path().join("link.journal").exists());

    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    let error = sink(&link).deliver(&[delivery("x")]).await.unwrap_err();
    assert!(
        error
            .chain()
            .contains("not a regular file; choose another path, or the stdout sink"),
        "{error:?}"
    );
}

#[tokio::test]
async fn raw_lines_are_the_messages_and_one_with_a_newline_is_abandoned() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let sink = FileSink::new(&output, LineFormat::Raw);
    let batch = [
        delivery("a\\b"),
        delivery("no\nline"),
        delivery(&b"\xff"[..]),
    ];
    let outcomes = sink.deliver(&batch).await.unwrap();
    assert_eq!(
        (&outcomes[0], &outcomes[2]),
        (&Outcome::Done, &Outcome::Done)
    );
    assert!(matches!(outcomes[1], Outcome::Reject { .. }));
    assert_eq!(fs::read(&output).unwrap(), b"a\\b\n\xff\n");
}

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/samples/journal-v1");

fn sample_record(first_id: u8, start: u64, text: &str) -> Intent {
    let ids = (first_id..first_id + 2).map(|byte| MessageId::from_bytes([byte; 16]));
    Intent {
        start,
        file: (1, 2),
        ids: ids.collect(),
        text: text.into(),
    }
}

/// Run with `cargo test -p towpath --lib -- --ignored makes_the_sample_journal` when the format gets a new version.
#[test]
#[ignore = "makes the sample of a new format version"]
fn makes_the_sample_journal() {
    fs::create_dir_all(Path::new(SAMPLE).parent().unwrap()).unwrap();
    let mut journal = Journal::new(SAMPLE.into());
    assert_eq!(journal.lock().unwrap(), None);
    let carried_out = sample_record(1, 0, "one\ntwo\n");
    journal.announce(&carried_out).unwrap();
    journal.confirm(&carried_out).unwrap();
    journal
        .announce(&sample_record(3, 8, "three\nfour\n"))
        .unwrap();
}

#[test]
fn a_journal_of_every_version_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.journal");
    fs::copy(SAMPLE, &path).unwrap();
    let mut journal = Journal::new(path);
    let pending = journal.lock().unwrap();
    assert_eq!(pending, Some(sample_record(3, 8, "three\nfour\n")));
    let known: Vec<bool> = (1..=4)
        .map(|byte| journal.knows(&MessageId::from_bytes([byte; 16])))
        .collect();
    assert_eq!(known, [true, true, false, false]);
}

/// The outputs of before in the order of their names, and the current one.
fn outputs(folder: &Path) -> Vec<String> {
    let mut paths: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| !path.to_string_lossy().contains("journal"))
        .collect();
    paths.sort();
    // The current one has the shortest name and sorts first.
    paths.rotate_left(1);
    let read = paths.iter().map(|path| fs::read_to_string(path).unwrap());
    read.collect()
}

#[tokio::test]
async fn a_full_output_gives_way_and_no_line_is_lost_or_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let small = Rotation {
        size: Some(40),
        every: None,
    };
    // Two workers that share it: each sees when the other one rotated.
    let workers = [(); 2].map(|()| FileSink::new(&output, LineFormat::Raw).rotating(small));
    let mut last = None;
    for number in 0..30 {
        let batch = [delivery(format!("line {number:03}"))];
        let worker = &workers[number % 2];
        assert_eq!(worker.deliver(&batch).await.unwrap(), [Outcome::Done]);
        if let Some(before) = last.replace(batch) {
            // A repeated message is recognised, also when its file has another name by now.
            worker.deliver(&before).await.unwrap();
        }
    }
    let all = outputs(folder.path());
    assert!(all.iter().all(|one| one.len() <= 40), "{all:?}");
    assert_eq!(all.len(), 8, "four lines of nine bytes each");
    let expected: String = (0..30)
        .map(|number| format!("line {number:03}\n"))
        .collect();
    assert_eq!(all.concat(), expected);
}

#[tokio::test]
async fn a_crash_before_the_new_output_is_there_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let one_line = Rotation {
        size: Some(1),
        every: None,
    };
    let batch = [delivery("one")];
    deliver(&output, &batch).await;
    // Renamed, and then nothing more.
    fs::rename(&output, folder.path().join("out.20261128T000000.000Z")).unwrap();
    let sink = sink(&output).rotating(one_line);
    sink.deliver(&batch).await.unwrap();
    sink.deliver(&[delivery("two")]).await.unwrap();
    sink.deliver(&[delivery("three")]).await.unwrap();
    let all = outputs(folder.path()).concat();
    let texts: Vec<&str> = all.lines().map(|line| &line[line.len() - 3..]).collect();
    assert_eq!(texts, ["one", "two", "ree"]);
}
