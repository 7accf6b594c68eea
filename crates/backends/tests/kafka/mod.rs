//! Kafka's promises beyond the ports: a node that dies, partitions that move, records of others.

mod cluster;
pub(crate) mod deleted;
mod foreign_records;
mod queue;
#[cfg(feature = "kafka-tls")]
mod tls;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use towpath_core::backend::Backend;
use towpath_core::port::Stream;
use towpath_core::port::stream::{Entry, ReadRequest, Start};
use towpath_core::{
    ConsumerId, ErrorKind, GroupName, MessageId, NewMessage, StreamName, SystemClock, Timestamp,
};
use towpath_testkit::Own;
use towpath_testkit::servers::kafka::{Server, shared};

pub(crate) fn promises() -> Vec<Own> {
    vec![
        ("a_cluster_continues_without_one_node", || {
            Box::pin(a_cluster_continues_without_one_node())
        }),
        ("partitions_move_with_the_processes", || {
            Box::pin(partitions_move_with_the_processes())
        }),
        ("records_of_others_are_read_and_ours_by_others", || {
            Box::pin(records_of_others_are_read_and_ours_by_others())
        }),
        (
            "keys_of_an_adopted_topic_go_where_the_reference_puts_them",
            || Box::pin(keys_of_an_adopted_topic_go_where_the_reference_puts_them()),
        ),
        (
            "a_record_has_the_time_that_its_entry_reports_and_is_compressed_by_snappy",
            || Box::pin(a_record_has_the_time_that_its_entry_reports_and_is_compressed_by_snappy()),
        ),
        ("processes_share_a_queue_and_its_remaining_messages", || {
            Box::pin(queue::processes_share_a_queue_and_its_remaining_messages())
        }),
        ("a_queue_outlives_its_broker", || {
            Box::pin(queue::a_queue_outlives_its_broker())
        }),
        ("messages_of_others_are_delivered", || {
            Box::pin(queue::messages_of_others_are_delivered())
        }),
        ("deleted_topics_of_a_queue_are_declared_again", || {
            Box::pin(deleted::deleted_topics_of_a_queue_are_declared_again())
        }),
        ("deleted_topics_of_a_stream_are_declared_again", || {
            Box::pin(deleted::deleted_topics_of_a_stream_are_declared_again())
        }),
        (
            "a_topic_that_others_make_again_is_read_from_its_start",
            || Box::pin(deleted::a_topic_that_others_make_again_is_read_from_its_start()),
        ),
        ("records_that_were_deleted_unconsumed_are_named", || {
            Box::pin(deleted::records_that_were_deleted_unconsumed_are_named())
        }),
        (
            "records_that_no_message_can_hold_become_dead_letters",
            || Box::pin(foreign_records::records_that_no_message_can_hold_become_dead_letters()),
        ),
        ("a_message_too_large_to_be_moved_does_not_block", || {
            Box::pin(foreign_records::a_message_too_large_to_be_moved_does_not_block())
        }),
        (
            "a_header_name_that_is_not_text_does_not_stop_a_queue",
            || Box::pin(foreign_records::a_header_name_that_is_not_text_does_not_stop_a_queue()),
        ),
        ("topics_that_drop_messages_are_reported", || {
            Box::pin(foreign_records::topics_that_drop_messages_are_reported())
        }),
        (
            "chaos_a_cluster_loses_nothing_when_brokers_are_killed",
            || Box::pin(cluster::chaos_a_cluster_loses_nothing_when_brokers_are_killed()),
        ),
        (
            "chaos_a_storm_of_rebalances_loses_and_charges_nothing",
            || Box::pin(cluster::chaos_a_storm_of_rebalances_loses_and_charges_nothing()),
        ),
        #[cfg(feature = "kafka-tls")]
        ("permitted_clients_connect_by_tls", || {
            Box::pin(tls::permitted_clients_connect_by_tls())
        }),
        ("an_unavailable_broker_is_reported", || {
            Box::pin(an_unavailable_broker_is_reported())
        }),
    ]
}

