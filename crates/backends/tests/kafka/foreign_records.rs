//! Records of other clients that no message can hold, and topics that refuse moved messages.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use towpath_core::port::Queue;
use towpath_core::port::queue::{DeadLetter, Disposition, Selection, Settings};
use towpath_core::{Delivery, MessageId};
use towpath_testkit::servers::kafka::shared;

use super::deleted::make_with;
use super::open;
use super::queue::{enqueue, jobs, lease, settle, text};

const SOON: Duration = Duration::from_secs(20);

fn client() -> ClientConfig {
    let mut client = ClientConfig::new();
    client.set(
        "bootstrap.servers",
        format!("127.0.0.1:{}", shared().port()),
    );
    client
}

/// A record of another client: key, payload, headers.
type Odd = (
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(&'static str, Option<Vec<u8>>)>,
);

async fn produce(topic: &str, records: Vec<Odd>) {
    let topic = topic.to_owned();
    let produced = tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = client()
            .set("message.max.bytes", "60000000")
            .create()
            .expect("a producer");
        for (key, payload, headers) in &records {
            let headers = headers
                .iter()
                .fold(OwnedHeaders::new(), |all, (key, value)| {
                    all.insert(Header {
                        key,
                        value: value.as_ref(),
                    })
                });
            let mut record = BaseRecord::<[u8], [u8]>::to(&topic).headers(headers);
            record.key = key.as_deref();
            record.payload = payload.as_deref();
            let sent = producer.send(record);
            sent.map_err(|(text, _)| text).expect("sent");
            producer.flush(SOON).expect("flushed");
        }
    });
    produced.await.expect("produced");
}

/// Leases until `count` deliveries came.
async fn leased(queue: &Arc<dyn Queue>, count: usize) -> Vec<Delivery> {
    let (began, mut got) = (Instant::now(), Vec::new());
    while got.len() < count {
        assert!(began.elapsed() < SOON, "{} of {count} came", got.len());
        got.extend(lease(queue, count - got.len()).await);
    }
    got
}

async fn letters(queue: &Arc<dyn Queue>, count: usize) -> Vec<DeadLetter> {
    let began = Instant::now();
    loop {
        let letters = queue
            .dead_letters(&jobs(), None, 100)
            .await
            .expect("dead letters");
        if letters.len() >= count {
            return letters;
        }
        assert!(began.elapsed() < SOON, "{letters:?}");
        assert!(lease(queue, 1).await.is_empty());
    }
}

/// The newest record of a topic: key and headers as they are.
async fn newest(topic: &str) -> (Option<Vec<u8>>, Vec<(String, Option<Vec<u8>>)>) {
    let topic = topic.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client()
            .set("group.id", "bare")
            .set("fetch.message.max.bytes", "60000000")
            .set("receive.message.max.bytes", "100000000")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a consumer");
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Beginning)
            .expect("a partition");
        consumer.assign(&list).expect("assigned");
        let mut last = None;
        loop {
            match consumer.poll(SOON).expect("something") {
                Ok(record) => {
                    let headers = record.headers().into_iter().flat_map(Headers::iter);
                    let headers =
                        headers.map(|one| (one.key.to_owned(), one.value.map(<[u8]>::to_vec)));
                    last = Some((record.key().map(<[u8]>::to_vec), headers.collect()));
                }
                Err(_) => return last.expect("a record"),
            }
        }
    });
    read.await.expect("read")
}

/// Produces one record that the client would not: with a header whose name is not UTF-8.
fn produce_bare(topic: &str, payload: &[u8], header: &[u8]) {
    let varint = |number: usize| {
        let (mut number, mut bytes) = (number << 1, Vec::new());
        while number > 0x7f {
            bytes.push((number & 0x7f) as u8 | 0x80);
            number >>= 7;
        }
        bytes.push(number as u8);
        bytes
    };
    let counted = |bytes: &[u8]| [&varint(bytes.len()), bytes].concat();
    // Attributes, both deltas, no key; then payload, one header, its value.
    let record = [
        &[0, 0, 0, 1][..],
        &counted(payload),
        &varint(1),
        &counted(header),
        &counted(b"value"),
    ]
    .concat();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let now = (now.as_millis() as u64).to_be_bytes();
    // Attributes, last offset delta, two timestamps, no producer, one record.
    let body = [
        &[0; 6][..],
        &now,
        &now,
        &[0xff; 14],
        &[0, 0, 0, 1],
        &counted(&record),
    ]
    .concat();
    // Source: RFC 3720, CRC-32C.
    let crc = !body.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    });
    let sized = |bytes: &[u8]| [&(bytes.len() as u32).to_be_bytes(), bytes].concat();
    let rest = [&[0xff, 0xff, 0xff, 0xff, 2][..], &crc.to_be_bytes(), &body].concat();
    let batch = [&[0; 8][..], &sized(&rest)].concat();
    // Produce, version 7, no client id, no transaction, acks of all, 10 s; one topic, its first partition.
    let name = [&(topic.len() as u16).to_be_bytes(), topic.as_bytes()].concat();
    let request = [
        &[
            0, 0, 0, 7, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x27, 0x10,
        ][..],
        &[0, 0, 0, 1],
        &name,
        &[0, 0, 0, 1, 0, 0, 0, 0],
        &sized(&batch),
    ]
    .concat();
    let mut broker = TcpStream::connect(("127.0.0.1", shared().port())).expect("connected");
    broker.write_all(&sized(&request)).expect("sent");
    let mut length = [0; 4];
    broker.read_exact(&mut length).expect("answered");
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    broker.read_exact(&mut answer).expect("answered");
    // Correlation id, one topic, one partition of it, its error.
    let at = 4 + 4 + name.len() + 4 + 4;
    assert_eq!(answer[at..at + 2], [0, 0], "{answer:?}");
}

