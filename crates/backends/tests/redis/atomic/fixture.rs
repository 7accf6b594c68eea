//! A database with something of everything in it.

use towpath_core::limiter::{Amount, Policy};
use towpath_core::port::queue::Settings;
use towpath_core::port::rate_limit::Take;
use towpath_core::port::routes::Binding;
use towpath_core::port::stream::{Offset, ReadRequest, Start};
use towpath_core::{ExchangeName, GroupName, Receipt, StreamName, Timestamp, retry};

use super::super::redis::Server;
use super::super::*;

/// Facts of the database that its steps need.
#[derive(Debug, Clone)]
pub(super) struct Fixture {
    /// Leased: one with a key that another waits for, and three without.
    pub(super) receipts: Vec<Receipt>,
    /// The entries of the stream.
    pub(super) entries: Vec<Offset>,
}

pub(super) fn exchange() -> ExchangeName {
    ExchangeName::new("events").expect("a valid name")
}

pub(super) fn lines() -> StreamName {
    StreamName::new("lines").expect("a valid name")
}

pub(super) fn group() -> GroupName {
    GroupName::new("group").expect("a valid name")
}

pub(super) fn bucket(key: &str) -> Take {
    Take {
        key: key.to_owned(),
        policy: Policy::TokenBucket {
            capacity: Amount::whole(100),
            refill: Amount::whole(1),
            period: Duration::from_secs(3600),
        },
        amount: Amount::whole(1),
    }
}

fn keyed(payload: &str) -> NewMessage {
    NewMessage {
        key: Some("key".to_owned()),
        ..NewMessage::new(payload.to_owned())
    }
}

fn disposition(delivery: &Delivery, disposition: Disposition) -> Settlement {
    Settlement {
        receipt: delivery.receipt.clone(),
        disposition,
    }
}

fn retry(after: Duration) -> Disposition {
    Disposition::Retry {
        after,
        error: "no".to_owned(),
    }
}

/// Every key that a step may touch, there or not.
pub(super) fn keys() -> Vec<String> {
    const OF_A_QUEUE: &[&str] = &[
        "queue",
        "records",
        "payloads",
        "errors",
        "index",
        "leased",
        "delayed",
        "returned",
        "parked",
        "dead",
        "keys",
        "dead_ids",
        "consumers",
        "dedup:new",
        "dedup:known",
        "probe",
    ];
    const OF_A_STREAM: &[&str] = &[
        "readers",
        "committed",
        "tended",
        "ahead:group",
        "ahead:other",
        "dedup:new",
        "probe",
    ];
    let mut all: Vec<String> = [
        "messages", "other", "lines", "made", "value", "counter", "fields",
    ]
    .iter()
    .chain(&["token_bucket:one", "token_bucket:two"])
    .chain(&[
        "towpath:queues",
        "towpath:streams",
        "towpath:bindings:events",
        "towpath:probe",
    ])
    .map(ToString::to_string)
    .collect();
    for queue in ["messages", "other"] {
        all.extend(
            OF_A_QUEUE
                .iter()
                .map(|name| format!("towpath:{{{queue}}}:{name}")),
        );
    }
    all.extend(
        OF_A_STREAM
            .iter()
            .map(|name| format!("towpath:{{lines}}:{name}")),
    );
    all
}

pub(super) async fn populate(server: &Server) -> Fixture {
    let backend = open(&server.url()).await;
    let queue = queue_of(&backend);
    let settings = Settings {
        retry: retry::Policy {
            attempts: 2,
            ..retry::Policy::default()
        },
        max_depth: Some(1_000),
        ..Settings::default()
    };
    queue
        .declare(&messages(), &settings)
        .await
        .expect("declare");
    let routes = backend.routes.clone().expect("redis has routes");
    for (pattern, to) in [("#", "messages"), ("a.*", "other")] {
        let binding = Binding {
            exchange: exchange(),
            pattern: pattern.to_owned(),
            queue: QueueName::new(to).expect("a valid name"),
        };
        routes.bind(&binding).await.expect("bind");
    }
    let receipts = fill(&queue).await;
    let entries = append(&backend).await;
    let kv = backend.kv.clone().expect("redis has keys");
    for (key, value) in [("value", "x"), ("counter", "5")] {
        kv.put(key, value.into(), None).await.expect("put");
    }
    server.command(&["HSET", "fields", "one", "1"]);
    let limits = backend.rate_limit.clone().expect("redis has limits");
    limits.take(vec![bucket("one")]).await.expect("take");
    queue.resume(&messages()).await.expect("resume");
    drop(backend);
    let_time_run_out(server);
    Fixture { receipts, entries }
}

