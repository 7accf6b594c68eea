//! A frame: header, body, padding to eight bytes.
//!
//! | offset | bytes | meaning |
//! | --- | --- | --- |
//! | 0 | 4 | `TWPF` |
//! | 4 | 4 | body length, little endian as all integers |
//! | 8 | 8 | how far the log was known to be synced when the frame was made: segment in the high half, offset in the low |
//! | 16 | 4 | sequence number, one more than the frame before, wrapping |
//! | 20 | 4 | CRC32C of segment number, offset of the frame, bytes 4 to 19, and the body |
//! | 24 | n | body |
//!
//! The checksum is salted with the frame's place, so a frame that was copied
//! elsewhere, for instance inside a payload, is never taken for one. The
//! sequence number shows a hole that was overwritten with zeros.

use super::Position;

pub(super) const HEADER_BYTES: usize = 24;
pub(super) const ALIGN: usize = 8;
pub(super) const MAGIC: [u8; 4] = *b"TWPF";

/// The largest body: a full batch of large messages is split by the caller.
pub(crate) const MAX_BODY_BYTES: usize = 256 * 1024 * 1024;

/// Bytes a frame with such a body takes.
pub(super) const fn size_of(body: usize) -> usize {
    (HEADER_BYTES + body).next_multiple_of(ALIGN)
}

/// Appends a frame that will stand at `place`.
pub(super) fn write(
    out: &mut Vec<u8>,
    place: Position,
    synced: Position,
    sequence: u32,
    body: &[u8],
) {
    let mut header = [0; HEADER_BYTES];
    header[..4].copy_from_slice(&MAGIC);
    header[4..8].copy_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
    header[8..16].copy_from_slice(&synced.to_u64().to_le_bytes());
    header[16..20].copy_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c::crc32c_append(checksum_of_head(place, &header), body);
    header[20..].copy_from_slice(&checksum.to_le_bytes());
    let end = out.len() + size_of(body.len());
    out.extend_from_slice(&header);
    out.extend_from_slice(body);
    out.resize(end, 0);
}

/// An intact frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub(super) body: &'a [u8],
    pub(super) synced: Position,
    pub(super) sequence: u32,
    /// Bytes of the whole frame.
    pub(super) size: usize,
}

/// The frame at `place`, where `bytes` starts; `None` when there is no intact one.
pub(super) fn read(bytes: &[u8], place: Position) -> Option<Frame<'_>> {
    read_with(bytes, place, crc32c::crc32c_append)
}

/// As [`read`], with `append` to append a body to a checksum.
pub(super) fn read_with(
    bytes: &[u8],
    place: Position,
    append: impl FnOnce(u32, &[u8]) -> u32,
) -> Option<Frame<'_>> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    if header[..4] != MAGIC {
        return None;
    }
    let length = u32::from_le_bytes(*header[4..].first_chunk()?) as usize;
    let body = bytes.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?)?;
    let stored = u32::from_le_bytes(*header[20..].first_chunk()?);
    if stored != append(checksum_of_head(place, header), body) {
        return None;
    }
    let synced = Position::from_u64(u64::from_le_bytes(*header[8..].first_chunk()?));
    let sequence = u32::from_le_bytes(*header[16..].first_chunk()?);
    Some(Frame {
        body,
        synced,
        sequence,
        size: size_of(length),
    })
}

fn checksum_of_head(place: Position, header: &[u8; HEADER_BYTES]) -> u32 {
    let salt = crc32c::crc32c(&place.to_u64().to_le_bytes());
    crc32c::crc32c_append(salt, &header[4..20])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Position = Position {
        segment: 3,
        offset: 64,
    };

    #[test]
    fn a_frame_reads_back_only_at_its_own_place() {
        let mut bytes = Vec::new();
        write(
            &mut bytes,
            PLACE,
            Position {
                segment: 2,
                offset: 9,
            },
            7,
            b"hello",
        );
        assert_eq!(bytes.len() % ALIGN, 0);
        let frame = read(&bytes, PLACE).unwrap();
        assert_eq!(
            (frame.body, frame.sequence, frame.size),
            (&b"hello"[..], 7, bytes.len())
        );
        assert_eq!(
            frame.synced,
            Position {
                segment: 2,
                offset: 9
            }
        );
        assert_eq!(read(&bytes, PLACE.plus(8)), None);
        assert_eq!(
            read(
                &bytes,
                Position {
                    segment: 4,
                    ..PLACE
                }
            ),
            None
        );
    }

    #[test]
    fn every_flipped_bit_of_header_and_body_is_noticed() {
        let mut bytes = Vec::new();
        write(&mut bytes, PLACE, Position::default(), 1, b"0123456789");
        for bit in 0..(HEADER_BYTES + 10) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bytes, PLACE), None, "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
    }
}
