//! The outbox in trouble: events that no broker takes, places given out again, databases that move or are not there.

use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use towpath_core::port::outbox::NewEvent;
use towpath_testkit::servers::postgres::{Pooler, Server, missing, pooler_missing};
use towpath_testkit::servers::{kafka, redis};
use uuid::Uuid;

use crate::client::Answer;
use crate::process::{World, able, wait_until};

const SOON: Duration = Duration::from_secs(20);

fn create(world: &World, name: &str) -> Answer {
    let body = json!({ "email": format!("{name}@example.org"), "name": name });
    let body = body.to_string();
    world.client().post("/api/users", &[], body.as_bytes())
}

/// Number of entries of a stream.
fn entries(world: &World, stream: &str) -> u64 {
    let shown = world.run(&["stream", "show", stream, "--output", "json"]);
    let shown: Option<Value> = serde_json::from_slice(&shown.stdout).ok();
    shown.map_or(0, |shown| shown["entries"].as_u64().unwrap())
}

fn wait_entries(world: &World, stream: &str, count: u64) {
    wait_until("the events", SOON, || entries(world, stream) >= count);
    assert_eq!(entries(world, stream), count);
}

fn event(topic: &str) -> NewEvent {
    NewEvent {
        id: Uuid::now_v7(),
        aggregate_type: "thing".to_owned(),
        aggregate_id: "7".to_owned(),
        event_type: "thing.made".to_owned(),
        topic: topic.to_owned(),
        key: None,
        data: "{}".to_owned(),
        created_at: jiff::Timestamp::now(),
        traceparent: None,
    }
}

fn write(url: &str, events: Vec<NewEvent>) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let written = runtime.block_on(async {
        let database = towpath_backends::open_database(url).await?;
        database.outbox.write(events).await
    });
    written.unwrap();
}

fn failed(world: &World) -> Vec<Value> {
    let failed = world.json(&["outbox", "ls", "--status", "FAILED"]);
    failed.as_array().unwrap().clone()
}

/// Topics that no stream can have, and one that is as long as a name may be.
fn topics_that_fail(mut world: World, database: &str, more: &[&str], longest: usize) {
    world.set("RELAY_MAX_RETRIES", 2);
    let _running = world.up();
    let (long, longest) = ("x".repeat(300), "x".repeat(longest));
    let mut topics = vec!["bad topic", "", &long, "a\nb"];
    topics.extend(more);
    let wrong = topics.len();
    topics.push(&longest);
    topics.push("good");
    write(database, topics.into_iter().map(event).collect());
    wait_until("those behind", Duration::from_secs(60), || {
        // Kafka counts the ends of transactions too.
        entries(&world, "good") > 0
    });
    assert!(entries(&world, &longest) > 0);
    let failed = failed(&world);
    assert_eq!(failed.len(), wrong, "{failed:?}");
    for one in &failed {
        assert_eq!(one["attempts"], 2, "{one}");
        assert!(!one["error"].as_str().unwrap().is_empty());
    }
    assert_eq!(world.json(&["outbox", "stats"])["new"], 0);
}

fn sqlite(world: &World) -> String {
    format!("sqlite:{}", world.data().join("accounts.db").display())
}

#[test]
fn an_event_with_an_invalid_topic_fails_and_those_behind_it_continue() {
    let world = World::new();
    let database = sqlite(&world);
    topics_that_fail(world, &database, &["a\0b"], 255);
}

#[test]
fn an_event_with_an_invalid_topic_fails_from_postgresql_to_redis() {
    if !able("postgres", missing().is_none()) || !able("redis", redis::missing().is_none()) {
        return;
    }
    let (server, broker) = (Server::start(), redis::Server::start(redis::DURABLE));
    let (mut world, database) = (World::new(), server.create("case"));
    world.set("TOWPATH_ACCOUNTS__DATABASE", &database);
    world.set("TOWPATH_BACKENDS__RELAY", broker.url());
    topics_that_fail(world, &database, &[], 255);
}

