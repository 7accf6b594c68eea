//! What the fuzz targets call: the decoders of the store, on bytes that nothing has checked.

use bytes::Bytes;

use super::checkpoint;
use super::record::{Record, decode_blob};
use super::state::{Loading, State};

/// Any bytes as a record, as the blob of a message, and as the state of a checkpoint of every version.
///
/// A record that decodes is encoded again and must read the same.
pub fn decode_anything(bytes: &[u8]) {
    if let Ok((record, blobs_at)) = Record::decode(bytes) {
        assert!(blobs_at as usize <= bytes.len());
        let mut again = Vec::new();
        record.encode(&mut again).expect("it was one before");
        let (read, _) = Record::decode(&again).expect("it was just encoded");
        assert_eq!(format!("{read:?}"), format!("{record:?}"));
    }
    // The checksum is put right, or nothing behind it would ever be reached.
    let mut blob = bytes.to_vec();
    if let Some((checksum, rest)) = blob.split_first_chunk_mut::<4>() {
        *checksum = crc32c::crc32c(rest).to_le_bytes();
    }
    drop(decode_blob(&Bytes::from(blob)));
    for version in 1..=checkpoint::WHOLE {
        drop(State::decode(version, bytes));
    }
    let mut loading = Loading::default();
    if checkpoint::load_block(bytes, &mut loading).is_ok() {
        drop(loading.finish());
    }
}
