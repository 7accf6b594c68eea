//! The promises of the stream port.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::JoinSet;
use towpath_core::message::MAX_PAYLOAD_BYTES;
use towpath_core::port::Stream;
use towpath_core::port::stream::{Entry, GroupStats, Offset, ReadRequest, Start, Stats, Trim};
use towpath_core::{ErrorKind, GroupName, NewMessage, StreamName, Timestamp};

use crate::World;
use crate::world::*;

crate::promises! { Stream:
    delivers_entries_in_order_and_once;
    every_group_reads_everything;
    consumers_of_a_group_share_the_entries;
    a_group_starts_at_the_given_offset;
    an_existing_group_keeps_its_position;
    a_read_waits_for_the_first_entry;
    a_finished_prefix_ends_at_the_first_unfinished_entry;
    committing_again_changes_nothing;
    an_idle_pending_entry_can_be_claimed;
    a_disconnected_consumers_entries_can_be_claimed_at_once;
    a_claim_takes_the_oldest_up_to_max;
    seeking_back_replays;
    seeking_to_the_end_skips_entries;
    reports_lag_pending_and_age;
    trims_below_the_slowest_group;
    trims_to_the_newest_entries;
    ranges_page_through_without_a_group;
    recognises_a_repeated_entry needs Dedup;
    a_refused_entry_does_not_fail_the_batch;
    keeps_large_empty_and_binary_entries;
    keeps_headers_and_ids needs Headers;
    keeps_entries_and_positions_across_reopen;
    keeps_everything_across_reopen needs Bookkeeping;
    forgets_a_deleted_group;
    missing_streams_and_groups_are_not_found;
    streams_do_not_mix;
}

const LONG: Duration = Duration::from_secs(60);

async fn stream(world: &mut World) -> Arc<dyn Stream> {
    world.stream().await
}

fn lines() -> StreamName {
    StreamName::new("lines").expect("a valid name")
}

fn group(name: &str) -> GroupName {
    GroupName::new(name).expect("a valid name")
}

/// A stream with the group `g` at its beginning.
async fn grouped(world: &mut World) -> Arc<dyn Stream> {
    let stream = stream(world).await;
    create(&stream, "g", Start::Beginning).await;
    stream
}

async fn create(stream: &Arc<dyn Stream>, name: &str, start: Start) {
    let created = stream.create_group(&lines(), &group(name), start).await;
    created.expect("create a group");
}

async fn append(stream: &Arc<dyn Stream>, payloads: &[&str]) -> Vec<Offset> {
    let entries = payloads.iter().map(|payload| text(payload)).collect();
    append_all(stream, entries).await
}

async fn append_all(stream: &Arc<dyn Stream>, entries: Vec<NewMessage>) -> Vec<Offset> {
    let outcomes = stream.append(&lines(), entries).await.expect("append");
    outcomes
        .into_iter()
        .map(|outcome| outcome.expect("taken"))
        .collect()
}

async fn read_as(
    stream: &Arc<dyn Stream>,
    in_group: &str,
    who: &str,
    max: usize,
    wait: Duration,
) -> Vec<Entry> {
    let request = ReadRequest {
        stream: lines(),
        group: group(in_group),
        consumer: consumer(who),
        max,
        wait,
    };
    stream.read(request).await.expect("read")
}

async fn read(stream: &Arc<dyn Stream>, max: usize) -> Vec<Entry> {
    read_as(stream, "g", "one", max, Duration::ZERO).await
}

async fn claim(stream: &Arc<dyn Stream>, who: &str, min_idle: Duration, max: usize) -> Vec<Entry> {
    let claimed = stream
        .claim(&lines(), &group("g"), &consumer(who), min_idle, max)
        .await;
    claimed.expect("claim")
}

async fn commit(stream: &Arc<dyn Stream>, in_group: &str, finished: &[Offset]) {
    let committed = stream.commit(&lines(), &group(in_group), finished).await;
    committed.expect("commit");
}

async fn range(stream: &Arc<dyn Stream>, after: Option<Offset>, max: usize) -> Vec<Entry> {
    stream.range(&lines(), after, max).await.expect("range")
}

async fn stats(stream: &Arc<dyn Stream>) -> Stats {
    stream.stats(&lines()).await.expect("stats")
}

