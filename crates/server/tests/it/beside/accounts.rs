//! Server and relay on PostgreSQL, Redis and Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};
use towpath_testkit::servers::{kafka, postgres, redis};
use uuid::Uuid;

use super::{
    Half, Keys, Program, SOON, Side, every_pairing, insist, pause, rounds, start, wait_more,
};
use crate::process::{World, able, wait_until};
use crate::web::{Reply, Request};

const TOPIC: &str = "user-events";
const PARTITIONS: i32 = 3;

/// What its `migrate up` makes.
const TABLES: &str = "CREATE TABLE users (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email varchar(255) NOT NULL UNIQUE,
        name varchar(255) NOT NULL, created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now());
    CREATE TABLE outbox_events (
        id uuid PRIMARY KEY, aggregate_type varchar(255) NOT NULL, aggregate_id varchar(255) NOT NULL,
        event_type varchar(255) NOT NULL, event_data jsonb NOT NULL, status varchar(50) NOT NULL DEFAULT 'NEW'
            CHECK (status IN ('NEW', 'PROCESSING', 'SENT', 'FAILED')),
        topic varchar(255) NOT NULL, partition_key varchar(255), created_at timestamptz NOT NULL DEFAULT now(),
        processed_at timestamptz, retry_count int DEFAULT 0, max_retries int DEFAULT 3, error_message text)";

/// A connection to the database, and what its statements run on.
fn connect(url: &str) -> (Runtime, Client) {
    let runtime = Runtime::new().unwrap();
    let client = runtime.block_on(async {
        let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    });
    (runtime, client)
}

/// A user and its event in one transaction.
async fn change(
    client: &mut Client,
    id: Uuid,
    user: &Value,
    kind: &str,
) -> Result<(), tokio_postgres::Error> {
    let (email, name) = (user["email"].as_str(), user["name"].as_str());
    let transaction = client.transaction().await?;
    let statement = match kind {
        "user.created" => {
            "INSERT INTO users (id, email, name, created_at, updated_at) VALUES ($1, $2, $3, now(), now())"
        }
        _ => "UPDATE users SET email = $2, name = $3, updated_at = now() WHERE id = $1",
    };
    transaction
        .execute(statement, &[&id, &email, &name])
        .await?;
    let key = id.to_string();
    let data = json!({ "user_id": key, "email": email, "name": name, "created_at": jiff::Timestamp::now() });
    let insert = "INSERT INTO outbox_events (id, aggregate_type, aggregate_id, event_type, event_data, status, topic,
        partition_key, created_at, retry_count, max_retries)
        VALUES ($1, 'user', $2, $3, $4::text::jsonb, 'NEW', $5, $2, clock_timestamp(), 0, 3)";
    let event = Uuid::now_v7();
    transaction
        .execute(insert, &[&event, &key, &kind, &data.to_string(), &TOPIC])
        .await?;
    transaction.commit().await
}

fn server(at: SocketAddr, url: &str) -> Program {
    let database = Mutex::new(connect(url));
    Program::serve(at, move |asked: Request| {
        let user: Value = serde_json::from_slice(&asked.body).unwrap();
        let mut database = database.lock().unwrap();
        let (runtime, client) = &mut *database;
        let (id, kind) = match asked.path.strip_prefix("/api/users/") {
            None => (Uuid::now_v7(), "user.created"),
            Some(id) => (id.parse().unwrap(), "user.updated"),
        };
        match runtime.block_on(change(client, id, &user, kind)) {
            Ok(()) => {
                let body = json!({ "id": id, "email": user["email"], "name": user["name"] });
                Reply::text(200, &body.to_string())
            }
            Err(error) => Reply::text(500, &format!("Failed to {kind}: {error:?}")),
        }
    })
}

/// One event after another: claims it, sends it, marks it as sent.
fn relay(url: &str, broker: u16) -> Program {
    let (runtime, client) = connect(url);
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", format!("127.0.0.1:{broker}"))
        .set("client.id", "outbox-relay")
        .set("enable.idempotence", "true")
        .set("compression.type", "snappy")
        // That of its client library.
        .set("partitioner", "fnv1a")
        .create()
        .unwrap();
    Program::start(move |stop| {
        let select = "SELECT id, aggregate_type, aggregate_id, event_type, event_data::text, topic, partition_key,
            processed_at, retry_count, max_retries, error_message, (extract(epoch FROM created_at) * 1000)::bigint
            FROM outbox_events WHERE status = 'NEW' ORDER BY created_at ASC LIMIT 100";
        let claim = "UPDATE outbox_events SET status = 'PROCESSING', processed_at = now()
            WHERE id = $1 AND status = 'NEW'";
        let mark = "UPDATE outbox_events SET status = 'SENT', processed_at = now() WHERE id = $1";
        while !stop.requested() {
            for row in runtime.block_on(client.query(select, &[])).unwrap() {
                if stop.requested() {
                    return;
                }
                let id: Uuid = row.get(0);
                let text = |column: usize| row.get::<_, String>(column);
                if runtime.block_on(client.execute(claim, &[&id])).unwrap() == 0 {
                    continue;
                }
                let mut headers = OwnedHeaders::new();
                for (key, value) in [
                    ("event_type", text(3)),
                    ("aggregate_type", text(1)),
                    ("aggregate_id", text(2)),
                    ("event_id", id.to_string()),
                ] {
                    headers = headers.insert(Header {
                        key,
                        value: Some(&value),
                    });
                }
                let (topic, key, payload) = (text(5), text(6), text(4));
                let record = FutureRecord::to(&topic).key(&key).payload(&payload);
                let record = record.timestamp(row.get(11)).headers(headers);
                runtime.block_on(producer.send(record, SOON)).unwrap();
                runtime.block_on(client.execute(mark, &[&id])).unwrap();
            }
            // The contract's interval is 5 s.
            pause(4);
        }
    })
}

