//! A long list in order: new items at the end, old ones taken from the front.
//!
//! ```text
//! [ open ] [ packed ] [ packed ] … [ packed ] [ open ]
//!   front                                       back
//! ```
//!
//! Full blocks between the two ends are packed to a fourth of their size and never changed again, so a snapshot
//! shares them: it costs one counter for a thousand items, and stays valid while the list changes.
//! The checkpoint writes them as they are.

use std::collections::VecDeque;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::block::{Block, LiveSegments, Packed};
use super::pack::Item;

/// Items of a block. Looking one up in a packed block reads half of them.
const BLOCK: usize = 1024;

/// An emptied block keeps this much room.
const SPARE: usize = 64;

/// Blocks between the ends that may be open because an item of theirs was changed.
const CHANGED: usize = 4;

/// The list; see the module.
pub(in super::super) struct Line<T> {
    /// None is empty, and the first one is open.
    blocks: VecDeque<Block<T>>,
    len: usize,
    /// At most this many blocks between the ends are open.
    changed: usize,
}

/// The list as it was at a moment.
pub(in super::super) struct Snapshot<T>(Vec<Block<T>>);

impl<T> Default for Line<T> {
    fn default() -> Self {
        Self {
            blocks: VecDeque::new(),
            len: 0,
            changed: 0,
        }
    }
}

impl<T: Item> Line<T> {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds an item whose number is larger than those of all others.
    pub(super) fn push_back(&mut self, item: T) {
        self.len += 1;
        let count = self.blocks.len();
        if let Some(Block::Open(items)) = self.blocks.back_mut() {
            if items.len() < BLOCK {
                items.push_back(item);
                return;
            }
            if count > 1
                && let Some(full) = self.blocks.back_mut()
            {
                full.pack();
            }
        }
        self.blocks.push_back(Block::Open(VecDeque::from([item])));
    }

    /// Adds a packed block behind all others. False when it does not come behind them.
    pub(super) fn push_packed(&mut self, packed: Packed<T>) -> bool {
        if self.is_empty() {
            self.blocks.clear();
        }
        let last = self.blocks.back();
        if last.is_some_and(|last| last.last() >= packed.first) {
            return false;
        }
        self.len += packed.count;
        self.blocks.push_back(Block::Packed(Arc::new(packed)));
        if self.blocks.len() == 1 {
            self.open_front();
        }
        true
    }

    fn open_front(&mut self) {
        if let Some(front) = self.blocks.front_mut() {
            front.open();
        }
    }

    pub(super) fn front(&self) -> Option<&T> {
        match self.blocks.front()? {
            Block::Open(items) => items.front(),
            Block::Packed(_) => None,
        }
    }

    pub(super) fn pop_front(&mut self) -> Option<T> {
        let only = self.blocks.len() == 1;
        let items = self.blocks.front_mut()?.open();
        let item = items.pop_front()?;
        self.len -= 1;
        if items.is_empty() {
            if only && items.capacity() <= SPARE {
                return Some(item);
            }
            self.blocks.pop_front();
            self.open_front();
        }
        Some(item)
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Every item, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.blocks.iter().flat_map(Block::iter)
    }

