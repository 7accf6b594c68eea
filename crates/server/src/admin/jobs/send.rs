//! Sends the body of a request as a message.

use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use towpath_core::message::header::CONTENT_TYPE;
use towpath_core::port::queue::Enqueued;
use towpath_core::{Clock, Error, NewMessage, QueueName, SystemClock, Timestamp};
use utoipa::{IntoParams, ToSchema};

use super::super::Admin;
use super::super::failure::Failure;
use super::super::routes::QueuePath;
use super::super::wire::Sent;
use super::batch::BATCH;
use crate::config::{did_you_mean, duration};
use crate::http::Segment;
use crate::http::error::Problem;
use crate::http::extract::Json;
use crate::idempotency::{self, Digest, OTHER_REQUEST, replayed};
use towpath::traces::{self, TraceContext};

/// Ten years: a longer delay is a mistake, and would look like a lost message.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(315_360_000);

/// Beginning of the headers that become headers of the message.
const MESSAGE_HEADER: &str = "towpath-header-";

/// Headers of the request that say something about the message.
const KNOWN: [&str; 3] = ["towpath-key", "towpath-delay", "towpath-expires-in"];

/// Media types that say nothing about the payload: what `curl -d` sends without being asked, and the default of bytes.
const UNSPECIFIC: [&str; 2] = [
    "application/x-www-form-urlencoded",
    "application/octet-stream",
];

/// A payload, for the document.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "only the document reads it")]
pub(in super::super) struct Binary(Vec<u8>);

/// Headers of a message.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only the document reads it")]
struct About {
    /// A second message with this key within the dedup window of the queue is not stored.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255)]
    idempotency_key: Option<String>,
    /// Messages of one key are delivered in order, one at a time.
    #[param(rename = "Towpath-Key", min_length = 1, max_length = 1024)]
    key: Option<String>,
    /// Delay of the delivery in seconds, at most ten years; also as a duration: `10m`.
    #[param(rename = "Towpath-Delay", maximum = 315_360_000)]
    delay: Option<u64>,
    /// Time in seconds after which the message is dropped unless it was leased; also as a duration.
    #[param(rename = "Towpath-Expires-In", maximum = 315_360_000)]
    expires_in: Option<u64>,
    /// W3C trace context, stored with the message.
    traceparent: Option<String>,
}

/// Send the body as one message; create the queue when it does not exist.
///
/// A `Content-Type` that describes the payload and headers named `Towpath-Header-NAME` are stored with it. 415 for NDJSON,
/// which would be stored as one message instead of a batch.
#[utoipa::path(post, path = "/v1/queues/{queue}/messages", params(QueuePath, About), request_body(content = inline(Option<Binary>), content_type = "application/octet-stream", description = "The payload, at most 16 MiB; none is an empty message"), responses((status = 200, description = "It is durable", body = Sent)))]
pub(in super::super) async fn send(
    State(admin): State<Admin>,
    Segment(name): Segment,
    headers: HeaderMap,
    payload: Bytes,
) -> Result<Response, Failure> {
    let mut message = NewMessage::new(payload);
    describe(&headers, &mut message)?;
    let digest = message
        .dedup_id
        .as_deref()
        .map(|key| Digest::of(key, [&*message.payload]));
    if let Some(digest) = digest {
        digest.mark(&mut message, 0);
    }
    let name = QueueName::new(&name)?;
    let queue = admin.find_or_first(&name).await?;
    let spans = traces::enqueue(&name, &mut message).into_iter().collect();
    let outcomes = queue.enqueue(&name, vec![message]).await;
    traces::enqueued(spans, &outcomes);
    let outcome = outcomes?
        .pop()
        .unwrap_or_else(|| Err(Error::unavailable("the queue gave no outcome")))?;
    if digest.is_some_and(|digest| digest.is_other(outcome, 0)) {
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, OTHER_REQUEST).into());
    }
    let is_duplicate = matches!(outcome, Enqueued::Duplicate(_));
    let sent = Json(Sent {
        id: outcome.id().to_string(),
        duplicate: is_duplicate,
    });
    Ok(replayed(sent.into_response(), is_duplicate))
}

/// Puts the headers of the request into the message.
fn describe(headers: &HeaderMap, message: &mut NewMessage) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).map(readable);
    let kind = kind.transpose()?.unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    if [
        "application/x-ndjson",
        "application/ndjson",
        "application/jsonl",
    ]
    .contains(&&*essence)
    {
        let hint = format!(
            "this path takes one message; post `{{\"messages\": [...]}}` to `{BATCH}` or NDJSON to `/enqueue/batch` of the public listener, send line by line (`towpath send --lines`), or call it `application/octet-stream` to store it as one message"
        );
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, hint));
    }
    if let Some(trace) = TraceContext::from_headers(headers) {
        trace.write(&mut message.headers);
    }
    if !essence.is_empty() && !UNSPECIFIC.contains(&&*essence) {
        message.headers.set(CONTENT_TYPE, kind);
    }
    message.dedup_id = idempotency::key(headers)?.map(str::to_owned);
    let now = SystemClock::new().now();
    for (header, value) in headers {
        let header = header.as_str();
        if let Some(name) = header.strip_prefix(MESSAGE_HEADER) {
            message.headers.set(name.to_owned(), readable(value)?);
            continue;
        }
        match header {
            "towpath-key" => message.key = Some(readable(value)?.to_owned()),
            "towpath-delay" => message.not_before = Some(moment("Towpath-Delay", now, value)?),
            "towpath-expires-in" => {
                message.expires = Some(moment("Towpath-Expires-In", now, value)?);
            }
            // If it were ignored, a misspelled key or delay would have no effect.
            unknown if unknown.starts_with("towpath-") => {
                let hint = did_you_mean(unknown, KNOWN);
                let reason = format!("unknown header `{unknown}`{hint}");
                return Err(Problem::invalid(reason));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The moment that is this much later.
fn moment(header: &str, now: Timestamp, value: &HeaderValue) -> Result<Timestamp, Problem> {
    let text = readable(value)?;
    let seconds = text.parse().ok().map(Duration::from_secs);
    let delay = seconds.or_else(|| duration(text));
    let delay = delay.filter(|delay| *delay <= MAX_DELAY).ok_or_else(|| {
        let most = MAX_DELAY.as_secs();
        Problem::invalid(format!(
            "`{header}` must be whole seconds, at most {most}, or a duration like `10m`"
        ))
    })?;
    Ok(now.after(delay))
}

/// An unreadable header is rejected: if it were ignored, a retry would not be safe.
fn readable(value: &HeaderValue) -> Result<&str, Problem> {
    std::str::from_utf8(value.as_bytes()).map_err(|_| {
        Problem::invalid("a header about the message is not UTF-8: `Content-Type` or `Towpath-*`")
    })
}
