//! Queues: several processes, a broker that is killed, messages of others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, LeaseRequest, Settlement};
use towpath_core::{ConsumerId, Delivery, MessageId, NewMessage, QueueName};
use towpath_testkit::servers::kafka::{Server, shared};

use super::{LONG, open};

pub(super) fn jobs() -> QueueName {
    QueueName::new("jobs").expect("a valid name")
}

pub(super) fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(&delivery.message.payload).into_owned()
}

/// Leases ready messages; none while a node is down or during a rebalance.
pub(super) async fn lease(queue: &Arc<dyn Queue>, max: usize) -> Vec<Delivery> {
    let request = LeaseRequest {
        queue: jobs(),
        consumer: ConsumerId::new("one").expect("a valid name"),
        max,
        in_flight: max,
        lease: Duration::from_secs(30),
        wait: Duration::from_millis(100),
    };
    queue.lease(request).await.unwrap_or_default()
}

/// Enqueues numbers, each tried until it is taken.
pub(super) async fn enqueue(queue: &Arc<dyn Queue>, numbers: std::ops::Range<usize>) {
    let mut left: Vec<usize> = numbers.collect();
    let began = Instant::now();
    while !left.is_empty() {
        assert!(began.elapsed() < LONG * 2, "{left:?} are not taken");
        let messages = left.iter().map(|one| NewMessage::new(one.to_string()));
        let Ok(outcomes) = queue.enqueue(&jobs(), messages.collect()).await else {
            continue;
        };
        let failed = left.iter().zip(outcomes).filter(|(_, one)| one.is_err());
        left = failed.map(|(one, _)| *one).collect();
    }
}

pub(super) async fn settle(
    queue: &Arc<dyn Queue>,
    delivery: &Delivery,
    disposition: Disposition,
) -> bool {
    let settlement = Settlement {
        receipt: delivery.receipt.clone(),
        disposition,
    };
    let settled = queue.settle(vec![settlement]).await;
    settled.is_ok_and(|outcomes| outcomes[0].is_ok())
}

pub(super) async fn processes_share_a_queue_and_its_remaining_messages() {
    let url = format!(
        "{}?prefix={}.&partitions=4",
        shared().url(),
        MessageId::new()
    );
    let (one, two) = (open(&url).await, open(&url).await);
    let queues = [&one, &two].map(|backend| backend.require_queue("the test").expect("queues"));
    // Both have joined before there is anything.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        for queue in &queues {
            lease(queue, 1).await;
        }
    }
    for number in 0..40 {
        enqueue(&queues[0], number * 10..number * 10 + 10).await;
    }
    // In-flight messages of a moved partition are redelivered.
    let (mut seen, mut done) = (BTreeSet::new(), BTreeSet::new());
    let began = Instant::now();
    while seen.len() < 400 {
        assert!(began.elapsed() < LONG, "{} seen", seen.len());
        for (at, queue) in queues.iter().enumerate() {
            for delivery in lease(queue, 20).await {
                seen.insert(text(&delivery));
                // The first keeps its messages.
                if at == 1 && settle(queue, &delivery, Disposition::Ack).await {
                    assert!(done.insert(text(&delivery)), "it came twice");
                }
            }
        }
    }
    assert!((1..400).contains(&done.len()), "{} done", done.len());
    // Then it leaves: the second gets the messages of the first, counted as delivered.
    one.lifecycle.close().await.expect("closed");
    while done.len() < 400 {
        assert!(began.elapsed() < LONG, "{} done", done.len());
        for delivery in lease(&queues[1], 50).await {
            assert!(delivery.attempt >= 2, "{}", text(&delivery));
            if settle(&queues[1], &delivery, Disposition::Ack).await {
                assert!(done.insert(text(&delivery)), "it came twice");
            }
        }
    }
    let stats = queues[1].stats(&jobs()).await.expect("stats");
    assert_eq!((stats.ready, stats.leased), (0, 0), "{stats:?}");
}

pub(super) async fn a_queue_outlives_its_broker() {
    let mut server = Server::start();
    let backend = open(&format!("{}?timeout=2s", server.url())).await;
    let queue = backend.require_queue("the test").expect("queues");
    enqueue(&queue, 0..300).await;
    let (mut acked, mut attempts) = (BTreeSet::new(), BTreeMap::<String, u32>::new());
    let mut maybe_acked = BTreeSet::new();
    let (began, mut rounds) = (Instant::now(), 0);
    while acked.len() < 300 {
        assert!(began.elapsed() < LONG * 2, "{} acked", acked.len());
        for delivery in lease(&queue, 10).await {
            let number = text(&delivery);
            let seen = attempts.entry(number.clone()).or_default();
            assert!(
                delivery.attempt > *seen || maybe_acked.contains(&number),
                "{number}"
            );
            assert!(
                !acked.contains(&number),
                "{number} was acked and delivered again"
            );
            *seen = delivery.attempt;
            // Every third one fails once, and waits in another topic meanwhile.
            if delivery.attempt == 1 && number.ends_with(['0', '3', '6']) {
                let disposition = Disposition::Retry {
                    after: Duration::from_millis(200),
                    error: "no".to_owned(),
                };
                settle(&queue, &delivery, disposition).await;
            } else if settle(&queue, &delivery, Disposition::Ack).await {
                acked.insert(number);
            } else {
                maybe_acked.insert(number);
            }
        }
        rounds += 1;
        if rounds == 5 || rounds == 15 {
            server.kill();
            tokio::time::sleep(Duration::from_millis(500)).await;
            server.restart();
        }
    }
    let left = lease(&queue, 10).await;
    assert!(
        left.iter().all(|one| maybe_acked.contains(&text(one))),
        "{left:?}"
    );
}

pub(super) async fn messages_of_others_are_delivered() {
    let (server, prefix) = (shared(), MessageId::new().to_string());
    let backend = open(&format!("{}?prefix={prefix}.", server.url())).await;
    let queue = backend.require_queue("the test").expect("queues");
    enqueue(&queue, 0..1).await;
    let (topic, broker) = (
        format!("{prefix}.jobs"),
        format!("127.0.0.1:{}", server.port()),
    );
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", broker)
            .create()
            .expect("a producer");
        let record = BaseRecord::<str, str>::to(&topic).key("k").payload("bare");
        producer
            .send(record)
            .map_err(|(text, _)| text)
            .expect("sent");
        producer.flush(LONG).expect("flushed");
    })
    .await
    .expect("joined");
    let (began, mut got) = (Instant::now(), Vec::new());
    while got.len() < 2 {
        assert!(began.elapsed() < LONG, "{got:?}");
        got.extend(lease(&queue, 2).await);
    }
    assert_eq!(got.iter().map(text).collect::<Vec<_>>(), ["0", "bare"]);
    // It goes through the dead letters and back with its key and its payload.
    let reason = "poison".to_owned();
    assert!(settle(&queue, &got[1], Disposition::DeadLetter { reason }).await);
    let dead = queue
        .dead_letters(&jobs(), None, 10)
        .await
        .expect("dead letters");
    assert_eq!(dead[0].message.key.as_deref(), Some("k"));
    let all = towpath_core::port::queue::Selection::All;
    assert_eq!(queue.redrive(&jobs(), &all).await.expect("redrive"), 1);
    let again = loop {
        assert!(began.elapsed() < LONG, "it does not come back");
        if let Some(delivery) = lease(&queue, 1).await.pop() {
            break delivery;
        }
    };
    assert_eq!((text(&again).as_str(), again.attempt), ("bare", 1));
    assert_eq!(again.message.key.as_deref(), Some("k"));
}
