//! Finding intact frames in a damaged segment, in time that grows with its size only.
//!
//! Every place may be a frame that claims a long body, and a payload can be made to look like a
//! million of them. So the checksum of a body is not computed from its bytes but from the checksums
//! of the segment up to its start and up to its end: appending bytes to a CRC is linear over GF(2).

use super::Position;
use super::frame::{self, ALIGN, Frame};

/// The distance of the places whose checksum is kept.
const STEP: usize = 64;

/// A segment's bytes, prepared for looking for frames.
pub(super) struct Search<'a> {
    segment: u32,
    bytes: &'a [u8],
    /// CRC32C of the bytes up to each multiple of [`STEP`].
    checksums: Vec<u32>,
    /// The effect of 2^n zero bytes on each bit of a CRC32C.
    zeros: Vec<[u32; 32]>,
}

impl<'a> Search<'a> {
    pub(super) fn new(segment: u32, bytes: &'a [u8]) -> Self {
        let mut checksums = vec![0];
        for step in bytes.chunks_exact(STEP) {
            let before = checksums.last().copied().unwrap_or_default();
            checksums.push(crc32c::crc32c_append(before, step));
        }
        let mut zeros = vec![std::array::from_fn(|bit| {
            crc32c::crc32c_combine(1 << bit, 0, 1)
        })];
        for power in 1..u32::BITS as usize {
            let half: [u32; 32] = zeros[power - 1];
            zeros.push(half.map(|checksum| times(&half, checksum)));
        }
        Self {
            segment,
            bytes,
            checksums,
            zeros,
        }
    }

    /// The first intact frame at or behind `offset`.
    pub(super) fn next(&self, offset: u32) -> Option<(Position, Frame<'a>)> {
        let start = (offset as usize).next_multiple_of(ALIGN);
        (start..self.bytes.len()).step_by(ALIGN).find_map(|offset| {
            let place = Position {
                segment: self.segment,
                offset: u32::try_from(offset).ok()?,
            };
            let found = frame::read_with(&self.bytes[offset..], place, |head, body| {
                self.appended(head, offset + frame::HEADER_BYTES, body.len())
            })?;
            Some((place, found))
        })
    }

    /// Every intact frame from `offset` on.
    pub(super) fn frames(&self, offset: u32) -> impl Iterator<Item = (Position, Frame<'a>)> {
        let mut at = offset;
        std::iter::from_fn(move || {
            let (place, frame) = self.next(at)?;
            at = place.plus(u32::try_from(frame.size).ok()?).offset;
            Some((place, frame))
        })
    }

    /// The checksum `head`, with `length` bytes from `start` appended.
    fn appended(&self, head: u32, start: usize, length: usize) -> u32 {
        let mut moved = head ^ self.up_to(start);
        for (power, zeros) in self.zeros.iter().enumerate() {
            if length >> power & 1 == 1 {
                moved = times(zeros, moved);
            }
        }
        moved ^ self.up_to(start + length)
    }

    fn up_to(&self, offset: usize) -> u32 {
        let step = offset / STEP;
        crc32c::crc32c_append(self.checksums[step], &self.bytes[step * STEP..offset])
    }
}

/// A matrix over GF(2), given by its columns, times a vector.
fn times(columns: &[u32; 32], vector: u32) -> u32 {
    (0..32)
        .filter(|bit| vector >> bit & 1 == 1)
        .fold(0, |sum, bit| sum ^ columns[bit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_finds_the_frames_that_reading_at_each_place_finds() {
        let (mut bytes, segment) = (vec![0; 64], 7);
        for number in 0..60_u32 {
            let place = Position {
                segment,
                offset: u32::try_from(bytes.len()).unwrap(),
            };
            let body = vec![number as u8; number as usize * 37];
            frame::write(&mut bytes, place, Position::default(), number, &body);
            if number % 7 == 0 {
                bytes[place.offset as usize + 9] ^= 4;
            }
        }
        let search = Search::new(segment, &bytes);
        let found: Vec<u32> = search.frames(64).map(|(_, frame)| frame.sequence).collect();
        let expected: Vec<u32> = (0..60).filter(|number| number % 7 != 0).collect();
        assert_eq!(found, expected);
        for (place, frame) in search.frames(64) {
            assert_eq!(
                frame::read(&bytes[place.offset as usize..], place),
                Some(frame)
            );
        }
    }
}
