//! The admin API: `/v1` for operators and the command line, probes and metrics for machines.
//!
//! `/v1` wants the token of the data folder; the others say nothing that needs one.

mod doctor;
mod document;
mod failure;
mod fleet;
mod health;
mod jobs;
mod keys;
mod outbox;
mod routes;
mod session;
mod streams;
mod wire;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::request::Parts;
use http::{HeaderMap, StatusCode, header};
use towpath_core::backend::Backend;
use towpath_core::message;
use towpath_core::port::Outbox;

pub use doctor::DoctorReport;
pub use fleet::{FleetListener, FleetListeners};
pub use health::HealthView;
pub use jobs::{DeliveryView, DispositionKind, Jobs, Leased, Settled, SettledOne, Settling};
pub use keys::{KeyView, Sum};
pub use outbox::{
    BackfillProgress, BackfillRequest, EventView, OpenTransactionView, OutboxStats, ReplayRequest,
    RetryRequest,
};
pub use routes::UNAVAILABLE;
pub use session::{SessionView, SignInCode, SignInRequest};
pub use streams::{EntryView, GroupView, StreamView, TrimRequest};
pub use wire::{
    AttemptView, Count, CurrentProblem, DeadLetterSelection, DeadLetterView, MessageView, Payload,
    QueueStats, Sent,
};

use crate::apps::orders::OrderStore;
use crate::auth::{Guard, Table};
use crate::dashboard;
use crate::doctor::Doctor;
use crate::http::error::{Form, Problem};
use crate::http::{BodyLimit, Hosts, RequestLayer, wrap};
use crate::problems::Problems;
use crate::telemetry::{Health, Metrics};

/// The file in the data folder that holds the token.
pub(crate) const TOKEN_FILE: &str = "admin.token";

/// The state of the admin API.
#[derive(Clone)]
pub struct Admin {
    /// The backends of the process.
    pub backends: Vec<Backend>,
    /// Where a role of the orders app runs.
    pub orders: Option<OrderStore>,
    /// Where a role of the accounts app runs.
    pub outbox: Option<Arc<dyn Outbox>>,
    /// Checks the keys of requests.
    pub guard: Guard,
    /// Health of the parts.
    pub health: Health,
    /// The metrics of the process.
    pub metrics: Metrics,
    /// The current problems.
    pub problems: Problems,
    /// The self-checks of the process.
    pub doctor: Doctor,
    /// The roles of the process.
    pub roles: Vec<&'static str>,
    /// Queues for programs.
    pub jobs: Jobs,
    /// Routes of the fleet's roles.
    pub fleet_listeners: FleetListeners,
}

/// Every route of the admin listener, behind the edge.
pub fn router(admin: Admin, hosts: Hosts, edge: RequestLayer) -> Router {
    let (v1, openapi) = routes::v1();
    let queries = document::queries(&openapi);
    let v1 = v1.merge(fleet::routes());
    let guard = admin.guard.clone();
    let edge = edge
        .form(Form::Json)
        .queries(queries)
        .document(&document())
        .html(dashboard::page)
        .bodies(&BODIES)
        .gate(move |head| {
            hosts.check(head)?;
            match head.uri.path().starts_with("/v1/") {
                true if guard.is_of_own_page(head) => Ok(()),
                true => no_page(head),
                false => Ok(()),
            }
        })
        .guard(admin.guard.clone(), Table::admin());
    let router = Router::new()
        .route("/metrics", get(metrics))
        .merge(v1)
        .with_state(admin.clone())
        .merge(admin.health.router())
        .merge(dashboard::router());
    wrap(router, edge)
}

/// The OpenAPI document of every route of the admin listener.
pub(crate) fn document() -> serde_json::Value {
    document::whole(routes::v1().1)
}

/// Messages are sent as bodies.
const BODIES: [BodyLimit; 2] = [
    BodyLimit {
        route: routes::MESSAGES,
        bytes: message::MAX_PAYLOAD_BYTES,
        what: "message",
    },
    BodyLimit {
        route: jobs::BATCH,
        bytes: message::MAX_PAYLOAD_BYTES,
        what: "batch",
    },
];

/// Other web pages than the dashboard never use `/v1`, whatever key they send.
fn no_page(head: &Parts) -> Result<(), Problem> {
    match head.headers.contains_key(header::ORIGIN) {
        false => Ok(()),
        true => {
            let reason = "requests from web pages are refused";
            Err(Problem::new(StatusCode::FORBIDDEN, reason))
        }
    }
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let (kind, text) = admin.metrics.render(&headers, &admin.backends).await;
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
