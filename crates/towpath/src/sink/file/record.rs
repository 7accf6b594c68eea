//! The records of the journal: appended text, and the ids of its messages.
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 4 | CRC32C of the rest |
//! | 4 | number of messages |
//! | 8 | length of the output before |
//! | 8 | length of the text to append |
//! | 8 | device of the output, as it was numbered then |
//! | 8 | inode of the output |
//! | 16 each | message ids |
//! | | the text itself, so that after a crash our bytes can be recognised |
//!
//! Numbers are little-endian. A record without a text says that everything before it was carried out.

use std::ops::Range;

use bytes::{Buf, BufMut};
use towpath_core::MessageId;

const HEAD_BYTES: usize = 40;

/// One append, announced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Intent {
    pub(super) start: u64,
    /// Device and inode of the file it is about.
    pub(super) file: (u64, u64),
    pub(super) ids: Vec<MessageId>,
    pub(super) text: Vec<u8>,
}

/// The contents of a stretch of the journal.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// The records in order. Of a damaged one, the ids that can still be read.
    pub(super) intents: Vec<Intent>,
    /// Where the last whole record ends; appends behind it were never begun.
    pub(super) end: usize,
    /// The range that does not match its checksum.
    pub(super) damaged: Vec<Range<usize>>,
}

/// Reads as many records as there are, past damaged ones.
pub(super) fn scan(bytes: &[u8]) -> Scan {
    let mut scan = Scan::default();
    while scan.end < bytes.len() {
        let rest = &bytes[scan.end..];
        if let Some((intent, size)) = decode(rest) {
            scan.intents.push(intent);
            scan.end += size;
            continue;
        }
        if let Some(size) = (1..rest.len()).find(|next| decode(&rest[*next..]).is_some()) {
            scan.intents.push(salvage(&rest[..size]));
            scan.damaged.push(scan.end..scan.end + size);
            scan.end += size;
            continue;
        }
        // One that a crash cut short is shorter than it says.
        if Head::read(rest).is_some_and(|head| head.size().is_some_and(|size| size <= rest.len())) {
            scan.damaged.push(scan.end..bytes.len());
        }
        break;
    }
    scan
}

pub(super) fn encode(intent: &Intent) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + intent.ids.len() * 16 + intent.text.len());
    bytes.put_u32_le(0);
    bytes.put_u32_le(u32::try_from(intent.ids.len()).unwrap_or(u32::MAX));
    bytes.put_u64_le(intent.start);
    bytes.put_u64_le(intent.text.len() as u64);
    bytes.put_u64_le(intent.file.0);
    bytes.put_u64_le(intent.file.1);
    for id in &intent.ids {
        bytes.put_slice(id.as_bytes());
    }
    bytes.put_slice(&intent.text);
    let checksum = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

struct Head {
    checksum: u32,
    count: usize,
    start: u64,
    length: u64,
    file: (u64, u64),
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut head = bytes.get(..HEAD_BYTES)?;
        Some(Self {
            checksum: head.get_u32_le(),
            count: head.get_u32_le() as usize,
            start: head.get_u64_le(),
            length: head.get_u64_le(),
            file: (head.get_u64_le(), head.get_u64_le()),
        })
    }

    fn text_at(&self) -> Option<usize> {
        self.count.checked_mul(16)?.checked_add(HEAD_BYTES)
    }

    fn size(&self) -> Option<usize> {
        self.text_at()?
            .checked_add(usize::try_from(self.length).ok()?)
    }
}

fn decode(bytes: &[u8]) -> Option<(Intent, usize)> {
    let head = Head::read(bytes)?;
    let (text_at, size) = (head.text_at()?, head.size()?);
    if crc32c::crc32c(bytes.get(4..size)?) != head.checksum {
        return None;
    }
    let intent = Intent {
        start: head.start,
        file: head.file,
        ids: ids(&bytes[HEAD_BYTES..text_at]),
        text: bytes[text_at..size].to_vec(),
    };
    Some((intent, size))
}

/// The ids of a damaged record. A record that another one follows was carried out; an id that is read wrongly matches no message.
fn salvage(bytes: &[u8]) -> Intent {
    let (head, body) = (
        Head::read(bytes),
        bytes.get(HEAD_BYTES..).unwrap_or_default(),
    );
    let most = body.len() / 16;
    let count = head.map_or(0, |head| {
        // Either number may be the damaged one.
        let by_length = usize::try_from(head.length)
            .ok()
            .and_then(|length| body.len().checked_sub(length))
            .map_or(0, |ids| ids / 16);
        let by_count = Some(head.count).filter(|count| *count <= most);
        by_length.max(by_count.unwrap_or_default())
    });
    Intent {
        ids: ids(&body[..count * 16]),
        ..Intent::default()
    }
}

fn ids(bytes: &[u8]) -> Vec<MessageId> {
    bytes
        .chunks_exact(16)
        .filter_map(|id| Some(MessageId::from_bytes(*id.first_chunk()?)))
        .collect()
}
