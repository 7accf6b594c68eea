//! Corners of a queue that only an unlucky order reaches.

use super::*;
use crate::embedded::record::Ending;

const NOW: Timestamp = Timestamp::from_millis(1_000);

const fn position(offset: u32) -> Position {
    Position { segment: 1, offset }
}

fn arrival(key: Option<u64>) -> Arrival<'static> {
    Arrival {
        id: MessageId::new(),
        blob_bytes: 10,
        key,
        dedup_id: None,
        not_before: None,
        expires: None,
    }
}

fn lease(queue: &mut QueueState, now: Timestamp, committed: Position) -> Vec<u64> {
    let leasing = Leasing {
        consumer: &ConsumerId::new("one").unwrap(),
        max: 1,
        deadline: 60_000,
        committed,
        now,
    };
    let leased = queue.lease(&mut 0, &leasing).leased;
    leased.iter().map(|leased| leased.entry.number).collect()
}

#[test]
fn what_falls_due_before_it_is_durable_is_not_handed_out() {
    let mut queue = QueueState::new(Settings::default());
    let later = Timestamp::from_millis(1_001);
    let delayed = Arrival {
        not_before: Some(later),
        ..arrival(None)
    };
    queue.arrive(1, &delayed, position(100), NOW);
    queue.tick(later, 0);
    assert!(lease(&mut queue, later, position(100)).is_empty());
    assert_eq!(lease(&mut queue, later, position(120)), [1]);
}

#[test]
fn what_is_being_moved_is_not_overtaken_by_its_key() {
    let mut queue = QueueState::new(Settings::default());
    queue.arrive(1, &arrival(Some(7)), position(100), NOW);
    queue.arrive(2, &arrival(Some(7)), position(110), NOW);
    assert_eq!(lease(&mut queue, NOW, position(200)), [1]);
    queue.settle(1, &Ending::Release, NOW);
    let place = Place {
        position: position(500),
        bytes: 10,
    };
    queue.relocate(1, place);
    assert!(lease(&mut queue, NOW, position(200)).is_empty());
    assert_eq!(lease(&mut queue, NOW, position(520)), [1]);
}
