//! Settlements: ended deliveries go to the backend together, one call at a time, and again while it is unavailable.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use towpath_core::port::queue::{Disposition, Settlement};
use towpath_core::{Attempt, Delivery, Error, ErrorKind, Result, Timestamp};
use tracing::{debug, error, warn};

use super::{BACKEND, Pump, drawn};
use crate::failures::log_failure;
use crate::supervisor::Stop;

/// Delay of a message whose settlement the backend refuses.
const REFUSED: Duration = Duration::from_secs(60);

/// A delivery and how it ends.
#[derive(Clone)]
pub(super) struct Ended {
    pub(super) delivery: Arc<Delivery>,
    pub(super) disposition: Disposition,
    /// Facts of a failed attempt for its record; `None` when nothing was attempted.
    pub(super) facts: Option<Facts>,
}

/// Measurements of an attempt.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    ended_at: Timestamp,
    took: Duration,
    answer: Option<String>,
}

impl Facts {
    pub(super) const fn new(ended_at: Timestamp, took: Duration, answer: Option<String>) -> Self {
        Self {
            ended_at,
            took,
            answer,
        }
    }
}

/// The result of one call.
#[derive(Default)]
struct Settled {
    /// Fences of deliveries that are over.
    over: Vec<u64>,
    /// To be settled in another call.
    again: Vec<Ended>,
    /// Why, when the backend did not answer.
    unavailable: Option<Error>,
}

/// Everything that has ended and is not settled.
pub(super) struct Settling<'a> {
    pump: &'a Pump,
    stop: &'a Stop,
    waiting: Vec<Ended>,
    /// Of the call under way.
    fences: Vec<u64>,
    call: Option<Pin<Box<dyn Future<Output = Settled> + Send + 'a>>>,
    failures: u32,
    not_before: Option<Instant>,
}

impl<'a> Settling<'a> {
    pub(super) const fn new(pump: &'a Pump, stop: &'a Stop) -> Self {
        Self {
            pump,
            stop,
            waiting: Vec::new(),
            fences: Vec::new(),
            call: None,
            failures: 0,
            not_before: None,
        }
    }

    pub(super) fn add(&mut self, ended: Ended) {
        self.waiting.push(ended);
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.call.is_none()
    }

    /// Of everything that is here.
    pub(super) fn fences(&self) -> HashSet<u64> {
        let waiting = self.waiting.iter();
        let waiting = waiting.map(|ended| ended.delivery.receipt.fence);
        waiting.chain(self.fences.iter().copied()).collect()
    }

    /// Settles, and gives the fences of deliveries that are over; pending while there is nothing to do.
    ///
    /// Cancel-safe: the next call continues an unfinished one.
    pub(super) async fn next(&mut self) -> Vec<u64> {
        if self.call.is_none() {
            if let Some(moment) = self.not_before {
                tokio::time::sleep_until(moment).await;
                self.not_before = None;
            }
            if self.waiting.is_empty() {
                return std::future::pending().await;
            }
            let ended = std::mem::take(&mut self.waiting);
            let fences = ended.iter().map(|ended| ended.delivery.receipt.fence);
            self.fences = fences.collect();
            self.call = Some(Box::pin(settle(self.pump, self.stop, ended)));
        }
        let Some(call) = &mut self.call else {
            return Vec::new();
        };
        let settled = call.await;
        self.call = None;
        self.fences.clear();
        match settled.unavailable {
            None => self.failures = 0,
            Some(error) => {
                self.failures += 1;
                let attempt = self.failures;
                log_failure("settle failed; retrying", &error);
                self.not_before = Some(Instant::now() + drawn(&BACKEND, attempt));
            }
        }
        self.waiting.splice(..0, settled.again);
        settled.over
    }

    /// Settles everything.
    ///
    /// # Errors
    /// `Unavailable` when that takes longer than `limit`; deliveries come back by their lease or at the next start.
    pub(super) async fn finish(&mut self, limit: Duration) -> Result<()> {
        let settle = async {
            while !self.is_empty() {
                self.next().await;
            }
        };
        let settled = tokio::time::timeout(limit, settle).await;
        settled.map_err(|_| Error::unavailable("deliveries were not settled before the stop"))
    }
}

