//! Delayed messages: a topic with a partition for each delay step, so that each partition is in order of due times.
//!
//! Steps grow by a factor of four from one second. A message goes into the longest step within its delay, then into
//! shorter ones, and when due into the queue itself.

use std::sync::Arc;
use std::time::Duration;

use towpath_core::{Clock, Timestamp};
use tracing::warn;

use super::buffers::{DelayedBuffer, InFlightMessage};
use super::consumer::GroupConsumer;
use super::settler::{Action, SettleItem, Settler};

/// Partitions of the topic: the first holds messages until they are due, the others for 4, 16, 64 seconds and so on to
/// three days.
pub(super) const STEPS: i32 = 10;

/// Messages moved at once.
const AT_ONCE: usize = 1_000;

/// Delays that count as due.
const CLOSE: Duration = Duration::from_millis(10);

/// The pause after a failure.
const PAUSE: Duration = Duration::from_millis(250);

/// Longest sleep: the wall clock may be set.
const LOOK: Duration = Duration::from_secs(5);

/// Longest stay of a message in a partition.
fn stay(step: i32) -> Duration {
    Duration::from_secs(4_u64.saturating_pow(step.unsigned_abs()))
}

/// The action for a message with this due time.
pub(super) fn action(due: Option<Timestamp>, now: Timestamp) -> Action {
    let left = due.map_or(Duration::ZERO, |due| due.since(now));
    if left <= CLOSE {
        return Action::Requeue;
    }
    let long = (1..STEPS).rev().find(|step| stay(*step) <= left);
    Action::Delay(long.unwrap_or(0))
}

/// When a delayed message moves next.
pub(super) fn next_move(held: &InFlightMessage) -> Timestamp {
    let due = held.envelope.not_before.unwrap_or_default();
    match held.origin.partition {
        0 => due,
        step => due.min(held.origin.published.after(stay(step))),
    }
}

/// Moves due messages, until the member leaves.
pub(super) async fn forward(
    member: Arc<GroupConsumer<DelayedBuffer>>,
    settler: Arc<Settler>,
    clock: Arc<dyn Clock>,
) {
    while !member.is_ending() {
        let mut changed = std::pin::pin!(member.changed());
        changed.as_mut().enable();
        let now = clock.now();
        let due = member.buffer().take_due(now, AT_ONCE);
        if due.is_empty() {
            let next = member.buffer().next();
            let left = next.map_or(LOOK, |next| next.since(now)).min(LOOK);
            // Below one millisecond the timer would spin.
            drop(tokio::time::timeout(left.max(Duration::from_millis(1)), changed).await);
            continue;
        }
        let items = due.into_iter().map(|(number, held)| {
            let action = action(held.envelope.not_before, now);
            SettleItem {
                number,
                attempts: held.charged,
                held,
                action,
                is_cut: false,
            }
        });
        let moved = settler.settle(items.collect()).await;
        if let Some(error) = moved.into_iter().find_map(Result::err) {
            warn!(
                topic = member.topic,
                error = error.chain(),
                "retries delayed; retrying"
            );
            tokio::time::sleep(PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delay_steps_never_exceed_the_delay() {
        let now = Timestamp::from_millis(1_000_000);
        let action = |millis| action(Some(now.after(Duration::from_millis(millis))), now);
        assert_eq!(action(10), Action::Requeue);
        assert_eq!(action(11), Action::Delay(0));
        assert_eq!(action(3_999), Action::Delay(0));
        assert_eq!(action(4_000), Action::Delay(1));
        assert_eq!(action(64_000), Action::Delay(3));
        assert_eq!(action(u64::from(u32::MAX)), Action::Delay(9));
    }
}
