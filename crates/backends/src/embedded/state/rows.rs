//! A list whose snapshot shares its blocks: new rows at the end, old ones taken from the front, any one looked up by its place.

use std::collections::VecDeque;
use std::sync::Arc;

/// Rows of a block.
const BLOCK: usize = 1024;

/// The list; see the module.
#[derive(Debug, Clone)]
pub(super) struct Rows<T> {
    blocks: VecDeque<Arc<Vec<T>>>,
    /// Rows of the first block that are gone.
    gone: usize,
    len: usize,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self {
            blocks: VecDeque::new(),
            gone: 0,
            len: 0,
        }
    }
}

impl<T> Rows<T> {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl<T: Copy> Rows<T> {
    pub(super) fn push_back(&mut self, row: T) {
        self.len += 1;
        if let Some(block) = self.blocks.back_mut().filter(|block| block.len() < BLOCK) {
            // A snapshot keeps its own copy.
            Arc::make_mut(block).push(row);
        } else {
            self.blocks.push_back(Arc::new(vec![row]));
        }
    }

    pub(super) fn front(&self) -> Option<T> {
        self.get(0)
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let row = self.front()?;
        self.len -= 1;
        self.gone += 1;
        if self.len == 0 {
            *self = Self::default();
        } else if self.gone == BLOCK {
            self.blocks.pop_front();
            self.gone = 0;
        }
        Some(row)
    }

    pub(super) fn get(&self, index: usize) -> Option<T> {
        let place = self.gone + index;
        let block = self.blocks.get(place / BLOCK)?;
        block.get(place % BLOCK).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        let rows = self.blocks.iter().flat_map(|block| block.iter().copied());
        rows.skip(self.gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_keep_their_order_and_a_snapshot_does_not_change() {
        let mut rows = Rows::default();
        for round in 0..5_usize {
            let first = rows.front().unwrap_or(0);
            let next = first + rows.len();
            for row in next..next + 3_000 {
                rows.push_back(row);
            }
            let (snapshot, len) = (rows.clone(), rows.len());
            for row in first..first + 2_000 {
                assert_eq!(rows.pop_front(), Some(row), "round {round}");
            }
            rows.push_back(next + 3_000);
            assert_eq!(rows.get(1), Some(first + 2_001));
            assert!(rows.iter().eq(first + 2_000..=next + 3_000));
            assert!(snapshot.iter().eq(first..first + len));
        }
        while rows.pop_front().is_some() {}
        assert!(rows.is_empty() && rows.blocks.is_empty());
    }
}
