//! A Bloom filter: recognises most absent keys without reading a block.

use std::hash::Hasher;

use siphasher::sip128::{Hasher128, SipHasher13};

/// Ten bits a key and seven probes let one of a hundred absent keys through.
const BITS_PER_KEY: usize = 10;
const PROBES: u64 = 7;

/// A key, hashed once for all tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hashed(u64, u64);

impl Hashed {
    pub(super) fn new(key: &str) -> Self {
        let mut hasher = SipHasher13::new();
        hasher.write(key.as_bytes());
        let hash = hasher.finish128();
        Self(hash.h1, hash.h2)
    }
}

/// A Bloom filter.
#[derive(Debug)]
pub(super) struct Bloom(Box<[u8]>);

impl Bloom {
    /// For about this many keys.
    pub(super) fn new(keys: usize) -> Self {
        Self(vec![0; (keys * BITS_PER_KEY).div_ceil(8).max(8)].into())
    }

    /// The filter that has these bytes; `None` without any.
    pub(super) fn read(bytes: Box<[u8]>) -> Option<Self> {
        (!bytes.is_empty()).then_some(Self(bytes))
    }

    pub(super) const fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn add(&mut self, key: Hashed) {
        for (byte, bit) in self.places(key) {
            self.0[byte] |= bit;
        }
    }

    pub(super) fn may_have(&self, key: Hashed) -> bool {
        self.places(key).all(|(byte, bit)| self.0[byte] & bit != 0)
    }

    fn places(&self, Hashed(first, step): Hashed) -> impl Iterator<Item = (usize, u8)> + use<> {
        let bits = self.0.len() as u64 * 8;
        (0..PROBES).map(move |probe| {
            let bit = first.wrapping_add(probe.wrapping_mul(step)) % bits;
            ((bit / 8) as usize, 1 << (bit % 8))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_keys_are_found_and_few_others() {
        let mut bloom = Bloom::new(10_000);
        let key = |number: u32| Hashed::new(&format!("order:{number}"));
        (0..10_000).for_each(|number| bloom.add(key(number)));
        assert!((0..10_000).all(|number| bloom.may_have(key(number))));
        let wrong = (10_000..20_000).filter(|number| bloom.may_have(key(*number)));
        let wrong = wrong.count();
        assert!(wrong < 300, "{wrong} of 10,000");
    }
}