pub(super) async fn a_header_name_that_is_not_text_does_not_stop_a_queue() {
    let prefix = MessageId::new().to_string();
    let backend = open(&format!("{}?prefix={prefix}.", shared().url())).await;
    let queue = backend.require_queue("the test").expect("queues");
    enqueue(&queue, 0..1).await;
    let topic = format!("{prefix}.jobs");
    produce_bare(&topic, b"plain", b"name");
    produce_bare(&topic, b"odd", &[b'n', 0xff]);
    enqueue(&queue, 1..2).await;
    let got = leased(&queue, 3).await;
    let came: Vec<String> = got.iter().map(text).collect();
    assert_eq!(came, ["0", "plain", "1"]);
    assert_eq!(got[1].message.headers.get("name"), Some("value"));
    let letters = letters(&queue, 1).await;
    assert!(
        letters[0].reason.contains("header 1 is not UTF-8"),
        "{}",
        letters[0].reason
    );
    assert_eq!(letters[0].message.payload, "odd");
}

pub(super) async fn records_that_no_message_can_hold_become_dead_letters() {
    let prefix = MessageId::new().to_string();
    let topic = format!("{prefix}.jobs");
    // As a client made it whose records are large.
    make_with(&topic, &[("max.message.bytes", "60000000")]).await;
    let backend = open(&format!("{}?prefix={prefix}.", shared().url())).await;
    let queue = backend.require_queue("the test").expect("queues");
    let payload = |text: &str| Some(text.as_bytes().to_vec());
    let key = |length| Some(vec![b'k'; length]);
    let header = |length| vec![("big", Some(vec![b'h'; length]))];
    produce(
        &topic,
        vec![
            (key(200_000), payload("key of 200 KB"), Vec::new()),
            (key(1_025), payload("key over the limit"), Vec::new()),
            (key(1_024), payload("key at the limit"), Vec::new()),
            (None, payload("headers of 3 MB"), header(3_000_000)),
            (None, Some(vec![b'p'; 17_000_000]), Vec::new()),
            (key(10), Some(vec![b'p'; 40_000_000]), header(100)),
            (None, None, Vec::new()),
            (
                Some(Vec::new()),
                payload("empty key"),
                vec![("", payload("empty name"))],
            ),
            (
                Some(vec![b'k', 0xff, 0]),
                payload("bytes"),
                vec![
                    ("trace", Some(vec![0xfe, 0xff])),
                    ("twice", payload("one")),
                    ("twice", payload("two")),
                    ("null", None),
                ],
            ),
            (None, payload("last"), Vec::new()),
        ],
    )
    .await;
    let mut got = BTreeMap::new();
    for delivery in leased(&queue, 5).await {
        got.insert(text(&delivery), delivery);
    }
    let came: Vec<&str> = got.keys().map(String::as_str).collect();
    assert_eq!(came, ["", "bytes", "empty key", "key at the limit", "last"]);
    let letters = letters(&queue, 5).await;
    let reasons: Vec<&str> = letters
        .iter()
        .map(|letter| letter.reason.as_str())
        .collect();
    let expected = [
        "key of 200000 bytes",
        "key of 1025 bytes",
        "headers of 3000003 bytes",
        "payload of 17000000 bytes",
        "payload of 40000000 bytes",
    ];
    let letter = |reason: &str| {
        let found = letters.iter().find(|letter| letter.reason.contains(reason));
        found.unwrap_or_else(|| panic!("{reason}: {reasons:?}"))
    };
    for (reason, at) in expected.iter().zip([0, 1, 3, 4, 5]) {
        let text = &letter(reason).reason;
        assert!(text.contains(&format!("record {topic}/0/{at}")), "{text}");
    }
    assert_eq!(letter(expected[0]).message.payload, "key of 200 KB");
    assert_eq!(letter(expected[3]).message.payload.len(), 17_000_000);
    let cut = letter(expected[4]);
    assert!(cut.message.payload.is_empty() && cut.reason.contains("payload and headers are in"));
    // Bytes that are not UTF-8 are escaped, and copies keep the original bytes.
    let bytes = &got["bytes"];
    assert_eq!(bytes.message.key.as_deref(), Some("k\\xff\0"));
    assert_eq!(bytes.message.headers.get("trace"), Some("\\xfe\\xff"));
    for (name, delivery) in &got {
        let disposition = match name.as_str() {
            "bytes" => Disposition::DeadLetter {
                reason: "no".to_owned(),
            },
            _ => Disposition::Ack,
        };
        assert!(settle(&queue, delivery, disposition).await, "{name}");
    }
    let only = Selection::Ids(vec![bytes.message.id]);
    assert_eq!(queue.redrive(&jobs(), &only).await.expect("redriven"), 1);
    let (key, headers) = newest(&topic).await;
    assert_eq!(key, Some(vec![b'k', 0xff, 0]));
    let theirs = headers
        .into_iter()
        .filter(|(name, _)| !name.starts_with("towpath-"));
    let theirs: Vec<_> = theirs.collect();
    assert_eq!(
        theirs,
        [
            ("trace".to_owned(), Some(vec![0xfe, 0xff])),
            ("twice".to_owned(), payload("one")),
            ("twice".to_owned(), payload("two")),
            ("null".to_owned(), None),
        ]
    );
    let again = leased(&queue, 1).await.remove(0);
    assert!(settle(&queue, &again, Disposition::Ack).await);
    // One without its payload stays; the others are refused once more.
    assert_eq!(
        queue
            .redrive(&jobs(), &Selection::All)
            .await
            .expect("redriven"),
        4
    );
    self::letters(&queue, 5).await;
    assert_eq!(
        queue
            .drop_dead(&jobs(), &Selection::All)
            .await
            .expect("dropped"),
        5
    );
    let stats = queue.stats(&jobs()).await.expect("stats");
    assert_eq!(
        (stats.ready, stats.leased, stats.dead),
        (0, 0, 0),
        "{stats:?}"
    );
}

