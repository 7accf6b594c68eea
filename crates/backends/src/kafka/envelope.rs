//! Messages as records: key, headers, and our own headers for the rest.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message as _, OwnedHeaders};
use towpath_core::message::{MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES};
use towpath_core::port::stream::check_entry;
use towpath_core::{Error, Message, MessageId, NewMessage, Result, Timestamp};

use crate::broker::envelope::{Envelope, OURS, check_names};

/// The message's id.
const ID: &str = "towpath-id";
/// Deliveries before the record was produced.
const ATTEMPTS: &str = "towpath-attempts";
/// Deliveries up to the last one with an outcome, where that is not all of them.
const SETTLED: &str = "towpath-settled-attempts";
/// When the backend first took the message, in milliseconds since 1970.
const ENQUEUED_AT: &str = "towpath-enqueued-at";
/// An earlier error; one for each, oldest first.
const ERROR: &str = "towpath-error";
/// Not to be delivered before, in milliseconds since 1970.
const NOT_BEFORE: &str = "towpath-not-before";
/// Reason and time of a dead letter.
const REASON: &str = "towpath-reason";
const DIED_AT: &str = "towpath-died-at";
/// The message's key, where the record's is its id.
const KEY: &str = "towpath-key";
/// Of a dead letter without its payload, the original record: `topic/partition/offset`.
const CUT: &str = "towpath-left-at";

/// Refuses fields that streams do not support.
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

/// Longest key of a message, in bytes.
const MAX_KEY_BYTES: usize = 1_024;

/// Key and headers of a record in bytes, where they are not UTF-8: copies keep them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Raw {
    key: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

/// The key that a record of this message has.
pub(super) fn key<'a>(envelope: &'a Envelope, raw: Option<&'a Raw>) -> Option<&'a [u8]> {
    match raw {
        Some(raw) => raw.key.as_deref(),
        None => envelope.message.key.as_deref().map(str::as_bytes),
    }
}

/// The headers of a queue's message.
pub(super) fn of_queue(envelope: &Envelope, raw: Option<&Raw>) -> OwnedHeaders {
    let message = &envelope.message;
    let count = raw.map_or(message.headers.iter().len(), |raw| raw.headers.len());
    let mut headers = of_ours(envelope, OwnedHeaders::new_with_capacity(count + 4));
    if envelope.death.is_some()
        && let Some(key) = key(envelope, raw)
    {
        let value = Some(key);
        headers = headers.insert(Header { key: KEY, value });
    }
    let Some(raw) = raw else {
        let all = message.headers.iter();
        return all.fold(headers, |headers, (name, value)| with(headers, name, value));
    };
    raw.headers.iter().fold(headers, |headers, (name, value)| {
        let value = value.as_ref();
        headers.insert(Header { key: name, value })
    })
}

/// The headers of a dead letter that would exceed the topic's record limit: payload and other headers stay in the original record.
pub(super) fn of_cut(envelope: &Envelope, left_at: &str) -> OwnedHeaders {
    let headers = of_ours(envelope, OwnedHeaders::new());
    with(headers, CUT, left_at)
}

fn of_ours(envelope: &Envelope, mut headers: OwnedHeaders) -> OwnedHeaders {
    let message = &envelope.message;
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
    }
    headers
}

fn with(headers: OwnedHeaders, key: &str, value: &str) -> OwnedHeaders {
    headers.insert(Header {
        key,
        value: Some(value.as_bytes()),
    })
}

/// A parsed record of any producer.
pub(super) struct Read {
    pub(super) envelope: Envelope,
    /// Key and headers in bytes, where they are not UTF-8.
    pub(super) raw: Option<Arc<Raw>>,
    /// Why it cannot be delivered; it becomes a dead letter.
    pub(super) refusal: Option<String>,
    /// Of a dead letter without its payload, the original record.
    pub(super) left_at: Option<String>,
}

