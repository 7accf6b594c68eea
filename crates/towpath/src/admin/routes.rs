//! The routes of `/v1`: one list makes the router and the OpenAPI document.

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;
use std::sync::Arc;
use towpath_core::port::Queue;
use towpath_core::port::queue::{Enqueued, Selection};
use towpath_core::{Error, MessageId, NewMessage, QueueName, Result};
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{IntoParams, Modify, OpenApi as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Admin;
use super::wire::{Count, DeadLetterView, HealthView, Letters, MessageView, QueueStats, Sent};
use crate::http::error::Problem;
use crate::telemetry::TraceContext;

type Answer<T> = std::result::Result<Json<T>, Problem>;

/// The route that takes and shows messages.
pub(super) const MESSAGES: &str = "/v1/queues/{queue}/messages";

/// How long the backend may take to tell its facts.
const FACTS_DEADLINE: Duration = Duration::from_secs(2);

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Towpath admin API",
        description = "Queues, messages and dead letters of a running Towpath. Errors are problems as RFC 9457 describes them."
    ),
    modifiers(&Bearer),
    security(("token" = []))
)]
struct Document;

/// Every operation wants the token.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some(
                "The token in the file `admin.token` of the data folder.",
            ))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// The router and its document.
pub(super) fn v1() -> (Router<Admin>, OpenApi) {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(peek, send))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(purge))
        .routes(routes!(dead_letters))
        .routes(routes!(requeue))
        .routes(routes!(drop_dead))
        .routes(routes!(health))
        .split_for_parts()
}

#[derive(Debug, Deserialize, IntoParams)]
struct Page {
    /// Most entries, 1 to 1,000.
    #[serde(default = "twenty")]
    max: usize,
    /// Those behind this message id.
    after: Option<String>,
}

const fn twenty() -> usize {
    20
}

/// Every queue.
#[utoipa::path(get, path = "/v1/queues", responses((status = 200, body = [QueueStats])))]
async fn list(State(admin): State<Admin>) -> Answer<Vec<QueueStats>> {
    let queue = admin.queue()?;
    Ok(Json(
        queue
            .list()
            .await?
            .into_iter()
            .map(QueueStats::from)
            .collect(),
    ))
}

/// One queue.
#[utoipa::path(get, path = "/v1/queues/{queue}", responses((status = 200, body = QueueStats), (status = 404)))]
async fn show(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<QueueStats> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(queue.stats(&name).await?.into()))
}

/// The oldest waiting messages, untouched.
#[utoipa::path(get, path = "/v1/queues/{queue}/messages", params(Page), responses((status = 200, body = [MessageView])))]
async fn peek(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(page): Query<Page>,
) -> Answer<Vec<MessageView>> {
    let (queue, name) = admin.find(&name).await?;
    let messages = queue.peek(&name, page.max.clamp(1, 1000)).await?;
    Ok(Json(messages.into_iter().map(MessageView::from).collect()))
}

/// Sends the body as one message; `Idempotency-Key`, `Towpath-Key`, `Towpath-Delay` (seconds) and `traceparent` are heeded.
///
/// NDJSON is refused with 415: it is a batch to those who send it, and would be one message here.
#[utoipa::path(post, path = "/v1/queues/{queue}/messages", request_body = Vec<u8>, responses((status = 200, body = Sent), (status = 415), (status = 429)))]
async fn send(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    headers: HeaderMap,
    payload: Bytes,
) -> Answer<Sent> {
    let ndjson = |value: &header::HeaderValue| {
        let value = value.as_bytes().to_ascii_lowercase();
        [
            "application/x-ndjson",
            "application/ndjson",
            "application/jsonl",
        ]
        .iter()
        .any(|kind| value.starts_with(kind.as_bytes()))
    };
    if headers.get(header::CONTENT_TYPE).is_some_and(ndjson) {
        let hint = "this path takes one message; post NDJSON to `/enqueue/batch` of the public listener, send line by line (`towpath send --lines`), or call it `application/octet-stream` to store it as one message";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, hint));
    }
    // A header that cannot be read is refused: passed over, a retry would no longer be harmless.
    let header = |name: &str| -> std::result::Result<Option<String>, Problem> {
        let Some(value) = headers.get(name) else {
            return Ok(None);
        };
        let unreadable = || {
            Problem::new(
                StatusCode::BAD_REQUEST,
                format!("header `{name}` is not UTF-8"),
            )
        };
        std::str::from_utf8(value.as_bytes())
            .map(|text| Some(text.to_owned()))
            .map_err(|_| unreadable())
    };
    let mut message = NewMessage::new(payload);
    if let Some(trace) = TraceContext::from_headers(&headers) {
        trace.write(&mut message.headers);
    }
    message.dedup_id = header("idempotency-key")?;
    message.key = header("towpath-key")?;
    if let Some(delay) = header("towpath-delay")? {
        let seconds: u64 = delay.parse().map_err(|_| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "`Towpath-Delay` must be whole seconds",
            )
        })?;
        message.not_before = Some(
            towpath_core::Clock::now(&towpath_core::SystemClock::new())
                .after(Duration::from_secs(seconds)),
        );
    }
    let name = QueueName::new(&name)?;
    let mut outcomes = admin.queue()?.enqueue(&name, vec![message]).await?;
    let outcome = outcomes
        .pop()
        .unwrap_or_else(|| Err(Error::unavailable("the queue gave no outcome")))?;
    Ok(Json(Sent {
        id: outcome.id().to_string(),
        duplicate: matches!(outcome, Enqueued::Duplicate(_)),
    }))
}

