//! Edge cases: partial batches, late extensions, keys released, counts kept.

use std::sync::Arc;
use std::time::Duration;

use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, LeaseRequest, Selection, Settlement};
use towpath_core::{Clock, Delivery, ErrorKind, NewMessage, SystemClock};

use crate::World;
use crate::world::*;

crate::promises! { Queue:
    one_stale_receipt_does_not_fail_the_batch;
    a_cancelled_lease_call_leases_nothing;
    an_unbounded_wait_is_woken;
    a_late_extension_locks_its_key_again needs KeyOrder;
    a_disconnect_voids_expired_leases;
    purging_a_retry_unlocks_its_key needs KeyOrder;
    an_expired_message_unlocks_its_key needs KeyOrder, Expiry;
    keeps_every_count_across_reopen needs Dedup, Bookkeeping;
    keeps_the_last_ten_errors;
}

fn keyed(payload: &str) -> NewMessage {
    NewMessage {
        key: Some("a".to_owned()),
        ..text(payload)
    }
}

fn give_up() -> Disposition {
    Disposition::DeadLetter {
        reason: "poison".to_owned(),
    }
}

async fn one_stale_receipt_does_not_fail_the_batch(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one", "two", "three"]).await;
    let held = lease(&queue, 3).await;
    ack(&queue, &held[1..2]).await;
    let all = held.iter().map(|delivery| Settlement {
        receipt: delivery.receipt.clone(),
        disposition: Disposition::Ack,
    });
    let mut outcomes = queue.settle(all.collect()).await.expect("settle");
    assert!(outcomes[0].is_ok() && outcomes[2].is_ok());
    assert_kind(outcomes.remove(1), ErrorKind::Conflict);
    assert_eq!(stats(&queue).await.acked, 3);
    assert_balanced(&queue).await;
}

async fn a_cancelled_lease_call_leases_nothing(mut world: World) {
    let queue = world.queue().await;
    let waiting = {
        let queue = Arc::clone(&queue);
        // Aborted below.
        tokio::spawn(async move {
            lease_as(
                &queue,
                "gone",
                1,
                Duration::from_secs(600),
                Duration::from_secs(20),
            )
            .await
        })
    };
    until("the consumer to wait", || async {
        !queue.list().await.expect("list").is_empty()
    })
    .await;
    waiting.abort();
    assert!(waiting.await.expect_err("aborted").is_cancelled());
    enqueue(&queue, &["one"]).await;
    // A wait that continued would have it by now.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(lease_now(&queue, 1).await.len(), 1);
}

async fn an_unbounded_wait_is_woken(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let request = LeaseRequest {
        queue: jobs(),
        consumer: consumer("one"),
        max: 1,
        in_flight: 1,
        lease: LEASE,
        wait: Duration::MAX,
    };
    assert_eq!(queue.lease(request).await.expect("lease").len(), 1);
}

async fn expired(queue: &Arc<dyn Queue>) -> Delivery {
    let late = lease_as(queue, "slow", 1, LEASE, Duration::ZERO).await;
    let before = stats(queue).await.ready;
    until("the lease to expire", || async {
        stats(queue).await.ready > before
    })
    .await;
    late.into_iter().next().expect("something to lease")
}

async fn a_late_extension_locks_its_key_again(mut world: World) {
    let queue = world.queue().await;
    enqueue_all(&queue, vec![keyed("a1"), keyed("a2")]).await;
    let late = expired(&queue).await;
    let receipts = [late.receipt.clone()];
    let extended = queue.extend(&receipts, Duration::from_secs(30)).await;
    extended.expect("extend").remove(0).expect("extended");
    assert!(lease_now(&queue, 2).await.is_empty(), "a2 waits for a1");
    ack(&queue, &[late]).await;
    assert_eq!(payloads(&lease(&queue, 2).await), ["a2"]);
}

async fn a_disconnect_voids_expired_leases(mut world: World) {
    let queue = world.queue().await;
    enqueue(&queue, &["one"]).await;
    let late = expired(&queue).await;
    let given_back = queue.disconnect(&consumer("slow")).await;
    assert_eq!(given_back.expect("disconnect"), 0, "nothing was leased");
    let receipts = [late.receipt.clone()];
    let extended = queue.extend(&receipts, LEASE).await.expect("extend");
    assert_kind(
        extended.into_iter().next().expect("one"),
        ErrorKind::Conflict,
    );
    let settled = settle(&queue, &late, Disposition::Ack).await;
    assert_kind(settled, ErrorKind::Conflict);
}

