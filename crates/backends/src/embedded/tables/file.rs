//! One table: keys and values in order, in a file that is written once.
//!
//! ```text
//! header | block | block | … | index | filter | tail
//! ```
//!
//! The index has the first key and the checksum of each block, and is in memory with the filter. The checkpoint that
//! names the table has the checksum of both. Format: `docs/format/store.md`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use towpath_core::{Error, Result};

use super::bloom::{Bloom, Hashed};
use crate::embedded::checkpoint::Throttle;
use crate::embedded::log::{read_exact_at, sync_folder};
use crate::embedded::state::Slot;
use crate::private;

const MAGIC: [u8; 8] = *b"TOWPKEY\0";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const TAIL_BYTES: usize = 28;

/// A block ends behind the entry that reaches this; a large value makes a larger one.
const BLOCK_BYTES: usize = 8 * 1024;

/// Bytes between two syncs: the log's own syncs wait for writes in flight to the same disk.
const STRETCH: u64 = 1 << 20;

/// The ending of a table's file.
const ENDING: &str = "keys";

/// A table as recorded in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in super::super) struct TableRecord {
    pub(in super::super) number: u32,
    /// Size of its file.
    pub(in super::super) bytes: u64,
    /// Of everything but the blocks, whose checksums it covers.
    checksum: u32,
}

/// A block, in the index.
#[derive(Debug, Serialize, Deserialize)]
struct Block {
    first: Box<str>,
    offset: u64,
    length: u32,
    checksum: u32,
}

/// An open table.
#[derive(Debug)]
pub(in super::super) struct Table {
    pub(super) named: TableRecord,
    pub(in super::super) path: PathBuf,
    /// Number of keys.
    pub(super) count: u64,
    file: File,
    index: Vec<Block>,
    bloom: Bloom,
}

/// The path of a table in the folder of checkpoints.
pub(super) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:010}.{ENDING}"))
}

/// The number of the table with this path.
pub(super) fn number_of(path: &Path) -> Option<u32> {
    if path.extension()? != ENDING {
        return None;
    }
    path.file_stem()?.to_str()?.parse().ok()
}

fn header(number: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&number.to_le_bytes());
    header
}

