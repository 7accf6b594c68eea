//! Messages: an opaque payload with its headers, id, key and times.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Error, MessageId, QueueName, Result, Timestamp};

/// Largest payload in bytes that any backend must take (16 MiB).
pub const MAX_PAYLOAD_BYTES: usize = 16 * 1024 * 1024;

/// Largest sum of header names and values in bytes (64 KiB).
pub const MAX_HEADER_BYTES: usize = 64 * 1024;

/// Names and values that travel beside the payload, in the order given.
///
/// Names compare without regard to ASCII case. Well-known names are in [`header`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Headers(Vec<(Cow<'static, str>, String)>);

/// Well-known header names.
pub mod header {
    /// W3C trace context, `00-<trace>-<span>-<flags>`.
    pub const TRACEPARENT: &str = "traceparent";
    /// W3C trace state: the additions of each vendor to the context.
    pub const TRACESTATE: &str = "tracestate";
    /// Media type of the payload.
    pub const CONTENT_TYPE: &str = "content-type";
}

impl Headers {
    /// No headers.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The value of `name`, if set.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Sets `name`, replacing its value.
    pub fn set(&mut self, name: impl Into<Cow<'static, str>>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self
            .0
            .iter_mut()
            .find(|(known, _)| known.eq_ignore_ascii_case(&name))
        {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }

    /// Every name and value, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_ref(), value.as_str()))
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<N: Into<Cow<'static, str>>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let pairs = pairs.into_iter();
        let mut headers = Self(Vec::with_capacity(pairs.size_hint().0));
        for (name, value) in pairs {
            headers.set(name, value);
        }
        headers
    }
}

/// A message on its way in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewMessage {
    /// Made by the producer, so that a retry after an unknown outcome can carry the same one.
    pub id: MessageId,
    /// Any bytes, also none.
    pub payload: Bytes,
    /// The message's fields beside the payload.
    pub headers: Headers,
    /// Messages of one key are delivered in order, one at a time.
    pub key: Option<String>,
    /// Within the queue's dedup window a second message with this id is not stored; the first one's id is returned.
    pub dedup_id: Option<String>,
    /// Not delivered before this moment.
    pub not_before: Option<Timestamp>,
    /// Dropped, and counted as expired, when not leased before this moment.
    pub expires: Option<Timestamp>,
    /// The event time, if it differs from the enqueue time: the timestamp of the record in a Kafka stream. Other backends
    /// do not keep it.
    pub happened_at: Option<Timestamp>,
}

impl NewMessage {
    /// A message with a fresh id and nothing but a payload.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self {
            id: MessageId::new(),
            payload: payload.into(),
            headers: Headers::new(),
            key: None,
            dedup_id: None,
            not_before: None,
            expires: None,
            happened_at: None,
        }
    }

    /// Checks the limits that hold on every backend.
    ///
    /// # Errors
    /// `Invalid` for a payload over [`MAX_PAYLOAD_BYTES`], headers over
    /// [`MAX_HEADER_BYTES`], or an empty or over-long (1,024 bytes) key or dedup id.
    pub fn check(&self) -> Result<()> {
        if self.payload.len() > MAX_PAYLOAD_BYTES {
            return Err(Error::invalid(format!(
                "payload of {} bytes is over the limit of {MAX_PAYLOAD_BYTES}",
                self.payload.len()
            )));
        }
        let header_bytes: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if header_bytes > MAX_HEADER_BYTES {
            return Err(Error::invalid(format!(
                "headers of {header_bytes} bytes are over the limit of {MAX_HEADER_BYTES}"
            )));
        }
        for (what, text) in [("key", &self.key), ("dedup id", &self.dedup_id)] {
            if text
                .as_ref()
                .is_some_and(|text| text.is_empty() || text.len() > 1024)
            {
                return Err(Error::invalid(format!("{what} must have 1 to 1,024 bytes")));
            }
        }
        Ok(())
    }
}

/// A message with a fresh id and this payload.
impl<P: Into<Bytes>> From<P> for NewMessage {
    fn from(payload: P) -> Self {
        Self::new(payload)
    }
}

/// A stored message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The producer's id.
    pub id: MessageId,
    /// The bytes that were stored.
    pub payload: Bytes,
    /// Their fields beside the payload.
    pub headers: Headers,
    /// Its key, if order matters.
    pub key: Option<String>,
    /// When the backend took it.
    pub enqueued_at: Timestamp,
}

/// One handing-out of a message to one consumer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// The token that settles this delivery.
    pub receipt: Receipt,
    /// 1 for the first delivery.
    pub attempt: u32,
    /// Whether the delivery before this one ended without an outcome: its consumer died, lost its connection
    /// or let the lease expire. Such a message may be the reason, so a consumer runs it alone.
    pub interrupted: bool,
    /// Duration of the lease, from the moment the lease call returned.
    pub lease: Duration,
}

/// The token of one delivery; it settles that delivery and no other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// The queue the message was leased from.
    pub queue: QueueName,
    /// Which message, in the backend's own numbering.
    pub number: u64,
    /// Which delivery of it; every lease has a larger one than the lease before.
    pub fence: u64,
}
