//! The JSON of the admin API: names are part of `/v1` and stay.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use towpath_core::message::header::TRACEPARENT;
use towpath_core::port::queue::{DeadLetter, MessageState, Peeked, Stats};
use towpath_core::{Attempt, Headers};
use utoipa::ToSchema;

use crate::problems::Problem;
use crate::queue_settings::QueueSettings;

/// Maximum shown bytes of a payload.
const SHOWN_BYTES: usize = 64 * 1024;

/// Statistics of a queue.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QueueStats {
    /// The queue.
    pub queue: String,
    /// Ready messages.
    pub ready: u64,
    /// Delayed messages.
    pub delayed: u64,
    /// Leased messages.
    pub leased: u64,
    /// Dead letters.
    pub dead: u64,
    /// Enqueued messages in total.
    pub enqueued: u64,
    /// Acked messages in total.
    pub acked: u64,
    /// Deliveries that ended in a retry.
    pub retried: u64,
    /// Expired and purged messages, and deleted dead letters.
    pub dropped: u64,
    /// Duplicates dropped by their dedup id.
    pub duplicates: u64,
    /// Age of the oldest ready, delayed or leased message in seconds; absent without one.
    pub oldest_age_seconds: Option<u64>,
    /// Longest time that a message has been ready, in seconds; absent without a ready message.
    pub oldest_ready_age_seconds: Option<u64>,
    /// Age of the oldest lease in seconds; absent when none is, or where the
    /// backend does not know.
    #[serde(default)]
    pub oldest_leased_age_seconds: Option<u64>,
    /// Age of the oldest delayed message since its enqueue, in seconds; absent when none is, or where the backend does not
    /// know.
    #[serde(default)]
    pub oldest_delayed_age_seconds: Option<u64>,
    /// Consumers seen within the last minute.
    pub consumers: u64,
    /// Whether delivery is paused.
    pub paused: bool,
    /// Messages on other brokers of the backend's URL, which no consumer of this process reaches.
    #[serde(default)]
    pub stranded: u64,
    /// Its settings, where one queue is shown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) settings: Option<QueueSettings>,
}

impl From<Stats> for QueueStats {
    fn from(stats: Stats) -> Self {
        Self {
            queue: stats.queue.to_string(),
            ready: stats.ready,
            delayed: stats.delayed,
            leased: stats.leased,
            dead: stats.dead,
            enqueued: stats.enqueued,
            acked: stats.acked,
            retried: stats.retried,
            dropped: stats.dropped,
            duplicates: stats.duplicates,
            oldest_age_seconds: stats.oldest_age.map(|age| age.as_secs()),
            oldest_ready_age_seconds: stats.oldest_ready_age.map(|age| age.as_secs()),
            oldest_leased_age_seconds: stats.oldest_leased_age.map(|age| age.as_secs()),
            oldest_delayed_age_seconds: stats.oldest_delayed_age.map(|age| age.as_secs()),
            consumers: stats.consumers,
            paused: stats.paused,
            stranded: 0,
            settings: None,
        }
    }
}

/// A problem.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CurrentProblem {
    /// Its name: `backlog_old`.
    pub problem: String,
    /// `page` or `ticket`.
    pub severity: String,
    /// The queue, backend, role or disk that it concerns.
    pub subject: String,
    /// When it was first seen, RFC 3339.
    pub since: String,
    /// The measured figure with its unit, where there is one.
    pub figure: Option<String>,
    /// Cause.
    pub cause: String,
    /// Next step.
    pub next_step: String,
    /// Its heading in the runbook.
    pub runbook: String,
}

impl From<Problem> for CurrentProblem {
    fn from(problem: Problem) -> Self {
        let rule = problem.rule;
        Self {
            problem: rule.name().to_owned(),
            severity: rule.severity().as_str().to_owned(),
            next_step: problem.next_step(),
            subject: problem.subject,
            since: problem.since.to_string(),
            figure: problem.figure,
            cause: problem.cause,
            runbook: rule.alert().to_owned(),
        }
    }
}

/// A payload as text, or as base64 when it is not UTF-8.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Payload {
    /// Contents, at most 65,536 bytes.
    pub payload: String,
    /// `utf-8` or `base64`.
    pub encoding: String,
    /// Whether the contents were cut.
    pub truncated: bool,
}

impl Payload {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let truncated = bytes.len() > SHOWN_BYTES;
        let shown = &bytes[..bytes.len().min(SHOWN_BYTES)];
        match std::str::from_utf8(shown) {
            Ok(text) => Self {
                payload: text.to_owned(),
                encoding: "utf-8".to_owned(),
                truncated,
            },
            // Cut inside a character, it is text all the same.
            Err(error) if truncated && error.error_len().is_none() => Self {
                payload: String::from_utf8_lossy(&shown[..error.valid_up_to()]).into_owned(),
                encoding: "utf-8".to_owned(),
                truncated,
            },
            Err(_) => Self {
                payload: STANDARD.encode(shown),
                encoding: "base64".to_owned(),
                truncated,
            },
        }
    }
}

