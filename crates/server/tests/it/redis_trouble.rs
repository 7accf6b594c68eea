//! Redis that refuses, or that lost its data, under running processes: nothing is answered as done that was not done,
//! health reports it, and queues and routes are declared again.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use towpath_testkit::servers::redis::{EPHEMERAL, Server, missing};

use crate::orders::{order, set_stock};
use crate::process::{Running, World, able, wait_until};

const SOON: Duration = Duration::from_secs(30);

fn redis() -> Option<Server> {
    able("redis", missing().is_none()).then(|| Server::start(EPHEMERAL))
}

fn start(server: &Server, backend: &str, roles: &str, world: &mut World) -> Running {
    world.set(backend, format!("redis://127.0.0.1:{}", server.port()));
    let running = world.spawn(&["run", roles]);
    running.wait_ready(world);
    running
}

#[test]
fn a_message_that_a_redis_refused_is_stored_when_it_is_repeated() {
    let Some(server) = redis() else { return };
    let mut world = World::new();
    let running = start(
        &server,
        "TOWPATH_BACKENDS__INGEST",
        "ingest.api",
        &mut world,
    );
    server.command(&["SET", "messages", "x"]);
    let key = [("Idempotency-Key", "pay-1")];
    let mut client = world.client();
    let refused = client.post("/enqueue", &key, b"payment 1");
    assert_eq!(
        (refused.status, refused.text().as_str()),
        (503, "enqueue failed\n")
    );
    let health = client.get("/healthz");
    assert_eq!(health.status, 503);
    assert_eq!(health.text(), "redis ping failed: unavailable\n");
    assert_eq!(world.admin_client().get("/readyz").status, 503);
    let bearer = world.bearer();
    let reported = world
        .admin_client()
        .send("GET", "/v1/health", &[("authorization", &bearer)], b"")
        .unwrap();
    assert!(
        reported
            .text()
            .contains("key `messages` holds a string, and a list is needed"),
        "{}",
        reported.text()
    );
    wait_until("the reason in the log", SOON, || {
        running.log().contains("rename or delete it")
    });
    server.command(&["DEL", "messages"]);
    let stored = client.post("/enqueue", &key, b"payment 1");
    assert_eq!(stored.status, 200);
    let mut names = stored.headers.keys();
    assert!(names.all(|name| !name.eq_ignore_ascii_case("Idempotency-Replayed")));
    assert_eq!(server.command(&["LLEN", "messages"]), ":1\r\n");
    assert_eq!(client.get("/healthz").status, 200);
}

#[test]
fn an_order_that_a_redis_refused_is_taken_when_it_is_repeated() {
    let Some(server) = redis() else { return };
    let mut world = World::new();
    world.set(
        "TOWPATH_BACKENDS__ORDERS_KV",
        format!("redis://127.0.0.1:{}", server.port()),
    );
    let _running = start(
        &server,
        "TOWPATH_BACKENDS__ORDERS",
        "orders.gateway",
        &mut world,
    );
    set_stock(&world, "case", 10);
    let mut client = world.client();
    server.command(&["SET", "orders.queue", "x"]);
    assert_eq!(order(&mut client, "b1", "case", 1).status, 503);
    server.command(&["DEL", "orders.queue"]);
    let taken = order(&mut client, "b1", "case", 1);
    assert!(taken.status < 300, "{} {}", taken.status, taken.text());
    assert_eq!(server.command(&["LLEN", "orders.queue"]), ":1\r\n");
}

#[test]
fn settings_metrics_and_listings_come_back_after_a_flush() {
    let Some(server) = redis() else { return };
    let mut world = World::new();
    world.set("TOWPATH_INGEST__MAX_DEPTH", "5");
    let running = start(
        &server,
        "TOWPATH_BACKENDS__INGEST",
        "ingest.api",
        &mut world,
    );
    assert_eq!(world.client().post("/enqueue", &[], b"before").status, 200);
    server.command(&["FLUSHALL"]);
    wait_until("the queue to be listed", Duration::from_secs(10), || {
        world.ok(&["queue", "ls"]).contains("messages")
    });
    wait_until("the metrics", Duration::from_secs(20), || {
        world
            .admin_client()
            .get("/metrics")
            .text()
            .contains("towpath_queue_ready_messages{")
    });
    let mut client = world.client();
    let taken = (0..9)
        .filter(|_| client.post("/enqueue", &[], b"x").status == 200)
        .count();
    assert_eq!(taken, 5, "its depth is known again");
    assert_eq!(
        running
            .log()
            .matches("backend lost its data; declaring again")
            .count(),
        1,
        "{}",
        running.log()
    );
}

/// Reader and writer of lines on one Redis, with an input to append to.
fn lines(server: &Server, world: &mut World) -> Running {
    std::fs::write(crate::lines::input(world), "").unwrap();
    world.set("INPUT_PATH", crate::lines::input(world).display());
    world.set("TOWPATH_LINES__POLL", "20ms");
    start(
        server,
        "TOWPATH_BACKENDS__LINES",
        "lines.reader,lines.writer",
        world,
    )
}

fn append(world: &World, line: &str) {
    let mut input = OpenOptions::new()
        .append(true)
        .open(crate::lines::input(world))
        .unwrap();
    writeln!(input, "{line}").unwrap();
}

fn written(world: &World) -> String {
    String::from_utf8_lossy(&crate::lines::output(world)).into_owned()
}

#[test]
fn a_line_that_a_redis_refused_is_sent_when_it_can_be() {
    let Some(server) = redis() else { return };
    let mut world = World::new();
    let running = lines(&server, &mut world);
    append(&world, "one");
    wait_until("the first line", SOON, || written(&world) == "one\n");
    server.command(&["SET", "line_stream", "x"]);
    append(&world, "two");
    wait_until("the refusal", SOON, || {
        running
            .log()
            .contains("holds a string, and a stream is needed")
    });
    server.command(&["DEL", "line_stream"]);
    wait_until("the second line", SOON, || written(&world) == "one\ntwo\n");
}

#[test]
fn a_lost_position_is_named_and_the_input_is_sent_again() {
    let Some(server) = redis() else { return };
    let mut world = World::new();
    let running = lines(&server, &mut world);
    assert!(
        running.log().contains("no saved position"),
        "{}",
        running.log()
    );
    append(&world, "one");
    wait_until("the first line", SOON, || written(&world) == "one\n");
    server.command(&["FLUSHALL"]);
    append(&world, "two");
    wait_until("everything again", SOON, || {
        written(&world) == "one\none\ntwo\n"
    });
    let log = running.log();
    assert!(
        log.contains("saved position lost; sending the whole input again"),
        "{log}"
    );
    assert!(!log.contains("another reader"), "{log}");
    // The stream alone is gone, and the position is ahead of it.
    drop(running.stop());
    server.command(&["DEL", "line_stream"]);
    let running = start(
        &server,
        "TOWPATH_BACKENDS__LINES",
        "lines.reader",
        &mut world,
    );
    wait_until("the warning", SOON, || {
        running
            .log()
            .contains("saved position is ahead of its stream")
    });
}
