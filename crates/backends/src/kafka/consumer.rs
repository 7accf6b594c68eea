//! A group member: a consumer on its own thread, which fills a buffer.
//!
//! A revoked partition drops its buffered records; the next member fetches them from the committed offset on.

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
use super::rebalance::{Invalidate, RebalanceListener, Shared};
use super::store::{Watermarks, blocking};

/// Longest wait of the thread for a record before it checks for a rebalance, for room and for the end.
const LOOK: Duration = Duration::from_millis(25);

/// Records per chunk, and chunks of one partition before the next partition.
const CHUNK: usize = 20;
const CHUNKS: usize = 50;

/// Time for records of the broker to arrive.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// The same where the end was seen, and the offsets behind it are most likely transaction markers.
const A_MOMENT: Duration = Duration::from_millis(50);

/// A buffer of fetched records, by partition.
pub(super) trait FetchBuffer: Default + Send + 'static {
    /// A partition was assigned, at this position and with this offset metadata.
    fn assign(&mut self, partition: i32, position: i64, metadata: &str);
    /// A partition was revoked: returns its uncommitted position and metadata, with or without a charge for leased messages.
    fn revoke(&mut self, partition: i32, uncharges: bool) -> Option<(i64, String)>;
    /// A record was fetched.
    fn put(&mut self, record: &BorrowedMessage<'_>, now: Timestamp);
    /// Fetch progress of an assigned partition.
    fn progress(&mut self, partition: i32) -> Option<&mut FetchProgress>;
    /// The assigned partitions.
    fn partitions(&self) -> Vec<i32>;
    /// Fill level of a partition in percent: from 100 on no more is fetched.
    fn fullness(&self, partition: i32) -> usize;
}

/// Fetch progress of a partition.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct FetchProgress {
    /// Behind the newest fetched record.
    pub(super) next: i64,
    /// Whether the broker reported the end of the partition since then.
    ended: bool,
    /// Behind the newest record produced by this process.
    produced: i64,
    /// The same of its transactions, which a commit marker follows; 0 for none.
    marked: i64,
}

impl FetchProgress {
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

    /// Records not fetched yet. Kafka counts transaction markers, which no consumer receives.
    pub(super) fn missing(&self, high: i64) -> u64 {
        if self.ended && self.produced <= self.next {
            return 0;
        }
        self.surely_missing(high)
    }

    /// The same without the end-of-partition hint.
    fn surely_missing(&self, high: i64) -> u64 {
        let is_the_mark = self.marked > 0 && self.marked == self.next && high == self.next + 1;
        match is_the_mark {
            true => 0,
            false => high.saturating_sub(self.next).max(0).unsigned_abs(),
        }
    }
}

/// A running group member.
pub(super) struct GroupConsumer<S: FetchBuffer> {
    consumer: Arc<BaseConsumer<RebalanceListener<S>>>,
    pub(super) topic: String,
    shared: Arc<Shared<S>>,
    thread: Option<JoinHandle<()>>,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: FetchBuffer> GroupConsumer<S> {
    /// Joins the group.
    pub(super) fn join(
        config: &Config,
        topic: &str,
        group: &str,
        clock: Arc<dyn Clock>,
        losses: Arc<Losses>,
    ) -> Result<Self> {
        let shared = Arc::new(Shared::<S>::new(topic, group));
        let listener = RebalanceListener {
            shared: Arc::clone(&shared),
            losses,
            timeout: config.timeout,
        };
        let failed = |error| error::of_call(&format!("join group `{group}`"), error);
        let consumer: BaseConsumer<RebalanceListener<S>> = config
            .client()
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("partition.assignment.strategy", "cooperative-sticky")
            // An offset that the broker does not have is never replaced silently.
            .set("auto.offset.reset", "error")
            // The client reports a recreated topic only here.
            .set("debug", "metadata")
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set_log_level(RDKafkaLogLevel::Debug)
            // The minimum of brokers by default: a killed member holds its partitions for this long.
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "2000")
            .set("fetch.wait.max.ms", "100")
            // The client's own queue beside the buffer, and its pause when that is full.
            .set("queued.max.messages.kbytes", "16384")
            .set("fetch.queue.backoff.ms", "10")
            // Topics of other programs may hold larger records than ours.
            .set("receive.message.max.bytes", "1000000000")
            .create_with_context(listener)
            .map_err(failed)?;
        consumer.subscribe(&[topic]).map_err(failed)?;
        let consumer = Arc::new(consumer);
        let (polled, filled) = (Arc::clone(&consumer), Arc::clone(&shared));
        let thread = std::thread::Builder::new()
            .name("towpath-kafka".to_owned())
            .spawn(move || fetch(&polled, &filled, &*clock));
        let thread = thread
            .map_err(|error| Error::unavailable("cannot start a thread").with_source(error))?;
        Ok(Self {
            consumer,
            topic: topic.to_owned(),
            shared,
            thread: Some(thread),
        })
    }

