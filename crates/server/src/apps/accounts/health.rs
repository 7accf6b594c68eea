//! Health of the app's dependencies.

#![expect(
    clippy::disallowed_methods,
    reason = "the machine's time is shown to people"
)]

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde_json::{Value, json};
use towpath_core::port::Outbox;
use towpath_core::{Error, Result};

use super::limiter::Limiter;
use crate::http::extract::Json;
use crate::telemetry::{LastCall, log_failure};

/// The checks.
#[derive(Clone)]
pub struct HealthDeps {
    /// The store of the limits.
    pub limiter: Limiter,
    /// The database of the users.
    pub database: Arc<dyn Outbox>,
    /// The last change of a user.
    pub changes: LastCall,
}

/// `/health`, `/health/bucket` and `/health/users`.
pub fn health_routes(deps: HealthDeps) -> Router {
    Router::new()
        .route("/health", get(all))
        .route("/health/bucket", get(bucket))
        .route("/health/users", get(users))
        .with_state(deps)
}

async fn all(State(deps): State<HealthDeps>) -> Response {
    let (bucket, users) = tokio::join!(deps.bucket(), deps.users());
    let body = json!({
        "status": word(bucket && users),
        "services": { "token-bucket": word(bucket), "user-service": word(users) },
        "timestamp": jiff::Timestamp::now(),
    });
    (status(bucket && users), Json(body)).into_response()
}

async fn bucket(State(deps): State<HealthDeps>) -> Response {
    let seconds = jiff::Timestamp::now().as_second();
    one("redis-token-bucket", deps.bucket().await, json!(seconds))
}

async fn users(State(deps): State<HealthDeps>) -> Response {
    let now = jiff::Timestamp::now();
    one("user-management", deps.users().await, json!(now))
}

/// The reference system writes the time as a number for one service, and as a text for the other.
fn one(service: &str, is_healthy: bool, timestamp: Value) -> Response {
    let body = json!({
        "status": word(is_healthy), "service": service, "timestamp": timestamp,
    });
    (status(is_healthy), Json(body)).into_response()
}

impl HealthDeps {
    async fn bucket(&self) -> bool {
        answers(
            "the limits",
            self.limiter.check().await,
            &self.limiter.calls,
        )
    }

    async fn users(&self) -> bool {
        answers("the users", self.database.check().await, &self.changes)
    }
}

/// Whether a store answers, and its last operation succeeded.
fn answers(store: &str, answer: Result<()>, calls: &LastCall) -> bool {
    let problem = answer.err().map(|error| error.chain());
    let problem = problem.or_else(|| calls.problem());
    if let Some(problem) = &problem {
        let error = Error::unavailable(format!("{store}: {problem}"));
        log_failure("health check failed", &error);
    }
    problem.is_none()
}

const fn word(is_healthy: bool) -> &'static str {
    if is_healthy { "healthy" } else { "unhealthy" }
}

const fn status(is_healthy: bool) -> StatusCode {
    if is_healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}
