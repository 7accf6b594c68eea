//! The relay: reads the outbox in order and hands events to a broker.
//!
//! ```text
//! outbox -- events behind the position --> step: append and move the position --> stream
//!    ^                                                                               |
//!    +------------------------- how far it is, for people <--------------------------+
//! ```
//!
//! While a step is under way the events of the next one are read.
//!
//! The position that counts is the broker's own, moved in the step that appends (`SourceOffsets`): whatever dies between
//! two steps, the next one begins where the stream ends. A broker without positions gets events into queues, and the
//! position is that of the database: events sent since the last stored position are sent again, with the same id.
//!
//! With each look the outbox is asked whether it still knows the position. An outbox that was truncated or restored
//! gives out places again, and events at lower ones would look as if they had been sent.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;
use towpath_core::backend::Backend;
use towpath_core::message::header::{CONTENT_TYPE, TRACEPARENT};
use towpath_core::port::outbox::{Event, Filter, NewEvent, READ_BYTES};
use towpath_core::port::source_offsets::{AppendAt, AppendOutcome};
use towpath_core::port::{Outbox, Queue, SourceOffsets};
use towpath_core::{Error, ErrorKind, NewMessage, QueueName, Result, StreamName, Timestamp};
use tracing::{Level, debug, info, warn};
use uuid::Uuid;

use crate::supervisor::{OnFailure, Stage, Stop, Supervisor};
use crate::traces;

/// Where CloudEvents come from.
const SOURCE: &str = "/towpath/accounts";

/// Longest wait before a refused event is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Most characters of a reason that are kept with a refused event.
const REASON: usize = 1_000;

/// The name of a stream or queue in a step that puts nothing there.
const UNUSED: &str = "unused";

/// Where events go.
#[derive(Clone)]
pub enum Target {
    /// Into streams, with the position.
    Streams(Arc<dyn SourceOffsets>),
    /// Into queues.
    Queues(Arc<dyn Queue>),
}

impl Target {
    /// The better method that the backend offers; an error names `role`.
    ///
    /// # Errors
    /// `Unsupported` when it has neither.
    pub fn of(backend: &Backend, role: &str) -> Result<Self> {
        match backend.require_source_offsets(role) {
            Ok(positions) if backend.stream.is_some() => Ok(Self::Streams(positions)),
            _ => backend.require_queue(role).map(Self::Queues),
        }
    }
}

/// One relay.
#[derive(Clone)]
pub struct Relay {
    /// The events.
    pub outbox: Arc<dyn Outbox>,
    /// Where they go.
    pub target: Target,
    /// Most events of one step.
    pub batch: usize,
    /// Attempts before an event fails.
    pub attempts: u32,
    /// Longest wait for events that another process commits.
    pub poll: Duration,
    /// Time after which another relay replaces one that is gone.
    pub lease: Duration,
    /// Whether events carry the headers of CloudEvents too.
    pub cloud_events: bool,
    /// The streams that it fills.
    pub filled: Filled,
    /// Called with its error, and with `None` when it works.
    pub condition: Arc<dyn Fn(Option<String>) + Send + Sync>,
}

/// Streams that a relay has appended to.
#[derive(Clone, Default)]
pub struct Filled(Arc<Mutex<BTreeSet<StreamName>>>);

impl Filled {
    /// Those that are filled without having been appended to yet.
    pub fn with(stream: StreamName) -> Self {
        Self(Arc::new(Mutex::new(BTreeSet::from([stream]))))
    }

    /// Every one so far.
    pub fn all(&self) -> Vec<StreamName> {
        self.lock().iter().cloned().collect()
    }

