//! The segment files of a log: all of them known, few of them open.
//!
//! A log of 100 GiB has thousands of segments; an open file for each would exceed the process's limit.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::segment::{self, Segment};

/// Most files kept open; the one used longest ago is closed for the next.
const MAX_OPEN: usize = 64;

/// The segments of a folder, opened when they are used.
pub(super) struct Files {
    folder: PathBuf,
    sizes: RwLock<BTreeMap<u32, u32>>,
    /// The one used last comes first.
    open: Mutex<VecDeque<(u32, Arc<File>)>>,
}

impl Files {
    pub(super) fn new(folder: PathBuf, sizes: BTreeMap<u32, u32>) -> Self {
        Self {
            folder,
            sizes: RwLock::new(sizes),
            open: Mutex::default(),
        }
    }

    /// Bytes of a segment; `None` when there is no such segment.
    pub(super) fn size(&self, number: u32) -> Option<u32> {
        let sizes = self.sizes.read().unwrap_or_else(PoisonError::into_inner);
        sizes.get(&number).copied()
    }

    /// Every segment with its size, oldest first.
    pub(super) fn list(&self) -> Vec<(u32, u32)> {
        let sizes = self.sizes.read().unwrap_or_else(PoisonError::into_inner);
        sizes
            .iter()
            .map(|(number, size)| (*number, *size))
            .collect()
    }

    /// The file of a segment, for reading and writing.
    ///
    /// # Errors
    /// `NotFound` when there is no such segment, and the errors of opening it.
    pub(super) fn file(&self, number: u32) -> io::Result<Arc<File>> {
        if let Some(file) = self.opened(number) {
            return Ok(file);
        }
        if self.size(number).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        // Without the lock: a disk that hangs here must not stop those whose files are open.
        let file = Arc::new(segment::open(&self.folder, number)?);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread was faster, or the segment was removed meanwhile.
        if let Some((_, file)) = open.iter().find(|(known, _)| *known == number) {
            return Ok(Arc::clone(file));
        }
        if self.size(number).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        open.push_front((number, Arc::clone(&file)));
        open.truncate(MAX_OPEN);
        Ok(file)
    }

    /// The file of a segment, if it is open.
    pub(super) fn opened(&self, number: u32) -> Option<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let found = open.iter().position(|(known, _)| *known == number)?;
        let used = open.remove(found)?;
        open.push_front(used.clone());
        Some(used.1)
    }

    pub(super) fn insert(&self, number: u32, segment: Segment) {
        self.remove(number);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_front((number, segment.file));
        open.truncate(MAX_OPEN);
        let mut sizes = self.sizes.write().unwrap_or_else(PoisonError::into_inner);
        sizes.insert(number, segment.size);
    }

    /// Forgets a segment; its file stays.
    pub(super) fn remove(&self, number: u32) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(known, _)| *known != number);
        let mut sizes = self.sizes.write().unwrap_or_else(PoisonError::into_inner);
        sizes.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_segments_need_few_open_files() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path().to_owned(), BTreeMap::new());
        for number in 1..200 {
            files.insert(number, {
                let whole = segment::Whole { size: 128, log: 1 };
                segment::create(folder.path(), number, whole).unwrap()
            });
        }
        for number in 1..200 {
            assert_eq!(files.file(number).unwrap().metadata().unwrap().len(), 128);
        }
        assert_eq!(files.open.lock().unwrap().len(), MAX_OPEN);
        files.remove(7);
        let gone = files.file(7).unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(files.list().len(), 198);
    }
}
