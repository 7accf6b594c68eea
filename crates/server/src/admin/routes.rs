//! The routes of `/v1`: one list makes the router and the OpenAPI document.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Deserialize;
use std::sync::Arc;
use towpath_core::backend::Backend;
use towpath_core::port::queue::{Enqueued, Selection, Stats};
use towpath_core::port::{Kv, Queue};
use towpath_core::{Error, ErrorKind, MessageId, NewMessage, QueueName, Result};
use utoipa::openapi::OpenApi;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::failure::Failure;
use super::wire::{
    Count, CurrentProblem, DeadLetterSelection, DeadLetterView, MessageView, QueueStats, Sent,
};
use super::{Admin, document};
use crate::apps::orders::{Balance, Reconciliation};
use crate::http::Segment;
use crate::http::error::Problem;
use crate::http::extract::{Json, Query};
use crate::http::json::Object;
use crate::idempotency::{self, Digest, OTHER_REQUEST, replayed};
use towpath::traces::{self, TraceContext};

pub(super) type Answer<T> = std::result::Result<Json<T>, Failure>;

/// A list over several backends, some of which may not answer.
pub(super) type Partial<T> = (HeaderMap, Json<T>);

/// The header that names the backends whose part is missing.
pub const UNAVAILABLE: &str = "towpath-unavailable";

/// Timeout of one backend for its part.
const PART_DEADLINE: Duration = Duration::from_secs(5);

/// The route that takes and shows messages.
pub(super) const MESSAGES: &str = "/v1/queues/{queue}/messages";

/// A payload, for the document.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "only the document reads it")]
struct Binary(Vec<u8>);

/// Ten years: a longer delay is a mistake, and would look like a lost message.
const MAX_DELAY_SECONDS: u64 = 315_360_000;

/// The router and its document.
pub(super) fn v1() -> (Router<Admin>, OpenApi) {
    let (router, mut document) = OpenApiRouter::with_openapi(document::head())
        .routes(routes!(list))
        .routes(routes!(show, delete))
        .routes(routes!(peek, send))
        .routes(routes!(pause))
        .routes(routes!(resume))
        .routes(routes!(purge))
        .routes(routes!(collect))
        .routes(routes!(dead_letters))
        .routes(routes!(redrive))
        // The name of version 0.1; documented in the changelog, absent from the document.
        .route(
            "/v1/queues/{queue}/dead-letters/requeue",
            axum::routing::post(redrive),
        )
        .routes(routes!(drop_dead))
        .routes(routes!(super::streams::list))
        .routes(routes!(super::streams::show))
        .routes(routes!(super::streams::entries))
        .routes(routes!(super::streams::trim))
        .routes(routes!(super::outbox::stats))
        .routes(routes!(super::outbox::events))
        .routes(routes!(super::outbox::retry))
        .routes(routes!(super::outbox::replay))
        .routes(routes!(super::outbox::backfill))
        .routes(routes!(super::health::health))
        .routes(routes!(problems))
        .routes(routes!(super::doctor::examine))
        .routes(routes!(super::keys::list))
        .routes(routes!(
            super::keys::get,
            super::keys::set,
            super::keys::delete
        ))
        .routes(routes!(super::keys::add))
        .routes(routes!(
            super::session::show,
            super::session::sign_in,
            super::session::sign_out
        ))
        .routes(routes!(super::session::code))
        .routes(routes!(check_orders))
        .routes(routes!(backup))
        .split_for_parts();
    document::add_refusals(&mut document);
    (router, document)
}

/// The queue of a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(dead_code, reason = "only the document reads it")]
struct QueuePath {
    /// A queue: 1 to 255 bytes of UTF-8 without white space or control characters.
    #[param(
        min_length = 1,
        max_length = 255,
        pattern = r"^[^\s\x00-\x1f\x7f-\x9f]+$"
    )]
    queue: String,
}

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
    /// Delay of the delivery in seconds, at most ten years.
    #[param(rename = "Towpath-Delay", maximum = 315_360_000)]
    delay: Option<u64>,
    /// W3C trace context, stored with the message.
    traceparent: Option<String>,
}

/// Size of a page.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Top {
    /// Maximum entries, 1 to 1,000.
    #[serde(default)]
    #[param(value_type = u16, minimum = 1, maximum = 1000, default = 20)]
    max: Max,
}

/// A page of a list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Page {
    /// Maximum entries, 1 to 1,000.
    #[serde(default)]
    #[param(value_type = u16, minimum = 1, maximum = 1000, default = 20)]
    max: Max,
    /// Start after this message id.
    #[param(value_type = Option<Uuid>)]
    after: Option<String>,
}

/// Maximum entries of a page.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
pub(super) struct Max(pub(super) usize);

impl Default for Max {
    fn default() -> Self {
        Self(20)
    }
}

