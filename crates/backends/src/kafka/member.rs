//! This process as a member of a group: a consumer on a thread of its own, and what it fetched.
//!
//! ```text
//! broker --fetch--> waiting --read--> held by a consumer of this process --commit--> finished
//!                                          |                                (position: the longest finished prefix)
//!                                          +--claim, after a while or when its consumer is gone--> held by another
//! ```
//!
//! A partition that goes to another process takes what is here of it along, and comes there from the position on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset as Place, TopicPartitionList};
use tokio::sync::Notify;
use towpath_core::port::stream::{Entry, Offset};
use towpath_core::{Clock, ConsumerId, Message, Result};
use tracing::{debug, warn};

use super::config::Config;
use super::envelope;
use super::error;

/// How long the thread waits for a record before it looks whether it shall end.
const POLL: Duration = Duration::from_millis(100);

/// Entries and bytes that wait here before no more are fetched.
const FULL: usize = 20_000;
const FULL_BYTES: usize = 32 << 20;

/// Entries taken over before those who wait are woken.
const CHUNK: usize = 1_000;

/// A running member.
pub(super) struct Member {
    consumer: Arc<BaseConsumer<Watch>>,
    topic: String,
    shared: Arc<Shared>,
    /// One commit at a time, so that a position never goes back.
    turn: Mutex<()>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the callers share.
#[derive(Default)]
struct Shared {
    shelf: Mutex<Shelf>,
    news: Notify,
    ending: AtomicBool,
}

/// What is here, by partition.
#[derive(Default)]
pub(super) struct Shelf {
    assigned: bool,
    partitions: BTreeMap<i32, Partition>,
    /// Payload bytes of what waits.
    bytes: usize,
}

#[derive(Default)]
struct Partition {
    waiting: VecDeque<(i64, Message)>,
    held: BTreeMap<i64, Held>,
    /// Finished, but behind something that is not.
    done: BTreeSet<i64>,
    /// Behind the newest that was fetched.
    next: i64,
    /// The position that the broker knows.
    committed: i64,
}

struct Held {
    message: Message,
    /// `None` when it is gone.
    consumer: Option<ConsumerId>,
    since: Instant,
    attempt: u32,
}

impl Partition {
    /// Everything before this is finished.
    fn position(&self) -> i64 {
        let waiting = self.waiting.front().map(|(at, _)| *at);
        let held = self.held.first_key_value().map(|(at, _)| *at);
        let unfinished = waiting.into_iter().chain(held).min();
        unfinished.unwrap_or(self.next)
    }
}

/// What a member knows of one partition, for the numbers of its group.
#[derive(Default, Clone, Copy)]
pub(super) struct Known {
    pub(super) held: u64,
    /// Finished behind the position.
    pub(super) done: u64,
}

impl Shelf {
    fn hand_out(&mut self, who: &ConsumerId, max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (partition, of) in &mut self.partitions {
            while entries.len() < max
                && let Some((at, message)) = of.waiting.pop_front()
            {
                self.bytes -= message.payload.len();
                let held = Held {
                    message,
                    consumer: Some(who.clone()),
                    since: Instant::now(),
                    attempt: 1,
                };
                entries.push(entry(*partition, at, &held));
                of.held.insert(at, held);
            }
        }
        entries
    }

    fn claim(&mut self, who: &ConsumerId, min_idle: Duration, max: usize) -> Vec<Entry> {
        let mut entries = Vec::new();
        for (partition, of) in &mut self.partitions {
            for (at, held) in &mut of.held {
                let is_free = match &held.consumer {
                    None => true,
                    Some(holder) => holder != who && held.since.elapsed() >= min_idle,
                };
                if is_free && entries.len() < max {
                    held.consumer = Some(who.clone());
                    held.since = Instant::now();
                    held.attempt += 1;
                    entries.push(entry(*partition, *at, held));
                }
            }
        }
        entries
    }

    fn disconnect(&mut self, gone: &ConsumerId) -> u64 {
        let all = self.partitions.values_mut();
        let held = all.flat_map(|of| of.held.values_mut());
        let theirs = held.filter(|held| held.consumer.as_ref() == Some(gone));
        theirs.map(|held| held.consumer = None).count() as u64
    }

    /// Strikes off what is finished; the positions that moved by it.
    fn finish(&mut self, finished: &[Offset]) -> Vec<(i32, i64)> {
        for offset in finished {
            let (partition, at) = wire(*offset);
            if let Some(of) = self.partitions.get_mut(&partition)
                && of.held.remove(&at).is_some()
            {
                of.done.insert(at);
            }
        }
        self.moved()
    }

