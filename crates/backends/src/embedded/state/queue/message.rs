//! A message of a queue: its record and state.

use serde::{Deserialize, Serialize};
use towpath_core::{ConsumerId, MessageId, Timestamp, attempt};

use super::super::pack::{Common, EPOCH, Item, NO_ID, NO_LOCATION, Packing, Unpacking};
use crate::embedded::log::Position;

/// Where a message's blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super::super) struct BlobLocation {
    pub(in super::super::super) position: Position,
    pub(in super::super::super) bytes: u32,
}

/// A message of the log, with the fields that its checksum covers beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super::super) struct Stored {
    pub(in super::super::super) id: MessageId,
    /// When it came.
    pub(in super::super::super) at: Timestamp,
    pub(in super::super::super) place: BlobLocation,
}

/// Fields of a message that need no read of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super::super) struct Entry {
    /// Its place in the queue: grows with every arrival.
    pub(in super::super::super) number: u64,
    pub(in super::super::super) id: MessageId,
    pub(in super::super::super) place: BlobLocation,
    pub(in super::super::super) attempts: u32,
    pub(in super::super::super) key: Option<std::num::NonZeroU64>,
    pub(in super::super::super) expires: Option<std::num::NonZeroU64>,
    pub(in super::super::super) enqueued_at: Timestamp,
}

/// Fields after the flags of a packed entry.
const ATTEMPTS: u8 = 1;
const KEY: u8 = 2;
const EXPIRES: u8 = 4;

/// The order is part of the format of checkpoints.
impl Item for Entry {
    const ZERO: Self = Self {
        number: 0,
        id: NO_ID,
        place: NO_LOCATION,
        attempts: 0,
        key: None,
        expires: None,
        enqueued_at: EPOCH,
    };

    fn number(&self) -> u64 {
        self.number
    }

    fn place(&self) -> BlobLocation {
        self.place
    }

    fn pack(&self, before: &Self, out: &mut Packing) {
        let flag = |is_there: bool, flag| if is_there { flag } else { 0 };
        let own = flag(self.attempts > 0, ATTEMPTS)
            | flag(self.key.is_some(), KEY)
            | flag(self.expires.is_some(), EXPIRES);
        out.common(own, &before.common(), &self.common());
        if self.attempts > 0 {
            out.number(u64::from(self.attempts));
        }
        for value in self.key.into_iter().chain(self.expires) {
            out.number(value.get());
        }
    }

    fn unpack(before: &Self, bytes: &mut Unpacking<'_>) -> Option<Self> {
        let (own, common) = bytes.common(&before.common())?;
        let Common {
            number,
            id,
            place,
            moment,
        } = common;
        let entry = Self {
            number,
            id,
            place,
            enqueued_at: moment,
            ..Self::ZERO
        };
        entry.with(own, bytes)
    }

    fn unpack_version_6(before: &Self, bytes: &mut Unpacking<'_>) -> Option<Self> {
        let flags = bytes.byte()?;
        if flags > ATTEMPTS | KEY | EXPIRES {
            return None;
        }
        let entry = Self {
            number: bytes.step(before.number.wrapping_add(1))?,
            id: bytes.id(before.id)?,
            place: bytes.place(before.place)?,
            enqueued_at: bytes.moment(before.enqueued_at)?,
            ..Self::ZERO
        };
        entry.with(flags, bytes)
    }
}

impl Entry {
    const fn common(&self) -> Common {
        Common {
            number: self.number,
            id: self.id,
            place: self.place,
            moment: self.enqueued_at,
        }
    }

    /// With the fields after its flags.
    fn with(mut self, flags: u8, bytes: &mut Unpacking<'_>) -> Option<Self> {
        if flags & ATTEMPTS != 0 {
            self.attempts = u32::try_from(bytes.number()?).ok()?;
        }
        if flags & KEY != 0 {
            self.key = Some(bytes.number()?.try_into().ok()?);
        }
        if flags & EXPIRES != 0 {
            self.expires = Some(bytes.number()?.try_into().ok()?);
        }
        Some(self)
    }

    /// Position for reading it back.
    pub(in super::super::super) const fn stored(&self) -> Stored {
        Stored {
            id: self.id,
            at: self.enqueued_at,
            place: self.place,
        }
    }
}

/// Where a message stands that is not fresh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super::super) enum MessagePhase {
    /// Can be leased.
    Ready,
    /// Waits until another message of its key is done.
    Parked,
    /// Waits until a moment.
    Delayed(Timestamp),
    /// Leased, until this moment of the monotonic clock in milliseconds.
    Leased { deadline: u64 },
}

/// A lease ends with the process, so a checkpoint keeps it as ready.
fn without_lease<S: serde::Serializer>(
    phase: &MessagePhase,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match phase {
        MessagePhase::Leased { .. } => MessagePhase::Ready.serialize(serializer),
        other => other.serialize(serializer),
    }
}

/// The last lease of a message.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) fence: u64,
    pub(super) consumer: ConsumerId,
    /// When it began; a renewal changes nothing.
    pub(super) since: Timestamp,
}

/// A message that is not fresh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in super::super::super) struct TrackedMessage {
    pub(in super::super::super) entry: Entry,
    #[serde(serialize_with = "without_lease")]
    pub(in super::super::super) phase: MessagePhase,
    /// While it can still be settled or extended, though it may have expired.
    #[serde(skip)]
    pub(super) lease: Option<Lease>,
    /// Errors so far, oldest first.
    pub(in super::super::super) history: Vec<String>,
    /// Attempts up to the last one that ended in an outcome.
    #[serde(skip)]
    pub(in super::super) settled: u32,
    /// Whether it was ever leased.
    #[serde(skip)]
    pub(in super::super) was_leased: bool,
}

/// Fields of a message in a checkpoint of version 3 or 4 beside [`TrackedMessage`] that its attempts do not imply.
#[derive(Debug, Deserialize)]
pub(in super::super) struct Mark {
    pub(super) number: u64,
    pub(super) settled: u32,
    pub(super) was_leased: bool,
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in super::super::super) struct Dead {
    pub(in super::super::super) entry: Entry,
    pub(in super::super::super) reason: String,
    pub(in super::super::super) history: Vec<String>,
    pub(in super::super::super) died_at: Timestamp,
}

impl TrackedMessage {
    pub(super) const fn fresh(entry: Entry) -> Self {
        Self {
            entry,
            phase: MessagePhase::Ready,
            lease: None,
            history: Vec::new(),
            settled: entry.attempts,
            was_leased: false,
        }
    }

    /// Whether the last delivery ended without an outcome.
    pub(super) const fn is_interrupted(&self) -> bool {
        self.entry.attempts > self.settled
    }

    /// Counts a delivery.
    pub(super) const fn begin(&mut self) {
        self.entry.attempts += 1;
        self.was_leased = true;
    }

    pub(super) fn remember(&mut self, error: &str) {
        attempt::remember(&mut self.history, error);
    }
}
