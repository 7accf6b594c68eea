//! The HTTP side: responses as the contract has them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use towpath_core::backend::Backend;
use towpath_core::port::queue::{Enqueued, MAX_BATCH};
use towpath_core::{Error, ErrorKind, MessageId, Result};
use tracing::{debug, warn};

use super::enqueue::{Answered, Context, Enqueue, Limits};
use super::request::{self, Refusal};
use crate::http::error::{Problem, plain};
use crate::http::{BatchCost, BodyLimit, RequestLayer, wrap};
use crate::idempotency::{self, OTHER_REQUEST, replayed};
use crate::telemetry::log_failure;
use towpath::traces::TraceContext;

/// Timeout of `/healthz` for the backend.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

const ENQUEUE: &str = "/enqueue";
const BATCH: &str = "/enqueue/batch";

struct Api {
    enqueue: Enqueue,
    backend: Backend,
}

/// `POST /enqueue`, `POST /enqueue/batch` and `GET /healthz`, for a queue of this backend, behind the edge.
pub fn router(enqueue: Enqueue, backend: Backend, edge: RequestLayer) -> Router {
    let edge = edge.bodies(&bodies(enqueue.limits));
    wrap(routes(enqueue, backend), edge)
}

/// The routes of [`router`], for a listener that has others too.
pub fn routes(enqueue: Enqueue, backend: Backend) -> Router {
    Router::new()
        .route(ENQUEUE, post(enqueue_one))
        .route(BATCH, post(enqueue_batch))
        .route("/healthz", get(healthz))
        .with_state(Arc::new(Api { enqueue, backend }))
}

/// The largest bodies of [`routes`].
pub const fn bodies(limits: Limits) -> [BodyLimit; 2] {
    [
        BodyLimit {
            route: ENQUEUE,
            bytes: limits.message_bytes,
            what: "message",
        },
        BodyLimit {
            route: BATCH,
            bytes: limits.batch_bytes,
            what: "batch",
        },
    ]
}

#[derive(Serialize)]
struct Reply<'a> {
    enqueued: bool,
    queue: &'a str,
    message: &'a str,
    id: MessageId,
}

async fn enqueue_one(State(api): State<Arc<Api>>, headers: HeaderMap, body: Bytes) -> Response {
    let outcome = async {
        let message = request::message(content_type(&headers), &body)?;
        let context = context(&headers)?;
        match api.enqueue.one(message.clone(), context).await? {
            Answered::Taken(taken) => Ok((message, taken.map_err(Failure::Message)?)),
            Answered::OtherRequest => Err(Failure::OtherRequest),
        }
    };
    match outcome.await {
        Ok((message, enqueued)) => {
            debug!(queue = %api.enqueue.queue_name(), id = %enqueued.id(), bytes = message.len(), "enqueued");
            let reply = json_line(
                StatusCode::OK,
                &Reply {
                    enqueued: true,
                    queue: api.enqueue.queue_name().as_str(),
                    message: &String::from_utf8_lossy(&message),
                    id: enqueued.id(),
                },
            );
            replayed(reply, matches!(enqueued, Enqueued::Duplicate(_)))
        }
        Err(failure) => failure.into_response(),
    }
}

#[derive(Serialize)]
struct BatchReply<'a> {
    enqueued: usize,
    refused: usize,
    queue: &'a str,
    results: Vec<BatchResult>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum BatchResult {
    Stored {
        id: MessageId,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        duplicate: bool,
    },
    Refused {
        error: String,
    },
}

async fn enqueue_batch(
    State(api): State<Arc<Api>>,
    cost: Option<Extension<BatchCost>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let limits = api.enqueue.limits;
    let outcome = async {
        let messages = request::batch(&body, MAX_BATCH, limits.message_bytes)?;
        let context = context(&headers)?;
        BatchCost::charge(cost, messages.len()).await?;
        api.enqueue
            .many(messages, context)
            .await
            .map_err(Failure::from)
    };
    match outcome.await {
        Ok(Answered::Taken(outcomes)) => batch_reply(api.enqueue.queue_name().as_str(), outcomes),
        Ok(Answered::OtherRequest) => Failure::OtherRequest.into_response(),
        Err(failure) => failure.into_response(),
    }
}

