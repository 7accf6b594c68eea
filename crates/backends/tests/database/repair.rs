//! Rows that no broker takes, and places that are given out again: one event stops no other, and none is lost.

use jiff::Timestamp;
use towpath_core::ErrorKind;
use towpath_core::database::Database;
use towpath_core::port::outbox::{Event, Filter, MAX_DATA_BYTES, Status};

use super::users::create;
use super::{World, cases};

cases![
    a_payload_larger_than_a_message_stays_in_the_database,
    a_text_larger_than_a_header_stays_in_the_database,
    a_row_that_cannot_be_read_has_a_flaw_and_stops_no_other,
    a_sequence_that_was_reset_is_noticed_and_begun_again,
    a_place_that_belongs_to_another_event_is_noticed,
    an_operator_decides_about_events_that_may_have_been_sent,
    a_database_that_is_written_to_accepts_changes,
];

/// Adds an event whose columns are these SQL expressions.
fn insert(world: &World, columns: &[(&str, &str)]) {
    let id = uuid::Uuid::now_v7();
    let id = format!("'{id}'");
    let mut all = vec![
        ("id", id.as_str()),
        ("aggregate_type", "'thing'"),
        ("aggregate_id", "'1'"),
        ("event_type", "'thing.made'"),
        ("topic", "'things'"),
        ("event_data", "'{}'"),
        ("created_at", "'2026-01-01T00:00:00.000000Z'"),
    ];
    for (name, value) in columns {
        all.retain(|(known, _)| known != name);
        all.push((name, value));
    }
    let (names, values): (Vec<&str>, Vec<&str>) = all.into_iter().unzip();
    world.sql(&format!(
        "INSERT INTO outbox ({}) VALUES ({})",
        names.join(", "),
        values.join(", ")
    ));
}

/// A text of `bytes` bytes, as SQL.
fn text(world: &World, bytes: usize) -> String {
    match world.is_sqlite() {
        true => format!("replace(hex(zeroblob({})), '00', 'x')", bytes),
        false => format!("repeat('x', {bytes})"),
    }
}

async fn read(database: &Database) -> Vec<Event> {
    let mut all: Vec<Event> = Vec::new();
    loop {
        let after = all.last().map_or(0, |last| last.seq);
        let read = database.outbox.after(after, 10).await.expect("read");
        if read.is_empty() {
            return all;
        }
        all.extend(read);
    }
}

fn flaws(events: &[Event]) -> Vec<&str> {
    let flaws = events.iter().map(|one| one.flaw.as_deref());
    flaws.map(Option::unwrap_or_default).collect()
}

async fn a_payload_larger_than_a_message_stays_in_the_database(world: World) {
    let database = world.database().await;
    insert(&world, &[("event_data", &text(&world, MAX_DATA_BYTES + 1))]);
    insert(&world, &[("event_data", &text(&world, MAX_DATA_BYTES))]);
    insert(&world, &[]);
    let events = read(&database).await;
    let flaw = "`event_data` has 16777217 bytes, a message takes 16777216";
    assert_eq!(flaws(&events), [flaw, "", ""]);
    let sizes: Vec<usize> = events.iter().map(|one| one.event.data.len()).collect();
    assert_eq!(sizes, [0, MAX_DATA_BYTES, 2]);
    let first = database.outbox.list(&Filter::default(), 1).await;
    assert_eq!(first.expect("listed")[0].event, events[0]);
}

async fn a_text_larger_than_a_header_stays_in_the_database(world: World) {
    let database = world.database().await;
    let large = text(&world, 70_000);
    for name in ["topic", "aggregate_id", "partition_key"] {
        insert(&world, &[(name, &large)]);
    }
    let events = read(&database).await;
    let flaw = |name| format!("`{name}` has more than the 65536 bytes of a header");
    assert_eq!(
        flaws(&events),
        ["topic", "aggregate_id", "partition_key"].map(flaw)
    );
    assert_eq!(events[0].event.topic.len(), 200, "its beginning is shown");
}

