//! Every state that a crash can leave behind, and everything else that happens to files.

use std::time::Duration;

use towpath_core::{Headers, Message, QueueName, Receipt, Timestamp};

use super::*;

fn delivery(text: &str) -> Delivery {
    Delivery {
        message: Message {
            id: MessageId::new(),
            payload: text.to_owned().into(),
            headers: Headers::new(),
            key: None,
            enqueued_at: Timestamp::default(),
        },
        receipt: Receipt {
            queue: QueueName::new("q").unwrap(),
            number: 1,
            fence: 1,
        },
        attempt: 1,
        lease: Duration::from_secs(30),
    }
}

fn messages(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'), "torn: {text:?}");
    text.lines()
        .map(|line| line.split_once(" | ").unwrap().1.to_owned())
        .collect()
}

async fn deliver(path: &Path, batch: &[Delivery]) {
    let sink = FileSink::new(path);
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

    let announced = (before.1.len()..=after.1.len()).map(|length| (before.0.len(), length));
    let appended = (before.0.len()..=after.0.len()).map(|length| (length, after.1.len()));
    for (output_bytes, journal_bytes) in announced.chain(appended) {
        fs::write(&output, &after.0[..output_bytes]).unwrap();
        fs::write(&journal, &after.1[..journal_bytes]).unwrap();
        // After a crash what was not acked comes again, and maybe more.
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
async fn a_file_that_is_rotated_or_removed_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("deep/er/out");
    let sink = FileSink::new(&output);
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
async fn what_others_append_is_never_cut() {
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
    let sink = FileSink::new(&output);
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
async fn a_second_worker_on_one_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let first = FileSink::new(&output);
    first.deliver(&[delivery("one")]).await.unwrap();
    let error = FileSink::new(&output)
        .deliver(&[delivery("two")])
        .await
        .unwrap_err();
    assert!(
        error.chain().contains("is held by another worker"),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_journal_stays_small_and_still_knows() {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let sink = FileSink::new(&output);
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
    // Somebody takes a line out while nobody writes.
    let text = fs::read_to_string(&output).unwrap();
    let shorter: String = text
        .lines()
        .filter(|line| !line.ends_with("| two"))
        .map(|line| format!("{line}\n"))
        .collect();
    fs::write(&output, shorter).unwrap();
    deliver(&output, &[delivery("four")]).await;
    assert_eq!(messages(&output), ["one", "three", "four"]);

    // A crash between announcing and appending, and somebody else's line where ours was to be.
    let before = (fs::read(&output).unwrap(), fs::read(&journal).unwrap());
    let last = [delivery("five, and long enough")];
    deliver(&output, &last).await;
    fs::write(&output, [&before.0[..], b"x | foreign\n"].concat()).unwrap();
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
    let sink = FileSink::new(&output);
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
