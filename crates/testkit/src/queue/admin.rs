//! Operations: peek, pause, resume, purge, delete, stats.

use std::time::Duration;

use towpath_core::backend::Capability;
use towpath_core::port::queue::{Disposition, MessageState, Settings};
use towpath_core::{Clock, ErrorKind, SystemClock, retry};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    peeks_without_taking needs Peek;
    a_paused_queue_accepts_and_does_not_deliver needs Pause;
    a_purge_keeps_leased_and_dead_messages;
    an_unknown_queue_has_no_stats;
    settings_are_those_declared_last;
    stats_count_every_outcome;
    ready_leased_and_delayed_messages_have_ages_of_their_own needs Delay;
    delete_refuses_a_queue_in_use needs DeleteQueue;
    a_deleted_queue_stays_gone_across_reopen needs DeleteQueue;
}

async fn peeks_without_taking(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one", "two", "three"]).await;
    lease(&queue, 1).await;
    for _ in 0..2 {
        let peeked = queue.peek(&jobs(), 2).await.expect("peek");
        assert_eq!(peeked.len(), 2);
        assert_eq!(
            (peeked[0].state, peeked[0].attempts),
            (MessageState::Leased, 1)
        );
        assert_eq!(
            (peeked[1].state, peeked[1].message.payload.as_ref()),
            (MessageState::Ready, &b"two"[..])
        );
    }
    assert_eq!(payloads(&lease(&queue, 10).await), ["two", "three"]);
}

async fn a_paused_queue_accepts_and_does_not_deliver(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let held = lease(&queue, 1).await;
    queue.pause(&jobs()).await.expect("pause");
    queue.pause(&jobs()).await.expect("again");
    enqueue(&queue, &["two"]).await;
    assert!(lease_now(&queue, 10).await.is_empty());
    ack(&queue, &held).await;
    queue.resume(&jobs()).await.expect("resume");
    assert_eq!(payloads(&lease(&queue, 10).await), ["two"]);
}

async fn a_purge_keeps_leased_and_dead_messages(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["dead", "held", "ready", "retried"]).await;
    let held = lease(&queue, 2).await;
    settle(
        &queue,
        &held[0],
        Disposition::DeadLetter {
            reason: "x".to_owned(),
        },
    )
    .await
    .expect("dead-lettered");
    assert_eq!(queue.purge(&jobs()).await.expect("purge"), 2);
    assert!(lease_now(&queue, 10).await.is_empty());
    let after = stats(&queue).await;
    assert_eq!((after.leased, after.dead, after.dropped), (1, 1, 2));
    ack(&queue, &held[1..]).await;
    assert_balanced(&queue).await;
}

async fn settings_are_those_declared_last(mut world: World) {
    let queue = world.queue().await;
    for attempts in [3, 7] {
        let declared = Settings {
            retry: retry::Policy {
                attempts,
                first: Duration::from_millis(1500),
                max: Duration::from_secs(90),
            },
            dedup_window: Duration::from_secs(60),
            max_depth: None,
        };
        queue.declare(&jobs(), &declared).await.expect("declare");
        let settings = queue.settings(&jobs()).await.expect("settings");
        assert_eq!(settings, declared);
    }
}

