//! A block of a [`super::line::Line`]: open to be changed, or packed.

use std::collections::{BTreeMap, VecDeque};
use std::marker::PhantomData;
use std::sync::Arc;

use super::pack::{Item, Packing, Unpacking};
use super::queue::BlobLocation;

#[derive(Clone)]
pub(super) enum Block<T> {
    Open(VecDeque<T>),
    Packed(Arc<Packed<T>>),
}

/// The part of a segment that messages need.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Live {
    /// Bytes of their blobs.
    pub(in super::super) bytes: u64,
    /// Where the last of them ends.
    pub(in super::super) end: u32,
}

/// [`Live`] by segment.
pub(in super::super) type LiveSegments = BTreeMap<u32, Live>;

impl Live {
    pub(super) fn add(&mut self, place: BlobLocation) {
        self.bytes += u64::from(place.bytes);
        self.end = self
            .end
            .max(place.position.offset.saturating_add(place.bytes));
    }

    fn add_all(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.end = self.end.max(other.end);
    }
}

/// A block that is not changed any more.
pub(super) struct Packed<T> {
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) count: usize,
    live: Vec<(u32, Live)>,
    bytes: Box<[u8]>,
    item: PhantomData<fn() -> T>,
}

impl<T: Item> Packed<T> {
    pub(super) fn pack<'a>(items: impl Iterator<Item = &'a T>) -> Self {
        let mut packing = Packing::default();
        let (mut before, mut live, mut count) = (T::ZERO, Vec::new(), 0);
        let (mut first, mut last) = (0, 0);
        for item in items {
            item.pack(&before, &mut packing);
            add_live(&mut live, item);
            if count == 0 {
                first = item.number();
            }
            last = item.number();
            before = *item;
            count += 1;
        }
        live.shrink_to_fit();
        Self {
            first,
            last,
            count,
            live,
            bytes: packing.finish(),
            item: PhantomData,
        }
    }

    /// The block in these bytes; `None` when they are none, or not in order.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut unpacking = Unpacking::new(bytes);
        let (mut before, mut live, mut count, mut first) = (T::ZERO, Vec::new(), 0, 0);
        while !unpacking.is_empty() {
            let item = T::unpack(&before, &mut unpacking)?;
            if count == 0 {
                first = item.number();
            } else if item.number() <= before.number() {
                return None;
            }
            add_live(&mut live, &item);
            before = item;
            count += 1;
        }
        live.shrink_to_fit();
        (count > 0).then(|| Self {
            first,
            last: before.number(),
            count,
            live,
            bytes: bytes.into(),
            item: PhantomData,
        })
    }

    /// The block in these bytes of a checkpoint up to version 6.
    pub(super) fn read_version_6(bytes: &[u8]) -> Option<Self> {
        let (mut unpacking, mut items) = (Unpacking::new(bytes), Vec::<T>::new());
        while !unpacking.is_empty() {
            let before = items.last().copied();
            let item = T::unpack_version_6(before.as_ref().unwrap_or(&T::ZERO), &mut unpacking)?;
            if before.is_some_and(|before| item.number() <= before.number()) {
                return None;
            }
            items.push(item);
        }
        (!items.is_empty()).then(|| Self::pack(items.iter()))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        let (mut unpacking, mut before) = (Unpacking::new(&self.bytes), T::ZERO);
        std::iter::from_fn(move || {
            if unpacking.is_empty() {
                return None;
            }
            before = T::unpack(&before, &mut unpacking)?;
            Some(before)
        })
    }
}

fn add_live<T: Item>(live: &mut Vec<(u32, Live)>, item: &T) {
    let place = item.place();
    let segment = place.position.segment;
    if live.last().is_none_or(|(last, _)| *last != segment)
        && let Some(known) = live.iter().position(|(known, _)| *known == segment)
    {
        // The last one is looked at first.
        let last = live.len() - 1;
        live.swap(known, last);
    }
    match live.last_mut().filter(|(last, _)| *last == segment) {
        Some((_, sum)) => sum.add(place),
        None => {
            let mut sum = Live::default();
            sum.add(place);
            live.push((segment, sum));
        }
    }
}

impl<T: Item> Block<T> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Open(items) => items.len(),
            Self::Packed(packed) => packed.count,
        }
    }

    /// The number of the last item; blocks are not empty.
    pub(super) fn last(&self) -> u64 {
        match self {
            Self::Open(items) => items.back().map_or(0, Item::number),
            Self::Packed(packed) => packed.last,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = T> + '_ {
        let (open, packed) = match self {
            Self::Open(items) => (Some(items.iter().copied()), None),
            Self::Packed(packed) => (None, Some(packed.iter())),
        };
        open.into_iter()
            .flatten()
            .chain(packed.into_iter().flatten())
    }

    /// The items from the first one behind `number`.
    pub(super) fn behind(&self, number: u64) -> impl Iterator<Item = T> + '_ {
        let (open, packed) = match self {
            Self::Open(items) => {
                let start = items.partition_point(|item| item.number() <= number);
                (Some(items.range(start..).copied()), None)
            }
            Self::Packed(packed) => (
                None,
                Some(
                    packed
                        .iter()
                        .skip_while(move |item| item.number() <= number),
                ),
            ),
        };
        open.into_iter()
            .flatten()
            .chain(packed.into_iter().flatten())
    }

    pub(super) fn add_live(&self, live: &mut LiveSegments) {
        match self {
            Self::Packed(packed) => {
                for (segment, sum) in &packed.live {
                    live.entry(*segment).or_default().add_all(*sum);
                }
            }
            Self::Open(items) => {
                for item in items {
                    let place = item.place();
                    live.entry(place.position.segment).or_default().add(place);
                }
            }
        }
    }

    pub(super) fn has_some_of(&self, segment: u32) -> bool {
        match self {
            Self::Packed(packed) => packed.live.iter().any(|(known, _)| *known == segment),
            Self::Open(_) => true,
        }
    }

    /// The items, to be changed.
    pub(super) fn open(&mut self) -> &mut VecDeque<T> {
        if let Self::Packed(packed) = self {
            *self = Self::Open(packed.iter().collect());
        }
        match self {
            Self::Open(items) => items,
            Self::Packed(_) => unreachable!("opened above"),
        }
    }

    pub(super) fn pack(&mut self) {
        if let Self::Open(items) = self {
            *self = Self::Packed(Arc::new(Packed::pack(items.iter())));
        }
    }
}
