//! A message as its handler sees it, and the ways in which handling it fails.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use towpath_core::port::sink::{Cause, Outcome};
use towpath_core::{Delivery, Headers, MessageId, Timestamp};

/// A message that a [`Worker`](crate::Worker) handles.
#[derive(Debug, Clone)]
pub struct Job(Delivery);

impl Job {
    pub(crate) fn new(delivery: &Delivery) -> Self {
        Self(delivery.clone())
    }

    /// The id of the message: the same for each attempt, so that it can be the idempotency key of the work.
    pub fn id(&self) -> MessageId {
        self.0.message.id
    }

    /// Its payload.
    pub fn payload(&self) -> &Bytes {
        &self.0.message.payload
    }

    /// Its payload as text.
    ///
    /// # Errors
    /// When it is not UTF-8.
    pub fn text(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(self.payload())
    }

    /// Its payload, read as JSON.
    ///
    /// # Errors
    /// When it is not JSON, or not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(self.payload())
    }

    /// The fields beside the payload.
    pub fn headers(&self) -> &Headers {
        &self.0.message.headers
    }

    /// The key whose messages are delivered in order.
    pub fn key(&self) -> Option<&str> {
        self.0.message.key.as_deref()
    }

    /// 1 for the first attempt.
    pub fn attempt(&self) -> u32 {
        self.0.attempt
    }

    /// When it was stored.
    pub fn enqueued_at(&self) -> Timestamp {
        self.0.message.enqueued_at
    }
}

/// Why a job was not done, and its consequence.
///
/// Every error converts into one that is retried by the queue's policy, so that `?` works in a handler.
///
/// ```
/// use std::time::Duration;
/// use towpath::{Job, JobError};
///
/// async fn charge(job: Job) -> Result<(), JobError> {
///     let amount: u64 = job.text()?.parse()?;
///     match amount {
///         0 => Err(JobError::dead_letter("nothing to charge")),
///         1..=1_000 => Ok(()),
///         _ => Err(JobError::retry_in(Duration::from_secs(3_600), "over the daily limit")),
///     }
/// }
/// ```
#[derive(Debug)]
pub struct JobError(Outcome);

impl JobError {
    /// Tries again after the delay of the queue's retry policy, at most as often as that says.
    pub fn retry(reason: impl fmt::Display) -> Self {
        let error = reason.to_string();
        Self(Outcome::Retry { after: None, error })
    }

    /// Tries again after this time or the delay of the policy, whichever is longer.
    pub fn retry_in(delay: Duration, reason: impl fmt::Display) -> Self {
        let (after, error) = (Some(delay), reason.to_string());
        Self(Outcome::Retry { after, error })
    }

    /// Never tries again: the message becomes a dead letter, to be looked at by a person.
    pub fn dead_letter(reason: impl fmt::Display) -> Self {
        let reason = reason.to_string();
        Self(Outcome::Reject { reason })
    }

    /// Something that every job needs does not answer: the message goes back without a charged attempt, and is tried again
    /// after this time.
    pub fn unavailable(delay: Duration, reason: impl fmt::Display) -> Self {
        Self(Outcome::Unavailable {
            cause: Cause::Failed,
            after: Some(delay),
            error: reason.to_string(),
        })
    }

    pub(crate) fn into_outcome(self) -> Outcome {
        self.0
    }
}

impl<E: std::error::Error> From<E> for JobError {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::retry(text)
    }
}
