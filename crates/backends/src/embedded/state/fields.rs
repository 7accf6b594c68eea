//! The fields of a hash. A few small ones are one piece of memory, not a map with an allocation for each.

use std::collections::BTreeMap;

use bytes::Bytes;
use imbl::OrdMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Fields of together at most this many bytes are packed; changing one writes all of them.
const PACKED_BYTES: usize = 1024;

/// Fields by name.
#[derive(Clone)]
pub(in super::super) struct Fields(Kept);

#[derive(Clone)]
enum Kept {
    /// Pairs of name and value, postcard, by name.
    Packed(Box<[u8]>),
    Map(OrdMap<String, Bytes>),
}

impl Fields {
    /// All of them, by name.
    pub(in super::super) fn to_map(&self) -> BTreeMap<String, Bytes> {
        match &self.0 {
            Kept::Map(map) => {
                let fields = map.iter();
                fields
                    .map(|(field, value)| (field.clone(), value.clone()))
                    .collect()
            }
            Kept::Packed(bytes) => unpack(bytes),
        }
    }

    /// Memory of a few small fields.
    pub(super) const fn packed_bytes(&self) -> Option<usize> {
        match &self.0 {
            Kept::Map(_) => None,
            Kept::Packed(bytes) => Some(bytes.len()),
        }
    }

    /// Sets fields, with bytes of their own.
    pub(super) fn set<'a>(&mut self, fields: impl Iterator<Item = (&'a String, &'a Bytes)>) {
        let own = fields.map(|(field, value)| (field.clone(), Bytes::copy_from_slice(value)));
        match &mut self.0 {
            Kept::Map(map) => map.extend(own),
            Kept::Packed(bytes) => {
                let mut map = unpack(bytes);
                map.extend(own);
                *self = map.into();
            }
        }
    }
}

fn unpack(mut bytes: &[u8]) -> BTreeMap<String, Bytes> {
    let mut map = BTreeMap::new();
    while !bytes.is_empty() {
        let ((field, value), rest): ((&str, &[u8]), _) =
            postcard::take_from_bytes(bytes).expect("this module packed it");
        map.insert(field.to_owned(), Bytes::copy_from_slice(value));
        bytes = rest;
    }
    map
}

impl From<BTreeMap<String, Bytes>> for Fields {
    fn from(map: BTreeMap<String, Bytes>) -> Self {
        let bytes: usize = map
            .iter()
            .map(|(field, value)| field.len() + value.len())
            .sum();
        if bytes > PACKED_BYTES {
            return Self(Kept::Map(map.into_iter().collect()));
        }
        let mut packed = Vec::new();
        for (field, value) in &map {
            packed = postcard::to_extend(&(field, &**value), packed)
                .expect("texts and bytes can be encoded");
        }
        Self(Kept::Packed(packed.into_boxed_slice()))
    }
}

impl Default for Fields {
    fn default() -> Self {
        Self(Kept::Packed(Box::default()))
    }
}

impl std::fmt::Debug for Fields {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.to_map().fmt(f)
    }
}

impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            // In order, so the same fields are the same bytes.
            (Kept::Packed(one), Kept::Packed(other)) => one == other,
            _ => self.to_map() == other.to_map(),
        }
    }
}

impl Eq for Fields {}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Kept::Map(map) => map.serialize(serializer),
            Kept::Packed(bytes) => unpack(bytes).serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        BTreeMap::deserialize(deserializer).map(Self::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_and_many_fields_are_the_same_map() {
        let mut fields = Fields::default();
        let mut map = BTreeMap::new();
        for number in 0..100_u8 {
            let (field, value) = (format!("field {number}"), Bytes::from(vec![number; 30]));
            fields.set([(&field, &value)].into_iter());
            map.insert(field, value);
            assert_eq!(fields.to_map(), map);
            let packed = matches!(fields.0, Kept::Packed(_));
            assert_eq!(packed, number < 27, "{number}");
            let bytes = postcard::to_extend(&fields, Vec::new()).unwrap();
            assert_eq!(bytes, postcard::to_extend(&map, Vec::new()).unwrap());
            let read: Fields = postcard::from_bytes(&bytes).unwrap();
            assert_eq!(read, fields);
        }
        let field = "field 0".to_owned();
        fields.set([(&field, &Bytes::from_static(b"new"))].into_iter());
        assert_eq!(fields.to_map()["field 0"], "new");
    }
}
