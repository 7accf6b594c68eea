//! Dead letters: reasons, listing and redrive.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use towpath_core::MessageId;
use towpath_core::port::Queue;
use towpath_core::port::queue::{Selection, Verdict};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    spent_attempts_make_a_dead_letter_with_its_history;
    a_consumer_that_keeps_dying_makes_a_dead_letter;
    a_rejected_message_is_dead_at_once;
    redrives_with_the_same_id_and_fresh_attempts;
    redrives_and_drops_by_id;
    lists_dead_letters_page_by_page;
}

/// Dead-letters the next message. Returns its id.
async fn die(queue: &Arc<dyn Queue>, reason: &str) -> MessageId {
    let held = lease(queue, 1).await.remove(0);
    let reason = reason.to_owned();
    settle(queue, &held, Verdict::DeadLetter { reason })
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
        let verdict = Verdict::Retry {
            after: Duration::ZERO,
            error: error.to_owned(),
        };
        settle(&queue, &held[0], verdict).await.expect("retried");
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
