//! The HTTP side of reader and writer: health and metrics, as the contract has them.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use towpath_core::backend::Backend;
use tracing::debug;

use crate::telemetry::{Health, Metrics};
use towpath::disk::folder_of;

/// Timeout of `/healthz` for the backend.
const HEALTH_DEADLINE: Duration = Duration::from_secs(2);

#[derive(Clone)]
struct Api {
    backend: Backend,
    metrics: Metrics,
    health: Health,
    roles: [&'static str; 2],
    output: Option<Arc<PathBuf>>,
}

/// `GET /healthz` and `GET /metrics`. Health is that of the backend, of these roles, and of the output.
pub fn routes(
    backend: Backend,
    metrics: Metrics,
    health: Health,
    roles: [&'static str; 2],
    output: Option<PathBuf>,
) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics_text))
        .with_state(Api {
            backend,
            metrics,
            health,
            roles,
            output: output.map(Arc::new),
        })
}

async fn healthz(State(api): State<Api>) -> Response {
    match tokio::time::timeout(HEALTH_DEADLINE, api.backend.lifecycle.health()).await {
        Ok(Ok(_)) => match api.problem() {
            None => "OK".into_response(),
            Some((part, cause)) => {
                // Paths and causes are for operators: `/readyz?verbose` and the problems of the admin API have them.
                debug!(part, cause, "health check failed");
                (StatusCode::SERVICE_UNAVAILABLE, part).into_response()
            }
        },
        _ => {
            // `Redis not available`, to the letter.
            let name = api.backend.descriptor.name;
            let (first, rest) = name.split_at(1);
            let text = format!("{}{rest} not available", first.to_uppercase());
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

impl Api {
    /// The part that does not work and its cause, also before the first line.
    fn problem(&self) -> Option<(&'static str, String)> {
        let output = self.output.as_ref().and_then(|output| unwritable(output));
        let output = output.map(|cause| ("the output cannot be written", cause));
        let mut roles = self.roles.iter();
        let role = || roles.find_map(|role| Some((*role, self.health.problem(role)?)));
        output.or_else(role)
    }
}

/// Why an output cannot be written, or made where it is not there yet.
fn unwritable(output: &Path) -> Option<String> {
    let problem = |what: &str| {
        Some(format!(
            "output `{}` cannot be written: {what}",
            output.display()
        ))
    };
    let mut there = output;
    let metadata = loop {
        match std::fs::metadata(there) {
            Ok(metadata) => break metadata,
            Err(error) if error.kind() == ErrorKind::NotFound && there.parent().is_some() => {
                there = folder_of(there);
            }
            Err(error) => return problem(&error.to_string()),
        }
    };
    if there == output && !metadata.is_file() {
        return problem("it is not a file");
    }
    if there != output && !metadata.is_dir() {
        return problem("its folder is not a folder");
    }
    let denied = rustix::fs::access(there, rustix::fs::Access::WRITE_OK).err()?;
    problem(&std::io::Error::from(denied).to_string())
}

async fn metrics_text(State(api): State<Api>, headers: HeaderMap) -> Response {
    let (kind, text) = api
        .metrics
        .render(&headers, std::slice::from_ref(&api.backend))
        .await;
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}
