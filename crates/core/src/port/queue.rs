//! Work queues: each message goes to one consumer, under a lease.
//!
//! ```text
//! enqueue -> [delayed] -> ready -> leased -> acked
//!                           ^        |-----> delayed -> ready   (retry)
//!                           |--------|                          (release, disconnect, expired lease)
//!                                    |-----> dead -> ready      (redrive)
//! ```

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Attempt, ConsumerId, Delivery, Error, Message, MessageId, NewMessage, QueueName, Receipt,
    Result, Timestamp, attempt, retry,
};

/// Most messages in one call, in either direction.
pub const MAX_BATCH: usize = 10_000;

/// Shortest lease.
pub const MIN_LEASE: Duration = Duration::from_millis(10);

/// Longest lease. Source: Amazon SQS, visibility timeout.
pub const MAX_LEASE: Duration = Duration::from_secs(12 * 60 * 60);

/// Settings of a queue, set when it is declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Retry policy of failed deliveries.
    pub retry: retry::Policy,
    /// Time for which a dedup id is remembered, from the enqueue of its message.
    pub dedup_window: Duration,
    /// Most messages that may wait (ready, delayed and leased); more is refused as overloaded.
    pub max_depth: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            retry: retry::Policy::default(),
            dedup_window: Duration::from_secs(24 * 60 * 60),
            max_depth: None,
        }
    }
}

/// Outcome of one accepted message of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enqueued {
    /// Stored under its own id; a backend without `Headers` gives it another when it is first leased.
    New(MessageId),
    /// Its dedup id was known: nothing stored, the first message's id.
    Duplicate(MessageId),
}

impl Enqueued {
    /// The id under which the message is stored.
    pub const fn id(self) -> MessageId {
        match self {
            Self::New(id) | Self::Duplicate(id) => id,
        }
    }
}

/// A request for work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRequest {
    /// The queue to lease from.
    pub queue: QueueName,
    /// The consumer that will hold the deliveries.
    pub consumer: ConsumerId,
    /// 1 to [`MAX_BATCH`] messages.
    pub max: usize,
    /// Maximum number in flight at the consumer, those that it holds included; a backend sends no more of them ahead.
    pub in_flight: usize,
    /// [`MIN_LEASE`] to [`MAX_LEASE`], kept to the millisecond.
    pub lease: Duration,
    /// Longest wait for the first message; with zero, all ready messages come, up to `max`.
    pub wait: Duration,
}

impl LeaseRequest {
    /// Checks the ranges.
    ///
    /// # Errors
    /// `Invalid` when `max` or `lease` is out of range.
    pub fn check(&self) -> Result<()> {
        check_max(self.max)?;
        check_lease(self.lease)
    }
}

/// Checks the size of a batch to lease.
///
/// # Errors
/// `Invalid` when it is not 1 to [`MAX_BATCH`].
pub fn check_max(max: usize) -> Result<()> {
    if (1..=MAX_BATCH).contains(&max) {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "`max` is {max}; it must be 1 to {MAX_BATCH}"
        )))
    }
}

/// Checks the size of a batch to enqueue.
///
/// # Errors
/// `Invalid` when it is over [`MAX_BATCH`].
pub fn check_batch(count: usize) -> Result<()> {
    if count <= MAX_BATCH {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "a batch of {count} is over the limit of {MAX_BATCH}"
        )))
    }
}

/// Checks that a lease is in range.
///
/// # Errors
/// `Invalid` when it is not.
pub fn check_lease(lease: Duration) -> Result<()> {
    if (MIN_LEASE..=MAX_LEASE).contains(&lease) {
        Ok(())
    } else {
        Err(Error::invalid(format!(
            "lease of {lease:?} is out of range; it must be 10ms to 12h"
        )))
    }
}

/// The end of a delivery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Disposition {
    /// Done: the message is removed.
    Ack,
    /// Not done: ready again after the delay, the attempt counted. When the
    /// queue's attempts are spent the message becomes a dead letter instead.
    Retry {
        /// Delay before it is ready again.
        after: Duration,
        /// Why, for the dead letter's history: an error, or the text of an [`Attempt`].
        error: String,
    },
    /// Dead-lettered, with the reason.
    DeadLetter {
        /// Why: a reason, or the text of an [`Attempt`].
        reason: String,
    },
    /// Returned: the attempt is not counted.
    Release {
        /// Delay before it is ready again; with zero it is ready at once, at its old position.
        after: Duration,
    },
}

impl Disposition {
    /// Returned for immediate delivery.
    pub const RELEASE: Self = Self::Release {
        after: Duration::ZERO,
    };
}

/// A receipt and how its delivery ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Which delivery.
    pub receipt: Receipt,
    /// Its disposition.
    pub disposition: Disposition,
}

