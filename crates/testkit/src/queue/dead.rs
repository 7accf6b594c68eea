//! Dead letters: reasons, listing and redrive.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use towpath_core::backend::Capability;
use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, Selection};
use towpath_core::{Attempt, Clock, MessageId, SystemClock, Timestamp, attempt};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    spent_attempts_make_a_dead_letter_with_its_history;
    a_consumer_that_keeps_dying_makes_a_dead_letter;
    a_rejected_message_is_dead_at_once;
    redrives_with_the_same_id_and_fresh_attempts;
    redrives_and_drops_by_id;
    lists_dead_letters_page_by_page;
    records_of_attempts_travel_with_the_dead_letter;
    records_of_attempts_are_bounded;
}

/// Dead-letters the next message. Returns its id.
async fn die(queue: &Arc<dyn Queue>, reason: &str) -> MessageId {
    let held = lease(queue, 1).await.remove(0);
    let reason = reason.to_owned();
    settle(queue, &held, Disposition::DeadLetter { reason })
        .await
        .expect("dead-lettered");
    held.message.id
}

/// Three dead letters, oldest first.
async fn three_dead(queue: &Arc<dyn Queue>) -> Vec<MessageId> {
    enqueue(queue, &["one", "two", "three"]).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(die(queue, "poison").await);
    }
    ids
}

async fn spent_attempts_make_a_dead_letter_with_its_history(mut world: World) {
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(3)).await.expect("declare");
    enqueue(&queue, &["one"]).await;
    let mut ids = HashSet::new();
    for error in ["first", "second", "third"] {
        let held = lease(&queue, 1).await;
        ids.insert(held[0].message.id);
        let disposition = Disposition::Retry {
            after: Duration::ZERO,
            error: error.to_owned(),
        };
        settle(&queue, &held[0], disposition)
            .await
            .expect("retried");
    }
    assert!(lease_now(&queue, 1).await.is_empty());
    let dead = queue
        .dead_letters(&jobs(), None, 10)
        .await
        .expect("dead letters");
    assert_eq!(ids, HashSet::from([dead[0].message.id]));
    assert_eq!((dead[0].reason.as_str(), dead[0].attempts), ("third", 3));
    assert_eq!(dead[0].history, ["first", "second"]);
    assert_eq!(
        (dead[0].message.payload.as_ref(), &dead[0].origin),
        (&b"one"[..], &jobs())
    );
    assert_balanced(&queue).await;
}

async fn a_consumer_that_keeps_dying_makes_a_dead_letter(mut world: World) {
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(2)).await.expect("declare");
    enqueue(&queue, &["poison"]).await;
    for _ in 0..2 {
        assert_eq!(
            lease_as(
                &queue,
                "mortal",
                1,
                Duration::from_secs(60),
                Duration::from_secs(2)
            )
            .await
            .len(),
            1
        );
        queue
            .disconnect(&consumer("mortal"))
            .await
            .expect("disconnect");
    }
    assert!(lease_now(&queue, 1).await.is_empty());
    assert_eq!(stats(&queue).await.dead, 1);
}

async fn a_rejected_message_is_dead_at_once(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    die(&queue, "undecodable").await;
    let dead = queue
        .dead_letters(&jobs(), None, 10)
        .await
        .expect("dead letters");
    assert_eq!(
        (dead[0].reason.as_str(), dead[0].attempts),
        ("undecodable", 1)
    );
}

async fn redrives_with_the_same_id_and_fresh_attempts(mut world: World) {
    let queue = world.queue().await;
    let ids = three_dead(&queue).await;
    assert_eq!(
        queue
            .redrive(&jobs(), &Selection::All)
            .await
            .expect("redrive"),
        3
    );
    let again = lease(&queue, 10).await;
    assert_eq!(
        again.iter().map(|one| one.message.id).collect::<Vec<_>>(),
        ids
    );
    assert!(again.iter().all(|one| one.attempt == 1));
    assert_eq!(stats(&queue).await.dead, 0);
    assert_balanced(&queue).await;
}

async fn redrives_and_drops_by_id(mut world: World) {
    let queue = world.queue().await;
    let ids = three_dead(&queue).await;
    let one = Selection::Ids(vec![ids[1]]);
    assert_eq!(queue.redrive(&jobs(), &one).await.expect("redrive"), 1);
    assert_eq!(
        queue.redrive(&jobs(), &one).await.expect("redrive"),
        0,
        "it is not dead any more"
    );
    assert_eq!(
        queue
            .drop_dead(&jobs(), &Selection::Ids(vec![ids[0]]))
            .await
            .expect("drop"),
        1
    );
    assert_eq!(payloads(&lease(&queue, 10).await), ["two"]);
    let stats = stats(&queue).await;
    assert_eq!((stats.dead, stats.dropped), (1, 1));
}

