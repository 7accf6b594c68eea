//! The outbox.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use towpath_core::database::Database;
use towpath_core::port::outbox::{Backlog, Filter, ListedEvent, READ_BYTES, Status};
use uuid::Uuid;

use super::users::{create, event};
use super::{World, cases};

cases![
    events_come_back_as_they_were_written,
    the_trace_of_an_event_stays_with_it,
    a_read_is_full_with_sixteen_mebibytes,
    a_reader_beside_writers_misses_none_and_keeps_their_order,
    one_relay_works_at_a_time,
    the_position_of_sent_events_never_goes_back,
    a_refused_event_is_processing_then_failed_and_then_new_again,
    a_filter_lists_matching_events,
    sent_events_can_be_written_again,
    old_events_go_when_they_were_sent,
    a_commit_wakes_the_relay,
];

async fn statuses(database: &Database) -> Vec<(Status, u32)> {
    let all = list(database, Filter::default()).await;
    all.iter().map(|one| (one.status, one.attempts)).collect()
}

async fn list(database: &Database, filter: Filter) -> Vec<ListedEvent> {
    database.outbox.list(&filter, 1_000).await.expect("listed")
}

async fn events_come_back_as_they_were_written(world: World) {
    let database = world.database().await;
    let user = super::users::user("ann");
    let written = event(user.id, "user.created");
    database
        .users
        .create(user, written.clone(), None)
        .await
        .expect("created");
    let read = database.outbox.after(0, 10).await.expect("read");
    assert_eq!(read[0].event, written);
    assert_eq!(
        database.outbox.after(read[0].seq, 10).await.expect("read"),
        []
    );
    assert_eq!(list(&database, Filter::default()).await[0].event, read[0]);
}

async fn the_trace_of_an_event_stays_with_it(world: World) {
    let database = world.database().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let user = super::users::user("ann");
    let mut first = event(user.id, "user.created");
    first.traceparent = Some(parent.to_owned());
    let created = database.users.create(user, first, None).await;
    created.expect("created");
    let mut second = event(Uuid::now_v7(), "user.updated");
    second.traceparent = Some(parent.to_owned());
    let mut odd = event(Uuid::now_v7(), "user.updated");
    odd.traceparent = Some("x".repeat(10_000));
    let written = database.outbox.write(vec![second, odd]).await;
    written.expect("written");
    let read = database.outbox.after(0, 10).await.expect("read");
    let traces: Vec<_> = read
        .iter()
        .map(|one| (one.event.traceparent.as_deref(), one.flaw.as_deref()))
        .collect();
    // A malformed `traceparent` does not refuse the event.
    let expected = [(Some(parent), None), (Some(parent), None), (None, None)];
    assert_eq!(traces, expected);
}

async fn a_read_is_full_with_sixteen_mebibytes(world: World) {
    const LARGE: usize = 3 << 20;
    let database = world.database().await;
    let large = |_| {
        let mut event = event(Uuid::now_v7(), "user.created");
        event.data = "x".repeat(LARGE);
        event
    };
    let all = (0..9).map(large).collect();
    database.outbox.write(all).await.expect("written");
    let (mut at, mut counts) = (0, Vec::new());
    while let read = database.outbox.after(at, 100).await.expect("read")
        && let Some(last) = read.last()
    {
        at = last.seq;
        counts.push(read.len());
    }
    // The sixth reaches the bound.
    assert_eq!(counts, [READ_BYTES.div_ceil(LARGE), 3]);
}

async fn a_reader_beside_writers_misses_none_and_keeps_their_order(world: World) {
    const WRITERS: usize = 12;
    const EACH: usize = 40;
    let database = world.database().await;
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let database = database.clone();
        writers.spawn(async move {
            for one in 0..EACH {
                create(&database, &format!("{number}-{one}")).await;
            }
        });
    }
    let (mut seen, mut at) = (Vec::new(), 0);
    let deadline = Instant::now() + Duration::from_secs(60);
    while seen.len() < WRITERS * EACH {
        assert!(
            Instant::now() < deadline,
            "{} of {} events",
            seen.len(),
            WRITERS * EACH
        );
        for event in database.outbox.after(at, 7).await.expect("read") {
            assert!(event.seq > at, "in order");
            at = event.seq;
            seen.push(event.event.aggregate_id);
        }
    }
    writers.join_all().await;
    let place: HashMap<&String, usize> = seen.iter().zip(0..).collect();
    assert_eq!(place.len(), WRITERS * EACH, "none twice");
    let mut last = HashMap::new();
    for user in database.users.list(None, 1_000).await.expect("listed") {
        let (writer, one) = user.name.split_once('-').expect("a pair");
        let at = (
            one.parse::<usize>().expect("a number"),
            place[&user.id.to_string()],
        );
        last.entry(writer.to_owned())
            .or_insert_with(Vec::new)
            .push(at);
    }
    for (writer, mut all) in last {
        all.sort_unstable();
        assert!(
            all.is_sorted_by_key(|one| one.1),
            "the order of writer {writer}"
        );
    }
}

