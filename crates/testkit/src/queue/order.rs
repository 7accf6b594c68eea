//! Order, delays and expiry.

use std::time::{Duration, Instant};

use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::{Clock, NewMessage, SystemClock};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    delivers_oldest_first;
    delivers_one_message_of_a_key_at_a_time needs KeyOrder;
    a_retry_is_not_overtaken_by_its_key needs KeyOrder;
    a_dead_letter_unlocks_its_key needs KeyOrder;
    delivers_a_delayed_message_when_due needs Delay;
    drops_an_expired_message needs Expiry;
    queues_do_not_mix;
}

fn keyed(key: &str, payload: &str) -> NewMessage {
    NewMessage {
        key: Some(key.to_owned()),
        ..text(payload)
    }
}

async fn delivers_oldest_first(mut world: World) {
    let queue = world.queue().await;
    let expected: Vec<String> = (0..300).map(|number| number.to_string()).collect();
    for batch in expected.chunks(37) {
        enqueue(
            &queue,
            &batch.iter().map(String::as_str).collect::<Vec<_>>(),
        )
        .await;
    }
    let mut got = Vec::new();
    while got.len() < expected.len() {
        let held = lease(&queue, 23).await;
        assert!(!held.is_empty());
        got.extend(payloads(&held));
        // In one call: a message that waits in the process for longer than a second may return to its broker.
        let all = held.iter().map(|delivery| Settlement {
            receipt: delivery.receipt.clone(),
            disposition: Disposition::Ack,
        });
        for outcome in queue.settle(all.collect()).await.expect("settle") {
            outcome.expect("acked");
        }
    }
    assert_eq!(got, expected);
}

async fn delivers_one_message_of_a_key_at_a_time(mut world: World) {
    let queue = world.queue().await;
    enqueue_all(
        &queue,
        vec![
            keyed("a", "a1"),
            keyed("a", "a2"),
            keyed("b", "b1"),
            text("free"),
            keyed("a", "a3"),
        ],
    )
    .await;
    let held = lease(&queue, 10).await;
    assert_eq!(payloads(&held), ["a1", "b1", "free"]);
    ack(&queue, &held[..1]).await;
    let held = lease(&queue, 10).await;
    assert_eq!(payloads(&held), ["a2"]);
    ack(&queue, &held).await;
    assert_eq!(payloads(&lease(&queue, 10).await), ["a3"]);
}

async fn a_retry_is_not_overtaken_by_its_key(mut world: World) {
    let queue = world.queue().await;
    enqueue_all(&queue, vec![keyed("a", "a1"), keyed("a", "a2")]).await;
    let held = lease(&queue, 10).await;
    assert_eq!(payloads(&held), ["a1"]);
    let disposition = Disposition::Retry {
        after: Duration::from_millis(300),
        error: "no".to_owned(),
    };
    settle(&queue, &held[0], disposition)
        .await
        .expect("retried");
    assert!(lease_now(&queue, 10).await.is_empty(), "a2 waits for a1");
    let held = lease(&queue, 10).await;
    assert_eq!(payloads(&held), ["a1"]);
    settle(&queue, &held[0], Disposition::RELEASE)
        .await
        .expect("released");
    assert_eq!(payloads(&lease(&queue, 10).await), ["a1"]);
}

async fn a_dead_letter_unlocks_its_key(mut world: World) {
    let queue = world.queue().await;
    enqueue_all(&queue, vec![keyed("a", "a1"), keyed("a", "a2")]).await;
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
    assert_eq!(payloads(&lease(&queue, 10).await), ["a2"]);
}

async fn delivers_a_delayed_message_when_due(mut world: World) {
    let queue = world.queue().await;
    let began = Instant::now();
    let due = SystemClock::new().now().after(Duration::from_millis(1_500));
    enqueue_all(
        &queue,
        vec![
            NewMessage {
                not_before: Some(due),
                ..text("later")
            },
            text("now"),
        ],
    )
    .await;
    assert_eq!(payloads(&lease_now(&queue, 10).await), ["now"]);
    assert_eq!(stats(&queue).await.delayed, 1);
    assert_eq!(
        payloads(&lease_as(&queue, "one", 10, LEASE, Duration::from_secs(5)).await),
        ["later"]
    );
    assert!(
        began.elapsed() >= Duration::from_millis(1_490),
        "{:?}",
        began.elapsed()
    );
}

async fn drops_an_expired_message(mut world: World) {
    let queue = world.queue().await;
    let soon = SystemClock::new().now().after(Duration::from_millis(1));
    enqueue_all(
        &queue,
        vec![
            NewMessage {
                expires: Some(soon),
                ..text("old")
            },
            text("good"),
        ],
    )
    .await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(payloads(&lease(&queue, 10).await), ["good"]);
    assert_eq!(stats(&queue).await.dropped, 1);
    assert_balanced(&queue).await;
}

async fn queues_do_not_mix(mut world: World) {
    let queue = world.queue().await;
    for number in 0..50 {
        let outcomes = queue
            .enqueue(
                &name(&format!("queue-{number}")),
                vec![text(&number.to_string())],
            )
            .await;
        assert!(outcomes.expect("enqueue")[0].is_ok());
    }
    assert!(lease_now(&queue, 10).await.is_empty());
    let listed = queue.list().await.expect("list");
    let full = listed.iter().filter(|stats| stats.ready == 1).count();
    assert_eq!(full, 50);
}