async fn lists_dead_letters_page_by_page(mut world: World) {
    let queue = world.queue().await;
    let ids = three_dead(&queue).await;
    let first = queue
        .dead_letters(&jobs(), None, 2)
        .await
        .expect("dead letters");
    let rest = queue
        .dead_letters(&jobs(), Some(first[1].message.id), 2)
        .await
        .expect("dead letters");
    let all: Vec<_> = first
        .iter()
        .chain(&rest)
        .map(|one| one.message.id)
        .collect();
    assert_eq!(all, ids);
}

fn failed(number: u64, error: &str, answer: Option<&str>) -> Attempt {
    Attempt {
        ended_at: Timestamp::from_millis(1_790_000_000_000 + number),
        took: Duration::from_millis(number),
        consumer: consumer("one"),
        error: error.to_owned(),
        answer: answer.map(str::to_owned),
    }
}

async fn retry(queue: &Arc<dyn Queue>, attempt: &Attempt) {
    let held = lease(queue, 1).await;
    let disposition = Disposition::Retry {
        after: Duration::ZERO,
        error: attempt.to_text(),
    };
    settle(queue, &held[0], disposition).await.expect("retried");
}

async fn records_of_attempts_travel_with_the_dead_letter(mut world: World) {
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(4)).await.expect("declare");
    let mut message = text("one");
    if world.offers(Capability::Headers) {
        message.headers.set("source", "suite");
    }
    if world.offers(Capability::KeyOrder) {
        message.key = Some("key".to_owned());
    }
    let (sent, before) = (message.clone(), SystemClock::new().now());
    enqueue_all(&queue, vec![message]).await;
    let records = [
        failed(1, "answered 500", Some("{\"error\":\"no\"}\n")),
        failed(2, "timed out", None),
        failed(3, "answered 502", Some("b\u{e9}b\u{e9}")),
    ];
    retry(&queue, &records[0]).await;
    // Of a consumer that says no more than the error.
    let held = lease(&queue, 1).await;
    settle(&queue, &held[0], retry_now())
        .await
        .expect("retried");
    for record in &records[1..] {
        retry(&queue, record).await;
    }
    let queue = world.reopen().await;
    let dead = queue.dead_letters(&jobs(), None, 1).await;
    let dead = dead.expect("dead letters").remove(0);
    assert_eq!(dead.records, records);
    assert_eq!((dead.reason.as_str(), dead.attempts), ("answered 502", 4));
    assert_eq!(dead.history, ["answered 500", "no", "timed out"]);
    assert_eq!(dead.message.key, sent.key);
    assert_eq!(
        dead.message.headers.get("source"),
        sent.headers.get("source")
    );
    // The clocks of two machines differ a little.
    assert!(dead.message.enqueued_at.after(Duration::from_secs(60)) > before);
    assert!(dead.died_at >= dead.message.enqueued_at);
}

async fn records_of_attempts_are_bounded(mut world: World) {
    let queue = world.queue().await;
    let most = 13;
    queue
        .declare(&jobs(), &attempts(most))
        .await
        .expect("declare");
    enqueue(&queue, &["one"]).await;
    let (error, answer) = ("e".repeat(4_000), "a".repeat(4_000));
    for number in 0..most {
        retry(&queue, &failed(number.into(), &error, Some(&answer))).await;
    }
    let dead = queue.dead_letters(&jobs(), None, 1).await;
    let dead = dead.expect("dead letters").remove(0);
    assert_eq!(dead.records.len(), attempt::KEPT + 1);
    let last = dead.records.last().expect("there are some");
    assert_eq!(last.took, Duration::from_millis(u64::from(most) - 1));
    assert_eq!(
        last.answer.as_ref().map(String::len),
        Some(attempt::ANSWER_BYTES)
    );
    let bytes: usize = { dead.records.iter() }
        .map(|one| one.error.len() + one.answer.as_ref().map_or(0, String::len))
        .sum();
    let bound = (attempt::KEPT + 1) * attempt::ERROR_BYTES
        + attempt::ANSWER_BYTES
        + attempt::EARLIER_ANSWERS_BYTES;
    assert!(bytes <= bound, "{bytes} of {bound}");
}
