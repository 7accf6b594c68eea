//! Dedup ids and what they stand for, until their window closes.
//!
//! An id is kept as a digest of 16 bytes: SipHash-2-4 with 128 bits of output under a secret of the store.
//! Without the secret a client cannot make two ids with one digest, and 2^64 of them are needed to meet such a pair.
//! The ids themselves are in the log, so that a replay under another secret gives the same answers.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;

use hashbrown::HashTable;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::ser::SerializeTuple;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use siphasher::sip128::SipHasher24;
use towpath_core::Timestamp;

/// Stands where formats before version 4 have a count of ids, which it cannot be.
const DIGESTS: u64 = u64::MAX;

type Digest = [u8; 16];

/// One id and what it was first used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Known<T> {
    digest: Digest,
    first: T,
    until: Timestamp,
}

/// What each id was first used for.
#[derive(Debug)]
pub(super) struct Dedup<T> {
    secret: (u64, u64),
    /// In the order in which they came, which is that of their windows while the window stays the same.
    known: VecDeque<Known<T>>,
    /// Low bits of the number of the newest entry of each digest.
    index: HashTable<u32>,
    /// The number of the first entry.
    start: u32,
}

impl<T> Default for Dedup<T> {
    fn default() -> Self {
        Self {
            secret: rand::random(),
            known: VecDeque::new(),
            index: HashTable::new(),
            start: 0,
        }
    }
}

/// A digest is random to everyone without the secret, so a part of it serves as the hash of the index.
fn hash(digest: &Digest) -> u64 {
    digest[..8]
        .iter()
        .fold(0, |hash, byte| hash << 8 | u64::from(*byte))
}

impl<T: Copy> Dedup<T> {
    fn digest(&self, id: &str) -> Digest {
        SipHasher24::new_with_keys(self.secret.0, self.secret.1)
            .hash(id.as_bytes())
            .as_bytes()
    }

    fn at(&self, number: u32) -> &Known<T> {
        &self.known[number.wrapping_sub(self.start) as usize]
    }

    /// What the id was first used for, if its window is still open.
    pub(super) fn first(&self, id: &str, now: Timestamp) -> Option<T> {
        if self.known.is_empty() {
            return None;
        }
        let digest = self.digest(id);
        let number = self
            .index
            .find(hash(&digest), |number| self.at(*number).digest == digest)?;
        let known = self.at(*number);
        (known.until > now).then_some(known.first)
    }

    pub(super) fn remember(&mut self, id: &str, first: T, until: Timestamp) {
        let digest = self.digest(id);
        let number = u32::try_from(self.known.len()).unwrap_or(u32::MAX);
        self.known.push_back(Known {
            digest,
            first,
            until,
        });
        self.point_at(self.start.wrapping_add(number));
    }

    /// Makes the index lead from an entry's digest to it.
    fn point_at(&mut self, number: u32) {
        let Self {
            known,
            index,
            start,
            ..
        } = self;
        let at = |number: u32| &known[number.wrapping_sub(*start) as usize].digest;
        let digest = *at(number);
        match index.find_mut(hash(&digest), |number| *at(*number) == digest) {
            Some(newest) => *newest = number,
            None => {
                index.insert_unique(hash(&digest), number, |number| hash(at(*number)));
            }
        }
    }

    /// Forgets the ids whose window has closed.
    pub(super) fn tick(&mut self, now: Timestamp) {
        let before = self.known.len();
        while let Some(Known { digest, .. }) = self
            .known
            .front()
            .copied()
            .filter(|known| known.until <= now)
        {
            let oldest = self.start;
            // The id may have been used again since its window closed.
            if let Ok(found) = self
                .index
                .find_entry(hash(&digest), |number| *number == oldest)
            {
                found.remove();
            }
            self.known.pop_front();
            self.start = self.start.wrapping_add(1);
        }
        if self.known.len() < before {
            self.shrink();
        }
    }

    /// Gives memory back once most of it is unused.
    fn shrink(&mut self) {
        let Self {
            known,
            index,
            start,
            ..
        } = self;
        if known.capacity() > 64 && known.len() < known.capacity() / 4 {
            let room = known.len() * 2;
            known.shrink_to(room);
            index.shrink_to(room, |number| {
                hash(&known[number.wrapping_sub(*start) as usize].digest)
            });
        }
    }
}

impl<T: Copy + Serialize> Serialize for Dedup<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut parts = serializer.serialize_tuple(3)?;
        parts.serialize_element(&DIGESTS)?;
        parts.serialize_element(&self.secret)?;
        parts.serialize_element(&self.known)?;
        parts.end()
    }
}

