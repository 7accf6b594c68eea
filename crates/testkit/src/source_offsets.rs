//! The promises of the source offsets port.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;
use towpath_core::port::source_offsets::{AppendAt, AppendOutcome, SourceOffsets};
use towpath_core::{NewMessage, QueueName, StreamName};

use crate::World;
use crate::world::text;

crate::promises! { SourceOffsets:
    an_append_moves_the_position needs Stream;
    an_append_at_another_position_conflicts needs Stream;
    one_of_many_appends_at_one_position_succeeds needs Stream;
    positions_stay_across_reopen needs Stream;
    each_source_has_its_own_position needs Stream;
    an_append_without_entries_creates_no_stream needs Stream;
    sources_are_listed_by_prefix needs Stream;
    a_position_is_forgotten_unless_it_moved needs Stream;
}

async fn positions(world: &mut World) -> Arc<dyn SourceOffsets> {
    let backend = world.backend().await;
    let positions = backend.require_source_offsets("the suite");
    positions.expect("the row offers positions")
}

fn lines() -> StreamName {
    StreamName::new("lines").expect("a valid name")
}

fn step(from: Option<&'static str>, to: &'static str, entries: &[&str]) -> AppendAt {
    AppendAt {
        source: "file".to_owned(),
        from: from.map(Bytes::from),
        to: to.into(),
        stream: lines(),
        entries: entries.iter().map(|one| text(one)).collect(),
        dead: QueueName::new("lines.dead").expect("a valid name"),
        rejected: Vec::new(),
    }
}

async fn take(positions: &Arc<dyn SourceOffsets>, step: AppendAt) -> AppendOutcome {
    positions.append_at(step).await.expect("step")
}

async fn position(positions: &Arc<dyn SourceOffsets>, source: &str) -> Option<Bytes> {
    positions.position(source).await.expect("position")
}

/// Everything in the stream.
async fn appended(world: &mut World) -> Vec<String> {
    let stream = world.stream().await;
    let entries = stream.range(&lines(), None, 1_000).await.expect("range");
    let payloads = entries.iter().map(|entry| &entry.message.payload);
    payloads
        .map(|payload| String::from_utf8_lossy(payload).into_owned())
        .collect()
}

async fn an_append_moves_the_position(mut world: World) {
    let positions = positions(&mut world).await;
    assert_eq!(position(&positions, "file").await, None);
    let first = step(None, "2", &["a", "b"]);
    assert_eq!(take(&positions, first).await, AppendOutcome::Appended);
    assert_eq!(position(&positions, "file").await, Some("2".into()));
    let mut second = step(Some("2"), "4", &["c"]);
    second.rejected.push(NewMessage::new("too long"));
    assert_eq!(take(&positions, second).await, AppendOutcome::Appended);
    assert_eq!(position(&positions, "file").await, Some("4".into()));
    assert_eq!(appended(&mut world).await, ["a", "b", "c"]);
}

async fn an_append_at_another_position_conflicts(mut world: World) {
    let positions = positions(&mut world).await;
    let first = step(None, "1", &["a"]);
    assert_eq!(
        take(&positions, first.clone()).await,
        AppendOutcome::Appended
    );
    for wrong in [first, step(Some("2"), "3", &["x"])] {
        let refused = take(&positions, wrong).await;
        assert_eq!(refused, AppendOutcome::OffsetConflict(Some("1".into())));
    }
    assert_eq!(appended(&mut world).await, ["a"]);
}

async fn one_of_many_appends_at_one_position_succeeds(mut world: World) {
    let positions = positions(&mut world).await;
    let mut racers = JoinSet::new();
    for name in ["a", "b", "c", "d", "e"] {
        let positions = Arc::clone(&positions);
        racers.spawn(async move { (name, take(&positions, step(None, name, &[name])).await) });
    }
    let outcomes = racers.join_all().await;
    let done = outcomes
        .iter()
        .filter(|(_, one)| *one == AppendOutcome::Appended);
    let done: Vec<&str> = done.map(|(name, _)| *name).collect();
    assert_eq!(done.len(), 1, "{outcomes:?}");
    assert_eq!(appended(&mut world).await, done);
    let now = position(&positions, "file").await;
    assert_eq!(now.as_deref(), Some(done[0].as_bytes()));
}

