//! Outbox: events that a database transaction leaves for a broker.
//!
//! An event is written in the transaction of what it tells, so that neither is there without the other. A relay reads
//! events in their order and appends them to a broker. The database keeps how far that has come as one number: an
//! event that was sent costs no write of its own.

use async_trait::async_trait;
use uuid::Uuid;

use crate::Result;

/// Bytes of events with which a read is full, however many events were asked for.
pub const READ_BYTES: usize = 16 << 20;

/// Largest payload that is read; an event with a larger one has a flaw, and its payload stays in the database.
pub const MAX_DATA_BYTES: usize = crate::message::MAX_PAYLOAD_BYTES;

/// The same for each other text of an event.
pub const MAX_TEXT_BYTES: usize = crate::message::MAX_HEADER_BYTES;

/// An event before it has a place in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Stays the same however often the event is sent: what a consumer recognises repeats by.
    pub id: Uuid,
    /// The kind of thing that it is about: `user`.
    pub aggregate_type: String,
    /// Which one.
    pub aggregate_id: String,
    /// What happened to it: `user.created`.
    pub event_type: String,
    /// The topic, stream or queue that it goes to.
    pub topic: String,
    /// Events of one key stay in order in a topic of several partitions.
    pub key: Option<String>,
    /// The payload, JSON.
    pub data: String,
    /// When it happened.
    pub created_at: jiff::Timestamp,
    /// Where in which trace it happened, as W3C's `traceparent` says it.
    pub traceparent: Option<String>,
}

/// An event and its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place: higher than that of every event that was committed before it. Places may be missing.
    pub seq: u64,
    /// The event. With a flaw: the columns that could be read, and no payload.
    pub event: NewEvent,
    /// Why no broker can take it: a column that cannot be read, or that is larger than a message may be.
    pub flaw: Option<String>,
}

impl Event {
    /// Bytes of its texts.
    pub fn size(&self) -> usize {
        let event = &self.event;
        [
            &event.aggregate_type,
            &event.aggregate_id,
            &event.event_type,
            &event.topic,
            &event.data,
        ]
        .map(String::len)
        .into_iter()
        .chain(event.key.as_ref().map(String::len))
        .sum()
    }
}

/// What has become of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Not sent yet.
    New,
    /// Refused by the broker so far; being tried again.
    Processing,
    /// The broker has it.
    Sent,
    /// Given up: refused as often as allowed. `retry` makes it new.
    Failed,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::New, Self::Processing, Self::Sent, Self::Failed];

    /// As the view `outbox_events` shows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "NEW",
            Self::Processing => "PROCESSING",
            Self::Sent => "SENT",
            Self::Failed => "FAILED",
        }
    }

    /// The status of this name, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str().eq_ignore_ascii_case(name))
    }
}

/// An event as an operator sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedEvent {
    /// The event and its place.
    pub event: Event,
    /// What has become of it.
    pub status: Status,
    /// How often a broker refused it.
    pub attempts: u32,
    /// Why, the last time.
    pub error: Option<String>,
}

/// Which events are listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only these.
    pub status: Option<Status>,
    /// Only those of this kind of thing.
    pub aggregate_type: Option<String>,
    /// Only those about this one.
    pub aggregate_id: Option<String>,
    /// Only this one.
    pub id: Option<Uuid>,
    /// Only what happened at this time or later.
    pub from: Option<jiff::Timestamp>,
    /// Only what happened before this time.
    pub to: Option<jiff::Timestamp>,
    /// Only those behind this place.
    pub after: u64,
}

/// A transaction that wrote an event and is still open: events behind it wait for its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTransaction {
    /// How the database names it: `pid 4711`, or `prepared transaction NAME`.
    pub id: String,
    /// How long it has been open, where the database may tell.
    pub age_seconds: Option<u64>,
    /// The name that its client gave.
    pub application: String,
}

/// What the relay has still to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Not sent yet, those that are tried again among them.
    pub new: u64,
    /// Given up.
    pub failed: u64,
    /// When the oldest of those that were not sent yet happened.
    pub oldest: Option<jiff::Timestamp>,
    /// The position, when it is behind every place that was given out: the sequence was set back, and nothing that is
    /// kept counts as sent.
    pub ahead: Option<u64>,
    /// Open transactions older than a second that events may wait for, oldest first, at most ten.
    pub waits_for: Vec<OpenTransaction>,
}

/// The events of a database.
#[async_trait]
pub trait Outbox: Send + Sync {
    /// What this database is called, made when its tables were: a relay keeps its position under this name.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn name(&self) -> Result<Uuid>;

    /// Makes `holder` the one relay that reads, for `seconds`, unless another is. Asked again by the same it is prolonged.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn lease(&self, holder: Uuid, seconds: u32) -> Result<bool>;

    /// Ends the lease of `holder`.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn release(&self, holder: Uuid) -> Result<()>;

    /// The events behind `seq` in order, at most `max`, and of large ones no more than reach [`READ_BYTES`]. What is
    /// still being committed holds back what has a higher place, so none is ever skipped. A row that cannot be read is
    /// an event with a flaw.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn after(&self, seq: u64, max: usize) -> Result<Vec<Event>>;

    /// How far it was sent: everything up to this place, 0 at first.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn position(&self) -> Result<u64>;

    /// Whether this outbox gave out the place `seq`, and to this event where it keeps what has that place. If not, its
    /// places were given out again from a lower one, and what is behind `seq` is not what follows.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn knows(&self, seq: u64, id: Option<Uuid>) -> Result<bool>;

    /// Begins again with the first event that is kept, under a new name.
    ///
    /// # Errors
    /// `Conflict` when one that is kept may have been sent already: an operator has to decide, and the error says how.
    /// `Unavailable` when the database did not answer.
    async fn begin_again(&self) -> Result<()>;

    /// Whether changes are accepted now.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer, or takes no changes.
    async fn check(&self) -> Result<()>;

    /// Says that everything up to `seq` was sent, or given up.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn sent(&self, seq: u64) -> Result<()>;

    /// Says that a broker refused an event, and gives how often by now; with `attempts` refusals it has failed.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn refused(&self, seq: u64, error: &str, attempts: u32) -> Result<u32>;

    /// Writes events that no change of this database comes with, all or none. One that was sent before is sent again,
    /// with the same id.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn write(&self, events: Vec<NewEvent>) -> Result<()>;

    /// Events in order of their places, at most `max`, and of large ones no more than reach [`READ_BYTES`].
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn list(&self, filter: &Filter, max: usize) -> Result<Vec<ListedEvent>>;

    /// How many the relay has still to send, and how many it has given up.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn backlog(&self) -> Result<Backlog>;

    /// How many are kept, whatever became of them. Counts each, which takes long where there are many.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn kept(&self) -> Result<u64>;

    /// Makes events new that the relay has given up and passed, all or this one: they get a place behind every other.
    /// Their number.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn retry(&self, id: Option<Uuid>) -> Result<u64>;

    /// Deletes events that were sent and happened before `time`, at most `max`. Their number.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn purge(&self, time: jiff::Timestamp, max: usize) -> Result<u64>;

    /// Returns when this process has committed an event since the last call, or at once when it already had.
    async fn committed(&self);
}
