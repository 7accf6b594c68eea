//! Random steps and random crashes against a simple model.
//!
//! A crash is a copy of the folder while the store is open, its log cut at a
//! random place after the acknowledged part; the copy is opened and compared.
//! Just before, transactions are begun whose calls are dropped. Each counts
//! itself in a key, so that it is known which of them happened.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use towpath_core::port::effects::{Effects, Outcome, Transaction};
use towpath_core::port::kv::{Committed, Kv, Op};
use towpath_core::port::queue::{
    Disposition, Enqueued, LeaseRequest, MessageState, Queue, Selection, Settings, Settlement,
};
use towpath_core::{
    Clock, ConsumerId, Delivery, ErrorKind, ManualClock, MessageId, NewMessage, QueueName,
    Timestamp, retry,
};

use super::config::Config;
use super::log::Position;
use super::store::Store;

const START: u64 = 1_700_000_000_000;
const ATTEMPTS: u32 = 3;
const LEASE: Duration = Duration::from_secs(10);
const QUEUES: [&str; 3] = ["jobs", "mails", "orders"];

pub(super) fn open(folder: &Path, clock: &Arc<ManualClock>) -> Arc<Store> {
    let url = format!("embedded:{}?segment=64KiB&reserve=0", folder.display());
    let clock = Arc::clone(clock);
    Store::open(Config::parse(&url).unwrap(), clock).unwrap()
}

/// A checkpoint with which all keys leave memory. Only now: files that the upkeep writes while a folder is copied would make an
/// image that no power cut leaves.
pub(super) fn checkpoint_with_all_keys(store: &Store) {
    let bound = store.keys_in_memory.swap(0, Ordering::Relaxed);
    store.checkpoint().unwrap();
    store.keys_in_memory.store(bound, Ordering::Relaxed);
}

/// The checkpoints first: one must never know more than the log behind it.
pub(super) fn copy(from: &Path, to: &Path) {
    for folder in ["checkpoint", "log"] {
        std::fs::create_dir_all(to.join(folder)).unwrap();
        let Ok(entries) = std::fs::read_dir(from.join(folder)) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            // A file may go while it is copied, as a segment does after a checkpoint.
            std::fs::copy(&path, to.join(folder).join(path.file_name().unwrap())).ok();
        }
    }
}

pub(super) async fn lease(store: &Arc<Store>, queue: &QueueName, max: usize) -> Vec<Delivery> {
    let consumer = ConsumerId::new("one").unwrap();
    let request = LeaseRequest {
        queue: queue.clone(),
        consumer,
        max,
        in_flight: max,
        lease: LEASE,
        wait: Duration::ZERO,
    };
    store.lease(request).await.unwrap()
}

fn queue(name: &str) -> QueueName {
    QueueName::new(name).unwrap()
}

/// Expected state of a message.
#[derive(Debug, Clone)]
struct ModelMessage {
    queue: QueueName,
    key: Option<String>,
    /// Grows with every arrival and redrive.
    place: u64,
    /// Deliveries that are surely counted, and those that were begun.
    attempts: (u32, u32),
    not_before: Timestamp,
    /// It waits for a retry, and its key with it.
    retried: bool,
    /// Dead-lettered by a settlement; a message out of attempts may be dead or not.
    dead: bool,
}

/// The callers' knowledge of the store.
#[derive(Debug, Default, Clone)]
struct Model {
    messages: BTreeMap<MessageId, ModelMessage>,
    /// Acked or dropped: must never be delivered again.
    gone: BTreeSet<MessageId>,
    dedup: BTreeMap<(QueueName, String), MessageId>,
    values: BTreeMap<String, (String, Option<Timestamp>)>,
    fields: BTreeMap<String, String>,
    next_place: u64,
}

impl Model {
    fn arrive(&mut self, queue: &QueueName, message: &NewMessage) {
        if let Some(dedup_id) = &message.dedup_id {
            self.dedup
                .insert((queue.clone(), dedup_id.clone()), message.id);
        }
        let known = ModelMessage {
            queue: queue.clone(),
            key: message.key.clone(),
            place: self.next_place,
            attempts: (0, 0),
            not_before: message.not_before.unwrap_or_default(),
            retried: false,
            dead: false,
        };
        self.next_place += 1;
        self.messages.insert(message.id, known);
    }

