//! A line against a plain vector, and its snapshots.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use towpath_core::{MessageId, Timestamp};

use super::block::{LiveSegments, Packed};
use super::line::{Line, Snapshot};
use super::pack::Item;
use super::queue::{BlobLocation, Entry};
use crate::embedded::log::Position;

fn entry(rng: &mut StdRng, number: u64) -> Entry {
    let odd = |rng: &mut StdRng| rng.random_bool(0.05).then(|| rng.random::<u64>().max(1));
    Entry {
        number,
        id: MessageId::new(),
        place: place(rng),
        attempts: odd(rng).map_or(0, |value| value as u32),
        key: odd(rng).and_then(|value| value.try_into().ok()),
        expires: odd(rng).and_then(|value| value.try_into().ok()),
        enqueued_at: Timestamp::from_millis(rng.random_range(0..1 << 42)),
    }
}

fn place(rng: &mut StdRng) -> BlobLocation {
    let segment = rng.random_range(1..5);
    let (offset, bytes) = (rng.random_range(64..1 << 24), rng.random_range(30..300));
    BlobLocation {
        position: Position { segment, offset },
        bytes,
    }
}

/// The line as read back from a checkpoint.
fn read(snapshot: Snapshot<Entry>) -> Vec<Entry> {
    let mut line = Line::default();
    for block in snapshot.into_packed() {
        assert!(line.push_packed(Packed::read(block.bytes()).unwrap()));
    }
    line.iter().collect()
}

#[test]
fn a_line_behaves_like_a_vector_and_its_snapshots_stay() {
    let mut rng = StdRng::seed_from_u64(7);
    let (mut line, mut model, mut next) = (Line::default(), Vec::<Entry>::new(), 1);
    for round in 0..60 {
        for _ in 0..rng.random_range(0..2_500) {
            next += rng.random_range(1..3);
            let entry = entry(&mut rng, next);
            line.push_back(entry);
            model.push(entry);
        }
        let (snapshot, then) = (line.snapshot(), model.clone());
        for _ in 0..rng.random_range(0..2_500_usize).min(model.len()) {
            assert_eq!(line.pop_front(), Some(model.remove(0)));
        }
        for _ in 0..30 {
            if model.is_empty() {
                break;
            }
            let index = rng.random_range(0..model.len());
            let number = model[index].number;
            assert!(line.has(number), "round {round}");
            assert_eq!(line.get(index), Some(model[index]), "round {round}");
            assert_eq!(line.count_up_to(number), index + 1, "round {round}");
            assert!(
                line.behind(number)
                    .take(9)
                    .eq(model[index + 1..].iter().copied().take(9))
            );
            if rng.random_bool(0.5) {
                let place = place(&mut rng);
                line.change(number, |entry| entry.place = place);
                model[index].place = place;
                assert_eq!(line.find(number), Some(model[index]));
            } else {
                assert_eq!(line.remove(number), Some(model.remove(index)));
                assert!(!line.has(number));
                assert_eq!(line.find(number), None);
            }
        }
        if rng.random_bool(0.2) && !model.is_empty() {
            let index = rng.random_range(0..model.len());
            line.remove_up_to(model[index].number);
            model.drain(..=index);
        }
        assert_eq!(line.len(), model.len());
        assert_eq!(line.front(), model.first());
        assert!(line.iter().eq(model.iter().copied()), "round {round}");
        let (mut live, mut expected) = (LiveSegments::new(), LiveSegments::new());
        line.add_live(&mut live);
        for BlobLocation { position, bytes } in model.iter().map(|entry| entry.place) {
            let live = expected.entry(position.segment).or_default();
            live.bytes += u64::from(bytes);
            live.end = live.end.max(position.offset + bytes);
        }
        assert_eq!(live, expected, "round {round}");
        assert_eq!(read(snapshot), then, "round {round}");
    }
}

#[test]
fn messages_of_a_batch_take_few_bytes() {
    let mut line = Line::default();
    for number in 1..=100_000_u64 {
        let (batch, within) = (number / 1_000, (number % 1_000) as u32);
        line.push_back(Entry {
            number,
            id: MessageId::new(),
            place: BlobLocation {
                position: Position {
                    segment: batch as u32,
                    offset: 1_000 + within * 140,
                },
                bytes: 140,
            },
            enqueued_at: Timestamp::from_millis(1_700_000_000_000 + batch),
            ..Entry::ZERO
        });
    }
    let bytes: usize = line
        .snapshot()
        .into_packed()
        .map(|block| block.bytes().len())
        .sum();
    assert!(bytes < 100_000 * 20, "{bytes} bytes for 100,000 messages");
}

#[test]
fn bytes_of_another_form_than_a_block_are_refused() {
    let mut rng = StdRng::seed_from_u64(8);
    let mut line = Line::default();
    for number in 1..50 {
        line.push_back(entry(&mut rng, number));
    }
    let block = line.snapshot().into_packed().next().unwrap();
    assert!(Packed::<Entry>::read(&[]).is_none());
    for cut in 1..block.bytes().len() {
        if let Some(packed) = Packed::<Entry>::read(&block.bytes()[..cut]) {
            let mut shorter = Line::default();
            assert!(shorter.push_packed(packed));
            assert!(shorter.len() < line.len());
            assert!(
                line.iter()
                    .zip(shorter.iter())
                    .all(|(one, other)| one == other)
            );
        }
    }
    // For any other bytes: no panic, and the items read are in order.
    for _ in 0..20_000 {
        let mut bytes = block.bytes().to_vec();
        for _ in 0..3 {
            let index = rng.random_range(0..bytes.len());
            bytes[index] = rng.random();
        }
        if let Some(packed) = Packed::<Entry>::read(&bytes) {
            let mut line = Line::default();
            assert!(line.push_packed(packed));
            assert!(line.iter().is_sorted_by_key(|entry| entry.number));
        }
    }
}