async fn delete_refuses_a_queue_in_use(mut world: World) {
    let queue = world.queue().await;
    let delete = async |force| queue.delete(&jobs(), force).await;
    assert_kind(delete(true).await, ErrorKind::NotFound);
    enqueue(&queue, &["dead", "waits"]).await;
    let held = lease(&queue, 1).await;
    assert_kind(delete(true).await, ErrorKind::Conflict);
    let reason = "x".to_owned();
    let disposition = Disposition::DeadLetter { reason };
    settle(&queue, &held[0], disposition)
        .await
        .expect("dead letter");
    queue
        .disconnect(&consumer("one"))
        .await
        .expect("disconnect");
    assert_kind(delete(false).await, ErrorKind::Conflict);
    let kept = stats(&queue).await;
    assert_eq!((kept.ready, kept.dead), (1, 1));
    assert_eq!(delete(true).await.expect("delete"), 2);
    assert_kind(queue.stats(&jobs()).await, ErrorKind::NotFound);
    assert!(queue.list().await.expect("list").is_empty());
    // An earlier receipt is stale, and does not restore the message.
    let late = settle(&queue, &held[0], Disposition::Ack).await;
    assert_kind(late, ErrorKind::Conflict);
    assert_kind(queue.stats(&jobs()).await, ErrorKind::NotFound);
    enqueue(&queue, &["new"]).await;
    assert_eq!(stats(&queue).await.enqueued, 1);
    assert_eq!(payloads(&lease(&queue, 10).await), ["new"]);
}

async fn a_deleted_queue_stays_gone_across_reopen(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    queue.delete(&jobs(), true).await.expect("delete");
    let queue = world.reopen().await;
    assert_kind(queue.stats(&jobs()).await, ErrorKind::NotFound);
}

async fn an_unknown_queue_has_no_stats(mut world: World) {
    let queue = world.queue().await;
    assert_kind(queue.stats(&name("missing")).await, ErrorKind::NotFound);
}

async fn stats_count_every_outcome(mut world: World) {
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(2)).await.expect("declare");
    enqueue(&queue, &["one", "two", "three", "four"]).await;
    let held = lease(&queue, 3).await;
    ack(&queue, &held[..1]).await;
    settle(&queue, &held[1], retry_now())
        .await
        .expect("retried");
    let now = stats(&queue).await;
    assert_eq!(
        (now.enqueued, now.ready, now.leased, now.acked, now.retried),
        (4, 2, 1, 1, 1)
    );
    assert!(now.oldest_age.is_some());
    assert_eq!(now.consumers, 1);
    assert_balanced(&queue).await;
}

async fn ready_leased_and_delayed_messages_have_ages_of_their_own(mut world: World) {
    const APART: Duration = Duration::from_millis(250);
    // Where the counts of a queue are kept the ages are known too; elsewhere as far as this process sees.
    let knows = world.offers(Capability::Bookkeeping);
    let known = |age: Option<Duration>| match age {
        Some(age) => age,
        None => {
            assert!(!knows, "an age is missing");
            Duration::ZERO
        }
    };
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(3)).await.expect("declare");
    enqueue(&queue, &["held"]).await;
    let held = lease(&queue, 1).await;
    tokio::time::sleep(APART).await;
    let mut later = text("later");
    later.not_before = Some(SystemClock::new().now().after(Duration::from_secs(600)));
    enqueue_all(&queue, vec![later, text("ready")]).await;
    let receipts = [held[0].receipt.clone()];
    let extended = queue.extend(&receipts, Duration::from_secs(30)).await;
    extended.expect("extend").remove(0).expect("extended");
    let now = stats(&queue).await;
    let leased = now.oldest_leased_age.expect("its consumer is here");
    assert!(leased >= APART, "{now:?}");
    assert!(known(now.oldest_ready_age) < leased, "{now:?}");
    assert!(known(now.oldest_delayed_age) < leased, "{now:?}");

    // A retry that waits is as old as its message.
    let disposition = Disposition::Retry {
        after: Duration::from_secs(600),
        error: "no".to_owned(),
    };
    settle(&queue, &held[0], disposition)
        .await
        .expect("retried");
    let now = stats(&queue).await;
    assert_eq!(now.oldest_leased_age, None, "{now:?}");
    if knows {
        assert!(known(now.oldest_delayed_age) >= APART, "{now:?}");
    }
    ack(&queue, &lease(&queue, 1).await).await;
    let now = stats(&queue).await;
    assert_eq!((now.ready, now.oldest_ready_age), (0, None), "{now:?}");
    queue.purge(&jobs()).await.expect("purge");
    assert_eq!(stats(&queue).await.oldest_delayed_age, None);
}