impl Table {
    /// # Errors
    /// `Corrupt` when it is missing or not the one that is named.
    pub(super) fn open(folder: &Path, named: TableRecord) -> Result<Self> {
        let path = path(folder, named.number);
        let shown = path.display();
        let damaged = |what: &str| Error::corrupt(format!("table `{shown}` {what}"));
        let unreadable = |error: io::Error| damaged("cannot be read").with_source(error);
        let mut file = File::open(&path).map_err(unreadable)?;
        let found = file.metadata().map_err(unreadable)?.len();
        if found != named.bytes {
            return Err(damaged(&format!(
                "has {found} bytes instead of {}",
                named.bytes
            )));
        }
        let mut head = [0; HEADER_BYTES];
        file.read_exact(&mut head).map_err(unreadable)?;
        let mut tail = [0; TAIL_BYTES];
        file.seek(SeekFrom::End(-(TAIL_BYTES as i64)))
            .map_err(unreadable)?;
        file.read_exact(&mut tail).map_err(unreadable)?;
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&tail[at..at + 8]);
            u64::from_le_bytes(bytes)
        };
        let (index_bytes, bloom_bytes, count) = (number(0), number(8), number(16));
        let wrong = || damaged("does not match its checksum");
        let lengths = index_bytes.checked_add(bloom_bytes).ok_or_else(wrong)?;
        let start = (named.bytes - TAIL_BYTES as u64)
            .checked_sub(lengths)
            .ok_or_else(wrong)?;
        let mut index = vec![0; index_bytes as usize];
        let mut bloom = vec![0; bloom_bytes as usize].into_boxed_slice();
        file.seek(SeekFrom::Start(start)).map_err(unreadable)?;
        file.read_exact(&mut index).map_err(unreadable)?;
        file.read_exact(&mut bloom).map_err(unreadable)?;
        let checksum = checksum(&head, &index, &bloom, &tail[..24]);
        if checksum != named.checksum || tail[24..] != checksum.to_le_bytes() {
            return Err(wrong());
        }
        if head != header(named.number) {
            return Err(damaged("is not the one that its name says"));
        }
        let index: Vec<Block> = postcard::from_bytes(&index)
            .map_err(|error| damaged("has no index").with_source(error))?;
        let is_inside = |block: &Block| block.offset.saturating_add(block.length.into()) <= start;
        let bloom = Bloom::read(bloom).filter(|_| index.iter().all(is_inside));
        Ok(Self {
            bloom: bloom.ok_or_else(wrong)?,
            named,
            count,
            file,
            index,
            path,
        })
    }

    pub(super) fn may_have(&self, key: Hashed) -> bool {
        self.bloom.may_have(key)
    }

    /// Looks a key up.
    ///
    /// # Errors
    /// `Corrupt` for a damaged block; `Unavailable` for I/O, which may pass.
    pub(super) fn find(&self, key: &str) -> Result<Option<Slot>> {
        let behind = self.index.partition_point(|block| *block.first <= *key);
        let Some(block) = behind.checked_sub(1) else {
            return Ok(None);
        };
        let bytes = self.block(block)?;
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (found, content) = self.decode::<&str>(rest)?;
            if found == key {
                return self.decode::<Slot>(content).map(|(slot, _)| Some(slot));
            }
            if found > key {
                break;
            }
            rest = self.decode::<Slot>(content)?.1;
        }
        Ok(None)
    }

    /// Its entries from a key on.
    pub(super) fn entries(self: &Arc<Self>, key: &str) -> Result<Cursor> {
        let behind = self.index.partition_point(|block| *block.first <= *key);
        let mut cursor = Cursor {
            table: Arc::clone(self),
            block: behind.saturating_sub(1),
            bytes: Vec::new(),
            at: 0,
            next: None,
        };
        cursor.advance()?;
        while cursor
            .next
            .as_ref()
            .is_some_and(|(found, _)| &**found < key)
        {
            cursor.advance()?;
        }
        Ok(cursor)
    }

    fn block(&self, number: usize) -> Result<Vec<u8>> {
        let block = &self.index[number];
        let mut bytes = vec![0; block.length as usize];
        read_exact_at(&self.file, &mut bytes, block.offset).map_err(|error| {
            let text = format!("table `{}` cannot be read", self.path.display());
            Error::unavailable(text).with_source(error)
        })?;
        if crc32c::crc32c(&bytes) != block.checksum {
            return Err(self.damaged(&format!("block {number} does not match its checksum")));
        }
        Ok(bytes)
    }

    fn decode<'a, T: Deserialize<'a>>(&self, bytes: &'a [u8]) -> Result<(T, &'a [u8])> {
        postcard::take_from_bytes(bytes).map_err(|error| {
            self.damaged("an entry cannot be decoded")
                .with_source(error)
        })
    }

    fn damaged(&self, what: &str) -> Error {
        Error::corrupt(format!("table `{}`: {what}", self.path.display()))
    }
}

fn checksum(header: &[u8], index: &[u8], bloom: &[u8], lengths: &[u8]) -> u32 {
    [index, bloom, lengths]
        .into_iter()
        .fold(crc32c::crc32c(header), crc32c::crc32c_append)
}

/// A place in a table, and the entry there.
pub(super) struct Cursor {
    table: Arc<Table>,
    /// The next block.
    block: usize,
    bytes: Vec<u8>,
    at: usize,
    pub(super) next: Option<(String, Slot)>,
}

impl Cursor {
    /// Advances to the next entry.
    pub(super) fn advance(&mut self) -> Result<()> {
        self.next = None;
        if self.at == self.bytes.len() {
            if self.block == self.table.index.len() {
                return Ok(());
            }
            self.bytes = self.table.block(self.block)?;
            self.at = 0;
            self.block += 1;
        }
        let rest = &self.bytes[self.at..];
        let (entry, behind) = self.table.decode::<(String, Slot)>(rest)?;
        self.at = self.bytes.len() - behind.len();
        self.next = Some(entry);
        Ok(())
    }
}