async fn of_group(stream: &Arc<dyn Stream>, name: &str) -> GroupStats {
    let groups = stats(stream).await.groups;
    let found = groups.into_iter().find(|one| one.group == group(name));
    found.expect("the group is listed")
}

fn texts(entries: &[Entry]) -> Vec<String> {
    entries
        .iter()
        .map(|entry| String::from_utf8_lossy(&entry.message.payload).into_owned())
        .collect()
}

fn offsets(entries: &[Entry]) -> Vec<Offset> {
    entries.iter().map(|entry| entry.offset).collect()
}

async fn delivers_entries_in_order_and_once(mut world: World) {
    let stream = grouped(&mut world).await;
    let appended = append(&stream, &["a", "b", "c"]).await;
    assert!(
        appended.is_sorted_by(|one, next| one < next),
        "{appended:?}"
    );
    let first = read(&stream, 2).await;
    assert_eq!(
        (texts(&first), offsets(&first)),
        (vec!["a".into(), "b".into()], appended[..2].to_vec())
    );
    assert!(first.iter().all(|entry| entry.attempt == 1));
    append(&stream, &["d"]).await;
    assert_eq!(texts(&read(&stream, 10).await), ["c", "d"]);
    assert!(read(&stream, 10).await.is_empty(), "each goes out once");
}

async fn every_group_reads_everything(mut world: World) {
    let stream = grouped(&mut world).await;
    create(&stream, "h", Start::Beginning).await;
    let appended = append(&stream, &["a", "b"]).await;
    commit(&stream, "g", &offsets(&read(&stream, 10).await)).await;
    let theirs = read_as(&stream, "h", "one", 10, Duration::ZERO).await;
    assert_eq!(offsets(&theirs), appended);
    assert_eq!(of_group(&stream, "g").await.lag, 0);
    assert_eq!(of_group(&stream, "h").await.lag, 2);
}

async fn consumers_of_a_group_share_the_entries(mut world: World) {
    let stream = grouped(&mut world).await;
    let payloads: Vec<String> = (0..200).map(|number| number.to_string()).collect();
    append_all(&stream, payloads.iter().map(|one| text(one)).collect()).await;
    let mut readers = JoinSet::new();
    for number in 0..8 {
        let stream = Arc::clone(&stream);
        readers.spawn(async move {
            let (who, mut seen) = (format!("reader-{number}"), Vec::new());
            loop {
                let entries = read_as(&stream, "g", &who, 7, Duration::from_millis(20)).await;
                if entries.is_empty() {
                    return seen;
                }
                assert!(offsets(&entries).is_sorted());
                commit(&stream, "g", &offsets(&entries)).await;
                seen.extend(texts(&entries));
            }
        });
    }
    let mut seen: Vec<String> = readers.join_all().await.concat();
    seen.sort_by_key(|text| text.parse::<u32>().expect("a number"));
    assert_eq!(seen, payloads);
    assert_eq!(of_group(&stream, "g").await.lag, 0);
}

async fn a_group_starts_at_the_given_offset(mut world: World) {
    let stream = stream(&mut world).await;
    let appended = append(&stream, &["a", "b", "c"]).await;
    create(&stream, "all", Start::Beginning).await;
    create(&stream, "rest", Start::After(appended[0])).await;
    create(&stream, "new", Start::End).await;
    append(&stream, &["d"]).await;
    for (name, expected) in [
        ("all", &["a", "b", "c", "d"][..]),
        ("rest", &["b", "c", "d"]),
        ("new", &["d"]),
    ] {
        assert_eq!(
            of_group(&stream, name).await.lag,
            expected.len() as u64,
            "{name}"
        );
        let entries = read_as(&stream, name, "one", 10, Duration::ZERO).await;
        assert_eq!(texts(&entries), expected, "{name}");
    }
}

async fn an_existing_group_keeps_its_position(mut world: World) {
    let stream = grouped(&mut world).await;
    append(&stream, &["a", "b"]).await;
    commit(&stream, "g", &offsets(&read(&stream, 1).await)).await;
    create(&stream, "g", Start::Beginning).await;
    assert_eq!(texts(&read(&stream, 10).await), ["b"]);
    create(&stream, "g", Start::End).await;
    assert_eq!(of_group(&stream, "g").await.pending, 1);
}

