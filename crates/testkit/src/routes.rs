//! The promises of the routes port.

use std::sync::Arc;

use towpath_core::message::MAX_PAYLOAD_BYTES;
use towpath_core::port::queue::Settings;
use towpath_core::port::routes::{Binding, Publication, Routes};
use towpath_core::{ErrorKind, ExchangeName, NewMessage};

use crate::World;
use crate::world::{assert_kind, name, text};

crate::promises! { Routes:
    copies_into_every_matching_queue_once needs Queue;
    an_unroutable_message_is_an_error_and_stored_nowhere needs Queue;
    bindings_stay_until_unbound needs Queue;
    a_full_queue_refuses_its_message_alone needs Queue, MaxDepth;
    a_refused_publication_does_not_fail_the_batch needs Queue;
}

async fn routes(world: &mut World) -> Arc<dyn Routes> {
    world.backend().await.routes.expect("the row offers routes")
}

fn exchange() -> ExchangeName {
    ExchangeName::new("orders.topic").expect("a valid name")
}

fn binding(pattern: &str, queue: &str) -> Binding {
    Binding {
        exchange: exchange(),
        pattern: pattern.to_owned(),
        queue: name(queue),
    }
}

fn publication(routing_key: &str) -> Publication {
    Publication {
        routing_key: routing_key.to_owned(),
        message: text(routing_key),
    }
}

async fn ready(world: &mut World, queue: &str) -> u64 {
    world
        .queue()
        .await
        .stats(&name(queue))
        .await
        .map_or(0, |stats| stats.ready)
}

async fn copies_into_every_matching_queue_once(mut world: World) {
    let routes = routes(&mut world).await;
    for (pattern, queue) in [
        ("order.*", "all"),
        ("order.#", "all"),
        ("order.created", "created"),
        ("#", "audit"),
    ] {
        routes.bind(&binding(pattern, queue)).await.expect("bind");
    }
    let outcomes = routes
        .publish(
            &exchange(),
            vec![publication("order.created"), publication("order.rejected")],
        )
        .await
        .expect("publish");
    let counts: Vec<usize> = outcomes
        .into_iter()
        .map(|outcome| outcome.expect("routed"))
        .collect();
    assert_eq!(counts, [3, 2]);
    for (queue, count) in [("all", 2), ("created", 1), ("audit", 2)] {
        assert_eq!(ready(&mut world, queue).await, count, "{queue}");
    }
}

async fn an_unroutable_message_is_an_error_and_stored_nowhere(mut world: World) {
    let routes = routes(&mut world).await;
    routes
        .bind(&binding("order.created", "created"))
        .await
        .expect("bind");
    let mut outcomes = routes
        .publish(
            &exchange(),
            vec![publication("nowhere"), publication("order.created")],
        )
        .await
        .expect("publish");
    assert!(outcomes.pop().expect("two outcomes").is_ok());
    assert_kind(outcomes.pop().expect("two outcomes"), ErrorKind::NotFound);
    assert_eq!(ready(&mut world, "created").await, 1);
}

async fn bindings_stay_until_unbound(mut world: World) {
    let before = routes(&mut world).await;
    before.bind(&binding("a", "one")).await.expect("bind");
    before.bind(&binding("a", "one")).await.expect("again");
    before.bind(&binding("b", "two")).await.expect("bind");
    world.reopen().await;
    let routes = routes(&mut world).await;
    assert_eq!(
        routes.bindings(&exchange()).await.expect("bindings"),
        [binding("a", "one"), binding("b", "two")]
    );
    routes.unbind(&binding("a", "one")).await.expect("unbind");
    let mut outcomes = routes
        .publish(&exchange(), vec![publication("a")])
        .await
        .expect("publish");
    assert_kind(outcomes.pop().expect("one outcome"), ErrorKind::NotFound);
}

async fn a_full_queue_refuses_its_message_alone(mut world: World) {
    let routes = routes(&mut world).await;
    let queue = world.queue().await;
    let settings = Settings {
        max_depth: Some(1),
        ..Settings::default()
    };
    queue
        .declare(&name("small"), &settings)
        .await
        .expect("declare");
    for to in ["small", "large"] {
        routes.bind(&binding(to, to)).await.expect("bind");
    }
    let outcomes = routes
        .publish(
            &exchange(),
            vec![
                publication("small"),
                publication("small"),
                publication("large"),
            ],
        )
        .await
        .expect("publish");
    assert_eq!(*outcomes[0].as_ref().expect("there is room"), 1);
    let refusal = outcomes[1].as_ref().expect_err("it is full");
    assert!(refusal.retry_after().is_some(), "{refusal:?}");
    assert_eq!(*outcomes[2].as_ref().expect("the other queue has room"), 1);
    assert_eq!(
        (
            ready(&mut world, "small").await,
            ready(&mut world, "large").await
        ),
        (1, 1)
    );
}

async fn a_refused_publication_does_not_fail_the_batch(mut world: World) {
    let routes = routes(&mut world).await;
    routes.bind(&binding("#", "all")).await.expect("bind");
    let large = Publication {
        routing_key: "large".to_owned(),
        message: NewMessage::new(vec![0; MAX_PAYLOAD_BYTES + 1]),
    };
    let mut outcomes = routes
        .publish(&exchange(), vec![large, publication("small")])
        .await
        .expect("publish");
    assert!(outcomes.pop().expect("two outcomes").is_ok());
    assert_kind(outcomes.pop().expect("two outcomes"), ErrorKind::Invalid);
    assert_eq!(ready(&mut world, "all").await, 1);
}
