//! What the log holds: one record is one atomic change.
//!
//! A record is a postcard-encoded [`Record`], followed by the blobs of the messages it brings.
//! Format: `docs/format/store.md`.

use std::borrow::Cow;

use bytes::{Buf, Bytes};
use serde::{Deserialize, Serialize};
use towpath_core::port::queue::Settings;
use towpath_core::{
    Error, ExchangeName, GroupName, Headers, Message, MessageId, NewMessage, QueueName, Result,
    StreamName, Timestamp, limiter,
};

use super::state::{Changes, FieldsSet};

/// One atomic change of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record<'a> {
    /// A queue and its settings.
    Declare {
        queue: QueueName,
        settings: Settings,
    },
    /// Messages at the end of a queue, numbered from `first`; their blobs follow.
    Enqueue {
        queue: QueueName,
        first: u64,
        at: Timestamp,
        messages: Vec<Arrival<'a>>,
    },
    /// Messages were handed out: their attempts count, also if nothing is ever heard of them again.
    Leased { queue: QueueName, numbers: Vec<u64> },
    /// How deliveries ended.
    Settle {
        queue: QueueName,
        at: Timestamp,
        settled: Vec<(u64, Ending<'a>)>,
    },
    /// Delivery stopped or started.
    Pause { queue: QueueName, paused: bool },
    /// Messages dropped: purged or expired.
    Drop { queue: QueueName, numbers: Vec<u64> },
    /// Dead letters put back to the end, numbered from `first`.
    Redrive {
        queue: QueueName,
        first: u64,
        numbers: Vec<u64>,
    },
    /// Dead letters deleted.
    DropDead { queue: QueueName, numbers: Vec<u64> },
    /// Messages written again, so that an old segment can go; their blobs follow.
    Move {
        queue: QueueName,
        moved: Vec<(u64, u32)>,
    },
    /// Several at once; their blobs follow in the same order.
    All(Vec<Record<'a>>),
    /// Keys and what they became.
    Kv { changes: Changes },
    /// Limits, how they stand, and when they are full again.
    Limit {
        changes: Vec<(String, limiter::State, u64)>,
    },
    /// A limit that is full again.
    LimitReset { key: String },
    /// A route.
    Bind {
        exchange: ExchangeName,
        pattern: String,
        queue: QueueName,
    },
    /// A route that is gone.
    Unbind {
        exchange: ExchangeName,
        pattern: String,
        queue: QueueName,
    },
    /// Messages that were not stored, because their dedup ids were known.
    Duplicates { queue: QueueName, count: u64 },
    /// Entries at the end of a stream, numbered from `first`; their blobs follow.
    Append {
        stream: StreamName,
        first: u64,
        at: Timestamp,
        entries: Vec<Arrival<'a>>,
    },
    /// A group that has finished everything up to `committed`, new or moved there.
    Group {
        stream: StreamName,
        group: GroupName,
        committed: u64,
    },
    /// A group that is gone.
    GroupGone {
        stream: StreamName,
        group: GroupName,
    },
    /// Entries were handed out: their attempts count, also if nothing is ever heard of them again.
    Handed {
        stream: StreamName,
        group: GroupName,
        numbers: Vec<u64>,
    },
    /// Entries that a group has finished.
    Finish {
        stream: StreamName,
        group: GroupName,
        numbers: Vec<u64>,
    },
    /// Entries up to this one given up.
    Trim { stream: StreamName, upto: u64 },
    /// Entries written again, so that an old segment can go; their blobs follow.
    MoveEntries {
        stream: StreamName,
        moved: Vec<(u64, u32)>,
    },
    /// Hashes that are there, and the fields set in them.
    KvFields { changes: Vec<(String, FieldsSet)> },
    /// A queue that is gone with all that was in it. Since version 4.
    QueueGone { queue: QueueName },
}

/// What the state keeps of a message, beside its blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arrival<'a> {
    pub(super) id: MessageId,
    pub(super) blob_bytes: u32,
    pub(super) key: Option<u64>,
    pub(super) dedup_id: Option<Cow<'a, str>>,
    pub(super) not_before: Option<Timestamp>,
    pub(super) expires: Option<Timestamp>,
}

/// How one delivery ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ending<'a> {
    Ack,
    Retry {
        due: Timestamp,
        error: Cow<'a, str>,
    },
    Dead {
        reason: Cow<'a, str>,
    },
    Release,
    /// Released, and held back until a moment.
    Defer {
        due: Timestamp,
    },
}

