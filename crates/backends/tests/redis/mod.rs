//! Redis's promises beyond the ports: raw lists, broken connections, restarts, places, exact limits.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towpath_core::backend::Backend;
use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, Enqueued, LeaseRequest, Settlement, Stats};
use towpath_core::{ConsumerId, Delivery, NewMessage, QueueName, SystemClock};
use towpath_testkit::Own;
use towpath_testkit::servers::redis;

/// Declares the trials by function name.
macro_rules! promises {
    ($($name:ident),* $(,)?) => {
        vec![$((stringify!($name), || Box::pin($name()))),*]
    };
}

mod atomic;
mod batching;
mod cluster;
mod faults;
mod foreign_lists;
pub(crate) mod limits;
mod refused;
mod topologies;

pub(crate) fn promises() -> Vec<Own> {
    [
        atomic::promises(),
        cluster::promises(),
        foreign_lists::promises(),
        faults::promises(),
        topologies::promises(),
        refused::promises(),
        limits::promises(),
        batching::promises(),
    ]
    .concat()
}

/// Deletes every key of the prefix at this URL on the shared server.
pub(crate) fn lose(url: &str) {
    const DELETE: &str = "for _, key in ipairs(redis.call('KEYS', '*' .. ARGV[1] .. '*')) do redis.call('DEL', key) end";
    let prefix = url.split("prefix=").nth(1).expect("a prefix");
    let reply = bare(&["EVAL", DELETE, "0", prefix]);
    assert_eq!(reply, "$-1\r\n");
}

/// A prefix that no other test has.
fn prefix() -> String {
    format!("{}:", towpath_core::MessageId::new())
}

async fn open(url: &str) -> Backend {
    towpath_backends::open(url, Arc::new(SystemClock::new()))
        .await
        .unwrap_or_else(|error| panic!("opening {url}: {error:?}"))
}

/// A backend on the shared server, and the prefix it works under.
async fn fresh(parameters: &str) -> (Backend, String) {
    let prefix = prefix();
    let backend = open(&url(&prefix, parameters)).await;
    (backend, prefix)
}

fn url(prefix: &str, parameters: &str) -> String {
    format!("{}?prefix={prefix}&{parameters}", redis::shared().url())
}

fn queue_of(backend: &Backend) -> Arc<dyn Queue> {
    backend.require_queue("the test").expect("redis has queues")
}

fn messages() -> QueueName {
    QueueName::new("messages").expect("a valid name")
}

fn consumer(name: &str) -> ConsumerId {
    ConsumerId::new(name).expect("a valid name")
}

async fn enqueue(queue: &Arc<dyn Queue>, batch: Vec<NewMessage>) -> Vec<Enqueued> {
    let outcomes = queue.enqueue(&messages(), batch).await.expect("enqueue");
    outcomes
        .into_iter()
        .map(|outcome| outcome.expect("taken"))
        .collect()
}

async fn lease(queue: &Arc<dyn Queue>, who: &str, wait: Duration) -> Vec<Delivery> {
    try_lease(queue, who, wait).await.expect("lease")
}

async fn try_lease(
    queue: &Arc<dyn Queue>,
    who: &str,
    wait: Duration,
) -> towpath_core::Result<Vec<Delivery>> {
    let request = LeaseRequest {
        queue: messages(),
        consumer: consumer(who),
        max: 100,
        in_flight: 100,
        lease: Duration::from_secs(600),
        wait,
    };
    queue.lease(request).await
}

fn acks(deliveries: &[Delivery]) -> Vec<Settlement> {
    deliveries
        .iter()
        .map(|one| Settlement {
            receipt: one.receipt.clone(),
            disposition: Disposition::Ack,
        })
        .collect()
}

fn payloads(deliveries: &[Delivery]) -> Vec<String> {
    deliveries
        .iter()
        .map(|one| String::from_utf8_lossy(&one.message.payload).into_owned())
        .collect()
}

async fn stats(queue: &Arc<dyn Queue>) -> Stats {
    let stats = queue.stats(&messages()).await.expect("stats");
    let there =
        stats.ready + stats.delayed + stats.leased + stats.dead + stats.acked + stats.dropped;
    assert_eq!(stats.enqueued, there, "{stats:?}");
    stats
}

/// A bare client of a server: words in, the first bytes of the reply out.
fn bare(words: &[&str]) -> String {
    redis::shared().command(words)
}

/// Waits for a condition with a deadline.
async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(Instant::now() < deadline, "waited 20 s for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
