//! The HTTP side of the controller: the routes and envelopes of the reference system, and more of them.

#![expect(
    clippy::disallowed_methods,
    reason = "the database keeps the machine's wall-clock time"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, State};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use towpath_core::port::fleet::{
    AuditEntry, NewConfig, Outcome, Plan, Progress, Published, Rollout,
};
use uuid::Uuid;

use super::agent_routes::agent_routes;
use super::auth::{Caller, Operator};
use super::config::{Config, POLL_SECONDS, follows};
use super::controller::Controller;
use super::envelope::{Answer, Failure, parse, success};
use super::rollout::Step;
use crate::http::extract::{Path, Query};
use crate::http::json::Object;
use crate::http::preconditions::{Preconditions, Tags, Unmet, not_modified, with_tag};
use crate::http::{Asking, Peer};

/// Longest that a request waits for another configuration.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Longest poll interval of agents, in seconds: a day.
const LONGEST_POLL: i64 = 86_400;

/// Most of a list, and how many there are unless the client says.
const MAX_PAGE: usize = 1_000;
const PAGE: usize = 100;

/// The agent that asks with a key of the fleet.
const AGENT_ID: &str = "x-agent-id";

/// Every route of the controller.
pub fn controller_routes(controller: Controller) -> Router {
    Router::new()
        .route("/config", post(publish).get(config))
        .route("/config/{version}", get(version))
        .route("/config/history", get(history))
        .route("/config/diff", get(diff))
        .route("/config/rollback", post(rollback))
        .route("/config/restore", post(restore))
        .route("/rollout", get(rollout))
        .route("/rollout/stop", post(stop))
        .route("/audit", get(audit))
        .with_state(controller.clone())
        .merge(agent_routes(controller))
}

/// The requests of [`controller_routes`] that have parameters.
pub fn controller_queries() -> [Asking; 5] {
    [
        "/config",
        "/config/history",
        "/config/diff",
        "/audit",
        "/agents",
    ]
    .map(|route| (Method::GET, route.into()))
}

/// A configuration to publish.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Publication {
    data: Option<BTreeMap<String, String>>,
    poll_interval_seconds: Option<i64>,
    /// Absent: the schema of the version before. Null: none.
    #[serde(default, deserialize_with = "present")]
    schema: Option<Option<Value>>,
    rollout: Option<Object<WantedRollout>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WantedRollout {
    steps: Vec<String>,
    #[serde(default)]
    bake_seconds: u32,
}

/// Tells null from nothing.
fn present<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Option<Value>>, D::Error> {
    Option::deserialize(value).map(Some)
}

async fn publish(
    State(controller): State<Controller>,
    Operator(author): Operator,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let publication: Publication = parse(&body)?;
    let (newest, expected) = expected(&controller, &headers).await?;
    let data = publication
        .data
        .ok_or_else(|| Failure::invalid("`data` is required"))?;
    let poll = match publication.poll_interval_seconds {
        Some(seconds) if seconds > LONGEST_POLL => {
            let text =
                format!("`poll_interval_seconds` is {seconds}; it must be at most {LONGEST_POLL}");
            return Err(Failure::invalid(text));
        }
        Some(seconds) if seconds > 0 => u32::try_from(seconds).unwrap_or(POLL_SECONDS),
        _ => POLL_SECONDS,
    };
    let schema = match publication.schema {
        Some(schema) => schema,
        None => match newest.as_ref().and_then(|newest| newest.schema.as_deref()) {
            Some(text) => serde_json::from_str(text).ok(),
            None => None,
        },
    };
    if let Some(schema) = &schema {
        follows(&data, schema).map_err(Failure::invalid)?;
    }
    let config = NewConfig {
        data: json!(data).to_string(),
        poll_seconds: poll,
        schema: schema.map(|schema| schema.to_string()),
        author,
        rolls_back_to: None,
        rollout: publication
            .rollout
            .map(|wanted| plan(wanted.0))
            .transpose()?,
    };
    put(&controller, config, expected).await
}