impl Record<'_> {
    /// The moment that it was made, where it says so.
    pub(super) fn at(&self) -> Timestamp {
        match self {
            Self::Enqueue { at, .. } | Self::Settle { at, .. } | Self::Append { at, .. } => *at,
            Self::Limit { changes } => {
                let moments = changes.iter().map(|(_, state, _)| state.at_ms());
                Timestamp::from_millis(moments.max().unwrap_or_default())
            }
            Self::All(records) => records.iter().map(Self::at).max().unwrap_or_default(),
            _ => Timestamp::default(),
        }
    }

    /// The queue whose deliveries it ends.
    pub(super) const fn settles(&self) -> Option<&QueueName> {
        match self {
            Self::Settle { queue, .. } => Some(queue),
            _ => None,
        }
    }

    /// Appends the record; blobs go behind it.
    pub(super) fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        postcard::to_io(self, out)
            .map(drop)
            .map_err(|error| Error::invalid("a record cannot be encoded").with_source(error))
    }

    /// The record at the start of a frame's body, and where its blobs start.
    pub(super) fn decode(body: &[u8]) -> Result<(Record<'_>, u32)> {
        let (record, blobs) = postcard::take_from_bytes(body)
            .map_err(|error| Error::corrupt("a record cannot be decoded").with_source(error))?;
        Ok((
            record,
            u32::try_from(body.len() - blobs.len()).unwrap_or(u32::MAX),
        ))
    }
}

/// A stable hash of a key (FNV-1a): two keys with one hash are merely delivered one after the other.
pub(super) fn key_hash(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The part of a message that is read back from the log.
#[derive(Serialize, Deserialize)]
struct Envelope<'a> {
    id: MessageId,
    enqueued_at: Timestamp,
    headers: Cow<'a, Headers>,
    key: Option<Cow<'a, str>>,
}

/// Appends a message's blob: CRC32C of the rest, length of the envelope, envelope, payload.
pub(super) fn encode_blob(message: &NewMessage, at: Timestamp, out: &mut Vec<u8>) -> Result<u32> {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    let envelope = Envelope {
        id: message.id,
        enqueued_at: at,
        headers: Cow::Borrowed(&message.headers),
        key: message.key.as_deref().map(Cow::Borrowed),
    };
    postcard::to_io(&envelope, &mut *out)
        .map_err(|error| Error::invalid("a message cannot be encoded").with_source(error))?;
    let envelope_bytes = u32::try_from(out.len() - start - 8).unwrap_or(u32::MAX);
    out[start + 4..start + 8].copy_from_slice(&envelope_bytes.to_le_bytes());
    out.extend_from_slice(&message.payload);
    let checksum = crc32c::crc32c(&out[start + 4..]);
    out[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
    u32::try_from(out.len() - start).map_err(|_| Error::invalid("a message is over the limit"))
}

/// The message in a blob.
///
/// # Errors
/// `Corrupt` when it does not match its checksum.
pub(super) fn decode_blob(blob: &Bytes) -> Result<Message> {
    let damaged = || Error::corrupt("message does not match its checksum");
    if blob.len() < 8 {
        return Err(damaged());
    }
    let mut head = blob.slice(..8);
    let (checksum, envelope_bytes) = (head.get_u32_le(), head.get_u32_le() as usize);
    if checksum != crc32c::crc32c(&blob[4..]) || blob.len() - 8 < envelope_bytes {
        return Err(damaged());
    }
    let envelope: Envelope<'_> = postcard::from_bytes(&blob[8..8 + envelope_bytes])
        .map_err(|error| Error::corrupt("message cannot be decoded").with_source(error))?;
    Ok(Message {
        id: envelope.id,
        payload: blob.slice(8 + envelope_bytes..),
        headers: envelope.headers.into_owned(),
        key: envelope.key.map(Cow::into_owned),
        enqueued_at: envelope.enqueued_at,
    })
}

/// Refuses a message that is intact and not the one that was written there: the segment is another store's.
pub(super) fn expect_id(message: Message, id: MessageId) -> Result<Message> {
    if message.id == id {
        return Ok(message);
    }
    Err(Error::corrupt("another message stands in its place"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_reads_back_and_every_flipped_bit_is_noticed() {
        let mut message = NewMessage::new("payload\0with anything");
        message.headers.set("traceparent", "00-1-2-3");
        message.key = Some("customer 7".to_owned());
        let mut out = vec![1, 2, 3];
        let length = encode_blob(&message, Timestamp::from_millis(5), &mut out).unwrap() as usize;
        let read = decode_blob(&Bytes::copy_from_slice(&out[3..3 + length])).unwrap();
        assert_eq!(
            (read.id, &read.payload, &read.headers),
            (message.id, &message.payload, &message.headers)
        );
        assert_eq!(
            (read.key.as_deref(), read.enqueued_at),
            (Some("customer 7"), Timestamp::from_millis(5))
        );
        for bit in 0..length * 8 {
            let mut blob = out[3..3 + length].to_vec();
            blob[bit / 8] ^= 1 << (bit % 8);
            assert!(decode_blob(&blob.into()).is_err(), "bit {bit}");
        }
    }
}
