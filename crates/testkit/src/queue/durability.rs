//! Durability across a reopen.

use std::time::Duration;

use towpath_core::port::queue::{Disposition, Selection};
use towpath_core::{Clock, ErrorKind, NewMessage, SystemClock};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    keeps_messages_across_reopen_in_order;
    an_acked_message_stays_gone_across_reopen;
    a_leased_message_is_ready_after_reopen_with_its_attempt_counted;
    keeps_delays_dead_letters_pause_and_counts_across_reopen needs Delay, Pause;
    a_receipt_from_before_a_reopen_is_stale;
    closing_is_idempotent_and_ends_waiting_leases;
}

async fn keeps_messages_across_reopen_in_order(mut world: World) {
    let queue = world.queue().await;
    let expected: Vec<String> = (0..500)
        .map(|number| format!("{number}-{}", "x".repeat(number)))
        .collect();
    enqueue(
        &queue,
        &expected.iter().map(String::as_str).collect::<Vec<_>>(),
    )
    .await;
    for _ in 0..3 {
        world.reopen().await;
    }
    let queue = world.reopen().await;
    assert_eq!(payloads(&lease(&queue, 1000).await), expected);
}

async fn an_acked_message_stays_gone_across_reopen(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one", "two"]).await;
    ack(&queue, &lease(&queue, 1).await).await;
    let queue = world.reopen().await;
    assert_eq!(payloads(&lease(&queue, 10).await), ["two"]);
}

async fn a_leased_message_is_ready_after_reopen_with_its_attempt_counted(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    lease(&queue, 1).await;
    let queue = world.reopen().await;
    assert_eq!(lease(&queue, 1).await[0].attempt, 2);
}

async fn keeps_delays_dead_letters_pause_and_counts_across_reopen(mut world: World) {
    let queue = world.queue().await;
    let due = SystemClock::new().now().after(Duration::from_secs(600));
    enqueue_all(
        &queue,
        vec![
            text("poison"),
            text("done"),
            NewMessage {
                not_before: Some(due),
                ..text("later")
            },
        ],
    )
    .await;
    let held = lease(&queue, 10).await;
    settle(
        &queue,
        &held[0],
        Disposition::DeadLetter {
            reason: "poison".to_owned(),
        },
    )
    .await
    .expect("dead-lettered");
    ack(&queue, &held[1..]).await;
    queue.pause(&jobs()).await.expect("pause");
    let before = stats(&queue).await;
    let queue = world.reopen().await;
    let after = stats(&queue).await;
    assert_eq!(
        (
            after.delayed,
            after.dead,
            after.acked,
            after.enqueued,
            after.paused
        ),
        (
            before.delayed,
            before.dead,
            before.acked,
            before.enqueued,
            true
        )
    );
    assert_eq!(
        queue
            .redrive(&jobs(), &Selection::All)
            .await
            .expect("redrive"),
        1
    );
    assert!(lease_now(&queue, 10).await.is_empty(), "still paused");
    queue.resume(&jobs()).await.expect("resume");
    assert_eq!(payloads(&lease(&queue, 10).await), ["poison"]);
}

async fn a_receipt_from_before_a_reopen_is_stale(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let old = lease(&queue, 1).await;
    let queue = world.reopen().await;
    let fresh = lease(&queue, 1).await;
    assert_kind(
        settle(&queue, &old[0], Disposition::Ack).await,
        ErrorKind::Conflict,
    );
    ack(&queue, &fresh).await;
}

async fn closing_is_idempotent_and_ends_waiting_leases(mut world: World) {
    let queue = world.queue().await;
    let waiting = {
        let queue = std::sync::Arc::clone(&queue);
        // Joined below.
        tokio::spawn(async move {
            let request = towpath_core::port::queue::LeaseRequest {
                queue: jobs(),
                consumer: consumer("one"),
                max: 1,
                in_flight: 1,
                lease: LEASE,
                wait: Duration::from_secs(30),
            };
            queue.lease(request).await
        })
    };
    until("the consumer to wait", || async {
        !queue.list().await.expect("list").is_empty()
    })
    .await;
    // A lease that does not wait has ended by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.reopen().await;
    let ended = tokio::time::timeout(Duration::from_secs(5), waiting)
        .await
        .expect("ended in time")
        .expect("joined");
    assert_kind(ended, ErrorKind::Unavailable);
    assert_kind(
        queue.enqueue(&jobs(), vec![text("late")]).await,
        ErrorKind::Unavailable,
    );
}
