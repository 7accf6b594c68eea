//! The cost of a snapshot, and that a state is the same after it was written and read.

use std::time::{Duration, Instant};

use bytes::Bytes;
use towpath_core::{GroupName, MessageId, QueueName, StreamName, Timestamp, limiter};

use super::{Content, GroupState, Loading, Slot, State};
use crate::embedded::checkpoint::load_block;
use crate::embedded::log::Position;
use crate::embedded::record::{DeliveryOutcome, MessageRecord, Record};

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

fn arrivals(first: u64, count: u64) -> Vec<MessageRecord<'static>> {
    (first..first + count)
        .map(|number| MessageRecord {
            id: MessageId::new(),
            blob_bytes: 140,
            key: None,
            dedup_id: Some(format!("id {number}").into()),
            not_before: (number % 10 == 0).then(|| Timestamp::from_millis(u64::MAX / 2)),
            expires: None,
        })
        .collect()
}

/// A state with this many thousand messages, entries, ids, keys and limits.
fn state(thousands: u64) -> State {
    let (queue, stream) = (
        QueueName::new("jobs").unwrap(),
        StreamName::new("lines").unwrap(),
    );
    let group = GroupName::new("readers").unwrap();
    let mut state = State::default();
    let readers = GroupState::behind(0);
    state.stream(&stream).groups.insert(group.clone(), readers);
    for thousand in 0..thousands {
        let first = 1 + thousand * 1_000;
        let place = Position {
            segment: 1 + thousand as u32,
            offset: 64,
        };
        state.apply(
            &Record::EnqueuePacked {
                queue: queue.clone(),
                first,
                at: NOW,
                messages: arrivals(first, 1_000),
            },
            place,
        );
        state.apply(
            &Record::AppendPacked {
                stream: stream.clone(),
                first,
                at: NOW,
                entries: arrivals(first, 1_000),
            },
            place,
        );
        let dead = |number| {
            (
                number,
                DeliveryOutcome::Dead {
                    reason: "poison".into(),
                },
            )
        };
        state.apply(
            &Record::Settle {
                queue: queue.clone(),
                at: NOW,
                settled: (first..first + 100).map(dead).collect(),
            },
            place,
        );
        let changes = (first..first + 1_000).map(|number| {
            let content = Content::Value(Bytes::from_static(b"value"));
            let until = Some(NOW.after(Duration::from_secs(number)));
            (format!("key {number}"), Some(Slot { content, until }))
        });
        let changes = changes.collect();
        state.apply(&Record::Kv { changes }, place);
        let limits = (first..first + 1_000).map(|number| {
            let state = limiter::State::TokenBucket {
                missing: 1,
                period_ms: 1_000,
                at_ms: number,
            };
            (format!("limit {number}"), state, u64::MAX - number)
        });
        let changes = limits.collect();
        state.apply(&Record::Limit { changes }, place);
        // Every second entry, so that the group does not advance.
        let numbers: Vec<u64> = (first..first + 1_000)
            .filter(|number| number % 2 == 0)
            .collect();
        let (stream, group) = (stream.clone(), group.clone());
        let finish = Record::Finish {
            stream,
            group,
            numbers,
        };
        state.apply(&finish, place);
    }
    state
}

/// The state in blocks, as a checkpoint has them.
fn written(state: &State) -> Vec<Vec<u8>> {
    let mut blocks = vec![Vec::new()];
    let mut add = |piece: &super::Piece<'_>| {
        let block = blocks.last_mut().expect("there is one");
        postcard::to_io(piece, &mut *block).unwrap();
        if block.len() > 50_000 {
            blocks.push(Vec::new());
        }
        Ok(())
    };
    state.snapshot().write(&mut add).unwrap();
    blocks
}

fn read(blocks: &[Vec<u8>]) -> State {
    let mut loading = Loading::default();
    for block in blocks {
        load_block(block, &mut loading).unwrap();
    }
    loading.finish().unwrap()
}

#[test]
fn a_state_that_is_written_reads_back() {
    let state = state(3);
    let blocks = written(&state);
    let again = read(&blocks);
    assert_eq!(written(&again), blocks);
    assert_eq!(again.live(), state.live());
    assert_eq!(again.snapshot().live(), state.live());
    let known = again.queues[&QueueName::new("jobs").unwrap()].duplicate_of("id 7", NOW);
    assert!(known.is_some());
    // Without its last block, or with one twice, it is refused.
    let mut loading = Loading::default();
    for block in &blocks[..blocks.len() - 1] {
        load_block(block, &mut loading).unwrap();
    }
    assert!(loading.finish().is_err());
    let mut loading = Loading::default();
    load_block(&blocks[0], &mut loading).unwrap();
    assert!(load_block(&blocks[0], &mut loading).is_err());
}

#[test]
fn a_snapshot_costs_a_small_part_of_its_writing() {
    let mut state = state(100);
    let shortest = |work: &mut dyn FnMut()| {
        let times = (0..5).map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        });
        times.min().expect("there are five")
    };
    let snapshot = shortest(&mut || drop(state.snapshot()));
    let write = shortest(&mut || drop(written(&state)));
    assert!(
        snapshot * 50 < write,
        "a snapshot takes {snapshot:?}, writing it {write:?}"
    );
    // Parts of the state that change meanwhile are copied in small pieces.
    let queue = QueueName::new("jobs").unwrap();
    let kept = state.snapshot();
    let began = Instant::now();
    for number in [1_500, 50_000, 99_999] {
        let settled = vec![(number, DeliveryOutcome::Ack)];
        let (queue, at) = (queue.clone(), NOW);
        state.apply(&Record::Settle { queue, at, settled }, Position::default());
    }
    let changes = began.elapsed();
    assert!(
        changes * 10 < write,
        "three changes beside a snapshot take {changes:?}, writing it {write:?}"
    );
    drop(kept);
}
