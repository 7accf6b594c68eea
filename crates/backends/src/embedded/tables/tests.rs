//! Tables against a map, and every flipped bit of one.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::embedded::state::Content;

const NOW: Timestamp = Timestamp::from_millis(1_000);

fn slot(value: &[u8], until: Option<u64>) -> Slot {
    Slot {
        content: Content::Value(Bytes::copy_from_slice(value)),
        until: until.map(Timestamp::from_millis),
    }
}

fn all(tables: &Tables, from: &str) -> BTreeMap<String, Slot> {
    let memory = OrdMap::new();
    let mut merged = tables.merged(&memory, from).unwrap();
    let mut found = BTreeMap::new();
    while let Some((key, slot)) = merged.next().unwrap() {
        if slot.is_there(NOW) {
            found.insert(key, slot);
        }
    }
    found
}

#[test]
fn tables_are_one_map_whatever_was_written_when() {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = StdRng::seed_from_u64(7);
    let (mut tables, mut model) = (Tables::default(), BTreeMap::new());
    for round in 0..40 {
        let mut keys = OrdMap::new();
        for _ in 0..rng.random_range(1..300) {
            let key = format!("key {:04}", rng.random_range(0..2_000));
            let slot = match rng.random_range(0..10) {
                0..2 => Slot::GONE,
                // Expired.
                2 => slot(b"old", Some(999)),
                _ => slot(&vec![round; rng.random_range(0..200)], None),
            };
            keys.insert(key, slot);
        }
        let bytes = 100 * keys.len() as u64;
        tables = tables
            .take_in(folder.path(), &keys, bytes, NOW, None)
            .unwrap();
        model.extend(keys);
        let there = model.iter().filter(|(_, slot)| slot.is_there(NOW));
        let there: BTreeMap<_, _> = there
            .map(|(key, slot)| (key.clone(), slot.clone()))
            .collect();
        // As a start opens them.
        tables = Tables::open(folder.path(), &tables.named()).unwrap();
        assert_eq!(all(&tables, ""), there, "round {round}");
        for key in ["key 0000", "key 0777", "key 1999", "another"] {
            let found = tables.find(key).unwrap();
            let found = found.filter(|slot| slot.is_there(NOW));
            assert_eq!(found.as_ref(), there.get(key), "round {round}: {key}");
            let behind: BTreeMap<_, _> = there.range(key.to_owned()..).collect();
            assert!(all(&tables, key).iter().eq(behind), "round {round}: {key}");
        }
        let named = tables.named().iter().map(|named| named.number).collect();
        remove_others(folder.path(), &named).unwrap();
    }
    let count = tables.iter().count();
    let bytes: u64 = tables.iter().map(|table| table.named.bytes).sum();
    // Merged as they grow: few, and without much that was overwritten.
    assert!(count <= 6, "{count} tables");
    assert!(bytes < 2_000 * 250 * 2, "{bytes} bytes");
    assert_eq!(files(folder.path()).unwrap().count(), count);
}

#[test]
fn an_absent_key_reads_no_block_and_a_present_one_reads_one() {
    let folder = tempfile::tempdir().unwrap();
    let keys: OrdMap<String, Slot> = (0..10_000)
        .map(|number| (format!("order:{number:08}"), slot(&[b'x'; 300], None)))
        .collect();
    let tables = Tables::default()
        .take_in(folder.path(), &keys, 1, NOW, None)
        .unwrap();
    let absent = (0..1_000).filter(|number| tables.may_have(&format!("other:{number}")));
    assert!(absent.count() < 50);
    for number in [0, 1, 4_999, 9_999] {
        let found = tables.find(&format!("order:{number:08}")).unwrap();
        assert_eq!(found, Some(slot(&[b'x'; 300], None)), "{number}");
    }
    assert_eq!(tables.find("order:00000000x").unwrap(), None);
}

#[test]
fn every_flipped_bit_of_a_table_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let keys: OrdMap<String, Slot> = (0..60)
        .map(|number| (format!("{number:02}"), slot(&[number; 20], None)))
        .collect();
    let tables = Tables::default()
        .take_in(folder.path(), &keys, 1, NOW, None)
        .unwrap();
    let (named, path) = (tables.named(), tables.iter().next().unwrap().path.clone());
    assert_eq!(tables.faults(), [""; 0]);
    let whole = fs::read(&path).unwrap();
    for bit in 0..whole.len() * 8 {
        let mut bytes = whole.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bytes).unwrap();
        let noticed = match Tables::open(folder.path(), &named) {
            Ok(tables) => !tables.faults().is_empty(),
            Err(error) => error.kind() == ErrorKind::Corrupt,
        };
        assert!(noticed, "bit {bit}");
    }
    for length in [0, 23, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(Tables::open(folder.path(), &named).is_err(), "{length}");
    }
    fs::remove_file(&path).unwrap();
    assert!(Tables::open(folder.path(), &named).is_err());
}