/// A stored message.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MessageView {
    /// Its id.
    pub id: String,
    /// `ready`, `delayed` or `leased`.
    pub place: String,
    /// Deliveries so far.
    pub attempts: u32,
    /// Enqueue time, RFC 3339.
    pub enqueued_at: String,
    /// Key of the message, if any.
    pub key: Option<String>,
    /// Headers of the message.
    pub headers: BTreeMap<String, String>,
    /// Its payload.
    #[serde(flatten)]
    pub payload: Payload,
}

impl From<Peeked> for MessageView {
    fn from(peeked: Peeked) -> Self {
        let place = match peeked.state {
            MessageState::Ready => "ready",
            MessageState::Delayed => "delayed",
            MessageState::Leased => "leased",
        };
        Self {
            id: peeked.message.id.to_string(),
            place: place.to_owned(),
            attempts: peeked.attempts,
            enqueued_at: peeked.message.enqueued_at.to_string(),
            key: peeked.message.key,
            headers: shown(&peeked.message.headers),
            payload: Payload::of(&peeked.message.payload),
        }
    }
}

/// A dead letter.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterView {
    /// Its id.
    pub id: String,
    /// Reason of the last failure.
    pub reason: String,
    /// Earlier errors, oldest first.
    pub history: Vec<String>,
    /// Deliveries before it became a dead letter.
    pub attempts: u32,
    /// Records of the failed attempts, the last one included, oldest first; at most eleven.
    #[serde(default)]
    pub records: Vec<AttemptView>,
    /// When it was enqueued, RFC 3339.
    #[serde(default)]
    pub enqueued_at: String,
    /// Time at which it became a dead letter, RFC 3339.
    pub died_at: String,
    /// Its key, if it has one.
    #[serde(default)]
    pub key: Option<String>,
    /// Message fields beside the payload.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// The id of the trace that it belongs to, if it has one.
    #[serde(default)]
    pub trace_id: Option<String>,
    /// Its payload.
    #[serde(flatten)]
    pub payload: Payload,
}

impl From<DeadLetter> for DeadLetterView {
    fn from(letter: DeadLetter) -> Self {
        Self {
            id: letter.message.id.to_string(),
            reason: letter.reason,
            history: letter.history,
            attempts: letter.attempts,
            records: letter.records.into_iter().map(AttemptView::from).collect(),
            enqueued_at: letter.message.enqueued_at.to_string(),
            died_at: letter.died_at.to_string(),
            trace_id: trace_id(&letter.message.headers),
            headers: shown(&letter.message.headers),
            key: letter.message.key,
            payload: Payload::of(&letter.message.payload),
        }
    }
}

/// A failed attempt to deliver a message.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AttemptView {
    /// When it ended, RFC 3339.
    pub ended_at: String,
    /// Duration of the sink's call, in milliseconds.
    pub took_ms: u64,
    /// The consumer that had the delivery.
    pub consumer: String,
    /// Why it failed.
    pub error: String,
    /// Beginning of the receiver's answer, at most 2,048 bytes; of earlier attempts only the newest answers are
    /// kept.
    pub answer: Option<String>,
}

impl From<Attempt> for AttemptView {
    fn from(attempt: Attempt) -> Self {
        Self {
            ended_at: attempt.ended_at.to_string(),
            took_ms: u64::try_from(attempt.took.as_millis()).unwrap_or(u64::MAX),
            consumer: attempt.consumer.to_string(),
            error: attempt.error,
            answer: attempt.answer,
        }
    }
}

pub(super) fn shown(headers: &Headers) -> BTreeMap<String, String> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    headers.iter().map(owned).collect()
}

/// The trace of a message, by its `traceparent` (W3C Trace Context: `version-trace-parent-flags`).
fn trace_id(headers: &Headers) -> Option<String> {
    let id = headers.get(TRACEPARENT)?.split('-').nth(1)?;
    (id.len() == 32).then(|| id.to_owned())
}

/// Selection of dead letters: exactly one of `all` and `ids`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DeadLetterSelection {
    /// All dead letters of the queue.
    #[serde(default)]
    pub all: bool,
    /// Ids of dead letters.
    #[serde(default)]
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub ids: Vec<String>,
}

/// A message that was sent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = SentMessage)]
pub struct Sent {
    /// Message id; of a duplicate, the id of the first message.
    pub id: String,
    /// Whether the idempotency key was known.
    pub duplicate: bool,
}

/// Number of affected messages.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// The number.
    pub count: u64,
}

/// Problem details (RFC 9457).
#[derive(ToSchema)]
#[schema(as = Problem)]
#[expect(
    dead_code,
    reason = "only the document reads it; `http::error` writes it"
)]
pub(super) struct ProblemView {
    /// Always `about:blank`: the status says it all.
    #[schema(rename = "type")]
    kind: String,
    /// Reason phrase of the status.
    title: String,
    /// The status.
    status: u16,
    /// Cause and next step.
    detail: String,
    /// Path of the request.
    instance: String,
    /// Request id, as in the log.
    request_id: String,
}
