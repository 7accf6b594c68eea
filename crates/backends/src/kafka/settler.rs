//! Settling: one task for each group member of a queue commits settlements in batches.
//!
//! Acks only commit offsets. A message that moves (delayed, dead letter, requeued) is produced
//! in one transaction with the offsets: it is in exactly one topic, whichever process crashes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use towpath_core::{Error, ErrorKind, MessageId, Result, Timestamp};
use tracing::{debug, warn};

use super::buffers::{AckBuffer, DelayedBuffer, InFlightMessage, ReadyBuffer};
use super::consumer::{GroupConsumer, lock};
use super::produce::Record;
use super::queue::QueueHandle;
use super::store::{Store, blocking};
use super::transaction::{Failed, GroupOffsets, Transactions, list};
use super::{envelope, error};

/// Items settled at once.
const AT_ONCE: usize = 1_000;

/// Payload bytes moved in one transaction, about.
const ENOUGH_BYTES: usize = 32 << 20;

/// Pause before a retry, as during a rebalance.
const PAUSE: Duration = Duration::from_millis(50);

/// Longest open transaction. One of a crashed process blocks its partitions for this long.
const TRANSACTION: Duration = Duration::from_secs(10);

/// The action for a settled message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// The delivery is done; nothing is produced.
    Ack,
    /// To the end of its queue.
    Requeue,
    /// Into this partition of the topic of delayed messages.
    Delay(i32),
    /// Into the topic of dead letters.
    DeadLetter,
}

/// An in-flight message and its settlement.
pub(super) struct SettleItem {
    /// Its in-flight number.
    pub(super) number: u64,
    /// Deliveries counted in a copy.
    pub(super) attempts: u32,
    pub(super) held: InFlightMessage,
    pub(super) action: Action,
    /// Whether the dead letter is moved without payload and headers, to fit the topic's record limit.
    pub(super) is_cut: bool,
}

impl SettleItem {
    /// Makes its record smaller after the topic refused it; false when it cannot be.
    fn shrink(&mut self, now: Timestamp) -> bool {
        match self.action {
            Action::Ack => false,
            Action::Requeue | Action::Delay(_) => {
                let last = self
                    .held
                    .envelope
                    .errors
                    .last()
                    .cloned()
                    .unwrap_or_default();
                let reason = format!("too large for the retry topic; last error: {last}");
                self.held.envelope.mark_dead(&reason, now);
                self.action = Action::DeadLetter;
                true
            }
            Action::DeadLetter => !std::mem::replace(&mut self.is_cut, true),
        }
    }
}

struct SettleRequest {
    item: SettleItem,
    /// Whether it was in a transaction with a refused record.
    is_suspect: bool,
    answer: oneshot::Sender<Result<()>>,
}

/// Handle of a member's settle task.
pub(super) struct Settler {
    asks: Mutex<Option<mpsc::UnboundedSender<SettleRequest>>>,
    /// A delivery was charged; to be committed soon.
    counted: Notify,
    /// The outcome of a transaction is unknown: only a new member can continue.
    lost: AtomicBool,
    task: Mutex<Option<JoinHandle<()>>>,
}

/// The group members of a queue in this process.
#[derive(Clone)]
pub(super) struct QueueMembers {
    pub(super) ready: Arc<GroupConsumer<ReadyBuffer>>,
    pub(super) delayed: Arc<GroupConsumer<DelayedBuffer>>,
}

impl QueueMembers {
    /// Records a produced offset, so that reads wait for it.
    pub(super) fn note_produced(&self, action: Action, (partition, at): (i32, i64)) {
        match action {
            Action::Requeue => self.ready.note_produced(partition, at),
            Action::Delay(_) => self.delayed.note_produced(partition, at),
            Action::Ack | Action::DeadLetter => {}
        }
    }

    /// The same for a record of a committed transaction.
    pub(super) fn note_marked(&self, action: Action, (partition, at): (i32, i64)) {
        match action {
            Action::Requeue => self.ready.note_marked(partition, at),
            Action::Delay(_) => self.delayed.note_marked(partition, at),
            Action::Ack | Action::DeadLetter => {}
        }
    }
}

