//! A message with its history, for a broker that keeps none: the history travels with the message.

use towpath_core::port::queue::DeadLetter;
use towpath_core::{Error, Headers, Message, NewMessage, QueueName, Result, Timestamp, attempt};

/// Prefix of our own headers.
pub(crate) const OURS: &str = "towpath-";

/// A message with its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) message: Message,
    /// Deliveries before it was published here.
    pub(crate) attempts: u32,
    /// Deliveries up to the last one with an outcome.
    pub(crate) settled: u32,
    /// Earlier errors, oldest first.
    pub(crate) errors: Vec<String>,
    pub(crate) not_before: Option<Timestamp>,
    /// Reason and time of a dead letter.
    pub(crate) death: Option<(String, Timestamp)>,
}

impl Envelope {
    /// A new message of a queue on `broker`, which has no order per key, no dedup and no expiry.
    pub(crate) fn begin(broker: &str, message: NewMessage, now: Timestamp) -> Result<Self> {
        message.check()?;
        for (what, asked) in [
            ("order per key", message.key.is_some()),
            ("dedup ids", message.dedup_id.is_some()),
            ("expiry", message.expires.is_some()),
        ] {
            if asked {
                return Err(Error::unsupported(format!(
                    "queues on {broker} have no {what}"
                )));
            }
        }
        check_names(&message.headers)?;
        Ok(Self {
            message: Message {
                id: message.id,
                payload: message.payload,
                headers: message.headers,
                key: None,
                enqueued_at: now,
            },
            attempts: 0,
            settled: 0,
            errors: Vec::new(),
            not_before: message.not_before,
            death: None,
        })
    }

    /// Adds an error to its history; the oldest is dropped.
    pub(crate) fn note(&mut self, error: &str) {
        attempt::remember(&mut self.errors, error);
    }

    /// Makes it a dead letter.
    pub(crate) fn mark_dead(&mut self, reason: &str, now: Timestamp) {
        self.death = Some((attempt::bounded(reason).to_owned(), now));
        self.not_before = None;
    }

    /// The message as a dead letter of this queue; `None` when it is not one.
    pub(crate) fn dead_letter(self, origin: QueueName) -> Option<DeadLetter> {
        let (reason, died_at) = self.death?;
        let why = (reason.as_str(), self.errors.as_slice());
        Some(DeadLetter::new(
            self.message,
            why,
            self.attempts,
            died_at,
            origin,
        ))
    }

    /// Resets it for a redrive: attempts from zero.
    pub(crate) fn redrive(&mut self) {
        self.attempts = 0;
        self.settled = 0;
        self.errors.clear();
        self.death = None;
    }
}

/// Refuses header names that collide with ours.
pub(crate) fn check_names(headers: &Headers) -> Result<()> {
    for (name, _) in headers.iter() {
        let reserved = name
            .get(..OURS.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(OURS));
        if reserved || name.is_empty() || name.len() > 255 {
            return Err(Error::invalid(format!(
                "header name `{}` is empty, longer than 255 bytes or begins with `{OURS}`",
                name.escape_debug()
            )));
        }
    }
    Ok(())
}
