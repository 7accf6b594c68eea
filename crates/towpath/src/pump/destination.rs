//! Destinations: a receiver, a mail server, a program, with the state that its own answers give it.
//!
//! ```text
//! open --unavailable--> paused --time is over--> trial --any other answer--> open
//!                          ^                       |
//!                          +------unavailable------+   (each pause longer, up to 5 s or what it asked for)
//! ```
//!
//! An overloaded destination gets messages at the rate that it accepted before, raised slowly.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;
use towpath_core::port::sink::{Cause, Outcome};
use towpath_core::{Clock, Delivery, MessageId, retry};
use tracing::{info, warn};

use super::rate_probe::RateProbe;

/// Pauses of a destination that names no time of its own. The longest is short, so that a destination that returns is
/// noticed within seconds; one trial in five seconds does not load it.
const PAUSES: retry::Policy =
    retry::Policy::forever(Duration::from_millis(100), Duration::from_secs(5));

/// Longest pause that a destination can ask for: a wrong date must not stop it for ever.
const LONGEST_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// Delay of a message beyond the pause, so that another one makes the trial.
const BEHIND_THE_TRIAL: Duration = Duration::from_millis(500);

/// Delay of a delivery while a trial is under way.
const DURING_TRIAL: Duration = Duration::from_millis(250);

/// Minimum time that a message may wait for its destination without a charged attempt.
pub const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Refusals without a success after which a destination that gets too much counts as unavailable.
const REFUSALS: u32 = 3;

/// Messages remembered as possible reasons of a failure.
const DOUBTFUL: usize = 1_024;

/// Condition of a destination, as in its metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Takes deliveries.
    Open,
    /// Takes them at the rate that it allows.
    Limited,
    /// Is left alone.
    Paused,
}

/// A change of a destination's condition.
#[derive(Debug)]
pub struct Change {
    /// Of which.
    pub name: String,
    /// As it was.
    pub from: Condition,
    /// As it is.
    pub to: Condition,
    /// The fault.
    pub problem: Option<String>,
}

/// Notified of every change.
pub type Observer = Arc<dyn Fn(Change) + Send + Sync>;

/// Number of further deliveries that a destination takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capacity {
    /// At most this many now.
    For(usize),
    /// None before this moment.
    NotBefore(Instant),
}

/// One destination, shared by everything in the process that sends to it.
pub struct Destination {
    name: String,
    retry: retry::Policy,
    patience: Duration,
    clock: Arc<dyn Clock>,
    observer: Observer,
    state: Mutex<State>,
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Destination").field(&self.name).finish()
    }
}

struct State {
    phase: Phase,
    condition: Condition,
    /// Pauses in a row.
    failures: u32,
    /// Deliveries under way.
    under_way: usize,
    paused_since: Option<Instant>,
    pace: RateProbe,
    /// Deliveries that it dealt with, well or badly.
    served: u64,
    /// Messages that it failed with, newest last.
    doubtful: VecDeque<Doubt>,
}

/// A message that a destination failed with.
struct Doubt {
    id: MessageId,
    /// Number of served deliveries at that time.
    served: u64,
    /// Failures between which it served others.
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Paused { until: Instant },
    Trial,
}

/// A delivery under way; dropped without an end it was cut off.
#[derive(Debug)]
pub struct Call<'a> {
    destination: &'a Destination,
    is_trial: bool,
    ended: bool,
}

impl Destination {
    /// A destination called `name` in logs and health; no secret may be part of it.
    ///
    /// A message that failed while others were served is delayed as `retry` says, and one that waited for longer
    /// than `patience` is charged.
    pub fn new(
        name: impl Into<String>,
        retry: retry::Policy,
        patience: Duration,
        clock: Arc<dyn Clock>,
        observer: Observer,
    ) -> Self {
        Self {
            name: name.into(),
            retry,
            patience,
            clock,
            observer,
            state: Mutex::new(State {
                phase: Phase::Open,
                condition: Condition::Open,
                failures: 0,
                under_way: 0,
                paused_since: None,
                pace: RateProbe::default(),
                served: 0,
                doubtful: VecDeque::new(),
            }),
        }
    }