/// The consumers' time runs out, as that of a process that crashed.
fn let_time_run_out(server: &Server) {
    for key in ["towpath:{messages}:consumers", "towpath:{lines}:readers"] {
        for consumer in ["one", "gone"] {
            server.command(&["HSET", key, consumer, "1000000000000gone"]);
        }
    }
    // Others have tended until now, so that the time of these is really over.
    server.command(&[
        "HSET",
        "towpath:{messages}:queue",
        "tended",
        "9000000000000",
    ]);
    server.command(&["SET", "towpath:{lines}:tended", "9000000000000"]);
}

/// Ready, leased, delayed, returned, parked, due, expired, spent and dead messages; those that are leased.
async fn fill(queue: &Arc<dyn Queue>) -> Vec<Receipt> {
    enqueue(
        queue,
        vec![
            NewMessage::new("dead"),
            NewMessage::new("returned"),
            NewMessage::new("spent"),
        ],
    )
    .await;
    let held = lease(queue, "one", Duration::ZERO).await;
    let dead = disposition(
        &held[0],
        Disposition::DeadLetter {
            reason: "wrong".to_owned(),
        },
    );
    let settled = queue
        .settle(vec![dead, disposition(&held[2], retry(Duration::ZERO))])
        .await
        .expect("settle");
    assert!(settled.iter().all(Result::is_ok));
    let soon = |after: u64| Some(Timestamp::from_millis(now() + after));
    enqueue(
        queue,
        vec![
            keyed("first"),
            keyed("second"),
            NewMessage::new("a"),
            NewMessage::new("b"),
            NewMessage::new("c"),
            NewMessage::new("later"),
        ],
    )
    .await;
    let more = lease(queue, "one", Duration::ZERO).await;
    assert_eq!(more.len(), 6, "all but the second with the key");
    let later = disposition(&more[5], retry(Duration::from_secs(3600)));
    let returned = disposition(&held[1], retry(Duration::ZERO));
    assert!(
        queue
            .settle(vec![later, returned])
            .await
            .expect("settle")
            .iter()
            .all(Result::is_ok)
    );
    enqueue(
        queue,
        vec![
            NewMessage {
                dedup_id: Some("known".to_owned()),
                ..NewMessage::new("ready")
            },
            keyed("third"),
            NewMessage {
                not_before: soon(30),
                ..NewMessage::new("due")
            },
            NewMessage {
                expires: soon(30),
                ..NewMessage::new("expired")
            },
        ],
    )
    .await;
    // The last attempt of one runs out while it is leased.
    let spent = std::slice::from_ref(&more[0].receipt);
    queue
        .extend(spent, Duration::from_millis(20))
        .await
        .expect("extend");
    tokio::time::sleep(Duration::from_millis(60)).await;
    more[1..5].iter().map(|one| one.receipt.clone()).collect()
}

fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.expect("after 1970").as_millis()).expect("before the end")
}

/// Entries of a group: finished, read, finished ahead, unread.
async fn append(backend: &Backend) -> Vec<Offset> {
    let stream = backend.stream.clone().expect("redis has streams");
    let entries = (0..6)
        .map(|number| NewMessage::new(number.to_string()))
        .collect();
    let offsets = stream.append(&lines(), entries).await.expect("append");
    let offsets: Vec<Offset> = offsets.into_iter().map(|one| one.expect("taken")).collect();
    stream
        .create_group(&lines(), &group(), Start::Beginning)
        .await
        .expect("group");
    for who in ["one", "gone"] {
        let request = ReadRequest {
            stream: lines(),
            group: group(),
            consumer: consumer(who),
            max: 2,
            wait: Duration::ZERO,
        };
        assert_eq!(stream.read(request).await.expect("read").len(), 2);
    }
    stream
        .commit(&lines(), &group(), &[offsets[0], offsets[5]])
        .await
        .expect("commit");
    offsets
}
