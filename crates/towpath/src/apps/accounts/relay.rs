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
//! The position that counts is the broker's own, moved in the step that appends (`Positions`): whatever dies between
//! two steps, the next one begins where the stream ends. A broker without positions gets events into queues, and the
//! position is that of the database: what was sent and not yet noted is sent again, with the same id.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio_util::task::AbortOnDropHandle;
use towpath_core::backend::Backend;
use towpath_core::message::header::CONTENT_TYPE;
use towpath_core::port::outbox::{Event, Filter, NewEvent, READ_BYTES};
use towpath_core::port::positions::{Step, Stepped};
use towpath_core::port::{Outbox, Positions, Queue};
use towpath_core::{Error, ErrorKind, NewMessage, QueueName, Result, StreamName};
use tracing::{info, warn};
use uuid::Uuid;

use crate::supervisor::Stop;
use crate::telemetry::Health;

/// The role's name in health, metrics and the account.
const ROLE: &str = "accounts.relay";

/// Where CloudEvents come from.
const SOURCE: &str = "/towpath/accounts";

/// Longest wait before a refused event is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Where events go.
#[derive(Clone)]
pub enum Target {
    /// Into streams, with the position.
    Streams(Arc<dyn Positions>),
    /// Into queues.
    Queues(Arc<dyn Queue>),
}