impl Settler {
    /// Starts the task of `member`, which is one of `members`.
    pub(super) fn start<S: AckBuffer>(
        store: Arc<Store>,
        handle: Arc<QueueHandle>,
        members: QueueMembers,
        member: Arc<GroupConsumer<S>>,
    ) -> Arc<Self> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the number of leased messages bounds it"
        )]
        let (asks, asked) = mpsc::unbounded_channel();
        let settler = Arc::new(Self {
            asks: Mutex::new(Some(asks)),
            counted: Notify::new(),
            lost: AtomicBool::new(false),
            task: Mutex::default(),
        });
        let task = SettleTask {
            store,
            handle,
            members,
            member,
            settler: Arc::clone(&settler),
            transactions: None,
        };
        // Ends with the channel, which `close` does.
        *lock(&settler.task) = Some(crate::task::spawn(task.run(asked)));
        settler
    }

    /// Settles items; one outcome for each, in order. Continues when the call is dropped.
    pub(super) async fn settle(&self, items: Vec<SettleItem>) -> Vec<Result<()>> {
        let mut answers = Vec::with_capacity(items.len());
        for item in items {
            let (answer, answered) = oneshot::channel();
            if let Some(asks) = &*lock(&self.asks) {
                let is_suspect = false;
                drop(asks.send(SettleRequest {
                    item,
                    is_suspect,
                    answer,
                }));
            }
            answers.push(answered);
        }
        let mut outcomes = Vec::with_capacity(answers.len());
        for answer in answers {
            outcomes.push(answer.await.unwrap_or_else(|_| Err(gone())));
        }
        outcomes
    }

    /// Commits delivery counts soon.
    pub(super) fn count(&self) {
        self.counted.notify_one();
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    /// Commits pending changes, and returns once the task has ended.
    pub(super) async fn close(&self) {
        lock(&self.asks).take();
        let task = lock(&self.task).take();
        if let Some(task) = task
            && let Err(error) = task.await
        {
            warn!(%error, "settle task panicked");
        }
    }
}

fn gone() -> Error {
    Error::conflict("partition revoked: the message belongs to another process now")
}

/// The settle task of a member.
struct SettleTask<S: AckBuffer> {
    store: Arc<Store>,
    handle: Arc<QueueHandle>,
    members: QueueMembers,
    member: Arc<GroupConsumer<S>>,
    settler: Arc<Settler>,
    transactions: Option<Transactions>,
}

/// Why a batch was not settled.
enum SettleError {
    /// Nothing changed.
    Undone(Error),
    /// Nothing changed, and a retry would fail too: the records of these items exceed the topic's limit.
    TooLarge(Error, Vec<usize>),
    /// The outcome is unknown.
    Unknown(Error),
}

impl<S: AckBuffer> SettleTask<S> {
    async fn run(mut self, mut asked: mpsc::UnboundedReceiver<SettleRequest>) {
        let settler = Arc::clone(&self.settler);
        let mut kept = None;
        loop {
            let mut items: Vec<SettleRequest> = kept.take().into_iter().collect();
            let mut ending = false;
            if items.is_empty() {
                tokio::select! {
                    one = asked.recv() => match one {
                        Some(one) => items.push(one),
                        None => ending = true,
                    },
                    () = settler.counted.notified() => {}
                }
            }
            let mut bytes = 0;
            while items.len() < AT_ONCE
                && bytes < ENOUGH_BYTES
                && let Ok(one) = asked.try_recv()
            {
                if one.item.action != Action::Ack {
                    bytes += one.item.held.envelope.message.payload.len();
                }
                // Acks do not wait for the transaction of moves.
                if items.last().is_some_and(|last| moves(last) != moves(&one)) {
                    kept = Some(one);
                    break;
                }
                items.push(one);
            }
            self.settle(items).await;
            if ending || self.settler.is_lost() {
                return;
            }
        }
    }

