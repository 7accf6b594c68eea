//! Three brokers, of which one at a time is killed, and groups that never come to rest, under load.
//!
//! A ledger records the promises: acknowledged messages are delivered, and acked ones are not redelivered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use towpath_core::port::Queue;
use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::{Delivery, MessageId, NewMessage};
use towpath_testkit::ledger::Ledger;
use towpath_testkit::servers::kafka::{Server, shared};

use super::open;
use super::queue::{jobs, lease, text};

/// Longest wait for acknowledged messages after the last fault.
const DRAINED: Duration = Duration::from_secs(60);

/// Most messages that a consumer leases at once.
const BATCH: usize = 10;

/// Processing time of a message while groups rebalance.
const WORK: Duration = Duration::from_millis(40);

/// The observations of a run.
struct Run {
    ledger: Ledger,
    stop: AtomicBool,
    taken: AtomicUsize,
    /// Acknowledged and not yet delivered.
    left: Mutex<BTreeSet<String>>,
    /// Ids of acked messages.
    acked: Mutex<BTreeSet<String>>,
    /// The highest attempt of each delivery.
    attempts: Mutex<BTreeMap<String, u32>>,
    /// Broken promises.
    broken: Mutex<Vec<String>>,
}

impl Run {
    fn begin() -> (Arc<Self>, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let run = Self {
            ledger: Ledger::begin(folder.path().join("ledger")).expect("a ledger"),
            stop: AtomicBool::new(false),
            taken: AtomicUsize::new(0),
            left: Mutex::default(),
            acked: Mutex::default(),
            attempts: Mutex::default(),
            broken: Mutex::default(),
        };
        (Arc::new(run), folder)
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Enqueues ten numbers after each pause until the run stops, each until it is acknowledged.
    async fn produce(self: Arc<Self>, queue: Arc<dyn Queue>, pause: Duration) {
        let mut next = 0;
        while !self.stops() {
            let ids: Vec<String> = (next..next + 10).map(|one| one.to_string()).collect();
            next += 10;
            let mut left = ids;
            while !left.is_empty() {
                for id in &left {
                    self.ledger.offered("producer", id, None);
                }
                let messages = left.iter().map(|id| NewMessage::new(id.clone()));
                let outcomes = queue.enqueue(&jobs(), messages.collect()).await;
                let Ok(outcomes) = outcomes else { continue };
                let mut failed = Vec::new();
                for (id, outcome) in left.into_iter().zip(outcomes) {
                    match outcome {
                        Ok(_) => {
                            self.ledger.acknowledged("producer", &id);
                            self.left.lock().expect("whole").insert(id);
                            self.taken.fetch_add(1, Ordering::AcqRel);
                        }
                        Err(_) => failed.push(id),
                    }
                }
                left = failed;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Leases and acks until `is_done`; each message is worked on for as long.
    async fn consume(&self, queue: &Arc<dyn Queue>, work: Duration, is_done: impl Fn() -> bool) {
        while !is_done() {
            let deliveries = lease(queue, BATCH).await;
            let keys: Vec<String> = deliveries.iter().map(|one| self.note(one)).collect();
            tokio::time::sleep(work * u32::try_from(keys.len()).expect("few")).await;
            let settlements = deliveries.iter().map(|delivery| Settlement {
                receipt: delivery.receipt.clone(),
                disposition: Disposition::Ack,
            });
            let outcomes = queue.settle(settlements.collect()).await;
            let outcomes = outcomes.unwrap_or_default();
            for ((delivery, key), outcome) in deliveries.iter().zip(keys).zip(outcomes) {
                if outcome.is_ok() {
                    self.acked.lock().expect("whole").insert(key);
                    self.ledger.written("consumer", &text(delivery));
                    self.left.lock().expect("whole").remove(&text(delivery));
                }
            }
        }
    }

    /// Consumes until all that was acknowledged came out, once the run has stopped.
    async fn drain(self: Arc<Self>, queue: Arc<dyn Queue>, work: Duration) {
        let stopped = Mutex::new(None::<Instant>);
        let is_done = || {
            if !self.stops() {
                return false;
            }
            let since = *stopped
                .lock()
                .expect("whole")
                .get_or_insert_with(Instant::now);
            self.left.lock().expect("whole").is_empty() || since.elapsed() > DRAINED
        };
        self.consume(&queue, work, is_done).await;
    }

    /// Notes a delivery. The message's id.
    fn note(&self, delivery: &Delivery) -> String {
        let key = delivery.message.id.to_string();
        let mut attempts = self.attempts.lock().expect("whole");
        let most = attempts.entry(key.clone()).or_default();
        *most = delivery.attempt.max(*most);
        if self.acked.lock().expect("whole").contains(&key) {
            let text = format!("{} was acked and delivered again", text(delivery));
            self.broken.lock().expect("whole").push(text);
        }
        key
    }

    fn check(&self) {
        let broken = self.broken.lock().expect("whole");
        assert!(broken.is_empty(), "{broken:?}");
        let account = self.ledger.settle();
        account.expect("nothing acknowledged is missing");
    }
}

/// Number of rounds, from `TOWPATH_SEEDS`; a trial ends after three minutes.
fn rounds(few: usize, most: usize) -> usize {
    let seeds = std::env::var("TOWPATH_SEEDS").ok();
    let seeds = seeds.and_then(|seeds| seeds.parse().ok());
    seeds.map_or(few, |seeds: usize| seeds.clamp(few, most))
}

pub(super) async fn chaos_a_cluster_loses_nothing_when_brokers_are_killed() {
    let mut nodes = Server::start_cluster();
    let urls: Vec<String> = nodes.iter().map(Server::url).collect();
    let url = format!("{}?replication=3&partitions=3&timeout=5s", urls.join(","));
    let (api, worker) = (open(&url).await, open(&url).await);
    let front = api.require_queue("the test").expect("queues");
    let back = worker.require_queue("the test").expect("queues");
    let (run, _folder) = Run::begin();
    let producing = tokio::spawn(Arc::clone(&run).produce(front, Duration::from_millis(50)));
    let consuming = tokio::spawn(Arc::clone(&run).drain(back, Duration::ZERO));
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Each in turn: one of three has the vote of the controllers, one the groups, one the transactions.
    for round in 0..rounds(1, 12) {
        let node = round % nodes.len();
        run.ledger
            .fault("cluster", format!("kill -9 of node {node}"));
        nodes[node].kill();
        let before = run.taken.load(Ordering::Acquire);
        let began = Instant::now();
        while run.taken.load(Ordering::Acquire) < before + 20 {
            assert!(
                began.elapsed() < Duration::from_secs(45),
                "two of three take nothing"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut again = nodes.remove(node);
        // Starting it blocks.
        let again = tokio::task::spawn_blocking(move || {
            again.restart();
            again
        });
        nodes.insert(node, again.await.expect("started"));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    run.stop.store(true, Ordering::Release);
    producing.await.expect("joined");
    consuming.await.expect("joined");
    run.check();
    assert!(worker.lifecycle.health().await.is_ok());
}

pub(super) async fn chaos_a_storm_of_rebalances_loses_and_charges_nothing() {
    let url = format!(
        "{}?prefix={}.&partitions=6",
        shared().url(),
        MessageId::new()
    );
    let api = open(&url).await;
    let front = api.require_queue("the test").expect("queues");
    let (run, _folder) = Run::begin();
    let producing = tokio::spawn(Arc::clone(&run).produce(front, WORK * 8));
    let steady = open(&url).await;
    let back = steady.require_queue("the test").expect("queues");
    let working = tokio::spawn(Arc::clone(&run).drain(back, WORK));
    // Members come and go: partitions move all the time, with messages in progress.
    for _ in 0..rounds(4, 60) {
        let guest = open(&url).await;
        let queue = guest.require_queue("the test").expect("queues");
        let began = Instant::now();
        let is_done = || began.elapsed() > Duration::from_millis(1_500);
        run.consume(&queue, WORK, is_done).await;
        guest.lifecycle.close().await.expect("closed");
    }
    run.stop.store(true, Ordering::Release);
    producing.await.expect("joined");
    working.await.expect("joined");
    run.check();
    // No handler failed and no process died: whatever moved is a first attempt. On a busy machine the group may expel a
    // member before it committed its returned messages, once; its deliveries count as begun then.
    let attempts = run.attempts.lock().expect("whole");
    let charged: Vec<_> = attempts.iter().filter(|(_, most)| **most > 1).collect();
    let is_one_batch = charged.len() <= BATCH && charged.iter().all(|(_, most)| **most == 2);
    assert!(is_one_batch, "{charged:?}");
}
