//! Which queues have series of their own, so that a scrape does not grow with every queue there is.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use towpath_core::port::queue::Stats;

/// Most queues with series of their own.
const MOST: usize = 500;

/// The label of the others. No queue has this name: names have no white space.
pub(super) const OTHER_QUEUES: &str = "other queues";

/// Queues that have series of their own, for as long as they exist: first those that this process works on.
#[derive(Default)]
pub(super) struct Shown(Mutex<BTreeMap<String, Why>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// This process works on it.
    Ours,
    /// It was there when there was room.
    Early,
}

impl Shown {
    /// From now on the queue has its own.
    pub(super) fn show(&self, queue: &str) {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.get(queue) != Some(&Why::Ours) {
            shown.insert(queue.to_owned(), Why::Ours);
        }
    }

    /// The queues that this process works on.
    pub(super) fn ours(&self) -> Vec<String> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = shown.iter().filter(|(_, why)| **why == Why::Ours);
        ours.map(|(queue, _)| queue.clone()).collect()
    }

    /// The queues with series of their own, and the number and sums of the others.
    pub(super) fn split<'a>(
        &self,
        all: impl Iterator<Item = &'a Stats>,
    ) -> (Vec<&'a Stats>, Option<(i64, Stats)>) {
        let all: Vec<&Stats> = all.collect();
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.len() >= MOST {
            // One that was deleted leaves its place to another.
            let there: HashSet<&str> = all.iter().map(|stats| stats.queue.as_str()).collect();
            shown.retain(|queue, why| *why == Why::Ours || there.contains(queue.as_str()));
        }
        let (mut own, mut rest) = (Vec::new(), None);
        for stats in all {
            let queue = stats.queue.as_str();
            if shown.contains_key(queue) {
                own.push(stats);
            } else if shown.len() < MOST {
                shown.insert(queue.to_owned(), Why::Early);
                own.push(stats);
            } else {
                match &mut rest {
                    None => rest = Some((1, stats.clone())),
                    Some((count, sum)) => {
                        *count += 1;
                        add(sum, stats);
                    }
                }
            }
        }
        (own, rest)
    }
}

fn add(sum: &mut Stats, stats: &Stats) {
    sum.ready += stats.ready;
    sum.delayed += stats.delayed;
    sum.leased += stats.leased;
    sum.dead += stats.dead;
    sum.enqueued += stats.enqueued;
    sum.acked += stats.acked;
    sum.retried += stats.retried;
    sum.dropped += stats.dropped;
    sum.duplicates += stats.duplicates;
    sum.paused |= stats.paused;
    sum.oldest_age = sum.oldest_age.max(stats.oldest_age);
    sum.oldest_ready_age = sum.oldest_ready_age.max(stats.oldest_ready_age);
    sum.oldest_leased_age = sum.oldest_leased_age.max(stats.oldest_leased_age);
    sum.oldest_delayed_age = sum.oldest_delayed_age.max(stats.oldest_delayed_age);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use towpath_core::QueueName;

    use super::*;

    fn stats(number: usize) -> Stats {
        Stats {
            queue: QueueName::new(format!("q{number:05}")).unwrap(),
            ready: 1,
            delayed: 0,
            leased: 0,
            dead: 2,
            enqueued: 3,
            acked: 0,
            retried: 0,
            dropped: 0,
            duplicates: 0,
            oldest_age: Some(Duration::from_secs(number as u64)),
            oldest_ready_age: None,
            oldest_leased_age: None,
            oldest_delayed_age: None,
            consumers: 0,
            paused: false,
        }
    }

    #[test]
    fn the_first_queues_keep_their_series_and_the_rest_is_summed() {
        let shown = Shown::default();
        shown.show("q09999");
        let all: Vec<Stats> = (0..10_000).map(stats).collect();
        for _ in 0..2 {
            let (own, rest) = shown.split(all.iter());
            assert_eq!(own.len(), MOST);
            assert!(own.iter().any(|stats| stats.queue.as_str() == "q09999"));
            let (count, sum) = rest.unwrap();
            assert_eq!((count, sum.ready, sum.dead), (9_500, 9_500, 19_000));
            assert_eq!(sum.oldest_age, Some(Duration::from_secs(9_998)));
        }
        // The first is deleted.
        let (own, rest) = shown.split(all[1..].iter());
        assert_eq!((own.len(), rest.unwrap().0), (MOST, 9_499));
        let (own, rest) = shown.split(all[..3].iter());
        assert_eq!((own.len(), rest.is_none()), (3, true));
    }
}