fn plan(rollout: WantedRollout) -> Result<Plan, Failure> {
    if rollout.steps.is_empty() || rollout.steps.len() > 100 {
        return Err(Failure::invalid("`rollout.steps` must have 1 to 100 steps"));
    }
    for step in &rollout.steps {
        Step::parse(step).map_err(Failure::invalid)?;
    }
    Ok(Plan {
        steps: json!(rollout.steps).to_string(),
        bake_seconds: rollout.bake_seconds,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    version: u64,
}

async fn rollback(
    State(controller): State<Controller>,
    Operator(author): Operator,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let Rollback { version } = parse(&body)?;
    let old = controller
        .store()
        .version(version)
        .await
        .map_err(unpublished)?;
    let old = old.ok_or_else(no_version)?;
    let (_, expected) = expected(&controller, &headers).await?;
    let config = NewConfig {
        data: old.data,
        poll_seconds: old.poll_seconds,
        schema: old.schema,
        author,
        rolls_back_to: Some(version),
        rollout: None,
    };
    put(&controller, config, expected).await
}

/// The newest configuration, and its version if the client says which one it expects.
async fn expected(
    controller: &Controller,
    headers: &HeaderMap,
) -> Result<(Option<Published>, Option<u64>), Failure> {
    let found = controller.store().newest().await.map_err(unpublished)?;
    let preconditions = Preconditions::of(headers);
    if !preconditions.is_some() {
        return Ok((found, None));
    }
    let config = found
        .as_ref()
        .map(|found| Config::of(found, controller.epoch()))
        .transpose()?;
    let checked = match &config {
        Some(config) => config.check(&preconditions),
        None => preconditions.check(None),
    };
    let version = config.map_or(0, |config| config.version);
    match checked {
        // Any version will do, so one that is published meanwhile will, too.
        Ok(()) if preconditions.if_match == Some(Tags::Any) => Ok((found, None)),
        Ok(()) => Ok((found, Some(version))),
        Err(unmet) => Err(another_version(version, unmet)),
    }
}

async fn put(controller: &Controller, config: NewConfig, expected: Option<u64>) -> Answer {
    match controller
        .store()
        .publish(config, expected)
        .await
        .map_err(unpublished)?
    {
        Outcome::Done(published) => {
            controller.refresh().await.map_err(unpublished)?;
            let config = Config::of(&published, controller.epoch())?;
            Ok(tagged(success(StatusCode::CREATED, &config), &config))
        }
        Outcome::Version(version) => Err(another_version(version, Unmet::Match)),
    }
}

fn unpublished(error: towpath_core::Error) -> Failure {
    Failure::from(error).code("UPDATE_FAILED")
}

fn another_version(version: u64, unmet: Unmet) -> Failure {
    let reason = match unmet {
        Unmet::Match => "another one than the request names",
        Unmet::NoneMatch => "which `If-None-Match` excludes",
    };
    Failure::new(
        StatusCode::PRECONDITION_FAILED,
        "PRECONDITION_FAILED",
        format!("the newest version is {version}, {reason}; read it and try again"),
    )
}

fn no_version() -> Failure {
    Failure::not_found("config version not found")
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    wait: Option<String>,
}

async fn config(
    State(controller): State<Controller>,
    caller: Caller,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Query(query): Query<Wait>,
) -> Answer {
    let agent = match caller {
        Caller::Agent(agent) => Some(agent),
        Caller::Operator(_) => headers
            .get(AGENT_ID)
            .and_then(|id| Uuid::parse_str(id.to_str().ok()?).ok()),
    };
    let preconditions = Preconditions::of(&headers);
    let until = Instant::now() + wait(query.wait.as_deref())?;
    if let Some(agent) = agent {
        // Once for each request, or an agent that ended would speak on.
        controller.spoke_as(agent, &headers, peer.map(|peer| peer.0));
    }
    let mut watch = controller.watch();
    loop {
        if let Some(agent) = agent {
            controller.saw(agent);
        }
        let snapshot = watch.borrow_and_update().clone();
        let config = snapshot.config_of(agent);
        let is_known = match config.as_ref().map(|config| config.check(&preconditions)) {
            Some(Err(Unmet::Match)) => {
                let version = config.map_or(0, |config| config.version);
                return Err(another_version(version, Unmet::Match));
            }
            Some(Ok(())) => false,
            Some(Err(Unmet::NoneMatch)) | None => true,
        };
        let is_over = snapshot.is_closing || Instant::now() >= until;
        match config {
            Some(config) if !is_known => {
                return Ok(tagged(success(StatusCode::OK, &*config), &config));
            }
            Some(config) if is_over => {
                return Ok(not_modified(&config.tags()[0]));
            }
            None if is_over => return Err(Failure::not_found("no config available")),
            _ => {}
        }
        // The sender lives as long as the controller: this waits for a change or the timeout.
        drop(tokio::time::timeout_at(until, watch.changed()).await);
    }
}

/// `30`, or `30s`.
fn wait(text: Option<&str>) -> Result<Duration, Failure> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(Duration::ZERO);
    };
    let seconds = text.strip_suffix('s').unwrap_or(text).parse::<u64>();
    let seconds = seconds.map_err(|_| {
        Failure::invalid(format!("`wait` is `{text}`; it must be seconds, as `30`"))
    })?;
    Ok(Duration::from_secs(seconds).min(LONGEST_WAIT))
}

