//! Batches publishes of concurrent callers.
//!
//! A call has a channel with confirms of its own. 64 callers with one message each pay for 64 channels, writes and
//! confirms, in this process and in the broker. Callers of one destination that arrive while its batches are in flight
//! share the next one: one write, and confirms of several messages in one frame.
//!
//! Only one destination, so that a queue without a majority or a missing permission fails no caller of another one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::oneshot;
use towpath_core::Error;

use super::publisher::{Publish, PublishError, PublishResult, Publisher, WINDOW};
use super::store::lock;

/// Batches of one destination in flight. A confirm takes the broker a sync, so with few lanes callers wait for a lane.
const LANES: usize = 8;

/// Payload bytes of a batch. A larger call goes alone.
const BATCH_BYTES: usize = 64 << 10;

/// Exchange and routing key.
type Destination = (String, String);

/// Callers that wait, by destination; one without a batch in flight has no entry.
#[derive(Default)]
pub(super) struct PublishBatcher(Mutex<BTreeMap<Destination, Waiting>>);

#[derive(Default)]
struct Waiting {
    callers: Vec<Caller>,
    lanes: usize,
}

struct Caller {
    publishes: Arc<[Publish]>,
    outcomes: oneshot::Sender<Vec<PublishResult>>,
}

impl PublishBatcher {
    /// Adds a caller. Returns whether it has to start a lane.
    fn join(&self, destination: &Destination, caller: Caller) -> bool {
        let mut all = lock(&self.0);
        let waiting = all.entry(destination.clone()).or_default();
        waiting.callers.push(caller);
        let starts = waiting.lanes < LANES;
        waiting.lanes += usize::from(starts);
        starts
    }

    /// The next batch; an empty one ends the lane.
    fn next(&self, destination: &Destination) -> Vec<Caller> {
        let mut all = lock(&self.0);
        let Some(waiting) = all.get_mut(destination) else {
            return Vec::new();
        };
        // A caller that stopped waiting before its turn publishes nothing.
        waiting
            .callers
            .retain(|caller| !caller.outcomes.is_closed());
        let (mut messages, mut bytes) = (0, 0);
        let fitting = waiting.callers.iter().take_while(|caller| {
            messages += caller.publishes.len();
            bytes += bytes_of(&caller.publishes);
            messages <= WINDOW && bytes <= BATCH_BYTES
        });
        let count = fitting.count();
        let batch = waiting.callers.drain(..count).collect();
        if count == 0 {
            waiting.lanes -= 1;
            if waiting.lanes == 0 {
                all.remove(destination);
            }
        }
        batch
    }
}

impl Publisher {
    /// Publishes messages, together with those of other callers. One outcome each.
    ///
    /// A dropped call may have published.
    pub(super) async fn send_batched(
        self: &Arc<Self>,
        publishes: Arc<[Publish]>,
    ) -> Vec<PublishResult> {
        let Some(destination) = destination_of(&publishes) else {
            return self.send(&publishes.iter().collect::<Vec<_>>()).await;
        };
        let count = publishes.len();
        let (outcomes, mine) = oneshot::channel();
        let caller = Caller {
            publishes,
            outcomes,
        };
        if self.batcher.join(&destination, caller) {
            let publisher = Arc::clone(self);
            // Ends when no caller waits. A task, because the caller that started it may be dropped while others wait.
            crate::task::spawn(async move { publisher.send_batches(&destination).await });
        }
        mine.await.unwrap_or_else(|_| {
            let unsent = || Error::unavailable("the batch was not sent");
            (0..count)
                .map(|_| Err(PublishError::Failed(unsent())))
                .collect()
        })
    }

    async fn send_batches(&self, destination: &Destination) {
        loop {
            let batch = self.batcher.next(destination);
            if batch.is_empty() {
                return;
            }
            let publishes: Vec<&Publish> =
                batch.iter().flat_map(|one| one.publishes.iter()).collect();
            let mut outcomes = self.send(&publishes).await.into_iter();
            for caller in batch {
                let own = outcomes.by_ref().take(caller.publishes.len()).collect();
                // Fails when the call was dropped.
                drop(caller.outcomes.send(own));
            }
            // Lets answered callers join with their next message before the next batch.
            tokio::task::yield_now().await;
        }
    }
}

/// The destination of a call that shares a batch.
fn destination_of(publishes: &[Publish]) -> Option<Destination> {
    let first = publishes.first()?;
    let alike = publishes
        .iter()
        .all(|one| one.exchange == first.exchange && one.routing_key == first.routing_key);
    let fits = publishes.len() <= WINDOW && bytes_of(publishes) <= BATCH_BYTES;
    (alike && fits).then(|| (first.exchange.clone(), first.routing_key.clone()))
}

fn bytes_of(publishes: &[Publish]) -> usize {
    publishes.iter().map(|one| one.payload.len()).sum()
}
