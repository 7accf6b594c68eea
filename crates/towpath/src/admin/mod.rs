//! The admin API: `/v1` for operators and the command line, probes and metrics for machines.
//!
//! `/v1` wants the token of the data folder; the others say nothing that needs one.

mod routes;
mod token;
mod wire;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use towpath_core::backend::Backend;

pub(crate) use token::FILE as TOKEN_FILE;
pub use token::{Token, token};
pub use wire::{
    Count, DeadLetterView, HealthView, Letters, MessageView, Payload, QueueStats, Sent,
};

use crate::http::error::Problem;
use crate::telemetry::{Health, Metrics};

/// What the admin API works on.
#[derive(Clone)]
pub struct Admin {
    backend: Backend,
    token: Token,
    health: Health,
    metrics: Metrics,
}

impl Admin {
    /// An admin API for this backend.
    pub fn new(backend: Backend, token: Token, health: Health, metrics: Metrics) -> Self {
        Self {
            backend,
            token,
            health,
            metrics,
        }
    }
}

/// Every route of the admin listener.
pub fn router(admin: Admin) -> Router {
    let (v1, document) = routes::v1();
    let guarded = v1
        .layer(from_fn_with_state(admin.clone(), guard))
        .with_state(admin.clone());
    Router::new()
        .route("/metrics", get(metrics))
        .with_state(admin.clone())
        .route("/openapi.json", get(|| async move { axum::Json(document) }))
        .merge(admin.health.router())
        .merge(guarded)
}

/// The OpenAPI 3.1 document.
pub fn document() -> utoipa::openapi::OpenApi {
    routes::v1().1
}

async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    // A page in a browser could otherwise reach us by a name that it points here.
    if request.headers().contains_key(header::ORIGIN) {
        return Problem::new(StatusCode::FORBIDDEN, "requests from web pages are refused")
            .into_response();
    }
    let bearer = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    if bearer.is_some_and(|given| admin.token.matches(given)) {
        return next.run(request).await;
    }
    let hint = "send `Authorization: Bearer TOKEN`; the token is in the file `admin.token` of the data folder";
    Problem::new(StatusCode::UNAUTHORIZED, hint).into_response()
}

async fn metrics(State(admin): State<Admin>, headers: HeaderMap) -> Response {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let (kind, text) = admin.metrics.render(accept, &[admin.backend]).await;
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