fn create_topic(broker: u16) {
    let servers = format!("127.0.0.1:{broker}");
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", servers)
        .create()
        .unwrap();
    let topic = NewTopic::new(TOPIC, PARTITIONS, TopicReplication::Fixed(1));
    let created = admin.create_topics([&topic], &AdminOptions::new());
    Runtime::new().unwrap().block_on(created).unwrap()[0]
        .as_ref()
        .unwrap();
}

/// An event as a consumer of the reference system reads it.
struct Event {
    partition: i32,
    id: String,
    kind: String,
    user: String,
    name: String,
}

/// Reads the topic until it has this many events, and a little longer.
fn events(broker: u16, count: usize) -> Vec<Event> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", format!("127.0.0.1:{broker}"))
        .set("group.id", "consumer")
        .create()
        .unwrap();
    let mut partitions = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        partitions
            .add_partition_offset(TOPIC, partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&partitions).unwrap();
    let (mut events, began) = (Vec::new(), Instant::now());
    loop {
        assert!(began.elapsed() < SOON, "{} of {count}", events.len());
        let patience = if events.len() < count {
            SOON
        } else {
            Duration::from_millis(500)
        };
        let Some(message) = consumer.poll(patience) else {
            return events;
        };
        let message = message.unwrap();
        let headers: BTreeMap<String, String> = message
            .headers()
            .unwrap()
            .iter()
            .map(|header| {
                (
                    header.key.to_owned(),
                    String::from_utf8(header.value.unwrap().to_vec()).unwrap(),
                )
            })
            .collect();
        let payload: Value = serde_json::from_slice(message.payload().unwrap()).unwrap();
        events.push(Event {
            partition: message.partition(),
            id: headers["event_id"].clone(),
            kind: headers["event_type"].clone(),
            user: String::from_utf8(message.key().unwrap().to_vec()).unwrap(),
            name: payload["name"].as_str().unwrap().to_owned(),
        });
    }
}

/// Creates users and renames each twice; counts the changes.
fn load(at: SocketAddr, changes: &Arc<AtomicUsize>) -> Program {
    let changes = Arc::clone(changes);
    Program::start(move |stop| {
        let json = [("content-type", "application/json")];
        let mut number = 0;
        while !stop.requested() {
            let mut path = "POST /api/users".to_owned();
            for round in 0..3 {
                let user =
                    json!({ "email": format!("{number}@example.org"), "name": round.to_string() });
                let (answer, _) = insist(at, &path, &json, &user.to_string());
                assert!(
                    [200, 201].contains(&answer.status),
                    "{path}: {} {}",
                    answer.status,
                    answer.text()
                );
                path = format!("PUT /api/users/{}", answer.json()["id"].as_str().unwrap());
                changes.fetch_add(1, Ordering::SeqCst);
                pause(1);
            }
            number += 1;
        }
    })
}

