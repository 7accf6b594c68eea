//! The loop over batches, for sinks whose unit is the batch: lease, deliver, settle.
//!
//! ```text
//! lease -> deliver -> settle -> lease …
//!             |-> the sink as a whole cannot work: release the batch uncharged, back off, try again
//! ```
//!
//! While a backlog waits the next batch is leased and the one before settled beside the delivery (`ahead.rs`).

use std::convert::Infallible;
use std::time::{Duration, Instant};

use towpath_core::port::Sink;
use towpath_core::port::queue::Disposition;
use towpath_core::port::sink::Outcome;
use towpath_core::{Delivery, Error, ErrorKind, Receipt, Result, retry};
use tracing::{info, warn};

use super::ahead::Ahead;
use super::settling::Facts;
use super::{BACKEND, GIVE_BACK, Pump, Side, drawn, failed, guarded, warn_of_lost};
use crate::supervisor::Stop;
use crate::traces;

/// Pause of a sink that cannot work at all.
const SINK: retry::Policy =
    retry::Policy::forever(Duration::from_millis(100), Duration::from_secs(2));

/// Interval of log lines about a sink that cannot work.
const REMIND: Duration = Duration::from_secs(60);

/// Payload bytes that a batch grows up to.
const GROWN_BYTES: usize = 4 * 1024 * 1024;

/// Maximum number of messages of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    least: usize,
    most: usize,
    now: usize,
}

impl BatchSize {
    /// This many, whatever waits.
    pub const fn fixed(max: usize) -> Self {
        Self::growing(max, max)
    }

    /// At first `least`. Twice as many after each full batch, up to `most` messages or 4 MiB of payloads, and as many
    /// as there were after one that was not full.
    pub const fn growing(least: usize, most: usize) -> Self {
        Self {
            least,
            most,
            now: least,
        }
    }

    fn delivered(&mut self, batch: &[Delivery]) {
        let count = batch.len().max(1);
        let bytes: usize = batch.iter().map(|one| one.message.payload.len()).sum();
        let room = GROWN_BYTES / (bytes / count).max(1);
        let next = if batch.len() < self.now {
            count
        } else {
            self.now * 2
        };
        self.now = next.min(room).min(self.most).max(self.least);
    }

    const fn can_grow(&self) -> bool {
        self.least < self.most
    }

    const fn reset(&mut self) {
        self.now = self.least;
    }
}

enum Delivered {
    /// And the duration of the batch.
    Outcomes(Vec<Outcome>, Duration),
    Nothing(Error),
    OutOfTime,
}

/// Since when a sink cannot work, and when that was last logged.
#[derive(Default)]
struct Trouble {
    attempt: u32,
    since: Option<Instant>,
    logged: Option<Instant>,
}

impl Trouble {
    fn failed(&mut self, error: &Error) {
        self.attempt += 1;
        self.since.get_or_insert_with(Instant::now);
        if self.logged.is_none_or(|at| at.elapsed() >= REMIND) {
            self.logged = Some(Instant::now());
            let attempt = self.attempt;
            warn!(
                error = error.chain(),
                attempt, "sink unavailable; batch released, retrying"
            );
        }
    }

    /// Whether there was any.
    fn is_over(&mut self) -> bool {
        let lasted = std::mem::take(self).since.map(|since| since.elapsed());
        if let Some(lasted) = lasted {
            info!(?lasted, "sink available again");
        }
        lasted.is_some()
    }
}