/// Stops delivery.
#[utoipa::path(post, path = "/v1/queues/{queue}/pause", responses((status = 200, body = QueueStats)))]
async fn pause(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<QueueStats> {
    let (queue, name) = admin.find(&name).await?;
    queue.pause(&name).await?;
    Ok(Json(queue.stats(&name).await?.into()))
}

/// Starts delivery again.
#[utoipa::path(post, path = "/v1/queues/{queue}/resume", responses((status = 200, body = QueueStats)))]
async fn resume(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<QueueStats> {
    let (queue, name) = admin.find(&name).await?;
    queue.resume(&name).await?;
    Ok(Json(queue.stats(&name).await?.into()))
}

/// Drops every waiting message; those in hand and dead letters stay.
#[utoipa::path(post, path = "/v1/queues/{queue}/purge", responses((status = 200, body = Count)))]
async fn purge(State(admin): State<Admin>, Path(name): Path<String>) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(Count {
        count: queue.purge(&name).await?,
    }))
}

/// The oldest dead letters.
#[utoipa::path(get, path = "/v1/queues/{queue}/dead-letters", params(Page), responses((status = 200, body = [DeadLetterView])))]
async fn dead_letters(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Query(page): Query<Page>,
) -> Answer<Vec<DeadLetterView>> {
    let (queue, name) = admin.find(&name).await?;
    let after = page.after.map(|id| id.parse::<MessageId>()).transpose()?;
    let letters = queue
        .dead_letters(&name, after, page.max.clamp(1, 1000))
        .await?;
    Ok(Json(
        letters.into_iter().map(DeadLetterView::from).collect(),
    ))
}

/// Puts dead letters back to the end of their queue.
#[utoipa::path(post, path = "/v1/queues/{queue}/dead-letters/requeue", request_body = Letters, responses((status = 200, body = Count)))]
async fn requeue(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Json(letters): Json<Letters>,
) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(Count {
        count: queue.redrive(&name, &selection(&letters)?).await?,
    }))
}

/// Deletes dead letters for good.
#[utoipa::path(post, path = "/v1/queues/{queue}/dead-letters/drop", request_body = Letters, responses((status = 200, body = Count)))]
async fn drop_dead(
    State(admin): State<Admin>,
    Path(name): Path<String>,
    Json(letters): Json<Letters>,
) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(Count {
        count: queue.drop_dead(&name, &selection(&letters)?).await?,
    }))
}

/// How the process is.
#[utoipa::path(get, path = "/v1/health", responses((status = 200, body = HealthView)))]
async fn health(State(admin): State<Admin>) -> Answer<HealthView> {
    let (ready, checks) = admin.health.check().await;
    let asked = tokio::time::timeout(FACTS_DEADLINE, admin.backend.lifecycle.health()).await;
    let facts = match asked {
        Ok(Ok(health)) => health.facts,
        // Why there are none is among the checks.
        Ok(Err(_)) | Err(_) => Vec::new(),
    };
    Ok(Json(HealthView {
        ready,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        checks,
        facts: facts
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect(),
    }))
}

fn selection(letters: &Letters) -> Result<Selection> {
    match (letters.all, letters.ids.is_empty()) {
        (true, true) => Ok(Selection::All),
        (false, false) => Ok(Selection::Ids(
            letters
                .ids
                .iter()
                .map(|id| id.parse())
                .collect::<Result<_>>()?,
        )),
        _ => Err(Error::invalid("say either `all` or some `ids`")),
    }
}

impl Admin {
    fn queue(&self) -> Result<Arc<dyn Queue>> {
        self.backend.require_queue("the admin API")
    }

    /// A queue that exists, or an error that names those that do.
    async fn find(&self, name: &str) -> Result<(Arc<dyn Queue>, QueueName)> {
        let (queue, name) = (self.queue()?, QueueName::new(name)?);
        let known = queue.list().await?;
        if known.iter().any(|stats| stats.queue == name) {
            return Ok((queue, name));
        }
        let names: Vec<&str> = known
            .iter()
            .take(20)
            .map(|stats| stats.queue.as_str())
            .collect();
        Err(Error::not_found(format!(
            "there is no queue `{name}`; there are: {}",
            names.join(", ")
        )))
    }
}