/// A table on its way to the disk.
pub(super) struct Writer<'a> {
    number: u32,
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    written: u64,
    block: Vec<u8>,
    first: Option<Box<str>>,
    index: Vec<Block>,
    bloom: Bloom,
    count: u64,
    /// Where the present stretch began, and when.
    stretch: (u64, Instant),
    throttle: Option<Throttle<'a>>,
}

fn unwritten(error: io::Error) -> Error {
    Error::unavailable("a table cannot be written").with_source(error)
}

impl<'a> Writer<'a> {
    /// Begins a table with a maximum number of keys.
    pub(super) fn new(
        folder: &Path,
        number: u32,
        most: usize,
        throttle: Option<Throttle<'a>>,
    ) -> Result<Self> {
        let path = path(folder, number);
        let temporary = path.with_extension("tmp");
        let mut file = BufWriter::new(private::create(&temporary).map_err(unwritten)?);
        file.write_all(&header(number)).map_err(unwritten)?;
        Ok(Self {
            number,
            path,
            temporary,
            file,
            written: HEADER_BYTES as u64,
            block: Vec::new(),
            first: None,
            index: Vec::new(),
            bloom: Bloom::new(most),
            count: 0,
            stretch: (0, Instant::now()),
            throttle,
        })
    }

    /// Adds an entry behind the others.
    pub(super) fn add(&mut self, key: &str, slot: &Slot) -> Result<()> {
        self.first.get_or_insert_with(|| key.into());
        self.bloom.add(Hashed::new(key));
        self.count += 1;
        postcard::to_io(&(key, slot), &mut self.block)
            .map_err(|error| Error::invalid("a key cannot be encoded").with_source(error))?;
        if self.block.len() < BLOCK_BYTES {
            return Ok(());
        }
        self.end_block().map_err(unwritten)?;
        let (start, began) = self.stretch;
        if let Some(throttle) = self.throttle.filter(|_| self.written - start >= STRETCH) {
            self.file.flush().map_err(unwritten)?;
            self.file.get_ref().sync_data().map_err(unwritten)?;
            throttle(began.elapsed())?;
            self.stretch = (self.written, Instant::now());
        }
        Ok(())
    }

    fn end_block(&mut self) -> io::Result<()> {
        let Some(first) = self.first.take() else {
            return Ok(());
        };
        let length = u32::try_from(self.block.len()).map_err(io::Error::other)?;
        self.index.push(Block {
            first,
            offset: self.written,
            length,
            checksum: crc32c::crc32c(&self.block),
        });
        self.file.write_all(&self.block)?;
        self.written += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }

    /// Makes the table durable under its name.
    pub(super) fn finish(mut self, folder: &Path) -> Result<TableRecord> {
        self.end_block().map_err(unwritten)?;
        let index = postcard::to_stdvec(&self.index)
            .map_err(|error| Error::invalid("an index cannot be encoded").with_source(error))?;
        let bloom = self.bloom.bytes();
        let lengths = [index.len() as u64, bloom.len() as u64, self.count];
        let mut tail: Vec<u8> = lengths.into_iter().flat_map(u64::to_le_bytes).collect();
        let checksum = checksum(&header(self.number), &index, bloom, &tail);
        tail.extend(checksum.to_le_bytes());
        for part in [&index[..], bloom, &tail] {
            self.file.write_all(part).map_err(unwritten)?;
        }
        let bytes = self.written + (index.len() + bloom.len() + tail.len()) as u64;
        self.file.flush().map_err(unwritten)?;
        self.file.get_ref().sync_all().map_err(unwritten)?;
        fs::rename(&self.temporary, &self.path).map_err(unwritten)?;
        sync_folder(folder).map_err(unwritten)?;
        let number = self.number;
        Ok(TableRecord {
            number,
            bytes,
            checksum,
        })
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        // Gone when it was finished.
        fs::remove_file(&self.temporary).ok();
    }
}
