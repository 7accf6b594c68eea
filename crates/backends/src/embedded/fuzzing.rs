//! Entry points of the fuzz targets: the decoders of the store, on unchecked bytes.

use super::blob;
use super::checkpoint;
use super::record::Record;
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
    blob::decode_anything(bytes);
    for version in 1..=checkpoint::WHOLE {
        drop(State::decode(version, bytes));
    }
    let mut loading = Loading::default();
    if checkpoint::load_block(bytes, &mut loading).is_ok() {
        drop(loading.finish());
    }
}