async fn settle(pump: &Pump, stop: &Stop, ended: Vec<Ended>) -> Settled {
    let settlements: Vec<Settlement> = ended
        .iter()
        .map(|ended| Settlement {
            receipt: ended.delivery.receipt.clone(),
            disposition: pump.recorded(ended),
        })
        .collect();
    let mut settled = Settled::default();
    match pump.consumer.settle(settlements).await {
        Ok(outcomes) => {
            for (ended, outcome) in ended.into_iter().zip(outcomes) {
                note(pump, stop, ended, outcome, &mut settled);
            }
        }
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            settled.again = ended;
            settled.unavailable = Some(error);
        }
        // One of them is refused; settling each one alone shows which.
        Err(_) if ended.len() > 1 => {
            for one in ended {
                let alone = Box::pin(settle(pump, stop, vec![one])).await;
                settled.over.extend(alone.over);
                settled.again.extend(alone.again);
                settled.unavailable = settled.unavailable.or(alone.unavailable);
            }
        }
        Err(error) => {
            for one in ended {
                refused(one, &error, &mut settled);
            }
        }
    }
    settled
}

impl Pump {
    /// The disposition as the queue gets it: its error is the record of the attempt.
    fn recorded(&self, ended: &Ended) -> Disposition {
        let (Some(consumer), Some(facts)) = (self.consumer.recorded_as(), &ended.facts) else {
            return ended.disposition.clone();
        };
        let record = |error: &str| {
            let attempt = Attempt {
                ended_at: facts.ended_at,
                took: facts.took,
                consumer: consumer.clone(),
                error: error.to_owned(),
                answer: facts.answer.clone(),
            };
            attempt.to_text()
        };
        match &ended.disposition {
            Disposition::Retry { after, error } => Disposition::Retry {
                after: *after,
                error: record(error),
            },
            Disposition::DeadLetter { reason } => Disposition::DeadLetter {
                reason: record(reason),
            },
            other => other.clone(),
        }
    }

    /// The queue's outcome of a disposition: a message whose attempts are used up becomes a dead letter.
    fn ending(&self, ended: &Ended) -> Disposition {
        match &ended.disposition {
            Disposition::Retry { error, .. } if ended.delivery.attempt >= self.retry.attempts => {
                let reason = error.clone();
                Disposition::DeadLetter { reason }
            }
            other => other.clone(),
        }
    }
}

/// Counts the outcome of one settlement.
fn note(pump: &Pump, stop: &Stop, ended: Ended, outcome: Result<()>, settled: &mut Settled) {
    match outcome {
        Ok(()) => {
            let ending = pump.ending(&ended);
            stop.account.add(word(&ending), 1);
            pump.metrics.settled(&ended.delivery, &ending);
            settled_one(pump, &ended.delivery, word(&ending));
            settled.over.push(ended.delivery.receipt.fence);
        }
        Err(error) if error.kind() == ErrorKind::Conflict => {
            stop.account.add("lost leases", 1);
            pump.metrics.lease_lost();
            warn!(
                error = error.chain(),
                id = %ended.delivery.message.id,
                "lease lost; outcome discarded"
            );
            settled.over.push(ended.delivery.receipt.fence);
        }
        Err(error) if error.kind() == ErrorKind::Unavailable => {
            settled.again.push(ended);
            settled.unavailable = Some(error);
        }
        Err(error) => refused(ended, &error, settled),
    }
}

/// Delays a message whose settlement is refused, which changes nothing of the message. When the backend refuses the
/// delay too, the lease expires.
fn refused(ended: Ended, error: &Error, settled: &mut Settled) {
    let Ended {
        delivery,
        disposition,
        ..
    } = ended;
    error!(
        error = error.chain(),
        id = %delivery.message.id,
        disposition = word(&disposition),
        "settlement refused; message delayed"
    );
    if matches!(disposition, Disposition::Release { .. }) {
        settled.over.push(delivery.receipt.fence);
    } else {
        let disposition = Disposition::Release { after: REFUSED };
        settled.again.push(Ended {
            delivery,
            disposition,
            facts: None,
        });
    }
}

/// One debug line a message, by its id, for an operator with `--verbose`.
pub(super) fn settled_one(pump: &Pump, delivery: &Delivery, outcome: &str) {
    debug!(
        queue = %delivery.receipt.queue,
        id = %delivery.message.id,
        attempt = delivery.attempt,
        sink = pump.sink_name,
        outcome,
        "message settled"
    );
}

/// The account's word for an ending.
const fn word(disposition: &Disposition) -> &'static str {
    match disposition {
        Disposition::Ack => "acked",
        Disposition::Retry { .. } => "retried",
        Disposition::DeadLetter { .. } => "dead letters",
        Disposition::Release { .. } => "released",
    }
}