    fn add(&self, stream: StreamName) {
        self.lock().insert(stream);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<StreamName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Progress of the broker: its own words, the position they mean, and the event there.
struct Position {
    raw: Option<Bytes>,
    seq: u64,
    id: Option<Uuid>,
}

/// The outcome of sending events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passed {
    /// The position is behind them.
    All,
    /// The broker refused one, which is tried again.
    Refused,
    /// Another relay moved the position, or some could not be read again.
    Elsewhere,
}

impl Relay {
    /// A relay with steps of 1,000 events, three attempts, a poll each half second and a lease of 5 s.
    pub fn new(outbox: Arc<dyn Outbox>, target: Target) -> Self {
        Self {
            outbox,
            target,
            batch: 1_000,
            attempts: 3,
            poll: Duration::from_millis(500),
            lease: Duration::from_secs(5),
            cloud_events: false,
            filled: Filled::default(),
            condition: Arc::new(|_| ()),
        }
    }

    /// Starts it in a supervisor of the program.
    pub fn start(self, supervisor: &mut Supervisor) {
        supervisor.start("relay", Stage::Deliver, OnFailure::Restart, move |stop| {
            let relay = self.clone();
            async move { relay.run(&stop).await }
        });
    }

    /// Relays until asked to stop. Of several relays one works, the others wait for its lease to end.
    ///
    /// # Errors
    /// Those of the database and the broker; unsent events are sent by the next run.
    pub async fn run(&self, stop: &Stop) -> Result<()> {
        let holder = Uuid::now_v7();
        let outcome = self.take_turns(holder, stop).await;
        if let Err(error) = &outcome {
            (self.condition)(Some(error.chain()));
        }
        let released = self.outbox.release(holder).await;
        outcome.and(released)
    }

