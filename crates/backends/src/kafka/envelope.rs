//! A message as a record: its key, its headers, and what else we know of it in headers of our own.

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};
use towpath_core::port::stream::check_entry;
use towpath_core::{Error, Headers, Message, MessageId, NewMessage, Result, Timestamp};

/// Before the names of our own headers.
const OURS: &str = "towpath-";
/// The message's id.
const ID: &str = "towpath-id";

/// Checks what only this backend refuses.
pub(super) fn check(message: &NewMessage) -> Result<()> {
    check_entry(message)?;
    if message.dedup_id.is_some() {
        return Err(Error::unsupported("streams on Kafka have no dedup ids"));
    }
    let ours = |name: &str| {
        let start = name.get(..OURS.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(OURS))
    };
    match message.headers.iter().find(|(name, _)| ours(name)) {
        Some((name, _)) => Err(Error::invalid(format!(
            "header name `{}` begins with `{OURS}`",
            name.escape_debug()
        ))),
        None => Ok(()),
    }
}

/// The headers of a record.
pub(super) fn headers(message: &NewMessage) -> OwnedHeaders {
    let id = message.id.to_string();
    let mut headers = OwnedHeaders::new_with_capacity(message.headers.iter().len() + 1);
    headers = headers.insert(Header {
        key: ID,
        value: Some(id.as_bytes()),
    });
    for (key, value) in message.headers.iter() {
        headers = headers.insert(Header {
            key,
            value: Some(value.as_bytes()),
        });
    }
    headers
}

/// What a record says, by whomever it was produced. One without an id of ours gets one.
pub(super) fn read(record: &BorrowedMessage<'_>, now: Timestamp) -> Message {
    let (mut id, mut headers) = (None, Headers::new());
    for header in record.headers().into_iter().flat_map(|all| all.iter()) {
        let value = String::from_utf8_lossy(header.value.unwrap_or_default());
        if header.key == ID {
            id = value.parse().ok();
        } else if !header.key.starts_with(OURS) {
            headers.set(header.key, value);
        }
    }
    let millis = record.timestamp().to_millis();
    let at = millis.and_then(|millis| u64::try_from(millis).ok());
    let key = record.key().map(|key| String::from_utf8_lossy(key).into());
    Message {
        id: id.unwrap_or_else(MessageId::new),
        payload: Bytes::copy_from_slice(record.payload().unwrap_or_default()),
        headers,
        key,
        enqueued_at: at.map_or(now, Timestamp::from_millis),
    }
}