fn tagged(response: Response, config: &Config) -> Response {
    with_tag(response, &config.tags()[0])
}

async fn version(
    State(controller): State<Controller>,
    _: Caller,
    headers: HeaderMap,
    Path(version): Path<String>,
) -> Answer {
    let version = version.parse::<i64>().map_err(|_| {
        Failure::new(
            StatusCode::BAD_REQUEST,
            "INVALID_VERSION",
            "version must be a number",
        )
    })?;
    let found = match u64::try_from(version) {
        Ok(version) => controller.store().version(version).await?,
        Err(_) => None,
    };
    let config = Config::of(&found.ok_or_else(no_version)?, controller.epoch())?;
    match config.check(&Preconditions::of(&headers)) {
        Ok(()) => Ok(tagged(success(StatusCode::OK, &config), &config)),
        Err(Unmet::NoneMatch) => Ok(not_modified(&config.tags()[0])),
        Err(Unmet::Match) => Err(another_version(config.version, Unmet::Match)),
    }
}

/// Most of a list.
pub(super) fn limit(limit: Option<usize>) -> Result<usize, Failure> {
    let limit = limit.unwrap_or(PAGE);
    match (1..=MAX_PAGE).contains(&limit) {
        true => Ok(limit),
        false => Err(Failure::invalid(format!(
            "`limit` is {limit}; it must be 1 to {MAX_PAGE}"
        ))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    before: Option<u64>,
    limit: Option<usize>,
}

async fn history(
    State(controller): State<Controller>,
    _: Operator,
    Query(page): Query<Page>,
) -> Answer {
    let found = controller
        .store()
        .history(page.before, limit(page.limit)?)
        .await?;
    let all = found.iter().map(|one| Config::of(one, controller.epoch()));
    Ok(success(
        StatusCode::OK,
        all.collect::<towpath_core::Result<Vec<_>>>()?,
    ))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    from: u64,
    to: u64,
}

async fn diff(
    State(controller): State<Controller>,
    _: Operator,
    Query(pair): Query<Pair>,
) -> Answer {
    let load = async |version| {
        let found = controller
            .store()
            .version(version)
            .await?
            .ok_or_else(no_version)?;
        Ok::<_, Failure>(Config::of(&found, controller.epoch())?)
    };
    let (from, to) = (load(pair.from).await?, load(pair.to).await?);
    let mut changes = BTreeMap::new();
    for key in from.data.keys().chain(to.data.keys()) {
        let (old, new) = (from.data.get(key), to.data.get(key));
        if old != new {
            changes.insert(key.clone(), json!({ "from": old, "to": new }));
        }
    }
    let mut found = json!({ "from": from.version, "to": to.version, "data": changes });
    if from.poll_interval_seconds != to.poll_interval_seconds {
        let both = json!({ "from": from.poll_interval_seconds, "to": to.poll_interval_seconds });
        found["poll_interval_seconds"] = both;
    }
    if from.schema != to.schema {
        found["schema"] = json!({ "from": from.schema, "to": to.schema });
    }
    Ok(success(StatusCode::OK, found))
}

/// An agent has a newer configuration than this database: it lost a published version.
async fn restore(State(controller): State<Controller>, _: Caller, body: Bytes) -> Answer {
    let config: Config = parse(&body)?;
    let restored = config.restored(controller.epoch()).ok_or_else(|| {
        Failure::new(
            StatusCode::FORBIDDEN,
            "FORBIDDEN",
            "this was not published by this controller",
        )
    })?;
    let was_lost = controller.store().restore(restored).await?;
    if was_lost {
        tracing::warn!(
            version = config.version,
            "configuration lost by the database adopted from an agent"
        );
        controller.refresh().await?;
    }
    Ok(success(StatusCode::OK, json!({ "restored": was_lost })))
}

/// A rollout for people and programs.
#[derive(Serialize)]
struct RolloutView {
    version: u64,
    stable: u64,
    steps: Value,
    step: u32,
    step_at: Timestamp,
    bake_seconds: u32,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl From<Rollout> for RolloutView {
    fn from(rollout: Rollout) -> Self {
        Self {
            version: rollout.version,
            stable: rollout.stable,
            steps: serde_json::from_str(&rollout.plan.steps).unwrap_or(Value::Null),
            step: rollout.step,
            step_at: rollout.step_at,
            bake_seconds: rollout.plan.bake_seconds,
            status: rollout.progress.as_str(),
            reason: rollout.reason,
        }
    }
}

async fn rollout(State(controller): State<Controller>, _: Operator) -> Answer {
    let found = controller.store().rollout().await?;
    let found = found.ok_or_else(|| Failure::not_found("there was no rollout"))?;
    Ok(success(StatusCode::OK, RolloutView::from(found)))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct Reason {
    reason: Option<String>,
}

async fn stop(
    State(controller): State<Controller>,
    Operator(actor): Operator,
    body: Bytes,
) -> Answer {
    let reason: Reason = match body.is_empty() {
        true => Reason::default(),
        false => parse(&body)?,
    };
    let nothing = || Failure::new(StatusCode::CONFLICT, "CONFLICT", "no rollout is running");
    let running = controller.store().rollout().await?;
    let running = running
        .filter(|one| one.progress == Progress::Running)
        .ok_or_else(nothing)?;
    let reason = reason
        .reason
        .unwrap_or_else(|| "an operator stopped it".to_owned());
    let (version, step) = (running.version, running.step);
    let stopped =
        controller
            .store()
            .advance(version, step, Progress::Stopped, Some(reason.clone()));
    if !stopped.await? {
        return Err(nothing());
    }
    record(
        &controller,
        actor,
        "stop",
        format!("version {version}: {reason}"),
    )
    .await?;
    controller.refresh().await?;
    let found = controller.store().rollout().await?;
    Ok(success(StatusCode::OK, found.map(RolloutView::from)))
}

pub(super) async fn record(
    controller: &Controller,
    actor: String,
    action: &str,
    detail: String,
) -> Result<(), Failure> {
    let entry = AuditEntry {
        at: Timestamp::now(),
        actor,
        action: action.to_owned(),
        detail,
    };
    Ok(controller.store().record(entry).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Newest {
    limit: Option<usize>,
}

async fn audit(
    State(controller): State<Controller>,
    _: Operator,
    Query(page): Query<Newest>,
) -> Answer {
    let audit_entries = controller.store().audit_entries(limit(page.limit)?).await?;
    let all: Vec<_> = audit_entries
        .into_iter()
        .map(|entry| {
            json!({ "at": entry.at, "actor": entry.actor, "action": entry.action, "detail": entry.detail })
        })
        .collect();
    Ok(success(StatusCode::OK, all))
}