async fn purging_a_retry_unlocks_its_key(mut world: World) {
    let queue = world.queue().await;
    // Without leased messages, and with one that the purge must keep.
    for in_hand in [&[][..], &["other"]] {
        enqueue(&queue, in_hand).await;
        assert_eq!(lease_now(&queue, 1).await.len(), in_hand.len());
        enqueue_all(&queue, vec![keyed("a1"), keyed("a2")]).await;
        let held = lease(&queue, 1).await;
        let disposition = Disposition::Retry {
            after: Duration::from_secs(600),
            error: "no".to_owned(),
        };
        settle(&queue, &held[0], disposition)
            .await
            .expect("retried");
        assert!(lease_now(&queue, 1).await.is_empty(), "a2 waits for a1");
        assert_eq!(queue.purge(&jobs()).await.expect("purge"), 2);
        enqueue_all(&queue, vec![keyed("a3")]).await;
        let next = lease(&queue, 1).await;
        assert_eq!(payloads(&next), ["a3"]);
        ack(&queue, &next).await;
    }
    assert_balanced(&queue).await;
}

async fn an_expired_message_unlocks_its_key(mut world: World) {
    let queue = world.queue().await;
    let expires = SystemClock::new().now().after(Duration::from_millis(600));
    let mortal = NewMessage {
        expires: Some(expires),
        ..keyed("a1")
    };
    enqueue_all(&queue, vec![mortal, keyed("a2")]).await;
    let held = lease(&queue, 1).await;
    assert_eq!(payloads(&held), ["a1"]);
    let disposition = Disposition::Retry {
        after: Duration::from_millis(800),
        error: "no".to_owned(),
    };
    settle(&queue, &held[0], disposition)
        .await
        .expect("retried");
    until("the retry to fall due", || async {
        stats(&queue).await.delayed == 0
    })
    .await;
    let next = lease_now(&queue, 1).await;
    assert_eq!(payloads(&next), ["a2"], "a1 expired while it waited");
    assert_balanced(&queue).await;
}

async fn keeps_every_count_across_reopen(mut world: World) {
    let queue = world.queue().await;
    let with_dedup = || NewMessage {
        dedup_id: Some("1".to_owned()),
        ..text("x")
    };
    enqueue_all(
        &queue,
        vec![
            with_dedup(),
            with_dedup(),
            text("y"),
            text("z"),
            text("ready"),
        ],
    )
    .await;
    let held = lease(&queue, 3).await;
    settle(&queue, &held[0], retry_now())
        .await
        .expect("retried");
    ack(&queue, &held[1..2]).await;
    settle(&queue, &held[2], give_up())
        .await
        .expect("dead-lettered");
    assert_eq!(
        queue
            .drop_dead(&jobs(), &Selection::All)
            .await
            .expect("drop"),
        1
    );
    let counts = |stats: towpath_core::port::queue::Stats| {
        (
            stats.enqueued,
            stats.acked,
            stats.retried,
            stats.dropped,
            stats.duplicates,
        )
    };
    let before = counts(stats(&queue).await);
    assert_eq!(before, (4, 1, 1, 1, 1));
    let queue = world.reopen().await;
    assert_eq!(counts(stats(&queue).await), before);
    assert_balanced(&queue).await;
}

async fn keeps_the_last_ten_errors(mut world: World) {
    let queue = world.queue().await;
    queue
        .declare(&jobs(), &attempts(14))
        .await
        .expect("declare");
    enqueue(&queue, &["one"]).await;
    for attempt in 1..=14 {
        let held = lease(&queue, 1).await;
        let disposition = Disposition::Retry {
            after: Duration::ZERO,
            error: attempt.to_string(),
        };
        settle(&queue, &held[0], disposition)
            .await
            .expect("retried");
    }
    let dead = queue
        .dead_letters(&jobs(), None, 1)
        .await
        .expect("dead letters");
    let expected: Vec<String> = (4..=13).map(|attempt| attempt.to_string()).collect();
    assert_eq!(
        (dead[0].reason.as_str(), &dead[0].history),
        ("14", &expected)
    );
}