/// A queue's numbers.
///
/// Totals are counted across restarts by a backend with `Bookkeeping`; other backends count from when they were opened,
/// in this process only, and their `enqueued` begins with the messages found.
///
/// At every quiet point `enqueued = ready + delayed + leased + dead + acked + dropped`,
/// where `dropped` counts expired, purged, damaged and dropped dead messages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// The queue.
    pub queue: QueueName,
    /// Messages that can be leased now.
    pub ready: u64,
    /// Delayed messages.
    pub delayed: u64,
    /// Leased messages.
    pub leased: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages ever taken, duplicates not counted.
    pub enqueued: u64,
    /// Messages ever acked.
    pub acked: u64,
    /// Deliveries that ended in a retry.
    pub retried: u64,
    /// Messages expired, purged, damaged, or dropped from the dead letters.
    pub dropped: u64,
    /// Second messages refused by their dedup id.
    pub duplicates: u64,
    /// Time since the oldest message (ready, delayed or leased) was enqueued.
    pub oldest_age: Option<Duration>,
    /// Time since the oldest ready message became ready, as far as the backend knows:
    /// a delay, the backoff of a retry and a lease do not count.
    pub oldest_ready_age: Option<Duration>,
    /// Age of the oldest lease, as far as the backend knows; a renewal does
    /// not begin it again.
    pub oldest_leased_age: Option<Duration>,
    /// Time since the oldest delayed message was enqueued, as far as the backend knows: the time that the longest retry has
    /// gone on.
    pub oldest_delayed_age: Option<Duration>,
    /// Consumers that leased within the last minute or hold a delivery.
    pub consumers: u64,
    /// Whether delivery is stopped.
    pub paused: bool,
}

/// Messages of a queue that wait on another server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranded {
    /// The server.
    pub place: String,
    /// Number of waiting messages.
    pub messages: u64,
}

/// State of a peeked message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MessageState {
    /// Can be leased now.
    Ready,
    /// Delayed.
    Delayed,
    /// Leased to a consumer.
    Leased,
}

/// A message read without leasing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peeked {
    /// The message.
    pub message: Message,
    /// Its state.
    pub state: MessageState,
    /// Deliveries so far.
    pub attempts: u32,
}

/// A message that failed for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// The message; its payload is empty when it could not be read back, and `reason` names that.
    pub message: Message,
    /// Why it failed: the last error.
    pub reason: String,
    /// Earlier errors, oldest first; at most the last ten.
    pub history: Vec<String>,
    /// Records of the failed attempts, the last one included, oldest first. An attempt whose consumer died or
    /// lost its lease leaves no record. Bounds: [`attempt`].
    pub records: Vec<Attempt>,
    /// Deliveries before it became a dead letter.
    pub attempts: u32,
    /// When it became a dead letter.
    pub died_at: Timestamp,
    /// The queue a redrive puts it back into.
    pub origin: QueueName,
}

impl DeadLetter {
    /// A dead letter whose reason and history are the texts that the dispositions gave.
    pub fn new(
        message: Message,
        (reason, history): (&str, &[String]),
        attempts: u32,
        died_at: Timestamp,
        origin: QueueName,
    ) -> Self {
        let earlier = history.iter().map(String::as_str);
        Self {
            message,
            reason: attempt::error_of(reason).to_owned(),
            history: { history.iter() }
                .map(|text| attempt::error_of(text).to_owned())
                .collect(),
            records: earlier.chain([reason]).filter_map(Attempt::read).collect(),
            attempts,
            died_at,
            origin,
        }
    }
}

/// The dead letters that an operation covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// Every one there is when the call starts.
    All,
    /// These; unknown ids are skipped and not counted.
    Ids(Vec<MessageId>),
}

