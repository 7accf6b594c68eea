//! The HTTP side of the worker: its configuration, and tasks.

#![expect(
    clippy::disallowed_methods,
    reason = "tasks are stored with wall-clock times"
)]

use std::time::Duration;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::auth::Keys;
use super::config::Config;
use super::envelope::{Answer, Failure, parse, parse_of_program, success};
use super::task::{Status, Task, Tasks};
use super::worker::{Offered, Worker};
use crate::http::error::Problem;
use crate::http::extract::{Path, Query};
use crate::http::{Asking, Peer, Sites};
use crate::idempotency::{self, OTHER_REQUEST, replayed};
use crate::telemetry::LastCall;

/// Longest that a request waits for a result.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Most tasks of one page, and how many there are unless the client says.
const MAX_PAGE: usize = 1_000;
const PAGE: usize = 100;

/// The permitted clients of the worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Clients with a key of the fleet.
    Key,
    /// Programs of this machine. Other clients, web pages and proxies need a key.
    KeyOrLoopback,
    /// All clients, as in the reference system.
    Open,
}

/// The state of the routes.
#[derive(Clone)]
struct Api {
    worker: Worker,
    tasks: Tasks,
    keys: Keys,
    entry: Entry,
    sites: Sites,
    calls: LastCall,
}

/// The requests of [`worker_routes`] that have parameters.
pub fn worker_queries() -> [Asking; 2] {
    ["/hit/{id}", "/hits"].map(|route| (Method::GET, route.into()))
}

/// Every route of the worker.
pub fn worker_routes(
    worker: Worker,
    tasks: Tasks,
    keys: Keys,
    (entry, sites): (Entry, Sites),
    calls: LastCall,
) -> Router {
    let api = Api {
        worker,
        tasks,
        keys,
        entry,
        sites,
        calls,
    };
    Router::new()
        .route("/config", get(config).post(configure))
        .route("/hit", get(hit).head(unchanging).post(hit_with))
        .route("/hit/{id}", get(show).delete(cancel))
        .route("/hits", get(list))
        .layer(middleware::from_fn_with_state(api.clone(), admit))
        .with_state(api)
}

/// Serves the clients that the configuration admits. `GET` starts tasks, too, so a web page needs a key for every method.
async fn admit(State(api): State<Api>, request: Request, next: middleware::Next) -> Answer {
    let (head, body) = request.into_parts();
    let is_agent = head.uri.path() == "/config" && api.keys.is_of_agent(&head);
    if let (false, Err(refusal)) = (is_agent, api.keys.check(&head)) {
        let forbidden = |message: &str| Failure::new(StatusCode::FORBIDDEN, "FORBIDDEN", message);
        let is_here = head
            .extensions
            .get::<Peer>()
            .is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
        match api.entry {
            Entry::KeyOrLoopback if api.sites.is_local(&head) => {}
            Entry::KeyOrLoopback if is_here => {
                return Err(forbidden(
                    "requests of web pages and proxies need an API key",
                ));
            }
            Entry::Key | Entry::KeyOrLoopback => return Err(refusal),
            Entry::Open => {
                let page = api.sites.check_page(&head);
                page.map_err(|_| forbidden("requests of web pages need an API key"))?;
            }
        }
    }
    Ok(next.run(Request::from_parts(head, body)).await)
}

async fn config(State(api): State<Api>) -> Answer {
    match api.worker.config() {
        Some(config) => Ok(success(StatusCode::OK, &config)),
        None => Err(Failure::not_found("no config loaded")),
    }
}

async fn configure(State(api): State<Api>, body: Bytes) -> Answer {
    let config: Config = parse_of_program(&body, Config::FIELDS)?;
    match api.worker.take(config).map_err(Failure::of_check)? {
        Offered::Taken(version) => Ok(success(StatusCode::OK, json!({ "version": version }))),
        Offered::Older(newer) => Err(Failure::new(
            StatusCode::CONFLICT,
            "OUTDATED",
            format!("version {newer} is in force, which is newer"),
        )),
    }
}

/// Longest callback URL; it is stored with the task.
const MAX_CALLBACK_BYTES: usize = 2048;

/// The optional fields of a task in a request.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct TaskRequest {
    callback_url: Option<String>,
}

/// `HEAD` is the `GET` without a body, and this `GET` starts a task.
async fn unchanging() -> Response {
    let reason = "`HEAD` starts no task; send `GET` or `POST`";
    let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, reason);
    ([(header::ALLOW, "GET,POST")], problem).into_response()
}