/// Parses a record. One without our id header gets an id. Never fails: a record that no message can hold is described in
/// [`Read::refusal`].
pub(super) fn read(record: &BorrowedMessage<'_>, now: Timestamp) -> Read {
    let (mut id, mut own_key, mut enqueued_at) = (None, None, None);
    let (mut reason, mut died_at, mut not_before, mut left_at) = (None, None, None, None);
    let (mut attempts, mut settled, mut errors) = (0, None, Vec::new());
    let (mut others, mut refusal) = (Vec::new(), None);
    let moment = |text: &str| text.parse().ok().map(Timestamp::from_millis);
    let count = record.headers().map_or(0, Headers::count);
    for at in 0..count {
        let Some((name, value)) = header(record, at) else {
            refusal = Some(format!(
                "the name of header {} is not UTF-8; the header is left out",
                at + 1
            ));
            continue;
        };
        if !name.starts_with(OURS) {
            others.push((name, value));
            continue;
        }
        let text = || String::from_utf8_lossy(value.unwrap_or_default());
        match name {
            ID => id = text().parse().ok(),
            KEY => own_key = Some(value.unwrap_or_default()),
            ENQUEUED_AT => enqueued_at = moment(&text()),
            ATTEMPTS => attempts = text().parse().unwrap_or(0),
            SETTLED => settled = text().parse().ok(),
            ERROR => errors.push(text().into_owned()),
            NOT_BEFORE => not_before = moment(&text()),
            REASON => reason = Some(text().into_owned()),
            DIED_AT => died_at = moment(&text()),
            CUT => left_at = Some(text().into_owned()),
            _ => {}
        }
    }
    let millis = record.timestamp().to_millis();
    let produced_at = millis.and_then(|millis| u64::try_from(millis).ok());
    let death = died_at.map(|at| (reason.unwrap_or_default(), at));
    let key = own_key.or_else(|| record.key().filter(|_| death.is_none()));
    let payload = record.payload().unwrap_or_default();
    let bytes: usize = others
        .iter()
        .map(|(name, value)| name.len() + value.map_or(0, <[u8]>::len))
        .sum();
    if payload.len() > MAX_PAYLOAD_BYTES {
        let length = payload.len();
        refusal = Some(format!(
            "payload of {length} bytes is over the limit of {MAX_PAYLOAD_BYTES}"
        ));
    }
    if bytes > MAX_HEADER_BYTES {
        refusal = Some(format!(
            "headers of {bytes} bytes are over the limit of {MAX_HEADER_BYTES}"
        ));
    }
    let key_bytes = key.map_or(0, <[u8]>::len);
    if key_bytes > MAX_KEY_BYTES {
        refusal = Some(format!(
            "key of {key_bytes} bytes is over the limit of {MAX_KEY_BYTES}"
        ));
    }
    // A record over a limit is kept in bytes, and not shown.
    let shown_key = key.filter(|key| (1..=MAX_KEY_BYTES).contains(&key.len()));
    let shown = if bytes > MAX_HEADER_BYTES {
        &[][..]
    } else {
        &others[..]
    };
    let texts = shown
        .iter()
        .map(|(name, value)| ((*name).to_owned(), text(value.unwrap_or_default())));
    let message = Message {
        id: id.unwrap_or_else(MessageId::new),
        payload: Bytes::copy_from_slice(payload),
        headers: texts.collect(),
        key: shown_key.map(text),
        enqueued_at: enqueued_at
            .or(produced_at.map(Timestamp::from_millis))
            .unwrap_or(now),
    };
    let is_same = message.key.as_deref().map(str::as_bytes) == key
        && message.headers.iter().len() == others.len()
        && message
            .headers
            .iter()
            .zip(&others)
            .all(|((name, text), (other, value))| {
                name == *other && Some(text.as_bytes()) == *value
            });
    let raw = (!is_same).then(|| {
        let owned =
            |(name, value): &(&str, Option<&[u8]>)| ((*name).to_owned(), value.map(<[u8]>::to_vec));
        let headers = others.iter().map(owned).collect();
        let key = key.map(<[u8]>::to_vec);
        Arc::new(Raw { key, headers })
    });
    Read {
        envelope: Envelope {
            message,
            attempts,
            settled: settled.unwrap_or(attempts),
            errors,
            not_before,
            death,
        },
        raw,
        refusal,
        left_at,
    }
}

/// A header of a record; `None` when its name is not UTF-8.
fn header<'a>(record: &'a BorrowedMessage<'_>, at: usize) -> Option<(&'a str, Option<&'a [u8]>)> {
    let headers = record.headers()?;
    // The library panics at a header name that is not UTF-8, and has no checked accessor.
    let found = std::panic::catch_unwind(AssertUnwindSafe(|| headers.try_get(at)));
    found.ok()?.map(|header| (header.key, header.value))
}

/// Bytes as text. Bytes that are not UTF-8 are written as `\xff`, so that different names stay different.
fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_bytes_that_are_not_text_stay_different() {
        assert_eq!(text(b"caf\xc3\xa9"), "caf\u{e9}");
        assert_eq!(text(b"a\xff\x00b\xfe"), "a\\xff\0b\\xfe");
        assert_eq!(text(b""), "");
    }
}
