//! Lost declarations are declared again: queues, their delay and dead-letter queues, exchanges, bindings, consumers.

use lapin::options::{
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::FieldTable;
use towpath_core::ExchangeName;
use towpath_core::port::Routes;
use towpath_core::port::queue::Settings;
use towpath_core::port::routes::{Binding, Publication};
use towpath_testkit::servers::rabbitmq;

use super::*;

pub(super) fn promises() -> Vec<Own> {
    promises![
        a_deleted_queue_takes_messages_again,
        a_deleted_queue_is_there_again_without_a_call,
        a_cancelled_consumer_consumes_again,
        deleted_delay_and_dead_letter_queues_are_made_again,
        a_deleted_exchange_takes_messages_again,
        a_deleted_binding_is_made_again,
        a_binding_is_made_again_beside_another,
        a_missing_queue_leaves_deliveries_of_others_alone,
        a_returned_message_is_distinguished_from_its_neighbours,
        many_large_batches_at_once_are_taken,
        a_user_without_configure_uses_existing_queues,
        messages_without_a_consumer_have_an_age,
        the_age_of_a_delayed_message_is_not_known,
    ]
}

/// A backend with its queue declared, and a bare client.
struct Fixture {
    backend: Backend,
    queue: Arc<dyn Queue>,
    prefix: String,
    bare: Channel,
    connection: Connection,
}

async fn fixture() -> Fixture {
    let (url, prefix) = (rabbitmq::shared().url(), prefix());
    let (connection, bare) = bare(&url).await;
    let backend = open(&format!("{url}?prefix={prefix}")).await;
    let queue = queue_of(&backend);
    let declared = queue.declare(&messages(), &Settings::default()).await;
    declared.expect("declared");
    // Longer than the pause between two declarations.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    Fixture {
        backend,
        queue,
        prefix,
        bare,
        connection,
    }
}

impl Fixture {
    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    async fn delete(&self, name: &str) {
        let name = self.name(name);
        let deleted = self
            .bare
            .queue_delete(name.as_str().into(), QueueDeleteOptions::default());
        deleted.await.expect("deleted");
    }

    /// Whether the queue is there, asked on a channel that may end.
    async fn is_there(&self, name: &str) -> bool {
        let channel = self.connection.create_channel().await.expect("a channel");
        let options = QueueDeclareOptions {
            passive: true,
            ..QueueDeclareOptions::default()
        };
        let name = self.name(name);
        let asked = channel.queue_declare(name.as_str().into(), options, FieldTable::default());
        asked.await.is_ok()
    }

    async fn send(&self, text: &str) -> towpath_core::Result<()> {
        let message = NewMessage::new(text.to_owned());
        let mut outcomes = self.queue.enqueue(&messages(), vec![message]).await?;
        outcomes.remove(0).map(drop)
    }

    fn routes(&self) -> Arc<dyn Routes> {
        self.backend.require_routes("the test").expect("routes")
    }

    async fn publish(&self, binding: &Binding, key: &str) -> towpath_core::Result<usize> {
        let one = Publication {
            routing_key: key.to_owned(),
            message: NewMessage::new(key.to_owned()),
        };
        let mut outcomes = self.routes().publish(&binding.exchange, vec![one]).await?;
        outcomes.remove(0)
    }
}

fn binding() -> Binding {
    Binding {
        exchange: ExchangeName::new("events").expect("a valid name"),
        pattern: "order.*".to_owned(),
        queue: messages(),
    }
}

async fn a_deleted_queue_takes_messages_again() {
    let fixture = fixture().await;
    fixture.send("before").await.expect("taken");
    for round in 0..2 {
        fixture.delete("messages").await;
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        fixture
            .send("after")
            .await
            .unwrap_or_else(|error| panic!("round {round}: {error:?}"));
        assert_eq!(lease(&fixture.queue).await.len(), 1);
    }
}

async fn a_deleted_queue_is_there_again_without_a_call() {
    let fixture = fixture().await;
    fixture.delete("messages").await;
    until("the queue to be declared again", || {
        fixture.is_there("messages")
    })
    .await;
    let health = fixture.backend.lifecycle.health().await.expect("well");
    assert_eq!(health.warnings, [""; 0]);
}