fn batch_reply(queue: &str, outcomes: Vec<Result<Enqueued>>) -> Response {
    let is_duplicate = |outcome: &Result<Enqueued>| matches!(outcome, Ok(Enqueued::Duplicate(_)));
    let is_replay = outcomes.iter().all(is_duplicate);
    let taken = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let refused = outcomes.len() - taken;
    if taken == 0 {
        // Nothing was taken: the reason is the answer.
        if let Some(Err(error)) = outcomes.into_iter().next() {
            return Failure::Message(error).into_response();
        }
        return Failure::Refused(Refusal("message is required".to_owned())).into_response();
    }
    let results = outcomes.into_iter().map(BatchResult::from).collect();
    let status = if refused == 0 {
        StatusCode::OK
    } else {
        StatusCode::MULTI_STATUS
    };
    let reply = BatchReply {
        enqueued: taken,
        refused,
        queue,
        results,
    };
    replayed(json_line(status, &reply), is_replay)
}

async fn healthz(State(api): State<Arc<Api>>) -> Response {
    let name = api.backend.descriptor.name;
    let problem = match tokio::time::timeout(HEALTH_DEADLINE, api.backend.lifecycle.health()).await
    {
        Ok(Ok(_)) => match api.enqueue.calls.problem() {
            None => return "ok".into_response(),
            Some(problem) => problem,
        },
        Ok(Err(error)) => error.chain(),
        Err(_) => format!("no answer within {HEALTH_DEADLINE:?}"),
    };
    // Addresses and causes are for operators: `/readyz?verbose` and the problems of the admin API have them.
    debug!(backend = name, problem, "health check failed");
    plain(
        StatusCode::SERVICE_UNAVAILABLE,
        format!("{name} ping failed: unavailable"),
    )
}

impl From<Result<Enqueued>> for BatchResult {
    fn from(outcome: Result<Enqueued>) -> Self {
        match outcome {
            Ok(Enqueued::New(id)) => Self::Stored {
                id,
                duplicate: false,
            },
            Ok(Enqueued::Duplicate(id)) => Self::Stored {
                id,
                duplicate: true,
            },
            Err(error) => Self::Refused {
                error: error.chain(),
            },
        }
    }
}

/// Why a request was not served.
enum Failure {
    Refused(Refusal),
    /// A call to the queue failed.
    Queue(Error),
    /// The queue answered, and refused the message.
    Message(Error),
    /// The idempotency key belongs to another request.
    OtherRequest,
    /// A header is wrong.
    Header(Problem),
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self::Header(problem)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Queue(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Refused(Refusal(reason)) => {
                Problem::new(StatusCode::BAD_REQUEST, reason).into_response()
            }
            Self::Queue(error) => queue_failure(&error).into_response(),
            Self::Message(error) => message_failure(&error).into_response(),
            Self::Header(problem) => problem.into_response(),
            Self::OtherRequest => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, OTHER_REQUEST).into_response()
            }
        }
    }
}

/// A message that the queue rejected as invalid; else the same as a queue that failed.
fn message_failure(error: &Error) -> Problem {
    let status = match error.kind() {
        ErrorKind::Invalid => StatusCode::BAD_REQUEST,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Conflict => StatusCode::UNPROCESSABLE_ENTITY,
        _ => return queue_failure(error),
    };
    Problem::new(status, innermost(error))
}

/// The contract's text for a queue that failed, whatever the kind of the error: it is never the client's mistake. The
/// cause goes to the log.
fn queue_failure(error: &Error) -> Problem {
    if let Some(retry_after) = error.retry_after() {
        let seconds = retry_after.as_secs().max(1);
        let reason = format!("{}; try again in {seconds} s", innermost(error));
        return Problem::new(StatusCode::TOO_MANY_REQUESTS, reason).retry_after(seconds);
    }
    log_failure("enqueue failed", error);
    let text = error.unknown_or("enqueue failed");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, text)
}

/// The first cause, which is the sentence meant for the client.
fn innermost(error: &Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::CONTENT_TYPE)?.to_str().ok()
}

fn context(headers: &HeaderMap) -> std::result::Result<Context, Problem> {
    Ok(Context {
        idempotency_key: idempotency::key(headers)?.map(str::to_owned),
        trace: TraceContext::from_headers(headers),
    })
}

fn json_line(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(mut text) => {
            text.push('\n');
            (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Err(error) => {
            warn!(%error, "reply not encoded as JSON");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
        }
    }
}