impl TryFrom<u64> for Max {
    type Error = String;

    fn try_from(max: u64) -> std::result::Result<Self, String> {
        match usize::try_from(max) {
            Ok(max @ 1..=1000) => Ok(Self(max)),
            _ => Err(format!("`max` is {max}; it must be from 1 to 1000")),
        }
    }
}

/// List queues.
///
/// Queues of an unavailable backend are left out, and the header `Towpath-Unavailable` names the backend with the reason.
/// 503 when every backend is unavailable.
#[utoipa::path(get, operation_id = "list_queues", path = "/v1/queues", responses((status = 200, description = "Their numbers, by name", body = [QueueStats], headers(("Towpath-Unavailable" = String, description = "Backends whose queues are missing, with the reasons")))))]
async fn list(
    State(admin): State<Admin>,
) -> std::result::Result<Partial<Vec<QueueStats>>, Failure> {
    admin.queues()?;
    let listed = admin.listed(|backend| async move {
        let queue = backend.queue?;
        Some(all_stats(&*queue).await)
    });
    let (queues, missing) = listed.await?;
    Ok(partial(queues, &missing))
}

/// Show a queue.
#[utoipa::path(get, operation_id = "show_queue", path = "/v1/queues/{queue}", params(QueuePath), responses((status = 200, description = "Its numbers", body = QueueStats)))]
async fn show(State(admin): State<Admin>, Segment(name): Segment) -> Answer<QueueStats> {
    let (queue, name) = admin.find(&name).await?;
    let stats = queue.stats(&name).await?;
    Ok(Json(with_stranded(&*queue, stats).await?))
}

async fn all_stats(queue: &dyn Queue) -> Result<Vec<QueueStats>> {
    let mut all = Vec::new();
    for stats in queue.list().await? {
        all.push(with_stranded(queue, stats).await?);
    }
    Ok(all)
}

async fn with_stranded(queue: &dyn Queue, stats: Stats) -> Result<QueueStats> {
    let stranded = queue.stranded(&stats.queue).await?;
    Ok(QueueStats {
        stranded: stranded.iter().map(|one| one.messages).sum(),
        ..QueueStats::from(stats)
    })
}

/// Move messages from other brokers of the backend's URL into the queue.
#[utoipa::path(post, path = "/v1/queues/{queue}/collect", params(QueuePath), responses((status = 200, description = "Number of moved messages", body = Count)))]
async fn collect(State(admin): State<Admin>, Segment(name): Segment) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(Count {
        count: queue.collect(&name).await?,
    }))
}

/// Whether to delete a queue that is not empty.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct Deleting {
    /// Delete it with its messages and dead letters.
    #[serde(default)]
    force: bool,
}

/// Delete a queue with its counters and idempotency keys.
///
/// 409 while the queue has consumers, a route into it, or (without `force`) messages or dead letters.
#[utoipa::path(delete, operation_id = "delete_queue", path = "/v1/queues/{queue}", params(QueuePath, Deleting), responses((status = 200, description = "Number of dropped messages and dead letters", body = Count)))]
async fn delete(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Query(deleting): Query<Deleting>,
) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(Count {
        count: queue.delete(&name, deleting.force).await?,
    }))
}

/// List the oldest messages without changing them.
#[utoipa::path(get, path = "/v1/queues/{queue}/messages", params(QueuePath, Top), responses((status = 200, description = "Oldest first", body = [MessageView])))]
async fn peek(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Query(page): Query<Top>,
) -> Answer<Vec<MessageView>> {
    let (queue, name) = admin.find(&name).await?;
    let messages = queue.peek(&name, page.max.0).await?;
    Ok(Json(messages.into_iter().map(MessageView::from).collect()))
}

/// Send the body as one message; create the queue when it does not exist.
///
/// 415 for NDJSON, which would be stored as one message instead of a batch.
#[utoipa::path(post, path = "/v1/queues/{queue}/messages", params(QueuePath, About), request_body(content = inline(Option<Binary>), content_type = "application/octet-stream", description = "The payload, at most 16 MiB; none is an empty message"), responses((status = 200, description = "It is durable", body = Sent)))]
async fn send(
    State(admin): State<Admin>,
    Segment(name): Segment,
    headers: HeaderMap,
    payload: Bytes,
) -> std::result::Result<Response, Failure> {
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
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, hint).into());
    }
    // An unreadable header is rejected: if it were ignored, a retry would not be safe.
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
    message.dedup_id = idempotency::key(&headers)?.map(str::to_owned);
    message.key = header("towpath-key")?;
    if let Some(delay) = header("towpath-delay")? {
        let seconds: u64 = delay
            .parse()
            .ok()
            .filter(|seconds| *seconds <= MAX_DELAY_SECONDS)
            .ok_or_else(|| {
                let reason =
                    format!("`Towpath-Delay` must be whole seconds, at most {MAX_DELAY_SECONDS}");
                Problem::new(StatusCode::BAD_REQUEST, reason)
            })?;
        message.not_before = Some(
            towpath_core::Clock::now(&towpath_core::SystemClock::new())
                .after(Duration::from_secs(seconds)),
        );
    }
    let digest = message
        .dedup_id
        .as_deref()
        .map(|key| Digest::of(key, [&*message.payload]));
    if let Some(digest) = digest {
        digest.mark(&mut message, 0);
    }
    let name = QueueName::new(&name)?;
    let queue = match admin.find(name.as_str()).await {
        Ok((queue, _)) => queue,
        Err(error) if error.kind() == ErrorKind::NotFound => admin.queues()?.remove(0),
        Err(error) => return Err(error.into()),
    };
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

