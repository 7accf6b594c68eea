//! `GET /v1/health`: the process part by part, as fields, and as lines for people.

use std::collections::BTreeMap;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Admin;
use super::routes::Answer;
use crate::http::extract::Json;
use crate::telemetry::{Checked, CheckedBackend, Phase, STALLS};

/// Health of the process.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct HealthView {
    /// Whether it is ready.
    pub ready: bool,
    /// Version of the running process.
    pub version: String,
    /// `starting`, `serving` or `draining`.
    #[serde(default)]
    pub phase: String,
    /// The roles of the process.
    #[serde(default)]
    pub roles: Vec<RoleHealth>,
    /// The backends that they use.
    #[serde(default)]
    pub backends: Vec<BackendHealth>,
    /// The databases that they use.
    #[serde(default)]
    pub databases: Vec<DatabaseHealth>,
    /// Why a disk does not respond.
    #[serde(default)]
    pub stalled_disk: Option<String>,
    /// The same as text, one line per part.
    pub checks: Vec<String>,
    /// Facts about the backends as text.
    pub facts: Vec<String>,
}

/// Health of a role.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RoleHealth {
    /// Its name: `ingest.worker`.
    pub role: String,
    /// Whether the role and each part that it needs work, as `/readyz/{role}` says.
    pub ready: bool,
    /// Its own fault, if any.
    pub problem: Option<String>,
    /// Parts that it needs and that are unavailable.
    pub blocked_by: Vec<String>,
    /// Warnings of a role that works.
    pub warnings: Vec<String>,
    /// The queues and streams that it delivers from.
    pub queues: Vec<String>,
}

/// Health of a backend.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BackendHealth {
    /// The driver: `redis`.
    pub backend: String,
    /// Its URL without secrets.
    pub url: String,
    /// Whether it answers.
    pub ready: bool,
    /// The reason, when it is not ready.
    pub problem: Option<String>,
    /// `disk` or `memory` while it rejects writes because of that.
    pub rejects_writes: Option<String>,
    /// Warnings of a backend that works.
    pub warnings: Vec<String>,
    /// Facts by name, as text.
    pub facts: BTreeMap<String, String>,
    /// Measured numbers; the name ends with the unit.
    pub figures: BTreeMap<String, u64>,
}

/// Health of a database.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DatabaseHealth {
    /// `database` of the accounts app, or `fleet.database`.
    pub database: String,
    /// Whether it accepts changes.
    pub ready: bool,
    /// The reason, when it is not ready.
    pub problem: Option<String>,
}

/// Check the health of the process.
#[utoipa::path(get, path = "/v1/health", responses((status = 200, description = "Ready or not, and why", body = HealthView)))]
pub(super) async fn health(State(admin): State<Admin>) -> Answer<HealthView> {
    Ok(Json(HealthView::from(&admin.health.check().await)))
}

impl From<&Checked> for HealthView {
    fn from(checked: &Checked) -> Self {
        let databases = checked.checks.iter();
        let names = checked.roles.keys();
        let answers = checked.backends.iter().flat_map(|one| &one.answer);
        let facts = answers.flat_map(|health| &health.facts);
        Self {
            ready: checked.is_ready(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            phase: match checked.phase {
                Phase::Starting => "starting",
                Phase::Serving => "serving",
                Phase::Draining => "draining",
            }
            .to_owned(),
            roles: names
                // Databases and disks report under their own names.
                .filter(|name| !checked.checks.contains_key(*name) && *name != STALLS)
                .filter_map(|name| role(checked, name))
                .collect(),
            backends: checked.backends.iter().map(BackendHealth::from).collect(),
            databases: databases
                .map(|(name, problem)| DatabaseHealth {
                    database: name.clone(),
                    ready: problem.is_none(),
                    problem: problem.clone(),
                })
                .collect(),
            stalled_disk: checked.fault(STALLS),
            checks: checked.lines(),
            facts: facts
                .map(|(name, value)| format!("{name}: {value}"))
                .collect(),
        }
    }
}

fn role(checked: &Checked, name: &str) -> Option<RoleHealth> {
    let role = checked.roles.get(name)?;
    let (ready, _) = checked.role(name)?;
    let blocked_by = checked.blocked_by(name).into_iter();
    Some(RoleHealth {
        role: name.to_owned(),
        ready,
        problem: checked.fault(name),
        blocked_by: blocked_by.map(str::to_owned).collect(),
        warnings: role.notes.clone(),
        queues: role.queues.iter().cloned().collect(),
    })
}

impl From<&CheckedBackend> for BackendHealth {
    fn from(backend: &CheckedBackend) -> Self {
        let health = backend.answer.clone().unwrap_or_default();
        let figures = health.figures.into_iter();
        Self {
            backend: backend.name.to_owned(),
            url: backend.url.clone(),
            ready: backend.answer.is_ok(),
            problem: backend.answer.as_ref().err().cloned(),
            rejects_writes: backend.refuses.map(str::to_owned),
            warnings: health.warnings,
            facts: health.facts.into_iter().collect(),
            figures: figures
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Health, Need};

    #[tokio::test]
    async fn each_part_is_a_field_with_its_own_trouble() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("embedded:{}?durability=none", folder.path().display());
        let store = crate::wiring::open(&url).await.unwrap();
        let health = Health::new();
        health.serving();
        health.watch(store.clone());
        health.watch_check("database", || {
            Box::pin(async { Err(towpath_core::Error::unavailable("connection refused")) })
        });
        health.set("ingest.worker", None);
        health.works_on("ingest.worker", "messages");
        health.needs("ingest.worker", &store.url, Need::Answers);
        health.needs("accounts.api", "database", Need::Accepts);
        let view = HealthView::from(&health.check().await);
        assert!(!view.ready && view.phase == "serving");
        let [accounts, worker] = &*view.roles else {
            panic!("{view:?}");
        };
        assert!(!accounts.ready && accounts.problem.is_none());
        assert_eq!(accounts.blocked_by, ["database"]);
        assert!(worker.ready);
        assert_eq!(worker.queues, ["messages"]);
        let [database] = &*view.databases else {
            panic!("{view:?}");
        };
        assert_eq!(database.problem.as_deref(), Some("connection refused"));
        let [embedded] = &*view.backends else {
            panic!("{view:?}");
        };
        assert!(embedded.ready && embedded.warnings.len() == 1);
        assert!(embedded.facts.contains_key("durability"));
        assert!(embedded.figures["log_bytes"] > 0, "{embedded:?}");
        assert!(embedded.figures.contains_key("recovery_ms"));
        store.lifecycle.close().await.unwrap();
    }
}