async fn a_read_waits_for_the_first_entry(mut world: World) {
    let stream = grouped(&mut world).await;
    let reader = Arc::clone(&stream);
    let waiting =
        tokio::spawn(
            async move { read_as(&reader, "g", "one", 10, Duration::from_secs(20)).await },
        );
    tokio::time::sleep(Duration::from_millis(50)).await;
    append(&stream, &["a"]).await;
    let read = tokio::time::timeout(Duration::from_secs(5), waiting).await;
    assert_eq!(texts(&read.expect("woken").expect("joined")), ["a"]);
}

async fn a_finished_prefix_ends_at_the_first_unfinished_entry(mut world: World) {
    let stream = grouped(&mut world).await;
    let appended = append(&stream, &["a", "b", "c", "d"]).await;
    read(&stream, 4).await;
    assert_eq!(of_group(&stream, "g").await.committed, None);
    commit(&stream, "g", &[appended[2], appended[0]]).await;
    let stats = of_group(&stream, "g").await;
    assert_eq!(
        (stats.committed, stats.lag, stats.pending),
        (Some(appended[0]), 2, 2)
    );
    commit(&stream, "g", &[appended[1]]).await;
    let stats = of_group(&stream, "g").await;
    assert_eq!(
        (stats.committed, stats.lag, stats.pending),
        (Some(appended[2]), 1, 1)
    );
}

async fn committing_again_changes_nothing(mut world: World) {
    let stream = grouped(&mut world).await;
    let appended = append(&stream, &["a", "b", "c"]).await;
    read(&stream, 3).await;
    for _ in 0..2 {
        commit(&stream, "g", &[appended[0], appended[2]]).await;
        let stats = of_group(&stream, "g").await;
        assert_eq!(
            (stats.committed, stats.lag, stats.pending),
            (Some(appended[0]), 1, 1)
        );
    }
}

async fn an_idle_pending_entry_can_be_claimed(mut world: World) {
    let stream = grouped(&mut world).await;
    let appended = append(&stream, &["a", "b"]).await;
    commit(&stream, "g", &offsets(&read(&stream, 2).await)[..1]).await;
    assert!(claim(&stream, "two", LONG, 10).await.is_empty());
    tokio::time::sleep(Duration::from_millis(120)).await;
    let claimed = claim(&stream, "two", Duration::from_millis(100), 10).await;
    assert_eq!(
        (offsets(&claimed), claimed[0].attempt),
        (vec![appended[1]], 2)
    );
    assert!(
        claim(&stream, "three", LONG, 10).await.is_empty(),
        "held again"
    );
    commit(&stream, "g", &offsets(&claimed)).await;
    assert_eq!(of_group(&stream, "g").await.pending, 0);
}

async fn a_disconnected_consumers_entries_can_be_claimed_at_once(mut world: World) {
    let stream = grouped(&mut world).await;
    append(&stream, &["a", "b", "c"]).await;
    read_as(&stream, "g", "gone", 2, Duration::ZERO).await;
    read_as(&stream, "g", "here", 1, Duration::ZERO).await;
    let gone = consumer("gone");
    assert_eq!(stream.disconnect(&gone).await.expect("disconnect"), 2);
    let claimed = claim(&stream, "two", LONG, 10).await;
    assert_eq!(texts(&claimed), ["a", "b"]);
    assert!(claimed.iter().all(|entry| entry.attempt == 2));
    assert_eq!(stream.disconnect(&gone).await.expect("disconnect"), 0);
}

async fn a_claim_takes_the_oldest_up_to_max(mut world: World) {
    let stream = grouped(&mut world).await;
    append(&stream, &["a", "b", "c"]).await;
    read_as(&stream, "g", "gone", 3, Duration::ZERO).await;
    stream
        .disconnect(&consumer("gone"))
        .await
        .expect("disconnect");
    assert_eq!(texts(&claim(&stream, "two", LONG, 2).await), ["a", "b"]);
    assert_eq!(texts(&claim(&stream, "two", LONG, 2).await), ["c"]);
}

async fn seeking_back_replays(mut world: World) {
    let stream = grouped(&mut world).await;
    let appended = append(&stream, &["a", "b", "c"]).await;
    commit(&stream, "g", &offsets(&read(&stream, 2).await)).await;
    read(&stream, 1).await;
    let seek = |to| {
        let stream = Arc::clone(&stream);
        async move { stream.seek(&lines(), &group("g"), to).await.expect("seek") }
    };
    seek(Start::Beginning).await;
    assert_eq!(of_group(&stream, "g").await.pending, 0, "forgotten");
    let again = read(&stream, 10).await;
    assert_eq!(texts(&again), ["a", "b", "c"]);
    assert!(again.iter().all(|entry| entry.attempt == 1));
    seek(Start::After(appended[1])).await;
    assert_eq!(texts(&read(&stream, 10).await), ["c"]);
}