    /// Settles these requests, and answers them. Failed ones are in flight again, as before.
    async fn settle(&mut self, mut items: Vec<SettleRequest>) {
        let until = Instant::now() + self.store.config.timeout;
        loop {
            let member = Arc::clone(&self.member);
            let commit_lock = member.commit_lock().lock().await;
            let (positions, left) = self.settle_records(items);
            items = left;
            let committed = self.commit(&items, positions.clone()).await;
            drop(commit_lock);
            let refusal = match committed {
                Ok(()) => {
                    for one in items {
                        drop(one.answer.send(Ok(())));
                    }
                    return;
                }
                Err(refusal) => refusal,
            };
            let is_unknown = matches!(refusal, SettleError::Unknown(_));
            let is_too_large = matches!(refusal, SettleError::TooLarge(..));
            let error = match refusal {
                SettleError::Undone(error) | SettleError::Unknown(error) => error,
                SettleError::TooLarge(error, which) => {
                    for at in which {
                        items[at].is_suspect = true;
                    }
                    error
                }
            };
            if is_unknown {
                warn!(queue = %self.handle.name, error = error.chain(), "rejoining consumer group");
                self.settler.lost.store(true, Ordering::Release);
                self.member.end();
                for one in items {
                    let text = error.chain();
                    drop(one.answer.send(Err(Error::unavailable(text))));
                }
                return;
            }
            if error.kind() == ErrorKind::NotFound {
                // Any of the topics may be missing; asking is cheap.
                for topic in [
                    &self.handle.topic,
                    &self.handle.delayed_topic,
                    &self.handle.dead_topic,
                ] {
                    self.store.doubt(topic);
                    drop(self.store.partitions(topic).await);
                }
            }
            items = self.reopen(items, &positions);
            if is_too_large {
                if let [one] = items.as_mut_slice() {
                    one.is_suspect = false;
                    if one.item.shrink(self.store.clock.now()) {
                        continue;
                    }
                } else {
                    // The refused batch does not name its too large record: each is sent alone.
                    let (suspects, rest) = items.into_iter().partition(|one| one.is_suspect);
                    items = rest;
                    let suspects: Vec<SettleRequest> = suspects;
                    for one in suspects {
                        Box::pin(self.settle(vec![one])).await;
                    }
                    continue;
                }
            }
            // During a rebalance, or while a node is replaced.
            if error.kind() != ErrorKind::Invalid && Instant::now() < until {
                debug!(queue = %self.handle.name, error = error.chain(), "settling failed; retrying");
                sleep(PAUSE).await;
                continue;
            }
            for SettleRequest { item, answer, .. } in items {
                let text = error.chain();
                self.member.buffer().put_back(item.number, item.held);
                drop(answer.send(Err(Error::unavailable(text))));
            }
            self.member.wake();
            return;
        }
    }

    /// Marks the messages of assigned partitions as settled, and takes the positions to commit.
    fn settle_records(
        &self,
        items: Vec<SettleRequest>,
    ) -> (Vec<(i32, i64, String)>, Vec<SettleRequest>) {
        if self.member.is_lost() {
            // Its positions are of a deleted topic.
            for one in items {
                drop(one.answer.send(Err(gone())));
            }
            return (Vec::new(), Vec::new());
        }
        let mut buffer = self.member.buffer();
        let trackers = buffer.trackers();
        let (ours, lost): (Vec<_>, Vec<_>) = items
            .into_iter()
            .partition(|one| trackers.settle(&one.item.held));
        let positions = trackers.take_dirty();
        drop(buffer);
        for one in lost {
            drop(one.answer.send(Err(gone())));
        }
        (positions, ours)
    }

    fn reopen(
        &self,
        items: Vec<SettleRequest>,
        positions: &[(i32, i64, String)],
    ) -> Vec<SettleRequest> {
        let mut buffer = self.member.buffer();
        let trackers = buffer.trackers();
        trackers.mark_dirty(positions);
        let (ours, lost): (Vec<_>, Vec<_>) = items
            .into_iter()
            .partition(|one| trackers.reopen(&one.item.held));
        drop(buffer);
        for one in lost {
            drop(one.answer.send(Err(gone())));
        }
        ours
    }

