//! Tracks the records of a partition from the committed offset on: which are settled, and the deliveries of the others.
//!
//! Kafka keeps one committed offset per group and partition, with a short metadata text. The offset is the oldest record
//! that is not settled; the metadata holds the state of those behind it, so that settled ones are not delivered again.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::consumer::FetchProgress;

/// Records from the position on after which no more are fetched. Their state fits into the metadata.
const FULL: i64 = 10_000;

/// Longest metadata that brokers accept by default (`offset.metadata.max.bytes`), with a margin.
const MAX_METADATA: usize = 4_000;

/// The open records of an assigned partition.
#[derive(Debug, Default)]
pub(super) struct AckTracker {
    /// Number of the assignment.
    pub(super) epoch: u64,
    pub(super) progress: FetchProgress,
    /// Fetched records that are not settled, with the deliveries that only the metadata counts.
    open: BTreeMap<i64, u32>,
    /// States from the metadata of records that are not fetched yet.
    recovered: BTreeMap<i64, State>,
    /// Behind the last record that was delivered or settled.
    touched: i64,
    /// Whether the committed state is older.
    pub(super) is_dirty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Settled,
    /// Open, with this many deliveries.
    Open(u32),
}

impl AckTracker {
    pub(super) fn new(epoch: u64, position: i64, metadata: &str) -> Self {
        let recovered: BTreeMap<i64, State> = (position..).zip(read(metadata)).collect();
        let last = recovered.last_key_value().map(|(at, _)| at + 1);
        Self {
            epoch,
            progress: FetchProgress::from(position),
            touched: last.unwrap_or(position),
            recovered,
            ..Self::default()
        }
    }

    /// Adds a fetched record: its earlier deliveries, or `None` when it is settled.
    pub(super) fn add(&mut self, at: i64) -> Option<u32> {
        self.progress.pass(at);
        while self
            .recovered
            .first_key_value()
            .is_some_and(|(first, _)| *first < at)
        {
            self.recovered.pop_first();
        }
        let known = self.recovered.remove(&at);
        match known.unwrap_or(State::Open(0)) {
            State::Settled => {
                self.is_dirty = true;
                None
            }
            State::Open(deliveries) => {
                self.open.insert(at, deliveries);
                Some(deliveries)
            }
        }
    }

    /// Sets the deliveries of a record.
    pub(super) fn charge(&mut self, at: i64, deliveries: u32) {
        if let Some(known) = self.open.get_mut(&at) {
            *known = deliveries;
            self.touched = self.touched.max(at + 1);
            self.is_dirty = true;
        }
    }

    /// Settles a record; returns its deliveries, to reopen it.
    pub(super) fn settle(&mut self, at: i64) -> Option<u32> {
        let deliveries = self.open.remove(&at)?;
        self.touched = self.touched.max(at + 1);
        self.is_dirty = true;
        Some(deliveries)
    }

    /// Reverts a settlement.
    pub(super) fn reopen(&mut self, at: i64, deliveries: u32) {
        self.open.insert(at, deliveries);
        self.is_dirty = true;
    }

    /// The oldest record that is not settled.
    pub(super) fn position(&self) -> i64 {
        let open = self.open.first_key_value().map(|(at, _)| *at);
        open.unwrap_or(self.progress.next)
    }

    /// Fill level in percent.
    pub(super) fn fullness(&self) -> usize {
        let open = self.progress.next - self.position();
        usize::try_from(open * 100 / FULL).unwrap_or(0)
    }

    /// The offset metadata: states from the position on.
    pub(super) fn metadata(&self) -> String {
        let state = |at: i64| match self.open.get(&at) {
            Some(deliveries) => State::Open(*deliveries),
            None if at < self.progress.next => State::Settled,
            None => *self.recovered.get(&at).unwrap_or(&State::Open(0)),
        };
        write((self.position()..self.touched).map(state))
    }
}

/// Number of settled records in this metadata.
pub(super) fn settled(metadata: &str) -> u64 {
    let settled = read(metadata)
        .into_iter()
        .filter(|one| *one == State::Settled);
    settled.count() as u64
}

/// The same among the first `count`.
pub(super) fn settled_below(metadata: &str, count: u64) -> u64 {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let first = read(metadata).into_iter().take(count);
    first.filter(|one| *one == State::Settled).count() as u64
}