    async fn take_turns(&self, holder: Uuid, stop: &Stop) -> Result<()> {
        let seconds = u32::try_from(self.lease.as_secs())
            .unwrap_or(u32::MAX)
            .max(1);
        let mut source = self.source().await?;
        let mut position: Option<Position> = None;
        let mut ahead = Vec::new();
        let mut renew_at = Instant::now();
        while !stop.is_requested() {
            if Instant::now() >= renew_at {
                if !self.outbox.lease(holder, seconds).await? {
                    position = None;
                    (self.condition)(None);
                    self.wait(self.lease / 3, false, stop).await;
                    continue;
                }
                renew_at = Instant::now() + self.lease / 3;
            }
            let mut from = match position.take() {
                Some(position) => position,
                None => {
                    ahead.clear();
                    self.locate(&mut source).await?
                }
            };
            if ahead.is_empty() {
                let outbox = &*self.outbox;
                let Some(read) = read(outbox, from.seq, from.id, self.batch).await? else {
                    self.begin_again(&mut source, from.seq).await?;
                    continue;
                };
                ahead = read;
            }
            let events = std::mem::take(&mut ahead);
            let (last, is_idle) = (
                events.last().map(|last| (last.seq, last.event.id)),
                events.is_empty(),
            );
            let passed = match last.filter(|_| self.may_be_more(&events)) {
                None => self.send_all(&source, &mut from, events, stop).await?,
                Some((last, id)) => {
                    let (outbox, most) = (Arc::clone(&self.outbox), self.most());
                    // On another thread: making records and reading the next events both take the processor.
                    #[expect(
                        clippy::disallowed_methods,
                        reason = "aborted with the relay's own task"
                    )]
                    let reading =
                        tokio::spawn(async move { read(&*outbox, last, Some(id), most).await });
                    let reading = AbortOnDropHandle::new(reading);
                    let passed = self.send_all(&source, &mut from, events, stop).await?;
                    let read = reading.await.map_err(|panic| {
                        Error::unavailable("reading the outbox panicked").with_source(panic)
                    })??;
                    // An outbox that does not know its position is looked at again.
                    ahead = read.unwrap_or_default();
                    passed
                }
            };
            (self.condition)(None);
            match passed {
                Passed::All => position = Some(from),
                Passed::Refused => self.wait(RETRY.min(self.lease / 3), false, stop).await,
                Passed::Elsewhere => {
                    warn!("relay position unknown after a send; reading it again");
                    renew_at = Instant::now();
                }
            }
            // After events it reads again at once: an open transaction may have delayed some.
            if is_idle {
                self.wait(self.poll, true, stop).await;
            }
        }
        Ok(())
    }

    /// The name of the position.
    async fn source(&self) -> Result<String> {
        Ok(format!("outbox.{}", self.outbox.name().await?))
    }

    /// Begins again with the first event, because the outbox does not know the position any more.
    async fn begin_again(&self, source: &mut String, position: u64) -> Result<()> {
        self.outbox.begin_again().await?;
        let old = std::mem::replace(source, self.source().await?);
        warn!(
            position,
            source = old,
            renamed = source,
            "outbox sequence was reset; relaying from the first event"
        );
        Ok(())
    }

    /// Most events of a step of a relay that is behind. Where a step can repeat events it is one batch.
    fn most(&self) -> usize {
        match &self.target {
            Target::Streams(positions) => positions.batch_entries().max(self.batch),
            Target::Queues(_) => self.batch,
        }
    }

    /// Whether a read was ended by one of its bounds.
    fn may_be_more(&self, events: &[Event]) -> bool {
        let bytes: usize = events.iter().map(Event::size).sum();
        events.len() >= self.batch || bytes >= READ_BYTES
    }

    /// Sends events in order, those of one topic at a time.
    async fn send_all(
        &self,
        source: &str,
        from: &mut Position,
        mut events: Vec<Event>,
        stop: &Stop,
    ) -> Result<Passed> {
        while let Some(first) = events.first() {
            let topic = &first.event.topic;
            let other = events.iter().position(|one| one.event.topic != *topic);
            let later = events.split_off(other.unwrap_or(events.len()));
            let count = events.len() as u64;
            let passed = self.send(source, from, events, stop).await?;
            if passed != Passed::All {
                return Ok(passed);
            }
            if stop.is_requested() {
                break;
            }
            stop.account.add("sent", count);
            events = later;
        }
        Ok(Passed::All)
    }

    /// Waits for so long, or for an event of this process.
    async fn wait(&self, time: Duration, for_events: bool, stop: &Stop) {
        tokio::select! {
            () = tokio::time::sleep(time) => {}
            () = self.outbox.committed(), if for_events => {}
            () = stop.requested() => {}
        }
    }

    /// Where the broker is. One that has no position begins where the database says that the last one was.
    async fn locate(&self, source: &mut String) -> Result<Position> {
        let mut noted = self.outbox.position().await?;
        if !self.outbox.knows(noted, None).await? {
            self.begin_again(source, noted).await?;
            noted = self.outbox.position().await?;
        }
        let raw = match &self.target {
            Target::Streams(positions) => positions.position(source).await?,
            Target::Queues(_) => None,
        };
        let Some(text) = &raw else {
            let (seq, id) = (noted, None);
            return Ok(Position { raw, seq, id });
        };
        let (seq, id) = parse(text).ok_or_else(|| {
            let text = String::from_utf8_lossy(text);
            Error::corrupt(format!("the position of `{source}` is `{text}`"))
        })?;
        if seq > noted {
            // The relay stopped between the broker and the database: its events must be in the broker.
            let filter = Filter {
                after: seq - 1,
                ..Filter::default()
            };
            let found = self.outbox.list(&filter, 1).await?;
            if found.first().is_none_or(|one| one.event.event.id != id) {
                return Err(Error::conflict(format!(
                    "the broker has events up to {seq} of `{source}`, which this database never had: it was restored \
                     from an older copy. Give the outbox a new name, so that its position starts over: \
                     UPDATE outbox_relay SET name = '{}'",
                    Uuid::now_v7()
                )));
            }
            self.outbox.sent(seq).await?;
        }
        let id = Some(id);
        Ok(Position { raw, seq, id })
    }

    /// Sends events of one topic.
    async fn send(
        &self,
        source: &str,
        from: &mut Position,
        events: Vec<Event>,
        stop: &Stop,
    ) -> Result<Passed> {
        let (count, end) = (events.len(), events.last().map(|last| last.seq));
        let refused = match self.step(source, from, events, true).await {
            Err(error) if is_refusal(&error) => error,
            other => return other,
        };
        let mut known = (count == 1).then_some(refused);
        // One of them is the cause: they are read again, and sent one by one.
        for event in self.outbox.after(from.seq, count).await? {
            let one = || vec![event.clone()];
            let outcome = match known.take() {
                Some(error) => Err(error),
                None => self.step(source, from, one(), true).await,
            };
            let error = match outcome {
                Err(error) if is_refusal(&error) => reason(&error),
                Ok(Passed::All) => continue,
                other => return other,
            };
            // The database counts: another relay, or this one after a restart, does not begin again with the first.
            let attempts = self.outbox.refused(event.seq, &error, self.attempts);
            let attempts = attempts.await?;
            let is_failed = attempts >= self.attempts;
            warn!(event = %event.event.id, attempts, is_failed, error, "broker refused an event");
            if !is_failed {
                return Ok(Passed::Refused);
            }
            // Later events continue. Nothing of the event is needed but its place and its id.
            let passed = self.step(source, from, one(), false).await?;
            if passed != Passed::All {
                return Ok(passed);
            }
            if stop.is_requested() {
                return Ok(Passed::All);
            }
        }
        // Not when a transaction that is open kept them from being read again.
        Ok(match Some(from.seq) >= end {
            true => Passed::All,
            false => Passed::Elsewhere,
        })
    }

    /// Moves the position behind events of one topic, and if they are to be sent appends them in the same step.
    async fn step(
        &self,
        source: &str,
        from: &mut Position,
        events: Vec<Event>,
        are_sent: bool,
    ) -> Result<Passed> {
        let Some(last) = events.last() else {
            return Ok(Passed::All);
        };
        let (seq, id) = (last.seq, last.event.id);
        let mut topic = UNUSED.to_owned();
        let mut messages = Vec::new();
        let mut followed = Vec::new();
        if are_sent {
            if tracing::enabled!(Level::DEBUG) {
                followed.extend(events.iter().map(|one| (one.seq, one.event.id)));
            }
            if let Some(flaw) = events.iter().find_map(|one| one.flaw.clone()) {
                return Err(Error::invalid(flaw));
            }
            topic.clone_from(&last.event.topic);
            let all = events.into_iter();
            messages.extend(all.map(|one| message(one.event, self.cloud_events)));
        }
        match &self.target {
            Target::Streams(positions) => {
                let to = Bytes::from(format!("{seq} {id}"));
                let stream = StreamName::new(&topic)?;
                let begin = |entry| traces::append(&stream, entry);
                let spans: Vec<_> = messages.iter_mut().filter_map(begin).collect();
                let step = AppendAt {
                    source: source.to_owned(),
                    from: from.raw.clone(),
                    to: to.clone(),
                    stream: stream.clone(),
                    entries: messages,
                    dead: QueueName::new(UNUSED)?,
                    rejected: Vec::new(),
                };
                let stepped = positions.append_at(step).await;
                traces::settled(spans, &stepped);
                if let AppendOutcome::OffsetConflict(now) = stepped? {
                    info!(position = ?now, "relay position changed by another relay");
                    return Ok(Passed::Elsewhere);
                }
                from.raw = Some(to);
                if are_sent {
                    self.filled.add(stream);
                }
            }
            Target::Queues(queue) if are_sent => {
                let name = QueueName::new(&topic)?;
                let begin = |message| traces::enqueue(&name, message);
                let spans = messages.iter_mut().filter_map(begin).collect();
                let outcomes = queue.enqueue(&name, messages).await;
                traces::enqueued(spans, &outcomes);
                all(outcomes?)?;
            }
            Target::Queues(_) => {}
        }
        (from.seq, from.id) = (seq, Some(id));
        self.outbox.sent(seq).await?;
        for (seq, event) in followed {
            debug!(%event, seq, topic, "event sent");
        }
        Ok(Passed::All)
    }
}

