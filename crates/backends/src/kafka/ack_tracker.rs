//! What became of a partition's records since the position: which are settled, and how often the others were handed out.
//!
//! Kafka keeps one position for a group and a partition, and a little text beside it. The position is the oldest record
//! that is not settled; the text says what is known of those behind it, so that a settled one never comes again.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::consumer::Reach;

/// Records from the position on after which no more are fetched. What is said of them fits into the text.
const FULL: i64 = 10_000;

/// The longest text that brokers take by default (`offset.metadata.max.bytes`), less a little.
const MAX_NOTE: usize = 4_000;

/// The open records of a partition that is ours.
#[derive(Debug, Default)]
pub(super) struct Lane {
    /// Which time it is that the partition came to us.
    pub(super) epoch: u64,
    pub(super) reach: Reach,
    /// Records that came and are not settled, with the deliveries that only this text knows of.
    open: BTreeMap<i64, u32>,
    /// What an earlier holder noted of records that have not come yet.
    recovered: BTreeMap<i64, State>,
    /// Behind the last record that was handed out or settled.
    touched: i64,
    /// Whether the broker knows an older state.
    pub(super) is_dirty: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Settled,
    /// Open, with so many deliveries.
    Open(u32),
}

impl Lane {
    pub(super) fn new(epoch: u64, position: i64, note: &str) -> Self {
        let recovered: BTreeMap<i64, State> = (position..).zip(read(note)).collect();
        let last = recovered.last_key_value().map(|(at, _)| at + 1);
        Self {
            epoch,
            reach: Reach::from(position),
            touched: last.unwrap_or(position),
            recovered,
            ..Self::default()
        }
    }

    /// A record came: how often it was handed out before, or `None` when it is settled.
    pub(super) fn add(&mut self, at: i64) -> Option<u32> {
        self.reach.pass(at);
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

    /// Counts deliveries of a record.
    pub(super) fn charge(&mut self, at: i64, deliveries: u32) {
        if let Some(known) = self.open.get_mut(&at) {
            *known = deliveries;
            self.touched = self.touched.max(at + 1);
            self.is_dirty = true;
        }
    }

    /// A record is settled; its deliveries, to open it again.
    pub(super) fn settle(&mut self, at: i64) -> Option<u32> {
        let deliveries = self.open.remove(&at)?;
        self.touched = self.touched.max(at + 1);
        self.is_dirty = true;
        Some(deliveries)
    }

    /// It is not, after all.
    pub(super) fn reopen(&mut self, at: i64, deliveries: u32) {
        self.open.insert(at, deliveries);
        self.is_dirty = true;
    }

    /// The oldest record that is not settled.
    pub(super) fn position(&self) -> i64 {
        let open = self.open.first_key_value().map(|(at, _)| *at);
        open.unwrap_or(self.reach.next)
    }

    /// In percent.
    pub(super) fn fullness(&self) -> usize {
        let open = self.reach.next - self.position();
        usize::try_from(open * 100 / FULL).unwrap_or(0)
    }

    /// What is known from the position on.
    pub(super) fn note(&self) -> String {
        let state = |at: i64| match self.open.get(&at) {
            Some(deliveries) => State::Open(*deliveries),
            None if at < self.reach.next => State::Settled,
            None => *self.recovered.get(&at).unwrap_or(&State::Open(0)),
        };
        write((self.position()..self.touched).map(state))
    }
}

/// Records that a note says are settled.
pub(super) fn settled(note: &str) -> u64 {
    let settled = read(note).into_iter().filter(|one| *one == State::Settled);
    settled.count() as u64
}

/// The same among the first `count`.
pub(super) fn settled_below(note: &str, count: u64) -> u64 {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let first = read(note).into_iter().take(count);
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
    if text.len() <= MAX_NOTE {
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

/// The other way round; of a text that is not ours nothing.
fn read(note: &str) -> Vec<State> {
    let mut states = Vec::new();
    if let Some(digits) = note.strip_prefix('#') {
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
    for run in note.split(',').filter(|run| !run.is_empty()) {
        let (count, state) = match (run.strip_suffix('s'), run.split_once('x')) {
            (Some(count), _) => (count, Some(State::Settled)),
            (None, Some((count, deliveries))) => (count, deliveries.parse().ok().map(State::Open)),
            (None, None) => (run, Some(State::Open(0))),
        };
        match (count.parse::<usize>(), state) {
            (Ok(count), Some(state)) if count <= MAX_NOTE * 4 => {
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
    fn what_is_noted_is_known_to_the_next_holder() {
        let mut lane = Lane::new(1, 100, "");
        for at in 100..110 {
            assert_eq!(lane.add(at), Some(0));
        }
        for at in [100, 101, 104, 106] {
            assert_eq!(lane.settle(at), Some(0));
        }
        lane.charge(102, 2);
        lane.charge(107, 1);
        assert_eq!(
            (lane.position(), lane.note().as_str()),
            (102, "1x2,1,1s,1,1s,1x1")
        );

        let mut next = Lane::new(2, 102, &lane.note());
        // What has not come yet is not forgotten.
        assert_eq!(next.add(102), Some(2));
        assert_eq!(next.note(), lane.note());
        let came: Vec<Option<u32>> = (103..109).map(|at| next.add(at)).collect();
        assert_eq!(came, [Some(0), None, Some(0), None, Some(1), Some(0)]);
        assert_eq!(next.settle(102), Some(2));
        assert_eq!(next.position(), 103);
        next.reopen(102, 2);
        assert_eq!(next.position(), 102);
        assert_eq!(next.note(), lane.note());
    }

    #[test]
    fn marks_between_records_are_settled() {
        let mut lane = Lane::new(1, 0, "");
        for at in [0, 2, 5] {
            lane.add(at);
        }
        lane.charge(5, 1);
        assert_eq!(lane.note(), "1,1s,1,2s,1x1");
    }

    #[test]
    fn a_note_never_grows_too_long() {
        let mut lane = Lane::new(1, 0, "");
        for at in 0..12_000 {
            lane.add(at);
        }
        assert!(lane.fullness() >= 100);
        for at in (1..12_000).step_by(2) {
            lane.settle(at);
        }
        let note = lane.note();
        assert!(
            note.starts_with('#') && note.len() <= MAX_NOTE,
            "{}",
            note.len()
        );
        assert_eq!(settled(&note), 6_000);
        let mut next = Lane::new(2, 0, &note);
        assert_eq!(
            (next.add(0), next.add(1), next.add(2)),
            (Some(0), None, Some(0))
        );
    }

    #[test]
    fn what_others_wrote_says_nothing() {
        for note in ["hello", "1x", "9999999999", "#12g", "-1", ",,"] {
            assert_eq!(read(note), [], "{note}");
        }
    }
}
