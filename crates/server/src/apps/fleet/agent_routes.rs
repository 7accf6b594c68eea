//! The HTTP side of the controller that is about agents.

#![expect(
    clippy::disallowed_methods,
    reason = "compared with the database's wall-clock times"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, State};
use axum::routing::{delete, get, post};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use towpath_core::port::fleet::{Agent, AgentInfo, Report};
use uuid::Uuid;

use super::auth::{Caller, FleetKey, Operator, fingerprint, new_agent_key};
use super::config::POLL_SECONDS;
use super::controller::Controller;
use super::controller_routes::{limit, record};
use super::envelope::{Answer, Failure, parse_of_program, success};
use super::identity::Speaker;
use crate::http::Peer;
use crate::http::extract::{Path, Query};

/// `/register` and `/agents…`.
pub(super) fn agent_routes(controller: Controller) -> Router {
    Router::new()
        .route("/register", post(register))
        .route("/agents", get(agents))
        .route("/agents/{id}", delete(remove))
        .route("/agents/{id}/report", post(report))
        .with_state(controller)
}

#[derive(Deserialize)]
struct Registration {
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    ip_address: String,
    #[serde(default)]
    port: i64,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// The key that the agent has: who holds it may move the agent to another place.
    #[serde(default)]
    agent_key: Option<String>,
}

/// The fields of a registration.
const REGISTRATION: &[&str] = &["hostname", "ip_address", "port", "labels", "agent_key"];

async fn register(
    State(controller): State<Controller>,
    _: FleetKey,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let registration: Registration = parse_of_program(&body, REGISTRATION)?;
    for (name, text) in [
        ("hostname", &registration.hostname),
        ("ip_address", &registration.ip_address),
    ] {
        if text.is_empty() || text.chars().count() > 255 {
            return Err(Failure::invalid(format!(
                "`{name}` is required, of at most 255 characters"
            )));
        }
    }
    let port = u16::try_from(registration.port)
        .ok()
        .filter(|port| *port > 0);
    let port = port.ok_or_else(|| Failure::invalid("`port` is required, 1 to 65535"))?;
    let key = new_agent_key()?;
    let info = AgentInfo {
        hostname: registration.hostname,
        ip_address: registration.ip_address,
        port,
        labels: json!(registration.labels).to_string(),
    };
    let failed = |error| Failure::from(error).code("REGISTRATION_FAILED");
    let store = controller.store();
    let known = match &registration.agent_key {
        Some(old) => store.agent_of(&fingerprint(old)).await.map_err(failed)?,
        None => None,
    };
    let agent = store.register(info, fingerprint(&key), known);
    let agent = agent.await.map_err(failed)?;
    controller.spoke_as(agent.id, &headers, peer.map(|peer| peer.0));
    let newest = controller.watch().borrow().newest().cloned();
    let poll = newest.map_or(POLL_SECONDS, |config| config.poll_interval_seconds);
    controller.nudge();
    Ok(success(
        StatusCode::CREATED,
        json!({
            "agent_id": agent.id,
            "status": "active",
            "poll_url": "/config",
            "poll_interval_seconds": poll,
            "agent_key": key,
        }),
    ))
}

/// An agent for people and programs.
#[derive(Serialize)]
struct AgentView {
    agent_id: Uuid,
    hostname: String,
    ip_address: String,
    port: u16,
    labels: Value,
    status: &'static str,
    registered_at: Timestamp,
    last_seen: Timestamp,
    applied_version: Option<u64>,
    failed_version: Option<u64>,
    last_error: Option<String>,
    /// The processes that speak as this agent, if there are several.
    shared_by: Vec<Speaker>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    after: Option<Uuid>,
    limit: Option<usize>,
}

async fn agents(
    State(controller): State<Controller>,
    _: Operator,
    Query(page): Query<Page>,
) -> Answer {
    let stale = controller.watch().borrow().stale();
    let found = controller
        .store()
        .agents(page.after, limit(page.limit)?)
        .await?;
    let all = found.into_iter().map(|agent| {
        let shared_by = controller.sharing(agent.id);
        view(agent, stale, shared_by)
    });
    let all: Vec<_> = all.collect();
    Ok(success(StatusCode::OK, all))
}

fn view(agent: Agent, stale: Duration, shared_by: Vec<Speaker>) -> AgentView {
    let silence = Timestamp::now().duration_since(agent.seen_at).as_secs();
    AgentView {
        agent_id: agent.id,
        hostname: agent.info.hostname,
        ip_address: agent.info.ip_address,
        port: agent.info.port,
        labels: serde_json::from_str(&agent.info.labels).unwrap_or(Value::Null),
        status: if silence > stale.as_secs().cast_signed() {
            "stale"
        } else {
            "active"
        },
        registered_at: agent.created_at,
        last_seen: agent.seen_at,
        applied_version: agent.report.applied,
        failed_version: agent.report.failed,
        last_error: agent.report.error,
        shared_by,
    }
}

fn id(text: &str) -> Result<Uuid, Failure> {
    Uuid::parse_str(text).map_err(|_| Failure::invalid("the agent's id is not a UUID"))
}

fn no_agent() -> Failure {
    Failure::not_found("agent not found")
}

async fn remove(
    State(controller): State<Controller>,
    caller: Caller,
    Path(agent): Path<String>,
) -> Answer {
    let agent = id(&agent)?;
    // An agent may take itself off the list.
    let actor = match caller {
        Caller::Agent(own) if own == agent => format!("agent:{own}"),
        other => other.operator()?,
    };
    if !controller.store().remove(agent).await? {
        return Err(no_agent());
    }
    record(&controller, actor, "remove", format!("agent {agent}")).await?;
    Ok(success(StatusCode::OK, json!({ "agent_id": agent })))
}

/// An agent's report.
#[derive(Deserialize)]
struct AgentReport {
    version: u64,
    status: String,
    error: Option<String>,
}

async fn report(
    State(controller): State<Controller>,
    caller: Caller,
    Path(agent): Path<String>,
    body: Bytes,
) -> Answer {
    let agent = id(&agent)?;
    if caller != Caller::Agent(agent) {
        caller.operator()?;
    }
    let report: AgentReport = parse_of_program(&body, &["version", "status", "error"])?;
    let report = match report.status.as_str() {
        "applied" | "rolled_back" => Report {
            applied: Some(report.version),
            ..Report::default()
        },
        "failed" => Report {
            failed: Some(report.version),
            error: report
                .error
                .map(|error| error.chars().take(1_000).collect()),
            ..Report::default()
        },
        other => {
            let text = format!("`status` is `{other}`; it must be applied, failed or rolled_back");
            return Err(Failure::invalid(text));
        }
    };
    if !controller.store().report(agent, report).await? {
        return Err(no_agent());
    }
    controller.nudge();
    Ok(success(StatusCode::OK, json!({ "agent_id": agent })))
}
