//! Operations for operators: peek, count, purge, redrive.

use std::collections::HashSet;

use towpath_core::port::queue::Stats;
use towpath_core::{ConsumerId, QueueName, Timestamp};

use super::{CONSUMER_MILLIS, Entry, MessagePhase, QueueState};
use crate::embedded::log::Position;

impl QueueState {
    pub(in super::super) fn drop_waiting(&mut self, numbers: &[u64]) {
        if numbers.len() == self.fresh.len() + self.held.len() && self.leases.is_empty() {
            self.counters.dropped += numbers.len() as u64;
            self.fresh.clear();
            self.held.clear();
            self.ready.clear();
            self.delayed.clear();
            self.keys.clear();
            self.holders.clear();
            self.aged.clear();
            return;
        }
        for number in numbers {
            if let Some(held) = self.detach(*number) {
                self.counters.dropped += 1;
                self.free_key_of(held.entry.key, *number);
            }
        }
    }

    /// Numbers of ready, parked and delayed messages, oldest first: the first `max` from `from` to before `end`.
    pub(in super::super::super) fn waiting(&self, from: u64, end: u64, max: usize) -> Vec<u64> {
        let fresh = self
            .fresh
            .behind(from.saturating_sub(1))
            .map(|entry| entry.number);
        let fresh = fresh.take_while(move |number| *number < end).take(max);
        let held = self.held.range(from..end).filter(|(_, held)| {
            // One that is leased is not ours to drop.
            !matches!(held.phase, MessagePhase::Leased { .. })
        });
        let held = held.take(max).map(|(number, _)| *number);
        let mut numbers: Vec<u64> = fresh.chain(held).collect();
        numbers.sort_unstable();
        numbers.truncate(max);
        numbers
    }

    pub(in super::super) fn redrive(&mut self, first: u64, numbers: &[u64]) {
        for (next, number) in (first..).zip(numbers) {
            self.next_number = next + 1;
            if let Some(dead) = self.dead.remove(*number) {
                self.aged.insert((dead.entry.enqueued_at, next));
                self.fresh.push_back(Entry {
                    number: next,
                    attempts: 0,
                    expires: None,
                    ..dead.entry
                });
            }
        }
    }

    pub(in super::super) fn drop_dead(&mut self, numbers: &[u64]) {
        for number in numbers {
            if self.dead.remove(*number).is_some() {
                self.counters.dropped += 1;
            }
        }
    }

    /// The oldest waiting messages with their phase; `None` for fresh ones.
    pub(in super::super::super) fn peek(
        &self,
        max: usize,
        committed: Position,
    ) -> Vec<(Entry, Option<MessagePhase>)> {
        let visible = self
            .fresh
            .iter()
            .filter(move |entry| entry.place.position < committed)
            .take(max);
        let mut all: Vec<(Entry, Option<MessagePhase>)> = self
            .held
            .values()
            .take(max)
            .map(|held| (held.entry, Some(held.phase.clone())))
            .chain(visible.map(|entry| (entry, None)))
            .collect();
        all.sort_by_key(|(entry, _)| entry.number);
        all.truncate(max);
        all
    }

    pub(in super::super::super) fn stats(
        &self,
        name: &QueueName,
        now: Timestamp,
        monotonic: u64,
    ) -> Stats {
        let leased = self.leases.len() as u64;
        let delayed = self.delayed.len() as u64;
        let mut consumers: HashSet<&ConsumerId> = self
            .consumers
            .iter()
            .filter(|(_, seen)| **seen + CONSUMER_MILLIS >= monotonic)
            .map(|(consumer, _)| consumer)
            .collect();
        consumers.extend(self.holders.active());
        Stats {
            queue: name.clone(),
            ready: self.depth() - leased - delayed,
            delayed,
            leased,
            dead: self.dead.len() as u64,
            enqueued: self.counters.enqueued,
            acked: self.counters.acked,
            retried: self.counters.retried,
            dropped: self.counters.dropped,
            duplicates: self.counters.duplicates,
            oldest_age: self.oldest().map(|moment| now.since(moment)),
            oldest_ready_age: self.oldest_ready().map(|moment| now.since(moment)),
            oldest_leased_age: { self.leased_since.first() }.map(|(since, _)| now.since(*since)),
            oldest_delayed_age: self.oldest_delayed().map(|moment| now.since(moment)),
            consumers: consumers.len() as u64,
            paused: self.paused,
        }
    }
}
