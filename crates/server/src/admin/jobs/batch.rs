//! Sends many messages in one request.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use towpath_core::message::MAX_PAYLOAD_BYTES;
use towpath_core::message::header::CONTENT_TYPE;
use towpath_core::port::queue::{Enqueued, check_batch};
use towpath_core::{Clock, NewMessage, QueueName, SystemClock, Timestamp};
use utoipa::ToSchema;

use super::super::Admin;
use super::super::failure::Failure;
use super::super::routes::QueuePath;
use super::send::MAX_DELAY;
use crate::http::Segment;
use crate::http::error::Problem;
use crate::http::extract::Json;
use crate::http::json::Object;
use crate::idempotency::{self, Digest, OTHER_REQUEST};
use crate::queue_settings::Span;
use towpath::traces;

/// The route that takes many messages.
pub(in super::super) const BATCH: &str = "/v1/queues/{queue}/messages/batch";

/// Messages of one request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in super::super) struct Batch {
    /// 1 to 10,000 messages.
    #[schema(value_type = Vec<BatchMessage>, min_items = 1, max_items = 10_000)]
    messages: Vec<Object<BatchMessage>>,
}

/// A message of a batch: exactly one of `text`, `json` and `base64`.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(in super::super) struct BatchMessage {
    /// The payload as text.
    text: Option<String>,
    /// Any JSON, stored as the bytes that were sent.
    #[serde(deserialize_with = "raw")]
    #[schema(value_type = Option<serde_json::Value>)]
    json: Option<Box<RawValue>>,
    /// The payload as base64.
    base64: Option<String>,
    /// Messages of one key are delivered in order, one at a time.
    #[schema(min_length = 1, max_length = 1024)]
    key: Option<String>,
    /// Delay of the delivery, at most `87600h`.
    #[schema(value_type = Option<String>)]
    delay: Option<Span>,
    /// Time after which the message is dropped unless it was leased.
    #[schema(value_type = Option<String>)]
    expires_in: Option<Span>,
    /// A second message with this key within the dedup window of the queue is not stored.
    #[schema(min_length = 1, max_length = 1024)]
    idempotency_key: Option<String>,
    /// Headers of the message.
    headers: BTreeMap<String, String>,
}

/// `null` is a payload like any other JSON.
fn raw<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<RawValue>>, D::Error> {
    Box::<RawValue>::deserialize(deserializer).map(Some)
}

/// Outcomes in the order of the messages.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub(in super::super) struct BatchSent {
    /// One for each message.
    results: Vec<BatchSentOne>,
}

/// The outcome of a message: `id` and `duplicate`, or `error`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub(in super::super) struct BatchSentOne {
    /// Message id; of a duplicate, the id of the first message.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// Whether the idempotency key was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    duplicate: Option<bool>,
    /// Why it was not stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Send many messages; create the queue when it does not exist.
///
/// An `Idempotency-Key` gives each message without a key of its own the key `KEY#N`. An invalid message refuses the whole
/// batch; a message that the queue refuses does not keep the others out.
#[utoipa::path(post, operation_id = "send_batch", path = "/v1/queues/{queue}/messages/batch", params(QueuePath, ("Idempotency-Key" = Option<String>, Header, description = "Makes a retry of the request safe", min_length = 1, max_length = 255)), request_body(content = Batch, description = "At most 16 MiB"), responses((status = 200, description = "All are durable", body = BatchSent), (status = 207, description = "Some were refused", body = BatchSent)))]
pub(in super::super) async fn send_batch(
    State(admin): State<Admin>,
    Segment(name): Segment,
    headers: HeaderMap,
    Json(Object(batch)): Json<Object<Batch>>,
) -> Result<Response, Failure> {
    let name = QueueName::new(&name)?;
    if batch.messages.is_empty() {
        return Err(Problem::invalid("`messages` is empty").into());
    }
    check_batch(batch.messages.len())?;
    let common = idempotency::key(&headers)?;
    let now = SystemClock::new().now();
    let mut messages = Vec::with_capacity(batch.messages.len());
    let mut digests = Vec::with_capacity(batch.messages.len());
    for (at, Object(one)) in batch.messages.into_iter().enumerate() {
        let message = one.into_message(now);
        let mut message =
            message.map_err(|rule| Problem::invalid(format!("`messages[{at}]`{rule}")))?;
        if let (None, Some(key)) = (&message.dedup_id, common) {
            message.dedup_id = Some(format!("{key}#{at}"));
        }
        let key = message.dedup_id.as_deref();
        let digest = key.map(|key| Digest::of(key, [&*message.payload]));
        if let Some(digest) = digest {
            digest.mark(&mut message, 0);
        }
        digests.push(digest);
        messages.push(message);
    }
    let queue = admin.find_or_first(&name).await?;
    let mut spans = Vec::new();
    for message in &mut messages {
        spans.extend(traces::enqueue(&name, message));
    }
    let outcomes = queue.enqueue(&name, messages).await;
    traces::enqueued(spans, &outcomes);
    let mut status = StatusCode::OK;
    let outcomes = outcomes?.into_iter().zip(digests);
    let results = outcomes.map(|(outcome, digest)| {
        let refusal = match outcome {
            Ok(outcome) if digest.is_some_and(|digest| digest.is_other(outcome, 0)) => {
                OTHER_REQUEST.to_owned()
            }
            Ok(outcome) => {
                return BatchSentOne {
                    id: Some(outcome.id().to_string()),
                    duplicate: Some(matches!(outcome, Enqueued::Duplicate(_))),
                    error: None,
                };
            }
            Err(error) => error.chain(),
        };
        status = StatusCode::MULTI_STATUS;
        BatchSentOne {
            error: Some(refusal),
            ..BatchSentOne::default()
        }
    });
    let results = results.collect();
    Ok((status, Json(BatchSent { results })).into_response())
}

impl BatchMessage {
    /// # Errors
    /// The rule that it breaks, to follow the name of the message.
    fn into_message(self, now: Timestamp) -> Result<NewMessage, String> {
        let mut headers: Vec<(String, String)> = self.headers.into_iter().collect();
        let is_typed = headers
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE));
        let payload = match (self.text, self.json, self.base64) {
            (Some(text), None, None) => Bytes::from(text),
            (None, Some(json), None) => {
                if !is_typed {
                    let json = "application/json".to_owned();
                    headers.push((CONTENT_TYPE.to_owned(), json));
                }
                Bytes::from(String::from(Box::<str>::from(json)))
            }
            (None, None, Some(text)) => {
                let bytes = STANDARD.decode(text);
                Bytes::from(bytes.map_err(|_| ": `base64` is not valid base64".to_owned())?)
            }
            _ => return Err(" must have exactly one of `text`, `json` and `base64`".to_owned()),
        };
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(format!(" is over the limit of {MAX_PAYLOAD_BYTES} bytes"));
        }
        let moment = |name: &str, span: Option<Span>| match span {
            Some(Span(delay)) if delay > MAX_DELAY => {
                Err(format!(": `{name}` is over the limit of `87600h`"))
            }
            span => Ok(span.map(|Span(delay)| now.after(delay))),
        };
        let mut message = NewMessage::new(payload);
        message.headers = headers.into_iter().collect();
        message.key = self.key;
        message.dedup_id = self.idempotency_key;
        message.not_before = moment("delay", self.delay)?;
        message.expires = moment("expires_in", self.expires_in)?;
        Ok(message)
    }
}
