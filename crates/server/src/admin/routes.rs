//! The routes of `/v1`: one list makes the router and the OpenAPI document.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use std::sync::Arc;
use towpath_core::backend::Backend;
use towpath_core::port::queue::{Selection, Stats};
use towpath_core::port::{Kv, Queue};
use towpath_core::{Error, ErrorKind, MessageId, QueueName, Result};
use utoipa::IntoParams;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::failure::Failure;
use super::jobs::Binary;
use super::wire::{
    Count, CurrentProblem, DeadLetterSelection, DeadLetterView, MessageView, QueueStats,
};
use super::{Admin, document};
use crate::apps::orders::{Balance, Reconciliation};
use crate::http::Segment;
use crate::http::extract::{Json, Query};
use crate::http::json::Object;

pub(super) type Answer<T> = std::result::Result<Json<T>, Failure>;

/// A list over several backends, some of which may not answer.
pub(super) type Partial<T> = (HeaderMap, Json<T>);

/// The header that names the backends whose part is missing.
pub const UNAVAILABLE: &str = "towpath-unavailable";

/// Timeout of one backend for its part.
const PART_DEADLINE: Duration = Duration::from_secs(5);

/// The route that takes and shows messages.
pub(super) const MESSAGES: &str = "/v1/queues/{queue}/messages";

/// The router and its document.
pub(super) fn v1() -> (Router<Admin>, OpenApi) {
    let (router, mut document) = super::jobs::routes(OpenApiRouter::with_openapi(document::head()))
        .routes(routes!(list))
        .routes(routes!(show, delete))
        .routes(routes!(peek))
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
pub(super) struct QueuePath {
    /// A queue: 1 to 255 bytes of UTF-8 without white space or control characters.
    #[param(
        min_length = 1,
        max_length = 255,
        pattern = r"^[^\s\x00-\x1f\x7f-\x9f]+$"
    )]
    queue: String,
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
    Ok(Json(view(&*queue, &name).await?))
}

/// Statistics and settings of a queue.
pub(super) async fn view(queue: &dyn Queue, name: &QueueName) -> Result<QueueStats> {
    let stats = queue.stats(name).await?;
    let settings = queue.settings(name).await?;
    Ok(QueueStats {
        settings: Some(settings.into()),
        ..with_stranded(queue, stats).await?
    })
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
/// 409 while the queue has consumers, a route into it, or (without `force`) messages or dead letters, and for a queue that
/// the configuration declares.
#[utoipa::path(delete, operation_id = "delete_queue", path = "/v1/queues/{queue}", params(QueuePath, Deleting), responses((status = 200, description = "Number of dropped messages and dead letters", body = Count)))]
async fn delete(
    State(admin): State<Admin>,
    Segment(name): Segment,
    Query(deleting): Query<Deleting>,
) -> Answer<Count> {
    let (queue, name) = admin.find(&name).await?;
    admin.jobs.declared().refuse_delete(&name)?;
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
    pub(super) fn queues(&self) -> Result<Vec<Arc<dyn Queue>>> {
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
    pub(super) async fn find(&self, name: &str) -> Result<(Arc<dyn Queue>, QueueName)> {
        let (_, queue, name) = self.find_on(name).await?;
        Ok((queue, name))
    }

    /// The backend of a queue, or the first one that has queues where it does not exist.
    pub(super) async fn find_or_first(&self, name: &QueueName) -> Result<Arc<dyn Queue>> {
        match self.find(name.as_str()).await {
            Ok((queue, _)) => Ok(queue),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(self.queues()?.remove(0)),
            Err(error) => Err(error),
        }
    }

    /// The backend of a queue that exists, with its description.
    pub(super) async fn find_on(
        &self,
        name: &str,
    ) -> Result<(&Backend, Arc<dyn Queue>, QueueName)> {
        let name = QueueName::new(name)?;
        // So that the error names the reason when there are none.
        self.queues()?;
        let mut unavailable = None;
        for backend in &self.backends {
            let Some(queue) = &backend.queue else {
                continue;
            };
            match queue.stats(&name).await {
                Ok(_) => return Ok((backend, Arc::clone(queue), name)),
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
