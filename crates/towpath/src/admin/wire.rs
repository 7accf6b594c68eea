//! What the admin API says, in JSON: names are part of `/v1` and stay.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use towpath_core::message::header::TRACEPARENT;
use towpath_core::port::queue::{DeadLetter, Peeked, Place, Stats};
use towpath_core::{Attempt, Headers};
use utoipa::ToSchema;

use crate::problems::Problem;

/// Most bytes of a payload that are shown.
const SHOWN_BYTES: usize = 64 * 1024;

/// A queue's numbers.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct QueueStats {
    /// The queue.
    pub queue: String,
    /// Messages that can be leased now.
    pub ready: u64,
    /// Messages held back until a moment.
    pub delayed: u64,
    /// Messages in consumers' hands.
    pub leased: u64,
    /// Dead letters.
    pub dead: u64,
    /// Messages ever taken.
    pub enqueued: u64,
    /// Messages ever acked.
    pub acked: u64,
    /// Deliveries that ended in a retry.
    pub retried: u64,
    /// Messages expired, purged, or dropped from the dead letters.
    pub dropped: u64,
    /// Repeats recognised by their dedup id.
    pub duplicates: u64,
    /// Age of the oldest waiting message in seconds; absent when none waits.
    pub oldest_age_seconds: Option<u64>,
    /// For how long the longest waiting of the messages that can be leased has been ready, in seconds; absent when none
    /// is ready.
    pub oldest_ready_age_seconds: Option<u64>,
    /// For how long the longest held of the leased messages has been leased, in seconds; absent when none is, or where the
    /// backend does not know.
    #[serde(default)]
    pub oldest_leased_age_seconds: Option<u64>,
    /// How long ago the oldest delayed message was enqueued, in seconds; absent when none is, or where the backend does not
    /// know.
    #[serde(default)]
    pub oldest_delayed_age_seconds: Option<u64>,
    /// Consumers seen within the last minute.
    pub consumers: u64,
    /// Whether delivery is stopped.
    pub paused: bool,
    /// Messages on other brokers of the backend's list, which no consumer here reaches.
    #[serde(default)]
    pub stranded: u64,
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
        }
    }
}

/// Something that is wrong.
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
    /// What is wrong.
    pub cause: String,
    /// What to do.
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
            subject: problem.subject,
            since: problem.since.to_string(),
            figure: problem.figure,
            cause: problem.cause,
            next_step: rule.next_step().to_owned(),
            runbook: rule.alert().to_owned(),
        }
    }
}

/// A payload as text, or as base64 where it is none.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Payload {
    /// The bytes, at most 65,536 of them.
    pub payload: String,
    /// `utf-8` or `base64`.
    pub encoding: String,
    /// Whether some bytes are not shown.
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

/// A waiting message.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MessageView {
    /// Its id.
    pub id: String,
    /// `ready`, `delayed` or `leased`.
    pub place: String,
    /// Deliveries so far.
    pub attempts: u32,
    /// When it was taken, RFC 3339.
    pub enqueued_at: String,
    /// Its key, if it has one.
    pub key: Option<String>,
    /// What travels beside the payload.
    pub headers: BTreeMap<String, String>,
    /// Its payload.
    #[serde(flatten)]
    pub payload: Payload,
}

impl From<Peeked> for MessageView {
    fn from(peeked: Peeked) -> Self {
        let place = match peeked.place {
            Place::Ready => "ready",
            Place::Delayed => "delayed",
            Place::Leased => "leased",
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

/// A message that was given up.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterView {
    /// Its id.
    pub id: String,
    /// Why it was given up.
    pub reason: String,
    /// Earlier errors, oldest first.
    pub history: Vec<String>,
    /// Deliveries before it was given up.
    pub attempts: u32,
    /// What is recorded of the failed attempts, the last one included, oldest first; at most eleven.
    #[serde(default)]
    pub records: Vec<AttemptView>,
    /// When it was enqueued, RFC 3339.
    #[serde(default)]
    pub enqueued_at: String,
    /// When it was given up, RFC 3339.
    pub died_at: String,
    /// Its key, if it has one.
    #[serde(default)]
    pub key: Option<String>,
    /// What travels beside the payload.
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
    /// How long the sink took, in milliseconds.
    pub took_ms: u64,
    /// The consumer that had the delivery.
    pub consumer: String,
    /// Why it failed.
    pub error: String,
    /// The beginning of what the far side answered, at most 2,048 bytes; of earlier attempts only the newest answers are
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

fn shown(headers: &Headers) -> BTreeMap<String, String> {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    headers.iter().map(owned).collect()
}

/// The trace of a message, by its `traceparent` (W3C Trace Context: `version-trace-parent-flags`).
fn trace_id(headers: &Headers) -> Option<String> {
    let id = headers.get(TRACEPARENT)?.split('-').nth(1)?;
    (id.len() == 32).then(|| id.to_owned())
}

/// Which dead letters are meant: either every one, or these; not both, and not neither.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Letters {
    /// Every one.
    #[serde(default)]
    pub all: bool,
    /// These.
    #[serde(default)]
    #[schema(value_type = Vec<uuid::Uuid>)]
    pub ids: Vec<String>,
}

/// A message that was sent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Sent {
    /// Its id, or the first one's when it is a duplicate.
    pub id: String,
    /// Whether its idempotency key was known.
    pub duplicate: bool,
}

/// How many messages something was done to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// So many.
    pub count: u64,
}

/// How the process is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// Whether it is ready.
    pub ready: bool,
    /// Version of the running process.
    pub version: String,
    /// A line for each part.
    pub checks: Vec<String>,
    /// Facts about the backend, in words.
    pub facts: Vec<String>,
}

/// A refusal, as RFC 9457 describes it.
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
    /// The status in words.
    title: String,
    /// The status.
    status: u16,
    /// What was wrong, and what to do.
    detail: String,
    /// The path that was asked for.
    instance: String,
    /// What the log knows the request by.
    request_id: String,
}
