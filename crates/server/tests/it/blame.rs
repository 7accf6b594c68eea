//! The culprit of an error: a refusal of a store is never the client's, and health reports it until it is fixed.

use std::time::Duration;

use serde_json::json;
use towpath_testkit::servers::redis::{EPHEMERAL, Server, missing};

use crate::process::{Running, World, able, wait_until};

/// A way to break a Redis for a role, and to fix it.
type Fault<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);

const FAULTS: [Fault<'_>; 3] = [
    (
        "a command that is not permitted",
        &[
            "ACL", "SETUSER", "default", "-lpush", "-set", "-hset", "-incrby",
        ],
        &["ACL", "SETUSER", "default", "+@all"],
    ),
    (
        "a replica",
        &["REPLICAOF", "127.0.0.1", "1"],
        &["REPLICAOF", "NO", "ONE"],
    ),
    (
        "too few replicas",
        &["CONFIG", "SET", "min-replicas-to-write", "1"],
        &["CONFIG", "SET", "min-replicas-to-write", "0"],
    ),
];

fn on_redis(server: &Server, role: &str) -> (World, Running) {
    let mut world = World::new();
    world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
    let running = world.spawn(&["run", role]);
    running.wait_ready(&world);
    (world, running)
}

fn ready(world: &World) -> (u16, String) {
    let answer = world.admin_client().get("/readyz?verbose");
    (answer.status, answer.text())
}

#[test]
fn a_message_that_the_store_refuses_is_503_and_health_says_why() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let server = Server::start(EPHEMERAL);
    let (world, _running) = on_redis(&server, "ingest.api");
    let wrong_type = (
        "a key of another type",
        &["SET", "messages", "x"][..],
        &["DEL", "messages"][..],
    );
    for (name, broken, mended) in FAULTS.into_iter().chain([wrong_type]) {
        let mut client = world.client();
        assert_eq!(
            client.post("/enqueue", &[], b"before").status,
            200,
            "{name}"
        );
        server.command(&["DEL", "messages"]);
        server.command(broken);
        for (path, body) in [("/enqueue", &b"x"[..]), ("/enqueue/batch", b"\"x\"\n\"y\"")] {
            let answer = client.post(path, &[], body);
            assert_eq!(
                (answer.status, answer.text().as_str()),
                (503, "enqueue failed\n"),
                "{name} {path}"
            );
        }
        let health = client.get("/healthz");
        assert_eq!(health.status, 503, "{name}");
        assert!(health.text().starts_with("redis ping failed: "), "{name}");
        let (status, why) = ready(&world);
        assert_eq!(status, 503, "{name}: {why}");
        assert!(why.contains("[-]"), "{name}: {why}");
        server.command(mended);
        // Without another request.
        wait_until(name, Duration::from_secs(20), || {
            ready(&world).0 == 200 && client.get("/healthz").status == 200
        });
        assert_eq!(client.post("/enqueue", &[], b"after").status, 200, "{name}");
    }
}

#[test]
fn a_limit_that_the_store_refuses_to_decide_is_503() {
    if !able("redis", missing().is_none()) {
        return;
    }
    let server = Server::start(EPHEMERAL);
    let (world, _running) = on_redis(&server, "accounts.api");
    let consume = || {
        let path = "/api/bucket/consume?key=ann&tokens=1";
        world.client().post(path, &[], b"").status
    };
    assert_eq!(consume(), 200);
    let keys = server.command(&["KEYS", "*"]);
    let key = keys
        .split_whitespace()
        .find(|word| word.contains("ann"))
        .unwrap_or_else(|| panic!("{keys}"));
    server.command(&["DEL", key]);
    server.command(&["LPUSH", key, "x"]);
    assert_eq!(consume(), 503, "a key of another type");
    assert_eq!(world.client().get("/health/bucket").status, 503);
    assert_eq!(ready(&world).0, 503);
    // The client's own mistake stays one.
    let path = "/api/bucket/consume?key=ann&tokens=1000000";
    assert_eq!(world.client().post(path, &[], b"").status, 400);
    server.command(&["DEL", key]);
    assert_eq!(consume(), 200);
    assert_eq!(ready(&world).0, 200);
}

