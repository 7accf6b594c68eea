//! The order pipeline on RabbitMQ and Redis, in place of the reference system's processes and beside them.

use std::time::Duration;

use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicPublishOptions, ExchangeDeclareOptions,
    QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use towpath_testkit::servers::{rabbitmq, redis};

use crate::orders::{order, set_stock, show, stock};
use crate::process::{Running, World, able, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Both servers, and a virtual host of its own for the test.
pub(crate) struct Fixture {
    pub(crate) host: String,
    broker: String,
    keys: redis::Server,
}

impl Fixture {
    pub(crate) fn new() -> Option<Self> {
        let there = able("rabbitmq", rabbitmq::missing().is_none());
        if !there || !able("redis", redis::missing().is_none()) {
            return None;
        }
        let host = format!("h{}", uuid::Uuid::now_v7().simple());
        let server = rabbitmq::shared();
        server.control(&["add_vhost", &host]);
        server.control(&["set_permissions", "-p", &host, "guest", ".*", ".*", ".*"]);
        Some(Self {
            broker: format!("{}/{host}", server.url()),
            host,
            keys: redis::Server::start(redis::DURABLE),
        })
    }

    /// The URL of its virtual host.
    pub(crate) fn url(&self) -> &str {
        &self.broker
    }

    /// A process with the variables of the reference system.
    pub(crate) fn world(&self) -> World {
        let mut world = World::new();
        // The second node does not exist: only the list matters.
        world.set(
            "RABBITMQ_URLS",
            format!("amqp://127.0.0.1:1,{}", self.broker),
        );
        world.set("REDIS_ADDR", format!("127.0.0.1:{}", self.keys.port()));
        world.set("TOWPATH_ORDERS__RETRY__FIRST", "50ms");
        world.set("TOWPATH_ORDERS__RETRY__MAX", "200ms");
        world
    }

    pub(crate) fn start(&self, roles: &str) -> (World, Running) {
        let world = self.world();
        let running = world.spawn(&["run", roles]);
        running.wait_ready(&world);
        (world, running)
    }

    fn command(&self, words: &[&str]) -> String {
        self.keys.command(words).trim().to_owned()
    }
}

/// A client as small as the contract.
pub(crate) struct Bare {
    runtime: Runtime,
    channel: Channel,
    connection: Connection,
}

impl Bare {
    pub(crate) fn new(fixture: &Fixture) -> Self {
        Self::at(&fixture.broker)
    }

    /// Of a broker by its URL.
    pub(crate) fn at(broker: &str) -> Self {
        let runtime = Runtime::new().unwrap();
        let (connection, channel) = runtime.block_on(async {
            let properties = ConnectionProperties::default();
            let connection = Connection::connect(broker, properties).await.unwrap();
            let channel = connection.create_channel().await.unwrap();
            (connection, channel)
        });
        Self {
            runtime,
            channel,
            connection,
        }
    }

    /// Ends the connection in order: the broker answers once it has handled earlier publishes. It may drop
    /// published messages that are not confirmed when a connection just breaks off.
    pub(crate) fn close(self) {
        let close = self.connection.close(200, "done".into());
        self.runtime.block_on(close).unwrap();
    }

    /// Declarations of the reference processor and notifier: classic queues without arguments.
    pub(crate) fn declare(&self, exchange: &str, kind: ExchangeKind, queue: &str, key: &str) {
        self.runtime.block_on(async {
            let durable = ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            let none = FieldTable::default;
            let channel = &self.channel;
            channel
                .exchange_declare(exchange.into(), kind, durable, none())
                .await
                .unwrap();
            let options = QueueDeclareOptions::durable();
            channel
                .queue_declare(queue.into(), options, none())
                .await
                .unwrap();
            let options = QueueBindOptions::default();
            let bound =
                channel.queue_bind(queue.into(), exchange.into(), key.into(), options, none());
            bound.await.unwrap();
        });
    }

    /// A queue that its broker forgets when it stops.
    pub(crate) fn declare_transient(&self, queue: &str) {
        let options = QueueDeclareOptions::default();
        let declare = self
            .channel
            .queue_declare(queue.into(), options, FieldTable::default());
        self.runtime.block_on(declare).unwrap();
    }

    pub(crate) fn publish(&self, exchange: &str, key: &str, body: &[u8]) {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let publish =
            self.channel
                .basic_publish(exchange.into(), key.into(), options, body, properties);
        self.runtime.block_on(publish).unwrap();
    }

    /// Takes one message and acks it.
    pub(crate) fn take(&self, queue: &str) -> Option<Value> {
        self.runtime.block_on(async {
            let got = self
                .channel
                .basic_get(queue.into(), BasicGetOptions::default())
                .await;
            let delivery = got.unwrap()?.delivery;
            delivery.ack(BasicAckOptions::default()).await.unwrap();
            Some(serde_json::from_slice(&delivery.data).unwrap())
        })
    }

    /// Waits for one, takes and acks it.
    pub(crate) fn wait_for(&self, queue: &str) -> Value {
        let mut found = None;
        wait_until(&format!("a message in {queue}"), SOON, || {
            found = self.take(queue);
            found.is_some()
        });
        found.unwrap()
    }
}

pub(crate) fn wait_notified(world: &World, id: &str) -> Value {
    wait_until(&format!("{id} to be notified"), SOON, || {
        show(world, id)["notified"] == true
    });
    show(world, id)
}

#[test]
fn the_walk_through_of_the_reference_system_works_on_its_own_brokers() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (world, _running) = fixture.start("gateway,processor,notifier,dashboard");
    assert_eq!(
        fixture.command(&["SET", "inventory:mag-safe-phone-case", "100"]),
        "+OK"
    );
    let mut client = world.client();
    let answer = order(&mut client, "order123", "mag-safe-phone-case", 2);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (202, "Order received: order123")
    );
    let answer = order(&mut client, "order123", "mag-safe-phone-case", 2);
    assert_eq!(
        (answer.status, answer.text().as_str()),
        (409, "Duplicate order\n")
    );
    wait_notified(&world, "order123");
    let got = |key: &str| fixture.command(&["GET", key]);
    assert!(got("inventory:mag-safe-phone-case").ends_with("98"));
    assert!(got("orders.processed.count").ends_with('1'));
    assert!(
        fixture
            .command(&["HGET", "notifications:order123", "status"])
            .ends_with("sent")
    );
    let board = crate::client::Client::new(world.dashboard)
        .get("/metrics?sku=mag-safe-phone-case&order_id=order123")
        .json();
    assert_eq!(board["inventory_level"], 98, "{board}");
    assert_eq!(board["notification_status"], "sent", "{board}");
    assert_eq!(world.json(&["orders", "check"])["balanced"], true);
}

