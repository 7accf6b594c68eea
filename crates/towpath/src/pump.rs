//! The one loop: lease a batch, deliver it, settle it.
//!
//! ```text
//! lease -> deliver -> settle -> lease …
//!             |-> the sink as a whole cannot work: give the batch back uncharged, back off, try again
//! ```
//!
//! A message is acked only after the sink said done. While a delivery takes
//! long its leases are renewed; when the process stops, what is in hand is
//! finished, or given back without costing an attempt. A lease that is lost all the same
//! is somebody else's: what the sink said does not count, and that is counted.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use towpath_core::port::Sink;
use towpath_core::port::queue::{Settlement, Verdict};
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, ErrorKind, Receipt, Result, retry};
use tracing::{debug, warn};

use crate::inlet::Inlet;
use crate::supervisor::{Stop, panic_text};
use crate::telemetry::{PumpMetrics, traces};

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
    /// What the sink is called in traces.
    pub sink_name: &'static str,
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
    /// Passes on a panic of the inlet, after taking back what was in hand. A panic of the sink
    /// counts as a failed attempt of the message that it panicked over.
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
            let asked_at = SystemTime::now();
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
            let spans = traces::deliver(&batch, self.sink_name, asked_at);
            match self.deliver(&batch, stop).await {
                Delivered::Outcomes(outcomes) => {
                    if sink_attempt > 0 {
                        (self.condition)(None);
                    }
                    sink_attempt = 0;
                    traces::delivered(spans, &outcomes);
                    let (left, verdicts) = self.verdicts(batch, outcomes, stop);
                    if !left.is_empty() {
                        self.settle(&left, verdicts, stop).await?;
                    }
                }
                Delivered::Nothing(error) => {
                    sink_attempt += 1;
                    self.metrics.sink_failed();
                    (self.condition)(Some(error.chain()));
                    traces::failed(spans, &error);
                    warn!(
                        error = error.chain(),
                        attempt = sink_attempt,
                        "sink cannot work, batch given back"
                    );
                    self.settle(&batch, give_back(batch.len()), stop).await?;
                    rest(stop, drawn(&SINK, sink_attempt)).await;
                }
                Delivered::OutOfTime => {
                    self.settle(&batch, give_back(batch.len()), stop).await?;
                }
            }
        }
        Ok(())
    }

    /// Hands the batch to the sink, renewing its leases for as long as that takes.
    async fn deliver(&self, batch: &[Delivery], stop: &Stop) -> Delivered {
        let work = async {
            if !self.pause.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(self.pause) => {}
                    () = stop.requested() => return Delivered::OutOfTime,
                }
            }
            let began = Instant::now();
            match self.attempt(batch).await {
                Ok(outcomes) => {
                    self.metrics.sink_took(began.elapsed());
                    Delivered::Outcomes(outcomes)
                }
                Err(error) => Delivered::Nothing(error),
            }
        };
        tokio::select! {
            delivered = work => delivered,
            never = self.keep_leases(batch) => match never {},
            () = stop.nearly_over(GIVE_BACK) => Delivered::OutOfTime,
        }
    }

    /// One outcome per delivery.
    ///
    /// When the sink panics over a batch it gets the messages one by one: only the one
    /// that it cannot bear is charged, and not its neighbours.
    async fn attempt(&self, batch: &[Delivery]) -> Result<Vec<Outcome>> {
        let panic = match guarded(self.sink.deliver(batch)).await {
            Ok(delivered) => return delivered,
            Err(panic) => panic,
        };
        warn!(
            panic,
            messages = batch.len(),
            "the sink panicked over a batch"
        );
        if let [_] = batch {
            return Ok(vec![failed(format!("the sink panicked: {panic}"))]);
        }
        let mut outcomes = Vec::with_capacity(batch.len());
        for delivery in batch.chunks(1) {
            let outcome = match guarded(self.sink.deliver(delivery)).await {
                Ok(delivered) => delivered?.into_iter().next().unwrap_or_else(no_outcome),
                Err(panic) => failed(format!("the sink panicked: {panic}")),
            };
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// Renews the leases of the batch until dropped.
    async fn keep_leases(&self, batch: &[Delivery]) -> Infallible {
        let receipts: Vec<Receipt> = batch
            .iter()
            .map(|delivery| delivery.receipt.clone())
            .collect();
        // A third of the lease, so that two lost renewals still leave time for a third.
        let often = self.inlet.lease_time() / 3;
        loop {
            tokio::time::sleep(often).await;
            match tokio::time::timeout(often, self.inlet.extend(&receipts)).await {
                Ok(Ok(outcomes)) => {
                    let lost = outcomes.iter().filter(|outcome| outcome.is_err()).count();
                    if lost > 0 {
                        warn!(
                            lost,
                            "leases could not be renewed, those messages go to others"
                        );
                    }
                }
                Ok(Err(error)) => warn!(error = error.chain(), "leases could not be renewed"),
                Err(_) => warn!(within = ?often, "leases could not be renewed, no answer"),
            }
        }
    }

    /// What is left to settle, and how.
    fn verdicts(
        &self,
        batch: Vec<Delivery>,
        outcomes: Vec<Outcome>,
        stop: &Stop,
    ) -> (Vec<Delivery>, Vec<Verdict>) {
        // A sink that answers too few leaves the rest undelivered.
        let outcomes = outcomes
            .into_iter()
            .chain(std::iter::repeat_with(no_outcome));
        let settle = |(delivery, outcome): (Delivery, Outcome)| {
            let verdict = match outcome {
                Outcome::Done => Verdict::Ack,
                Outcome::Settled => {
                    stop.account.add(word(&Verdict::Ack), 1);
                    self.metrics.settled(&delivery, &Verdict::Ack);
                    return None;
                }
                Outcome::Reject { reason } => Verdict::DeadLetter { reason },
                Outcome::Retry { after, error } => {
                    debug!(id = %delivery.message.id, attempt = delivery.attempt, error, "delivery failed");
                    let drawn = drawn(&self.retry, delivery.attempt);
                    Verdict::Retry {
                        after: after.map_or(drawn, |asked| asked.min(self.retry.max)),
                        error,
                    }
                }
            };
            Some((delivery, verdict))
        };
        batch.into_iter().zip(outcomes).filter_map(settle).unzip()
    }

    /// Settles, trying again while the backend is away: settling twice changes nothing.
    async fn settle(&self, batch: &[Delivery], verdicts: Vec<Verdict>, stop: &Stop) -> Result<()> {
        let settlements: Vec<Settlement> = batch
            .iter()
            .zip(verdicts)
            .map(|(delivery, verdict)| Settlement {
                receipt: delivery.receipt.clone(),
                verdict,
            })
            .collect();
        let mut attempt = 0;
        let outcomes = loop {
            // Unsettled deliveries come back by their lease or at the next start.
            let settled = tokio::select! {
                settled = self.inlet.settle(settlements.clone()) => settled,
                () = stop.nearly_over(GIVE_BACK / 2) => {
                    return Err(Error::unavailable("no time left to settle what was in hand"));
                }
            };
            match settled {
                Ok(outcomes) => break outcomes,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    attempt += 1;
                    warn!(
                        error = error.chain(),
                        attempt, "settle failed, trying again"
                    );
                    tokio::select! {
                        () = tokio::time::sleep(drawn(&BACKEND, attempt)) => {}
                        () = stop.nearly_over(GIVE_BACK / 2) => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            }
        };
        for ((delivery, settlement), outcome) in batch.iter().zip(&settlements).zip(outcomes) {
            match outcome {
                Ok(()) => {
                    stop.account.add(word(&settlement.verdict), 1);
                    self.metrics.settled(delivery, &settlement.verdict);
                }
                Err(error) => {
                    stop.account.add("lost leases", 1);
                    self.metrics.lease_lost();
                    warn!(
                        error = error.chain(),
                        "a delivery had gone to somebody else, its outcome here does not count"
                    );
                }
            }
        }
        Ok(())
    }
}

enum Delivered {
    Outcomes(Vec<Outcome>),
    Nothing(Error),
    OutOfTime,
}

fn give_back(count: usize) -> Vec<Verdict> {
    vec![Verdict::RELEASE; count]
}

const fn failed(error: String) -> Outcome {
    Outcome::Retry { after: None, error }
}

fn no_outcome() -> Outcome {
    failed("the sink gave no outcome".to_owned())
}

/// What the future gives, or what its panic says.
async fn guarded<T>(future: impl Future<Output = T>) -> std::result::Result<T, String> {
    let ended = AssertUnwindSafe(future).catch_unwind().await;
    ended.map_err(|panic| panic_text(&*panic))
}

const fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Ack => "acked",
        Verdict::Retry { .. } => "retried",
        Verdict::DeadLetter { .. } => "dead letters",
        Verdict::Release { .. } => "given back",
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

#[cfg(test)]
mod tests;