#[test]
fn an_order_that_the_store_refuses_is_503_and_stock_that_is_not_a_number_is_not_the_clients_fault()
{
    let world = World::new();
    let _running = world.up();
    world.ok(&["kv", "set", "inventory:case", "many"]);
    let mut client = world.client();
    let change = br#"{"delta": 3}"#;
    for (method, body) in [("GET", &b""[..]), ("PATCH", change)] {
        let answer = client.send(method, "/inventory/case", &[], body).unwrap();
        assert_eq!(answer.status, 503, "{method}: {}", answer.text());
    }
    let long = format!("/inventory/{}", "x".repeat(300));
    assert_eq!(client.get(&long).status, 404);
    let set = client
        .send("PUT", &long, &[], br#"{"quantity": 3}"#)
        .unwrap();
    assert_eq!(set.status, 400, "{}", set.text());
    let order = format!("/orders/{}", "x".repeat(300));
    assert_eq!(client.get(&order).status, 404);
}

#[test]
fn one_key_and_another_body_is_422_on_every_store_that_knows_keys() {
    let story = |world: &World, again: &dyn Fn()| {
        let mut client = world.client();
        let key = [("idempotency-key", "pay-1")];
        let first = client.post("/enqueue", &key, b"payment 1");
        assert_eq!(first.status, 200, "{}", first.text());
        let batch = [("idempotency-key", "batch-1")];
        let lines = b"\"one\"\n\"two\"\n";
        assert_eq!(client.post("/enqueue/batch", &batch, lines).status, 200);
        again();
        let mut client = world.client();
        let other = client.post("/enqueue", &key, b"payment 2");
        assert_eq!(other.status, 422, "{}", other.text());
        assert!(other.text().contains("Idempotency-Key"), "{}", other.text());
        let same = client.post("/enqueue", &key, b" payment 1\n");
        assert_eq!(same.status, 200);
        assert_eq!(same.headers["idempotency-replayed"], "true");
        assert_eq!(same.json()["id"], first.json()["id"]);
        assert_eq!(same.json()["message"], "payment 1");
        for body in [
            &b"\"one\"\n\"2\"\n"[..],
            b"\"1\"\n\"two\"\n",
            b"\"one\"\n\"two\"\n\"three\"\n",
        ] {
            let other = client.post("/enqueue/batch", &batch, body);
            assert_eq!(other.status, 422, "{}", other.text());
        }
        assert_eq!(client.post("/enqueue/batch", &batch, lines).status, 200);
        // No refused message is stored.
        assert_eq!(world.json(&["queue", "show", "messages"])["enqueued"], 3);
        let send = ["send", "messages", "other", "--idempotency-key", "pay-1"];
        let sent = world.run(&send);
        assert!(
            !sent.status.success(),
            "{}",
            String::from_utf8_lossy(&sent.stdout)
        );
    };
    let world = World::new();
    let running = std::cell::Cell::new(Some(world.spawn(&["run", "ingest.api"])));
    let wait = || {
        let now = running.take().unwrap();
        now.wait_ready(&world);
        running.set(Some(now));
    };
    wait();
    story(&world, &|| {
        running.take().unwrap().kill();
        running.set(Some(world.spawn(&["run", "ingest.api"])));
        wait();
    });
    if able("redis", missing().is_none()) {
        let server = Server::start(EPHEMERAL);
        let (world, _running) = on_redis(&server, "ingest.api");
        story(&world, &|| ());
    }
}

#[test]
fn a_task_key_belongs_to_one_callback() {
    let mut world = World::new();
    world.set("TOWPATH_FLEET__WORKER__ALLOW", "[\"127.0.0.0/8\"]");
    let running = world.spawn(&["run", "fleet.worker"]);
    running.wait_ready(&world);
    let mut hits = crate::client::Client::new(world.hits);
    let config = json!({"version": 1, "data": {"url": "http://127.0.0.1:9/"}}).to_string();
    assert_eq!(hits.post("/config", &[], config.as_bytes()).status, 200);
    let key = [("idempotency-key", "one")];
    let to = |path: &str| json!({"callback_url": format!("http://127.0.0.1:9/{path}")}).to_string();
    assert_eq!(hits.post("/hit", &key, to("a").as_bytes()).status, 202);
    assert_eq!(hits.post("/hit", &key, to("a").as_bytes()).status, 202);
    assert_eq!(hits.post("/hit", &key, to("b").as_bytes()).status, 422);
}
