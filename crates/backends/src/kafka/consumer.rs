//! This process as a member of a group: a consumer on a thread of its own, and the shelf that it fills.
//!
//! A partition that goes to another process takes what is here of it along, and comes there from the position on.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerGroupMetadata};
use rdkafka::error::KafkaResult;
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::topic_partition_list::TopicPartitionList;
use tokio::sync::futures::Notified;
use towpath_core::{Clock, Error, Result, Timestamp};
use tracing::warn;

use super::config::Config;
use super::error;
use super::losses::Losses;
use super::rebalance::{Lose, Shared, Watch};
use super::store::{Marks, blocking};

/// How long the thread waits for a record before it looks for a rebalance, for room, and whether it shall end.
const LOOK: Duration = Duration::from_millis(25);

/// Records taken at once, and how often, of one partition before the next one has its turn.
const CHUNK: usize = 20;
const CHUNKS: usize = 50;

/// How long what the broker has may take until it is here.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The same where the end was seen, and what the broker counts behind it is most likely the mark of a transaction.
const A_MOMENT: Duration = Duration::from_millis(50);

/// What was fetched, by partition.
pub(super) trait Shelf: Default + Send + 'static {
    /// A partition is ours from this position on, with what was noted at it.
    fn assign(&mut self, partition: i32, position: i64, noted: &str);
    /// It is not ours any more: what the broker does not know of it yet, with or without a charge for what is leased.
    fn revoke(&mut self, partition: i32, uncharges: bool) -> Option<(i64, String)>;
    /// A record came.
    fn put(&mut self, record: &BorrowedMessage<'_>, now: Timestamp);
    /// How far a partition of ours was fetched.
    fn reach(&mut self, partition: i32) -> Option<&mut Reach>;
    /// Those that are ours.
    fn partitions(&self) -> Vec<i32>;
    /// How full it is of this partition, in percent: from 100 on no more is taken.
    fn fullness(&self, partition: i32) -> usize;
}

/// How far a partition was fetched.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Reach {
    /// Behind the newest that came.
    pub(super) next: i64,
    /// Whether the broker said since then that there is no more.
    ended: bool,
    /// Behind the newest that this process produced.
    produced: i64,
    /// The same of its transactions, after which the mark of the end comes; 0 for none.
    marked: i64,
}

impl Reach {
    pub(super) fn from(position: i64) -> Self {
        Self {
            next: position,
            ..Self::default()
        }
    }

    /// The end of the partition was seen.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    pub(super) fn pass(&mut self, at: i64) {
        self.next = self.next.max(at + 1);
        self.ended = false;
    }

    /// How much is not here yet. Kafka counts the marks that end transactions, and nobody is ever handed one.
    pub(super) fn missing(&self, high: i64) -> u64 {
        if self.ended && self.produced <= self.next {
            return 0;
        }
        self.surely_missing(high)
    }

    /// The same without a guess.
    fn surely_missing(&self, high: i64) -> u64 {
        let is_the_mark = self.marked > 0 && self.marked == self.next && high == self.next + 1;
        match is_the_mark {
            true => 0,
            false => high.saturating_sub(self.next).max(0).unsigned_abs(),
        }
    }
}