/// The events behind a place; `None` when the outbox does not know that place any more.
async fn read(
    outbox: &dyn Outbox,
    seq: u64,
    id: Option<Uuid>,
    max: usize,
) -> Result<Option<Vec<Event>>> {
    let (is_known, events) = tokio::try_join!(outbox.knows(seq, id), outbox.after(seq, max))?;
    Ok(is_known.then_some(events))
}

/// The stored part of an error: accepted by any database, whatever the broker put into it.
fn reason(error: &Error) -> String {
    let chain = error.chain();
    let printable = chain
        .chars()
        .map(|one| if one.is_control() { ' ' } else { one });
    printable.take(REASON).collect()
}

/// Whether the event is the cause, and trying the same again would not help. A topic or queue that is missing is a
/// condition of the broker: it is waited for.
fn is_refusal(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Invalid | ErrorKind::Unsupported)
}

/// Place and id of the last event that a broker has.
fn parse(position: &[u8]) -> Option<(u64, Uuid)> {
    let (seq, id) = std::str::from_utf8(position).ok()?.split_once(' ')?;
    Some((seq.parse().ok().filter(|seq| *seq > 0)?, id.parse().ok()?))
}

/// The first refusal of a batch, if there is one.
fn all<T>(outcomes: Vec<Result<T>>) -> Result<()> {
    outcomes
        .into_iter()
        .try_for_each(|outcome| outcome.map(drop))
}

