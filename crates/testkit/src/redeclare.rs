//! A server that lost its declarations while the connection holds: an operator deleted a queue or an exchange,
//! or an empty server replaced the old one. Everything that a process declared is declared again within seconds,
//! without a restart and without a call.
//!
//! These cases need [`Subject::lose`](crate::Subject); a backend that keeps declarations in the process has none.

use std::time::Duration;

use tokio::time::Instant;
use towpath_core::backend::Capability;
use towpath_core::port::queue::Disposition;
use towpath_core::port::routes::{Binding, Publication};
use towpath_core::{Error, ErrorKind, ExchangeName};

use crate::world::*;
use crate::{Case, World};

/// Deadline for a backend to work again.
const SECONDS: Duration = Duration::from_secs(15);

/// Every case; each needs `Subject::lose`.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "a_lost_queue_is_declared_again_with_its_settings",
            needs: &[Capability::Queue],
            body: |world| Box::pin(a_lost_queue_is_declared_again_with_its_settings(world)),
        },
        Case {
            name: "a_lost_queue_is_listed_again_without_a_call",
            needs: &[Capability::Queue],
            body: |world| Box::pin(a_lost_queue_is_listed_again_without_a_call(world)),
        },
        Case {
            name: "a_waiting_consumer_of_a_lost_queue_receives_new_messages",
            needs: &[Capability::Queue],
            body: |world| {
                Box::pin(a_waiting_consumer_of_a_lost_queue_receives_new_messages(
                    world,
                ))
            },
        },
        Case {
            name: "a_lost_route_is_declared_again",
            needs: &[Capability::Queue, Capability::Routes],
            body: |world| Box::pin(a_lost_route_is_declared_again(world)),
        },
    ]
}

/// Accepts an error that heals within seconds, and waits before the next try.
async fn tolerate(began: Instant, error: &Error) {
    assert!(
        matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::NotFound),
        "{error:?}"
    );
    assert!(
        began.elapsed() < SECONDS,
        "still after {SECONDS:?}: {error:?}"
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Enqueues one, tried until it is taken.
async fn enqueue_until_taken(world: &mut World, payload: &str) {
    let queue = world.queue().await;
    let began = Instant::now();
    loop {
        match queue.enqueue(&jobs(), vec![text(payload)]).await {
            Ok(mut outcomes) => match outcomes.pop().expect("one outcome") {
                Ok(_) => return,
                Err(error) => tolerate(began, &error).await,
            },
            Err(error) => tolerate(began, &error).await,
        }
    }
}

/// The next message, tried until one comes.
async fn lease_until_given(world: &mut World) -> towpath_core::Delivery {
    let queue = world.queue().await;
    let began = Instant::now();
    loop {
        let request = towpath_core::port::queue::LeaseRequest {
            queue: jobs(),
            consumer: consumer("one"),
            max: 1,
            in_flight: 1,
            lease: Duration::from_secs(60),
            wait: Duration::from_millis(500),
        };
        match queue.lease(request).await {
            Ok(mut deliveries) => match deliveries.pop() {
                Some(delivery) => return delivery,
                None => assert!(began.elapsed() < SECONDS, "nothing came within {SECONDS:?}"),
            },
            Err(error) => tolerate(began, &error).await,
        }
    }
}

async fn a_lost_queue_is_declared_again_with_its_settings(mut world: World) {
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(2)).await.expect("declare");
    enqueue(&queue, &["before"]).await;
    let held = lease(&queue, 1).await;
    ack(&queue, &held).await;
    world.lose().await;
    enqueue_until_taken(&mut world, "after").await;
    // Until the queue has its settings again, a retry is charged by other ones.
    let began = Instant::now();
    while queue.stats(&jobs()).await.is_err() {
        assert!(began.elapsed() < SECONDS, "the queue is not back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for attempt in 1..=2 {
        let delivery = lease_until_given(&mut world).await;
        assert_eq!(delivery.attempt, attempt);
        settle(&queue, &delivery, retry_now())
            .await
            .expect("settle");
    }
    until("the second attempt to be the last", || async {
        queue
            .stats(&jobs())
            .await
            .is_ok_and(|stats| stats.dead == 1)
    })
    .await;
}

async fn a_lost_queue_is_listed_again_without_a_call(mut world: World) {
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(2)).await.expect("declare");
    world.lose().await;
    let began = Instant::now();
    loop {
        match queue.list().await {
            Ok(all) if all.iter().any(|one| one.queue == jobs()) => break,
            Ok(_) => assert!(began.elapsed() < SECONDS, "not listed after {SECONDS:?}"),
            Err(error) => tolerate(began, &error).await,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let began = Instant::now();
    while let Err(error) = queue.stats(&jobs()).await {
        tolerate(began, &error).await;
    }
}

async fn a_waiting_consumer_of_a_lost_queue_receives_new_messages(mut world: World) {
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(2)).await.expect("declare");
    // It waits while the queue goes.
    assert!(lease_now(&queue, 1).await.is_empty());
    world.lose().await;
    enqueue_until_taken(&mut world, "after").await;
    let delivery = lease_until_given(&mut world).await;
    assert_eq!(&delivery.message.payload[..], b"after");
    settle(&queue, &delivery, Disposition::Ack)
        .await
        .expect("settle");
}

async fn a_lost_route_is_declared_again(mut world: World) {
    let routes = world.backend().await.routes.expect("the row offers routes");
    let queue = world.queue().await;
    queue.declare(&jobs(), &attempts(2)).await.expect("declare");
    let exchange = ExchangeName::new("events").expect("a valid name");
    let binding = Binding {
        exchange: exchange.clone(),
        pattern: "order.*".to_owned(),
        queue: jobs(),
    };
    routes.bind(&binding).await.expect("bind");
    world.lose().await;
    let began = Instant::now();
    loop {
        let publication = Publication {
            routing_key: "order.created".to_owned(),
            message: text("routed"),
        };
        let outcome = match routes.publish(&exchange, vec![publication]).await {
            Ok(mut outcomes) => outcomes.pop().expect("one outcome"),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(count) => break assert_eq!(count, 1),
            Err(error) => tolerate(began, &error).await,
        }
    }
    let delivery = lease_until_given(&mut world).await;
    assert_eq!(&delivery.message.payload[..], b"routed");
}
