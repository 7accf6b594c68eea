//! The one loop: lease a batch, deliver it, settle it.
//!
//! ```text
//! lease -> deliver -> settle -> lease …
//!             |-> the sink as a whole cannot work: give the batch back uncharged, back off, try again
//! ```
//!
//! A message is acked only after the sink said done. While a delivery takes
//! long its leases are renewed; when the process stops, what is in hand is
//! finished, or given back without costing an attempt.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use towpath_core::port::Sink;
use towpath_core::port::queue::{Settlement, Verdict};
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, ErrorKind, Receipt, Result, retry};
use tracing::{debug, warn};

use crate::inlet::Inlet;
use crate::supervisor::Stop;
use crate::telemetry::PumpMetrics;

/// How a lease or settle that met an unavailable backend is tried again.
const BACKEND: retry::Policy =
    retry::Policy::forever(Duration::from_millis(50), Duration::from_secs(5));

/// How long to leave a sink alone that cannot work at all.
const SINK: retry::Policy =
    retry::Policy::forever(Duration::from_millis(100), Duration::from_secs(2));

/// What is kept of the grace period for giving back what is in hand.
const GIVE_BACK: Duration = Duration::from_secs(2);

/// One pump: one consumer's loop.
pub struct Pump {
    /// Where work comes from.
    pub inlet: Arc<dyn Inlet>,
    /// Where it goes.
    pub sink: Arc<dyn Sink>,
    /// Most deliveries in hand.
    pub batch: usize,
    /// Delays between attempts; how many there are is the queue's own setting.
    pub retry: retry::Policy,
    /// A pause before each batch is delivered.
    pub pause: Duration,
    /// What is measured.
    pub metrics: PumpMetrics,
    /// Told what is wrong with the sink as a whole, and when nothing is.
    pub condition: Box<dyn Fn(Option<String>) + Send + Sync>,
}

