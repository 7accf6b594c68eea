//! The part of a message that is read back from the log.
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 4 | CRC32C of the id, the moment of arrival and the rest |
//! | 1 and more | length of the envelope, base 128; 0 when there are neither headers nor a key |
//! | | envelope: headers and key |
//! | | payload |
//!
//! The id and the moment are not in it: the state has them of every message. Blobs up to version 6 have an envelope with
//! all of it; their checksum shows which kind a blob is.

use std::borrow::Cow;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use towpath_core::{Error, Headers, Message, MessageId, NewMessage, Result, Timestamp};

use super::state::{Packing, Stored, Unpacking};

const CHECKSUM_BYTES: usize = 4;

#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    headers: Cow<'a, Headers>,
    key: Option<Cow<'a, str>>,
}

/// Appends a message's blob. Returns its length.
pub(super) fn encode(message: &NewMessage, at: Timestamp, out: &mut Vec<u8>) -> Result<u32> {
    let start = out.len();
    out.extend_from_slice(&[0; CHECKSUM_BYTES]);
    if message.headers.is_empty() && message.key.is_none() {
        out.push(0);
    } else {
        let envelope = Envelope {
            headers: Cow::Borrowed(&message.headers),
            key: message.key.as_deref().map(Cow::Borrowed),
        };
        let envelope = postcard::to_stdvec(&envelope)
            .map_err(|error| Error::invalid("a message cannot be encoded").with_source(error))?;
        let mut length = Packing::default();
        length.number(envelope.len() as u64);
        out.extend_from_slice(&length.finish());
        out.extend_from_slice(&envelope);
    }
    out.extend_from_slice(&message.payload);
    let checksum = checksum(message.id, at, &out[start + CHECKSUM_BYTES..]);
    out[start..start + CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    u32::try_from(out.len() - start).map_err(|_| Error::invalid("a message is over the limit"))
}

/// The message in a blob.
///
/// # Errors
/// `Corrupt` when it does not match its checksum, or is another message: the segment is another store's.
pub(super) fn decode(blob: &Bytes, stored: &Stored) -> Result<Message> {
    let damaged = || Error::corrupt("message does not match its checksum");
    let mut rest = blob.clone();
    let expected = rest.try_get_u32_le().map_err(|_| damaged())?;
    if expected != checksum(stored.id, stored.at, &rest) {
        let message = version_6::decode(expected, rest).ok_or_else(damaged)??;
        if message.id != stored.id {
            return Err(Error::corrupt("another message stands in its place"));
        }
        return Ok(message);
    }
    let mut unpacking = Unpacking::new(&rest);
    let length = unpacking.number().ok_or_else(damaged)?;
    let length = usize::try_from(length).map_err(|_| damaged())?;
    let envelope = match length {
        0 => None,
        length => Some(unpacking.bytes(length).ok_or_else(damaged)?),
    };
    let Envelope { headers, key } = match envelope {
        None => Envelope {
            headers: Cow::Owned(Headers::new()),
            key: None,
        },
        Some(envelope) => postcard::from_bytes(envelope).map_err(undecodable)?,
    };
    let payload_at = rest.len() - unpacking.left();
    Ok(Message {
        id: stored.id,
        payload: rest.slice(payload_at..),
        headers: headers.into_owned(),
        key: key.map(Cow::into_owned),
        enqueued_at: stored.at,
    })
}

fn checksum(id: MessageId, at: Timestamp, rest: &[u8]) -> u32 {
    let checksum = crc32c::crc32c(id.as_bytes());
    let checksum = crc32c::crc32c_append(checksum, &at.as_millis().to_le_bytes());
    crc32c::crc32c_append(checksum, rest)
}

/// Any bytes as a blob of either form. The checksum is put right, or nothing behind it would ever be reached.
#[cfg(fuzzing)]
pub(super) fn decode_anything(bytes: &[u8]) {
    let place = super::state::BlobLocation {
        position: super::log::Position::default(),
        bytes: 0,
    };
    let stored = Stored {
        id: MessageId::from_bytes([7; 16]),
        at: Timestamp::default(),
        place,
    };
    let mut blob = bytes.to_vec();
    let checksums = [
        |_: &Stored, rest: &[u8]| crc32c::crc32c(rest),
        |stored: &Stored, rest: &[u8]| checksum(stored.id, stored.at, rest),
    ];
    for checksum in checksums {
        if let Some((head, rest)) = blob.split_first_chunk_mut::<CHECKSUM_BYTES>() {
            *head = checksum(&stored, rest).to_le_bytes();
        }
        drop(decode(&Bytes::copy_from_slice(&blob), &stored));
    }
}

fn undecodable(error: postcard::Error) -> Error {
    Error::corrupt("message cannot be decoded").with_source(error)
}

/// Blobs up to version 6: CRC32C of the rest, length of the envelope (4 bytes), envelope, payload.
mod version_6 {
    use super::{Buf, Bytes, Cow, Deserialize, Headers, Message, MessageId, Result, Timestamp};

    #[derive(Deserialize)]
    #[cfg_attr(test, derive(serde::Serialize))]
    pub(super) struct Envelope<'a> {
        pub(super) id: MessageId,
        pub(super) enqueued_at: Timestamp,
        pub(super) headers: Cow<'a, Headers>,
        pub(super) key: Option<Cow<'a, str>>,
    }

    /// The message behind the checksum; `None` when it does not match.
    pub(super) fn decode(checksum: u32, mut rest: Bytes) -> Option<Result<Message>> {
        if checksum != crc32c::crc32c(&rest) {
            return None;
        }
        let length = rest.try_get_u32_le().ok()? as usize;
        let envelope = rest.get(..length)?;
        let envelope: Envelope<'_> = match postcard::from_bytes(envelope) {
            Ok(envelope) => envelope,
            Err(error) => return Some(Err(super::undecodable(error))),
        };
        Some(Ok(Message {
            id: envelope.id,
            headers: envelope.headers.into_owned(),
            key: envelope.key.map(Cow::into_owned),
            enqueued_at: envelope.enqueued_at,
            payload: rest.slice(length..),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embedded::log::Position;
    use crate::embedded::state::BlobLocation;

    const AT: Timestamp = Timestamp::from_millis(1_700_000_000_005);

    fn stored(id: MessageId) -> Stored {
        let (position, bytes) = (Position::default(), 0);
        let place = BlobLocation { position, bytes };
        Stored { id, at: AT, place }
    }

    fn message() -> NewMessage {
        let mut message = NewMessage::new("payload\0with anything");
        message.headers.set("traceparent", "00-1-2-3");
        message.key = Some("customer 7".to_owned());
        message
    }

    fn expect_same(read: &Message, message: &NewMessage) {
        assert_eq!(
            (read.id, &read.payload, &read.headers, &read.key),
            (message.id, &message.payload, &message.headers, &message.key)
        );
        assert_eq!(read.enqueued_at, AT);
    }

    fn expect_every_flip_noticed(blob: &[u8], id: MessageId) {
        for bit in 0..blob.len() * 8 {
            let mut blob = blob.to_vec();
            blob[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&blob.into(), &stored(id)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_blob_reads_back_and_every_flipped_bit_is_noticed() {
        for message in [message(), NewMessage::new("plain"), NewMessage::new("")] {
            let mut out = vec![1, 2, 3];
            let length = encode(&message, AT, &mut out).unwrap() as usize;
            let blob = Bytes::copy_from_slice(&out[3..3 + length]);
            expect_same(&decode(&blob, &stored(message.id)).unwrap(), &message);
            expect_every_flip_noticed(&blob, message.id);
        }
    }

    #[test]
    fn a_blob_costs_five_bytes_beside_its_payload() {
        let mut out = Vec::new();
        let length = encode(&NewMessage::new([7; 100].as_slice()), AT, &mut out).unwrap();
        assert_eq!(length, 105);
    }

    #[test]
    fn another_message_or_moment_is_refused() {
        let (message, mut out) = (message(), Vec::new());
        encode(&message, AT, &mut out).unwrap();
        let blob = Bytes::from(out);
        assert!(decode(&blob, &stored(MessageId::new())).is_err());
        let later = Stored {
            at: Timestamp::from_millis(6),
            ..stored(message.id)
        };
        assert!(decode(&blob, &later).is_err());
    }

    #[test]
    fn a_blob_of_version_6_reads_back_and_every_flipped_bit_is_noticed() {
        let message = message();
        let envelope = postcard::to_stdvec(&version_6::Envelope {
            id: message.id,
            enqueued_at: AT,
            headers: Cow::Borrowed(&message.headers),
            key: message.key.as_deref().map(Cow::Borrowed),
        })
        .unwrap();
        let mut rest = u32::try_from(envelope.len())
            .unwrap()
            .to_le_bytes()
            .to_vec();
        rest.extend_from_slice(&envelope);
        rest.extend_from_slice(&message.payload);
        let blob = [&crc32c::crc32c(&rest).to_le_bytes()[..], &rest].concat();
        let read = decode(&Bytes::from(blob.clone()), &stored(message.id)).unwrap();
        expect_same(&read, &message);
        expect_every_flip_noticed(&blob, message.id);
        let error = decode(&Bytes::from(blob), &stored(MessageId::new())).unwrap_err();
        assert!(error.to_string().contains("another message"));
    }
}
