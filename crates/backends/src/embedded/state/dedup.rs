//! Dedup ids and their messages, until their window closes.
//!
//! An id is kept as a digest of 16 bytes: SipHash-2-4 with 128 bits of output under a secret of the store.
//! Without the secret a client cannot make two ids with one digest, and 2^64 of them are needed to meet such a pair.
//! The ids themselves are in the log, so that a replay under another secret gives the same answers.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::marker::PhantomData;

use hashbrown::HashTable;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use siphasher::sip128::SipHasher24;
use towpath_core::Timestamp;

use super::AT_ONCE;
use super::rows::Rows;

/// Stands in version 4 where the formats before it have a count of ids, which it cannot be.
const DIGESTS: u64 = u64::MAX;

type Digest = [u8; 16];

/// The key of the digests.
pub(super) type Secret = (u64, u64);

/// A table grows in one step that looks at every entry, and a large state has many tables.
const TABLES: usize = 256;
const ONE_TABLE: usize = 8_192;

/// One id and the message that first used it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in super::super) struct DedupEntry<T> {
    digest: Digest,
    first: T,
    until: Timestamp,
}

/// The first use of each id.
#[derive(Debug)]
pub(super) struct Dedup<T> {
    secret: Secret,
    /// In the order in which they came, which is that of their windows while the window stays the same.
    known: Rows<DedupEntry<T>>,
    index: Index,
    /// The number of the first entry.
    start: u32,
}

/// Low bits of the number of the newest entry of each digest.
#[derive(Debug)]
struct Index(Vec<HashTable<u32>>);

/// The ids as they were at a moment.
pub(super) struct Snapshot<T> {
    pub(super) secret: Secret,
    pub(super) known: Rows<DedupEntry<T>>,
}

impl<T> Snapshot<T> {
    /// Approximate size in a checkpoint.
    pub(super) const fn bytes(&self) -> u64 {
        40 * self.known.len() as u64
    }
}

impl Default for Index {
    fn default() -> Self {
        Self(vec![HashTable::new()])
    }
}

impl Index {
    fn table(&mut self, hash: u64) -> &mut HashTable<u32> {
        let table = (hash >> 40) as usize % self.0.len();
        &mut self.0[table]
    }

    fn find(&self, hash: u64, is_it: impl FnMut(&u32) -> bool) -> Option<u32> {
        let table = (hash >> 40) as usize % self.0.len();
        self.0[table].find(hash, is_it).copied()
    }

    /// Adds a number that is not there.
    fn insert(&mut self, hash: u64, number: u32, hash_of: impl Fn(&u32) -> u64) {
        if self.0.len() == 1 && self.0[0].len() == ONE_TABLE {
            let numbers: Vec<u32> = self.0[0].iter().copied().collect();
            self.0 = std::iter::repeat_with(HashTable::new)
                .take(TABLES)
                .collect();
            for number in numbers {
                let hash = hash_of(&number);
                self.table(hash).insert_unique(hash, number, &hash_of);
            }
        }
        self.table(hash).insert_unique(hash, number, hash_of);
    }

    /// Gives memory back once most of it is unused.
    fn shrink(&mut self, hash: u64, hash_of: impl Fn(&u32) -> u64) {
        let table = self.table(hash);
        if table.capacity() > 64 && table.len() < table.capacity() / 8 {
            table.shrink_to(table.len() * 2, hash_of);
        }
    }
}