#[test]
fn a_bare_gateway_takes_the_place_of_ours() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let bare = Bare::new(&fixture);
    // It may be there first, as the reference processor is: queues without arguments.
    bare.declare("orders.direct", ExchangeKind::Direct, "orders.queue", "");
    bare.declare(
        "orders.topic",
        ExchangeKind::Topic,
        "notifier.queue",
        "order.created",
    );
    fixture.command(&["SET", "inventory:a", "10"]);
    bare.publish("orders.direct", "", br#"{"id":"early","sku":"a","qty":1}"#);
    let (_world, _running) = fixture.start("processor,notifier");
    bare.publish("orders.direct", "", br#"{"id":"late","sku":"a","qty":2}"#);
    for id in ["early", "late"] {
        wait_until(&format!("{id} to be notified"), SOON, || {
            let status = fixture.command(&["HGET", &format!("notifications:{id}"), "status"]);
            status.ends_with("sent")
        });
    }
    assert!(fixture.command(&["GET", "inventory:a"]).ends_with('7'));
    assert!(
        fixture
            .command(&["GET", "orders.processed.count"])
            .ends_with('2')
    );
}

#[test]
fn a_bare_processor_and_a_bare_notifier_take_the_place_of_ours() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    // Accepted before any processor ever ran.
    let (world, running) = fixture.start("gateway");
    fixture.command(&["SET", "inventory:a", "10"]);
    assert_eq!(order(&mut world.client(), "one", "a", 2).status, 202);
    assert_eq!(order(&mut world.client(), "two", "a", 3).status, 202);
    let bare = Bare::new(&fixture);
    let got = bare.wait_for("orders.queue");
    assert_eq!(got, json!({"id": "one", "sku": "a", "qty": 2}));
    fixture.command(&["DECRBY", "inventory:a", "2"]);
    fixture.command(&["INCR", "orders.processed.count"]);
    bare.publish("orders.topic", "order.created", got.to_string().as_bytes());
    // The other one is for ours, whose event is for a bare notifier.
    let (processing, processor) = fixture.start("processor");
    wait_until("the second order", SOON, || {
        show(&world, "two")["state"] == "processed"
    });
    let notified = [
        bare.wait_for("notifier.queue"),
        bare.wait_for("notifier.queue"),
    ];
    assert_eq!(notified[0]["id"], "one");
    assert_eq!(notified[1], json!({"id": "two", "sku": "a", "qty": 3}));
    assert_eq!(stock(&world, "a"), 5);
    drop((running, processing, processor));
}

