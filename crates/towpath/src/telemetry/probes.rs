//! Health: what is well, what is not, and whether the process is starting, serving or draining.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::future::{BoxFuture, join_all};
use http::StatusCode;
use towpath_core::Result;
use towpath_core::backend::Backend;

use super::LastCall;
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
    /// What is worth knowing of a role that works.
    notes: BTreeMap<String, Vec<String>>,
    backends: Vec<Backend>,
    calls: BTreeMap<String, LastCall>,
    checks: Vec<(String, Check)>,
}

/// Asks something that a role needs whether it works.
type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>;

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
            notes: BTreeMap::new(),
            backends: Vec::new(),
            calls: BTreeMap::new(),
            checks: Vec::new(),
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

    /// From now on probes ask this too.
    pub fn watch_check(
        &self,
        name: &str,
        check: impl Fn() -> BoxFuture<'static, Result<()>> + Send + Sync + 'static,
    ) {
        self.lock().checks.push((name.to_owned(), Arc::new(check)));
    }

    /// A role's calls to its backend: while the last one failed the role is not ready.
    pub fn watch_calls(&self, role: &str, calls: LastCall) {
        self.lock().calls.insert(role.to_owned(), calls);
    }

    /// A role's condition: what is wrong, or nothing.
    pub fn set(&self, role: &str, problem: Option<String>) {
        self.lock().roles.insert(role.to_owned(), problem);
    }

    /// What is worth knowing of a role that works, in place of what was noted before.
    pub fn note(&self, role: &str, notes: Vec<String>) {
        self.lock().notes.insert(role.to_owned(), notes);
    }

    /// What is wrong with a role.
    pub fn problem(&self, role: &str) -> Option<String> {
        self.lock().roles.get(role).cloned().flatten()
    }

    /// Everything is started.
    pub fn serving(&self) {
        self.lock().phase = Phase::Serving;
    }

    /// The process is on its way out.
    pub fn draining(&self) {
        self.lock().phase = Phase::Draining;
    }

    /// Whether the process is on its way out.
    pub fn is_draining(&self) -> bool {
        matches!(self.lock().phase, Phase::Draining)
    }

    /// Whether all is well, and a line for each part: `[+]embedded ok`, `[-]ingest.worker: …`.
    ///
    /// Takes at most 2 s: a backend that does not answer by then is not well.
    pub async fn check(&self) -> (bool, Vec<String>) {
        let (phase, mut roles, notes, backends, checks) = {
            let inner = self.lock();
            let mut roles = inner.roles.clone();
            for (role, calls) in &inner.calls {
                let problem = roles.entry(role.clone()).or_default();
                *problem = problem.take().or_else(|| calls.problem());
            }
            let checks = inner.checks.clone();
            let notes = inner.notes.clone();
            (inner.phase, roles, notes, inner.backends.clone(), checks)
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
        let answers = join_all(backends.iter().map(|backend| async {
            let health = tokio::time::timeout(DEADLINE, backend.lifecycle.health()).await;
            (backend.descriptor.name, health)
        }));
        let checked = join_all(checks.iter().map(|(name, check)| async {
            let answer = tokio::time::timeout(DEADLINE, check()).await;
            let problem = match answer {
                Ok(answer) => answer.err().map(|error| error.chain()),
                Err(_) => Some(format!("no answer within {DEADLINE:?}")),
            };
            (name.clone(), problem)
        }));
        let (answers, checked) = tokio::join!(answers, checked);
        roles.extend(checked);
        for (name, answer) in answers {
            match answer {
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
        for (role, notes) in notes {
            lines.extend(notes.iter().map(|note| format!("[!]{role}: {note}")));
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

#[cfg(test)]
mod tests {
    use towpath_core::Result;
    use towpath_core::backend::{self, Lifecycle};

    use super::*;
    use crate::telemetry::Metrics;

    /// A backend that has stopped answering, like one behind a network that drops everything.
    struct Silent;

    #[async_trait::async_trait]
    impl Lifecycle for Silent {
        async fn health(&self) -> Result<backend::Health> {
            std::future::pending().await
        }

        async fn close(&self) -> Result<()> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_backend_delays_neither_probe_nor_scrape_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("embedded:{}?durability=none", folder.path().display());
        let real = crate::wiring::open(&url).await.unwrap();
        let silent = Backend {
            lifecycle: Arc::new(Silent),
            ..real.clone()
        };
        let health = Health::new();
        health.serving();
        health.watch(silent.clone());
        health.watch(silent.clone());
        let began = tokio::time::Instant::now();
        let (ready, lines) = health.check().await;
        assert!(!ready);
        assert_eq!(lines[0], "[-]embedded: no answer within 2s");
        assert_eq!(began.elapsed(), DEADLINE);

        let (_, text) = Metrics::new().render(None, &[silent]).await;
        assert!(
            text.contains("towpath_backend_up{backend=\"embedded\"} 0\n"),
            "{text}"
        );
        assert_eq!(began.elapsed(), DEADLINE * 2);
        real.lifecycle.close().await.unwrap();
    }
}