impl Pump {
    pub(super) async fn deliver_batches(
        &self,
        sink: &dyn Sink,
        mut size: BatchSize,
        stop: &Stop,
    ) -> Result<()> {
        let (mut failures, mut trouble) = (0, Trouble::default());
        let mut ahead = Ahead::new(self, stop);
        while !stop.is_requested() {
            let (asked, leased) = ahead.lease(size.now).await;
            let batch = match leased {
                Ok(batch) => batch,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    failures += 1;
                    self.lease_failed(&error, failures);
                    stop.sleep(drawn(&BACKEND, failures)).await;
                    continue;
                }
                Err(error) => {
                    ahead.finish().await?;
                    return Err(error);
                }
            };
            self.leased(std::mem::take(&mut failures));
            if batch.is_empty() {
                size.reset();
                continue;
            }
            stop.account.add("leased", batch.len() as u64);
            let spans = traces::deliver(&batch, self.sink_name, asked.at);
            size.delivered(&batch);
            // More waits, as it seems: the next batch is read and this one's predecessor settled meanwhile.
            if batch.len() >= asked.max && size.can_grow() && self.consumer.leases_ahead() {
                ahead.begin(size.now);
            }
            match self.deliver_beside(sink, &batch, stop, &mut ahead).await {
                Delivered::Outcomes(outcomes, took) => {
                    if trouble.is_over() {
                        (self.condition)(Side::Sink, None);
                    }
                    traces::delivered(spans, &outcomes);
                    // One batch at most waits for its settlement.
                    ahead.finish().await?;
                    let facts = Facts::new(self.metrics.now(), took, None);
                    ahead.settle(self.endings(batch, outcomes, facts, stop));
                    if !ahead.is_begun() {
                        ahead.finish().await?;
                    }
                }
                Delivered::Nothing(error) => {
                    trouble.failed(&error);
                    size.reset();
                    self.metrics.sink_failed(batch.len());
                    (self.condition)(Side::Sink, Some(error.chain()));
                    traces::failed(spans, &error);
                    ahead.settle(released(batch));
                    ahead.give_back().await?;
                    stop.sleep(drawn(&SINK, trouble.attempt)).await;
                }
                Delivered::OutOfTime => {
                    ahead.settle(released(batch));
                    ahead.give_back().await?;
                }
            }
        }
        ahead.give_back().await
    }

    /// Delivers the batch while its neighbours are settled and leased.
    async fn deliver_beside(
        &self,
        sink: &dyn Sink,
        batch: &[Delivery],
        stop: &Stop,
        ahead: &mut Ahead<'_>,
    ) -> Delivered {
        let mut work = std::pin::pin!(self.deliver(sink, batch, stop));
        loop {
            tokio::select! {
                delivered = &mut work => return delivered,
                () = ahead.step() => {}
            }
        }
    }

    /// Hands the batch to the sink, renewing its leases for as long as that takes.
    async fn deliver(&self, sink: &dyn Sink, batch: &[Delivery], stop: &Stop) -> Delivered {
        let work = async {
            if !self.pause.is_zero() {
                tokio::select! {
                    () = tokio::time::sleep(self.pause) => {}
                    () = stop.requested() => return Delivered::OutOfTime,
                }
            }
            let began = Instant::now();
            match attempt(sink, batch).await {
                Ok(outcomes) => {
                    let took = began.elapsed();
                    self.metrics.sink_took(took);
                    Delivered::Outcomes(outcomes, took)
                }
                Err(error) => Delivered::Nothing(error),
            }
        };
        tokio::select! {
            biased;
            delivered = work => delivered,
            never = self.keep_leases(batch) => match never {},
            () = stop.nearly_over(GIVE_BACK) => Delivered::OutOfTime,
        }
    }

    /// Renews the leases of the batch until dropped.
    async fn keep_leases(&self, batch: &[Delivery]) -> Infallible {
        // A third of the lease, so that two lost renewals still leave time for a third.
        let often = self.consumer.lease_time() / 3;
        loop {
            tokio::time::sleep(often).await;
            let receipts: Vec<Receipt> = batch.iter().map(|one| one.receipt.clone()).collect();
            warn_of_lost(self.renew(&receipts, often).await.len());
        }
    }

    /// The outcomes of deliveries of a batch that are not settled yet.
    fn endings(
        &self,
        batch: Vec<Delivery>,
        outcomes: Vec<Outcome>,
        facts: Facts,
        stop: &Stop,
    ) -> impl Iterator<Item = (Delivery, Disposition, Option<Facts>)> {
        // A sink that answers too few leaves the rest undelivered.
        let outcomes = outcomes
            .into_iter()
            .chain(std::iter::repeat_with(no_outcome));
        let ended = batch.into_iter().zip(outcomes);
        ended.filter_map(move |(delivery, outcome)| {
            let disposition = self.disposition(&delivery, outcome, stop)?;
            Some((delivery, disposition, Some(facts.clone())))
        })
    }
}

fn released(batch: Vec<Delivery>) -> impl Iterator<Item = (Delivery, Disposition, Option<Facts>)> {
    batch
        .into_iter()
        .map(|one| (one, Disposition::RELEASE, None))
}

/// One outcome per delivery.
///
/// When the sink panics over a batch it gets the messages one by one: only the one
/// that it cannot bear is charged, and not its neighbours.
async fn attempt(sink: &dyn Sink, batch: &[Delivery]) -> Result<Vec<Outcome>> {
    let panic = match guarded(sink.deliver(batch)).await {
        Ok(delivered) => return delivered,
        Err(panic) => panic,
    };
    warn!(panic, messages = batch.len(), "sink panicked");
    if let [_] = batch {
        return Ok(vec![failed(format!("the sink panicked: {panic}"))]);
    }
    let mut outcomes = Vec::with_capacity(batch.len());
    for delivery in batch.chunks(1) {
        let outcome = match guarded(sink.deliver(delivery)).await {
            Ok(delivered) => delivered?.into_iter().next().unwrap_or_else(no_outcome),
            Err(panic) => failed(format!("the sink panicked: {panic}")),
        };
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

fn no_outcome() -> Outcome {
    failed("the sink gave no outcome".to_owned())
}
