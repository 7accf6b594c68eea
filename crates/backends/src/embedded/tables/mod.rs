//! Keys that left memory: sorted tables on disk, of which memory holds an index and a filter.
//!
//! ```text
//! keys in memory -> (too many of them) -> new table, merged with those that are not much larger -> removed from memory
//! ```
//!
//! Tables are named by the checkpoint that rests on them, so each checkpoint has the tables that it knew. A newer table,
//! and the keys in memory, come before an older table. A key that is gone stays as a mark while an older table may have it.

mod bloom;
mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs;
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imbl::OrdMap;
use towpath_core::{Error, ErrorKind, Result, Timestamp};

use super::checkpoint::Throttle;
use super::state::Slot;
use bloom::Hashed;
use file::{Cursor, Writer};
pub(super) use file::{Table, TableRecord};

/// A table is merged with its predecessor unless it is this many times larger: each key is rewritten a few
/// times, and overwritten keys never take more space than current ones.
const LARGER: u64 = 2;

/// The tables that there are, the newest first. Shared: they never change.
#[derive(Debug, Clone, Default)]
pub(super) struct Tables(Arc<Vec<Arc<Table>>>);

impl Tables {
    /// Opens the tables that a checkpoint names.
    ///
    /// # Errors
    /// `Corrupt` when one is missing, short or damaged.
    pub(super) fn open(folder: &Path, named: &[TableRecord]) -> Result<Self> {
        let tables = named.iter();
        let tables = tables.map(|named| Table::open(folder, *named).map(Arc::new));
        Ok(Self(Arc::new(tables.collect::<Result<_>>()?)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether these are the same tables.
    pub(super) fn are(&self, others: &Self) -> bool {
        Arc::ptr_eq(&self.0, &others.0)
    }

    pub(super) fn named(&self) -> Vec<TableRecord> {
        self.0.iter().map(|table| table.named).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Table> {
        self.0.iter().map(|table| &**table)
    }

    /// Whether one of them may contain a key. Reads nothing.
    pub(super) fn may_have(&self, key: &str) -> bool {
        let hashed = (!self.is_empty()).then(|| Hashed::new(key));
        hashed.is_some_and(|hashed| self.0.iter().any(|table| table.may_have(hashed)))
    }

    /// Looks a key up in the newest table that contains it.
    ///
    /// # Errors
    /// `Corrupt` for a damaged table; `Unavailable` for I/O, which may pass.
    pub(super) fn find(&self, key: &str) -> Result<Option<Slot>> {
        let hashed = Hashed::new(key);
        for table in self.0.iter().filter(|table| table.may_have(hashed)) {
            if let Some(slot) = table.find(key)? {
                return Ok(Some(slot));
            }
        }
        Ok(None)
    }

    /// Entries from a key on, by key: those of memory, which are newer, and those of the tables.
    pub(super) fn merged<'a, I>(&self, memory: I, from: &str) -> Result<Merged<I::IntoIter>>
    where
        I: IntoIterator<Item = (&'a String, &'a Slot)>,
    {
        let tables = self.0.iter().map(|table| table.entries(from));
        Ok(Merged {
            memory: memory.into_iter().peekable(),
            tables: tables.collect::<Result<_>>()?,
        })
    }

    /// Reads every block of every table. One text for each fault.
    pub(super) fn faults(&self) -> Vec<String> {
        let all = self.0.iter().filter_map(|table| {
            let read = table.entries("").and_then(|mut cursor| {
                while cursor.next.is_some() {
                    cursor.advance()?;
                }
                Ok(())
            });
            read.err().map(|error| error.chain())
        });
        all.collect()
    }

    /// Writes keys that memory has to a new table, merged with the newest ones. Returns the new list of tables.
    pub(super) fn take_in(
        &self,
        folder: &Path,
        keys: &OrdMap<String, Slot>,
        bytes: u64,
        now: Timestamp,
        throttle: Option<Throttle<'_>>,
    ) -> Result<Self> {
        let mut sum = bytes.max(1);
        let smaller = self.0.iter().take_while(|table| {
            let is_merged = table.named.bytes <= LARGER * sum;
            sum += table.named.bytes;
            is_merged
        });
        let merged = smaller.count();
        match self.write(folder, keys, merged, now, throttle) {
            // The damage stays where it is, and does not keep memory from being freed.
            Err(error) if error.kind() == ErrorKind::Corrupt && merged > 0 => {
                tracing::error!(error = error.chain(), "tables of keys cannot be merged");
                self.write(folder, keys, 0, now, throttle)
            }
            written => written,
        }
    }

    fn write(
        &self,
        folder: &Path,
        keys: &OrdMap<String, Slot>,
        merged: usize,
        now: Timestamp,
        throttle: Option<Throttle<'_>>,
    ) -> Result<Self> {
        let (newer, older) = self.0.split_at(merged);
        let newer = Self(Arc::new(newer.to_vec()));
        let counts: u64 = newer.iter().map(|table| table.count).sum();
        let most = keys.len() + usize::try_from(counts).unwrap_or(usize::MAX);
        let mut writer = Writer::new(folder, next_number(folder)?, most, throttle)?;
        let mut entries = newer.merged(keys, "")?;
        while let Some((key, slot)) = entries.next()? {
            if slot.is_there(now) {
                writer.add(&key, &slot)?;
            } else if !older.is_empty() {
                writer.add(&key, &Slot::GONE)?;
            }
        }
        let named = writer.finish(folder)?;
        let mut tables = vec![Arc::new(Table::open(folder, named)?)];
        tables.extend_from_slice(older);
        Ok(Self(Arc::new(tables)))
    }

    /// Removes the files of those tables that another list does not have.
    pub(super) fn remove_new(&self, others: &Self) {
        let known: BTreeSet<TableRecord> = others.named().into_iter().collect();
        for table in self.iter().filter(|table| !known.contains(&table.named)) {
            fs::remove_file(&table.path).ok();
        }
    }
}

/// Entries of memory and of tables, by key.
pub(super) struct Merged<I: Iterator> {
    memory: Peekable<I>,
    tables: Vec<Cursor>,
}

impl<'a, I: Iterator<Item = (&'a String, &'a Slot)>> Merged<I> {
    /// The next key and the newest that is known of it; it may be gone or expired.
    pub(super) fn next(&mut self) -> Result<Option<(String, Slot)>> {
        let mut least = self.memory.peek().map(|(key, _)| key.as_str());
        for (key, _) in self.tables.iter().filter_map(|table| table.next.as_ref()) {
            if least.is_none_or(|least| key.as_str() < least) {
                least = Some(key);
            }
        }
        let Some(least) = least.map(str::to_owned) else {
            return Ok(None);
        };
        let mut found = self
            .memory
            .next_if(|(key, _)| **key == least)
            .map(|(key, slot)| (key.clone(), slot.clone()));
        for table in &mut self.tables {
            if table.next.as_ref().is_some_and(|(key, _)| *key == least) {
                let entry = table.next.take();
                found = found.or(entry);
                table.advance()?;
            }
        }
        Ok(found)
    }
}

/// The files of tables in a folder.
pub(super) fn files(folder: &Path) -> Result<impl Iterator<Item = PathBuf>> {
    let numbers = numbers(folder)?.into_iter();
    let folder = folder.to_owned();
    Ok(numbers.map(move |number| file::path(&folder, number)))
}

/// The numbers of the tables in a folder.
fn numbers(folder: &Path) -> Result<Vec<u32>> {
    let io = |error| Error::unavailable("tables cannot be listed").with_source(error);
    let mut numbers = Vec::new();
    if !folder.exists() {
        return Ok(numbers);
    }
    for entry in fs::read_dir(folder).map_err(io)? {
        numbers.extend(file::number_of(&entry.map_err(io)?.path()));
    }
    Ok(numbers)
}

/// A number that no table has, also none that a crash left.
fn next_number(folder: &Path) -> Result<u32> {
    Ok(numbers(folder)?.into_iter().max().unwrap_or_default() + 1)
}

/// Removes the tables that no checkpoint names.
pub(super) fn remove_others(folder: &Path, named: &BTreeSet<u32>) -> Result<()> {
    for number in numbers(folder)? {
        if !named.contains(&number) {
            fs::remove_file(file::path(folder, number)).map_err(|error| {
                Error::unavailable("a table cannot be removed").with_source(error)
            })?;
        }
    }
    Ok(())
}