async fn positions_stay_across_reopen(mut world: World) {
    let before = positions(&mut world).await;
    assert_eq!(
        take(&before, step(None, "1", &["a"])).await,
        AppendOutcome::Appended
    );
    drop(before);
    world.close().await;
    let after = positions(&mut world).await;
    assert_eq!(position(&after, "file").await, Some("1".into()));
    let refused = take(&after, step(None, "1", &["a"])).await;
    assert_eq!(refused, AppendOutcome::OffsetConflict(Some("1".into())));
    assert_eq!(
        take(&after, step(Some("1"), "2", &["b"])).await,
        AppendOutcome::Appended
    );
    assert_eq!(appended(&mut world).await, ["a", "b"]);
}

async fn each_source_has_its_own_position(mut world: World) {
    let positions = positions(&mut world).await;
    for source in ["one", "two"] {
        let mut step = step(None, "1", &[source]);
        step.source = source.to_owned();
        assert_eq!(take(&positions, step).await, AppendOutcome::Appended);
    }
    assert_eq!(position(&positions, "two").await, Some("1".into()));
    assert_eq!(position(&positions, "three").await, None);
    assert_eq!(appended(&mut world).await, ["one", "two"]);
}

async fn an_append_without_entries_creates_no_stream(mut world: World) {
    let positions = positions(&mut world).await;
    let mut nothing = step(None, "1", &[]);
    // A name that some brokers refuse.
    nothing.stream = StreamName::new("a/name:of=none").expect("a valid name");
    assert_eq!(take(&positions, nothing).await, AppendOutcome::Appended);
    assert_eq!(position(&positions, "file").await, Some("1".into()));
    let streams = world.stream().await.list().await.expect("listed");
    assert!(streams.is_empty(), "{streams:?}");
}

async fn sources_are_listed_by_prefix(mut world: World) {
    let positions = positions(&mut world).await;
    for (source, to) in [("of:one", "1"), ("of:two", "2"), ("other", "3")] {
        let mut step = step(None, to, &[]);
        step.source = source.to_owned();
        assert_eq!(take(&positions, step).await, AppendOutcome::Appended);
    }
    let mut listed = positions.sources("of:").await.expect("listed");
    listed.sort();
    let expected = [("of:one", "1"), ("of:two", "2")];
    let expected = expected.map(|(source, at)| (source.to_owned(), Bytes::from(at)));
    assert_eq!(listed, expected);
    // Listing claims nothing: the source moves on as before.
    let mut next = step(Some("1"), "4", &[]);
    next.source = "of:one".to_owned();
    assert_eq!(take(&positions, next).await, AppendOutcome::Appended);
}

async fn a_position_is_forgotten_unless_it_moved(mut world: World) {
    let positions = positions(&mut world).await;
    assert_eq!(
        take(&positions, step(None, "1", &["a"])).await,
        AppendOutcome::Appended
    );
    let forget = async |last: &'static str| {
        let forgotten = positions.forget("file", last.into()).await;
        forgotten.expect("an answer")
    };
    assert!(!forget("2").await, "it is at another position");
    assert_eq!(position(&positions, "file").await, Some("1".into()));
    assert!(forget("1").await);
    assert!(!forget("1").await, "there is none any more");
    assert_eq!(position(&positions, "file").await, None);
    assert!(positions.sources("").await.expect("listed").is_empty());
    // As if it had never been read.
    let again = step(None, "1", &["b"]);
    assert_eq!(take(&positions, again).await, AppendOutcome::Appended);
    assert_eq!(appended(&mut world).await, ["a", "b"]);
}