/// Work queues.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Makes sure the queue exists with these settings; idempotent, new settings replace old ones.
    ///
    /// A backend without `Bookkeeping` forgets the settings with the process: declare again at each start.
    ///
    /// Every other method but [`Queue::stats`] makes a missing queue with default settings.
    ///
    /// # Errors
    /// `Unavailable` when the backend did not answer.
    async fn declare(&self, queue: &QueueName, settings: &Settings) -> Result<()>;

    /// The settings of the queue, as they were last declared; the default ones when it was never declared.
    ///
    /// A backend without `Bookkeeping` knows the declarations of this process only.
    ///
    /// # Errors
    /// `NotFound` by a backend with `Bookkeeping` when the queue does not exist.
    async fn settings(&self, queue: &QueueName) -> Result<Settings>;

    /// Stores messages at the end of the queue and returns once they are as durable as the backend was asked to make them.
    ///
    /// One outcome per message, in order. A message that is refused does not
    /// keep the others out. With `dedup_id` a repeat is recognised for the
    /// queue's dedup window, across restarts, also within one batch.
    ///
    /// - `messages`: 0 to [`MAX_BATCH`]; none is a no-op.
    /// - Cancel: a dropped call may or may not have stored its messages.
    ///
    /// # Errors
    /// `Invalid` for more than [`MAX_BATCH`]; `Unavailable` when the outcome
    /// of the whole batch is unknown: retry with the same ids and dedup ids.
    /// Per message: `Invalid` over a limit, overloaded (`Unavailable` with
    /// `retry_after`) when the queue or the disk is full.
    async fn enqueue(
        &self,
        queue: &QueueName,
        messages: Vec<NewMessage>,
    ) -> Result<Vec<Result<Enqueued>>>;

    /// Leases up to `max` ready messages to the consumer, oldest first.
    ///
    /// Waits at most `wait` for the first one; an empty vector means none
    /// came. Delivery is at least once: an expired lease makes the message
    /// ready again and the next delivery has `attempt` raised by one. A
    /// message whose attempts are spent becomes a dead letter instead of
    /// being delivered again. While a message with a key is leased or waits
    /// for its retry, no other message of that key is delivered. A restart of
    /// the backend makes leased messages ready again. Until a delivery ends in
    /// a retry or a redrive, one that follows a delivery without an outcome is
    /// marked [`Delivery::interrupted`].
    ///
    /// - Cancel-safe: a dropped call leases nothing, or its leases expire.
    ///
    /// # Errors
    /// `Invalid` for values out of range; `Unavailable` when the backend did
    /// not answer, then nothing was leased or the leases expire.
    async fn lease(&self, request: LeaseRequest) -> Result<Vec<Delivery>>;

    /// Ends deliveries; durable when it returns. One outcome per settlement, in order.
    ///
    /// # Errors
    /// Per settlement: `Conflict` when the message was leased again since,
    /// settled or returned to the queue (nothing changed). An expired lease
    /// of a message that was not leased again is settled as if in time.
    async fn settle(&self, settlements: Vec<Settlement>) -> Result<Vec<Result<()>>>;

    /// Makes leases last until `lease` from now. One outcome per receipt.
    ///
    /// An expired lease begins again, unless the message or another one of its key was leased since.
    ///
    /// # Errors
    /// Per receipt: `Conflict` as in [`Queue::settle`].
    async fn extend(&self, receipts: &[Receipt], lease: Duration) -> Result<Vec<Result<()>>>;

    /// Returns every delivery that the consumer holds, as when it died: ready
    /// at once, at their old positions, attempts counted. Returns their number.
    async fn disconnect(&self, consumer: &ConsumerId) -> Result<u64>;

    /// The numbers of every queue, by name.
    async fn list(&self) -> Result<Vec<Stats>>;

    /// One queue's numbers.
    ///
    /// # Errors
    /// `NotFound` when the queue does not exist.
    async fn stats(&self, queue: &QueueName) -> Result<Stats>;

    /// Reads up to `max` waiting messages, oldest first, without leasing them.
    async fn peek(&self, queue: &QueueName, max: usize) -> Result<Vec<Peeked>>;

    /// Stops delivery; enqueueing continues and current leases stay valid. Durable, idempotent.
    async fn pause(&self, queue: &QueueName) -> Result<()>;

    /// Starts delivery again. Durable, idempotent.
    async fn resume(&self, queue: &QueueName) -> Result<()>;

    /// Drops every ready and delayed message; leased and dead ones stay. Returns how many.
    async fn purge(&self, queue: &QueueName) -> Result<u64>;

    /// Messages that wait on other servers of the backend's list, which no lease here reaches, as of a few seconds ago.
    /// None where all servers are one.
    async fn stranded(&self, _: &QueueName) -> Result<Vec<Stranded>> {
        Ok(Vec::new())
    }

    /// Moves stranded messages into the queue: durable here before they are removed there, so a crash repeats at most the
    /// messages in flight. Returns their number.
    ///
    /// # Errors
    /// `Unavailable` when a server did not answer; messages already moved stay moved.
    async fn collect(&self, _: &QueueName) -> Result<u64> {
        Ok(0)
    }

    /// Deletes the queue: its messages and dead letters, settings, counts and known dedup ids. Durable. Returns how many
    /// messages and dead letters were dropped.
    ///
    /// - `force`: without it only an empty queue is deleted.
    ///
    /// # Errors
    /// `NotFound` when the queue does not exist; `Conflict` when it is not empty, has consumers or is bound to a route
    /// (nothing changed); `Unsupported` by servers that delete queues with their own tools.
    async fn delete(&self, queue: &QueueName, force: bool) -> Result<u64> {
        _ = (queue, force);
        Err(Error::unsupported(
            "queues of this backend are deleted with its own tools",
        ))
    }

    /// Up to `max` dead letters, oldest first, those after `after` when given.
    async fn dead_letters(
        &self,
        queue: &QueueName,
        after: Option<MessageId>,
        max: usize,
    ) -> Result<Vec<DeadLetter>>;

    /// Moves dead letters to the end of their origin queue, same id, attempts from zero. Returns their number.
    async fn redrive(&self, queue: &QueueName, selection: &Selection) -> Result<u64>;

    /// Deletes dead letters for good. Returns their number.
    async fn drop_dead(&self, queue: &QueueName, selection: &Selection) -> Result<u64>;
}