    fn moved(&mut self) -> Vec<(i32, i64)> {
        let mut moved = Vec::new();
        for (partition, of) in &mut self.partitions {
            let position = of.position();
            of.done = of.done.split_off(&position);
            if position > of.committed {
                moved.push((*partition, position));
            }
        }
        moved
    }

    /// Lets go of what was trimmed away.
    fn drop_below(&mut self, partition: i32, first: i64) {
        if let Some(of) = self.partitions.get_mut(&partition) {
            while let Some((at, message)) = of.waiting.pop_front() {
                if at >= first {
                    of.waiting.push_front((at, message));
                    break;
                }
                self.bytes -= message.payload.len();
            }
        }
    }

    /// Whether the group has said once which partitions are ours.
    pub(super) const fn is_assigned(&self) -> bool {
        self.assigned
    }

    /// Whether everything of ours was fetched that the broker had.
    pub(super) fn has_all(&self, marks: &[(i64, i64)]) -> bool {
        self.partitions.iter().all(|(partition, of)| {
            let marks = usize::try_from(*partition)
                .ok()
                .and_then(|at| marks.get(at));
            marks.is_none_or(|(low, high)| of.next.max(*low) >= *high)
        })
    }

    /// How many entries wait here.
    pub(super) fn waiting(&self) -> usize {
        self.partitions.values().map(|of| of.waiting.len()).sum()
    }

    fn is_full(&self) -> bool {
        self.bytes >= FULL_BYTES || self.waiting() >= FULL
    }
}

fn entry(partition: i32, at: i64, held: &Held) -> Entry {
    Entry {
        offset: offset(partition, at),
        message: held.message.clone(),
        attempt: held.attempt,
    }
}

/// Our offset of a record.
pub(super) fn offset(partition: i32, at: i64) -> Offset {
    Offset {
        partition: partition.unsigned_abs(),
        value: at.max(0).unsigned_abs().into(),
    }
}

/// Partition and offset as Kafka counts.
pub(super) fn wire(offset: Offset) -> (i32, i64) {
    (
        i32::try_from(offset.partition).unwrap_or(i32::MAX),
        i64::try_from(offset.value).unwrap_or(i64::MAX),
    )
}

/// Follows which partitions are ours.
struct Watch {
    shared: Arc<Shared>,
    timeout: Duration,
}

impl Watch {
    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        lock(&self.shared.shelf)
    }
}

impl ClientContext for Watch {}