/// Pause delivery.
#[utoipa::path(post, path = "/v1/queues/{queue}/pause", params(QueuePath), responses((status = 200, description = "Its numbers afterwards", body = QueueStats)))]
async fn pause(State(admin): State<Admin>, Segment(name): Segment) -> Answer<QueueStats> {
    let (queue, name) = admin.find(&name).await?;
    queue.pause(&name).await?;
    Ok(Json(queue.stats(&name).await?.into()))
}

/// Resume delivery.
#[utoipa::path(post, path = "/v1/queues/{queue}/resume", params(QueuePath), responses((status = 200, description = "Its numbers afterwards", body = QueueStats)))]
async fn resume(State(admin): State<Admin>, Segment(name): Segment) -> Answer<QueueStats> {
    let (queue, name) = admin.find(&name).await?;
    queue.resume(&name).await?;
    Ok(Json(queue.stats(&name).await?.into()))
}

/// Delete all ready and delayed messages; leased messages and dead letters stay.
#[utoipa::path(post, path = "/v1/queues/{queue}/purge", params(QueuePath), responses((status = 200, description = "Number of dropped messages", body = Count)))]
async fn purge(State(admin): State<Admin>, Segment(name): Segment) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(Count {
        count: queue.purge(&name).await?,
    }))
}

/// List dead letters, oldest first.
#[utoipa::path(get, path = "/v1/queues/{queue}/dead-letters", params(QueuePath, Page), responses((status = 200, description = "Oldest first", body = [DeadLetterView])))]
async fn dead_letters(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Query(page): Query<Page>,
) -> Answer<Vec<DeadLetterView>> {
    let (queue, name) = admin.find(&name).await?;
    let after = page.after.map(|id| id.parse::<MessageId>()).transpose()?;
    let letters = queue.dead_letters(&name, after, page.max.0).await?;
    Ok(Json(
        letters.into_iter().map(DeadLetterView::from).collect(),
    ))
}

/// Return dead letters to the end of their queue.
#[utoipa::path(post, path = "/v1/queues/{queue}/dead-letters/redrive", params(QueuePath), request_body = DeadLetterSelection, responses((status = 200, description = "Number of redriven messages", body = Count)))]
async fn redrive(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Json(Object(letters)): Json<Object<DeadLetterSelection>>,
) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(Count {
        count: queue.redrive(&name, &selection(&letters)?).await?,
    }))
}

/// Delete dead letters permanently.
#[utoipa::path(post, path = "/v1/queues/{queue}/dead-letters/drop", params(QueuePath), request_body = DeadLetterSelection, responses((status = 200, description = "Number of deleted messages", body = Count)))]
async fn drop_dead(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Json(Object(letters)): Json<Object<DeadLetterSelection>>,
) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    Ok(Json(Count {
        count: queue.drop_dead(&name, &selection(&letters)?).await?,
    }))
}

/// List current problems, most severe first.
#[utoipa::path(get, path = "/v1/problems", responses((status = 200, description = "Evaluated at this moment; empty when nothing is wrong", body = [CurrentProblem])))]
async fn problems(State(admin): State<Admin>) -> Answer<Vec<CurrentProblem>> {
    let problems = admin.problems.current().await;
    Ok(Json(
        problems.into_iter().map(CurrentProblem::from).collect(),
    ))
}

/// Whether a backend says that it has no such queue or stream, perhaps because it cannot have one of this name.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Invalid)
}

fn selection(letters: &DeadLetterSelection) -> Result<Selection> {
    match (letters.all, letters.ids.is_empty()) {
        (true, true) => Ok(Selection::All),
        (false, false) => Ok(Selection::Ids(
            letters
                .ids
                .iter()
                .map(|id| id.parse())
                .collect::<Result<_>>()?,
        )),
        _ => Err(Error::invalid("pass either `all` or `ids`")),
    }
}