    fn go(&mut self, id: MessageId) {
        self.messages.remove(&id);
        self.gone.insert(id);
    }

    fn settle(&mut self, delivery: &Delivery, disposition: &Disposition, now: Timestamp) {
        let id = delivery.message.id;
        let Some(known) = self.messages.get_mut(&id) else {
            panic!("{id} was settled and is gone");
        };
        match disposition {
            Disposition::Ack => self.go(id),
            Disposition::Release { .. } => {
                known.attempts.0 = known.attempts.0.min(delivery.attempt - 1)
            }
            Disposition::Retry { after, .. } if delivery.attempt < ATTEMPTS => {
                known.attempts = (delivery.attempt, delivery.attempt);
                known.not_before = now.after(*after);
                known.retried = true;
            }
            Disposition::Retry { .. } | Disposition::DeadLetter { .. } => known.dead = true,
        }
    }

    /// Checks that the message may be delivered now, and counts it.
    fn deliver(&mut self, delivery: &Delivery, now: Timestamp, at: &str) {
        let id = delivery.message.id;
        let known = self.messages.get(&id);
        let known = known.unwrap_or_else(|| panic!("{at}: {id} is gone or was never sent"));
        assert!(!known.dead, "{at}: {id} is dead");
        assert_eq!(known.queue, delivery.receipt.queue, "{at}");
        assert!(known.not_before <= now, "{at}: {id} came too early");
        let (least, most) = known.attempts;
        assert!(
            (least + 1..=most + 1).contains(&delivery.attempt) && delivery.attempt <= ATTEMPTS,
            "{at}: attempt {} after {least} to {most}",
            delivery.attempt
        );
        for (other, one) in &self.messages {
            if *other == id
                || one.key.is_none()
                || (&one.key, &one.queue) != (&known.key, &known.queue)
            {
                continue;
            }
            let may_be_dead = one.dead || one.attempts.1 >= ATTEMPTS;
            let waits = one.not_before > now;
            assert!(
                may_be_dead || !(waits && one.retried),
                "{at}: {known:?} overtook the retry of {one:?}"
            );
            // A retry keeps its key locked, also against earlier messages that became due since.
            assert!(
                may_be_dead || waits || known.retried || one.place > known.place,
                "{at}: {known:?} overtook {one:?}"
            );
        }
        let known = self.messages.get_mut(&id).expect("looked up above");
        known.attempts.1 = delivery.attempt;
        known.retried = false;
    }

    fn redrive(&mut self, id: MessageId) {
        let known = self.messages.get_mut(&id).expect("dead letters are known");
        (known.place, known.attempts) = (self.next_place, (0, 0));
        (known.dead, known.retried) = (false, false);
        self.next_place += 1;
    }

    fn change(&mut self, ops: &[Op], now: Timestamp) {
        for op in ops {
            match op {
                Op::Put { key, value, ttl } => {
                    let value = String::from_utf8(value.to_vec()).unwrap();
                    self.values
                        .insert(key.clone(), (value, ttl.map(|ttl| now.after(ttl))));
                }
                Op::Add { key, delta, .. } => {
                    let (number, until) = self.value(key, now).unwrap_or(("0".to_owned(), None));
                    let sum = number.parse::<i64>().unwrap() + delta;
                    self.values.insert(key.clone(), (sum.to_string(), until));
                }
                Op::Delete { key } if key == "hash" => self.fields.clear(),
                Op::Delete { key } => _ = self.values.remove(key),
                Op::SetField { field, value, .. } => {
                    let value = String::from_utf8(value.to_vec()).unwrap();
                    self.fields.insert(field.clone(), value);
                }
                other => panic!("{other:?} is not modelled"),
            }
        }
    }

    fn value(&self, key: &str, now: Timestamp) -> Option<(String, Option<Timestamp>)> {
        let value = self.values.get(key).cloned();
        value.filter(|(_, until)| until.is_none_or(|until| until > now))
    }
}