    /// Number of further deliveries that it takes now.
    pub fn room(&self) -> Capacity {
        let now = Instant::now();
        let state = self.lock();
        match state.phase {
            Phase::Open => state.pace.room(now, state.under_way),
            Phase::Paused { until } if now < until => Capacity::NotBefore(until),
            Phase::Paused { .. } => Capacity::For(1),
            Phase::Trial => Capacity::NotBefore(now + DURING_TRIAL),
        }
    }

    /// Begins a delivery.
    ///
    /// # Errors
    /// Delay of the message, when the destination is paused or at its rate.
    pub fn begin(&self) -> Result<Call<'_>, Duration> {
        let now = Instant::now();
        let mut state = self.lock();
        let is_trial = match state.phase {
            Phase::Open => {
                let under_way = state.under_way;
                let taken = state.pace.take(now, under_way);
                taken.map_err(|at| at.saturating_duration_since(now))?;
                false
            }
            Phase::Paused { until } if now < until => return Err(behind(until - now)),
            Phase::Paused { .. } => {
                state.phase = Phase::Trial;
                true
            }
            Phase::Trial => return Err(behind(DURING_TRIAL)),
        };
        state.under_way += 1;
        Ok(Call {
            destination: self,
            is_trial,
            ended: false,
        })
    }

    /// The destination took a delivery, or dealt with it otherwise.
    fn served(&self, is_trial: bool) {
        let mut state = self.lock();
        state.served += 1;
        state.pace.served();
        if is_trial {
            state.phase = Phase::Open;
            state.failures = 0;
        }
        if state.phase != Phase::Open {
            return;
        }
        let condition = if state.pace.is_limited() {
            Condition::Limited
        } else {
            Condition::Open
        };
        let was = std::mem::replace(&mut state.condition, condition);
        let paused_since = state.paused_since.take();
        drop(state);
        if was == condition {
            return;
        }
        if was == Condition::Paused {
            let paused_for = paused_since.map_or(Duration::ZERO, |since| since.elapsed());
            info!(destination = self.name, ?paused_for, "destination resumed");
        }
        (self.observer)(Change {
            name: self.name.clone(),
            from: was,
            to: condition,
            problem: None,
        });
    }

    /// Pauses, and returns the delay of the message.
    fn failed(
        &self,
        cause: Cause,
        after: Option<Duration>,
        error: &str,
        is_trial: bool,
    ) -> Duration {
        let now = Instant::now();
        let mut state = self.lock();
        let requested = after.unwrap_or_default().min(LONGEST_PAUSE);
        let pause = match state.phase {
            // Deliveries that began before the pause say nothing new, but how long to wait.
            Phase::Paused { until } if !is_trial => {
                let until = until.max(now + requested);
                state.phase = Phase::Paused { until };
                return behind(until.saturating_duration_since(now));
            }
            Phase::Trial if !is_trial => return behind(requested.max(DURING_TRIAL)),
            _ => {
                state.failures += 1;
                let drawn = PAUSES.next_delay(state.failures, &mut rand::rng());
                drawn.max(jittered(requested))
            }
        };
        if cause == Cause::Overloaded {
            state.pace.refused(now);
        }
        state.phase = Phase::Paused { until: now + pause };
        let condition = if cause == Cause::Overloaded && state.failures < REFUSALS {
            Condition::Limited
        } else {
            state.paused_since.get_or_insert(now);
            Condition::Paused
        };
        let was = state.condition;
        // A paused destination stays paused until a trial succeeds.
        if was != Condition::Paused {
            state.condition = condition;
        }
        let is_change = was != Condition::Paused && was != condition;
        drop(state);
        if is_change {
            if condition == Condition::Paused {
                warn!(destination = self.name, error, ?pause, "destination paused");
            } else {
                info!(
                    destination = self.name,
                    error, "destination limits the rate"
                );
            }
        }
        if is_change || (was, condition) == (Condition::Paused, Condition::Paused) {
            let text = format!("destination `{}` is unavailable: {error}", self.name);
            let problem = (condition == Condition::Paused).then_some(text);
            (self.observer)(Change {
                name: self.name.clone(),
                from: was,
                to: condition,
                problem,
            });
        }
        behind(pause)
    }

    /// Number of failures with this message although others were served in between: the message may be the reason.
    fn doubts(&self, id: MessageId) -> u32 {
        let mut state = self.lock();
        let served = state.served;
        let known = state.doubtful.iter().position(|doubt| doubt.id == id);
        let known = known.and_then(|at| state.doubtful.remove(at));
        let failures = known.map_or(0, |doubt| doubt.failures + u32::from(doubt.served < served));
        if state.doubtful.len() == DOUBTFUL {
            state.doubtful.pop_front();
        }
        state.doubtful.push_back(Doubt {
            id,
            served,
            failures,
        });
        failures
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        let from = self.lock().condition;
        (self.observer)(Change {
            name: self.name.clone(),
            from,
            to: Condition::Open,
            problem: None,
        });
    }
}