    async fn commit(
        &mut self,
        items: &[SettleRequest],
        positions: Vec<(i32, i64, String)>,
    ) -> std::result::Result<(), SettleError> {
        let undone =
            |what: &'static str| move |error| SettleError::Undone(error::of_call(what, error));
        let list = list(&self.member.topic, &positions).map_err(undone("settle"))?;
        if items.iter().any(moves) {
            return self.transact(items, list).await;
        }
        if positions.is_empty() {
            return Ok(());
        }
        let member = Arc::clone(&self.member);
        let committed = blocking(move || {
            let committed = member.commit(&list);
            committed.map_err(|error| error::of_call("settle", error))
        });
        committed.await.map_err(SettleError::Undone)
    }

    async fn transact(
        &mut self,
        items: &[SettleRequest],
        list: rdkafka::TopicPartitionList,
    ) -> std::result::Result<(), SettleError> {
        let (store, handle) = (&self.store, &self.handle);
        let mut envelopes = Vec::with_capacity(items.len());
        for SettleRequest { item, .. } in items {
            let made = match item.action {
                Action::Ack => continue,
                Action::Requeue => Ok(()),
                Action::Delay(_) => store.ensure_delayed(handle).await,
                Action::DeadLetter => store.ensure_dead(handle).await,
            };
            made.map_err(SettleError::Undone)?;
            let mut copy = item.held.envelope.clone();
            copy.attempts = item.attempts;
            if item.action == Action::Requeue {
                copy.not_before = None;
            }
            let id = copy.message.id.to_string();
            let origin = &item.held.origin;
            let left_at = || format!("{}/{}/{}", self.member.topic, origin.partition, origin.at);
            let left_at = item.is_cut.then(left_at);
            envelopes.push((item.action, id, copy, origin.raw.as_deref(), left_at));
        }
        let records: Vec<Record<'_>> = envelopes
            .iter()
            .map(|(action, id, envelope, raw, left_at)| {
                let (topic, partition) = handle.destination(*action);
                let key = match action {
                    // Dead letters are found, and deleted, by their id.
                    Action::DeadLetter => Some(id.as_bytes()),
                    _ => envelope::key(envelope, *raw),
                };
                let (payload, headers) = match left_at {
                    Some(left_at) => (&b""[..], envelope::of_cut(envelope, left_at)),
                    None => (
                        &envelope.message.payload[..],
                        envelope::of_queue(envelope, *raw),
                    ),
                };
                Record {
                    topic,
                    partition,
                    key,
                    payload: Some(payload),
                    headers,
                    at: None,
                }
            })
            .collect();
        if self.transactions.is_none() {
            let id = format!("{}.{}", handle.topic, MessageId::new());
            let started = Transactions::start(&store.config, id, TRANSACTION).await;
            self.transactions = Some(started.map_err(SettleError::Undone)?);
        }
        let Some(group) = self.member.group() else {
            let left = Error::unavailable("kafka: consumer group left");
            return Err(SettleError::Undone(left));
        };
        let Some(transactions) = &self.transactions else {
            return Err(SettleError::Undone(Error::unavailable("no producer")));
        };
        let done = transactions.run(records, Some(GroupOffsets { list, group }));
        let topics = [&handle.topic, &handle.delayed_topic, &handle.dead_topic].map(String::as_str);
        match store.while_declared(&topics, done).await {
            Ok(places) => {
                for ((action, ..), place) in envelopes.iter().zip(places) {
                    match action {
                        Action::DeadLetter => handle.note_dead(place.1),
                        _ => self.members.note_marked(*action, place),
                    }
                }
                Ok(())
            }
            Err(Failed::TooLarge(error, which)) => {
                let error = error::of_call("settle in a transaction", error);
                Err(SettleError::TooLarge(error, which))
            }
            Err(failed) => {
                for topic in [&handle.topic, &handle.delayed_topic, &handle.dead_topic] {
                    store.doubt(topic);
                }
                let is_unknown = matches!(failed, Failed::Unknown(_));
                let error = error::of_produce("settle in a transaction", failed.error());
                Err(match is_unknown {
                    true => {
                        self.transactions = None;
                        SettleError::Unknown(error)
                    }
                    false => SettleError::Undone(error),
                })
            }
        }
    }
}

fn moves(one: &SettleRequest) -> bool {
    one.item.action != Action::Ack
}