/// Reconcile order counts: accepted = processed + rejected + in flight + dead.
#[utoipa::path(get, path = "/v1/orders/check", responses((status = 200, description = "The balance, and what breaks it", body = Balance), (status = 404, description = "No orders here")))]
async fn check_orders(State(admin): State<Admin>) -> Answer<Balance> {
    let store = admin.orders.clone().ok_or_else(|| {
        Error::not_found("no role of the orders app runs in this process; ask one where it does")
    })?;
    Ok(Json(Reconciliation(store).balance().await?))
}

/// Stream a consistent snapshot of the embedded store.
///
/// The first line is JSON and lists the files (`[{"name": ..., "bytes": ...}]`); their contents follow in this order.
/// A response that ends early is not a valid backup.
#[utoipa::path(post, path = "/v1/backup", responses((status = 200, description = "The files", body = Binary, content_type = "application/octet-stream")))]
async fn backup(State(admin): State<Admin>) -> std::result::Result<Response, Failure> {
    let stores = admin.backends.iter();
    let mut stores = stores.filter(|backend| backend.descriptor.name == "embedded");
    let (Some(store), None) = (stores.next(), stores.next()) else {
        let text = "this process has not exactly one embedded store; servers are backed up with their own tools";
        return Err(Error::unsupported(text).into());
    };
    let snapshot = store.lifecycle.snapshot().await?;
    let health = admin.health.clone();
    let stream = crate::backup::outgoing(snapshot, move || health.is_draining())?;
    let kind = (header::CONTENT_TYPE, "application/octet-stream");
    Ok(([kind], Body::from_stream(stream)).into_response())
}

/// The list with the header that names unavailable backends.
pub(super) fn partial<T>(list: T, missing: &[String]) -> Partial<T> {
    let mut headers = HeaderMap::new();
    if !missing.is_empty() {
        let printable = |text: char| if text.is_ascii_graphic() { text } else { ' ' };
        let text: String = missing.join("; ").chars().map(printable).collect();
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(UNAVAILABLE, value);
        }
    }
    (headers, Json(list))
}

impl Admin {
    /// The lists of all backends, and the errors of those that do not answer.
    ///
    /// # Errors
    /// That of the first one, when none answers.
    pub(super) async fn listed<T, F>(
        &self,
        list: impl Fn(Backend) -> F,
    ) -> Result<(Vec<T>, Vec<String>)>
    where
        F: Future<Output = Option<Result<Vec<T>>>>,
    {
        let answers = join_all(self.backends.iter().map(|backend| async {
            let answer = tokio::time::timeout(PART_DEADLINE, list(backend.clone())).await;
            let late = || {
                let text = format!("{} did not answer within {PART_DEADLINE:?}", backend.url);
                Some(Err(Error::unavailable(text)))
            };
            answer.unwrap_or_else(|_| late())
        }));
        let (mut all, mut missing, mut first) = (Vec::new(), Vec::new(), None);
        let mut has_answer = false;
        for answer in answers.await.into_iter().flatten() {
            match answer {
                Ok(part) => {
                    has_answer = true;
                    all.extend(part);
                }
                Err(error) => {
                    missing.push(error.chain());
                    first.get_or_insert(error);
                }
            }
        }
        match first {
            Some(error) if !has_answer => Err(error),
            _ => Ok((all, missing)),
        }
    }

    /// Of every backend that has queues.
    fn queues(&self) -> Result<Vec<Arc<dyn Queue>>> {
        let queues: Vec<_> = self
            .backends
            .iter()
            .filter_map(|backend| backend.queue.clone())
            .collect();
        if queues.is_empty() {
            let reason = "no backend of this process has queues";
            return Err(Error::unsupported(reason));
        }
        Ok(queues)
    }

    /// The keys of the orders app, or else those of the first backend that has some.
    pub(super) fn kv(&self) -> Result<Arc<dyn Kv>> {
        let orders = self.orders.as_ref().map(|store| Arc::clone(&store.kv));
        let first = || self.backends.iter().find_map(|backend| backend.kv.clone());
        orders
            .or_else(first)
            .ok_or_else(|| Error::unsupported("no backend of this process has keys"))
    }

    /// The backend of a queue that exists.
    async fn find(&self, name: &str) -> Result<(Arc<dyn Queue>, QueueName)> {
        let name = QueueName::new(name)?;
        let mut unavailable = None;
        for queue in self.queues()? {
            match queue.stats(&name).await {
                Ok(_) => return Ok((queue, name)),
                Err(error) if is_absent(&error) => {}
                // Another backend may have it.
                Err(error) => _ = unavailable.get_or_insert(error),
            }
        }
        let absent = || {
            Error::not_found(format!(
                "there is no queue `{name}`; `towpath queue ls` lists those that exist"
            ))
        };
        Err(unavailable.unwrap_or_else(absent))
    }
}
