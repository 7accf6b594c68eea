//! The records of the log: each is one atomic change.
//!
//! A record is a postcard-encoded [`Record`], followed by the blobs of the messages it brings.
//! Format: `docs/format/store.md`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use towpath_core::port::queue::Settings;
use towpath_core::{
    Error, ExchangeName, GroupName, MessageId, QueueName, Result, StreamName, Timestamp, limiter,
};

use super::message_records;
use super::state::{Changes, FieldsSet};

/// One atomic change of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record<'a> {
    /// A queue and its settings.
    Declare {
        queue: QueueName,
        settings: Settings,
    },
    /// Messages at the end of a queue, numbered from `first`; their blobs follow. Up to version 6.
    Enqueue {
        queue: QueueName,
        first: u64,
        at: Timestamp,
        messages: Vec<MessageRecord<'a>>,
    },
    /// Messages were leased: their attempts count, also when no settlement follows.
    Leased { queue: QueueName, numbers: Vec<u64> },
    /// The outcomes of deliveries.
    Settle {
        queue: QueueName,
        at: Timestamp,
        settled: Vec<(u64, DeliveryOutcome<'a>)>,
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
    /// Keys and their new values.
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
    /// Entries at the end of a stream, numbered from `first`; their blobs follow. Up to version 6.
    Append {
        stream: StreamName,
        first: u64,
        at: Timestamp,
        entries: Vec<MessageRecord<'a>>,
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
    /// Entries were delivered: their attempts count, also when no ack follows.
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
    /// Entries up to this one were dropped.
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
    /// Messages at the end of a queue, numbered from `first`; their blobs follow. Since version 7.
    EnqueuePacked {
        queue: QueueName,
        first: u64,
        at: Timestamp,
        #[serde(with = "message_records")]
        messages: Vec<MessageRecord<'a>>,
    },
    /// Entries at the end of a stream, numbered from `first`; their blobs follow. Since version 7.
    AppendPacked {
        stream: StreamName,
        first: u64,
        at: Timestamp,
        #[serde(with = "message_records")]
        entries: Vec<MessageRecord<'a>>,
    },
}

/// The fields of a message that the state keeps, beside its blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MessageRecord<'a> {
    pub(super) id: MessageId,
    pub(super) blob_bytes: u32,
    pub(super) key: Option<u64>,
    pub(super) dedup_id: Option<Cow<'a, str>>,
    pub(super) not_before: Option<Timestamp>,
    pub(super) expires: Option<Timestamp>,
}

/// The outcome of one delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum DeliveryOutcome<'a> {
    Ack,
    Retry {
        due: Timestamp,
        error: Cow<'a, str>,
    },
    Dead {
        reason: Cow<'a, str>,
    },
    Release,
    /// Released, and delayed.
    Defer {
        due: Timestamp,
    },
}

impl Record<'_> {
    /// The moment that it was made, where it says so.
    pub(super) fn at(&self) -> Timestamp {
        match self {
            Self::Enqueue { at, .. }
            | Self::EnqueuePacked { at, .. }
            | Self::Settle { at, .. }
            | Self::Append { at, .. }
            | Self::AppendPacked { at, .. } => *at,
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
