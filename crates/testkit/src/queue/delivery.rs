//! Leases: delivery, expiry, extension, settlement.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use towpath_core::ErrorKind;
use towpath_core::port::queue::{Disposition, LeaseRequest, MAX_BATCH};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    hides_a_leased_message_from_others;
    redelivers_after_the_lease_expires;
    does_not_redeliver_before_the_lease_expires;
    an_extended_lease_lasts;
    refuses_a_stale_receipt;
    settles_an_expired_lease_that_was_not_reassigned;
    extends_an_expired_lease_that_was_not_reassigned;
    one_receipt_settles_once;
    a_disconnected_consumers_deliveries_come_back_at_once;
    a_released_delivery_is_not_charged;
    a_delayed_release_is_not_charged;
    a_delivery_without_an_outcome_marks_the_next_one;
    a_retried_delivery_comes_back_with_its_attempt_raised;
    a_retry_waits_for_its_delay;
    every_message_goes_to_one_of_many_consumers;
    a_waiting_lease_is_woken_by_a_message;
    a_waiting_lease_ends_empty_in_time;
    a_lease_out_of_range_is_invalid;
}

async fn hides_a_leased_message_from_others(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    assert_eq!(lease(&queue, 1).await.len(), 1);
    assert!(
        lease_as(&queue, "two", 1, LEASE, Duration::ZERO)
            .await
            .is_empty()
    );
}

async fn redelivers_after_the_lease_expires(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let lost = lease_as(&queue, "dead", 1, LEASE, Duration::ZERO).await;
    let again = lease_as(&queue, "two", 1, LEASE, Duration::from_secs(5)).await;
    assert_eq!(payloads(&again), ["one"]);
    assert_eq!(
        (again[0].message.id, again[0].attempt),
        (lost[0].message.id, 2)
    );
}

async fn does_not_redeliver_before_the_lease_expires(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let began = Instant::now();
    lease_as(&queue, "slow", 1, LEASE, Duration::ZERO).await;
    let again = lease_as(&queue, "two", 1, LEASE, Duration::from_secs(5)).await;
    assert_eq!(again.len(), 1);
    assert!(began.elapsed() >= LEASE, "{:?}", began.elapsed());
}

async fn an_extended_lease_lasts(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let held = lease_as(&queue, "slow", 1, LEASE, Duration::ZERO).await;
    let outcome = queue
        .extend(&[held[0].receipt.clone()], Duration::from_secs(30))
        .await
        .expect("extend")
        .remove(0);
    outcome.expect("extended");
    assert!(
        lease_as(&queue, "two", 1, LEASE, LEASE * 2)
            .await
            .is_empty(),
        "the first lease counts no more"
    );
    ack(&queue, &held).await;
}

async fn refuses_a_stale_receipt(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let stale = lease_as(&queue, "slow", 1, LEASE, Duration::ZERO).await;
    let fresh = lease_as(
        &queue,
        "two",
        1,
        Duration::from_secs(30),
        Duration::from_secs(5),
    )
    .await;
    assert!(fresh[0].receipt.fence > stale[0].receipt.fence);
    for disposition in [
        Disposition::Ack,
        retry_now(),
        Disposition::RELEASE,
        Disposition::DeadLetter {
            reason: "x".to_owned(),
        },
    ] {
        assert_kind(
            settle(&queue, &stale[0], disposition).await,
            ErrorKind::Conflict,
        );
    }
    let extended = queue
        .extend(&[stale[0].receipt.clone()], LEASE)
        .await
        .expect("extend")
        .remove(0);
    assert_kind(extended, ErrorKind::Conflict);
    assert_eq!(stats(&queue).await.leased, 1, "nothing changed");
    ack(&queue, &fresh).await;
}

async fn settles_an_expired_lease_that_was_not_reassigned(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let late = lease_as(&queue, "slow", 1, LEASE, Duration::ZERO).await;
    until("the lease to expire", || async {
        stats(&queue).await.ready == 1
    })
    .await;
    ack(&queue, &late).await;
    assert_eq!(stats(&queue).await.acked, 1);
}