async fn one_relay_works_at_a_time(world: World) {
    let database = world.database().await;
    let [one, two] = [Uuid::now_v7(), Uuid::now_v7()];
    let lease = |holder, seconds| {
        let outbox = database.outbox.clone();
        async move { outbox.lease(holder, seconds).await.expect("answered") }
    };
    assert!(lease(one, 60).await && lease(one, 60).await);
    assert!(!lease(two, 60).await);
    database.outbox.release(two).await.expect("not its own");
    assert!(!lease(two, 60).await);
    database.outbox.release(one).await.expect("released");
    assert!(lease(two, 1).await);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(lease(one, 60).await, "the other's time is over");
    // A lease of an hour, to one who leases for a second, is one from before the clock went back.
    assert!(lease(one, 3_600).await);
    assert!(!lease(two, 1).await, "it counts as one of now");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    assert!(lease(two, 60).await, "and ends after its own length");
}

async fn the_position_of_sent_events_never_goes_back(world: World) {
    let database = world.database().await;
    for name in ["a", "b", "c"] {
        create(&database, name).await;
    }
    let all = database.outbox.after(0, 10).await.expect("read");
    database.outbox.sent(all[1].seq).await.expect("noted");
    database.outbox.sent(all[0].seq).await.expect("noted");
    assert_eq!(database.outbox.position().await.expect("known"), all[1].seq);
    let states: Vec<Status> = statuses(&database).await.iter().map(|one| one.0).collect();
    assert_eq!(states, [Status::Sent, Status::Sent, Status::New]);
    let backlog = database.outbox.backlog().await.expect("counted");
    let oldest = Some(all[2].event.created_at);
    assert_eq!(
        backlog,
        Backlog {
            new: 1,
            failed: 0,
            oldest,
            ..Backlog::default()
        }
    );
    assert_eq!(database.outbox.kept().await.expect("counted"), 3);
    let name = database.outbox.name().await.expect("named");
    assert_eq!(world.open().await.outbox.name().await.expect("named"), name);
}

async fn a_refused_event_is_processing_then_failed_and_then_new_again(world: World) {
    let database = world.database().await;
    create(&database, "a").await;
    create(&database, "b").await;
    let all = database.outbox.after(0, 10).await.expect("read");
    let refused = database.outbox.refused(all[0].seq, "too large", 2);
    assert_eq!(refused.await.expect("noted"), 1);
    assert_eq!(
        statuses(&database).await,
        [(Status::Processing, 1), (Status::New, 0)]
    );
    // Counted where every relay sees it.
    let again = world.open().await.outbox;
    let refused = again.refused(all[0].seq, "still too large", 2);
    assert_eq!(refused.await.expect("noted"), 2);
    let failed = Filter {
        status: Some(Status::Failed),
        ..Filter::default()
    };
    let listed = list(&database, failed).await;
    assert_eq!(
        (listed[0].attempts, listed[0].error.as_deref()),
        (2, Some("still too large"))
    );
    assert_eq!(
        database.outbox.retry(None).await.expect("asked"),
        0,
        "the relay is not past it"
    );
    database.outbox.sent(all[1].seq).await.expect("noted");
    assert_eq!(database.outbox.backlog().await.expect("counted").failed, 1);
    assert_eq!(
        database
            .outbox
            .retry(Some(all[1].event.id))
            .await
            .expect("asked"),
        0
    );
    assert_eq!(
        database
            .outbox
            .retry(Some(all[0].event.id))
            .await
            .expect("asked"),
        1
    );
    let again = database.outbox.after(all[1].seq, 10).await.expect("read");
    assert_eq!(
        again[0].event, all[0].event,
        "the same event behind every other"
    );
    assert_eq!(
        statuses(&database).await,
        [(Status::Sent, 0), (Status::New, 0)]
    );
    // An event accepted in the end is not a failure.
    database
        .outbox
        .refused(again[0].seq, "busy", 2)
        .await
        .expect("noted");
    database.outbox.sent(again[0].seq).await.expect("noted");
    assert_eq!(
        statuses(&database).await,
        [(Status::Sent, 0), (Status::Sent, 0)]
    );
}