async fn seeking_to_the_end_skips_entries(mut world: World) {
    let stream = grouped(&mut world).await;
    append(&stream, &["a", "b"]).await;
    stream
        .seek(&lines(), &group("g"), Start::End)
        .await
        .expect("seek");
    assert_eq!(of_group(&stream, "g").await.lag, 0);
    append(&stream, &["c"]).await;
    assert_eq!(texts(&read(&stream, 10).await), ["c"]);
}

async fn reports_lag_pending_and_age(mut world: World) {
    let stream = grouped(&mut world).await;
    let empty = of_group(&stream, "g").await;
    assert_eq!(
        (empty.lag, empty.pending, empty.oldest_age, empty.committed),
        (0, 0, None, None)
    );
    let appended = append(&stream, &["a", "b", "c"]).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let held = read(&stream, 2).await;
    let busy = of_group(&stream, "g").await;
    assert_eq!((busy.lag, busy.pending), (3, 2));
    let age = busy.oldest_age.expect("something is unfinished");
    assert!(age >= Duration::from_millis(50) && age < LONG, "{age:?}");
    commit(&stream, "g", &offsets(&held)).await;
    let all = stats(&stream).await;
    assert_eq!((all.entries, all.appended), (3, 3));
    assert_eq!(
        (all.first, all.last),
        (Some(appended[0]), Some(appended[2]))
    );
    assert_eq!((all.groups[0].lag, all.groups[0].pending), (1, 0));
    let listed = stream.list().await.expect("list");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].stream, lines());
}

async fn trims_below_the_slowest_group(mut world: World) {
    let stream = grouped(&mut world).await;
    let appended = append(&stream, &["a", "b", "c", "d"]).await;
    create(&stream, "slow", Start::Beginning).await;
    commit(&stream, "g", &offsets(&read(&stream, 3).await)).await;
    let of = lines();
    let trim = || stream.trim(&of, Trim::Finished);
    assert_eq!(trim().await.expect("trim"), 0, "`slow` has read nothing");
    let held = read_as(&stream, "slow", "one", 2, Duration::ZERO).await;
    assert_eq!(
        trim().await.expect("trim"),
        0,
        "a pending entry is not finished"
    );
    commit(&stream, "slow", &offsets(&held)).await;
    assert_eq!(trim().await.expect("trim"), 2);
    let left = stats(&stream).await;
    assert_eq!(
        (left.entries, left.appended, left.first),
        (2, 4, Some(appended[2]))
    );
    let slow = read_as(&stream, "slow", "one", 10, Duration::ZERO).await;
    assert_eq!(texts(&slow), ["c", "d"]);
    stream
        .delete_group(&lines(), &group("slow"))
        .await
        .expect("delete");
    stream
        .delete_group(&lines(), &group("g"))
        .await
        .expect("delete");
    assert_eq!(trim().await.expect("trim"), 0, "the rest is unread");
}

async fn trims_to_the_newest_entries(mut world: World) {
    let stream = grouped(&mut world).await;
    let appended = append(&stream, &["a", "b", "c", "d", "e"]).await;
    let held = read(&stream, 2).await;
    let trim = |keep| {
        let stream = Arc::clone(&stream);
        async move {
            stream
                .trim(&lines(), Trim::KeepLast(keep))
                .await
                .expect("trim")
        }
    };
    assert_eq!(trim(9).await, 0);
    assert_eq!(trim(2).await, 3);
    // A pending entry that was trimmed can still be committed, and holds nothing back.
    commit(&stream, "g", &offsets(&held)).await;
    let left = of_group(&stream, "g").await;
    assert_eq!((left.lag, left.pending), (2, 0));
    let rest = read(&stream, 10).await;
    assert_eq!(offsets(&rest), appended[3..]);
    commit(&stream, "g", &offsets(&rest)).await;
    assert_eq!(of_group(&stream, "g").await.committed, Some(appended[4]));
    assert_eq!(trim(0).await, 2);
    assert_eq!(stats(&stream).await.entries, 0);
    let next = append(&stream, &["f"]).await;
    assert!(next[0] > appended[4], "offsets only grow");
    assert_eq!(texts(&read(&stream, 10).await), ["f"]);
}

