//! Messages held back: in a topic with a partition for each step of delay, so that each is in the order of its moments.
//!
//! The steps grow by four from a second. A message goes into the longest that is not too long for it and when that has
//! passed into a shorter one, the last time at its moment into the queue itself.

use std::sync::Arc;
use std::time::Duration;

use towpath_core::{Clock, Timestamp};
use tracing::warn;

use super::buffers::{Held, Later};
use super::consumer::Member;
use super::settler::{Job, Registrar, To};

/// Partitions of the topic: the first holds messages until their moment, the others for 4, 16, 64 seconds and so on to
/// three days.
pub(super) const STEPS: i32 = 10;

/// Messages moved at once.
const AT_ONCE: usize = 1_000;

/// Moments that are as good as now.
const CLOSE: Duration = Duration::from_millis(10);

/// The pause after a failure.
const PAUSE: Duration = Duration::from_millis(250);

/// The longest sleep: clocks are set.
const LOOK: Duration = Duration::from_secs(5);

/// How long a message stays in a partition, at most.
fn stay(step: i32) -> Duration {
    Duration::from_secs(4_u64.saturating_pow(step.unsigned_abs()))
}

/// Where a message belongs that is due at this moment.
pub(super) fn place(due: Option<Timestamp>, now: Timestamp) -> To {
    let left = due.map_or(Duration::ZERO, |due| due.since(now));
    if left <= CLOSE {
        return To::Queue;
    }
    let long = (1..STEPS).rev().find(|step| stay(*step) <= left);
    To::Later(long.unwrap_or(0))
}

/// When a message of such a partition is to be looked at again.
pub(super) fn look_again(held: &Held) -> Timestamp {
    let due = held.envelope.not_before.unwrap_or_default();
    match held.origin.partition {
        0 => due,
        step => due.min(held.origin.published.after(stay(step))),
    }
}

/// Moves on whose moment has come, until the member leaves.
pub(super) async fn forward(
    member: Arc<Member<Later>>,
    registrar: Arc<Registrar>,
    clock: Arc<dyn Clock>,
) {
    while !member.is_ending() {
        let mut news = std::pin::pin!(member.news());
        news.as_mut().enable();
        let now = clock.now();
        let due = member.shelf().take_due(now, AT_ONCE);
        if due.is_empty() {
            let next = member.shelf().next();
            let left = next.map_or(LOOK, |next| next.since(now)).min(LOOK);
            // What is due while nothing is due yet is a moment away.
            drop(tokio::time::timeout(left.max(Duration::from_millis(1)), news).await);
            continue;
        }
        let jobs = due.into_iter().map(|(number, held)| {
            let to = place(held.envelope.not_before, now);
            Job {
                number,
                attempts: held.charged,
                held,
                to,
                is_cut: false,
            }
        });
        let moved = registrar.settle(jobs.collect()).await;
        if let Some(error) = moved.into_iter().find_map(Result::err) {
            warn!(
                topic = member.topic,
                error = error.chain(),
                "retries are late"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delay_is_reached_in_steps_that_never_pass_it() {
        let now = Timestamp::from_millis(1_000_000);
        let place = |millis| place(Some(now.after(Duration::from_millis(millis))), now);
        assert_eq!(place(10), To::Queue);
        assert_eq!(place(11), To::Later(0));
        assert_eq!(place(3_999), To::Later(0));
        assert_eq!(place(4_000), To::Later(1));
        assert_eq!(place(64_000), To::Later(3));
        assert_eq!(place(u64::from(u32::MAX)), To::Later(9));
    }
}
