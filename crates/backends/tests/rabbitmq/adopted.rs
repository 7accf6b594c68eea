//! Queues and messages of other programs: a classic queue without arguments, bare messages, bare consumers.

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use towpath_core::port::queue::Selection;
use towpath_testkit::servers::rabbitmq;

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        a_classic_queue_without_arguments_retries_buries_and_redrives,
        a_bare_consumer_reads_our_messages,
        attempts_count_on_a_classic_queue_across_a_crash,
        an_exchange_of_another_kind_is_used_as_it_is,
    ]
}

/// A backend on a classic queue of another client, and that client.
async fn adopted() -> (Backend, Connection, Channel, String) {
    let (url, prefix) = (rabbitmq::shared().url(), prefix());
    let (connection, channel) = bare(&url).await;
    let name = format!("{prefix}messages");
    let options = QueueDeclareOptions::durable();
    let declared = channel.queue_declare(name.as_str().into(), options, FieldTable::default());
    declared.await.expect("declared");
    let backend = open(&format!("{url}?prefix={prefix}")).await;
    (backend, connection, channel, name)
}

async fn publish(channel: &Channel, queue: &str, text: &str) {
    let publish = channel.basic_publish(
        "".into(),
        queue.into(),
        BasicPublishOptions::default(),
        text.as_bytes(),
        BasicProperties::default().with_content_type("text/plain".into()),
    );
    publish.await.expect("published");
}

async fn a_classic_queue_without_arguments_retries_buries_and_redrives() {
    let (backend, _connection, channel, name) = adopted().await;
    publish(&channel, &name, "bare").await;
    let queue = queue_of(&backend);
    let held = lease(&queue).await;
    assert_eq!(&held[0].message.payload[..], b"bare");
    assert_eq!(
        held[0].message.headers.get("content-type"),
        Some("text/plain")
    );
    let id = held[0].message.id;
    let (after, error) = (Duration::from_millis(300), "not yet".to_owned());
    let began = Instant::now();
    settle(&queue, &held[0], Disposition::Retry { after, error }).await;
    let held = lease(&queue).await;
    assert!(
        began.elapsed() >= Duration::from_millis(280),
        "{:?}",
        began.elapsed()
    );
    assert_eq!((held[0].message.id, held[0].attempt), (id, 2));
    let reason = "poison".to_owned();
    settle(&queue, &held[0], Disposition::DeadLetter { reason }).await;
    let dead = queue
        .dead_letters(&messages(), None, 10)
        .await
        .expect("dead letters");
    assert_eq!((dead[0].reason.as_str(), dead[0].attempts), ("poison", 2));
    assert_eq!(dead[0].history, ["not yet"]);
    let redriven = queue.redrive(&messages(), &Selection::All).await;
    assert_eq!(redriven.expect("redriven"), 1);
    let held = lease(&queue).await;
    assert_eq!((held[0].message.id, held[0].attempt), (id, 1));
    settle(&queue, &held[0], Disposition::Ack).await;
}

async fn a_bare_consumer_reads_our_messages() {
    let (backend, _connection, channel, name) = adopted().await;
    let message = NewMessage::new("ours");
    let outcomes = queue_of(&backend).enqueue(&messages(), vec![message]).await;
    outcomes.expect("enqueue").remove(0).expect("taken");
    let got = channel
        .basic_get(name.as_str().into(), BasicGetOptions { no_ack: true })
        .await;
    let got = got.expect("an answer").expect("a message").delivery;
    assert_eq!(got.data, b"ours");
    assert_eq!(
        got.properties.delivery_mode(),
        &Some(2),
        "it survives a restart"
    );
}

async fn attempts_count_on_a_classic_queue_across_a_crash() {
    let (backend, _connection, channel, name) = adopted().await;
    publish(&channel, &name, "poison").await;
    let url = format!(
        "{}?prefix={}",
        rabbitmq::shared().url(),
        name.trim_end_matches("messages")
    );
    backend.lifecycle.close().await.expect("closed");
    for attempt in 1..=4 {
        let backend = open(&url).await;
        let held = lease(&queue_of(&backend)).await;
        assert_eq!(held[0].attempt, attempt);
        backend.lifecycle.close().await.expect("closed");
    }
}

async fn an_exchange_of_another_kind_is_used_as_it_is() {
    use lapin::ExchangeKind;
    use lapin::options::ExchangeDeclareOptions;
    use towpath_core::ExchangeName;
    use towpath_core::port::routes::{Binding, Publication};

    let (backend, _connection, channel, name) = adopted().await;
    let exchange = format!("{}events", name.trim_end_matches("messages"));
    // Ours would be a durable topic exchange.
    let declared = channel.exchange_declare(
        exchange.as_str().into(),
        ExchangeKind::Fanout,
        ExchangeDeclareOptions::default(),
        FieldTable::default(),
    );
    declared.await.expect("declared");
    let routes = backend.require_routes("the test").expect("routes");
    let binding = Binding {
        exchange: ExchangeName::new("events").expect("a valid name"),
        pattern: "a".to_owned(),
        queue: messages(),
    };
    routes.bind(&binding).await.expect("bound");
    let one = Publication {
        routing_key: "b".to_owned(),
        message: NewMessage::new("x"),
    };
    let outcomes = routes
        .publish(&binding.exchange, vec![one])
        .await
        .expect("published");
    assert!(
        outcomes[0].is_ok(),
        "a fanout exchange asks for no key: {outcomes:?}"
    );
    assert_eq!(lease(&queue_of(&backend)).await.len(), 1);
}