impl Target {
    /// The better of what the backend offers.
    ///
    /// # Errors
    /// `Unsupported` when it has neither.
    pub fn of(backend: &Backend) -> Result<Self> {
        match backend.require_positions(ROLE) {
            Ok(positions) if backend.stream.is_some() => Ok(Self::Streams(positions)),
            _ => backend.require_queue(ROLE).map(Self::Queues),
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
    /// Refusals of one event before it is given up.
    pub attempts: u32,
    /// How long it waits for events that another process commits.
    pub poll: Duration,
    /// How long another relay waits for one that is gone.
    pub lease: Duration,
    /// Whether events carry the headers of CloudEvents too.
    pub cloud_events: bool,
    /// Where it says how it is.
    pub health: Health,
}

/// How far the broker is: its own words, and the place they mean.
struct Position {
    raw: Option<Bytes>,
    seq: u64,
}

impl Relay {
    /// Relays until asked to stop. Of several relays one works, the others wait for its lease to end.
    ///
    /// # Errors
    /// Those of the database and the broker; what is not sent yet is sent by the next run.
    pub async fn run(&self, stop: &Stop) -> Result<()> {
        let holder = Uuid::now_v7();
        let outcome = self.take_turns(holder, stop).await;
        if let Err(error) = &outcome {
            self.health.set(ROLE, Some(error.chain()));
        }
        let released = self.outbox.release(holder).await;
        outcome.and(released)
    }

    async fn take_turns(&self, holder: Uuid, stop: &Stop) -> Result<()> {
        let seconds = u32::try_from(self.lease.as_secs())
            .unwrap_or(u32::MAX)
            .max(1);
        let source = format!("outbox.{}", self.outbox.name().await?);
        let mut position: Option<Position> = None;
        let mut ahead = Vec::new();
        let mut renew_at = Instant::now();
        while !stop.is_requested() {
            if Instant::now() >= renew_at {
                if !self.outbox.lease(holder, seconds).await? {
                    position = None;
                    self.health.set(ROLE, None);
                    self.wait(self.lease / 3, false, stop).await;
                    continue;
                }
                renew_at = Instant::now() + self.lease / 3;
            }
            let mut from = match position.take() {
                Some(position) => position,
                None => {
                    ahead.clear();
                    self.locate(&source).await?
                }
            };
            if ahead.is_empty() {
                ahead = self.outbox.after(from.seq, self.batch).await?;
            }
            let events = std::mem::take(&mut ahead);
            let (last, is_idle) = (events.last().map(|last| last.seq), events.is_empty());
            let has_passed = match last.filter(|_| self.may_be_more(&events)) {
                None => self.send_all(&source, &mut from, events, stop).await?,
                Some(last) => {
                    // On another thread: making records and reading the next events both take the processor.
                    let (outbox, most) = (Arc::clone(&self.outbox), self.most());
                    let reading = tokio::spawn(async move { outbox.after(last, most).await });
                    let reading = AbortOnDropHandle::new(reading);
                    let has_passed = self.send_all(&source, &mut from, events, stop).await?;
                    ahead = reading.await.map_err(|panic| {
                        Error::unavailable("reading the outbox panicked").with_source(panic)
                    })??;
                    has_passed
                }
            };
            self.health.set(ROLE, None);
            if has_passed {
                position = Some(from);
            } else {
                warn!("the position has not passed what was sent; looking where it is");
                renew_at = Instant::now();
            }
            // After events it looks again at once: some may have been held back until a transaction ended.
            if is_idle {
                self.wait(self.poll, true, stop).await;
            }
        }
        Ok(())
    }

    /// Most events of a step of a relay that is behind. Where a step can repeat events it is one batch.
    fn most(&self) -> usize {
        match &self.target {
            Target::Streams(positions) => positions.step_entries().max(self.batch),
            Target::Queues(_) => self.batch,
        }
    }

    /// Whether a read was ended by one of its bounds.
    fn may_be_more(&self, events: &[Event]) -> bool {
        let bytes: usize = events.iter().map(|one| one.event.data.len()).sum();
        events.len() >= self.batch || bytes >= READ_BYTES
    }

    /// Sends events in order, those of one topic at a time, and says whether the position has passed them, which it has
    /// not when another relay moved it.
    async fn send_all(
        &self,
        source: &str,
        from: &mut Position,
        mut events: Vec<Event>,
        stop: &Stop,
    ) -> Result<bool> {
        while let Some(first) = events.first() {
            let topic = &first.event.topic;
            let other = events.iter().position(|one| one.event.topic != *topic);
            let later = events.split_off(other.unwrap_or(events.len()));
            let count = events.len() as u64;
            if !self.send(source, from, events, stop).await? {
                return Ok(false);
            }
            if stop.is_requested() {
                break;
            }
            stop.account.add("sent", count);
            events = later;
        }
        Ok(true)
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
    async fn locate(&self, source: &str) -> Result<Position> {
        let noted = self.outbox.position().await?;
        let raw = match &self.target {
            Target::Streams(positions) => positions.position(source).await?,
            Target::Queues(_) => None,
        };
        let Some(text) = &raw else {
            return Ok(Position { raw, seq: noted });
        };
        let (seq, id) = parse(text).ok_or_else(|| {
            let text = String::from_utf8_lossy(text);
            Error::corrupt(format!("the position of `{source}` is `{text}`"))
        })?;
        if seq > noted {
            // The relay stopped between the broker and the database: what it sent must be there.
            let filter = Filter {
                after: seq - 1,
                ..Filter::default()
            };
            let found = self.outbox.list(&filter, 1).await?;
            if found.first().is_none_or(|one| one.event.event.id != id) {
                return Err(Error::conflict(format!(
                    "the broker has events up to {seq} of `{source}`, which this database never had: it was restored \
                     from an older copy. Give the outbox a new name, so that its position begins anew: \
                     UPDATE outbox_relay SET name = '{}'",
                    Uuid::now_v7()
                )));
            }
            self.outbox.sent(seq).await?;
        }
        Ok(Position { raw, seq })
    }

    /// Sends events of one topic, and says whether the position has passed them.
    async fn send(
        &self,
        source: &str,
        from: &mut Position,
        events: Vec<Event>,
        stop: &Stop,
    ) -> Result<bool> {
        let (count, end) = (events.len(), events.last().map(|last| last.seq));
        match self.step(source, from, events, true).await {
            Err(error) if is_refusal(&error) => {}
            other => return other,
        }
        // One of them is the cause: they are read again, and each goes by itself.
        for event in self.outbox.after(from.seq, count).await? {
            let one = || vec![event.clone()];
            let mut attempt = 1;
            loop {
                let error = match self.step(source, from, one(), true).await {
                    Err(error) if is_refusal(&error) => error,
                    Ok(true) => break,
                    other => return other,
                };
                let is_given_up = attempt >= self.attempts;
                let (id, attempts) = (event.event.id, attempt);
                warn!(event = %id, attempts, is_given_up, error = error.chain(), "the broker refused an event");
                self.outbox
                    .refused(event.seq, &error.chain(), is_given_up)
                    .await?;
                if is_given_up {
                    // Those behind it go on.
                    if !self.step(source, from, one(), false).await? {
                        return Ok(false);
                    }
                    break;
                }
                attempt += 1;
                self.wait(RETRY, false, stop).await;
                if stop.is_requested() {
                    return Ok(true);
                }
            }
        }
        // Not when a transaction that is open kept them from being read again.
        Ok(Some(from.seq) >= end)
    }

    /// Moves the position behind events of one topic, and if they are to be sent appends them in the same step.
    async fn step(
        &self,
        source: &str,
        from: &mut Position,
        events: Vec<Event>,
        are_sent: bool,
    ) -> Result<bool> {
        let Some(last) = events.last() else {
            return Ok(true);
        };
        let (seq, id, topic) = (last.seq, last.event.id, last.event.topic.clone());
        let messages: Vec<NewMessage> = events
            .into_iter()
            .filter(|_| are_sent)
            .map(|one| message(one.event, self.cloud_events))
            .collect();
        match &self.target {
            Target::Streams(positions) => {
                let to = Bytes::from(format!("{seq} {id}"));
                let step = Step {
                    source: source.to_owned(),
                    from: from.raw.clone(),
                    to: to.clone(),
                    stream: StreamName::new(&topic)?,
                    entries: messages,
                    dead: QueueName::new(format!("{topic}.dead"))?,
                    set_aside: Vec::new(),
                };
                if let Stepped::Elsewhere(now) = positions.step(step).await? {
                    info!(position = ?now, "the position is not where it was");
                    return Ok(false);
                }
                from.raw = Some(to);
            }
            Target::Queues(queue) if are_sent => {
                all(queue.enqueue(&QueueName::new(&topic)?, messages).await?)?;
            }
            Target::Queues(_) => {}
        }
        from.seq = seq;
        self.outbox.sent(seq).await?;
        Ok(true)
    }
}

/// Whether the event is the cause, and trying the same again would not help.
fn is_refusal(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::NotFound
    )
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
        .collect();
    message
}
