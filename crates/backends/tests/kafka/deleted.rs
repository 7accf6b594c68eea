//! Topics that are deleted while they are used, and records that are deleted before they are consumed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::port::queue::Disposition;
use towpath_core::port::source_offsets::{AppendAt, AppendOutcome};
use towpath_core::{ErrorKind, MessageId, NewMessage, QueueName};
use towpath_testkit::servers::kafka::shared;

use super::queue::{enqueue, jobs, lease, settle, text};
use super::{create_group, lines, open, stream_of, texts};

/// Longest time until a deleted topic exists again.
const SOON: Duration = Duration::from_secs(10);

fn admin() -> AdminClient<DefaultClientContext> {
    let broker = format!("127.0.0.1:{}", shared().port());
    let client = ClientConfig::new()
        .set("bootstrap.servers", broker)
        .create();
    client.expect("a client")
}

async fn delete(topic: &str) {
    let options = AdminOptions::new().operation_timeout(Some(SOON));
    let deleted = admin().delete_topics(&[topic], &options).await;
    deleted.expect("asked").remove(0).expect("deleted");
}

/// Deletes every topic of this prefix.
pub(crate) async fn lose(prefix: &str) {
    let client = admin();
    let all = tokio::task::spawn_blocking(move || {
        let metadata = client.inner().fetch_metadata(None, SOON);
        let metadata = metadata.expect("metadata");
        let names = metadata
            .topics()
            .iter()
            .map(|topic| topic.name().to_owned());
        names.collect::<Vec<_>>()
    });
    for topic in all.await.expect("joined") {
        if topic.starts_with(prefix) {
            delete(&topic).await;
        }
    }
}

async fn make(topic: &str) {
    make_with(topic, &[]).await;
}

/// Makes a topic, once it can be made.
pub(super) async fn make_with(topic: &str, settings: &[(&str, &str)]) {
    make_parts(topic, 1, settings).await;
}

