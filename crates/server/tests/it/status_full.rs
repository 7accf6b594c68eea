//! Servers that are full: one problem, and exactly the roles that cannot work then are not ready.

use towpath_testkit::servers::{rabbitmq, redis};

use crate::orders::{order, set_stock};
use crate::process::{World, able};
use crate::status_matrix::{Row, walk};

#[test]
fn a_full_redis_rejects_writes_and_leases() {
    if !able("redis", redis::missing().is_none()) {
        return;
    }
    let server = redis::Server::start(&["--appendonly", "yes", "--appendfsync", "always"]);
    let mut world = World::new();
    let input = world.folder.join("input.txt");
    std::fs::write(&input, "").unwrap();
    world
        .set("TOWPATH_BACKENDS__DEFAULT", server.url())
        .set("TOWPATH_LINES__INPUT", input.display());
    let _running = world.up();
    let limit = |bytes: &str| {
        let answer = server.command(&["CONFIG", "SET", "maxmemory", bytes]);
        assert_eq!(answer.trim(), "+OK");
    };
    let rows = vec![Row {
        what: "memory of redis",
        set: Box::new(|is_broken| {
            limit(if is_broken { "1mb" } else { "0" });
            if is_broken {
                let refused = world.client().post("/enqueue", &[], b"one");
                assert_eq!(refused.status, 429, "{}", refused.text());
                assert_eq!(refused.headers["retry-after"], "1");
                let query = "/api/bucket/consume?key=a&tokens=1";
                let refused = world.client().post(query, &[], b"");
                assert_eq!(refused.status, 503, "{}", refused.text());
                assert_eq!(refused.headers["retry-after"], "1");
            }
        }),
        problem: ("store_refusing", server.url()),
        cause: "is full",
        // A lease of a Redis is a write as well.
        unready: &[
            "accounts.api",
            "accounts.limits",
            "accounts.relay",
            "fleet.callbacks",
            "fleet.worker",
            "ingest.api",
            "ingest.worker",
            "lines.reader",
            "lines.writer",
            "orders.dashboard",
            "orders.gateway",
            "orders.notifier",
            "orders.notifier.rejected",
            "orders.processor",
        ],
    }];
    walk(&world, rows);
}

#[test]
fn a_rabbitmq_with_an_alarm_rejects_publishes_alone() {
    if !able("rabbitmq", rabbitmq::missing().is_none()) {
        return;
    }
    // Its own: an alarm concerns every client.
    let server = rabbitmq::Server::start();
    let mut world = World::new();
    for key in ["INGEST", "ORDERS"] {
        world.set(&format!("TOWPATH_BACKENDS__{key}"), server.url());
    }
    world.set("TOWPATH_BACKENDS__ORDERS_KV", "embedded:./keys");
    let _running = world.up();
    set_stock(&world, "case", 5);
    let node = server.url().split_once('@').unwrap().1.to_owned();
    let alarm = |setting: &'static str, on: &'static str, off: &'static str| {
        let (server, world) = (&server, &world);
        Box::new(move |is_broken| {
            server.control(&[setting, if is_broken { on } else { off }]);
            if is_broken {
                // The broker blocks a connection when it publishes: the first request waits for its timeout.
                let refused = world.client().post("/enqueue", &[], b"one");
                assert_eq!(refused.status, 503, "{}", refused.text());
                let refused = world.client().post("/enqueue", &[], b"one");
                assert_eq!(refused.status, 429, "{}", refused.text());
                let refused = order(&mut world.client(), "one", "case", 1);
                assert_eq!(refused.status, 429, "{}", refused.text());
                assert!(refused.headers.contains_key("retry-after"));
            }
        })
    };
    for (setting, on, off, cause) in [
        (
            "set_vm_memory_high_watermark",
            "0.000001",
            "0.9",
            "memory is low",
        ),
        ("set_disk_free_limit", "9999GB", "1MB", "disk is low"),
    ] {
        let row = Row {
            what: setting,
            set: alarm(setting, on, off),
            problem: ("store_refusing", format!("amqp://{node}")),
            cause,
            // Queued messages are delivered all the same.
            unready: &["ingest.api", "orders.gateway"],
        };
        walk(&world, vec![row]);
    }
}
