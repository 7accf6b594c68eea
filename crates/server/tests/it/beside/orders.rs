//! Gateway, processor and notifier on RabbitMQ and Redis.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use towpath_testkit::servers::{rabbitmq, redis};

use super::{
    Half, IDLE, Keys, Program, SOON, Side, Stop, every_pairing, insist, pause, rounds, start,
};
use crate::process::{World, able, wait_until};
use crate::web::Reply;

/// A connection to the first broker of a list that answers.
struct Broker {
    runtime: Runtime,
    connection: Connection,
    channel: Channel,
}

impl Broker {
    /// Goes through the list until a broker answers or the program is stopped.
    fn connect(urls: &[String], stop: &Stop) -> Option<Self> {
        let runtime = Runtime::new().unwrap();
        loop {
            for url in urls {
                let opened = runtime.block_on(async {
                    let connection =
                        Connection::connect(url, ConnectionProperties::default()).await?;
                    let channel = connection.create_channel().await?;
                    Ok::<_, lapin::Error>((connection, channel))
                });
                if let Ok((connection, channel)) = opened {
                    return Some(Self {
                        runtime,
                        connection,
                        channel,
                    });
                }
            }
            if stop.requested() {
                return None;
            }
            pause(1);
        }
    }

    /// Durable and without arguments: a queue that was declared with others ends the program.
    fn declare(&self, exchange: &str, kind: ExchangeKind, queue: Option<(&str, &str)>) {
        let channel = &self.channel;
        let declared = self.runtime.block_on(async {
            let options = ExchangeDeclareOptions {
                durable: true,
                ..ExchangeDeclareOptions::default()
            };
            let none = FieldTable::default;
            channel
                .exchange_declare(exchange.into(), kind, options, none())
                .await?;
            if let Some((queue, key)) = queue {
                channel
                    .queue_declare(queue.into(), QueueDeclareOptions::durable(), none())
                    .await?;
                let options = QueueBindOptions::default();
                channel
                    .queue_bind(queue.into(), exchange.into(), key.into(), options, none())
                    .await?;
            }
            Ok::<_, lapin::Error>(())
        });
        if let Err(error) = declared {
            // A broker that stops meanwhile is another matter.
            assert!(!error.to_string().contains("PRECONDITION"), "{error}");
        }
    }

    /// Without confirms.
    async fn publish(&self, exchange: &str, key: &str, body: &[u8]) -> lapin::Result<()> {
        let properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(2);
        let options = BasicPublishOptions::default();
        let publish =
            self.channel
                .basic_publish(exchange.into(), key.into(), options, body, properties);
        publish.await.map(drop)
    }

    /// Handles one message after another until the connection ends or the program is stopped.
    async fn consume(
        &self,
        queue: &str,
        stop: &Stop,
        handle: &dyn Fn(&Value) -> Option<Value>,
    ) -> lapin::Result<()> {
        self.channel
            .basic_qos(10, BasicQosOptions::default())
            .await?;
        let options = BasicConsumeOptions::default();
        let consume =
            self.channel
                .basic_consume(queue.into(), "".into(), options, FieldTable::default());
        let mut consumer = consume.await?;
        while !stop.requested() {
            let Ok(next) = tokio::time::timeout(10 * IDLE, consumer.next()).await else {
                continue;
            };
            let Some(delivery) = next.transpose()? else {
                return Ok(());
            };
            if let Some(event) = handle(&serde_json::from_slice(&delivery.data).unwrap()) {
                self.publish(
                    "orders.topic",
                    "order.created",
                    event.to_string().as_bytes(),
                )
                .await?;
            }
            delivery.ack(BasicAckOptions::default()).await?;
        }
        Ok(())
    }
}

impl Drop for Broker {
    /// In order: a broker may drop unconfirmed publishes of a connection that breaks off.
    fn drop(&mut self) {
        let close = self.connection.close(200, "done".into());
        self.runtime.block_on(close).ok();
    }
}

/// A field, whatever the case of its name.
fn field<'a>(value: &'a Value, name: &str) -> &'a Value {
    let mut fields = value.as_object().unwrap().iter();
    let found = fields.find(|(other, _)| other.eq_ignore_ascii_case(name));
    found.map_or(&Value::Null, |(_, value)| value)
}