impl ConsumerContext for Watch {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        if let Rebalance::Revoke(gone) = change {
            let mut shelf = self.shelf();
            for element in gone.elements() {
                if let Some(of) = shelf.partitions.remove(&element.partition()) {
                    shelf.bytes -= of
                        .waiting
                        .iter()
                        .map(|(_, one)| one.payload.len())
                        .sum::<usize>();
                }
            }
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, change: &Rebalance<'_>) {
        let Rebalance::Assign(new) = change else {
            return;
        };
        // Nothing is fetched before this returns.
        let positions = consumer.committed_offsets((*new).clone(), self.timeout);
        let positions = positions.unwrap_or_else(|told| {
            warn!(%told, "the positions of new partitions are not known yet");
            (*new).clone()
        });
        let mut shelf = self.shelf();
        for element in positions.elements() {
            let start = match element.offset() {
                Place::Offset(at) => at,
                _ => 0,
            };
            let of = Partition {
                next: start,
                committed: start,
                ..Partition::default()
            };
            shelf.partitions.insert(element.partition(), of);
        }
        shelf.assigned = true;
        drop(shelf);
        self.shared.news.notify_waiters();
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Member {
    /// Joins the group.
    pub(super) fn join(
        config: &Config,
        topic: &str,
        group: &str,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let watch = Watch {
            shared: Arc::clone(&shared),
            timeout: config.timeout,
        };
        let failed = |told| error::of_call(&format!("join group `{group}`"), told);
        let consumer: BaseConsumer<Watch> = config
            .client()
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("auto.offset.reset", "earliest")
            // The least that brokers take by default: a member that was killed holds its partitions so long.
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "2000")
            .set("fetch.wait.max.ms", "100")
            .create_with_context(watch)
            .map_err(failed)?;
        consumer.subscribe(&[topic]).map_err(failed)?;
        let consumer = Arc::new(consumer);
        let (polled, filled) = (Arc::clone(&consumer), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("towpath-kafka".to_owned())
            .spawn(move || fetch(&polled, &filled, &*clock));
        let thread = thread.map_err(|error| {
            towpath_core::Error::unavailable("a thread cannot be started").with_source(error)
        })?;
        Ok(Self {
            consumer,
            topic: topic.to_owned(),
            shared,
            turn: Mutex::default(),
            thread: Some(thread),
        })
    }

    /// Hands out what is here.
    pub(super) fn hand_out(&self, who: &ConsumerId, max: usize) -> Vec<Entry> {
        lock(&self.shared.shelf).hand_out(who, max)
    }

    pub(super) fn claim(&self, who: &ConsumerId, min_idle: Duration, max: usize) -> Vec<Entry> {
        lock(&self.shared.shelf).claim(who, min_idle, max)
    }

    pub(super) fn disconnect(&self, gone: &ConsumerId) -> u64 {
        lock(&self.shared.shelf).disconnect(gone)
    }

    pub(super) fn drop_below(&self, partition: i32, first: i64) {
        lock(&self.shared.shelf).drop_below(partition, first);
    }

    /// Waits until the shelf is so, and no longer than this; whether it is.
    pub(super) async fn until(&self, limit: Duration, is_so: impl Fn(&Shelf) -> bool) -> bool {
        let until = Instant::now() + limit;
        loop {
            let mut news = std::pin::pin!(self.shared.news.notified());
            news.as_mut().enable();
            if is_so(&lock(&self.shared.shelf)) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.shared.ending.load(Ordering::Acquire) {
                return false;
            }
            drop(tokio::time::timeout(left, news).await);
        }
    }

    /// What is known here of each partition.
    pub(super) fn known(&self) -> BTreeMap<i32, Known> {
        let shelf = lock(&self.shared.shelf);
        let known = |of: &Partition| Known {
            held: of.held.len() as u64,
            done: of.done.len() as u64,
        };
        let all = shelf.partitions.iter();
        all.map(|(partition, of)| (*partition, known(of))).collect()
    }

    /// Strikes off what is finished, and moves the position. Blocks.
    pub(super) fn commit(&self, finished: &[Offset]) -> Result<()> {
        let _turn = lock(&self.turn);
        let moved = lock(&self.shared.shelf).finish(finished);
        if moved.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (partition, at) in &moved {
            list.add_partition_offset(&self.topic, *partition, Place::Offset(*at))
                .map_err(|told| error::of_call("commit", told))?;
        }
        let committed = self.consumer.commit(&list, CommitMode::Sync);
        committed.map_err(|told| error::of_call("commit", told))?;
        let mut shelf = lock(&self.shared.shelf);
        for (partition, at) in moved {
            if let Some(of) = shelf.partitions.get_mut(&partition) {
                of.committed = of.committed.max(at);
            }
        }
        Ok(())
    }

    /// Wakes whoever waits for news.
    pub(super) fn end(&self) {
        self.shared.ending.store(true, Ordering::Release);
        self.shared.news.notify_waiters();
    }

    /// Leaves the group. Blocks until the broker knows.
    pub(super) fn leave(mut self) {
        self.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!(topic = self.topic, "the thread of a consumer panicked");
        }
    }
}

/// Puts what comes onto the shelf until the member leaves.
fn fetch(consumer: &BaseConsumer<Watch>, shared: &Shared, clock: &dyn Clock) {
    let mut paused = false;
    while !shared.ending.load(Ordering::Acquire) {
        let mut next = consumer.poll(POLL);
        let mut came = 0;
        while let Some(polled) = next {
            match polled {
                Ok(record) => {
                    let message = envelope::read(&record, clock.now());
                    let mut shelf = lock(&shared.shelf);
                    let bytes = message.payload.len();
                    // A partition that was just given away.
                    if let Some(of) = shelf.partitions.get_mut(&record.partition()) {
                        of.next = record.offset() + 1;
                        of.waiting.push_back((record.offset(), message));
                        shelf.bytes += bytes;
                    }
                    came += 1;
                }
                // The client connects again by itself.
                Err(told) => debug!(%told, "kafka consumer"),
            }
            next = if came < CHUNK {
                consumer.poll(Duration::ZERO)
            } else {
                None
            };
        }
        if came > 0 {
            shared.news.notify_waiters();
        }
        let full = lock(&shared.shelf).is_full();
        if full != paused
            && let Ok(ours) = consumer.assignment()
        {
            let changed = if full {
                consumer.pause(&ours)
            } else {
                consumer.resume(&ours)
            };
            if changed.is_ok() {
                paused = full;
            }
        }
    }
    consumer.unsubscribe();
}