    pub(super) fn buffer(&self) -> MutexGuard<'_, S> {
        lock(&self.shared.buffer)
    }

    /// Serialises commits and revocations. Held from taking positions until they are committed.
    pub(super) fn commit_lock(&self) -> &tokio::sync::Mutex<()> {
        &self.shared.commit_lock
    }

    /// Handle that invalidates it.
    pub(super) fn invalidator(&self) -> Weak<dyn Invalidate> {
        let shared: Arc<dyn Invalidate> = Arc::clone(&self.shared) as Arc<dyn Invalidate>;
        Arc::downgrade(&shared)
    }

    /// Whether only a new member can continue.
    pub(super) fn is_lost(&self) -> bool {
        self.shared.is_lost()
    }

    /// A record or a partition arrived.
    pub(super) fn changed(&self) -> Notified<'_> {
        self.shared.changed.notified()
    }

    /// Wakes the waiting callers.
    pub(super) fn wake(&self) {
        self.shared.changed.notify_waiters();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.shared.ending.load(Ordering::Acquire)
    }

    /// Waits at most `limit` for a condition. Returns whether it holds.
    pub(super) async fn until(&self, limit: Duration, is_so: impl Fn(&mut S) -> bool) -> bool {
        let until = Instant::now() + limit;
        loop {
            let mut changed = std::pin::pin!(self.changed());
            changed.as_mut().enable();
            if is_so(&mut self.buffer()) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_ending() || self.is_lost() {
                return false;
            }
            drop(tokio::time::timeout(left, changed).await);
        }
    }

    /// Waits for the first assignment. Returns whether it came.
    pub(super) async fn wait_assigned(&self, limit: Duration) -> bool {
        self.until(limit, |_| self.shared.assigned.load(Ordering::Acquire))
            .await
    }

    /// Waits until the records below these watermarks are fetched, or `enough` of them.
    pub(super) async fn wait_fetched(&self, watermarks: &Watermarks, enough: impl Fn(&S) -> bool) {
        let lacks = |buffer: &mut S, strictly: bool| {
            let ours = buffer.partitions().into_iter();
            let mut ours = ours.filter_map(|one| Some((one, high(watermarks, one)?)));
            ours.any(|(partition, high)| {
                let full = buffer.fullness(partition) >= 100;
                let progress = buffer.progress(partition).copied().unwrap_or_default();
                let missing = match strictly {
                    true => progress.surely_missing(high),
                    false => progress.missing(high),
                };
                missing > 0 && !full
            })
        };
        let is_here = |strictly| move |buffer: &mut S| enough(buffer) || !lacks(buffer, strictly);
        let strictly = is_here(true);
        if self.until(A_MOMENT, &strictly).await {
            return;
        }
        self.until(ON_ITS_WAY, |buffer| {
            strictly(buffer) || !lacks(buffer, false)
        })
        .await;
    }

    /// Records the offset of a produced record, so that [`GroupConsumer::wait_fetched`] waits for it.
    pub(super) fn note_produced(&self, partition: i32, at: i64) {
        if let Some(progress) = self.buffer().progress(partition) {
            progress.produced = progress.produced.max(at + 1);
        }
    }

    /// The same for a record of a committed transaction.
    pub(super) fn note_marked(&self, partition: i32, at: i64) {
        self.note_produced(partition, at);
        if let Some(progress) = self.buffer().progress(partition) {
            progress.marked = progress.marked.max(at + 1);
        }
    }

    /// Sets positions of the group. Blocks.
    pub(super) fn commit(&self, positions: &TopicPartitionList) -> KafkaResult<()> {
        self.consumer.commit(positions, CommitMode::Sync)
    }

    /// Group metadata for a transaction of this member.
    pub(super) fn group(&self) -> Option<ConsumerGroupMetadata> {
        self.consumer.group_metadata()
    }

    /// Wakes the waiting callers.
    pub(super) fn end(&self) {
        self.shared.ending.store(true, Ordering::Release);
        self.wake();
    }

    /// Leaves the group, and returns once the broker knows.
    pub(super) async fn leave(self: Arc<Self>) {
        let left = blocking(move || {
            let mut member = self;
            // Calls that still use it end soon: `end` wakes them.
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
            warn!(topic = self.topic, "consumer thread panicked");
        }
    }
}

/// A member dropped without `leave` ends its thread too, which then leaves the group.
impl<S: FetchBuffer> Drop for GroupConsumer<S> {
    fn drop(&mut self) {
        self.end();
    }
}

/// High watermark of a partition.
pub(super) fn high(watermarks: &Watermarks, partition: i32) -> Option<i64> {
    let at = usize::try_from(partition).ok()?;
    watermarks.get(at).map(|(_, high)| *high)
}

/// Fills the buffer until the member leaves.
///
/// Each partition has a queue in the client, so that one that is full waits there while the others continue. (Pausing it
/// through the client would take most of a second to resume.)
fn fetch<S: FetchBuffer>(
    consumer: &Arc<BaseConsumer<RebalanceListener<S>>>,
    shared: &Shared<S>,
    clock: &dyn Clock,
) {
    let take = |polled: KafkaResult<BorrowedMessage<'_>>| match polled {
        // Records after the topic was recreated are for the next member.
        Ok(_) if shared.is_lost() => {}
        Ok(record) => {
            let losses = &consumer.context().losses;
            losses.reached(&shared.topic, record.partition(), record.offset() + 1);
            lock(&shared.buffer).put(&record, clock.now());
        }
        Err(error) => consumer.context().record(&error),
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
    let has_room = |partition| lock(&shared.buffer).fullness(partition) < 100;
    let mut queues: BTreeMap<i32, PartitionQueue<RebalanceListener<S>>> = BTreeMap::new();
    while !shared.ending.load(Ordering::Acquire) {
        let mut came = 0;
        // Rebalances, log lines, and records fetched before their partition had a queue.
        came += drain();
        let ours = lock(&shared.buffer).partitions();
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
                // The client reports a recreated topic before its records.
                drain();
                chunk.into_iter().for_each(&take);
            }
        }
        if came > 0 {
            shared.changed.notify_waiters();
        } else {
            std::thread::park_timeout(LOOK);
        }
    }
    drop(queues);
    consumer.unsubscribe();
}
