//! Outbox: events that a database transaction leaves for a broker.
//!
//! An event is written in the transaction of the change it describes, so neither exists without the other. A relay reads
//! events in order and appends them to a broker. The database keeps the relay's position as one number: an
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
    /// Stays the same however often the event is sent: consumers recognise repeats by it.
    pub id: Uuid,
    /// The kind of thing that it is about: `user`.
    pub aggregate_type: String,
    /// Which one.
    pub aggregate_id: String,
    /// The kind of the change: `user.created`.
    pub event_type: String,
    /// The topic, stream or queue that it goes to.
    pub topic: String,
    /// Events of one key stay in order in a topic of several partitions.
    pub key: Option<String>,
    /// The payload, JSON.
    pub data: String,
    /// When it happened.
    pub created_at: jiff::Timestamp,
    /// Its trace context, a W3C `traceparent`.
    pub traceparent: Option<String>,
}

impl NewEvent {
    /// An event of now about the thing `id`, which is also its key, for the topic that is named as the kind of thing.
    pub fn new(
        aggregate_type: impl Into<String>,
        id: impl ToString,
        event_type: impl Into<String>,
        data: impl Into<String>,
    ) -> Self {
        let (aggregate_type, aggregate_id) = (aggregate_type.into(), id.to_string());
        Self {
            id: Uuid::now_v7(),
            topic: aggregate_type.clone(),
            key: Some(aggregate_id.clone()),
            aggregate_type,
            aggregate_id,
            event_type: event_type.into(),
            data: data.into(),
            created_at: now(),
            traceparent: None,
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "an event has the machine's time")]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
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

/// State of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Status {
    /// Not sent yet.
    New,
    /// Refused by the broker so far; being retried.
    Processing,
    /// The broker has it.
    Sent,
    /// Refused by the broker as often as allowed. `retry` makes it new.
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
    /// Its state.
    pub status: Status,
    /// Number of refusals by a broker.
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
    /// Only events of this time or later.
    pub from: Option<jiff::Timestamp>,
    /// Only events before this time.
    pub to: Option<jiff::Timestamp>,
    /// Only those behind this place.
    pub after: u64,
}

/// A transaction that wrote an event and is still open: events behind it wait for its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Name in the database: `pid 4711`, or `prepared transaction NAME`.
    pub id: String,
    /// Age, where the database grants access to it.
    pub age_seconds: Option<u64>,
    /// The name that its client gave.
    pub application: String,
}

/// Events that the relay has not sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Not sent yet, including those being retried.
    pub new: u64,
    /// Failed.
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
    /// Identity of this database, created with its tables: a relay keeps its position under it.
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

    /// The events behind `seq` in order, at most `max`, and of large ones no more than reach [`READ_BYTES`]. An uncommitted
    /// event holds back those with a higher `seq`, so none is ever skipped. An unreadable row is
    /// an event with a flaw.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn after(&self, seq: u64, max: usize) -> Result<Vec<Event>>;

    /// Position of the relay: every event up to it was sent, 0 at first.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn position(&self) -> Result<u64>;

    /// Whether this outbox assigned `seq`, and to this event where it still keeps it. If not, its
    /// sequence was set back, and the events behind `seq` are not those that follow.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn knows(&self, seq: u64, id: Option<Uuid>) -> Result<bool>;

    /// Begins again with the first event that is kept, under a new name.
    ///
    /// # Errors
    /// `Conflict` when one that is kept may have been sent already: an operator has to decide, and the error lists the options.
    /// `Unavailable` when the database did not answer.
    async fn begin_again(&self) -> Result<()>;

    /// Whether changes are accepted now.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer, or takes no changes.
    async fn check(&self) -> Result<()>;

    /// Marks every event up to `seq` as sent or failed.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn sent(&self, seq: u64) -> Result<()>;

    /// Records that a broker refused an event. Returns the number of refusals; with `attempts` of them it has failed.
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

    /// Numbers of events to send and of failed events.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn backlog(&self) -> Result<Backlog>;

    /// Number of events kept, in any state. Counts each, which takes long where there are many.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn kept(&self) -> Result<u64>;

    /// Makes failed events new, all or this one: they move behind every other event.
    /// Returns their number.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn retry(&self, id: Option<Uuid>) -> Result<u64>;

    /// Deletes events that were sent and happened before `time`, at most `max`. Returns their number.
    ///
    /// # Errors
    /// `Unavailable` when the database did not answer.
    async fn purge(&self, time: jiff::Timestamp, max: usize) -> Result<u64>;

    /// Returns when this process has committed an event since the last call, or at once when it already had.
    async fn committed(&self);
}
