//! Health: what is well, what is not, and whether the process is starting, serving or draining.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use http::StatusCode;
use towpath_core::backend::Backend;

use crate::http::error::plain;

/// How long one backend may take to say how it is.
const DEADLINE: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
    Draining,
}

/// A cheap handle: roles write their condition, probes read it.
#[derive(Clone)]
pub struct Health(Arc<Mutex<Inner>>);

struct Inner {
    phase: Phase,
    roles: BTreeMap<String, Option<String>>,
    backends: Vec<Backend>,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Of a process that is starting.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            phase: Phase::Starting,
            roles: BTreeMap::new(),
            backends: Vec::new(),
        })))
    }

    /// From now on probes ask this backend too.
    pub fn watch(&self, backend: Backend) {
        self.lock().backends.push(backend);
    }

    /// Every backend that is watched.
    pub fn backends(&self) -> Vec<Backend> {
        self.lock().backends.clone()
    }

    /// A role's condition: what is wrong, or nothing.
    pub fn set(&self, role: &str, problem: Option<String>) {
        self.lock().roles.insert(role.to_owned(), problem);
    }

    /// Everything is started.
    pub fn serving(&self) {
        self.lock().phase = Phase::Serving;
    }

    /// The process is on its way out.
    pub fn draining(&self) {
        self.lock().phase = Phase::Draining;
    }

    /// Whether all is well, and a line for each part: `[+]embedded ok`, `[-]ingest.worker: …`.
    pub async fn check(&self) -> (bool, Vec<String>) {
        let (phase, roles, backends) = {
            let inner = self.lock();
            (inner.phase, inner.roles.clone(), inner.backends.clone())
        };
        let mut lines = Vec::new();
        let mut ready = phase == Phase::Serving;
        if phase != Phase::Serving {
            lines.push(format!(
                "[-]process: {}",
                if phase == Phase::Starting {
                    "starting"
                } else {
                    "draining"
                }
            ));
        }
        for backend in backends {
            let name = backend.descriptor.name;
            match tokio::time::timeout(DEADLINE, backend.lifecycle.health()).await {
                Ok(Ok(health)) => {
                    lines.push(format!("[+]{name} ok"));
                    lines.extend(
                        health
                            .warnings
                            .iter()
                            .map(|warning| format!("[!]{name}: {warning}")),
                    );
                }
                Ok(Err(error)) => {
                    ready = false;
                    lines.push(format!("[-]{name}: {}", error.chain()));
                }
                Err(_) => {
                    ready = false;
                    lines.push(format!("[-]{name}: no answer within {DEADLINE:?}"));
                }
            }
        }
        for (role, problem) in roles {
            match problem {
                None => lines.push(format!("[+]{role} ok")),
                Some(problem) => {
                    ready = false;
                    lines.push(format!("[-]{role}: {problem}"));
                }
            }
        }
        (ready, lines)
    }

    /// `/livez`, which asks nobody, and `/readyz`, with `?verbose` line by line.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/livez", get(|| async { "ok" }))
            .route("/readyz", get(readyz))
            .with_state(self.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn readyz(State(health): State<Health>, RawQuery(query): RawQuery) -> Response {
    let (ready, lines) = health.check().await;
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let word = if ready { "ok" } else { "not ready" };
    if query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part.split('=').next() == Some("verbose"))
    }) {
        return plain(status, format!("{}\n{word}", lines.join("\n")));
    }
    plain(status, word)
}
