//! Items in few bytes: each is written as its difference from the item expected after the previous one.
//!
//! Expected are the next number, the next id, a blob of the same length right behind, and the same moment, as in a batch
//! has. A message of a batch takes one byte then.

use towpath_core::{MessageId, Timestamp};

use super::queue::BlobLocation;
use crate::embedded::log::Position;

/// An item of a [`super::line::Line`].
pub(in super::super) trait Item: Copy + 'static {
    /// The predecessor of the first item of a block.
    const ZERO: Self;

    /// Grows along the list.
    fn number(&self) -> u64;

    /// Where its blob is.
    fn place(&self) -> BlobLocation;

    fn pack(&self, before: &Self, out: &mut Packing);

    /// The item that was packed behind `before`; `None` when the bytes are none.
    fn unpack(before: &Self, bytes: &mut Unpacking<'_>) -> Option<Self>;

    /// The same of checkpoints up to version 6.
    fn unpack_version_6(before: &Self, bytes: &mut Unpacking<'_>) -> Option<Self>;
}

/// Fields of every item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Common {
    pub(super) number: u64,
    pub(super) id: MessageId,
    pub(super) place: BlobLocation,
    pub(super) moment: Timestamp,
}

/// Flags of unexpected fields, which follow. The lowest three are the item's own.
const NUMBER: u8 = 1 << 3;
const ID: u8 = 1 << 4;
const START: u8 = 1 << 5;
const LENGTH: u8 = 1 << 6;
const MOMENT: u8 = 1 << 7;

/// The bits of the flags that are the item's own.
const OWN: u8 = NUMBER - 1;

/// The id that is expected behind this one.
pub(in super::super) const fn next_id(id: MessageId) -> MessageId {
    let number = u128::from_be_bytes(*id.as_bytes());
    MessageId::from_bytes(number.wrapping_add(1).to_be_bytes())
}

/// A place and an id that nothing has.
pub(super) const NO_LOCATION: BlobLocation = BlobLocation {
    position: Position {
        segment: 0,
        offset: 0,
    },
    bytes: 0,
};
pub(in super::super) const NO_ID: MessageId = MessageId::from_bytes([0; 16]);
pub(super) const EPOCH: Timestamp = Timestamp::from_millis(0);

/// Bytes being written.
#[derive(Default)]
pub(in super::super) struct Packing(Vec<u8>);

impl Packing {
    pub(in super::super) fn finish(self) -> Box<[u8]> {
        self.0.into_boxed_slice()
    }

    /// Flags, of which `own` are the item's; the flagged fields follow.
    pub(super) fn common(&mut self, own: u8, before: &Common, item: &Common) {
        let expected = before.number.wrapping_add(1);
        let (start, after) = (item.place.position, before.place.position);
        let end = u64::from(after.offset) + u64::from(before.place.bytes);
        let follows = start.segment == after.segment && u64::from(start.offset) == end;
        let flag = |differs: bool, flag| if differs { flag } else { 0 };
        let flags = own
            | flag(item.number != expected, NUMBER)
            | flag(item.id != next_id(before.id), ID)
            | flag(!follows, START)
            | flag(item.place.bytes != before.place.bytes, LENGTH)
            | flag(item.moment != before.moment, MOMENT);
        self.byte(flags);
        if flags & NUMBER != 0 {
            self.step(expected, item.number);
        }
        if flags & ID != 0 {
            self.id(before.id, item.id);
        }
        if flags & START != 0 {
            self.step(u64::from(after.segment), u64::from(start.segment));
            self.step(end, u64::from(start.offset));
        }
        if flags & LENGTH != 0 {
            self.step(u64::from(before.place.bytes), u64::from(item.place.bytes));
        }
        if flags & MOMENT != 0 {
            self.step(before.moment.as_millis(), item.moment.as_millis());
        }
    }

    pub(in super::super) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(in super::super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Seven bits a byte, the lowest first.
    pub(in super::super) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A difference, small in either direction.
    pub(in super::super) fn step(&mut self, before: u64, after: u64) {
        let step = after.wrapping_sub(before).cast_signed();
        self.number(((step << 1) ^ (step >> 63)).cast_unsigned());
    }

    /// The number of bytes that are as before, and the others.
    pub(in super::super) fn id(&mut self, before: MessageId, id: MessageId) {
        let (before, id) = (before.as_bytes(), id.as_bytes());
        let same = before.iter().zip(id).take_while(|(a, b)| a == b).count();
        self.0.push(same as u8);
        self.0.extend_from_slice(&id[same..]);
    }
}

/// Bytes being read; `None` where they end too early or are invalid.
pub(in super::super) struct Unpacking<'a>(&'a [u8]);

impl<'a> Unpacking<'a> {
    pub(in super::super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(in super::super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that were not read yet.
    pub(in super::super) const fn left(&self) -> usize {
        self.0.len()
    }

    /// Flags of the item's own, and the fields of every item.
    pub(super) fn common(&mut self, before: &Common) -> Option<(u8, Common)> {
        let flags = self.byte()?;
        let mut number = before.number.wrapping_add(1);
        if flags & NUMBER != 0 {
            number = self.step(number)?;
        }
        let id = match flags & ID {
            0 => next_id(before.id),
            _ => self.id(before.id)?,
        };
        let BlobLocation {
            mut position,
            mut bytes,
        } = before.place;
        let end = u64::from(position.offset) + u64::from(bytes);
        if flags & START == 0 {
            position.offset = u32::try_from(end).ok()?;
        } else {
            position.segment = self.step32(u64::from(position.segment))?;
            position.offset = self.step32(end)?;
        }
        if flags & LENGTH != 0 {
            bytes = self.step32(u64::from(bytes))?;
        }
        // Its end is a place as well.
        position.offset.checked_add(bytes)?;
        let mut moment = before.moment;
        if flags & MOMENT != 0 {
            moment = self.moment(moment)?;
        }
        let place = BlobLocation { position, bytes };
        let common = Common {
            number,
            id,
            place,
            moment,
        };
        Some((flags & OWN, common))
    }

    pub(in super::super) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    pub(in super::super) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(in super::super) fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    pub(super) fn step(&mut self, before: u64) -> Option<u64> {
        let number = self.number()?;
        let step = (number >> 1).cast_signed() ^ -(number & 1).cast_signed();
        Some(before.wrapping_add(step.cast_unsigned()))
    }

    pub(in super::super) fn step32(&mut self, before: u64) -> Option<u32> {
        u32::try_from(self.step(before)?).ok()
    }

    pub(in super::super) fn id(&mut self, before: MessageId) -> Option<MessageId> {
        let same = usize::from(self.byte()?);
        let mut id = *before.as_bytes();
        let changed = id.get_mut(same..)?;
        changed.copy_from_slice(self.bytes(changed.len())?);
        Some(MessageId::from_bytes(id))
    }

    /// A place as checkpoints up to version 6 have it.
    pub(super) fn place(&mut self, before: BlobLocation) -> Option<BlobLocation> {
        let segment = self.step32(u64::from(before.position.segment))?;
        let expected = u64::from(before.position.offset) + u64::from(before.bytes);
        let offset = self.step32(expected)?;
        let bytes = self.step32(u64::from(before.bytes))?;
        // Its end is a place as well.
        offset.checked_add(bytes)?;
        Some(BlobLocation {
            position: Position { segment, offset },
            bytes,
        })
    }

    pub(super) fn moment(&mut self, before: Timestamp) -> Option<Timestamp> {
        self.step(before.as_millis()).map(Timestamp::from_millis)
    }
}