async fn extends_an_expired_lease_that_was_not_reassigned(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let late = lease_as(&queue, "slow", 1, LEASE, Duration::ZERO).await;
    until("the lease to expire", || async {
        stats(&queue).await.ready == 1
    })
    .await;
    let receipts = [late[0].receipt.clone()];
    let extended = queue.extend(&receipts, Duration::from_secs(30)).await;
    extended.expect("extend").remove(0).expect("extended");
    assert!(lease_now(&queue, 1).await.is_empty(), "it is leased again");
    let stats = stats(&queue).await;
    assert_eq!((stats.leased, stats.consumers), (1, 2));
    ack(&queue, &late).await;
}

async fn one_receipt_settles_once(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let held = lease(&queue, 1).await;
    ack(&queue, &held).await;
    assert_kind(
        settle(&queue, &held[0], Disposition::Ack).await,
        ErrorKind::Conflict,
    );
    assert_eq!(stats(&queue).await.acked, 1);
    assert_balanced(&queue).await;
}

async fn a_disconnected_consumers_deliveries_come_back_at_once(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one", "two"]).await;
    let lost = lease_as(&queue, "dead", 2, Duration::from_secs(600), Duration::ZERO).await;
    let waiting = {
        let queue = Arc::clone(&queue);
        // Joined below.
        tokio::spawn(
            async move { lease_as(&queue, "heir", 2, LEASE, Duration::from_secs(10)).await },
        )
    };
    assert_eq!(
        queue
            .disconnect(&consumer("dead"))
            .await
            .expect("disconnect"),
        2
    );
    let began = Instant::now();
    let again = waiting.await.expect("joined");
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(payloads(&again), ["one", "two"]);
    assert!(again.iter().all(|one| one.attempt == 2), "attempts count");
    assert_kind(
        settle(&queue, &lost[0], Disposition::Ack).await,
        ErrorKind::Conflict,
    );
}

async fn a_released_delivery_is_not_charged(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one", "two"]).await;
    let held = lease(&queue, 1).await;
    settle(&queue, &held[0], Disposition::RELEASE)
        .await
        .expect("released");
    let again = lease(&queue, 2).await;
    assert_eq!(payloads(&again), ["one", "two"], "in its old place");
    assert_eq!(again[0].attempt, 1);
}

