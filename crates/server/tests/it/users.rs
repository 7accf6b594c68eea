//! Users, and that each event of them reaches the stream once and in order, whatever dies.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use towpath_core::message::MAX_PAYLOAD_BYTES;
use towpath_core::port::outbox::NewEvent;
use towpath_testkit::servers::{kafka, postgres, redis};
use uuid::Uuid;

use crate::client::Answer;
use crate::process::{World, able, seeds, wait_until};

fn create(world: &World, headers: &[(&str, &str)], body: &Value) -> Answer {
    let body = body.to_string();
    world.client().post("/api/users", headers, body.as_bytes())
}

fn ann() -> Value {
    json!({ "email": "Ann@Example.org", "name": "Ann" })
}

/// The payloads in the stream of users, in order.
fn events(world: &World) -> Vec<Value> {
    let bearer = world.bearer();
    let path = "/v1/streams/user-events/entries?max=1000";
    let headers = [("authorization", bearer.as_str())];
    let answer = world.admin_client().send("GET", path, &headers, b"");
    let answer = answer.unwrap();
    if answer.status != 200 {
        return Vec::new();
    }
    let body = answer.json();
    let all = body.as_array().unwrap().iter();
    all.map(|entry| serde_json::from_str(entry["payload"].as_str().unwrap()).unwrap())
        .collect()
}

