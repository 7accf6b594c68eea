//! Items in few bytes: each is written as what differs from the one before it.

use towpath_core::{MessageId, Timestamp};

use super::queue::Place;
use crate::embedded::log::Position;

/// What a [`super::line::Line`] holds.
pub(in super::super) trait Item: Copy + 'static {
    /// What the first item of a block is compared with.
    const ZERO: Self;

    /// Grows along the list.
    fn number(&self) -> u64;

    /// Where its blob is.
    fn place(&self) -> Place;

    fn pack(&self, before: &Self, out: &mut Packing);

    /// The item that was packed behind `before`; `None` when the bytes are none.
    fn unpack(before: &Self, bytes: &mut Unpacking<'_>) -> Option<Self>;
}

/// A place and an id that nothing has.
pub(super) const NO_PLACE: Place = Place {
    position: Position {
        segment: 0,
        offset: 0,
    },
    bytes: 0,
};
pub(super) const NO_ID: MessageId = MessageId::from_bytes([0; 16]);
pub(super) const EPOCH: Timestamp = Timestamp::from_millis(0);

/// Bytes being written.
#[derive(Default)]
pub(in super::super) struct Packing(Vec<u8>);

impl Packing {
    pub(super) fn finish(self) -> Box<[u8]> {
        self.0.into_boxed_slice()
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    /// Seven bits a byte, the lowest first.
    pub(super) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// What was added, small in either direction.
    pub(super) fn step(&mut self, before: u64, after: u64) {
        let step = after.wrapping_sub(before).cast_signed();
        self.number(((step << 1) ^ (step >> 63)).cast_unsigned());
    }

    /// How many bytes are as before, and the others.
    pub(super) fn id(&mut self, before: MessageId, id: MessageId) {
        let (before, id) = (before.as_bytes(), id.as_bytes());
        let same = before.iter().zip(id).take_while(|(a, b)| a == b).count();
        self.0.push(same as u8);
        self.0.extend_from_slice(&id[same..]);
    }

    /// Blobs of a batch follow each other and are alike.
    pub(super) fn place(&mut self, before: Place, place: Place) {
        self.step(
            u64::from(before.position.segment),
            u64::from(place.position.segment),
        );
        let expected = u64::from(before.position.offset) + u64::from(before.bytes);
        self.step(expected, u64::from(place.position.offset));
        self.step(u64::from(before.bytes), u64::from(place.bytes));
    }

    pub(super) fn moment(&mut self, before: Timestamp, moment: Timestamp) {
        self.step(before.as_millis(), moment.as_millis());
    }
}

/// Bytes being read; `None` where they end too early or say what cannot be.
pub(in super::super) struct Unpacking<'a>(&'a [u8]);

impl<'a> Unpacking<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
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

    fn step32(&mut self, before: u64) -> Option<u32> {
        u32::try_from(self.step(before)?).ok()
    }

    pub(super) fn id(&mut self, before: MessageId) -> Option<MessageId> {
        let same = usize::from(self.byte()?);
        let mut id = *before.as_bytes();
        let changed = id.get_mut(same..)?;
        let (bytes, rest) = self.0.split_at_checked(changed.len())?;
        changed.copy_from_slice(bytes);
        self.0 = rest;
        Some(MessageId::from_bytes(id))
    }

    pub(super) fn place(&mut self, before: Place) -> Option<Place> {
        let segment = self.step32(u64::from(before.position.segment))?;
        let expected = u64::from(before.position.offset) + u64::from(before.bytes);
        let offset = self.step32(expected)?;
        let bytes = self.step32(u64::from(before.bytes))?;
        // Its end is a place as well.
        offset.checked_add(bytes)?;
        Some(Place {
            position: Position { segment, offset },
            bytes,
        })
    }

    pub(super) fn moment(&mut self, before: Timestamp) -> Option<Timestamp> {
        self.step(before.as_millis()).map(Timestamp::from_millis)
    }
}