/// An event as consumers get it: the payload, the key, and the headers of the contract.
fn message(event: NewEvent, cloud_events: bool) -> NewMessage {
    let at = format!("{:.0}", event.created_at);
    let id = event.id.to_string();
    // Source: CloudEvents 1.0, Kafka protocol binding, binary mode.
    let more = cloud_events.then(|| {
        let about = format!("/{}/{}", event.aggregate_type, event.aggregate_id);
        [
            ("ce_specversion", "1.0".to_owned()),
            ("ce_id", id.clone()),
            ("ce_source", SOURCE.to_owned()),
            ("ce_type", event.event_type.clone()),
            ("ce_subject", about),
            ("ce_time", at.clone()),
            (CONTENT_TYPE, "application/json".to_owned()),
        ]
    });
    let mut message = NewMessage::new(event.data);
    message.key = event.key;
    let since_epoch = u64::try_from(event.created_at.as_millisecond());
    message.happened_at = since_epoch.ok().map(Timestamp::from_millis);
    let contract = [
        ("event_id", id),
        ("event_type", event.event_type),
        ("aggregate_type", event.aggregate_type),
        ("aggregate_id", event.aggregate_id),
        ("created_at", at),
    ];
    message.headers = contract
        .into_iter()
        .chain(more.into_iter().flatten())
        .chain(event.traceparent.map(|parent| (TRACEPARENT, parent)))
        .collect();
    message
}

#[cfg(test)]
mod tests {
    use towpath_core::{Error, ErrorKind};

    use super::{REASON, is_refusal, reason};

    #[test]
    fn a_missing_topic_and_a_silent_broker_refuse_no_event() {
        for kind in [
            ErrorKind::Unavailable,
            ErrorKind::NotFound,
            ErrorKind::Conflict,
            ErrorKind::Corrupt,
        ] {
            assert!(!is_refusal(&Error::new(kind, "x")), "{kind:?}");
        }
        assert!(is_refusal(&Error::invalid("too large")));
    }

    #[test]
    fn every_database_takes_the_reason_of_a_refusal() {
        let error = Error::invalid(format!("topic `a\0b`\n{}", "é".repeat(2 * REASON)));
        let kept = reason(&error);
        assert_eq!(kept.chars().count(), REASON);
        assert!(kept.starts_with("topic `a b` é"), "{kept}");
    }
}