#[test]
fn users_are_created_changed_listed_and_deleted() {
    let world = World::new();
    let _running = world.up();
    let mut client = world.client();
    let created = create(&world, &[], &ann());
    assert_eq!(created.status, 201);
    let user = created.json();
    assert_eq!(user["email"], "ann@example.org", "lower case");
    let path = created.headers["location"].clone();
    assert_eq!(client.get(&path).json(), user);
    assert_eq!(create(&world, &[], &ann()).status, 409, "no two alike");
    for (body, status) in [
        ("nothing", 400),
        (r#"{"email":"a@b"}"#, 400),
        (r#"{"email":"absent","name":"x"}"#, 422),
    ] {
        let answer = client.post("/api/users", &[], body.as_bytes());
        assert_eq!(answer.status, status, "{body}");
    }
    assert_eq!(client.get("/api/users/7").status, 400);
    let absent = "/api/users/00000000-0000-0000-0000-000000000000";
    assert_eq!(client.get(absent).status, 404);
    let change = br#"{"email":"ann@example.org","name":"Anne"}"#;
    assert_eq!(client.send("PUT", absent, &[], change).unwrap().status, 404);
    let stale = client
        .send("PUT", &path, &[("if-match", "\"7\"")], change)
        .unwrap();
    assert_eq!(stale.status, 412);
    let changed = client
        .send("PUT", &path, &[("if-match", "\"1\"")], change)
        .unwrap();
    assert_eq!(
        (changed.status, &changed.json()["name"]),
        (200, &json!("Anne"))
    );
    let list = client.get("/api/users?limit=1").json();
    assert_eq!(list["users"][0]["id"], user["id"]);
    assert_eq!(list["next_cursor"], Value::Null);
    assert_eq!(client.send("DELETE", &path, &[], b"").unwrap().status, 204);
    assert_eq!(client.get(&path).status, 404);
    wait_until("three events", Duration::from_secs(10), || {
        events(&world).len() == 3
    });
    let published = events(&world);
    assert_eq!(published[1]["name"], "Anne");
    assert!(published[2]["deleted_at"].is_string(), "{published:?}");
}

#[test]
fn a_request_with_a_key_creates_one_user_however_often_it_comes() {
    let world = World::new();
    let _running = world.up();
    let key = [("idempotency-key", "one")];
    let first = create(&world, &key, &ann());
    let again = create(&world, &key, &ann());
    assert_eq!((first.status, again.status), (201, 201));
    assert_eq!(first.json(), again.json());
    let other = json!({ "email": "bob@example.org", "name": "Bob" });
    assert_eq!(create(&world, &key, &other).status, 422);
    assert_eq!(create(&world, &[], &other).status, 201);
}

#[test]
fn an_event_that_the_broker_refuses_is_abandoned_and_those_around_it_continue() {
    let mut world = World::new();
    world.set("RELAY_MAX_RETRIES", 2);
    let _running = world.up();
    let event = |number: usize, name: String| NewEvent {
        id: Uuid::now_v7(),
        aggregate_type: "user".to_owned(),
        aggregate_id: number.to_string(),
        event_type: "user.created".to_owned(),
        topic: "user-events".to_owned(),
        key: None,
        data: json!({ "number": number, "name": name }).to_string(),
        created_at: jiff::Timestamp::now(),
        traceparent: None,
    };
    // The second is over the limit of every stream; the first comes with it in one read, the third in the next.
    let names = [
        "x".to_owned(),
        "x".repeat(MAX_PAYLOAD_BYTES),
        "x".to_owned(),
    ];
    let all: Vec<NewEvent> = (1..).zip(names).map(|(n, name)| event(n, name)).collect();
    let refused = all[1].id.to_string();
    let url = format!("sqlite:{}", world.data().join("accounts.db").display());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let written = runtime.block_on(async {
        let database = towpath_backends::open_database(&url).await?;
        database.outbox.write(all).await
    });
    written.unwrap();
    wait_until("two events", Duration::from_secs(20), || {
        events(&world).len() == 2
    });
    let published: Vec<Value> = events(&world)
        .iter()
        .map(|one| one["number"].clone())
        .collect();
    assert_eq!(published, [1, 3]);
    let failed = world.json(&["outbox", "ls", "--status", "FAILED"]);
    assert_eq!(failed.as_array().map(Vec::len), Some(1));
    assert_eq!(
        (&failed[0]["id"], &failed[0]["attempts"]),
        (&json!(refused), &json!(2))
    );
    world.ok(&["outbox", "retry", &refused]);
    wait_until(
        "it to become a dead letter again",
        Duration::from_secs(20),
        || {
            let failed = world.json(&["outbox", "ls", "--status", "FAILED"]);
            failed[0]["attempts"] == 2
        },
    );
    assert_eq!(events(&world).len(), 2);
}

#[test]
fn events_are_cloud_events_on_request() {
    let mut world = World::new();
    world.set("TOWPATH_ACCOUNTS__RELAY__FORMAT", "cloudevents");
    let _running = world.up();
    let user = create(&world, &[], &ann()).json();
    wait_until("the event", Duration::from_secs(10), || {
        events(&world).len() == 1
    });
    let shown = world.json(&["stream", "tail", "user-events", "--max", "1"]);
    let headers = &shown[0]["headers"];
    assert_eq!(
        (&headers["ce_type"], &headers["event_type"]),
        (&json!("user.created"), &json!("user.created"))
    );
    assert_eq!(
        (&headers["ce_id"], &headers["ce_specversion"]),
        (&headers["event_id"], &json!("1.0"))
    );
    let about = format!("/user/{}", user["id"].as_str().unwrap());
    assert_eq!(
        (&headers["ce_subject"], &headers["content-type"]),
        (&json!(about), &json!("application/json"))
    );
}

#[test]
fn crash_tests_are_off_until_they_are_allowed() {
    let mut world = World::new();
    let body = br#"{"email":"a@b","name":"x","crash_after_db":true}"#;
    let running = world.up();
    let refused = world.client().post("/api/test/crash", &[], body);
    assert_eq!(refused.status, 403);
    drop(running);
    world.set("TOWPATH_ACCOUNTS__CRASH_TEST", "on");
    let running = world.up();
    let mut client = world.client();
    assert!(client.send("POST", "/api/test/crash", &[], body).is_err());
    drop(running);
    let _running = world.up();
    let users = world.client().get("/api/users").json();
    assert_eq!(
        users["users"][0]["email"], "a@b",
        "committed before the stop"
    );
    wait_until("its event", Duration::from_secs(10), || {
        events(&world).len() == 1
    });
}

#[test]
fn events_are_listed_traced_and_sent_again() {
    let world = World::new();
    let _running = world.up();
    let mut users = Vec::new();
    for name in ["ann", "bob"] {
        let body = json!({ "email": format!("{name}@example.org"), "name": name });
        users.push(create(&world, &[], &body).json());
    }
    wait_until("their events", Duration::from_secs(10), || {
        world.ok(&["outbox", "stats"]).contains("  2 ")
    });
    let listed: Value =
        serde_json::from_str(&world.ok(&["outbox", "ls", "--output", "json"])).unwrap();
    assert_eq!(listed[0]["aggregate_id"], users[0]["id"]);
    assert_eq!(listed[1]["status"], "SENT");
    let id = listed[1]["id"].as_str().unwrap();
    let traced = world.ok(&["outbox", "trace", users[1]["id"].as_str().unwrap()]);
    assert!(
        traced.contains(id) && traced.contains("bob@example.org"),
        "{traced}"
    );
    assert!(!world.run(&["outbox", "trace", "absent"]).status.success());
    assert_eq!(world.ok(&["outbox", "replay", id]), "1 sent again\n");
    wait_until("the event again", Duration::from_secs(10), || {
        events(&world).len() == 3
    });
    assert_eq!(events(&world)[2], events(&world)[1]);
    let dry = world.ok(&["backfill", "-dry-run", "-batch-size", "2"]);
    assert_eq!(dry, "3 would be sent again\n");
    let later = ["backfill", "-start", "2100-01-01T00:00:00Z"];
    assert_eq!(world.ok(&later), "0 sent again\n");
    let elsewhere = ["backfill", "-batch-size", "2", "-topic", "again"];
    assert_eq!(world.ok(&elsewhere), "3 sent again\n");
    wait_until("the other topic", Duration::from_secs(10), || {
        let shown = world
            .run(&["stream", "show", "again", "--output", "json"])
            .stdout;
        serde_json::from_slice(&shown).is_ok_and(|shown: Value| shown["entries"] == 3)
    });
    assert_eq!(events(&world).len(), 3, "the first topic has no more");
    let status = world.ok(&["migrate", "status"]);
    assert!(
        status.contains("outbox") && !status.contains(" -\n"),
        "{status}"
    );
    assert!(
        !world.run(&["migrate", "down"]).status.success(),
        "asks first"
    );
}

/// Users are created while the process dies again and again, `disturb` beside it; each committed event is in the
/// stream once and in order.
fn story(world: &World, seed: u64, mut disturb: impl FnMut()) {
    let mut created = Vec::new();
    for round in 0..3 {
        let running = world.up();
        let mut client = world.client();
        for number in 0..20 + seed % 17 {
            let email = format!("{round}-{number}@example.org");
            let body = json!({ "email": email, "name": "x" }).to_string();
            let key = [("idempotency-key", email.as_str())];
            // One that is not answered for sure is asked for again.
            wait_until("the user", Duration::from_secs(60), || {
                match client.send("POST", "/api/users", &key, body.as_bytes()) {
                    Ok(answer) => answer.status == 201,
                    Err(_) => {
                        client = world.client();
                        false
                    }
                }
            });
            created.push(email);
            if number == 10 + seed % 7 {
                disturb();
            }
        }
        running.kill();
    }
    let _running = world.up();
    wait_until("every event", Duration::from_secs(60), || {
        events(world).len() >= created.len()
    });
    let published: Vec<String> = events(world)
        .iter()
        .map(|event| event["email"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(published, created, "seed {seed}");
}

#[test]
fn chaos_every_committed_event_is_in_the_stream_once_and_in_order() {
    for seed in 0..seeds(3) {
        story(&World::new(), seed, || {});
    }
}

#[test]
fn chaos_two_relays_from_postgresql_to_redis_while_each_of_them_dies() {
    if !able("postgres", postgres::missing().is_none())
        || !able("redis", redis::missing().is_none())
    {
        return;
    }
    let mut database = postgres::Server::start();
    let mut broker = redis::Server::start(redis::DURABLE);
    for seed in 0..seeds(2) {
        let url = database.create(&format!("seed{seed}"));
        let relay = format!("{}?prefix=seed{seed}-", broker.url());
        let (mut world, mut other) = (World::new(), World::new());
        for world in [&mut world, &mut other] {
            world.set("TOWPATH_ACCOUNTS__DATABASE", &url);
            world.set("TOWPATH_BACKENDS__RELAY", &relay);
            world.set("TOWPATH_ACCOUNTS__RELAY__LEASE", "1s");
            // So few that the next ones are read ahead.
            world.set("RELAY_BATCH_SIZE", 2);
        }
        let mut second = Some(other.spawn(&["run", "accounts.relay"]));
        let mut count = seed;
        story(&world, seed, || {
            count += 1;
            match count % 3 {
                0 => database.restart(),
                1 => broker.restart(),
                _ => {
                    if let Some(second) = second.take() {
                        second.kill();
                    }
                    second = Some(other.spawn(&["run", "accounts.relay"]));
                }
            }
        });
    }
}

#[test]
fn chaos_from_postgresql_to_kafka_while_each_of_them_dies() {
    if !able("postgres", postgres::missing().is_none())
        || !able("kafka", kafka::missing().is_none())
    {
        return;
    }
    let mut database = postgres::Server::start();
    let mut broker = kafka::Server::start();
    for seed in 0..seeds(1) {
        let url = database.create(&format!("seed{seed}"));
        let mut world = World::new();
        world.set("TOWPATH_ACCOUNTS__DATABASE", &url);
        world.set("RELAY_BATCH_SIZE", 2);
        world.set(
            "TOWPATH_BACKENDS__RELAY",
            format!("{}?prefix=seed{seed}-", broker.url()),
        );
        let mut count = seed;
        story(&world, seed, || {
            count += 1;
            match count % 2 {
                0 => database.restart(),
                _ => broker.restart(),
            }
        });
    }
}

#[test]
fn chaos_a_broker_that_is_unavailable_for_a_while_gets_every_event() {
    if !able("kafka", kafka::missing().is_none()) {
        return;
    }
    // As many seconds as there are seeds, up to a minute.
    let away = Duration::from_secs(seeds(10).min(60));
    let mut broker = kafka::Server::start();
    let mut world = World::new();
    world.set("TOWPATH_BACKENDS__RELAY", broker.url());
    let running = world.up();
    let mut created = Vec::new();
    let mut user = || {
        let email = format!("{}@example.org", created.len());
        let answer = create(&world, &[], &json!({ "email": email, "name": "x" }));
        assert_eq!(answer.status, 201, "whether or not the broker is there");
        created.push(email);
    };
    user();
    wait_until("the first event", Duration::from_secs(60), || {
        events(&world).len() == 1
    });
    broker.kill();
    let began = Instant::now();
    while began.elapsed() < away {
        user();
        std::thread::sleep(Duration::from_millis(100));
    }
    broker.restart();
    user();
    wait_until("every event", Duration::from_secs(60), || {
        events(&world).len() >= created.len()
    });
    let published: Vec<Value> = events(&world)
        .iter()
        .map(|event| event["email"].clone())
        .collect();
    assert_eq!(published, created);
    let failed = world.json(&["outbox", "ls", "--status", "FAILED"]);
    assert_eq!(failed, json!([]), "time without a broker is not an attempt");
    let log = running.log();
    assert!(
        !log.contains("PartitionEOF"),
        "the end of a partition is not logged: {log}"
    );
}