#[test]
fn chaos_server_and_relay_are_switched_under_load_and_the_tables_restored() {
    let there = able("postgres", postgres::missing().is_none());
    if !there || !able("kafka", kafka::missing().is_none()) {
        return;
    }
    let (kafka, postgres) = (kafka::Server::start(), postgres::Server::start());
    let (broker, url) = (kafka.port(), postgres.create("outbox_db"));
    create_topic(broker);
    let (runtime, client) = connect(&url);
    runtime.block_on(client.batch_execute(TABLES)).unwrap();
    let (mut front, mut back) = (World::new(), World::new());
    for world in [&mut front, &mut back] {
        world.set("TOWPATH_ACCOUNTS__DATABASE", &url);
        world.set("KAFKA_BROKERS", format!("127.0.0.1:{broker}"));
    }
    let at = front.http;
    let mut halves = [
        Half::new(
            "server",
            || server(at, &url),
            || start(&front, "accounts.api"),
        ),
        Half::new(
            "relay",
            || relay(&url, broker),
            || start(&back, "accounts.relay"),
        ),
    ];
    let changes = Arc::new(AtomicUsize::new(0));
    let load = load(at, &changes);
    let sent = || -> usize {
        let count = "SELECT count(*) FROM outbox_events WHERE status = 'SENT'";
        let count: i64 = runtime
            .block_on(client.query_one(count, &[]))
            .unwrap()
            .get(0);
        usize::try_from(count).unwrap()
    };
    every_pairing(&mut halves, Side::Reference, rounds(), |pairing| {
        wait_more(pairing, &changes, 20);
        let goal = changes.load(Ordering::SeqCst);
        wait_until(pairing, SOON, || sent() >= goal);
    });
    load.stop();
    let changes = changes.load(Ordering::SeqCst);
    wait_until("every event to be sent", SOON, || sent() == changes);
    halves.iter_mut().for_each(Half::stop);
    // Back: the tables are the reference's again, and its programs continue.
    front.ok(&["migrate", "down", "--all", "--yes"]);
    assert_eq!(sent(), changes);
    halves
        .iter_mut()
        .for_each(|half| half.start(Side::Reference));
    let user = json!({ "email": "last@example.org", "name": "0" }).to_string();
    let (answer, _) = insist(at, "POST /api/users", &[], &user);
    assert_eq!(answer.status, 200, "{}", answer.text());
    wait_until("the last event", SOON, || sent() == changes + 1);
    let tables = "SELECT count(*) FROM information_schema.tables WHERE table_schema = 'public'";
    let tables: i64 = runtime
        .block_on(client.query_one(tables, &[]))
        .unwrap()
        .get(0);
    assert_eq!(tables, 2, "users and outbox_events");
    drop(halves);

    let events = events(broker, changes + 1);
    let ids: BTreeSet<&str> = events.iter().map(|event| &*event.id).collect();
    assert_eq!(
        (events.len(), ids.len()),
        (changes + 1, changes + 1),
        "lost or doubled"
    );
    let mut users: BTreeMap<&str, Vec<&Event>> = BTreeMap::new();
    for event in &events {
        users.entry(&event.user).or_default().push(event);
    }
    for (user, events) in users {
        let names: Vec<&str> = events.iter().map(|event| &*event.name).collect();
        assert!(
            ["0", "1", "2"].starts_with(&names),
            "{user} out of order: {names:?}"
        );
        assert_eq!(events[0].kind, "user.created");
        let together = events
            .iter()
            .all(|event| event.partition == events[0].partition);
        assert!(together, "the events of {user} are in several partitions");
    }
}

/// One take of a token, by the reference's algorithm on the clock of Redis.
const TAKE: &str = "local time = redis.call('TIME')
    local now = time[1] + time[2] / 1000000
    local held = redis.call('HMGET', KEYS[1], 'tokens', 'last_refill')
    local tokens, last = tonumber(held[1]) or 100, tonumber(held[2]) or now
    tokens = math.min(100, tokens + (now - last) * 10)
    local allowed = 0
    if tokens >= 1 then tokens, allowed = tokens - 1, 1 end
    redis.call('HSET', KEYS[1], 'tokens', tokens, 'last_refill', now, 'capacity', 100, 'refill_rate', 10)
    redis.call('EXPIRE', KEYS[1], 300)
    return allowed";

#[test]
fn servers_of_both_sides_take_from_one_bucket() {
    if !able("redis", redis::missing().is_none()) {
        return;
    }
    let server = redis::Server::start(redis::EPHEMERAL);
    let mut world = World::new();
    world.set("REDIS_ADDR", format!("127.0.0.1:{}", server.port()));
    let _running = start(&world, "accounts.api");
    let (mut keys, mut client) = (Keys::new(server.port()), world.client());
    let began = Instant::now();
    let mut allowed = 0_u32;
    for _ in 0..100 {
        let theirs = keys.ask(&["EVAL", TAKE, "1", "token_bucket:one"]);
        let ours = client.post("/api/bucket/consume?key=one", &[], b"").status;
        allowed += u32::from(theirs.text() == "1") + u32::from(ours == 200);
    }
    let refilled = began.elapsed().as_secs_f64() * 10.0;
    let most = 101.0 + refilled;
    assert!(
        allowed >= 100 && f64::from(allowed) <= most,
        "{allowed} allowed, {refilled} refilled"
    );
    let fields = keys.ask(&["HKEYS", "token_bucket:one"]).list();
    let fields: BTreeSet<String> = fields.iter().map(super::Value::text).collect();
    for name in ["tokens", "last_refill", "capacity", "refill_rate"] {
        assert!(fields.contains(name), "{fields:?}");
    }
    // Our server counts what theirs took, and theirs what ours took.
    assert_eq!(
        keys.ask(&["HGET", "token_bucket:one", "capacity"]).text(),
        "100"
    );
}