/// A processor that keeps no records, as the reference's: takes, counts, publishes the event, acks.
fn process_bare(fixture: &Fixture, bare: &Bare, count: usize) {
    for _ in 0..count {
        let got = bare.wait_for("orders.queue");
        fixture.command(&["DECRBY", "inventory:a", "1"]);
        fixture.command(&["INCR", "orders.processed.count"]);
        bare.publish("orders.topic", "order.created", got.to_string().as_bytes());
    }
}

#[test]
fn the_books_are_right_or_not_offered_beside_a_bare_processor() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (world, running) = fixture.start("gateway,notifier");
    fixture.command(&["SET", "inventory:a", "1000"]);
    let bare = Bare::new(&fixture);
    // Processed before its gateway confirms it, if that is quick enough.
    std::thread::scope(|scope| {
        scope.spawn(|| process_bare(&fixture, &bare, 100));
        for number in 0..100 {
            let answer = order(&mut world.client(), &format!("both-{number}"), "a", 1);
            assert_eq!(answer.status, 202);
        }
    });
    for number in 0..100 {
        wait_notified(&world, &format!("both-{number}"));
    }
    let balance = world.json(&["orders", "check"]);
    assert_eq!(balance["balanced"], true, "{balance}");
    assert_eq!(
        (&balance["accepted"], &balance["processed"]),
        (&100.into(), &100.into())
    );
    drop((running, world));
    // Without a notifier of ours no record has the outcome of an order.
    let (world, _running) = fixture.start("gateway");
    for number in 0..5 {
        let answer = order(&mut world.client(), &format!("gateway-{number}"), "a", 1);
        assert_eq!(answer.status, 202);
    }
    process_bare(&fixture, &bare, 5);
    let said = world.ok(&["orders", "check"]);
    assert!(said.contains("not checked: 5 orders"), "{said}");
}

#[test]
fn a_poison_order_is_a_dead_letter_that_can_be_put_back() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (world, _running) = fixture.start("gateway,processor,notifier");
    let bare = Bare::new(&fixture);
    bare.publish("orders.direct", "", b"no order");
    let letters = || world.json(&["dlq", "ls", "orders.queue"]).to_string();
    wait_until("the dead letter", SOON, || {
        letters().contains("\"attempts\":1")
    });
    assert!(letters().contains("JSON"), "{}", letters());
    world.ok(&["dlq", "redrive", "orders.queue", "--all"]);
    wait_until("it to be dead again", SOON, || {
        letters().contains("\"attempts\":1")
    });
    // The queue continues.
    set_stock(&world, "a", 5);
    assert_eq!(order(&mut world.client(), "good", "a", 1).status, 202);
    wait_notified(&world, "good");
}

#[test]
fn of_many_posts_of_one_id_one_is_accepted_and_has_its_effect() {
    let Some(fixture) = Fixture::new() else {
        return;
    };
    let (world, _running) = fixture.start("gateway,processor,notifier");
    set_stock(&world, "a", 100);
    let posts: Vec<_> = (0..100)
        .map(|_| {
            let mut client = world.client();
            std::thread::spawn(move || order(&mut client, "same", "a", 3).status)
        })
        .collect();
    let statuses: Vec<u16> = posts.into_iter().map(|post| post.join().unwrap()).collect();
    let accepted = statuses.iter().filter(|status| **status == 202).count();
    assert_eq!(accepted, 1, "{statuses:?}");
    assert!(
        statuses.iter().all(|status| [202, 409].contains(status)),
        "{statuses:?}"
    );
    wait_notified(&world, "same");
    assert_eq!(stock(&world, "a"), 97);
}
