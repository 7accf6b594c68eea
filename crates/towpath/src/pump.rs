//! The delivery loop: leases messages from a consumer, delivers and settles them.
//!
//! ```text
//! consumer --lease--> handler: single messages, several at once ------settle--> consumer
//!             |--> sink: batches, where the batch is the unit -----|
//! ```
//!
//! A message is acked only after its handler or sink said done. While a delivery takes
//! long its lease is renewed; when the process stops, in-flight deliveries are
//! finished, or released without costing an attempt. The outcome of a delivery
//! whose lease was lost is discarded and counted.

mod ahead;
mod answer;
mod batch;
mod destination;
mod handler;
mod handling;
mod metrics;
mod rate_probe;
mod settling;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use towpath_core::port::Sink;
use towpath_core::port::queue::Disposition;
use towpath_core::port::sink::{Cause, Outcome};
use towpath_core::{Delivery, Error, ErrorKind, Receipt, Result, retry};
use tracing::{debug, warn};

use crate::consumer::Consumer;
use crate::supervisor::{Stop, panic_text};

pub use answer::note as note_answer;
pub use batch::BatchSize;
pub use destination::{Call, Change, Condition, Destination, Observer, PATIENCE};
pub use handler::Handler;
pub use handling::{Alone, Handling};
pub use metrics::{Counters, PumpMetrics};

/// Retries of a lease or settle that met an unavailable backend.
const BACKEND: retry::Policy =
    retry::Policy::forever(Duration::from_millis(50), Duration::from_secs(5));

/// The end of the grace period, reserved for releasing in-flight deliveries.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// Longest delay that a destination can ask for a message.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Delay of a message whose destination is unavailable and names no time.
const UNAVAILABLE: Duration = Duration::from_secs(1);

/// Where deliveries go.
#[derive(Clone)]
pub enum Work {
    /// Batches of this size.
    Batches(Arc<dyn Sink>, BatchSize),
    /// Single messages.
    Messages(Handling),
}

impl Work {
    /// Releases resources. Idempotent.
    ///
    /// # Errors
    /// Those of the sink or handler.
    pub async fn close(&self) -> Result<()> {
        match self {
            Self::Batches(sink, _) => sink.close().await,
            Self::Messages(handling) => handling.handler.close().await,
        }
    }
}

/// The two sides of a pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Leases and settlements.
    Consumer,
    /// The sink as a whole.
    Sink,
}

/// One pump: one consumer's loop.
pub struct Pump {
    /// Where work comes from.
    pub consumer: Arc<dyn Consumer>,
    /// Where it goes.
    pub work: Work,
    /// Its name in traces.
    pub sink_name: &'static str,
    /// Delays between attempts, and how many of them the queue was declared with.
    pub retry: retry::Policy,
    /// A pause before each batch or message is delivered.
    pub pause: Duration,
    /// Its metrics.
    pub metrics: PumpMetrics,
    /// Called with the fault of one of its sides, and with `None` when that side works again.
    pub condition: Box<dyn Fn(Side, Option<String>) + Send + Sync>,
}

impl Pump {
    /// Runs until the stop is requested.
    ///
    /// # Errors
    /// Those of the consumer that a retry cannot fix.
    ///
    /// # Panics
    /// Passes on a panic of the consumer, after releasing the leased messages. A panic of a sink or handler
    /// counts as a failed attempt of the message that it panicked over.
    pub async fn run(&self, stop: &Stop) -> Result<()> {
        let work = async {
            match &self.work {
                Work::Batches(sink, size) => self.deliver_batches(&**sink, *size, stop).await,
                Work::Messages(handling) => self.handle_each(handling, stop).await,
            }
        };
        let ended = AssertUnwindSafe(work).catch_unwind().await;
        // A pump that ended in order holds nothing; one that failed or panicked gives its
        // deliveries to others at once instead of at the end of their lease.
        if !matches!(ended, Ok(Ok(()))) {
            match self.consumer.disconnect().await {
                Ok(count) => stop.account.add("taken back", count),
                Err(error) => warn!(
                    error = error.chain(),
                    "deliveries not released; they return when their lease expires"
                ),
            }
        }
        match ended {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Disposition of a delivery with this outcome; `None` when it is settled.
    fn disposition(
        &self,
        delivery: &Delivery,
        outcome: Outcome,
        stop: &Stop,
    ) -> Option<Disposition> {
        let id = delivery.message.id;
        Some(match outcome {
            Outcome::Done => Disposition::Ack,
            Outcome::Settled => {
                stop.account.add("acked", 1);
                self.metrics.settled(delivery, &Disposition::Ack);
                settling::settled_one(self, delivery, "acked");
                return None;
            }
            Outcome::Reject { reason } => Disposition::DeadLetter { reason },
            Outcome::Retry { after, error } => {
                // Without the reason: it may repeat the payload, and is kept with the message.
                debug!(%id, attempt = delivery.attempt, "delivery failed");
                let delay = after.unwrap_or_default().min(LONGEST_DELAY);
                let after = drawn(&self.retry, delivery.attempt).max(delay);
                Disposition::Retry { after, error }
            }
            Outcome::Unavailable {
                cause,
                after,
                error,
            } => {
                if cause != Cause::Deferred {
                    debug!(%id, error, "destination unavailable; message released");
                    self.metrics.sink_failed(1);
                }
                let after = after.unwrap_or(UNAVAILABLE);
                Disposition::Release { after }
            }
        })
    }

    /// Reports a lease that failed, `failures` of them in a row. An unavailable backend logs that itself, once for all
    /// its queues.
    fn lease_failed(&self, error: &Error, failures: u32) {
        let is_of_queue = error.kind() != ErrorKind::Unavailable;
        let error = error.chain();
        if failures == 1 && is_of_queue {
            warn!(error, "lease failed; retrying");
        } else {
            debug!(error, failures, "lease failed; retrying");
        }
        (self.condition)(Side::Consumer, Some(format!("lease failed: {error}")));
    }

    /// Reports the first lease after `failures` failed ones.
    fn leased(&self, failures: u32) {
        if failures > 0 {
            debug!(failures, "lease recovered");
            (self.condition)(Side::Consumer, None);
        }
    }

    /// Renews leases once, within this time. The fences of those that are lost.
    async fn renew(&self, receipts: &[Receipt], within: Duration) -> Vec<u64> {
        match tokio::time::timeout(within, self.consumer.extend(receipts)).await {
            Ok(Ok(outcomes)) => {
                let outcomes = receipts.iter().zip(outcomes);
                let lost = outcomes.filter(|(_, outcome)| outcome.is_err());
                return lost.map(|(receipt, _)| receipt.fence).collect();
            }
            Ok(Err(error)) => warn!(error = error.chain(), "lease renewal failed"),
            Err(_) => warn!(?within, "lease renewal failed; no answer"),
        }
        Vec::new()
    }
}

fn warn_of_lost(leases: usize) {
    if leases > 0 {
        warn!(lost = leases, "lease renewal refused; messages redelivered");
    }
}

const fn failed(error: String) -> Outcome {
    Outcome::Retry { after: None, error }
}

/// The result of the future, or the message of its panic.
async fn guarded<T>(future: impl Future<Output = T>) -> std::result::Result<T, String> {
    let ended = AssertUnwindSafe(future).catch_unwind().await;
    ended.map_err(|panic| panic_text(&*panic))
}

/// A delay; the source of randomness must not live across an await.
fn drawn(policy: &retry::Policy, attempt: u32) -> Duration {
    policy.next_delay(attempt, &mut rand::rng())
}

#[cfg(test)]
mod tests;