async fn a_delayed_release_is_not_charged(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one", "two"]).await;
    let held = lease(&queue, 1).await;
    let disposition = Disposition::Release {
        after: Duration::from_millis(800),
    };
    let began = Instant::now();
    settle(&queue, &held[0], disposition)
        .await
        .expect("released");
    let next = lease_as(&queue, "one", 1, LEASE * 10, Duration::from_secs(5)).await;
    assert_eq!(payloads(&next), ["two"], "it does not block the queue");
    let again = lease_as(&queue, "one", 1, LEASE * 10, Duration::from_secs(5)).await;
    assert!(
        began.elapsed() >= Duration::from_millis(790),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(payloads(&again), ["one"]);
    assert_eq!((again[0].attempt, again[0].interrupted), (1, false));
    assert_eq!(stats(&queue).await.retried, 0);
}

async fn a_delivery_without_an_outcome_marks_the_next_one(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let again = async || lease_as(&queue, "two", 1, LEASE * 10, Duration::from_secs(5)).await;
    let first = lease_as(&queue, "dead", 1, LEASE, Duration::ZERO).await;
    assert!(!first[0].interrupted);
    let expired = again().await;
    assert!(expired[0].interrupted, "the lease expired");
    settle(&queue, &expired[0], Disposition::RELEASE)
        .await
        .expect("released");
    let released = again().await;
    assert!(released[0].interrupted, "nothing more is known of it");
    settle(&queue, &released[0], retry_now())
        .await
        .expect("retried");
    let retried = again().await;
    assert!(!retried[0].interrupted, "the last delivery had an outcome");
    queue
        .disconnect(&consumer("two"))
        .await
        .expect("disconnect");
    let disconnected = again().await;
    assert!(disconnected[0].interrupted, "the consumer was disconnected");
    assert_eq!(disconnected[0].attempt, 4);
}

async fn a_retried_delivery_comes_back_with_its_attempt_raised(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    for attempt in 1..=3 {
        let held = lease(&queue, 1).await;
        assert_eq!(held[0].attempt, attempt);
        settle(&queue, &held[0], retry_now())
            .await
            .expect("retried");
    }
    assert_eq!(stats(&queue).await.retried, 3);
}

async fn a_retry_waits_for_its_delay(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let held = lease(&queue, 1).await;
    let disposition = Disposition::Retry {
        after: Duration::from_millis(800),
        error: "no".to_owned(),
    };
    let began = Instant::now();
    settle(&queue, &held[0], disposition)
        .await
        .expect("retried");
    assert_eq!(stats(&queue).await.delayed, 1);
    assert_eq!(
        lease_as(&queue, "one", 1, LEASE, Duration::from_secs(5))
            .await
            .len(),
        1
    );
    assert!(
        began.elapsed() >= Duration::from_millis(790),
        "{:?}",
        began.elapsed()
    );
}

async fn every_message_goes_to_one_of_many_consumers(mut world: World) {
    let queue = world.queue().await;
    let mut consumers = JoinSet::new();
    for number in 0..8 {
        let queue = Arc::clone(&queue);
        consumers.spawn(async move {
            let mut seen = Vec::new();
            loop {
                let who = format!("consumer-{number}");
                let held = lease_as(
                    &queue,
                    &who,
                    7,
                    Duration::from_secs(60),
                    Duration::from_secs(1),
                )
                .await;
                if held.is_empty() {
                    return seen;
                }
                seen.extend(payloads(&held));
                ack(&queue, &held).await;
            }
        });
    }
    let mut sent = Vec::new();
    for batch in 0..50 {
        let batch: Vec<String> = (0..10).map(|number| format!("{batch}-{number}")).collect();
        enqueue(
            &queue,
            &batch.iter().map(String::as_str).collect::<Vec<_>>(),
        )
        .await;
        sent.extend(batch);
    }
    let seen: Vec<_> = consumers.join_all().await.concat();
    assert_eq!(seen.len(), sent.len(), "some came twice or never");
    assert_eq!(
        seen.into_iter().collect::<HashSet<_>>(),
        sent.into_iter().collect()
    );
    assert_balanced(&queue).await;
}

async fn a_waiting_lease_is_woken_by_a_message(mut world: World) {
    let queue = world.queue().await;
    // A broker takes a while to let a new consumer in.
    assert!(lease_now(&queue, 1).await.is_empty());
    let waiting = {
        let queue = Arc::clone(&queue);
        // Joined below.
        tokio::spawn(
            async move { lease_as(&queue, "one", 1, LEASE, Duration::from_secs(20)).await },
        )
    };
    // A call that does not wait has ended by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = Instant::now();
    enqueue(&queue, &["one"]).await;
    assert_eq!(waiting.await.expect("joined").len(), 1);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
}

async fn a_waiting_lease_ends_empty_in_time(mut world: World) {
    let queue = world.queue().await;
    // A broker takes a while to let a new consumer in.
    assert!(lease_now(&queue, 1).await.is_empty());
    let began = Instant::now();
    assert!(
        lease_as(&queue, "one", 1, LEASE, Duration::from_millis(200))
            .await
            .is_empty()
    );
    assert!(
        (Duration::from_millis(190)..Duration::from_secs(3)).contains(&began.elapsed()),
        "{:?}",
        began.elapsed()
    );
}

async fn a_lease_out_of_range_is_invalid(mut world: World) {
    let queue = world.queue().await;
    let request = |max, lease| LeaseRequest {
        queue: jobs(),
        consumer: consumer("one"),
        max,
        in_flight: max,
        lease,
        wait: Duration::ZERO,
    };
    for wrong in [
        request(0, LEASE),
        request(MAX_BATCH + 1, LEASE),
        request(1, Duration::ZERO),
        request(1, Duration::from_secs(100_000)),
    ] {
        assert_kind(queue.lease(wrong).await, ErrorKind::Invalid);
    }
}