async fn hit(State(api): State<Api>, headers: HeaderMap) -> Answer {
    start(&api, &headers, TaskRequest::default()).await
}

async fn hit_with(State(api): State<Api>, headers: HeaderMap, body: Bytes) -> Answer {
    let request = match body.is_empty() {
        true => TaskRequest::default(),
        false => parse(&body)?,
    };
    start(&api, &headers, request).await
}

async fn start(api: &Api, headers: &HeaderMap, request: TaskRequest) -> Answer {
    // The contract's code; the status says that a configuration fixes it.
    let unconfigured = |error: towpath_core::Error| {
        Failure::new(StatusCode::CONFLICT, "ENQUEUE_FAILED", error.to_string())
    };
    let url = api.worker.url().map_err(unconfigured)?;
    if let Some(callback) = &request.callback_url {
        if callback.len() > MAX_CALLBACK_BYTES {
            let text = format!("`callback_url` is over {MAX_CALLBACK_BYTES} bytes");
            return Err(Failure::new(
                StatusCode::BAD_REQUEST,
                "INVALID_REQUEST",
                text,
            ));
        }
        api.worker.check(callback).map_err(Failure::of_check)?;
    }
    let key = idempotency::key(headers)?;
    let callback = request.callback_url.clone();
    let started = api.tasks.start(url, request.callback_url, key).await;
    api.calls.note(&started);
    let (task, is_new) = started.map_err(|error| Failure::from(error).code("ENQUEUE_FAILED"))?;
    if !is_new && task.callback_url != callback {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        return Err(Failure::new(status, "ENQUEUE_FAILED", OTHER_REQUEST));
    }
    // The contract's word for a task that was accepted.
    let status = match task.status.is_final() {
        true => json!(task.status),
        false => json!(Status::Queued),
    };
    let body = json!({ "task_id": task.task_id, "status": status });
    Ok(replayed(success(StatusCode::ACCEPTED, body), !is_new))
}

/// A task as clients see it: `pending` until there is a result, as in the reference system, with its state.
fn view(task: &Task) -> Value {
    let mut view = json!(task);
    if !task.status.is_final() {
        view["state"] = json!(task.status);
        view["status"] = json!("pending");
    }
    view
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    wait: Option<u64>,
}

fn id(text: &str) -> Result<Uuid, Failure> {
    // An invalid id is an unknown task.
    Uuid::parse_str(text).map_err(|_| no_task())
}

fn no_task() -> Failure {
    Failure::not_found("task not found; results are kept for an hour")
}

async fn show(
    State(api): State<Api>,
    Path(task): Path<String>,
    Query(query): Query<Wait>,
) -> Answer {
    let wait = Duration::from_secs(query.wait.unwrap_or(0)).min(LONGEST_WAIT);
    let found = api.tasks.wait(id(&task)?, wait).await;
    let found = found.map_err(|error| Failure::from(error).code("RESULT_FETCH_FAILED"))?;
    Ok(success(StatusCode::OK, view(&found.ok_or_else(no_task)?)))
}

async fn cancel(State(api): State<Api>, Path(task): Path<String>) -> Answer {
    let task = id(&task)?;
    loop {
        let stored = api.tasks.find(task).await?.ok_or_else(no_task)?;
        if stored.task.status.is_final() {
            return Ok(success(StatusCode::OK, &stored.task));
        }
        let cancelled = Task {
            status: Status::Cancelled,
            finished_at: Some(jiff::Timestamp::now()),
            ..stored.task.clone()
        };
        // A concurrent change is possible; then it is read again.
        if api.tasks.change(&stored, &cancelled).await? {
            return Ok(success(StatusCode::OK, &cancelled));
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    after: Option<Uuid>,
    limit: Option<usize>,
}

async fn list(State(api): State<Api>, Query(page): Query<Page>) -> Answer {
    let limit = page.limit.unwrap_or(PAGE);
    if !(1..=MAX_PAGE).contains(&limit) {
        return Err(Failure::invalid(format!(
            "`limit` is {limit}; it must be 1 to {MAX_PAGE}"
        )));
    }
    let tasks = api.tasks.list(page.after, limit).await?;
    let all: Vec<Value> = tasks.iter().map(view).collect();
    Ok(success(StatusCode::OK, all))
}