async fn ranges_page_through_without_a_group(mut world: World) {
    let stream = stream(&mut world).await;
    append(&stream, &["a", "b", "c"]).await;
    let first = range(&stream, None, 2).await;
    assert_eq!(texts(&first), ["a", "b"]);
    assert!(first.iter().all(|entry| entry.attempt == 0));
    let rest = range(&stream, Some(first[1].offset), 2).await;
    assert_eq!(texts(&rest), ["c"]);
    assert!(range(&stream, Some(rest[0].offset), 2).await.is_empty());
}

async fn recognises_a_repeated_entry(mut world: World) {
    let stream = grouped(&mut world).await;
    let entry = |payload: &str, dedup_id: &str| NewMessage {
        dedup_id: Some(dedup_id.to_owned()),
        ..text(payload)
    };
    let first = append_all(
        &stream,
        vec![entry("a", "1"), entry("b", "2"), entry("a", "1")],
    )
    .await;
    assert_eq!(first[0], first[2]);
    let again = append_all(&stream, vec![entry("c", "3"), entry("b", "2")]).await;
    assert_eq!(again[1], first[1]);
    assert!(again[0] > first[1]);
    assert_eq!(texts(&read(&stream, 10).await), ["a", "b", "c"]);
    world.close().await;
    let stream = world.stream().await;
    assert_eq!(append_all(&stream, vec![entry("a", "1")]).await, first[..1]);
    assert_eq!(stats(&stream).await.appended, 3);
}

async fn a_refused_entry_does_not_fail_the_batch(mut world: World) {
    let stream = grouped(&mut world).await;
    let delayed = NewMessage {
        not_before: Some(Timestamp::from_millis(u64::MAX / 2)),
        ..text("later")
    };
    let mortal = NewMessage {
        expires: Some(Timestamp::from_millis(u64::MAX / 2)),
        ..text("mortal")
    };
    let huge = NewMessage::new(vec![0; MAX_PAYLOAD_BYTES + 1]);
    let batch = vec![text("a"), delayed, mortal, huge, text("b")];
    let mut outcomes = stream.append(&lines(), batch).await.expect("append");
    for index in [3, 2, 1] {
        assert_kind(outcomes.remove(index), ErrorKind::Invalid);
    }
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    assert_eq!(texts(&read(&stream, 10).await), ["a", "b"]);
}

async fn keeps_large_empty_and_binary_entries(mut world: World) {
    let stream = grouped(&mut world).await;
    let large: Bytes = (0..1 << 20).map(|byte: u32| byte as u8).collect();
    let payloads = [Bytes::new(), Bytes::from_static(b"\0\r\n\xff"), large];
    append_all(
        &stream,
        payloads.iter().cloned().map(NewMessage::new).collect(),
    )
    .await;
    let entries = read(&stream, 10).await;
    let read: Vec<Bytes> = entries
        .into_iter()
        .map(|entry| entry.message.payload)
        .collect();
    assert!(
        read == payloads,
        "{:?}",
        read.iter().map(Bytes::len).collect::<Vec<_>>()
    );
}

async fn keeps_headers_and_ids(mut world: World) {
    let stream = grouped(&mut world).await;
    let mut entry = text("a");
    entry.headers.set("traceparent", "00-1-2-01");
    entry.key = Some("customer".to_owned());
    append_all(&stream, vec![entry.clone()]).await;
    let message = read(&stream, 1).await.remove(0).message;
    assert_eq!(
        (message.id, message.headers, message.key),
        (entry.id, entry.headers, entry.key)
    );
}

async fn keeps_entries_and_positions_across_reopen(mut world: World) {
    let stream = grouped(&mut world).await;
    let appended = append(&stream, &["a", "b", "c"]).await;
    let held = read(&stream, 2).await;
    commit(&stream, "g", &[held[0].offset]).await;
    stream
        .disconnect(&consumer("one"))
        .await
        .expect("disconnect");
    world.close().await;
    let stream = world.stream().await;
    let all = stats(&stream).await;
    assert_eq!((all.entries, all.last), (3, Some(appended[2])));
    let stats = of_group(&stream, "g").await;
    assert_eq!((stats.committed, stats.lag), (Some(appended[0]), 2));
    // Unfinished entries are delivered again, as they were or from the position on.
    let mut rest = claim(&stream, "two", Duration::ZERO, 10).await;
    rest.extend(read(&stream, 10).await);
    assert_eq!(texts(&rest), ["b", "c"]);
    commit(&stream, "g", &offsets(&rest)).await;
    assert_eq!(of_group(&stream, "g").await.lag, 0);
}