/// A running member.
pub(super) struct Member<S: Shelf> {
    consumer: Arc<BaseConsumer<Watch<S>>>,
    pub(super) topic: String,
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Shelf> Member<S> {
    /// Joins the group.
    pub(super) fn join(
        config: &Config,
        topic: &str,
        group: &str,
        clock: Arc<dyn Clock>,
        losses: Arc<Losses>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::<S>::new(topic, group));
        let watch = Watch {
            shared: Arc::clone(&shared),
            losses,
            timeout: config.timeout,
        };
        let failed = |told| error::of_call(&format!("join group `{group}`"), told);
        let consumer: BaseConsumer<Watch<S>> = config
            .client()
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("partition.assignment.strategy", "cooperative-sticky")
            // A position that the broker does not have is never replaced in silence.
            .set("auto.offset.reset", "error")
            // The client says only here that its topic is another one of the same name.
            .set("debug", "metadata")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set_log_level(RDKafkaLogLevel::Debug)
            // The least that brokers take by default: a member that was killed holds its partitions so long.
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "2000")
            .set("fetch.wait.max.ms", "100")
            // What the client holds besides the shelf, and how long it pauses when that is full.
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.queue.backoff.ms", "10")
            // The topics of others may take larger records than ours do.
            .set("receive.message.max.bytes", "1000000000")
            .create_with_context(watch)
            .map_err(failed)?;
        consumer.subscribe(&[topic]).map_err(failed)?;
        let consumer = Arc::new(consumer);
        let (polled, filled) = (Arc::clone(&consumer), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("towpath-kafka".to_owned())
            .spawn(move || fetch(&polled, &filled, &*clock));
        let thread = thread
            .map_err(|error| Error::unavailable("a thread cannot be started").with_source(error))?;
        Ok(Self {
            consumer,
            topic: topic.to_owned(),
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn shelf(&self) -> MutexGuard<'_, S> {
        lock(&self.shared.shelf)
    }

    /// Keeps other commits, and partitions that go, waiting. To be held from taking positions to having committed them.
    pub(super) fn turn(&self) -> &tokio::sync::Mutex<()> {
        &self.shared.turn
    }

    /// How it is lost.
    pub(super) fn loser(&self) -> Weak<dyn Lose> {
        let shared: Arc<dyn Lose> = Arc::clone(&self.shared) as Arc<dyn Lose>;
        Arc::downgrade(&shared)
    }

    /// Whether only a new member can go on.
    pub(super) fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }

    /// Something came, or a partition did.
    pub(super) fn news(&self) -> Notified<'_> {
        self.shared.news.notified()
    }

    /// Lets those who wait for news look again.
    pub(super) fn wake(&self) {
        self.shared.news.notify_waiters();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.shared.ending.load(Ordering::Acquire)
    }

    /// Waits until this is so, and no longer than `limit`; whether it is.
    pub(super) async fn until(&self, limit: Duration, is_so: impl Fn(&mut S) -> bool) -> bool {
        let until = Instant::now() + limit;
        loop {
            let mut news = std::pin::pin!(self.news());
            news.as_mut().enable();
            if is_so(&mut self.shelf()) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_ending() || self.is_lost() {
                return false;
            }
            drop(tokio::time::timeout(left, news).await);
        }
    }

    /// Waits until the group has said which partitions are ours; whether it has.
    pub(super) async fn is_let_in(&self, limit: Duration) -> bool {
        self.until(limit, |_| self.shared.assigned.load(Ordering::Acquire))
            .await
    }

    /// Waits until what the broker had at these marks is here, or `enough` of it.
    pub(super) async fn arrive(&self, marks: &Marks, enough: impl Fn(&S) -> bool) {
        let lacks = |shelf: &mut S, strictly: bool| {
            let ours = shelf.partitions().into_iter();
            let mut ours = ours.filter_map(|one| Some((one, high(marks, one)?)));
            ours.any(|(partition, high)| {
                let full = shelf.fullness(partition) >= 100;
                let reach = shelf.reach(partition).copied().unwrap_or_default();
                let missing = match strictly {
                    true => reach.surely_missing(high),
                    false => reach.missing(high),
                };
                missing > 0 && !full
            })
        };
        let is_here = |strictly| move |shelf: &mut S| enough(shelf) || !lacks(shelf, strictly);
        let strictly = is_here(true);
        if self.until(A_MOMENT, &strictly).await {
            return;
        }
        self.until(ON_ITS_WAY, |shelf| strictly(shelf) || !lacks(shelf, false))
            .await;
    }

    /// Notes what this process produced, so that [`Member::arrive`] waits for it.
    pub(super) fn note_produced(&self, partition: i32, at: i64) {
        if let Some(reach) = self.shelf().reach(partition) {
            reach.produced = reach.produced.max(at + 1);
        }
    }

    /// The same of what was produced in a transaction that has ended.
    pub(super) fn note_marked(&self, partition: i32, at: i64) {
        self.note_produced(partition, at);
        if let Some(reach) = self.shelf().reach(partition) {
            reach.marked = reach.marked.max(at + 1);
        }
    }