fn gateway(at: SocketAddr, urls: Vec<String>, redis: u16) -> Program {
    let connect = move || {
        let broker = Broker::connect(&urls, &Stop::default()).unwrap();
        broker.declare("orders.direct", ExchangeKind::Direct, None);
        broker
    };
    let broker = Mutex::new(connect());
    Program::serve(at, move |asked| {
        let order: Value = serde_json::from_slice(&asked.body).unwrap();
        let (id, mut keys) = (field(&order, "id").as_str().unwrap(), Keys::new(redis));
        let key = format!("idemp:{id}");
        if keys.ask(&["SET", &key, "1", "NX", "EX", "300"]) == super::Value::Nothing {
            return Reply::text(409, "Duplicate order");
        }
        // The last version's names: one of them is not in lower case, another is additional.
        let email = format!("{id}@example.org");
        let message = json!({ "id": id, "Email": email, "sku": field(&order, "sku"), "qty": field(&order, "qty"),
            "user_email": email });
        let (text, mut broker) = (message.to_string(), broker.lock().unwrap());
        for _ in 0..5 {
            let publish = broker.publish("orders.direct", "", text.as_bytes());
            if broker.runtime.block_on(publish).is_ok() {
                return Reply::text(202, &format!("Order received: {id}"));
            }
            *broker = connect();
        }
        keys.ask(&["DEL", &key]);
        Reply::text(500, "Failed to publish order")
    })
}

/// A program that consumes a queue, on the broker that it reaches; started once it has declared the queue.
fn consumer(
    urls: Vec<String>,
    declare: fn(&Broker),
    queue: &'static str,
    handle: impl Fn(&Value) -> Option<Value> + Send + 'static,
) -> Program {
    let (declared, ready) = mpsc::channel();
    let program = Program::start(move |stop| {
        while let Some(broker) = Broker::connect(&urls, stop) {
            declare(&broker);
            declared.send(()).ok();
            let consume = broker.consume(queue, stop, &handle);
            // What failed is tried again on the next broker.
            broker.runtime.block_on(consume).ok();
            if stop.requested() {
                return;
            }
        }
    });
    ready.recv_timeout(SOON).unwrap();
    program
}

fn processor(urls: Vec<String>, redis: u16) -> Program {
    let declare = |broker: &Broker| {
        broker.declare(
            "orders.direct",
            ExchangeKind::Direct,
            Some(("orders.queue", "")),
        );
        broker.declare("orders.topic", ExchangeKind::Topic, None);
    };
    consumer(urls, declare, "orders.queue", move |order| {
        let mut keys = Keys::new(redis);
        let stock = format!("inventory:{}", field(order, "sku").as_str().unwrap());
        keys.ask(&["DECRBY", &stock, &field(order, "qty").to_string()]);
        keys.ask(&["INCR", "orders.processed.count"]);
        let event =
            ["id", "email", "sku", "qty"].map(|name| (name.to_owned(), field(order, name).clone()));
        Some(Value::Object(event.into_iter().collect()))
    })
}

fn notifier(urls: Vec<String>, redis: u16) -> Program {
    let declare = |broker: &Broker| {
        broker.declare(
            "orders.topic",
            ExchangeKind::Topic,
            Some(("notifier.queue", "order.created")),
        );
    };
    consumer(urls, declare, "notifier.queue", move |order| {
        let (mut keys, id) = (Keys::new(redis), field(order, "id").as_str().unwrap());
        let claim = format!("notif:{id}");
        if keys.ask(&["SET", &claim, "1", "NX", "EX", "86400"]) != super::Value::Nothing {
            // Sending takes a second there.
            std::thread::sleep(Duration::from_millis(1));
            keys.ask(&["HSET", &format!("notifications:{id}"), "status", "sent"]);
        }
        None
    })
}

/// Servers, and the worlds of our three processes.
pub(super) struct Setup {
    urls: Vec<String>,
    redis: redis::Server,
    at: SocketAddr,
    worlds: [World; 3],
}

impl Setup {
    pub(super) fn new(urls: Vec<String>) -> Self {
        let redis = redis::Server::start(redis::DURABLE);
        let mut worlds = [(); 3].map(|()| World::new());
        for world in &mut worlds {
            world.set("RABBITMQ_URLS", urls.join(","));
            world.set("REDIS_ADDR", format!("127.0.0.1:{}", redis.port()));
        }
        let place = Self {
            urls,
            redis,
            at: worlds[0].http,
            worlds,
        };
        place.keys().ask(&["SET", "inventory:a", "1000000"]);
        place
    }

    fn keys(&self) -> Keys {
        Keys::new(self.redis.port())
    }