/// Runs of the same state, a comma between: `3` is three open ones, `2s` two settled, `1x4` one with four deliveries.
/// Where that is too long, bits from the first on, four to a digit, 1 for settled; deliveries are lost then.
fn write(states: impl Iterator<Item = State>) -> String {
    let states: Vec<State> = states.collect();
    let mut text = String::new();
    for run in states.chunk_by(|one, two| one == two) {
        let comma = if text.is_empty() { "" } else { "," };
        let written = match run[0] {
            State::Settled => write!(text, "{comma}{}s", run.len()),
            State::Open(0) => write!(text, "{comma}{}", run.len()),
            State::Open(deliveries) => write!(text, "{comma}{}x{deliveries}", run.len()),
        };
        debug_assert!(written.is_ok(), "text takes anything");
    }
    if text.len() <= MAX_METADATA {
        return text;
    }
    let digit = |four: &[State]| {
        let bits = four.iter().zip([8, 4, 2, 1]);
        let bits = bits.filter(|(one, _)| **one == State::Settled);
        char::from_digit(bits.map(|(_, bit)| bit).sum(), 16).unwrap_or('0')
    };
    let bits = states.chunks(4).map(digit);
    std::iter::once('#').chain(bits).collect()
}

/// Parses metadata; empty for a text of another program.
fn read(metadata: &str) -> Vec<State> {
    let mut states = Vec::new();
    if let Some(digits) = metadata.strip_prefix('#') {
        for four in digits.chars() {
            let Some(four) = four.to_digit(16) else {
                return Vec::new();
            };
            states.extend([8, 4, 2, 1].map(|bit| match four & bit {
                0 => State::Open(0),
                _ => State::Settled,
            }));
        }
        return states;
    }
    for run in metadata.split(',').filter(|run| !run.is_empty()) {
        let (count, state) = match (run.strip_suffix('s'), run.split_once('x')) {
            (Some(count), _) => (count, Some(State::Settled)),
            (None, Some((count, deliveries))) => (count, deliveries.parse().ok().map(State::Open)),
            (None, None) => (run, Some(State::Open(0))),
        };
        match (count.parse::<usize>(), state) {
            (Ok(count), Some(state)) if count <= MAX_METADATA * 4 => {
                states.extend(std::iter::repeat_n(state, count));
            }
            _ => return Vec::new(),
        }
    }
    states
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_restores_the_state_in_the_next_consumer() {
        let mut tracker = AckTracker::new(1, 100, "");
        for at in 100..110 {
            assert_eq!(tracker.add(at), Some(0));
        }
        for at in [100, 101, 104, 106] {
            assert_eq!(tracker.settle(at), Some(0));
        }
        tracker.charge(102, 2);
        tracker.charge(107, 1);
        assert_eq!(
            (tracker.position(), tracker.metadata().as_str()),
            (102, "1x2,1,1s,1,1s,1x1")
        );

        let mut next = AckTracker::new(2, 102, &tracker.metadata());
        // States of records that are not fetched yet are kept.
        assert_eq!(next.add(102), Some(2));
        assert_eq!(next.metadata(), tracker.metadata());
        let came: Vec<Option<u32>> = (103..109).map(|at| next.add(at)).collect();
        assert_eq!(came, [Some(0), None, Some(0), None, Some(1), Some(0)]);
        assert_eq!(next.settle(102), Some(2));
        assert_eq!(next.position(), 103);
        next.reopen(102, 2);
        assert_eq!(next.position(), 102);
        assert_eq!(next.metadata(), tracker.metadata());
    }

    #[test]
    fn offsets_without_a_record_are_settled() {
        let mut tracker = AckTracker::new(1, 0, "");
        for at in [0, 2, 5] {
            tracker.add(at);
        }
        tracker.charge(5, 1);
        assert_eq!(tracker.metadata(), "1,1s,1,2s,1x1");
    }

    #[test]
    fn metadata_never_exceeds_the_limit() {
        let mut tracker = AckTracker::new(1, 0, "");
        for at in 0..12_000 {
            tracker.add(at);
        }
        assert!(tracker.fullness() >= 100);
        for at in (1..12_000).step_by(2) {
            tracker.settle(at);
        }
        let metadata = tracker.metadata();
        assert!(
            metadata.starts_with('#') && metadata.len() <= MAX_METADATA,
            "{}",
            metadata.len()
        );
        assert_eq!(settled(&metadata), 6_000);
        let mut next = AckTracker::new(2, 0, &metadata);
        assert_eq!(
            (next.add(0), next.add(1), next.add(2)),
            (Some(0), None, Some(0))
        );
    }

    #[test]
    fn metadata_of_other_programs_is_ignored() {
        for metadata in ["hello", "1x", "9999999999", "#12g", "-1", ",,"] {
            assert_eq!(read(metadata), [], "{metadata}");
        }
    }
}
