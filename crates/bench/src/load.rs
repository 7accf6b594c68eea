//! The loads: calls to a line, and their results.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use towpath_core::{Error, Result};

use super::limit::Limit;
use super::line::Line;
use super::measure::Latencies;
use super::payload::Payloads;

/// Messages taken at once where no shape says otherwise.
pub(crate) const DRAIN_BATCH: usize = 100;

/// Silence after which a line counts as empty: brokers pause.
const DRAIN_WAIT: Duration = Duration::from_millis(500);

/// A message that was acknowledged and does not come for so long is lost.
const LOST: Duration = Duration::from_secs(30);

/// The calls of a load.
#[derive(Clone)]
pub(crate) struct Load {
    /// The line they share.
    pub(crate) line: Arc<Line>,
    /// Where their payloads come from.
    pub(crate) payloads: Arc<Payloads>,
    /// Callers, each with one call in flight.
    pub(crate) callers: usize,
    /// Messages in one call.
    pub(crate) batch: usize,
}

/// The result of a load.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Numbers of the acknowledged messages.
    pub(crate) sent: Vec<Range<u64>>,
    /// Numbers of the consumed messages.
    pub(crate) seen: Vec<u64>,
    /// Of each call, or of each message from the call that sent it until it was settled.
    pub(crate) latencies: Latencies,
    /// When the last message was consumed; the rest of the run is waiting for more.
    pub(crate) ended: Option<Instant>,
}

impl Outcome {
    /// Number of acknowledged messages.
    pub(crate) fn messages(&self) -> u64 {
        self.sent.iter().map(|some| some.end - some.start).sum()
    }

    /// Adds the result of another caller.
    pub(crate) fn merge(&mut self, other: Self) {
        self.sent.extend(other.sent);
        self.seen.extend(other.seen);
        self.latencies.merge(other.latencies);
        self.ended = self.ended.max(other.ended);
    }
}

/// Waits for every caller.
pub(crate) async fn join(mut tasks: JoinSet<Result<Outcome>>) -> Result<Outcome> {
    let mut all = Outcome::default();
    while let Some(ended) = tasks.join_next().await {
        all.merge(ended.map_err(panicked)??);
    }
    Ok(all)
}

/// A measuring task that panicked.
pub(crate) fn panicked(join: tokio::task::JoinError) -> Error {
    Error::unavailable("a measuring task panicked").with_source(join)
}

impl Load {
    /// Each caller publishes, a batch at a time, with a pause between.
    pub(crate) async fn publish(&self, limit: &Limit, pause: Duration) -> Result<Outcome> {
        let mut tasks = JoinSet::new();
        for _ in 0..self.callers {
            let (load, limit) = (self.clone(), limit.clone());
            tasks.spawn(async move {
                let mut outcome = Outcome::default();
                while limit.take(load.batch) {
                    let (numbers, payloads) = load.payloads.take(load.batch);
                    let call = Instant::now();
                    load.line.publish(payloads).await?;
                    outcome.latencies.record(call);
                    outcome.sent.push(numbers);
                    if !pause.is_zero() {
                        tokio::time::sleep(pause).await;
                    }
                }
                Ok(outcome)
            });
        }
        join(tasks).await
    }

    /// Each caller publishes a batch and consumes as many messages, one step after the other.
    pub(crate) async fn cycle(&self, limit: &Limit) -> Result<Outcome> {
        let mut tasks = JoinSet::new();
        for _ in 0..self.callers {
            let (load, limit) = (self.clone(), limit.clone());
            tasks.spawn(async move {
                let mut outcome = Outcome::default();
                while limit.take(load.batch) {
                    let (numbers, payloads) = load.payloads.take(load.batch);
                    let call = Instant::now();
                    load.line.publish(payloads).await?;
                    outcome.sent.push(numbers);
                    // As many as were published by then are there for every caller.
                    let mut wanted = load.batch;
                    while wanted > 0 && call.elapsed() < LOST {
                        let wait = Duration::from_millis(200);
                        let payloads = load.line.consume(wanted, wait).await?;
                        wanted -= payloads.len().min(wanted);
                        let known = payloads
                            .iter()
                            .filter_map(|one| load.payloads.read(one))
                            .map(|(number, _)| number);
                        outcome.seen.extend(known);
                    }
                    outcome.latencies.record(call);
                }
                Ok(outcome)
            });
        }
        join(tasks).await
    }

    /// Callers publish while one worker consumes in batches, until everything is consumed.
    pub(crate) async fn hand_over(&self, limit: &Limit, pause: Duration) -> Result<Outcome> {
        let done = Arc::new(AtomicBool::new(false));
        let mut worker = JoinSet::new();
        let (load, last) = (self.clone(), Arc::clone(&done));
        worker.spawn(async move {
            let mut outcome = Outcome::default();
            loop {
                // Read before consuming, so that this call finds every message published until then.
                let last = last.load(Ordering::Acquire);
                let wait = Duration::from_millis(200);
                let payloads = load.line.consume(DRAIN_BATCH, wait).await?;
                if payloads.is_empty() {
                    if last {
                        return Ok(outcome);
                    }
                    continue;
                }
                outcome.ended = Some(Instant::now());
                for payload in payloads {
                    if let Some((number, moment)) = load.payloads.read(&payload) {
                        outcome.latencies.record(moment);
                        outcome.seen.push(number);
                    }
                }
            }
        });
        let published = self.publish(limit, pause).await;
        done.store(true, Ordering::Release);
        let mut outcome = join(worker).await?;
        outcome.sent = published?.sent;
        Ok(outcome)
    }

    /// Consumes the waiting messages without producers.
    pub(crate) async fn drain(&self) -> Result<Outcome> {
        let mut outcome = Outcome::default();
        loop {
            let call = Instant::now();
            let payloads = self.line.consume(DRAIN_BATCH, DRAIN_WAIT).await?;
            if payloads.is_empty() {
                return Ok(outcome);
            }
            outcome.latencies.record(call);
            outcome.ended = Some(Instant::now());
            let known = payloads.iter().filter_map(|one| self.payloads.read(one));
            outcome.seen.extend(known.map(|(number, _)| number));
        }
    }
}