impl<'de, T: Copy + DeserializeOwned> Deserialize<'de> for Dedup<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // As many parts as the old format has, whose number only its start tells.
        deserializer.deserialize_tuple(usize::MAX, Parts(PhantomData))
    }
}

struct Parts<T>(PhantomData<T>);

impl<'de, T: Copy + DeserializeOwned> Visitor<'de> for Parts<T> {
    type Value = Dedup<T>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("dedup ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Dedup<T>, A::Error> {
        let mut dedup = Dedup::default();
        let count: u64 = next(&mut parts)?;
        if count == DIGESTS {
            dedup.secret = next(&mut parts)?;
            dedup.known = next(&mut parts)?;
            dedup.index = HashTable::with_capacity(dedup.known.len());
            for number in 0..u32::try_from(dedup.known.len()).unwrap_or(u32::MAX) {
                dedup.point_at(number);
            }
            return Ok(dedup);
        }
        // Until version 3: a map of the ids, and their order.
        let mut known = BTreeMap::new();
        for _ in 0..count {
            let (id, first): (String, (T, Timestamp)) = next(&mut parts)?;
            known.insert(id, first);
        }
        let order: VecDeque<(Timestamp, String)> = next(&mut parts)?;
        for (until, id) in order {
            if let Some((first, _)) = known.get(&id).filter(|(_, newest)| *newest == until) {
                dedup.remember(&id, *first, until);
            }
        }
        Ok(dedup)
    }
}

fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(parts: &mut A) -> Result<T, A::Error> {
    let part = parts.next_element()?;
    part.ok_or_else(|| A::Error::custom("dedup ids end early"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    const fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    /// The layout until version 3.
    #[derive(Serialize)]
    struct Strings {
        known: HashMap<String, (u64, Timestamp)>,
        order: VecDeque<(Timestamp, String)>,
    }

    #[test]
    fn ids_are_known_until_their_window_closes() {
        let mut dedup = Dedup::default();
        for number in 0..1_000 {
            dedup.remember(&format!("id {number}"), number, at(10 + number));
        }
        assert_eq!(dedup.first("id 500", at(509)), Some(500));
        assert_eq!(dedup.first("id 500", at(510)), None);
        assert_eq!(dedup.first("id 1000", at(0)), None);
        dedup.tick(at(509));
        assert_eq!(dedup.known.len(), 500);
        assert_eq!(dedup.index.len(), 500);
        assert_eq!(dedup.first("id 999", at(509)), Some(999));
        dedup.tick(at(2_000));
        assert!(dedup.known.is_empty() && dedup.index.is_empty());
        assert!(dedup.known.capacity() <= 64);
    }

    #[test]
    fn an_id_that_is_used_again_stands_for_its_last_use() {
        let mut dedup = Dedup::default();
        dedup.remember("one", 1, at(10));
        dedup.remember("two", 2, at(30));
        dedup.remember("one", 3, at(40));
        assert_eq!(dedup.first("one", at(15)), Some(3));
        dedup.tick(at(30));
        assert_eq!(dedup.first("one", at(30)), Some(3));
        assert_eq!(dedup.first("two", at(30)), None);
    }

    #[test]
    fn digests_differ_between_stores() {
        let digest = |dedup: &Dedup<u64>| dedup.digest("one");
        assert_ne!(digest(&Dedup::default()), digest(&Dedup::default()));
    }

    #[test]
    fn a_checkpoint_of_this_and_of_the_old_layout_reads_back() {
        let mut dedup = Dedup::default();
        dedup.remember("one", 1_u64, at(10));
        dedup.remember("two", 2, at(20));
        let bytes = postcard::to_extend(&(&dedup, "behind"), Vec::new()).unwrap();
        let (read, behind): (Dedup<u64>, String) = postcard::from_bytes(&bytes).unwrap();
        assert_eq!((read.secret, &read.known), (dedup.secret, &dedup.known));
        assert_eq!(behind, "behind");
        assert_eq!(read.first("two", at(5)), Some(2));

        let known = HashMap::from([
            ("one".to_owned(), (1, at(10))),
            ("two".to_owned(), (4, at(40))),
        ]);
        let order = [(at(10), "one"), (at(20), "two"), (at(40), "two")];
        let order = order.map(|(until, id)| (until, id.to_owned())).into();
        let bytes = postcard::to_extend(&(Strings { known, order }, "behind"), Vec::new()).unwrap();
        let (read, behind): (Dedup<u64>, String) = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(behind, "behind");
        assert_eq!((read.known.len(), read.first("one", at(5))), (2, Some(1)));
        assert_eq!(read.first("two", at(39)), Some(4));
    }
}
