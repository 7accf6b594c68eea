//! A message as a record: its key, its headers, and what else we know of it in headers of our own.

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use towpath_core::port::stream::check_entry;
use towpath_core::{Error, Headers, Message, MessageId, NewMessage, Result, Timestamp};

use crate::broker::envelope::{Envelope, OURS, check_names};

/// The message's id.
const ID: &str = "towpath-id";
/// Deliveries before the record was produced.
const ATTEMPTS: &str = "towpath-attempts";
/// Those up to the last one that ended in an outcome, where that is not all of them.
const SETTLED: &str = "towpath-settled-attempts";
/// When the backend first took the message, in milliseconds since 1970.
const ENQUEUED_AT: &str = "towpath-enqueued-at";
/// An earlier error; one for each, oldest first.
const ERROR: &str = "towpath-error";
/// Not to be delivered before, in milliseconds since 1970.
const NOT_BEFORE: &str = "towpath-not-before";
/// Why and when it was given up.
const REASON: &str = "towpath-reason";
const DIED_AT: &str = "towpath-died-at";
/// The message's key, where the record's is its id.
const KEY: &str = "towpath-key";

/// Checks what a stream refuses here.
pub(super) fn check(message: &NewMessage) -> Result<()> {
    check_entry(message)?;
    if message.dedup_id.is_some() {
        return Err(Error::unsupported("streams on Kafka have no dedup ids"));
    }
    check_names(&message.headers)
}

/// The headers of a stream's entry.
pub(super) fn headers(message: &NewMessage) -> OwnedHeaders {
    let id = message.id.to_string();
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.iter().len() + 1);
    headers = with(headers, ID, &id);
    for (name, value) in message.headers.iter() {
        headers = with(headers, name, value);
    }
    headers
}

/// The headers of a queue's message.
pub(super) fn of_queue(envelope: &Envelope) -> OwnedHeaders {
    let message = &envelope.message;
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.iter().len() + 4);
    let mut add = |name: &str, value: &str| {
        headers = with(
            std::mem::replace(&mut headers, OwnedHeaders::new()),
            name,
            value,
        );
    };
    add(ID, &message.id.to_string());
    add(ENQUEUED_AT, &message.enqueued_at.as_millis().to_string());
    if envelope.attempts > 0 {
        add(ATTEMPTS, &envelope.attempts.to_string());
    }
    if envelope.settled != envelope.attempts {
        add(SETTLED, &envelope.settled.to_string());
    }
    for error in &envelope.errors {
        add(ERROR, error);
    }
    if let Some(moment) = envelope.not_before {
        add(NOT_BEFORE, &moment.as_millis().to_string());
    }
    if let Some((reason, at)) = &envelope.death {
        add(REASON, reason);
        add(DIED_AT, &at.as_millis().to_string());
        if let Some(key) = &message.key {
            add(KEY, key);
        }
    }
    for (name, value) in message.headers.iter() {
        add(name, value);
    }
    headers
}

fn with(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header {
        key,
        value: Some(value.as_bytes()),
    })
}

/// What a record says, by whomever it was produced. One without an id of ours gets one.
pub(super) fn read(record: &BorrowedMessage<'_>, now: Timestamp) -> Envelope {
    let (mut id, mut key, mut enqueued_at) = (None, None, None);
    let (mut reason, mut died_at, mut not_before) = (None, None, None);
    let (mut attempts, mut settled) = (0, None);
    let (mut errors, mut headers) = (Vec::new(), Headers::new());
    let moment = |text: &str| text.parse().ok().map(Timestamp::from_millis);
    for header in record.headers().into_iter().flat_map(|all| all.iter()) {
        let value = String::from_utf8_lossy(header.value.unwrap_or_default());
        match header.key {
            ID => id = value.parse().ok(),
            KEY => key = Some(value.into_owned()),
            ENQUEUED_AT => enqueued_at = moment(&value),
            ATTEMPTS => attempts = value.parse().unwrap_or(0),
            SETTLED => settled = value.parse().ok(),
            ERROR => errors.push(value.into_owned()),
            NOT_BEFORE => not_before = moment(&value),
            REASON => reason = Some(value.into_owned()),
            DIED_AT => died_at = moment(&value),
            name if !name.starts_with(OURS) => headers.set(name.to_owned(), value),
            _ => {}
        }
    }
    let millis = record.timestamp().to_millis();
    let produced_at = millis.and_then(|millis| u64::try_from(millis).ok());
    let death = died_at.map(|at| (reason.unwrap_or_default(), at));
    if key.is_none() && death.is_none() {
        key = record.key().map(|key| String::from_utf8_lossy(key).into());
    }
    Envelope {
        message: Message {
            id: id.unwrap_or_else(MessageId::new),
            payload: Bytes::copy_from_slice(record.payload().unwrap_or_default()),
            headers,
            key,
            enqueued_at: enqueued_at
                .or(produced_at.map(Timestamp::from_millis))
                .unwrap_or(now),
        },
        attempts,
        settled: settled.unwrap_or(attempts),
        errors,
        not_before,
        death,
    }
}