impl Call<'_> {
    /// Ends the delivery, and returns the outcome for the message.
    ///
    /// A condition of the destination is not the message's, as long as its patience lasts.
    pub fn end(mut self, delivery: &Delivery, outcome: Outcome) -> Outcome {
        self.ended = true;
        match outcome {
            // Nothing was learned of the destination: as if the delivery was cut off.
            Outcome::Unavailable {
                cause: Cause::Backend | Cause::Deferred,
                ..
            } => {
                self.ended = false;
                outcome
            }
            Outcome::Unavailable {
                cause,
                after,
                error,
            } => {
                let after = self.unavailable(delivery, cause, after, &error);
                let waited = delivery.message.enqueued_at;
                let waited = self.destination.clock.now().since(waited);
                if waited > self.destination.patience {
                    Outcome::Retry {
                        after: Some(after),
                        error,
                    }
                } else {
                    Outcome::Unavailable {
                        cause,
                        after: Some(after),
                        error,
                    }
                }
            }
            outcome => {
                self.destination.served(self.is_trial);
                outcome
            }
        }
    }
}

impl Call<'_> {
    /// Delay of the message.
    fn unavailable(
        &self,
        delivery: &Delivery,
        cause: Cause,
        after: Option<Duration>,
        error: &str,
    ) -> Duration {
        let destination = self.destination;
        let doubts = match cause {
            Cause::Failed => destination.doubts(delivery.message.id),
            _ => 0,
        };
        if doubts == 0 {
            return destination.failed(cause, after, error, self.is_trial);
        }
        let own = destination.retry.next_delay(doubts, &mut rand::rng());
        // Others are served: only a trial says something of the destination.
        let pause = match self.is_trial {
            true => destination.failed(cause, after, error, true),
            false => after.unwrap_or_default().min(LONGEST_PAUSE),
        };
        pause.max(own)
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        let mut state = self.destination.lock();
        state.under_way -= 1;
        if self.is_trial && !self.ended {
            // Nothing was learned: the next delivery is the trial.
            let until = Instant::now();
            state.phase = Phase::Paused { until };
        }
    }
}

/// The requested delay and up to a quarter more, so that not all messages return in one moment.
fn jittered(delay: Duration) -> Duration {
    delay + delay.mul_f64(rand::rng().random_range(0.0..0.25))
}

/// Later than the trial, so that another message makes it.
fn behind(pause: Duration) -> Duration {
    pause + BEHIND_THE_TRIAL.mul_f64(rand::rng().random_range(0.2..1.0))
}
