//! A circuit breaker: while a server does not answer, calls fail at once, and one at a time tries whether it does.
//!
//! ```text
//! closed --3 failures in a row--> open --pause is over--> half-open (one trial) --answer--> closed
//!                                   ^                        |
//!                                   +-------- failure -------+   (each pause longer, up to 1 s)
//! ```

use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::{Error, Result, retry};

/// Failures in a row that open it: one may be a connection that was closed while it was idle.
const FAILURES: u32 = 3;

/// Pauses between trials. The longest is short, so that a server that returns is noticed within a second; one trial a
/// second does not load it.
const PAUSES: retry::Policy =
    retry::Policy::forever(Duration::from_millis(100), Duration::from_secs(1));

/// Notified with whether it is open now, and why.
type Observer = Box<dyn Fn(bool, &str) + Send + Sync>;

/// The breaker in front of one server.
pub struct Breaker {
    /// The server, in an error.
    what: &'static str,
    state: Mutex<State>,
    observer: OnceLock<Observer>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Failures in a row.
    failures: u32,
    /// The last failure.
    cause: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Open { until: Instant },
    HalfOpen,
}

impl fmt::Debug for Breaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Breaker").field(&self.what).finish()
    }
}

/// A call under way; dropped without an end it says nothing of the server.
#[derive(Debug)]
pub struct Call<'a> {
    breaker: &'a Breaker,
    is_trial: bool,
}

impl Breaker {
    /// A closed one, in front of `what`: "the database".
    pub const fn new(what: &'static str) -> Self {
        Self {
            what,
            state: Mutex::new(State {
                phase: Phase::Closed,
                failures: 0,
                cause: String::new(),
            }),
            observer: OnceLock::new(),
        }
    }

    /// Has the observer notified when it opens, with the cause, and when it closes; the first observer stays.
    pub fn observe(&self, observer: impl Fn(bool, &str) + Send + Sync + 'static) {
        let is_open = self.is_open();
        _ = self.observer.set(Box::new(observer));
        if is_open {
            self.notify(true, &self.lock().cause.clone());
        }
    }

    /// Whether calls are refused, but for trials.
    pub fn is_open(&self) -> bool {
        self.lock().phase != Phase::Closed
    }

    /// Begins a call.
    ///
    /// # Errors
    /// `Unavailable` with the last failure while it is open; the call is not made.
    pub fn begin(&self) -> Result<Call<'_>> {
        let mut state = self.lock();
        let is_trial = match state.phase {
            Phase::Closed => false,
            Phase::Open { until } if until <= Instant::now() => {
                state.phase = Phase::HalfOpen;
                true
            }
            Phase::Open { .. } | Phase::HalfOpen => {
                let text = format!("{} is unavailable; try again in a second", self.what);
                let cause = Error::unavailable(state.cause.clone());
                return Err(Error::unavailable(text).with_source(cause));
            }
        };
        Ok(Call {
            breaker: self,
            is_trial,
        })
    }

    /// Begins a call that is made although it may be open: a health check.
    pub const fn probe(&self) -> Call<'_> {
        Call {
            breaker: self,
            is_trial: false,
        }
    }

    fn answered(&self) {
        let mut state = self.lock();
        state.failures = 0;
        let was = std::mem::replace(&mut state.phase, Phase::Closed);
        drop(state);
        if was != Phase::Closed {
            self.notify(false, "");
        }
    }

    fn failed(&self, cause: String, is_trial: bool) {
        let mut state = self.lock();
        state.failures = state.failures.saturating_add(1);
        state.cause = cause;
        let was = state.phase;
        let opens = was == Phase::Closed && state.failures >= FAILURES;
        if opens || is_trial {
            let trials = state.failures.saturating_sub(FAILURES) + 1;
            let pause = PAUSES.next_delay(trials, &mut rand::rng());
            state.phase = Phase::Open {
                until: Instant::now() + pause,
            };
        }
        let cause = opens.then(|| state.cause.clone());
        drop(state);
        if let Some(cause) = cause {
            self.notify(true, &cause);
        }
    }

    fn notify(&self, is_open: bool, cause: &str) {
        if let Some(observer) = self.observer.get() {
            observer(is_open, cause);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call<'_> {
    /// Ends the call: an error says that the server did not answer.
    pub fn end<T>(mut self, outcome: &Result<T>) {
        let is_trial = std::mem::take(&mut self.is_trial);
        match outcome {
            Ok(_) => self.breaker.answered(),
            Err(error) => self.breaker.failed(error.chain(), is_trial),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if self.is_trial {
            // Nothing was learned: the next call is the trial.
            let until = Instant::now();
            self.breaker.lock().phase = Phase::Open { until };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn refused() -> Result<()> {
        Err(Error::unavailable("refused"))
    }

    fn opened() -> Breaker {
        let breaker = Breaker::new("the database");
        for _ in 0..FAILURES {
            assert!(!breaker.is_open());
            breaker.begin().unwrap().end(&refused());
        }
        assert!(breaker.is_open());
        breaker
    }

    /// Waits for the next trial.
    fn trial(breaker: &Breaker) -> Call<'_> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match breaker.begin() {
                Ok(call) => return call,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_name_the_last() {
        let breaker = Breaker::new("the database");
        for _ in 0..2 * FAILURES {
            breaker.begin().unwrap().end(&refused());
            breaker.begin().unwrap().end(&Ok(()));
        }
        assert!(!breaker.is_open());
        let error = opened().begin().unwrap_err();
        assert_eq!(
            error.chain(),
            "the database is unavailable; try again in a second: refused"
        );
    }

    #[test]
    fn one_trial_at_a_time_decides() {
        let breaker = opened();
        let call = trial(&breaker);
        assert!(breaker.begin().is_err());
        call.end(&refused());
        assert!(breaker.begin().is_err());
        // One that is cut off leaves the trial to the next.
        drop(trial(&breaker));
        breaker.begin().unwrap().end(&Ok(()));
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_probe_closes_it_before_its_pause_is_over() {
        let breaker = opened();
        breaker.probe().end(&refused());
        assert!(breaker.is_open());
        breaker.probe().end(&Ok(()));
        assert!(!breaker.is_open());
    }

    #[test]
    fn each_change_is_reported_once() {
        let changes = Arc::new(Mutex::new(Vec::new()));
        let breaker = Breaker::new("the database");
        let seen = Arc::clone(&changes);
        breaker.observe(move |is_open, cause| {
            seen.lock().unwrap().push((is_open, cause.to_owned()));
        });
        for _ in 0..2 * FAILURES {
            breaker.probe().end(&refused());
        }
        breaker.probe().end(&Ok(()));
        breaker.probe().end(&Ok(()));
        let expected = [(true, "refused".to_owned()), (false, String::new())];
        assert_eq!(*changes.lock().unwrap(), expected);
    }
}