async fn keeps_everything_across_reopen(mut world: World) {
    let stream = grouped(&mut world).await;
    create(&stream, "idle", Start::End).await;
    let appended = append(&stream, &["a", "b", "c", "d", "e"]).await;
    let held = read(&stream, 4).await;
    commit(&stream, "g", &[held[0].offset, held[2].offset]).await;
    stream
        .trim(&lines(), Trim::KeepLast(4))
        .await
        .expect("trim");
    world.close().await;
    let stream = world.stream().await;
    let all = stats(&stream).await;
    assert_eq!((all.entries, all.appended), (4, 5));
    assert_eq!(
        (all.first, all.last),
        (Some(appended[1]), Some(appended[4]))
    );
    assert_eq!(of_group(&stream, "idle").await.lag, 4);
    let stats = of_group(&stream, "g").await;
    assert_eq!((stats.committed, stats.lag), (Some(appended[0]), 3));
    assert_eq!(
        texts(&read(&stream, 10).await),
        ["e"],
        "the others were delivered"
    );
    stream
        .disconnect(&consumer("one"))
        .await
        .expect("disconnect");
    let claimed = claim(&stream, "two", Duration::ZERO, 10).await;
    assert_eq!(texts(&claimed), ["b", "d", "e"]);
    commit(&stream, "g", &offsets(&claimed)).await;
    assert_eq!(of_group(&stream, "g").await.committed, Some(appended[4]));
}

async fn forgets_a_deleted_group(mut world: World) {
    let stream = grouped(&mut world).await;
    append(&stream, &["a"]).await;
    commit(&stream, "g", &offsets(&read(&stream, 1).await)).await;
    for _ in 0..2 {
        stream
            .delete_group(&lines(), &group("g"))
            .await
            .expect("delete");
    }
    assert!(stats(&stream).await.groups.is_empty());
    create(&stream, "g", Start::Beginning).await;
    assert_eq!(texts(&read(&stream, 10).await), ["a"]);
}

async fn missing_streams_and_groups_are_not_found(mut world: World) {
    let stream = stream(&mut world).await;
    let request = |max| ReadRequest {
        stream: lines(),
        group: group("missing"),
        consumer: consumer("one"),
        max,
        wait: Duration::ZERO,
    };
    assert_kind(stream.stats(&lines()).await, ErrorKind::NotFound);
    assert_kind(stream.range(&lines(), None, 1).await, ErrorKind::NotFound);
    assert_kind(
        stream.trim(&lines(), Trim::Finished).await,
        ErrorKind::NotFound,
    );
    append(&stream, &["a"]).await;
    assert_kind(stream.read(request(1)).await, ErrorKind::NotFound);
    let missing = group("missing");
    assert_kind(
        stream.commit(&lines(), &missing, &[]).await,
        ErrorKind::NotFound,
    );
    assert_kind(
        stream.seek(&lines(), &missing, Start::End).await,
        ErrorKind::NotFound,
    );
    let claimed = stream
        .claim(&lines(), &missing, &consumer("one"), LONG, 1)
        .await;
    assert_kind(claimed, ErrorKind::NotFound);
    assert_kind(stream.read(request(0)).await, ErrorKind::Invalid);
    assert_kind(
        stream.range(&lines(), None, 10_001).await,
        ErrorKind::Invalid,
    );
}

async fn streams_do_not_mix(mut world: World) {
    let stream = stream(&mut world).await;
    let names: Vec<StreamName> = (0..50)
        .map(|number| StreamName::new(format!("stream-{number}")).expect("a valid name"))
        .collect();
    for name in &names {
        let outcomes = stream
            .append(name, vec![text(name.as_str())])
            .await
            .expect("append");
        assert!(outcomes[0].is_ok());
    }
    for name in &names {
        let entries = stream.range(name, None, 10).await.expect("range");
        assert_eq!(texts(&entries), [name.as_str()]);
    }
    assert_eq!(stream.list().await.expect("list").len(), names.len());
}