impl Pump {
    /// Runs until the stop is requested.
    ///
    /// # Errors
    /// Those of the inlet that trying again cannot mend.
    ///
    /// # Panics
    /// Passes on a panic of the sink, after taking back what was in hand.
    pub async fn run(&self, stop: &Stop) -> Result<()> {
        let ended = AssertUnwindSafe(self.pump(stop)).catch_unwind().await;
        // A pump that ended in order holds nothing; one that failed or panicked gives its
        // deliveries to others at once instead of at the end of their lease.
        if !matches!(ended, Ok(Ok(()))) {
            match self.inlet.disconnect().await {
                Ok(count) => stop.account.add("taken back", count),
                Err(error) => warn!(
                    error = error.chain(),
                    "deliveries come back when their lease expires"
                ),
            }
        }
        match ended {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    async fn pump(&self, stop: &Stop) -> Result<()> {
        let (mut backend_attempt, mut sink_attempt) = (0, 0);
        while !stop.is_requested() {
            let batch = match self.inlet.lease(self.batch).await {
                Ok(batch) => batch,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    backend_attempt += 1;
                    warn!(
                        error = error.chain(),
                        attempt = backend_attempt,
                        "lease failed, trying again"
                    );
                    rest(stop, drawn(&BACKEND, backend_attempt)).await;
                    continue;
                }
                Err(error) => return Err(error),
            };
            backend_attempt = 0;
            if batch.is_empty() {
                continue;
            }
            stop.account.add("leased", batch.len() as u64);
            match self.deliver(&batch, stop).await {
                Delivered::Outcomes(outcomes) => {
                    if sink_attempt > 0 {
                        (self.condition)(None);
                    }
                    sink_attempt = 0;
                    self.settle(self.verdicts(&batch, outcomes), stop).await?;
                }
                Delivered::Nothing(error) => {
                    sink_attempt += 1;
                    self.metrics.sink_failed();
                    (self.condition)(Some(error.chain()));
                    warn!(
                        error = error.chain(),
                        attempt = sink_attempt,
                        "sink cannot work, batch given back"
                    );
                    self.settle(give_back(&batch), stop).await?;
                    rest(stop, drawn(&SINK, sink_attempt)).await;
                }
                Delivered::OutOfTime => {
                    self.settle(give_back(&batch), stop).await?;
                }
            }
        }
        Ok(())
    }

    /// Hands the batch to the sink, renewing its leases for as long as that takes.
    async fn deliver(&self, batch: &[Delivery], stop: &Stop) -> Delivered {
        if !self.pause.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(self.pause) => {}
                () = stop.requested() => return Delivered::OutOfTime,
            }
        }
        let receipts: Vec<Receipt> = batch
            .iter()
            .map(|delivery| delivery.receipt.clone())
            .collect();
        let timer = self.metrics.start(batch);
        let mut delivering = std::pin::pin!(self.sink.deliver(batch));
        // A third of the lease, so that two lost renewals still leave time for a third.
        let mut renewal = tokio::time::interval(self.inlet.lease_time() / 3);
        renewal.tick().await;
        loop {
            tokio::select! {
                delivered = &mut delivering => {
                    return match delivered {
                        Ok(outcomes) => {
                            timer.finish(&outcomes);
                            Delivered::Outcomes(outcomes)
                        }
                        Err(error) => Delivered::Nothing(error),
                    };
                }
                _ = renewal.tick() => self.renew(&receipts).await,
                () = stop.nearly_over(GIVE_BACK) => return Delivered::OutOfTime,
            }
        }
    }

    async fn renew(&self, receipts: &[Receipt]) {
        match self.inlet.extend(receipts).await {
            Ok(outcomes) => {
                let lost = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                if lost > 0 {
                    warn!(
                        lost,
                        "leases could not be renewed, those messages go to others"
                    );
                }
            }
            Err(error) => warn!(error = error.chain(), "leases could not be renewed"),
        }
    }

    fn verdicts(&self, batch: &[Delivery], outcomes: Vec<Outcome>) -> Vec<Settlement> {
        // A sink that answers too few leaves the rest undelivered.
        let missing = std::iter::repeat_with(|| Outcome::Retry {
            after: None,
            error: "the sink gave no outcome".to_owned(),
        });
        batch
            .iter()
            .zip(outcomes.into_iter().chain(missing))
            .map(|(delivery, outcome)| Settlement {
                receipt: delivery.receipt.clone(),
                verdict: match outcome {
                    Outcome::Done => Verdict::Ack,
                    Outcome::Reject { reason } => Verdict::DeadLetter { reason },
                    Outcome::Retry { after, error } => {
                        debug!(id = %delivery.message.id, attempt = delivery.attempt, error, "delivery failed");
                        let drawn = drawn(&self.retry, delivery.attempt);
                        Verdict::Retry { after: after.map_or(drawn, |asked| asked.min(self.retry.max)), error }
                    }
                },
            })
            .collect()
    }

    /// Settles, trying again while the backend is away: settling twice changes nothing.
    async fn settle(&self, settlements: Vec<Settlement>, stop: &Stop) -> Result<()> {
        let mut attempt = 0;
        loop {
            match self.inlet.settle(settlements.clone()).await {
                Ok(outcomes) => {
                    for (settlement, outcome) in settlements.iter().zip(&outcomes) {
                        match outcome {
                            Ok(()) => stop.account.add(word(&settlement.verdict), 1),
                            Err(error) => {
                                stop.account.add("lost leases", 1);
                                warn!(
                                    error = error.chain(),
                                    "a delivery had gone to somebody else"
                                );
                            }
                        }
                    }
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    attempt += 1;
                    warn!(
                        error = error.chain(),
                        attempt, "settle failed, trying again"
                    );
                    tokio::select! {
                        () = tokio::time::sleep(drawn(&BACKEND, attempt)) => {}
                        // Unsettled deliveries come back by their lease or at the next start.
                        () = stop.nearly_over(GIVE_BACK / 2) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

enum Delivered {
    Outcomes(Vec<Outcome>),
    Nothing(towpath_core::Error),
    OutOfTime,
}

fn give_back(batch: &[Delivery]) -> Vec<Settlement> {
    batch
        .iter()
        .map(|delivery| Settlement {
            receipt: delivery.receipt.clone(),
            verdict: Verdict::Release,
        })
        .collect()
}

const fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Ack => "acked",
        Verdict::Retry { .. } => "retried",
        Verdict::DeadLetter { .. } => "dead letters",
        Verdict::Release => "given back",
    }
}

/// A delay; the source of randomness must not live across an await.
fn drawn(policy: &retry::Policy, attempt: u32) -> Duration {
    policy.next_delay(attempt, &mut rand::rng())
}

/// Sleeps, or returns at once when the stop is requested.
async fn rest(stop: &Stop, delay: Duration) {
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        () = stop.requested() => {}
    }
}