impl<T> Default for Dedup<T> {
    fn default() -> Self {
        Self {
            secret: rand::random(),
            known: Rows::default(),
            index: Index::default(),
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

    pub(super) fn snapshot(&self) -> Snapshot<T> {
        Snapshot {
            secret: self.secret,
            known: self.known.clone(),
        }
    }

    /// Takes over the secret of a checkpoint, before its ids.
    pub(super) const fn keep_secret(&mut self, secret: Secret) {
        self.secret = secret;
    }

    /// Keeps an id of a checkpoint.
    pub(super) fn keep(&mut self, known: DedupEntry<T>) {
        self.known.push_back(known);
        self.point_at_last();
    }

    /// The first use of the id, if its window is still open.
    pub(super) fn first(&self, id: &str, now: Timestamp) -> Option<T> {
        if self.known.is_empty() {
            return None;
        }
        let digest = self.digest(id);
        let at = |number: u32| self.known.get(number.wrapping_sub(self.start) as usize);
        let is_it = |number: &u32| at(*number).is_some_and(|known| known.digest == digest);
        let known = at(self.index.find(hash(&digest), is_it)?)?;
        (known.until > now).then_some(known.first)
    }

    pub(super) fn remember(&mut self, id: &str, first: T, until: Timestamp) {
        let digest = self.digest(id);
        self.keep(DedupEntry {
            digest,
            first,
            until,
        });
    }

    /// Makes the index lead from the newest entry's digest to it.
    fn point_at_last(&mut self) {
        let Self {
            known,
            index,
            start,
            ..
        } = self;
        let digest_of = |number: u32| {
            known
                .get(number.wrapping_sub(*start) as usize)
                .map(|known| known.digest)
        };
        let last = start.wrapping_add(low_bits(known.len() - 1));
        let Some(digest) = digest_of(last) else {
            return;
        };
        let is_it = |number: &u32| digest_of(*number) == Some(digest);
        match index.table(hash(&digest)).find_mut(hash(&digest), is_it) {
            Some(newest) => *newest = last,
            None => index.insert(hash(&digest), last, |number| {
                digest_of(*number).map_or(0, |digest| hash(&digest))
            }),
        }
    }

    /// Forgets some of the ids whose window has closed. Whether there are more.
    pub(super) fn tick(&mut self, now: Timestamp) -> bool {
        for _ in 0..AT_ONCE {
            let closed = self.known.front().filter(|known| known.until <= now);
            let Some(DedupEntry { digest, .. }) = closed else {
                return false;
            };
            let (oldest, hash_of_it) = (self.start, hash(&digest));
            // The id may have been used again since its window closed.
            let table = self.index.table(hash_of_it);
            if let Ok(found) = table.find_entry(hash_of_it, |number| *number == oldest) {
                found.remove();
            }
            self.known.pop_front();
            self.start = self.start.wrapping_add(1);
            let Self {
                known,
                index,
                start,
                ..
            } = self;
            index.shrink(hash_of_it, |number| {
                let known = known.get(number.wrapping_sub(*start) as usize);
                known.map_or(0, |known| hash(&known.digest))
            });
        }
        true
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the index keeps low bits")]
const fn low_bits(number: usize) -> u32 {
    number as u32
}

impl<'de, T: Copy + DeserializeOwned> Deserialize<'de> for Dedup<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The old format has its number of parts at its start only.
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
            let known: VecDeque<DedupEntry<T>> = next(&mut parts)?;
            known.into_iter().for_each(|known| dedup.keep(known));
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
        assert_eq!(dedup.index.0.iter().map(HashTable::len).sum::<usize>(), 500);
        assert_eq!(dedup.first("id 999", at(509)), Some(999));
        dedup.tick(at(2_000));
        assert!(dedup.known.is_empty() && dedup.index.0.iter().all(HashTable::is_empty));
        assert!(dedup.index.0.iter().all(|table| table.capacity() <= 64));
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
    fn checkpoints_of_versions_3_and_4_read_back() {
        let mut dedup = Dedup::default();
        dedup.remember("one", 1_u64, at(10));
        dedup.remember("two", 2, at(20));
        let known: VecDeque<DedupEntry<u64>> = dedup.known.iter().collect();
        let bytes = postcard::to_extend(&(DIGESTS, dedup.secret, known, "behind"), Vec::new());
        let (read, behind): (Dedup<u64>, String) = postcard::from_bytes(&bytes.unwrap()).unwrap();
        assert_eq!(read.secret, dedup.secret);
        assert!(read.known.iter().eq(dedup.known.iter()));
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