pub(super) async fn a_message_too_large_to_be_moved_does_not_block() {
    let prefix = MessageId::new().to_string();
    let small = [("max.message.bytes", "100000")];
    let compacted = [
        ("max.message.bytes", "100000"),
        ("cleanup.policy", "compact"),
    ];
    let topic = |suffix: &str| format!("{prefix}.jobs{suffix}");
    make_with(&topic(".retry"), &small).await;
    make_with(&topic(".dead"), &compacted).await;
    let backend = open(&format!("{}?prefix={prefix}.", shared().url())).await;
    let queue = backend.require_queue("the test").expect("queues");
    enqueue(&queue, 0..1).await;
    // Bytes that no compression makes small.
    let noise = |seed: u64| {
        let mut state = seed;
        let next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next)
            .take(300_000)
            .collect::<Vec<u8>>()
    };
    produce(
        &topic(""),
        vec![
            (None, Some(noise(1)), Vec::new()),
            (None, Some(noise(2)), Vec::new()),
        ],
    )
    .await;
    enqueue(&queue, 1..2).await;
    let got = leased(&queue, 4).await;
    let (big, little): (Vec<_>, Vec<_>) = got
        .iter()
        .partition(|one| one.message.payload.len() > 1_000);
    let retry = Disposition::Retry {
        after: Duration::from_millis(50),
        error: "not now".to_owned(),
    };
    assert!(settle(&queue, big[0], retry.clone()).await);
    assert!(
        settle(
            &queue,
            big[1],
            Disposition::DeadLetter {
                reason: "poison".to_owned()
            }
        )
        .await
    );
    assert!(settle(&queue, little[0], retry).await);
    assert!(settle(&queue, little[1], Disposition::Ack).await);
    let again = leased(&queue, 1).await.remove(0);
    assert!(settle(&queue, &again, Disposition::Ack).await);
    let letters = letters(&queue, 2).await;
    for (letter, (reason, at)) in letters.iter().zip([("not now", 1), ("poison", 2)]) {
        let place = format!("{}/0/{at}", topic(""));
        let text = &letter.reason;
        assert!(text.contains(reason) && text.contains(&place), "{text}");
    }
}

pub(super) async fn topics_that_drop_messages_are_reported() {
    let prefix = MessageId::new().to_string();
    let backend = open(&format!("{}?prefix={prefix}.", shared().url())).await;
    let queue = backend.require_queue("the test").expect("queues");
    let short = [
        ("retention.ms", "3600000"),
        ("cleanup.policy", "compact,delete"),
    ];
    make_with(&format!("{prefix}.jobs"), &short).await;
    let settings = Settings::default();
    queue.declare(&jobs(), &settings).await.expect("declared");
    let health = backend.lifecycle.health().await.expect("health");
    let text = health.warnings.join("\n");
    for expected in [
        "one replica",
        "retention.ms=3600000",
        "cleanup.policy=compact,delete",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
}
