//! The outcome of a role's last call to its backend: a backend may answer a ping and refuse the work.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use towpath_core::{Error, Result};

/// Time that a failed call counts without another call.
///
/// A process that is not ready gets no requests, so no call could show that its backend works again.
const COUNTS_FOR: Duration = Duration::from_secs(10);

/// The outcome of a role's last call. A cheap handle.
#[derive(Debug, Clone, Default)]
pub struct LastCall(Arc<Mutex<Option<Failed>>>);

#[derive(Debug)]
struct Failed {
    at: Instant,
    reason: String,
}

impl LastCall {
    /// Notes how a call ended. A limit of ours that was reached is an answer.
    pub fn note<T>(&self, outcome: &Result<T>) {
        self.note_error(outcome.as_ref().err());
    }

    /// The same for a call whose error is known to be the backend's.
    pub fn note_error(&self, error: Option<&Error>) {
        let error = error.filter(|error| error.retry_after().is_none());
        *self.lock() = error.map(|error| Failed {
            at: Instant::now(),
            reason: error.chain(),
        });
    }

    /// Why the last call failed, when it did and that was not long ago.
    pub fn problem(&self) -> Option<String> {
        let last = self.lock();
        let failed = last.as_ref()?;
        (failed.at.elapsed() < COUNTS_FOR)
            .then(|| format!("the last call failed: {}", failed.reason))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Failed>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_failed_call_counts_until_one_succeeds_or_none_is_made_for_a_while() {
        let last = LastCall::default();
        let failed = || Err::<(), _>(Error::invalid("the key holds another kind of value"));
        last.note(&failed());
        let problem = last.problem().unwrap();
        assert_eq!(
            problem,
            "the last call failed: the key holds another kind of value"
        );
        last.note(&Ok(()));
        assert_eq!(last.problem(), None);
        last.note(&failed());
        tokio::time::advance(COUNTS_FOR).await;
        assert_eq!(last.problem(), None);
    }

    #[test]
    fn a_full_queue_is_an_answer() {
        let last = LastCall::default();
        let full = Error::overloaded("queue is full (5 messages)", Duration::from_secs(1));
        last.note(&Err::<(), _>(full));
        assert_eq!(last.problem(), None);
    }
}
