//! The HTTP side of reader and writer: health and metrics, as the contract has them.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use towpath_core::backend::Backend;

use crate::telemetry::Metrics;

/// How long `/healthz` waits for the backend.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Api {
    backend: Backend,
    metrics: Metrics,
}

/// `GET /healthz` and `GET /metrics`.
pub fn routes(backend: Backend, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_text))
        .with_state(Api { backend, metrics })
}

async fn healthz(State(api): State<Api>) -> Response {
    match tokio::time::timeout(HEALTH_DEADLINE, api.backend.lifecycle.health()).await {
        Ok(Ok(_)) => "OK".into_response(),
        _ => {
            // `Redis not available`, to the letter.
            let name = api.backend.descriptor.name;
            let (first, rest) = name.split_at(1);
            let text = format!("{}{rest} not available", first.to_uppercase());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn metrics_text(State(api): State<Api>, headers: HeaderMap) -> Response {
    let accept = headers
        .get(header::ACCEPT)
        .and_then(|value| value.to_str().ok());
    let (kind, text) = api
        .metrics
        .render(accept, std::slice::from_ref(&api.backend))
        .await;
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