const LONG: Duration = Duration::from_secs(60);

async fn open(url: &str) -> Backend {
    towpath_backends::open(url, Arc::new(SystemClock::new()))
        .await
        .unwrap_or_else(|error| panic!("opening {url}: {error:?}"))
}

fn stream_of(backend: &Backend) -> Arc<dyn Stream> {
    backend
        .require_stream("the test")
        .expect("kafka has streams")
}

fn lines() -> StreamName {
    StreamName::new("lines").expect("a valid name")
}

fn group() -> GroupName {
    GroupName::new("g").expect("a valid name")
}

fn request(who: &str, wait: Duration) -> ReadRequest {
    ReadRequest {
        stream: lines(),
        group: group(),
        consumer: ConsumerId::new(who).expect("a valid name"),
        max: 1_000,
        wait,
    }
}

async fn read(stream: &Arc<dyn Stream>, who: &str, wait: Duration) -> Vec<Entry> {
    // While a node is replaced a read may be refused: the entries come later.
    stream.read(request(who, wait)).await.unwrap_or_default()
}

fn texts(entries: &[Entry]) -> Vec<String> {
    let payloads = entries.iter().map(|entry| &entry.message.payload);
    payloads
        .map(|payload| String::from_utf8_lossy(payload).into_owned())
        .collect()
}

async fn create_group(stream: &Arc<dyn Stream>) {
    let created = stream
        .create_group(&lines(), &group(), Start::Beginning)
        .await;
    created.expect("a group");
}

/// Appends numbers with keys of their own.
async fn append_keyed(stream: &Arc<dyn Stream>, numbers: std::ops::Range<usize>) {
    let keyed = numbers.map(|number| NewMessage {
        key: Some(number.to_string()),
        ..NewMessage::new(number.to_string())
    });
    let outcomes = stream.append(&lines(), keyed.collect()).await;
    assert!(outcomes.expect("append").iter().all(Result::is_ok));
}

/// Appends `count` numbers in batches, each retried until acknowledged.
async fn append(stream: &Arc<dyn Stream>, numbers: std::ops::Range<usize>) {
    let numbers: Vec<usize> = numbers.collect();
    for batch in numbers.chunks(20) {
        let mut left: Vec<usize> = batch.to_vec();
        let began = Instant::now();
        while !left.is_empty() {
            assert!(began.elapsed() < LONG * 2, "{left:?} are not taken");
            let entries = left.iter().map(|one| NewMessage::new(one.to_string()));
            let Ok(outcomes) = stream.append(&lines(), entries.collect()).await else {
                continue;
            };
            let failed = left.iter().zip(outcomes).filter(|(_, one)| one.is_err());
            left = failed.map(|(one, _)| *one).collect();
        }
    }
}

