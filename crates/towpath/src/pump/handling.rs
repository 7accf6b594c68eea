//! The loop over single messages: each is handled, and settled as soon as its outcome is known.
//!
//! ```text
//! lease as many as fit -> handle, several at once, in any order -> settle ended deliveries together
//! ```
//!
//! A consumer leases no more than it can begin at once, so that a crash charges only deliveries that had begun. A message whose last
//! delivery had no outcome may be the reason for that: it is handled alone in its process.

#![expect(clippy::disallowed_methods, reason = "spans have the machine's time")]

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant as Moment, MissedTickBehavior};
use towpath_core::port::queue::Disposition;
use towpath_core::port::sink::{Cause, Outcome};
use towpath_core::{Delivery, ErrorKind, Result};
use tracing::{info, warn};

use super::answer;
use super::destination::Capacity;
use super::settling::{Ended, Facts, Settling};
use super::{BACKEND, Destination, GIVE_BACK, Handler, Pump, drawn, failed, guarded, warn_of_lost};
use crate::supervisor::Stop;
use crate::traces;

/// Time before the cut-off at which a handler is notified of it.
const HURRY: Duration = Duration::from_secs(3);

/// Delay of a message that must be handled alone while another one is in flight.
const ALONE_AGAIN: Duration = Duration::from_millis(200);

/// The place for the one message of a process that is handled alone; cheap to clone.
#[derive(Debug, Clone)]
pub struct Alone(Arc<Semaphore>);

impl Default for Alone {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Alone {
    fn try_take(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_owned().ok()
    }

    async fn take(self) -> Option<OwnedSemaphorePermit> {
        self.0.acquire_owned().await.ok()
    }
}

/// How messages are handled one by one.
#[derive(Clone)]
pub struct Handling {
    /// Its handler.
    pub handler: Arc<dyn Handler>,
    /// Most of them at once.
    pub in_flight: usize,
    /// Shared by all pumps of the process.
    pub alone: Alone,
}

type Work<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The result of a lease.
struct Leased {
    /// When this message may be handled alone.
    permit: Option<OwnedSemaphorePermit>,
    asked_at: SystemTime,
    batch: Result<Vec<Delivery>>,
}

/// A delivery that is over.
struct Over {
    delivery: Arc<Delivery>,
    /// `None` when its handler has settled it.
    disposition: Option<Disposition>,
    /// The record of a failed attempt.
    facts: Option<Facts>,
    /// Why, when a backend that the handler needs did not answer.
    unavailable: Option<String>,
}

/// Whether messages that may have killed a process are expected.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Care {
    /// Nothing is known yet: the first lease is for one.
    First,
    /// None.
    Normal,
    /// There are some: nothing is leased until everything under way is settled, and then one at a time.
    OneByOne,
}

/// One run of the loop.
struct Run<'a> {
    pump: &'a Pump,
    handling: &'a Handling,
    stop: &'a Stop,
    care: Care,
    /// Held while a message is handled alone.
    alone: Option<OwnedSemaphorePermit>,
    lease: Option<Work<'a, Leased>>,
    lease_failures: u32,
    lease_at: Option<Moment>,
    /// Deliveries in a row that met an unavailable backend of the handler.
    handler_failures: u32,
    running: FuturesUnordered<Work<'a, Over>>,
    /// Everything leased and not settled, by fence.
    held: HashMap<u64, Arc<Delivery>>,
    settling: Settling<'a>,
    renewing: Option<Work<'a, Vec<u64>>>,
}

impl Pump {
    /// Runs until the stop is requested and everything under way is settled.
    pub(super) async fn handle_each(&self, handling: &Handling, stop: &Stop) -> Result<()> {
        let mut run = Run {
            pump: self,
            handling,
            stop,
            care: Care::First,
            alone: None,
            lease: None,
            lease_failures: 0,
            lease_at: None,
            handler_failures: 0,
            running: FuturesUnordered::new(),
            held: HashMap::new(),
            settling: Settling::new(self, stop),
            renewing: None,
        };
        run.run().await
    }
}