    /// The items behind this number, in order.
    pub(super) fn behind(&self, number: u64) -> impl Iterator<Item = T> + '_ {
        let start = self.block_behind(number);
        let first = self.blocks.get(start);
        let rest = self.blocks.range((start + 1).min(self.blocks.len())..);
        first
            .into_iter()
            .flat_map(move |block| block.behind(number))
            .chain(rest.flat_map(Block::iter))
    }

    /// Number of items up to this number.
    pub(super) fn count_up_to(&self, number: u64) -> usize {
        let start = self.block_behind(number);
        let before: usize = self.blocks.range(..start).map(Block::len).sum();
        let inside = self
            .blocks
            .get(start)
            .map_or(0, |block| block.len() - block.behind(number).count());
        before + inside
    }

    /// The item at this index.
    pub(super) fn get(&self, index: usize) -> Option<T> {
        let mut left = index;
        for block in &self.blocks {
            if left < block.len() {
                return match block {
                    Block::Open(items) => items.get(left).copied(),
                    Block::Packed(packed) => packed.iter().nth(left),
                };
            }
            left -= block.len();
        }
        None
    }

    /// Whether there is an item of this number. Quick where no number of a block is missing.
    pub(super) fn has(&self, number: u64) -> bool {
        match self.blocks.get(self.block_with(number)) {
            Some(Block::Packed(packed)) if packed.first <= number => {
                let is_dense = packed.last - packed.first + 1 == packed.count as u64;
                is_dense || packed.iter().any(|item| item.number() == number)
            }
            Some(Block::Packed(_)) | None => false,
            Some(Block::Open(items)) => items.binary_search_by_key(&number, Item::number).is_ok(),
        }
    }

    /// The item of this number. Unpacks its block, so that its neighbours are quick to find.
    pub(super) fn find(&mut self, number: u64) -> Option<T> {
        let block = self.block_with(number);
        let items = self.open(block)?;
        let index = items.binary_search_by_key(&number, Item::number).ok()?;
        items.get(index).copied()
    }

    /// Changes the item of this number.
    pub(super) fn change(&mut self, number: u64, change: impl FnOnce(&mut T)) {
        let block = self.block_with(number);
        if let Some(items) = self.open(block)
            && let Ok(index) = items.binary_search_by_key(&number, Item::number)
            && let Some(item) = items.get_mut(index)
        {
            change(item);
        }
    }

    /// Takes out the item of this number.
    pub(super) fn remove(&mut self, number: u64) -> Option<T> {
        let block = self.block_with(number);
        let items = self.open(block)?;
        let index = items.binary_search_by_key(&number, Item::number).ok()?;
        let item = items.remove(index)?;
        let is_empty = items.is_empty();
        self.len -= 1;
        if is_empty {
            self.blocks.remove(block);
            self.open_front();
        }
        Some(item)
    }

    /// Takes out every item up to this number.
    pub(super) fn remove_up_to(&mut self, number: u64) {
        while self
            .blocks
            .front()
            .is_some_and(|block| block.last() <= number)
        {
            self.len -= self.blocks.pop_front().map_or(0, |block| block.len());
        }
        self.open_front();
        while self.front().is_some_and(|item| item.number() <= number) {
            self.pop_front();
        }
    }

    /// Adds the parts of the segments that its items need.
    pub(super) fn add_live(&self, live: &mut LiveSegments) {
        for block in &self.blocks {
            block.add_live(live);
        }
    }

    /// A snapshot; shares the packed blocks.
    pub(super) fn snapshot(&self) -> Snapshot<T> {
        Snapshot(self.blocks.iter().cloned().collect())
    }

    /// The first block with an item behind this number.
    fn block_behind(&self, number: u64) -> usize {
        self.blocks.partition_point(|block| block.last() <= number)
    }

    /// The block that has this number, if one does.
    fn block_with(&self, number: u64) -> usize {
        self.blocks.partition_point(|block| block.last() < number)
    }

    /// The items of a block, to be changed.
    fn open(&mut self, block: usize) -> Option<&mut VecDeque<T>> {
        if matches!(self.blocks.get(block)?, Block::Packed(_)) {
            if self.changed == CHANGED {
                self.pack();
            }
            self.changed += 1;
        }
        Some(self.blocks.get_mut(block)?.open())
    }

    /// Packs the blocks opened between the ends.
    fn pack(&mut self) {
        let last = self.blocks.len().saturating_sub(1);
        for block in self.blocks.iter_mut().take(last).skip(1) {
            block.pack();
        }
        self.changed = 0;
    }
}

impl<T: Item> Snapshot<T> {
    /// Approximate size in a checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = self.0.iter().map(|block| match block {
            Block::Open(items) => items.len() * 20,
            Block::Packed(packed) => packed.bytes().len(),
        });
        bytes.sum::<usize>() as u64
    }

    /// Adds the parts of the segments that its items need.
    pub(super) fn add_live(&self, live: &mut LiveSegments) {
        for block in &self.0 {
            block.add_live(live);
        }
    }

    /// Those items whose blobs are in a segment.
    pub(super) fn some_of(&self, segment: u32) -> impl Iterator<Item = T> + '_ {
        self.0
            .iter()
            .filter(move |block| block.has_some_of(segment))
            .flat_map(Block::iter)
            .filter(move |item| item.place().position.segment == segment)
    }

    /// The packed blocks, released one by one.
    pub(super) fn into_packed(self) -> impl Iterator<Item = Arc<Packed<T>>> {
        self.0
            .into_iter()
            .filter(|block| block.len() > 0)
            .map(|block| match block {
                Block::Open(items) => Arc::new(Packed::pack(items.iter())),
                Block::Packed(packed) => packed,
            })
    }
}

impl<T: Item + fmt::Debug> fmt::Debug for Line<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// From the sequence that checkpoints up to version 4 have.
impl<'de, T: Item + Deserialize<'de>> Deserialize<'de> for Line<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T>(PhantomData<T>);
        impl<'de, T: Item + Deserialize<'de>> Visitor<'de> for Items<T> {
            type Value = Line<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("items in order")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Line<T>, A::Error> {
                let mut line = Line::default();
                while let Some(item) = items.next_element::<T>()? {
                    line.push_back(item);
                }
                Ok(line)
            }
        }
        deserializer.deserialize_seq(Items(PhantomData))
    }
}
