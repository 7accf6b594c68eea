//! Corners of a queue that only an unlucky order reaches.

use super::super::{Loading, Piece, State};
use super::*;
use crate::embedded::checkpoint::load_block;
use crate::embedded::record::DeliveryOutcome;

const NOW: Timestamp = Timestamp::from_millis(1_000);

const fn position(offset: u32) -> Position {
    Position { segment: 1, offset }
}

fn arrival(key: Option<u64>) -> MessageRecord<'static> {
    MessageRecord {
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
fn a_due_message_is_not_delivered_before_it_is_durable() {
    let mut queue = QueueState::new(Settings::default());
    let later = Timestamp::from_millis(1_001);
    let delayed = MessageRecord {
        not_before: Some(later),
        ..arrival(None)
    };
    queue.arrive(1, &delayed, position(100), NOW);
    queue.tick(later, 0);
    assert!(lease(&mut queue, later, position(100)).is_empty());
    assert_eq!(lease(&mut queue, later, position(120)), [1]);
}

#[test]
fn a_message_being_moved_is_not_overtaken_by_its_key() {
    let mut queue = QueueState::new(Settings::default());
    queue.arrive(1, &arrival(Some(7)), position(100), NOW);
    queue.arrive(2, &arrival(Some(7)), position(110), NOW);
    assert_eq!(lease(&mut queue, NOW, position(200)), [1]);
    queue.settle(1, &DeliveryOutcome::Release, NOW);
    let place = BlobLocation {
        position: position(500),
        bytes: 10,
    };
    queue.relocate(1, place);
    assert!(lease(&mut queue, NOW, position(200)).is_empty());
    assert_eq!(lease(&mut queue, NOW, position(520)), [1]);
}

fn stats(queue: &QueueState, now: Timestamp) -> towpath_core::port::queue::Stats {
    queue.stats(&towpath_core::QueueName::new("jobs").unwrap(), now, 0)
}

#[test]
fn statistics_do_not_look_at_every_message() {
    let mut queue = QueueState::new(Settings::default());
    let delayed = MessageRecord {
        not_before: Some(Timestamp::from_millis(u64::MAX)),
        ..arrival(None)
    };
    for number in 1..=200_000 {
        queue.arrive(number, &delayed, position(100), NOW);
    }
    let began = std::time::Instant::now();
    for _ in 0..1_000 {
        let stats = stats(&queue, NOW);
        assert_eq!((stats.delayed, stats.consumers), (200_000, 0));
    }
    // Looking at each takes milliseconds a time.
    let elapsed = began.elapsed();
    assert!(elapsed < std::time::Duration::from_secs(1), "{elapsed:?}");
}

/// The queue as a checkpoint gives it back.
fn saved_and_read(queue: QueueState) -> QueueState {
    let name = towpath_core::QueueName::new("jobs").unwrap();
    let (mut state, mut block) = (State::default(), Vec::new());
    state.queues.insert(name.clone(), queue);
    let mut add = |piece: &Piece<'_>| {
        postcard::to_io(piece, &mut block).unwrap();
        Ok(())
    };
    state.snapshot().write(&mut add).unwrap();
    let mut loading = Loading::default();
    load_block(&block, &mut loading).unwrap();
    loading.finish().unwrap().queues.remove(&name).unwrap()
}

#[test]
fn the_oldest_age_is_that_of_a_redriven_message_wherever_it_stands() {
    let mut queue = QueueState::new(Settings::default());
    queue.arrive(1, &arrival(None), position(100), NOW);
    assert_eq!(lease(&mut queue, NOW, position(200)), [1]);
    let dead = DeliveryOutcome::Dead { reason: "x".into() };
    queue.settle(1, &dead, NOW);
    assert_eq!(stats(&queue, NOW).oldest_age, None);
    let later = Timestamp::from_millis(6_000);
    queue.arrive(2, &arrival(None), position(110), later);
    queue.redrive(3, &[1]);
    let age = |queue: &QueueState| stats(queue, later).oldest_age.map(|age| age.as_millis());
    assert_eq!(age(&queue), Some(5_000));
    let mut queue = saved_and_read(queue);
    assert_eq!(age(&queue), Some(5_000));
    assert_eq!(lease(&mut queue, later, position(200)), [2]);
    assert_eq!(lease(&mut queue, later, position(200)), [3]);
    assert_eq!(age(&queue), Some(5_000));
    queue.settle(3, &DeliveryOutcome::Ack, later);
    queue.tick(later, 0);
    assert_eq!(age(&queue), Some(0));
}

#[test]
fn consumers_are_counted_while_they_hold_or_ask() {
    let mut queue = QueueState::new(Settings::default());
    let one = ConsumerId::new("one").unwrap();
    for number in 1..=3 {
        queue.arrive(number, &arrival(None), position(100), NOW);
        lease(&mut queue, NOW, position(200));
    }
    assert_eq!(stats(&queue, NOW).consumers, 1);
    queue.settle(1, &DeliveryOutcome::Ack, NOW);
    // The leases of the others expire, and no consumer takes them.
    queue.tick(NOW, 60_000);
    assert_eq!(stats(&queue, NOW).consumers, 0);
    assert!(
        queue.holds(2, 1) || queue.holds(3, 1),
        "still theirs to settle"
    );
    assert_eq!(queue.disconnect(&one), 0, "none is leased");
    assert!(!queue.holds(2, 1) && !queue.holds(3, 1));
    queue.seen(&one, 60_000);
    let seen = queue.stats(&towpath_core::QueueName::new("jobs").unwrap(), NOW, 60_000);
    assert_eq!(seen.consumers, 1);
}

#[test]
fn waiting_messages_are_listed_in_steps() {
    let mut queue = QueueState::new(Settings::default());
    for number in 1..=10 {
        queue.arrive(number, &arrival(None), position(100), NOW);
    }
    assert_eq!(lease(&mut queue, NOW, position(200)), [1]);
    assert_eq!(lease(&mut queue, NOW, position(200)), [2]);
    queue.settle(1, &DeliveryOutcome::Release, NOW);
    assert_eq!(queue.waiting(0, 11, 3), [1, 3, 4]);
    assert_eq!(queue.waiting(5, 8, 10), [5, 6, 7]);
    assert!(queue.waiting(11, 11, 10).is_empty());
}

#[test]
fn dead_letters_with_one_id_are_selected_together() {
    use towpath_core::port::queue::Selection;
    let mut queue = QueueState::new(Settings::default());
    let again = arrival(None);
    for number in 1..=3 {
        queue.arrive(number, &again, position(100), NOW);
        assert_eq!(lease(&mut queue, NOW, position(200)), [number]);
        let dead = DeliveryOutcome::Dead { reason: "x".into() };
        queue.settle(number, &dead, NOW);
    }
    let ids = Selection::Ids(vec![again.id, MessageId::new(), again.id]);
    assert_eq!(queue.dead.select(&ids, 0, 3, 10), [1, 2, 3]);
    assert_eq!(queue.dead.select(&ids, 1, 3, 1), [2]);
    queue.drop_dead(&[2]);
    assert_eq!(queue.dead.select(&ids, 0, 3, 10), [1, 3]);
    assert_eq!(queue.dead.page(Some(again.id), 10).len(), 1);
}