/// A transaction with an unknown outcome, and its effect on the model.
struct Begun {
    transaction: Transaction,
    settled: Vec<(Delivery, Disposition)>,
}

/// One history.
struct Run {
    rng: StdRng,
    clock: Arc<ManualClock>,
    store: Arc<Store>,
    /// The folders so far, the open one last.
    folders: Vec<tempfile::TempDir>,
    model: Model,
    in_hand: Vec<Delivery>,
    /// The end of the log when something was acknowledged last.
    acknowledged: Position,
    /// Transactions so far.
    transactions: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reopened_store_has_everything_that_was_acknowledged() {
    let seeds = std::env::var("TOWPATH_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(12);
    for seed in 0..seeds {
        let mut run = Run::new(seed).await;
        for step in 0..400 {
            let at = format!("seed {seed} step {step}");
            run.step(&at).await;
            run.compare(&at).await;
        }
        run.finish(&format!("seed {seed}")).await;
    }
}

impl Run {
    async fn new(seed: u64) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_millis(START)));
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path(), &clock);
        let settings = Settings {
            retry: retry::Policy {
                attempts: ATTEMPTS,
                ..Default::default()
            },
            ..Default::default()
        };
        for name in QUEUES {
            store.declare(&queue(name), &settings).await.unwrap();
        }
        Self {
            rng: StdRng::seed_from_u64(seed),
            clock,
            acknowledged: store.log.records_end(),
            store,
            folders: vec![folder],
            model: Model::default(),
            in_hand: Vec::new(),
            transactions: 0,
        }
    }

    async fn step(&mut self, at: &str) {
        match self.rng.random_range(0..100) {
            0..28 => self.enqueue(at).await,
            28..50 => self.lease(at).await,
            50..62 => self.settle().await,
            62..68 => self.transact(at).await,
            68..74 => self.change(at).await,
            74..77 => self.see_to_the_dead(at).await,
            77..78 => self.purge(at).await,
            78..80 => {
                let gone = ConsumerId::new("one").unwrap();
                self.store.disconnect(&gone).await.unwrap();
            }
            80..88 => {
                let millis = self.rng.random_range(1..20_000);
                self.clock.advance(Duration::from_millis(millis));
            }
            88..92 => {
                checkpoint_with_all_keys(&self.store);
                self.acknowledged = self.store.log.records_end();
            }
            92..95 => self.store.compact().unwrap(),
            95..97 => self.reopen(),
            _ => self.crash(at).await,
        }
    }

    fn any_queue(&mut self) -> QueueName {
        queue(QUEUES.choose(&mut self.rng).expect("there are some"))
    }

    fn message(&mut self) -> NewMessage {
        let rng = &mut self.rng;
        let mut message = NewMessage::new(vec![rng.random::<u8>(); rng.random_range(0..3000)]);
        if rng.random_bool(0.4) {
            message.key = Some(format!("key {}", rng.random_range(0..5)));
        }
        if rng.random_bool(0.3) {
            message.dedup_id = Some(format!("dedup {}", rng.random_range(0..60)));
        }
        if rng.random_bool(0.1) {
            let due = START + rng.random_range(0..500_000);
            message.not_before = Some(Timestamp::from_millis(due));
        }
        message
    }

    fn disposition(&mut self) -> Disposition {
        match self.rng.random_range(0..10) {
            0..5 => Disposition::Ack,
            5..7 => Disposition::Retry {
                after: Duration::from_millis(self.rng.random_range(0..5_000)),
                error: "no".to_owned(),
            },
            7 => Disposition::RELEASE,
            _ => Disposition::DeadLetter {
                reason: "poison".to_owned(),
            },
        }
    }

    fn acknowledge(&mut self) {
        self.acknowledged = self.store.log.records_end();
    }

    async fn enqueue(&mut self, at: &str) {
        let (queue, count) = (self.any_queue(), self.rng.random_range(1..8));
        let messages: Vec<NewMessage> = (0..count).map(|_| self.message()).collect();
        let outcomes = self.store.enqueue(&queue, messages.clone()).await.unwrap();
        self.acknowledge();
        for (message, outcome) in messages.iter().zip(outcomes) {
            let dedup_id = message.dedup_id.clone().map(|id| (queue.clone(), id));
            let first = dedup_id.and_then(|id| self.model.dedup.get(&id));
            match (outcome.unwrap(), first) {
                (Enqueued::New(_), None) => self.model.arrive(&queue, message),
                (Enqueued::Duplicate(id), Some(first)) => assert_eq!(id, *first, "{at}"),
                other => panic!("{at}: {other:?}"),
            }
        }
    }

    async fn lease(&mut self, at: &str) {
        let (queue, max) = (self.any_queue(), self.rng.random_range(1..10));
        let leased = lease(&self.store, &queue, max).await;
        for delivery in &leased {
            self.model.deliver(delivery, self.clock.now(), at);
        }
        self.in_hand.extend(leased);
    }

    /// Some current and earlier receipts, with dispositions.
    fn some_settlements(&mut self) -> Vec<(Delivery, Disposition)> {
        let count = self.rng.random_range(0..=self.in_hand.len().min(12));
        let some: Vec<Delivery> = self.in_hand.drain(..count).collect();
        some.into_iter()
            .map(|delivery| (delivery, self.disposition()))
            .collect()
    }

    async fn settle(&mut self) {
        let settled = self.some_settlements();
        let outcomes = self.store.settle(settlements(&settled)).await.unwrap();
        self.acknowledge();
        for ((delivery, disposition), outcome) in settled.iter().zip(outcomes) {
            if outcome.is_ok() {
                self.model.settle(delivery, disposition, self.clock.now());
            }
        }
    }

    /// Settles, sends and counts in one step.
    fn begin(&mut self) -> Begun {
        self.transactions += 1;
        let settled = self.some_settlements();
        let count = self.rng.random_range(0..4);
        let enqueue = (0..count).map(|_| {
            let mut message = self.message();
            message.dedup_id = None;
            (self.any_queue(), message)
        });
        let enqueue = enqueue.collect();
        let mut kv = self.ops();
        kv.push(Op::Put {
            key: "transactions".to_owned(),
            value: self.transactions.to_string().into(),
            ttl: None,
        });
        let transaction = Transaction {
            kv,
            enqueue,
            settle: settlements(&settled),
            ..Transaction::default()
        };
        Begun {
            transaction,
            settled,
        }
    }

    fn happened(&mut self, begun: &Begun) {
        let now = self.clock.now();
        self.model.change(&begun.transaction.kv, now);
        for (queue, message) in &begun.transaction.enqueue {
            self.model.arrive(queue, message);
        }
        for (delivery, disposition) in &begun.settled {
            self.model.settle(delivery, disposition, now);
        }
    }

    async fn transact(&mut self, at: &str) {
        let begun = self.begin();
        match self.store.apply(begun.transaction.clone()).await {
            Ok(Outcome::Applied(_)) => {
                self.acknowledge();
                self.happened(&begun);
            }
            // One of its receipts is stale; the others are still good.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let given_back = begun.settled.into_iter().map(|(delivery, _)| delivery);
                self.in_hand.extend(given_back);
            }
            other => panic!("{at}: {other:?}"),
        }
    }

    fn ops(&mut self) -> Vec<Op> {
        let count = self.rng.random_range(0..4);
        (0..count).map(|_| self.op()).collect()
    }

    fn op(&mut self) -> Op {
        let rng = &mut self.rng;
        let key = format!("value {}", rng.random_range(0..6));
        let value = Bytes::from(rng.random_range(0..1000).to_string());
        match rng.random_range(0..10) {
            0..3 => {
                let ttl = rng.random_bool(0.5);
                let ttl = ttl.then(|| Duration::from_millis(rng.random_range(1..60_000)));
                Op::Put { key, value, ttl }
            }
            3..6 => Op::Add {
                key,
                delta: rng.random_range(-50..50),
                min: i64::MIN,
                max: i64::MAX,
            },
            6 => Op::Delete { key },
            7 if rng.random_bool(0.1) => Op::Delete {
                key: "hash".to_owned(),
            },
            _ => Op::SetField {
                key: "hash".to_owned(),
                field: format!("field {}", rng.random_range(0..20)),
                value,
            },
        }
    }

    async fn change(&mut self, at: &str) {
        let ops = self.ops();
        let committed = self.store.commit(ops.clone()).await.unwrap();
        assert!(matches!(committed, Committed::Applied(_)), "{at}");
        self.acknowledge();
        self.model.change(&ops, self.clock.now());
    }

    async fn see_to_the_dead(&mut self, at: &str) {
        let queue = self.any_queue();
        let dead = self.store.dead_letters(&queue, None, 10_000).await.unwrap();
        let mut ids: Vec<MessageId> = dead.iter().map(|one| one.message.id).collect();
        let selection = if self.rng.random() {
            Selection::All
        } else {
            ids.retain(|_| self.rng.random());
            Selection::Ids(ids.clone())
        };
        let redrives = self.rng.random_bool(0.7);
        let count = if redrives {
            self.store.redrive(&queue, &selection).await.unwrap()
        } else {
            self.store.drop_dead(&queue, &selection).await.unwrap()
        };
        self.acknowledge();
        assert_eq!(count, ids.len() as u64, "{at}");
        for id in ids {
            if redrives {
                self.model.redrive(id);
            } else {
                self.model.go(id);
            }
        }
    }

    async fn purge(&mut self, at: &str) {
        let queue = self.any_queue();
        let waiting = self.store.peek(&queue, 10_000).await.unwrap();
        let waiting = waiting
            .iter()
            .filter(|one| one.state != MessageState::Leased);
        let ids: Vec<MessageId> = waiting.map(|one| one.message.id).collect();
        assert_eq!(
            self.store.purge(&queue).await.unwrap(),
            ids.len() as u64,
            "{at}"
        );
        self.acknowledge();
        ids.into_iter().for_each(|id| self.model.go(id));
    }

    fn reopen(&mut self) {
        self.store.close().unwrap();
        let folder = self.folders.last().expect("there is one");
        self.store = open(folder.path(), &self.clock);
        self.acknowledge();
    }

    /// Power is cut.
    async fn crash(&mut self, at: &str) {
        // The last answer was given a moment before, and nothing was asked since that waits for the disk.
        match self.rng.random_range(0..4) {
            0 => self.enqueue(at).await,
            1 => self.settle().await,
            2 => self.transact(at).await,
            _ => self.change(at).await,
        }
        let mut begun = Vec::new();
        for _ in 0..self.rng.random_range(0..4) {
            let one = self.begin();
            let answer = self.store.apply(one.transaction.clone());
            // Polled once, then dropped.
            match tokio::time::timeout(Duration::ZERO, answer).await {
                Ok(Ok(_)) => self.acknowledge(),
                Ok(Err(error)) => {
                    assert_eq!(error.kind(), ErrorKind::Conflict, "{at}");
                    continue;
                }
                Err(_) => {}
            }
            begun.push((self.transactions, one));
        }
        let image = tempfile::tempdir().unwrap();
        let folder = self.folders.last().expect("there is one");
        copy(folder.path(), image.path());
        let end = self.store.log.records_end();
        self.store.close().unwrap();
        cut(image.path(), self.acknowledged, end, &mut self.rng);
        self.clock.advance(Duration::from_millis(1));
        self.store = open(image.path(), &self.clock);
        self.folders.push(image);
        self.acknowledge();
        let happened = match self.store.get("transactions").await.unwrap() {
            Some(count) => String::from_utf8(count.to_vec()).unwrap().parse().unwrap(),
            None => 0,
        };
        assert!(happened <= self.transactions, "{at}");
        for (number, one) in &begun {
            if *number <= happened {
                self.happened(one);
            }
        }
        let known = self.model.value("transactions", self.clock.now());
        let known: u64 = known.map_or(0, |(count, _)| count.parse().unwrap());
        assert_eq!(known, happened, "{at}");
    }

    /// Holds after every step.
    async fn compare(&self, at: &str) {
        let now = self.clock.now();
        for name in QUEUES {
            let stats = self.store.stats(&queue(name)).await.unwrap();
            let waiting = stats.ready + stats.delayed + stats.leased;
            let there = waiting + stats.dead + stats.acked + stats.dropped;
            assert_eq!(stats.enqueued, there, "{at}: {stats:?}");
            let known = self.model.messages.values();
            let known = known.filter(|one| one.queue.as_str() == name).count();
            assert_eq!(waiting + stats.dead, known as u64, "{at}: {stats:?}");
        }
        for number in 0..6 {
            let key = format!("value {number}");
            let (actual, known) = (
                self.store.get(&key).await.unwrap(),
                self.model.value(&key, now),
            );
            let actual = actual.map(|value| String::from_utf8(value.to_vec()).unwrap());
            assert_eq!(actual, known.map(|(value, _)| value), "{at}: {key}");
        }
        let actual = self.store.fields("hash").await.unwrap();
        let actual = actual
            .into_iter()
            .map(|(field, value)| (field, String::from_utf8(value.to_vec()).unwrap()));
        assert_eq!(
            actual.collect::<BTreeMap<_, _>>(),
            self.model.fields,
            "{at}"
        );
    }

    /// Everything that must be there comes, in the end, as a delivery or a dead letter.
    async fn finish(mut self, at: &str) {
        let mut seen = BTreeSet::new();
        for queue in QUEUES.map(queue) {
            for _ in 0..400 {
                self.clock.advance(Duration::from_secs(11));
                let leased = lease(&self.store, &queue, 100).await;
                for delivery in &leased {
                    self.model.deliver(delivery, self.clock.now(), at);
                }
                let acked: Vec<_> = leased
                    .into_iter()
                    .map(|one| (one, Disposition::Ack))
                    .collect();
                let outcomes = self.store.settle(settlements(&acked)).await.unwrap();
                assert!(outcomes.into_iter().all(|outcome| outcome.is_ok()), "{at}");
                for (delivery, disposition) in &acked {
                    self.model.settle(delivery, disposition, self.clock.now());
                    seen.insert(delivery.message.id);
                }
                let stats = self.store.stats(&queue).await.unwrap();
                if stats.ready + stats.delayed + stats.leased == 0 {
                    break;
                }
            }
            let dead = self.store.dead_letters(&queue, None, 10_000).await.unwrap();
            seen.extend(dead.iter().map(|one| one.message.id));
        }
        let lost: Vec<_> = self
            .model
            .messages
            .keys()
            .filter(|id| !seen.contains(id))
            .collect();
        assert!(lost.is_empty(), "{at}: lost {lost:?}");
        self.store.close().unwrap();
    }
}

