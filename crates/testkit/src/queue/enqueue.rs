//! Enqueueing: limits, batches and deduplication.

use std::collections::HashSet;
use std::time::Duration;

use towpath_core::port::queue::{Enqueued, MAX_BATCH, Settings};
use towpath_core::{ErrorKind, NewMessage, message};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    delivers_payloads_unchanged;
    keeps_headers_and_id needs Headers;
    keeps_the_key needs Headers, KeyOrder;
    keeps_empty_binary_and_large_payloads;
    an_empty_batch_is_a_no_op;
    a_refused_message_does_not_fail_the_batch;
    a_batch_over_the_limit_is_invalid;
    recognises_a_repeated_dedup_id needs Dedup;
    recognises_a_repeat_within_one_batch needs Dedup;
    forgets_a_dedup_id_after_its_window needs Dedup;
    remembers_a_dedup_id_across_reopen needs Dedup;
    a_full_queue_refuses_with_a_retry_time needs MaxDepth;
}

async fn delivers_payloads_unchanged(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one", "two", "three"]).await;
    let leased = lease(&queue, 10).await;
    assert_eq!(payloads(&leased), ["one", "two", "three"]);
    let ids: HashSet<_> = leased.iter().map(|one| one.message.id).collect();
    assert_eq!(ids.len(), 3);
    assert!(leased.iter().all(|one| one.attempt == 1));
}

async fn keeps_headers_and_id(mut world: World) {
    let queue = world.queue().await;
    let mut message = text("x");
    message.headers.set("traceparent", "00-a-b-01");
    message.headers.set("Content-Type", "text/plain");
    let sent = message.clone();
    assert_eq!(enqueue_all(&queue, vec![message]).await, [sent.id]);
    let got = lease(&queue, 1).await.remove(0).message;
    assert_eq!((got.id, got.headers), (sent.id, sent.headers));
}

async fn keeps_the_key(mut world: World) {
    let queue = world.queue().await;
    let mut message = text("x");
    message.key = Some("customer 7".to_owned());
    enqueue_all(&queue, vec![message]).await;
    let got = lease(&queue, 1).await.remove(0).message;
    assert_eq!(got.key.as_deref(), Some("customer 7"));
}

async fn keeps_empty_binary_and_large_payloads(mut world: World) {
    let queue = world.queue().await;
    let payloads = [
        Vec::new(),
        (0..=255).collect(),
        vec![7; 1 << 20],
        vec![0; message::MAX_PAYLOAD_BYTES],
    ];
    enqueue_all(
        &queue,
        payloads
            .iter()
            .map(|payload| NewMessage::new(payload.clone()))
            .collect(),
    )
    .await;
    let leased = lease(&queue, 10).await;
    assert_eq!(leased.len(), 4);
    for (delivery, payload) in leased.iter().zip(&payloads) {
        assert!(
            delivery.message.payload == *payload,
            "a payload of {} bytes came back changed",
            payload.len()
        );
    }
}

async fn an_empty_batch_is_a_no_op(mut world: World) {
    let queue = world.queue().await;
    assert!(
        queue
            .enqueue(&jobs(), Vec::new())
            .await
            .expect("enqueue")
            .is_empty()
    );
    assert!(queue.settle(Vec::new()).await.expect("settle").is_empty());
    assert!(queue.extend(&[], LEASE).await.expect("extend").is_empty());
}

async fn a_refused_message_does_not_fail_the_batch(mut world: World) {
    let queue = world.queue().await;
    let large = NewMessage::new(vec![0; message::MAX_PAYLOAD_BYTES + 1]);
    let outcomes = queue
        .enqueue(&jobs(), vec![text("one"), large, text("two")])
        .await
        .expect("enqueue");
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert_kind(
        outcomes.into_iter().nth(1).expect("three outcomes"),
        ErrorKind::Invalid,
    );
    assert_eq!(payloads(&lease(&queue, 10).await), ["one", "two"]);
}

async fn a_batch_over_the_limit_is_invalid(mut world: World) {
    let queue = world.queue().await;
    assert_kind(
        queue.enqueue(&jobs(), vec![text("x"); MAX_BATCH + 1]).await,
        ErrorKind::Invalid,
    );
    assert!(lease_now(&queue, 1).await.is_empty());
}

fn with_dedup(payload: &str) -> NewMessage {
    NewMessage {
        dedup_id: Some("order 1".to_owned()),
        ..text(payload)
    }
}

async fn recognises_a_repeated_dedup_id(mut world: World) {
    let queue = world.queue().await;
    let first = enqueue_all(&queue, vec![with_dedup("one")]).await;
    // Also after the first one was delivered and acked.
    ack(&queue, &lease(&queue, 1).await).await;
    let outcome = queue
        .enqueue(&jobs(), vec![with_dedup("two")])
        .await
        .expect("enqueue")
        .remove(0);
    assert_eq!(outcome.expect("taken"), Enqueued::Duplicate(first[0]));
    assert!(lease_now(&queue, 1).await.is_empty());
    assert_eq!(stats(&queue).await.duplicates, 1);
}

async fn recognises_a_repeat_within_one_batch(mut world: World) {
    let queue = world.queue().await;
    let ids = enqueue_all(&queue, vec![with_dedup("one"), with_dedup("two")]).await;
    assert_eq!(ids[0], ids[1]);
    assert_eq!(payloads(&lease(&queue, 10).await), ["one"]);
}

async fn forgets_a_dedup_id_after_its_window(mut world: World) {
    let queue = world.queue().await;
    let settings = Settings {
        dedup_window: Duration::from_millis(200),
        ..Settings::default()
    };
    queue.declare(&jobs(), &settings).await.expect("declare");
    enqueue_all(&queue, vec![with_dedup("one")]).await;
    until("the window to close", || async {
        let outcome = queue
            .enqueue(&jobs(), vec![with_dedup("two")])
            .await
            .expect("enqueue")
            .remove(0);
        matches!(outcome, Ok(Enqueued::New(_)))
    })
    .await;
}

async fn remembers_a_dedup_id_across_reopen(mut world: World) {
    let queue = world.queue().await;
    let first = enqueue_all(&queue, vec![with_dedup("one")]).await;
    let queue = world.reopen().await;
    assert_eq!(enqueue_all(&queue, vec![with_dedup("two")]).await, first);
}

async fn a_full_queue_refuses_with_a_retry_time(mut world: World) {
    let queue = world.queue().await;
    let settings = Settings {
        max_depth: Some(2),
        ..Settings::default()
    };
    queue.declare(&jobs(), &settings).await.expect("declare");
    let outcomes = queue
        .enqueue(&jobs(), vec![text("one"), text("two"), text("three")])
        .await
        .expect("enqueue");
    assert!(outcomes[0].is_ok() && outcomes[1].is_ok());
    let refusal = outcomes
        .into_iter()
        .nth(2)
        .expect("three outcomes")
        .expect_err("full");
    assert!(refusal.retry_after().is_some(), "{refusal:?}");
    ack(&queue, &lease(&queue, 1).await).await;
    enqueue(&queue, &["four"]).await;
}
