//! Messages that the broker may drop: limits of deliveries, queues that are not durable. Nothing is lost
//! without a reason to be read.

use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use towpath_core::port::queue::{DeadLetter, Settings};
use towpath_testkit::proxy::{Fault, Proxy};
use towpath_testkit::servers::rabbitmq;

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        a_delivery_limit_makes_dead_letters_that_can_be_looked_at,
        a_delivery_limit_of_an_adopted_queue_is_not_met,
        a_queue_that_is_not_durable_is_named,
        a_queue_that_is_not_replicated_is_named,
        arguments_that_discard_are_named,
        queues_of_the_reference_system_are_made_as_it_makes_them,
    ]
}

/// A queue of another program, and a backend on it.
async fn declared(
    name: &str,
    durable: bool,
    arguments: &[(&str, AMQPValue)],
) -> (Backend, Connection, String) {
    let (url, prefix) = (rabbitmq::shared().url(), prefix());
    let (connection, channel) = bare(&url).await;
    let options = QueueDeclareOptions {
        durable,
        ..QueueDeclareOptions::default()
    };
    let mut table = FieldTable::default();
    for (name, value) in arguments {
        table.insert((*name).into(), value.clone());
    }
    let wire = format!("{prefix}{name}");
    let made = channel.queue_declare(wire.as_str().into(), options, table);
    made.await.expect("declared");
    let url = format!("{url}?prefix={prefix}");
    (open(&url).await, connection, url)
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

async fn warnings(backend: &Backend) -> String {
    let settings = Settings::default();
    let declared = queue_of(backend).declare(&messages(), &settings).await;
    declared.expect("declared");
    let health = backend.lifecycle.health().await.expect("well");
    health.warnings.join("\n")
}

async fn dead(queue: &Arc<dyn Queue>) -> Vec<DeadLetter> {
    let listed = queue.dead_letters(&messages(), None, 10).await;
    listed.expect("listed")
}

async fn a_delivery_limit_makes_dead_letters_that_can_be_looked_at() {
    let server = rabbitmq::shared();
    let prefix = prefix();
    // Also on the queue of dead letters.
    let pattern = format!("^{prefix}");
    let policy = r#"{"delivery-limit":1}"#;
    server.control(&[
        "set_policy",
        "--apply-to",
        "queues",
        &prefix,
        &pattern,
        policy,
    ]);
    let proxy = Proxy::start(server.port()).await;
    let port = proxy.port();
    let backend = open(&format!(
        "amqp://guest:guest@127.0.0.1:{port}?prefix={prefix}"
    ))
    .await;
    let queue = queue_of(&backend);
    let sent = queue.enqueue(&messages(), vec![NewMessage::new("x")]).await;
    let id = sent.expect("sent").remove(0).expect("taken").id();
    // Connections break while it is leased, again and again.
    until("the dead letter", || async {
        drop(try_lease(&queue, "one", Duration::from_millis(500)).await);
        proxy.set(Fault::Reset);
        proxy.set(Fault::None);
        let stats = queue.stats(&messages()).await;
        stats.is_ok_and(|stats| stats.dead == 1)
    })
    .await;
    for look in 0..6 {
        let dead = dead(&queue).await;
        assert_eq!(dead.len(), 1, "look {look}");
        assert_eq!(dead[0].message.id, id);
        assert!(
            dead[0].reason.contains("delivery limit"),
            "{}",
            dead[0].reason
        );
    }
}

async fn a_delivery_limit_of_an_adopted_queue_is_not_met() {
    let limit = [
        ("x-queue-type", text("quorum")),
        ("x-delivery-limit", AMQPValue::LongInt(1)),
    ];
    let (backend, _connection, url) = declared("messages", true, &limit).await;
    let sent = queue_of(&backend)
        .enqueue(&messages(), vec![NewMessage::new("x")])
        .await;
    sent.expect("sent").remove(0).expect("taken");
    backend.lifecycle.close().await.expect("closed");
    for attempt in 1..=5 {
        let backend = open(&url).await;
        let held = lease(&queue_of(&backend)).await;
        assert_eq!(held[0].attempt, attempt);
        backend.lifecycle.close().await.expect("closed");
    }
}

async fn a_queue_that_is_not_durable_is_named() {
    let (backend, ..) = declared("messages", false, &[]).await;
    let warnings = warnings(&backend).await;
    assert!(warnings.contains("`messages` is not durable"), "{warnings}");
}

async fn a_queue_that_is_not_replicated_is_named() {
    let (backend, ..) = declared("messages", true, &[]).await;
    let warnings = warnings(&backend).await;
    assert!(warnings.contains("not replicated"), "{warnings}");
}

async fn arguments_that_discard_are_named() {
    let arguments = [
        ("x-queue-type", text("quorum")),
        ("x-message-ttl", AMQPValue::LongInt(3_600_000)),
        ("x-max-length", AMQPValue::LongInt(10)),
        ("x-expires", AMQPValue::LongInt(600_000)),
    ];
    let (backend, ..) = declared("messages", true, &arguments).await;
    let warnings = warnings(&backend).await;
    for named in [
        "x-message-ttl=3600000",
        "x-max-length=10",
        "x-expires=600000",
    ] {
        assert!(warnings.contains(named), "{named}: {warnings}");
    }
}

async fn queues_of_the_reference_system_are_made_as_it_makes_them() {
    let (url, prefix) = (rabbitmq::shared().url(), prefix());
    // Prefixes keep tests apart, so the bare queue has one too.
    let backend = open(&format!("{url}?prefix={prefix}")).await;
    let (_connection, channel) = bare(&url).await;
    for name in ["orders.queue", "notifier.queue"] {
        let ours = QueueName::new(name).expect("a valid name");
        let settings = Settings::default();
        queue_of(&backend)
            .declare(&ours, &settings)
            .await
            .expect("declared");
        let wire = format!("{prefix}{name}");
        let options = QueueDeclareOptions::durable();
        let again = channel.queue_declare(wire.as_str().into(), options, FieldTable::default());
        again.await.expect("the reference's declaration");
    }
    let health = backend.lifecycle.health().await.expect("well");
    assert_eq!(health.warnings, [""; 0]);
}
