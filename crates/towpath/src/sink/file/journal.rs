//! The journal beside an output file: what is about to be appended, and by which messages.
//!
//! A record is written and synced before the bytes it speaks of; so after a
//! crash the last record tells whether they are all there.
//!
//! | bytes | meaning |
//! | --- | --- |
//! | 4 | CRC32C of the rest |
//! | 4 | number of messages |
//! | 8 | length of the output before |
//! | 8 | length of the text to append |
//! | 8 | device of the output |
//! | 8 | inode of the output |
//! | 16 each | message ids |
//! | | the text itself, so that after a crash it is known what is ours |
//!
//! The file starts with `TOWPJNL` and its version, 1.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use rustix::fs::{FlockOperation, flock};
use towpath_core::MessageId;

const MAGIC: [u8; 8] = *b"TOWPJNL\x01";
const HEAD_BYTES: usize = 40;

/// How many written messages are remembered: more than can ever be on their way to be acked.
pub(super) const WINDOW: usize = 100_000;

/// The journal is written anew when it is larger than this.
const COMPACT_BYTES: u64 = 8 * 1024 * 1024;

/// One append, announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Intent {
    pub(super) start: u64,
    /// Device and inode of the file it is about.
    pub(super) file: (u64, u64),
    pub(super) ids: Vec<MessageId>,
    pub(super) text: Vec<u8>,
}

/// An open journal, locked against other processes.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    length: u64,
    recent: VecDeque<MessageId>,
    known: HashSet<MessageId>,
}

impl Journal {
    /// Opens the journal, and gives its last record, which may or may not have been carried out.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Option<Intent>)> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .append(true)
            .open(path)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            let what = format!(
                "`{}` is held by another worker; give each its own output",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            length: 0,
            recent: VecDeque::new(),
            known: HashSet::new(),
        };
        if bytes.len() < MAGIC.len() {
            journal.file.set_len(0)?;
            journal.file.write_all(&MAGIC)?;
            journal.file.sync_all()?;
            sync_parent(path)?;
            journal.length = MAGIC.len() as u64;
            return Ok((journal, None));
        }
        if bytes[..MAGIC.len()] != MAGIC {
            let what = format!(
                "`{}` is no journal that this Towpath can read",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let (mut rest, mut last) = (&bytes[MAGIC.len()..], None);
        while let Some((intent, size)) = decode(rest) {
            journal.remember(last.replace(intent));
            rest = &rest[size..];
        }
        // A torn record announces what was never begun.
        journal.length = (bytes.len() - rest.len()) as u64;
        if !rest.is_empty() {
            journal.file.set_len(journal.length)?;
            journal.file.sync_all()?;
        }
        Ok((journal, last))
    }

    /// Whether the message was written before, as far as is remembered.
    pub(super) fn knows(&self, id: &MessageId) -> bool {
        self.known.contains(id)
    }

    /// Announces an append, durably.
    pub(super) fn announce(&mut self, intent: &Intent) -> io::Result<()> {
        let bytes = encode(intent);
        let written = self
            .file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // Half a record must not stand in the way of the next one.
            self.file.set_len(self.length)?;
            return Err(error);
        }
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// The append that was announced last has not happened and will not.
    pub(super) fn withdraw(&mut self, intent: &Intent) -> io::Result<()> {
        self.length -= encode(intent).len() as u64;
        self.file.set_len(self.length)?;
        self.file.sync_data()
    }

    /// The append that was announced last has happened.
    pub(super) fn confirm(&mut self, intent: Intent) -> io::Result<()> {
        self.remember(Some(intent));
        if self.length > COMPACT_BYTES {
            self.compact()
        } else {
            Ok(())
        }
    }

    fn remember(&mut self, intent: Option<Intent>) {
        for id in intent.into_iter().flat_map(|intent| intent.ids) {
            if self.known.insert(id) {
                self.recent.push_back(id);
            }
            if self.recent.len() > WINDOW
                && let Some(oldest) = self.recent.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    /// Writes what is remembered into a new file and puts it in the place of the old one.
    fn compact(&mut self) -> io::Result<()> {
        let ids: Vec<MessageId> = self.recent.iter().copied().collect();
        // An append of nothing, which every output file fulfils.
        let everything = Intent {
            start: 0,
            file: (0, 0),
            ids,
            text: Vec::new(),
        };
        let mut bytes = MAGIC.to_vec();
        bytes.extend(encode(&everything));
        let temporary = self.path.with_extension("journal.new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&temporary)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        sync_parent(&self.path)?;
        self.file = file;
        self.length = bytes.len() as u64;
        Ok(())
    }
}

fn encode(intent: &Intent) -> Vec<u8> {
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

fn decode(bytes: &[u8]) -> Option<(Intent, usize)> {
    let mut head = bytes.get(..HEAD_BYTES)?;
    let (checksum, count) = (head.get_u32_le(), head.get_u32_le() as usize);
    let (start, length) = (head.get_u64_le(), usize::try_from(head.get_u64_le()).ok()?);
    let file = (head.get_u64_le(), head.get_u64_le());
    let text_at = HEAD_BYTES + count.checked_mul(16)?;
    let size = text_at.checked_add(length)?;
    if crc32c::crc32c(bytes.get(4..size)?) != checksum {
        return None;
    }
    let ids = bytes[HEAD_BYTES..text_at]
        .chunks_exact(16)
        .filter_map(|id| Some(MessageId::from_bytes(*id.first_chunk()?)))
        .collect();
    Some((
        Intent {
            start,
            file,
            ids,
            text: bytes[text_at..size].to_vec(),
        },
        size,
    ))
}

pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}