/// The same with a number of partitions.
pub(super) async fn make_parts(topic: &str, partitions: i32, settings: &[(&str, &str)]) {
    let began = Instant::now();
    loop {
        let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        let new = { settings.iter() }.fold(new, |new, (name, value)| new.set(name, value));
        let options = AdminOptions::new().operation_timeout(Some(SOON));
        let made = admin().create_topics([&new], &options).await;
        if made.expect("asked").remove(0).is_ok() {
            return;
        }
        assert!(began.elapsed() < SOON, "{topic} cannot be made");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Acks until all of these came. How long that took.
async fn drain(queue: &Arc<dyn Queue>, numbers: std::ops::Range<usize>) -> Duration {
    let mut left: BTreeSet<String> = numbers.map(|number| number.to_string()).collect();
    let began = Instant::now();
    while !left.is_empty() {
        assert!(began.elapsed() < SOON, "{left:?} do not come");
        for delivery in lease(queue, 100).await {
            if settle(queue, &delivery, Disposition::Ack).await {
                left.remove(&text(&delivery));
            }
        }
    }
    began.elapsed()
}

async fn warnings(backend: &Backend) -> String {
    let health = backend.lifecycle.health().await.expect("health");
    health.warnings.join("\n")
}

pub(super) async fn deleted_topics_of_a_queue_are_declared_again() {
    let prefix = MessageId::new().to_string();
    let url = format!("{}?prefix={prefix}.", shared().url());
    // As two processes: one enqueues, the other one works.
    let (api, worker) = (open(&url).await, open(&url).await);
    let front = api.require_queue("the test").expect("queues");
    let back = worker.require_queue("the test").expect("queues");
    let topic = |suffix: &str| format!("{prefix}.jobs{suffix}");
    enqueue(&front, 0..5).await;
    drain(&back, 0..5).await;
    // A call made at once gets the broker's error.
    delete(&topic("")).await;
    let began = Instant::now();
    enqueue(&front, 5..15).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // The worker was behind the fifth record of the topic that was there before.
    drain(&back, 5..15).await;
    assert!(
        warnings(&api).await.contains("deleted"),
        "{}",
        warnings(&api).await
    );
    // Without a producer the worker declares it.
    delete(&topic("")).await;
    let began = Instant::now();
    while admin_lacks(&topic("")).await {
        assert!(began.elapsed() < SOON, "it is not made again");
        lease(&back, 1).await;
    }
    enqueue(&front, 15..17).await;
    drain(&back, 15..16).await;

    for suffix in [".retry", ".dead"] {
        enqueue(&front, 20..22).await;
        let began = Instant::now();
        let mut held = Vec::new();
        while held.len() < 2 {
            assert!(began.elapsed() < SOON, "{suffix}: nothing comes");
            held.extend(lease(&back, 2).await);
        }
        let retry = |after| Disposition::Retry {
            after: Duration::from_millis(after),
            error: "no".to_owned(),
        };
        let dead = || Disposition::DeadLetter {
            reason: "poison".to_owned(),
        };
        // Both topics are in use, and then one is not there.
        for one in &held[..1] {
            assert!(
                settle(
                    &back,
                    one,
                    if suffix == ".dead" { dead() } else { retry(10) }
                )
                .await
            );
        }
        delete(&topic(suffix)).await;
        let began = Instant::now();
        let disposition = || if suffix == ".dead" { dead() } else { retry(10) };
        let mut settled = settle(&back, &held[1], disposition()).await;
        while !settled {
            assert!(began.elapsed() < SOON, "{suffix}: nothing can be settled");
            // A member that joined again has it again.
            for delivery in lease(&back, 2).await {
                settled |= settle(&back, &delivery, disposition()).await;
            }
        }
        if suffix == ".retry" {
            drain(&back, 21..22).await;
        } else {
            let letters = back
                .dead_letters(&jobs(), None, 10)
                .await
                .expect("dead letters");
            assert_eq!(letters.len(), 1, "{letters:?}");
            assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        }
    }
}

async fn admin_lacks(topic: &str) -> bool {
    let (client, topic) = (admin(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        let metadata = client.inner().fetch_metadata(Some(&topic), SOON);
        let metadata = metadata.expect("metadata");
        metadata.topics()[0].error().is_some()
    })
    .await
    .expect("joined")
}

pub(super) async fn a_topic_that_others_make_again_is_read_from_its_start() {
    let prefix = MessageId::new().to_string();
    let url = format!("{}?prefix={prefix}.", shared().url());
    let (api, worker) = (open(&url).await, open(&url).await);
    let front = api.require_queue("the test").expect("queues");
    let back = worker.require_queue("the test").expect("queues");
    enqueue(&front, 0..5).await;
    drain(&back, 0..5).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    // It works all the time, also in the moment in which the topic becomes another one.
    let working = tokio::spawn({
        let (back, stop) = (Arc::clone(&back), Arc::clone(&stop));
        async move {
            let mut seen = BTreeSet::new();
            while !stop.load(std::sync::atomic::Ordering::Acquire) {
                for delivery in lease(&back, 100).await {
                    if settle(&back, &delivery, Disposition::Ack).await {
                        seen.insert(text(&delivery));
                    }
                }
            }
            seen
        }
    });
    let mut next = 5;
    for _ in 0..3 {
        delete(&format!("{prefix}.jobs")).await;
        make(&format!("{prefix}.jobs")).await;
        // More than the worker had read of the one before.
        enqueue(&front, next..next + 40).await;
        next += 40;
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Release);
    let seen = working.await.expect("joined");
    let missing: Vec<usize> = (5..next)
        .filter(|one| !seen.contains(&one.to_string()))
        .collect();
    assert!(missing.is_empty(), "{missing:?} never came");
}

pub(super) async fn deleted_topics_of_a_stream_are_declared_again() {
    let prefix = MessageId::new().to_string();
    let backend = open(&format!("{}?prefix={prefix}.", shared().url())).await;
    let stream = stream_of(&backend);
    create_group(&stream).await;
    super::append(&stream, 0..5).await;
    super::read_all(&[(&stream, "one")], 5).await;
    let topic = format!("{prefix}.lines");
    delete(&topic).await;
    let began = Instant::now();
    super::append(&stream, 5..15).await;
    assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
    // As an inlet does: a group that is gone is made again.
    let mut seen = BTreeSet::new();
    while seen.len() < 10 {
        assert!(began.elapsed() < SOON, "{seen:?} came");
        let request = super::request("one", Duration::from_millis(200));
        match stream.read(request).await {
            Ok(entries) => seen.extend(texts(&entries)),
            Err(error) if error.kind() == ErrorKind::NotFound => create_group(&stream).await,
            Err(error) => panic!("{error:?}"),
        }
    }
    // A relay or a reader: entries and position in one step.
    let positions = backend
        .require_source_offsets("the test")
        .expect("positions");
    let step = |number: u64| AppendAt {
        source: "outbox".to_owned(),
        from: (number > 0).then(|| Bytes::from(number.to_string())),
        to: Bytes::from((number + 1).to_string()),
        stream: lines(),
        entries: vec![NewMessage::new(format!("step {number}"))],
        dead: QueueName::new("lines.dead").expect("a valid name"),
        rejected: Vec::new(),
    };
    assert_eq!(positions.position("outbox").await.expect("position"), None);
    assert_eq!(
        positions.append_at(step(0)).await.expect("step"),
        AppendOutcome::Appended
    );
    for (number, topic) in [(1, &topic), (2, &format!("{prefix}.towpath.positions"))] {
        delete(topic).await;
        let began = Instant::now();
        let mut next = step(number);
        loop {
            match positions.append_at(next.clone()).await {
                Ok(AppendOutcome::Appended) => break,
                // The position was deleted with its topic: the append conflicts.
                Ok(AppendOutcome::OffsetConflict(at)) => next.from = at,
                // A relay takes `NotFound` and `Invalid` for the event's fault.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error:?}"),
            }
            assert!(began.elapsed() < SOON, "{topic} is not made again");
        }
        assert!(began.elapsed() < SOON, "{topic}: {:?}", began.elapsed());
    }
    let there = stream.range(&lines(), None, 100).await.expect("range");
    assert_eq!(texts(&there), ["step 1", "step 2"]);
}

pub(super) async fn records_that_were_deleted_unconsumed_are_named() {
    let prefix = MessageId::new().to_string();
    let url = format!("{}?prefix={prefix}.", shared().url());
    let topic = format!("{prefix}.jobs");
    let worker = open(&url).await;
    let queue = worker.require_queue("the test").expect("queues");
    enqueue(&queue, 0..10).await;
    drain(&queue, 0..10).await;
    worker.lifecycle.close().await.expect("closed");
    // While no worker runs, three of five are deleted as retention does it.
    let api = open(&url).await;
    let front = api.require_queue("the test").expect("queues");
    enqueue(&front, 10..15).await;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(13))
        .expect("an offset");
    let deleted = admin().delete_records(&list, &AdminOptions::new()).await;
    deleted.expect("deleted");
    let worker = open(&url).await;
    let queue = worker.require_queue("the test").expect("queues");
    drain(&queue, 13..15).await;
    let text = warnings(&worker).await;
    assert!(
        text.contains("lost 3 records") && text.contains(&topic),
        "{text}"
    );
    worker.lifecycle.close().await.expect("closed");
    // The topic is another one, and the group's position is set behind its end.
    delete(&topic).await;
    make(&topic).await;
    let client: rdkafka::consumer::BaseConsumer = ClientConfig::new()
        .set(
            "bootstrap.servers",
            format!("127.0.0.1:{}", shared().port()),
        )
        .set("group.id", &topic)
        .create()
        .expect("a client");
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(15))
        .expect("an offset");
    rdkafka::consumer::Consumer::commit(&client, &list, rdkafka::consumer::CommitMode::Sync)
        .expect("committed");
    drop(client);
    enqueue(&front, 20..23).await;
    let worker = open(&url).await;
    let queue = worker.require_queue("the test").expect("queues");
    drain(&queue, 20..23).await;
    let text = warnings(&worker).await;
    assert!(
        text.contains("lost 12 records") && text.contains("past the end"),
        "{text}"
    );
}