#[test]
fn an_event_with_an_invalid_topic_fails_on_kafka() {
    if !able("kafka", kafka::missing().is_none()) {
        return;
    }
    let broker = kafka::Server::start();
    let mut world = World::new();
    world.set("TOWPATH_BACKENDS__RELAY", broker.url());
    let database = sqlite(&world);
    topics_that_fail(world, &database, &["größe", ".."], 249);
}

#[test]
fn events_after_the_sequence_was_reset_are_sent() {
    if !able("postgres", missing().is_none()) {
        return;
    }
    let server = Server::start();
    let mut world = World::new();
    world.set("TOWPATH_ACCOUNTS__DATABASE", server.create("case"));
    let reset = "TRUNCATE outbox, outbox_refused RESTART IDENTITY";
    let running = world.up();
    for name in ["a", "b", "c"] {
        assert_eq!(create(&world, name).status, 201);
    }
    wait_entries(&world, "user-events", 3);
    // While it runs.
    server.query("case", reset);
    for name in ["d", "e"] {
        assert_eq!(create(&world, name).status, 201);
    }
    wait_entries(&world, "user-events", 5);
    let log = running.log();
    assert!(log.contains("outbox sequence was reset"), "{log}");
    drop(running);
    // While it does not, and until the new places reach the old one.
    server.query("case", reset);
    let api = world.spawn(&["run", "accounts.api"]);
    api.wait_ready(&world);
    assert_eq!(create(&world, "f").status, 201);
    let stats = world.json(&["outbox", "stats"]);
    assert_eq!((&stats["new"], &stats["sent"]), (&json!(1), &json!(0)));
    assert_eq!(stats["position_ahead"], 2);
    assert!(
        world
            .ok(&["outbox", "stats"])
            .contains("its sequence was reset")
    );
    for name in ["g", "h"] {
        assert_eq!(create(&world, name).status, 201);
    }
    drop(api);
    let _running = world.up();
    wait_entries(&world, "user-events", 8);
    let stats = world.json(&["outbox", "stats"]);
    assert_eq!((&stats["new"], &stats["sent"]), (&json!(0), &json!(3)));
}