/// Reads and finishes until all numbers below `count` came.
async fn read_all(streams: &[(&Arc<dyn Stream>, &str)], count: usize) -> Vec<usize> {
    let (mut seen, mut by) = (BTreeSet::new(), vec![0; streams.len()]);
    let began = Instant::now();
    while seen.len() < count {
        assert!(began.elapsed() < LONG * 2, "{} of {count} came", seen.len());
        for (at, (stream, who)) in streams.iter().enumerate() {
            let entries = read(stream, who, Duration::from_millis(50)).await;
            let offsets: Vec<_> = entries.iter().map(|entry| entry.offset).collect();
            // During a rebalance or while a node is down, a commit may be refused.
            while let Err(error) = stream.commit(&lines(), &group(), &offsets).await {
                assert!(began.elapsed() < LONG * 2, "{error:?}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            by[at] += entries.len();
            seen.extend(texts(&entries));
        }
    }
    by
}

async fn a_cluster_continues_without_one_node() {
    let mut nodes = Server::start_cluster();
    let urls: Vec<String> = nodes.iter().map(Server::url).collect();
    let backend = open(&format!("{}?replication=3", urls.join(","))).await;
    let stream = stream_of(&backend);
    create_group(&stream).await;
    append(&stream, 0..100).await;
    // Whichever it is: one of the three leads, one has the group, one has the controllers' vote.
    for (number, node) in nodes.iter_mut().enumerate() {
        node.kill();
        let from = 100 + number * 100;
        append(&stream, from..from + 100).await;
        node.restart();
    }
    read_all(&[(&stream, "one")], 400).await;
    let health = backend.lifecycle.health().await;
    assert!(health.is_ok(), "{health:?}");
}

async fn partitions_move_with_the_processes() {
    let url = format!(
        "{}?prefix={}.&partitions=4",
        shared().url(),
        MessageId::new()
    );
    let (one, two) = (open(&url).await, open(&url).await);
    let streams = [stream_of(&one), stream_of(&two)];
    create_group(&streams[0]).await;
    // Both have joined before there is anything.
    for stream in &streams {
        read(stream, "same", Duration::from_millis(500)).await;
    }
    for stream in &streams {
        read(stream, "same", Duration::from_millis(500)).await;
    }
    append_keyed(&streams[0], 0..400).await;
    let both = [(&streams[0], "same"), (&streams[1], "same")];
    let by = read_all(&both, 400).await;
    assert!(by.iter().all(|count| *count > 0), "{by:?}");
    // One goes: the other has all of it.
    one.lifecycle.close().await.expect("closed");
    append_keyed(&streams[1], 400..800).await;
    read_all(&both[1..], 400).await;
}

async fn records_of_others_are_read_and_ours_by_others() {
    let (server, prefix) = (shared(), MessageId::new().to_string());
    let backend = open(&format!("{}?prefix={prefix}.", server.url())).await;
    let stream = stream_of(&backend);
    append(&stream, 0..1).await;
    let (topic, broker) = (
        format!("{prefix}.lines"),
        format!("127.0.0.1:{}", server.port()),
    );
    tokio::task::spawn_blocking(move || {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", broker)
            .set("group.id", "bare");
        let producer: ThreadedProducer<DefaultProducerContext> =
            client.create().expect("a producer");
        let record = BaseRecord::<str, str>::to(&topic).key("k").payload("bare");
        producer
            .send(record)
            .map_err(|(text, _)| text)
            .expect("sent");
        producer.flush(LONG).expect("flushed");
        client.set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = client.create().expect("a consumer");
        consumer.subscribe(&[&topic]).expect("subscribed");
        let began = Instant::now();
        let record = loop {
            assert!(began.elapsed() < LONG, "nothing came");
            if let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) {
                break record;
            }
        };
        assert_eq!(record.payload(), Some(&b"0"[..]));
    })
    .await
    .expect("joined");
    let entries = stream.range(&lines(), None, 10).await.expect("range");
    assert_eq!(texts(&entries), ["0", "bare"]);
    assert_eq!(entries[1].message.key.as_deref(), Some("k"));
}

async fn a_record_has_the_time_that_its_entry_reports_and_is_compressed_by_snappy() {
    let (server, prefix) = (shared(), MessageId::new().to_string());
    let backend = open(&format!("{}?prefix={prefix}.", server.url())).await;
    let happened_at = Timestamp::from_millis(1_700_000_000_123);
    let mut entry = NewMessage::new("the same words again ".repeat(100));
    entry.happened_at = Some(happened_at);
    let stream = stream_of(&backend);
    let appended = stream.append(&lines(), vec![entry]).await;
    for one in appended.expect("append") {
        one.expect("appended");
    }
    let segment = server.segment(&format!("{prefix}.lines"));
    // The header of a record batch: attributes after 21 bytes, the first timestamp after 27.
    assert_eq!(segment[22] & 7, 2, "the codec is not snappy");
    let first = i64::from_be_bytes(segment[27..35].try_into().expect("eight bytes"));
    assert_eq!(u64::try_from(first).ok(), Some(happened_at.as_millis()));
}

/// The partitions of keys, as `kafka.md` documents.
async fn keys_of_an_adopted_topic_go_where_the_reference_puts_them() {
    let (server, prefix) = (shared(), MessageId::new().to_string());
    let broker = format!("127.0.0.1:{}", server.port());
    // By the reference's partitioner, which the client of this test has too.
    let reference = move |topic: String, partitioner: &'static str, keys: Vec<String>| {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &broker)
            .set("group.id", "bare")
            .set("partitioner", partitioner);
        let producer: ThreadedProducer<DefaultProducerContext> =
            client.create().expect("a producer");
        for key in &keys {
            let record = BaseRecord::<str, str>::to(&topic).key(key).payload("bare");
            let sent = producer.send(record);
            sent.map_err(|(text, _)| text).expect("sent");
        }
        producer.flush(LONG).expect("flushed");
        client.set("auto.offset.reset", "earliest");
        let consumer: BaseConsumer = client.create().expect("a consumer");
        consumer.subscribe(&[&topic]).expect("subscribed");
        let began = Instant::now();
        let mut places = std::collections::BTreeMap::<String, BTreeSet<i32>>::new();
        let mut count = 0;
        while count < keys.len() * 2 {
            assert!(began.elapsed() < LONG, "{count} came");
            let Some(Ok(record)) = consumer.poll(Duration::from_millis(100)) else {
                continue;
            };
            let key = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
            places.entry(key).or_default().insert(record.partition());
            count += 1;
        }
        places.values().all(|partitions| partitions.len() == 1)
    };
    let keys: Vec<String> = (0..20).map(|number| format!("user-{number}")).collect();
    let cases = [
        ("theirs", "", "fnv1a_random"),
        ("ours", "", "consistent_random"),
        ("configured", "&partitioner=fnv1a", "fnv1a_random"),
    ];
    for (name, parameter, partitioner) in cases {
        let url = format!(
            "{}?prefix={prefix}-{name}.&partitions=3&compression=lz4{parameter}",
            server.url()
        );
        let topic = format!("{prefix}-{name}.lines");
        if name == "theirs" {
            deleted::make_parts(&topic, 3, &[]).await;
        }
        let stream = stream_of(&open(&url).await);
        let keyed = keys.iter().map(|key| NewMessage {
            key: Some(key.clone()),
            ..NewMessage::new("ours")
        });
        let appended = stream.append(&lines(), keyed.collect()).await;
        assert!(appended.expect("append").iter().all(Result::is_ok));
        let (reference, keys) = (reference.clone(), keys.clone());
        let agree = tokio::task::spawn_blocking(move || reference(topic, partitioner, keys));
        assert!(agree.await.expect("joined"), "{name}: another partition");
    }
}

async fn an_unavailable_broker_is_reported() {
    let mut server = Server::start();
    let backend = open(&format!("{}?timeout=1s", server.url())).await;
    let stream = stream_of(&backend);
    append(&stream, 0..1).await;
    server.kill();
    let refused = backend
        .lifecycle
        .health()
        .await
        .expect_err("the server is stopped");
    assert_eq!(
        refused.kind(),
        ErrorKind::Unavailable,
        "{}",
        refused.chain()
    );
    let refused = stream
        .stats(&lines())
        .await
        .expect_err("the server is stopped");
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    server.restart();
    append(&stream, 1..2).await;
    // Each connection recovers within two seconds.
    let began = Instant::now();
    let entries = loop {
        match stream.range(&lines(), None, 10).await {
            Ok(entries) => break entries,
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable),
        }
        assert!(began.elapsed() < LONG, "it does not come back");
    };
    assert_eq!(texts(&entries), ["0", "1"]);
}