async fn a_row_that_cannot_be_read_has_a_flaw_and_stops_no_other(world: World) {
    let database = world.database().await;
    let wrong: &[(&str, &str)] = match world.is_sqlite() {
        true => &[
            ("created_at", "'soon'"),
            ("id", "'none'"),
            ("topic", "CAST(x'c3' AS TEXT)"),
            ("event_data", "CAST(x'ff' AS TEXT)"),
        ],
        false => &[("created_at", "'infinity'"), ("created_at", "'-infinity'")],
    };
    for column in wrong {
        insert(&world, &[*column]);
    }
    create(&database, "ann").await;
    let events = read(&database).await;
    assert_eq!(events.len(), wrong.len() + 1);
    for (event, (name, _)) in events.iter().zip(wrong) {
        let flaw = event.flaw.as_deref().expect("a flaw");
        let begins = format!("column `{name}` cannot be read: ");
        assert!(flaw.starts_with(&begins), "{flaw}");
    }
    assert_eq!(events[wrong.len()].flaw, None);
    let listed = database.outbox.list(&Filter::default(), 10).await;
    let listed = listed.expect("listed").into_iter().map(|one| one.event);
    assert_eq!(listed.collect::<Vec<_>>(), events);
    let backlog = database.outbox.backlog().await.expect("counted");
    assert_eq!(backlog.new, events.len() as u64);
    let last = events[wrong.len() - 1].clone();
    let knows = database.outbox.knows(last.seq, Some(last.event.id)).await;
    assert!(knows.expect("asked"), "it is the one that was read");
}

/// As `TRUNCATE … RESTART IDENTITY` leaves it.
fn reset(world: &World) {
    world.sql(match world.is_sqlite() {
        true => "DELETE FROM outbox; DELETE FROM sqlite_sequence WHERE name = 'outbox'",
        false => "TRUNCATE outbox, outbox_refused RESTART IDENTITY",
    });
}

/// An outbox whose events were all sent, and the last of them.
async fn sent(world: &World, names: &[&str]) -> (Database, Event) {
    let database = world.database().await;
    for name in names {
        create(&database, name).await;
    }
    let last = read(&database).await.pop().expect("an event");
    database.outbox.sent(last.seq).await.expect("noted");
    (database, last)
}

async fn a_sequence_that_was_reset_is_noticed_and_begun_again(world: World) {
    let (database, last) = sent(&world, &["a", "b", "c"]).await;
    let outbox = &database.outbox;
    let name = outbox.name().await.expect("named");
    let id = Some(last.event.id);
    assert!(outbox.knows(last.seq, id).await.expect("asked"));
    assert!(outbox.knows(0, None).await.expect("asked"));
    reset(&world);
    create(&database, "d").await;
    create(&database, "e").await;
    for id in [id, None] {
        assert!(!outbox.knows(last.seq, id).await.expect("asked"));
    }
    let backlog = outbox.backlog().await.expect("counted");
    assert_eq!((backlog.new, backlog.ahead), (2, Some(last.seq)));
    let listed = outbox.list(&Filter::default(), 10).await.expect("listed");
    assert!(listed.iter().all(|one| one.status == Status::New));
    let purged = outbox.purge(Timestamp::MAX, 10).await.expect("purged");
    assert_eq!(purged, 0, "unsent events stay");
    outbox.begin_again().await.expect("begun again");
    assert_ne!(outbox.name().await.expect("named"), name);
    assert_eq!(outbox.position().await.expect("known"), 0);
    assert_eq!(read(&database).await.len(), 2);
    assert_eq!(outbox.backlog().await.expect("counted").ahead, None);
}

async fn a_place_that_belongs_to_another_event_is_noticed(world: World) {
    let (database, last) = sent(&world, &["a", "b"]).await;
    reset(&world);
    for name in ["c", "d", "e"] {
        create(&database, name).await;
    }
    let known = database.outbox.knows(last.seq, Some(last.event.id)).await;
    assert!(!known.expect("asked"), "the place has another event by now");
    database.outbox.begin_again().await.expect("begun again");
    assert_eq!(read(&database).await.len(), 3);
}

async fn an_operator_decides_about_events_that_may_have_been_sent(world: World) {
    let (database, _) = sent(&world, &["a", "b", "c"]).await;
    reset(&world);
    insert(&world, &[]);
    let refused = database.outbox.begin_again().await.expect_err("refused");
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    let text = refused.to_string();
    let sql = text.split("UPDATE").nth(1).expect("what to do");
    let sql = sql.split(';').next().expect("a statement");
    world.sql(&format!("UPDATE{sql}"));
    assert_eq!(read(&database).await.len(), 1);
    assert_eq!(database.outbox.position().await.expect("known"), 0);
}

async fn a_database_that_is_written_to_accepts_changes(world: World) {
    let database = world.database().await;
    database.outbox.check().await.expect("accepts changes");
}