#[test]
fn a_database_that_is_not_there_at_the_start_is_waited_for() {
    if !able("postgres", missing().is_none()) {
        return;
    }
    let mut server = Server::start();
    let mut world = World::new();
    world.set("TOWPATH_ACCOUNTS__DATABASE", server.create("case"));
    server.kill();
    let running = world.spawn(&["run", "accounts.api,accounts.relay"]);
    wait_until("the admin interface", SOON, || {
        let ready = world
            .admin_client()
            .send("GET", "/readyz?verbose", &[], b"");
        ready.is_ok_and(|ready| ready.status == 503 && ready.text().contains("[-]database"))
    });
    wait_until("the public interface", SOON, || {
        running.log().contains(r#""message":"ready""#)
    });
    assert_eq!(create(&world, "early").status, 503);
    let log = running.log();
    let place = format!("127.0.0.1:{}", server.port());
    let of_database = |line: &&str| line.contains("database unavailable; retrying");
    let found: Vec<&str> = log.lines().filter(of_database).collect();
    assert!(found.len() == 1 && found[0].contains(&place), "{log}");
    server.restart();
    running.wait_ready(&world);
    assert_eq!(create(&world, "ann").status, 201);
    wait_entries(&world, "user-events", 1);
}

#[test]
fn writes_follow_the_primary_and_health_tells_the_truth() {
    if !able("postgres", missing().is_none()) {
        return;
    }
    let primary = Server::start();
    primary.create("case");
    let standby = primary.standby();
    let (one, two) = (primary.port(), standby.port());
    let mut world = World::new();
    world.set(
        "TOWPATH_ACCOUNTS__DATABASE",
        format!("postgres://towpath@127.0.0.1:{one},127.0.0.1:{two}/case?target_session_attrs=read-write"),
    );
    let running = world.up();
    assert_eq!(create(&world, "before").status, 201);
    wait_entries(&world, "user-events", 1);
    assert_eq!(world.client().get("/health").status, 200);
    primary.query(
        "postgres",
        "ALTER SYSTEM SET default_transaction_read_only = on",
    );
    primary.query("postgres", "SELECT pg_reload_conf()");
    wait_until("health to say so", Duration::from_secs(5), || {
        world.client().get("/health").status == 503
    });
    assert_eq!(create(&world, "refused").status, 503);
    wait_until("readiness to say so", Duration::from_secs(5), || {
        world.admin_client().get("/readyz").status == 503
    });
    standby.promote();
    wait_until("a write", Duration::from_secs(5), || {
        create(&world, "after").status == 201
    });
    wait_until("health to say so", Duration::from_secs(5), || {
        world.client().get("/health").status == 200
    });
    wait_entries(&world, "user-events", 2);
    running.wait_ready(&world);
    assert_eq!(standby.query("case", "SELECT count(*) FROM users"), "2");
}

#[test]
fn a_pooler_in_transaction_mode_loses_nothing() {
    if !able("pgbouncer", pooler_missing().is_none()) {
        return;
    }
    let server = Server::start();
    server.create("case");
    let pooler = Pooler::start(&server, 5);
    let mut world = World::new();
    world.set("TOWPATH_ACCOUNTS__DATABASE", pooler.url("case"));
    let running = world.up();
    let world = &world;
    std::thread::scope(|scope| {
        for thread in 0..5 {
            scope.spawn(move || {
                for number in 0..13 {
                    let name = format!("user-{thread}-{number}");
                    assert_eq!(create(world, &name).status, 201, "{name}");
                }
            });
        }
    });
    wait_entries(world, "user-events", 65);
    assert_eq!(world.client().get("/health").status, 200);
    let log = running.log();
    assert!(log.contains("connection pooler detected"), "{log}");
    assert!(!log.contains("does not exist"), "{log}");
}

#[test]
fn a_row_of_any_size_costs_no_memory() {
    if !able("postgres", missing().is_none()) {
        return;
    }
    let server = Server::start();
    let mut world = World::new();
    world.set("TOWPATH_ACCOUNTS__DATABASE", server.create("case"));
    let running = world.up();
    let insert = |size: usize, count: usize| {
        server.query(
            "case",
            &format!(
                "INSERT INTO outbox (id, aggregate_type, aggregate_id, event_type, topic, event_data, created_at)
                SELECT gen_random_uuid(), 'thing', '7', 'thing.made', 'things', repeat('x', {size}), now()
                FROM generate_series(1, {count})"
            ),
        );
    };
    insert(150 << 20, 1);
    insert(8 << 20, 25);
    wait_entries(&world, "things", 25);
    let failed = failed(&world);
    assert_eq!(failed.len(), 1);
    let reason = failed[0]["error"].as_str().unwrap();
    assert!(reason.contains("157286400 bytes"), "{reason}");
    let status = fs::read_to_string(format!("/proc/{}/status", running.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak: u64 = peak
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    assert!(peak >> 10 < 400, "{} MiB", peak >> 10);
}

#[test]
fn operators_ask_the_process_and_make_no_database() {
    let (world, elsewhere) = (World::new(), World::new());
    for command in [
        &["outbox", "stats"][..],
        &["outbox", "ls"],
        &["outbox", "retry", "--all"],
        &["backfill", "--dry-run"],
        &["migrate", "status"],
        &["migrate", "down", "--yes"],
    ] {
        assert!(!elsewhere.run(command).status.success(), "{command:?}");
    }
    assert!(!elsewhere.data().exists(), "nothing is made by looking");
    let _running = world.up();
    assert_eq!(create(&world, "ann").status, 201);
    let url = format!("http://{}", world.admin);
    let token = fs::read_to_string(world.data().join("admin.token")).unwrap();
    let ask = ["--url", &url, "--token", token.trim(), "outbox", "stats"];
    wait_until("it to be sent", SOON, || {
        elsewhere.json(&ask)["sent"] == json!(1)
    });
    assert!(!elsewhere.data().exists(), "nothing is made by looking");
}