    pub(super) fn halves(&self) -> [Half<'_>; 3] {
        let redis = self.redis.port();
        [
            Half::new(
                "gateway",
                move || gateway(self.at, self.urls.clone(), redis),
                || start(&self.worlds[0], "orders.gateway"),
            ),
            Half::new(
                "processor",
                move || processor(self.urls.clone(), redis),
                || start(&self.worlds[1], "orders.processor"),
            ),
            Half::new(
                "notifier",
                move || notifier(self.urls.clone(), redis),
                || start(&self.worlds[2], "orders.notifier"),
            ),
        ]
    }

    /// Posts orders of one piece until it is stopped, and counts those that were accepted.
    pub(super) fn load(&self, accepted: &Arc<AtomicUsize>) -> Program {
        let (at, accepted) = (self.at, Arc::clone(accepted));
        Program::start(move |stop| {
            while !stop.requested() {
                let number = accepted.load(Ordering::SeqCst);
                let body =
                    json!({ "id": format!("order-{number}"), "sku": "a", "qty": 1 }).to_string();
                let mut repeated = false;
                loop {
                    let json = [("content-type", "application/json")];
                    let (answer, again) = insist(at, "POST /orders", &json, &body);
                    match answer.status {
                        202 => break,
                        // Accepted by a process that ended before it said so.
                        409 if repeated || again => break,
                        500 | 503 => repeated = true,
                        other => panic!("{other} {}", answer.text()),
                    }
                    pause(1);
                }
                accepted.store(number + 1, Ordering::SeqCst);
                pause(1);
            }
        })
    }

    pub(super) fn notified(&self, number: usize) -> bool {
        let key = format!("notifications:order-{number}");
        self.keys().ask(&["HGET", &key, "status"]) == super::Value::Text(b"sent".to_vec())
    }

    pub(super) fn number(&self, key: &str) -> usize {
        self.keys().ask(&["GET", key]).text().parse().unwrap()
    }
}

/// A new virtual host, and its URL.
pub(super) fn add_host(server: &rabbitmq::Server, host: &str) -> String {
    server.control(&["add_vhost", host]);
    server.control(&["set_permissions", "-p", host, "guest", ".*", ".*", ".*"]);
    format!("{}/{host}", server.url())
}

fn story(first: Side) {
    let there = able("rabbitmq", rabbitmq::missing().is_none());
    if !there || !able("redis", redis::missing().is_none()) {
        return;
    }
    let host = format!("h{}", uuid::Uuid::now_v7().simple());
    let url = add_host(&rabbitmq::shared(), &host);
    let place = Setup::new(vec![url.clone()]);
    let mut halves = place.halves();
    let accepted = Arc::new(AtomicUsize::new(0));
    let mut load = None;
    let mut audit = None;
    // The number of orders when a pairing began.
    let mut steps = Vec::new();
    every_pairing(&mut halves, first, rounds(), |pairing| {
        // Not before: a gateway of the reference declares no queue, and its orders are lost without one.
        load.get_or_insert_with(|| {
            let broker = Broker::connect(std::slice::from_ref(&url), &Stop::default()).unwrap();
            broker.declare(
                "orders.topic",
                ExchangeKind::Topic,
                Some(("audit", "order.created")),
            );
            audit = Some(broker);
            place.load(&accepted)
        });
        steps.push((accepted.load(Ordering::SeqCst), pairing.to_owned()));
        super::wait_more(pairing, &accepted, 20);
        let last = accepted.load(Ordering::SeqCst) - 1;
        wait_until(pairing, SOON, || place.notified(last));
    });
    load.unwrap().stop();
    let accepted = accepted.load(Ordering::SeqCst);
    let missing = || (0..accepted).filter(|number| !place.notified(*number));
    let began = Instant::now();
    while let Some(first) = missing().next() {
        let all = || missing().collect::<Vec<_>>();
        let step = steps.iter().rev().find(|(from, _)| *from <= first);
        assert!(began.elapsed() < SOON, "{:?} since {step:?}", all());
        super::pause(1);
    }
    assert_eq!(place.number("orders.processed.count"), accepted);
    assert_eq!(1_000_000 - place.number("inventory:a"), accepted);
    let audit = audit.unwrap();
    let options = QueueDeclareOptions::durable();
    let declare = audit
        .channel
        .queue_declare("audit".into(), options, FieldTable::default());
    let events = audit.runtime.block_on(declare).unwrap().message_count();
    assert_eq!(events as usize, accepted, "one event an order");
}

#[test]
fn chaos_orders_continue_in_every_pairing_when_the_reference_declares_first() {
    story(Side::Reference);
}

#[test]
fn chaos_orders_continue_in_every_pairing_when_towpath_declares_first() {
    story(Side::Ours);
}