async fn a_filter_lists_matching_events(world: World) {
    let database = world.database().await;
    let ann = create(&database, "ann").await;
    let between = Timestamp::now();
    tokio::time::sleep(Duration::from_millis(2)).await;
    create(&database, "bob").await;
    let all = list(&database, Filter::default()).await;
    let only = |filter: Filter| {
        let database = database.clone();
        async move { list(&database, filter).await }
    };
    let none = Filter::default();
    let first = &all[..1];
    let id = Some(all[0].event.event.id);
    assert_eq!(only(Filter { id, ..none.clone() }).await, first);
    let aggregate_id = Some(ann.id.to_string());
    assert_eq!(
        only(Filter {
            aggregate_id,
            ..none.clone()
        })
        .await,
        first
    );
    assert_eq!(
        only(Filter {
            to: Some(between),
            ..none.clone()
        })
        .await,
        first
    );
    let both = Filter {
        from: Some(between),
        aggregate_type: Some("user".to_owned()),
        ..none.clone()
    };
    assert_eq!(only(both).await, all[1..]);
    assert_eq!(
        only(Filter {
            after: all[0].event.seq,
            ..none.clone()
        })
        .await,
        all[1..]
    );
    let order = Some("order".to_owned());
    assert_eq!(
        only(Filter {
            aggregate_type: order,
            ..none.clone()
        })
        .await,
        []
    );
    assert_eq!(
        only(Filter {
            status: Some(Status::Sent),
            ..none
        })
        .await,
        []
    );
}

async fn old_events_go_when_they_were_sent(world: World) {
    let database = world.database().await;
    for name in ["a", "b", "c"] {
        create(&database, name).await;
    }
    let all = database.outbox.after(0, 10).await.expect("read");
    database
        .outbox
        .refused(all[0].seq, "too large", 1)
        .await
        .expect("noted");
    database.outbox.sent(all[1].seq).await.expect("noted");
    let purge = |time| {
        let outbox = database.outbox.clone();
        async move { outbox.purge(time, 10).await.expect("purged") }
    };
    assert_eq!(purge(all[0].event.created_at).await, 0, "not old enough");
    assert_eq!(purge(Timestamp::MAX).await, 1);
    let states: Vec<Status> = statuses(&database).await.iter().map(|one| one.0).collect();
    assert_eq!(
        states,
        [Status::Failed, Status::New],
        "only sent events are deleted"
    );
    create(&database, "d").await;
    let places = database.outbox.after(0, 10).await.expect("read");
    assert!(
        places.last().expect("one").seq > all[2].seq,
        "no place is given twice"
    );
}

async fn a_commit_wakes_the_relay(world: World) {
    let database = world.database().await;
    let outbox = database.outbox.clone();
    let waiting = tokio::spawn(async move { outbox.committed().await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!waiting.is_finished());
    create(&database, "ann").await;
    tokio::time::timeout(Duration::from_secs(5), waiting)
        .await
        .expect("woken")
        .expect("joined");
}

async fn sent_events_can_be_written_again(world: World) {
    let database = world.database().await;
    create(&database, "ann").await;
    let first = database.outbox.after(0, 10).await.expect("read").remove(0);
    database.outbox.sent(first.seq).await.expect("noted");
    let mut other = first.event.clone();
    other.topic = "elsewhere".to_owned();
    let both = vec![first.event.clone(), other.clone()];
    database.outbox.write(both.clone()).await.expect("written");
    let again = database.outbox.after(first.seq, 10).await.expect("read");
    let again: Vec<_> = again.into_iter().map(|event| event.event).collect();
    assert_eq!(again, both);
}