impl Run<'_> {
    async fn run(&mut self) -> Result<()> {
        let often = self.pump.consumer.lease_time() / 3;
        let mut renew = tokio::time::interval_at(Moment::now() + often, often);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.stop;
        let mut stopping = std::pin::pin!(stop.requested().fuse());
        let mut hurry = std::pin::pin!(stop.nearly_over(GIVE_BACK + HURRY).fuse());
        let mut cut_off = std::pin::pin!(stop.nearly_over(GIVE_BACK).fuse());
        let (mut is_stopping, mut is_hurried) = (false, false);
        loop {
            let wake = self.begin();
            let is_idle = self.lease.is_none() && self.running.is_empty();
            if stop.is_requested() && is_idle && self.settling.is_empty() {
                return Ok(());
            }
            tokio::select! {
                leased = next(&mut self.lease) => self.leased(leased)?,
                Some(over) = self.running.next() => self.over(over),
                settled = self.settling.next() => {
                    for fence in settled {
                        self.held.remove(&fence);
                    }
                }
                lost = next(&mut self.renewing) => self.lost(&lost),
                _ = renew.tick() => self.renew(often),
                () = &mut stopping, if !is_stopping => is_stopping = true,
                () = &mut hurry, if !is_hurried => {
                    is_hurried = true;
                    self.handling.handler.hurry();
                }
                () = &mut cut_off => return self.cut_off().await,
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Begins a lease when there is room for one; otherwise when to look again, beside the end of something.
    fn begin(&mut self) -> Option<Moment> {
        if self.held.is_empty() {
            self.alone = None;
        }
        if self.lease.is_some() || self.stop.is_requested() {
            return None;
        }
        if let Some(at) = self.lease_at.filter(|at| *at > Moment::now()) {
            return Some(at);
        }
        let free = match self.care {
            Care::First => 1,
            Care::OneByOne => usize::from(self.held.is_empty()),
            Care::Normal => self.handling.in_flight.saturating_sub(self.held.len()),
        };
        let destination = self.handling.handler.destination();
        let max = match destination.map(Destination::room) {
            Some(Capacity::NotBefore(at)) => return Some(at),
            Some(Capacity::For(room)) => free.min(room),
            None => free,
        };
        if max > 0 {
            let in_flight = match self.care {
                Care::Normal => self.handling.in_flight,
                Care::First | Care::OneByOne => 1,
            };
            let alone = (self.care == Care::OneByOne).then(|| self.handling.alone.clone());
            self.lease = Some(Box::pin(lease(self.pump, self.stop, alone, max, in_flight)));
        }
        None
    }

    fn leased(&mut self, leased: Leased) -> Result<()> {
        let batch = match leased.batch {
            Ok(batch) => batch,
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                self.lease_failures += 1;
                let attempt = self.lease_failures;
                self.pump.lease_failed(&error, attempt);
                self.lease_at = Some(Moment::now() + drawn(&BACKEND, attempt));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.pump.leased(std::mem::take(&mut self.lease_failures));
        if self.handler_failures == 0 {
            self.lease_at = None;
        }
        if batch.is_empty() {
            self.care = Care::Normal;
            return Ok(());
        }
        self.stop.account.add("leased", batch.len() as u64);
        let batch = batch.into_iter().map(Arc::new);
        let batch: Vec<_> = batch
            .inspect(|delivery| {
                let fence = delivery.receipt.fence;
                self.held.insert(fence, Arc::clone(delivery));
            })
            .collect();
        if self.stop.is_requested() {
            for delivery in batch {
                self.end(delivery, Some(Disposition::RELEASE));
            }
            return Ok(());
        }
        let (mut suspects, fresh): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|delivery| delivery.interrupted);
        self.care = match suspects.is_empty() {
            true => Care::Normal,
            false => Care::OneByOne,
        };
        // Nothing else is held: it is alone in this pump, and with the permit in this process.
        if self.held.len() == 1
            && let Some(suspect) = suspects.pop_if(|_| true)
        {
            let permit = leased.permit.or_else(|| self.handling.alone.try_take());
            if permit.is_some() {
                self.alone = permit;
                self.start(suspect, leased.asked_at);
            } else {
                let after = ALONE_AGAIN;
                self.end(suspect, Some(Disposition::Release { after }));
            }
        }
        for suspect in suspects {
            self.end(suspect, Some(Disposition::RELEASE));
        }
        for delivery in fresh {
            self.start(delivery, leased.asked_at);
        }
        Ok(())
    }

    fn start(&self, delivery: Arc<Delivery>, asked_at: SystemTime) {
        if self.alone.is_some() {
            info!(
                queue = %delivery.receipt.queue,
                id = %delivery.message.id,
                attempt = delivery.attempt,
                "last delivery had no outcome; handling the message alone"
            );
        }
        let (pump, handling, stop) = (self.pump, self.handling, self.stop);
        self.running.push(Box::pin(async move {
            handle(pump, &*handling.handler, stop, delivery, asked_at).await
        }));
    }

    fn over(&mut self, over: Over) {
        match over.unavailable {
            Some(error) => {
                self.handler_failures += 1;
                let attempt = self.handler_failures;
                if attempt == 1 {
                    warn!(error, "handler waiting for its backend");
                }
                self.lease_at = Some(Moment::now() + drawn(&BACKEND, attempt));
            }
            None => self.handler_failures = 0,
        }
        self.end_as(over.delivery, over.disposition, over.facts);
    }

    /// Has a delivery settled; without a disposition its handler did.
    fn end(&mut self, delivery: Arc<Delivery>, disposition: Option<Disposition>) {
        self.end_as(delivery, disposition, None);
    }

    /// The same with the record of the attempt.
    fn end_as(
        &mut self,
        delivery: Arc<Delivery>,
        disposition: Option<Disposition>,
        facts: Option<Facts>,
    ) {
        match disposition {
            Some(disposition) => self.settling.add(Ended {
                delivery,
                disposition,
                facts,
            }),
            None => _ = self.held.remove(&delivery.receipt.fence),
        }
    }

    fn renew(&mut self, often: Duration) {
        if self.renewing.is_none() && !self.held.is_empty() {
            let held = self.held.values();
            let receipts: Vec<_> = held.map(|delivery| delivery.receipt.clone()).collect();
            let pump = self.pump;
            self.renewing = Some(Box::pin(async move { pump.renew(&receipts, often).await }));
        }
    }

    /// A delivery that was settled while the renewal was under way is not lost.
    fn lost(&self, fences: &[u64]) {
        let settling = self.settling.fences();
        let held = |fence: &&u64| self.held.contains_key(*fence) && !settling.contains(*fence);
        warn_of_lost(fences.iter().filter(held).count());
    }

    /// Releases unfinished deliveries, and settles for the last time.
    async fn cut_off(&mut self) -> Result<()> {
        self.running.clear();
        self.lease = None;
        let ended = self.settling.fences();
        let cut: Vec<_> = self.held.values().cloned().collect();
        for delivery in cut {
            if !ended.contains(&delivery.receipt.fence) {
                self.end(delivery, Some(Disposition::RELEASE));
            }
        }
        self.settling.finish(GIVE_BACK / 2).await
    }
}

async fn lease(
    pump: &Pump,
    stop: &Stop,
    alone: Option<Alone>,
    max: usize,
    in_flight: usize,
) -> Leased {
    let permit = match alone {
        None => None,
        Some(alone) => tokio::select! {
            permit = alone.take() => permit,
            () = stop.requested() => None,
        },
    };
    let asked_at = SystemTime::now();
    let batch = match stop.is_requested() {
        true => Ok(Vec::new()),
        false => pump.consumer.lease(max, in_flight).await,
    };
    Leased {
        permit,
        asked_at,
        batch,
    }
}

/// One delivery, from its begin to its disposition.
async fn handle(
    pump: &Pump,
    handler: &dyn Handler,
    stop: &Stop,
    delivery: Arc<Delivery>,
    asked_at: SystemTime,
) -> Over {
    let released = |delivery, disposition| Over {
        delivery,
        disposition: Some(disposition),
        facts: None,
        unavailable: None,
    };
    if !pump.pause.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(pump.pause) => {}
            () = stop.requested() => return released(delivery, Disposition::RELEASE),
        }
    }
    let call = match handler.destination().map(Destination::begin).transpose() {
        Ok(call) => call,
        Err(after) => return released(delivery, Disposition::Release { after }),
    };
    let one = std::slice::from_ref(&*delivery);
    let spans = traces::deliver(one, pump.sink_name, asked_at);
    let position = traces::of_delivery(&spans, &delivery);
    let began = Instant::now();
    let handled = traces::within(position, guarded(handler.handle(&delivery)));
    let (handled, answer) = answer::noted(handled).await;
    let outcome = match handled {
        Ok(outcome) => outcome,
        Err(panic) => failed(format!("the handler panicked: {panic}")),
    };
    let took = began.elapsed();
    pump.metrics.sink_took(took);
    let outcome = match call {
        Some(call) => call.end(&delivery, outcome),
        None => outcome,
    };
    traces::delivered(spans, std::slice::from_ref(&outcome));
    let unavailable = match &outcome {
        Outcome::Unavailable {
            cause: Cause::Backend,
            error,
            ..
        } => Some(error.clone()),
        _ => None,
    };
    Over {
        disposition: pump.disposition(&delivery, outcome, stop),
        facts: Some(Facts::new(pump.metrics.now(), took, answer)),
        delivery,
        unavailable,
    }
}

/// The end of the work that there is; pending while there is none.
async fn next<T>(work: &mut Option<Work<'_, T>>) -> T {
    let Some(running) = work else {
        return std::future::pending().await;
    };
    let ended = running.await;
    *work = None;
    ended
}

async fn sleep_until(moment: Option<Moment>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
