//! The order pipeline on two brokers that are not one cluster, as the reference system's Compose file starts them, with
//! a gateway that is not ours: it declares the exchange alone, and messages without a binding are lost.

use std::time::Duration;

use lapin::ExchangeKind;
use towpath_testkit::servers::{rabbitmq, redis};

use crate::orders_rabbitmq::Bare;
use crate::process::{World, able, wait_until};

const SOON: Duration = Duration::from_secs(60);

/// Publishes orders of one piece each, as the reference gateway does: without confirms.
fn publish(bare: Bare, name: &str, count: usize) {
    for number in 0..count {
        let text = format!(r#"{{"id":"{name}-{number}","sku":"a","qty":1}}"#);
        bare.publish("orders.direct", "", text.as_bytes());
    }
    bare.close();
}

/// Waits until both queues of a broker are bound.
fn wait_bound(server: &rabbitmq::Server) {
    wait_until("the bindings", SOON, || {
        let bindings = server.control(&["list_bindings", "source_name", "destination_name"]);
        let has = |exchange: &str, queue: &str| {
            let words = |line: &str| {
                let mut words = line.split_whitespace();
                words.next() == Some(exchange) && words.next() == Some(queue)
            };
            bindings.lines().any(words)
        };
        has("orders.direct", "orders.queue") && has("orders.topic", "notifier.queue")
    });
}

fn messages(server: &rabbitmq::Server, queue: &str) -> Option<u64> {
    let counts = server.control(&["list_queues", "name", "messages"]);
    let mut lines = counts.lines().map(str::split_whitespace);
    let mut found = lines.find(|words| words.clone().next() == Some(queue))?;
    found.nth(1)?.parse().ok()
}

#[test]
fn orders_continue_over_two_brokers_that_are_not_one_cluster() {
    let there = able("rabbitmq", rabbitmq::missing().is_none());
    if !there || !able("redis", redis::missing().is_none()) {
        return;
    }
    let (mut one, mut two) = std::thread::scope(|scope| {
        let one = scope.spawn(rabbitmq::Server::start);
        let two = rabbitmq::Server::start();
        (one.join().unwrap(), two)
    });
    let keys = redis::Server::start(redis::DURABLE);
    let key = |words: &[&str]| keys.command(words).trim().to_owned();
    key(&["SET", "inventory:a", "100"]);
    let notified = |name: &str, count: usize| {
        wait_until(&format!("{name} to be notified"), SOON, || {
            (0..count).all(|number| {
                let key_of = format!("notifications:{name}-{number}");
                key(&["HGET", &key_of, "status"]).ends_with("sent")
            })
        });
    };

    // Orders that were not consumed from the first broker before it stopped.
    {
        let bare = Bare::at(&one.url());
        bare.declare("orders.direct", ExchangeKind::Direct, "orders.queue", "");
        publish(bare, "left", 10);
        wait_until("the queue to have them", SOON, || {
            messages(&one, "orders.queue") == Some(10)
        });
    }
    one.stop();
    let mut world = World::new();
    world.set("RABBITMQ_URLS", format!("{},{}", one.url(), two.url()));
    world.set("REDIS_ADDR", format!("127.0.0.1:{}", keys.port()));
    let running = world.spawn(&["run", "processor,notifier"]);
    running.wait_ready(&world);
    wait_bound(&two);
    publish(Bare::at(&two.url()), "second", 10);
    notified("second", 10);

    // It comes back: its waiting messages are found, reported, and moved on request.
    one.restart();
    wait_until("the ten to be found", SOON, || {
        // A broker that starts again may not answer for a moment.
        world.json_of(&["queue", "show", "orders.queue"])["stranded"] == 10
    });
    wait_until("the balance to have them", SOON, || {
        world.json_of(&["orders", "check"])["stranded"] == 10
    });
    wait_until("health to name them", SOON, || {
        let ready = world.admin_client().get("/readyz?verbose").text();
        ready.contains("towpath queue collect orders.queue")
    });
    assert_eq!(
        world.ok(&["queue", "collect", "orders.queue"]),
        "10 moved\n"
    );
    notified("left", 10);
    wait_until("none to be left there", SOON, || {
        world.json_of(&["queue", "show", "orders.queue"])["stranded"] == 0
    });
    assert!(key(&["GET", "inventory:a"]).ends_with("80"));

    // And back again: the first one has bindings by then, also when the order of the list says so.
    two.kill();
    wait_bound(&one);
    publish(Bare::at(&one.url()), "third", 10);
    notified("third", 10);
    assert!(key(&["GET", "inventory:a"]).ends_with("70"));
    running.stop();
}