fn settlements(settled: &[(Delivery, Disposition)]) -> Vec<Settlement> {
    let settlement = |(delivery, disposition): &(Delivery, Disposition)| Settlement {
        receipt: delivery.receipt.clone(),
        disposition: disposition.clone(),
    };
    settled.iter().map(settlement).collect()
}

/// Cuts the log at a random place between these two: the file ends there, or holds zeros.
fn cut(image: &Path, from: Position, to: Position, rng: &mut StdRng) {
    // Synced before by a checkpoint.
    let checkpoints = std::fs::read_dir(image.join("checkpoint")).unwrap();
    let known = checkpoints.filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let (segment, offset) = name.strip_suffix(".ckpt")?.split_once('-')?;
        Some(Position {
            segment: segment.parse().unwrap(),
            offset: offset.parse().unwrap(),
        })
    });
    let from = known.max().unwrap_or_default().max(from);
    let path = |segment| image.join(format!("log/{segment:010}.log"));
    let segment = rng.random_range(from.segment..=to.segment);
    for later in segment + 1..=to.segment + 2 {
        std::fs::remove_file(path(later)).ok();
    }
    let length = std::fs::metadata(path(segment)).map_or(0, |file| file.len());
    let least = if segment == from.segment {
        u64::from(from.offset)
    } else {
        0
    };
    let most = if segment == to.segment {
        u64::from(to.offset)
    } else {
        length
    };
    let offset = rng.random_range(least..=most.max(least));
    let Ok(file) = std::fs::OpenOptions::new().write(true).open(path(segment)) else {
        return;
    };
    // Unsynced bytes are zeros; the file is preallocated and keeps its size.
    file.set_len(offset.min(length)).unwrap();
    file.set_len(length).unwrap();
}