async fn a_cancelled_consumer_consumes_again() {
    let fixture = Arc::new(fixture().await);
    let waits = {
        let queue = Arc::clone(&fixture.queue);
        tokio::spawn(async move {
            let mut came = Vec::new();
            while came.len() < 3 {
                match try_lease(&queue, "one", Duration::from_secs(30)).await {
                    Ok(held) => {
                        for one in held {
                            settle(&queue, &one, Disposition::Ack).await;
                            came.push(one.message.payload);
                        }
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
            came
        })
    };
    for text in ["a", "b", "c"] {
        fixture.send(text).await.expect("taken");
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        // The broker cancels the consumer that waits.
        fixture.delete("messages").await;
        // The first makes it: another program, on a channel that a refusal would end, or the backend.
        let channel = fixture
            .connection
            .create_channel()
            .await
            .expect("a channel");
        let options = QueueDeclareOptions::durable();
        let name = fixture.name("messages");
        let declared = channel.queue_declare(name.as_str().into(), options, FieldTable::default());
        drop(declared.await);
        tokio::time::sleep(Duration::from_millis(1_500)).await;
    }
    let came = tokio::time::timeout(Duration::from_secs(20), waits).await;
    assert_eq!(came.expect("all come").expect("joined"), ["a", "b", "c"]);
}

async fn deleted_delay_and_dead_letter_queues_are_made_again() {
    let fixture = fixture().await;
    // From here on it is known which delays have a queue.
    fixture.queue.stats(&messages()).await.expect("counted");
    let retry = || Disposition::Retry {
        after: Duration::from_millis(300),
        error: "no".to_owned(),
    };
    for _ in 0..2 {
        fixture.send("x").await.expect("taken");
        let held = lease(&fixture.queue).await;
        settle(&fixture.queue, &held[0], retry()).await;
        let held = lease(&fixture.queue).await;
        let reason = "poison".to_owned();
        settle(&fixture.queue, &held[0], Disposition::DeadLetter { reason }).await;
        let dead = fixture
            .queue
            .dead_letters(&messages(), None, 10)
            .await
            .expect("listed");
        assert_eq!(dead.len(), 1);
        for name in ["messages.delay.250", "messages.dead"] {
            fixture.delete(name).await;
        }
        tokio::time::sleep(Duration::from_millis(1_100)).await;
    }
}

async fn a_deleted_exchange_takes_messages_again() {
    let fixture = fixture().await;
    let binding = binding();
    fixture.routes().bind(&binding).await.expect("bound");
    fixture
        .publish(&binding, "order.created")
        .await
        .expect("routed");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let deleted = fixture.bare.exchange_delete(
        fixture.name("events").as_str().into(),
        ExchangeDeleteOptions::default(),
    );
    deleted.await.expect("deleted");
    let began = Instant::now();
    fixture
        .publish(&binding, "order.created")
        .await
        .expect("routed again");
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
    let mut came = 0;
    while came < 2 {
        came += lease(&fixture.queue).await.len();
    }
}

async fn a_deleted_binding_is_made_again() {
    let fixture = fixture().await;
    let binding = binding();
    fixture.routes().bind(&binding).await.expect("bound");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    unbind(&fixture).await;
    fixture
        .publish(&binding, "order.created")
        .await
        .expect("routed again");
    // A message without a binding is refused as before, and causes no check of the declarations.
    let error = fixture
        .publish(&binding, "nowhere")
        .await
        .expect_err("unroutable");
    assert_eq!(error.kind(), towpath_core::ErrorKind::NotFound);
    assert_eq!(lease(&fixture.queue).await.len(), 1);
}

async fn unbind(fixture: &Fixture) {
    let unbound = fixture.bare.queue_unbind(
        fixture.name("messages").as_str().into(),
        fixture.name("events").as_str().into(),
        "order.*".into(),
        FieldTable::default(),
    );
    unbound.await.expect("unbound");
}

async fn a_binding_is_made_again_beside_another() {
    let fixture = fixture().await;
    let binding = binding();
    fixture.routes().bind(&binding).await.expect("bound");
    // Another queue takes everything, so that no message is returned.
    let (audit, events) = (fixture.name("audit"), fixture.name("events"));
    let options = QueueDeclareOptions::durable();
    let declared =
        fixture
            .bare
            .queue_declare(audit.as_str().into(), options, FieldTable::default());
    declared.await.expect("declared");
    let bound = fixture.bare.queue_bind(
        audit.as_str().into(),
        events.as_str().into(),
        "#".into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bound.await.expect("bound");
    unbind(&fixture).await;
    until("a message by the binding", || async {
        fixture
            .publish(&binding, "order.created")
            .await
            .expect("taken");
        let wait = Duration::from_millis(200);
        !try_lease(&fixture.queue, "one", wait)
            .await
            .expect("lease")
            .is_empty()
    })
    .await;
}

async fn a_missing_queue_leaves_deliveries_of_others_alone() {
    let fixture = fixture().await;
    fixture.send("held").await.expect("taken");
    let held = lease(&fixture.queue).await;
    let other = QueueName::new("other").expect("a valid name");
    let settings = Settings::default();
    fixture
        .queue
        .declare(&other, &settings)
        .await
        .expect("declared");
    fixture.delete("other").await;
    // Fetching from it ends a channel of the broker.
    let request = LeaseRequest {
        queue: other,
        consumer: ConsumerId::new("two").expect("a valid name"),
        max: 1,
        in_flight: 1,
        lease: Duration::from_secs(600),
        wait: Duration::ZERO,
    };
    drop(fixture.queue.lease(request).await);
    settle(&fixture.queue, &held[0], Disposition::Ack).await;
    assert!(
        try_lease(&fixture.queue, "one", Duration::from_millis(500))
            .await
            .expect("lease")
            .is_empty()
    );
}

async fn a_returned_message_is_distinguished_from_its_neighbours() {
    let fixture = fixture().await;
    let binding = binding();
    fixture.routes().bind(&binding).await.expect("bound");
    let exchange = &binding.exchange;
    for round in 0..20 {
        let publications: Vec<Publication> = (0..200)
            .map(|number| Publication {
                routing_key: if number % 7 == 3 {
                    "nowhere"
                } else {
                    "order.created"
                }
                .to_owned(),
                message: NewMessage::new(format!("{round}-{number}")),
            })
            .collect();
        let outcomes = fixture
            .routes()
            .publish(exchange, publications)
            .await
            .expect("sent");
        let refused: Vec<usize> = outcomes
            .iter()
            .enumerate()
            .filter(|(_, outcome)| outcome.is_err())
            .map(|(at, _)| at)
            .collect();
        let expected: Vec<usize> = (0..200).filter(|number| number % 7 == 3).collect();
        assert_eq!(refused, expected, "round {round}");
    }
}

async fn many_large_batches_at_once_are_taken() {
    let fixture = fixture().await;
    let batches = (0..8).map(|_| {
        let batch = (0..1_000).map(|_| NewMessage::new("x")).collect();
        let queue = Arc::clone(&fixture.queue);
        tokio::spawn(async move { queue.enqueue(&messages(), batch).await })
    });
    let batches: Vec<_> = batches.collect();
    for batch in batches {
        let outcomes = tokio::time::timeout(Duration::from_secs(60), batch).await;
        let outcomes = outcomes.expect("an answer").expect("joined").expect("sent");
        assert!(outcomes.iter().all(Result::is_ok));
    }
}

async fn a_user_without_configure_uses_existing_queues() {
    let fixture = fixture().await;
    let binding = binding();
    fixture.routes().bind(&binding).await.expect("bound");
    let user = fixture.prefix.trim_end_matches(':').to_owned();
    let server = rabbitmq::shared();
    server.control(&["add_user", &user, "secret"]);
    server.control(&["set_permissions", &user, "^$", ".*", ".*"]);
    let (port, prefix) = (server.port(), &fixture.prefix);
    let limited = open(&format!(
        "amqp://{user}:secret@127.0.0.1:{port}?prefix={prefix}"
    ))
    .await;
    let queue = queue_of(&limited);
    let settings = Settings::default();
    queue
        .declare(&messages(), &settings)
        .await
        .expect("it is there");
    let routes = limited.require_routes("the test").expect("routes");
    routes.bind(&binding).await.expect("bound");
    let sent = queue.enqueue(&messages(), vec![NewMessage::new("x")]).await;
    sent.expect("sent").remove(0).expect("taken");
    let held = lease(&queue).await;
    settle(&queue, &held[0], Disposition::Ack).await;
    limited.lifecycle.health().await.expect("well");
    let absent = QueueName::new("absent").expect("a valid name");
    let refused = queue
        .declare(&absent, &settings)
        .await
        .expect_err("not there");
    assert!(
        refused.chain().contains("ACCESS_REFUSED"),
        "{}",
        refused.chain()
    );
}

async fn the_age_of_a_delayed_message_is_not_known() {
    let fixture = fixture().await;
    fixture.send("x").await.expect("taken");
    let held = lease(&fixture.queue).await;
    let retry = Disposition::Retry {
        after: Duration::from_secs(60),
        error: "no".to_owned(),
    };
    settle(&fixture.queue, &held[0], retry).await;
    until("the delayed message", || async {
        let stats = fixture.queue.stats(&messages()).await.expect("counted");
        let ages = (stats.oldest_ready_age, stats.oldest_leased_age);
        assert_eq!((ages, stats.oldest_delayed_age), ((None, None), None));
        stats.delayed == 1
    })
    .await;
}

async fn messages_without_a_consumer_have_an_age() {
    let fixture = fixture().await;
    fixture.send("x").await.expect("taken");
    let age = || async {
        let stats = fixture.queue.stats(&messages()).await.expect("counted");
        stats.oldest_age.unwrap_or_default()
    };
    age().await;
    until("an age", || async {
        age().await > Duration::from_millis(300)
    })
    .await;
    let held = lease(&fixture.queue).await;
    settle(&fixture.queue, &held[0], Disposition::Ack).await;
    assert_eq!(age().await, Duration::ZERO);
}