    /// Sets positions of the group. Blocks.
    pub(super) fn commit(&self, positions: &TopicPartitionList) -> KafkaResult<()> {
        self.consumer.commit(positions, CommitMode::Sync)
    }

    /// How a transaction shows that it is this member's.
    pub(super) fn group(&self) -> Option<ConsumerGroupMetadata> {
        self.consumer.group_metadata()
    }

    /// Wakes whoever waits for news.
    pub(super) fn end(&self) {
        self.shared.ending.store(true, Ordering::Release);
        self.wake();
    }

    /// Leaves the group, and returns once the broker knows.
    pub(super) async fn leave(self: Arc<Self>) {
        let left = blocking(move || {
            let mut member = self;
            // Calls that still use it end soon.
            loop {
                match Arc::try_unwrap(member) {
                    Ok(member) => {
                        member.part();
                        return Ok(());
                    }
                    Err(used) => member = used,
                }
                member.end();
                std::thread::sleep(LOOK);
            }
        });
        drop(left.await);
    }

    fn part(mut self) {
        self.end();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!(topic = self.topic, "the thread of a consumer panicked");
        }
    }
}

/// One that is let go without having left ends its thread too, which leaves then.
impl<S: Shelf> Drop for Member<S> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Where a partition ended.
pub(super) fn high(marks: &Marks, partition: i32) -> Option<i64> {
    let at = usize::try_from(partition).ok()?;
    marks.get(at).map(|(_, high)| *high)
}

/// Puts what comes onto the shelf until the member leaves.
///
/// Each partition has a queue in the client, so that one that is full waits there while the others go on. (Telling the
/// client to pause it would cost the better part of a second until it goes on.)
fn fetch<S: Shelf>(consumer: &Arc<BaseConsumer<Watch<S>>>, shared: &Shared<S>, clock: &dyn Clock) {
    let take = |polled: KafkaResult<BorrowedMessage<'_>>| match polled {
        // What comes after the topic became another one is for the next member.
        Ok(_) if shared.is_lost() => {}
        Ok(record) => {
            let losses = &consumer.context().losses;
            losses.reached(&shared.topic, record.partition(), record.offset() + 1);
            lock(&shared.shelf).put(&record, clock.now());
        }
        Err(told) => consumer.context().hear(&told),
    };
    let drain = || {
        let (mut came, mut calls) = (0, shared.calls.load(Ordering::Relaxed));
        loop {
            if let Some(polled) = consumer.poll(Duration::ZERO) {
                came += 1;
                take(polled);
                continue;
            }
            let served = shared.calls.load(Ordering::Relaxed);
            if served == calls {
                return came;
            }
            calls = served;
        }
    };
    let has_room = |partition| lock(&shared.shelf).fullness(partition) < 100;
    let mut queues: BTreeMap<i32, PartitionQueue<Watch<S>>> = BTreeMap::new();
    while !shared.ending.load(Ordering::Acquire) {
        let mut came = 0;
        // Rebalances, log lines, and what came before its partition had a queue.
        came += drain();
        let ours = lock(&shared.shelf).partitions();
        queues.retain(|partition, _| ours.contains(partition));
        for partition in ours {
            if !queues.contains_key(&partition)
                && let Some(mut queue) = consumer.split_partition_queue(&shared.topic, partition)
            {
                let this = std::thread::current();
                queue.set_nonempty_callback(move || this.unpark());
                queues.insert(partition, queue);
                came += 1;
            }
        }
        for (partition, queue) in &queues {
            for _ in 0..CHUNKS {
                if !has_room(*partition) {
                    break;
                }
                let next = || queue.poll(Duration::ZERO);
                let chunk: Vec<_> = std::iter::from_fn(next).take(CHUNK).collect();
                if chunk.is_empty() {
                    break;
                }
                came += chunk.len();
                // That the topic is another one is said before its records come.
                drain();
                chunk.into_iter().for_each(&take);
            }
        }
        if came > 0 {
            shared.news.notify_waiters();
        } else {
            std::thread::park_timeout(LOOK);
        }
    }
    drop(queues);
    consumer.unsubscribe();
}
