//! Health checks, and whether the process is starting, serving or draining.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use axum::routing::get;
use futures_util::future::{BoxFuture, join_all};
use http::StatusCode;
use tokio::sync::watch;
use towpath_core::backend::{self, Backend};
use towpath_core::{Error, Result};

use super::LastCall;
use crate::http::error::plain;

/// Timeout of one backend's health check.
const DEADLINE: Duration = Duration::from_secs(2);

/// The part of health that reports disks that do not respond.
pub const STALLS: &str = "disks";

/// Where the process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Opens its backends and listeners.
    Starting,
    /// Works.
    Serving,
    /// Completes work in progress.
    Draining,
}

/// Parts of a role that report separately.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The role as a whole.
    Role,
    /// Its calls to its backend.
    Calls,
    /// The leases of one of its consumers.
    Lease(String),
    /// The sink of one of its consumers.
    Sink(String),
    /// A destination of its messages.
    Destination(String),
}

/// A role's requirement of another part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// That it answers.
    Answers,
    /// That it accepts writes.
    Accepts,
}

/// A cheap handle: roles write their condition, probes read it.
#[derive(Clone)]
pub struct Health(Arc<Mutex<Inner>>);

struct Inner {
    phase: Phase,
    roles: BTreeMap<String, Role>,
    backends: Vec<Backend>,
    checks: Vec<(String, Check)>,
    /// Listeners that clients of other machines use without a key, and why.
    exposed: BTreeMap<String, String>,
    stopped_rollout: Option<String>,
    /// Current problems that no part reports for itself.
    problems: Vec<String>,
    /// Becomes true when the drain begins.
    drain: watch::Sender<bool>,
}

#[derive(Clone, Default)]
struct Role {
    faults: BTreeMap<Source, String>,
    /// Notes on a role that works.
    notes: Vec<String>,
    calls: Option<LastCall>,
    /// The queues and streams that it delivers from.
    queues: BTreeSet<String>,
    /// The backends (by URL), checks and roles that it needs.
    needs: Vec<(String, Need)>,
}

/// Asks something that a role needs whether it works.
type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// The state of every part at one moment.
pub struct Checked {
    /// Where the process is in its life.
    pub phase: Phase,
    /// Every backend.
    pub backends: Vec<CheckedBackend>,
    /// Every check, and the reason when it failed.
    pub checks: BTreeMap<String, Option<String>>,
    /// Every role.
    pub roles: BTreeMap<String, CheckedRole>,
    /// Listeners that clients of other machines use without a key, and why.
    pub exposed: BTreeMap<String, String>,
    /// Why the last rollout of the fleet stopped, until another configuration is published.
    pub stopped_rollout: Option<String>,
}

/// The state of a backend.
pub struct CheckedBackend {
    /// The driver.
    pub name: &'static str,
    /// Its URL without secrets.
    pub url: String,
    /// Its facts and warnings, or why it does not work.
    pub answer: std::result::Result<backend::Health, String>,
    /// Why it refuses writes, while it does.
    pub refuses: Option<&'static str>,
}

/// The state of a role.
pub struct CheckedRole {
    /// Faults by source.
    pub faults: BTreeMap<Source, String>,
    /// Notes on a role that works.
    pub notes: Vec<String>,
    /// The queues and streams that it delivers from.
    pub queues: BTreeSet<String>,
    needs: Vec<(String, Need)>,
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
            checks: Vec::new(),
            exposed: BTreeMap::new(),
            stopped_rollout: None,
            problems: Vec::new(),
            drain: watch::Sender::new(false),
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
        self.role(role, |role| role.calls = Some(calls));
    }

    /// A role is ready only while this backend (by URL), check or other role is.
    pub fn needs(&self, role: &str, part: &str, need: Need) {
        let needed = (part.to_owned(), need);
        self.role(role, |role| role.needs.push(needed));
    }

    /// The role delivers the messages of this queue or stream.
    pub fn works_on(&self, role: &str, queue: &str) {
        self.role(role, |role| {
            role.queues.insert(queue.to_owned());
        });
    }

    /// Why the last rollout of the fleet stopped; `None` when it did not.
    pub fn set_stopped_rollout(&self, reason: Option<String>) {
        self.lock().stopped_rollout = reason;
    }

    /// Current problems that no part reports for itself, for `/readyz?verbose`.
    pub fn set_problems(&self, problems: Vec<String>) {
        self.lock().problems = problems;
    }

    /// A role's condition as a whole: its fault, or `None`.
    pub fn set(&self, role: &str, problem: Option<String>) {
        self.report(role, Source::Role, problem);
    }

    /// One part of a role's condition: its fault, or `None`.
    pub fn report(&self, role: &str, source: Source, problem: Option<String>) {
        self.role(role, |role| match problem {
            Some(problem) => drop(role.faults.insert(source, problem)),
            None => drop(role.faults.remove(&source)),
        });
    }

    /// Notes on a role that works, in place of the earlier ones.
    pub fn note(&self, role: &str, notes: Vec<String>) {
        self.role(role, |role| role.notes = notes);
    }

    /// The fault that a role reports.
    pub fn problem(&self, role: &str) -> Option<String> {
        let inner = self.lock();
        inner.roles.get(role)?.faults.values().next().cloned()
    }

    /// Clients of other machines use this listener without a key.
    pub fn expose(&self, listener: String, cause: String) {
        self.lock().exposed.insert(listener, cause);
    }

    /// Everything is started.
    pub fn serving(&self) {
        self.lock().phase = Phase::Serving;
    }

    /// The process is on its way out.
    pub fn draining(&self) {
        let mut inner = self.lock();
        inner.phase = Phase::Draining;
        inner.drain.send_replace(true);
    }

    /// Resolves when the drain begins.
    pub async fn drain_begins(&self) {
        let mut drain = self.lock().drain.subscribe();
        // The sender lives as long as this handle.
        drop(drain.wait_for(|begun| *begun).await);
    }

    /// Whether the process is on its way out.
    pub fn is_draining(&self) -> bool {
        matches!(self.lock().phase, Phase::Draining)
    }

    /// The state of every part.
    ///
    /// Takes at most 2 s: a backend that does not answer by then does not work.
    pub async fn check(&self) -> Checked {
        let (phase, roles, backends, checks, exposed, stopped_rollout) = {
            let inner = self.lock();
            let (roles, checks) = (inner.roles.clone(), inner.checks.clone());
            let (backends, exposed) = (inner.backends.clone(), inner.exposed.clone());
            let stopped_rollout = inner.stopped_rollout.clone();
            (
                inner.phase,
                roles,
                backends,
                checks,
                exposed,
                stopped_rollout,
            )
        };
        let late = || format!("no answer within {DEADLINE:?}");
        let backends = join_all(backends.iter().map(|backend| async {
            let answer = tokio::time::timeout(DEADLINE, backend.lifecycle.health()).await;
            let refusals = backend.lifecycle.refusals();
            let refuses = refusals.iter().find(|(_, now)| *now).map(|(why, _)| *why);
            // A server whose memory is full answers so, and can neither take nor lease messages.
            let is_full = |error: &Error| error.retry_after().map(|_| "memory");
            let (answer, refuses) = match answer {
                Ok(Ok(health)) => (Ok(health), refuses),
                Ok(Err(error)) => (Err(error.chain()), refuses.or_else(|| is_full(&error))),
                Err(_) => (Err(late()), refuses),
            };
            CheckedBackend {
                name: backend.descriptor.name,
                url: backend.url.clone(),
                answer,
                refuses,
            }
        }));
        let checks = join_all(checks.iter().map(|(name, check)| async {
            let problem = match tokio::time::timeout(DEADLINE, check()).await {
                Ok(answer) => answer.err().map(|error| error.chain()),
                Err(_) => Some(late()),
            };
            (name.clone(), problem)
        }));
        let (backends, checks) = tokio::join!(backends, checks);
        let roles = roles.into_iter().map(|(name, role)| {
            let mut faults = role.faults;
            if let Some(problem) = role.calls.and_then(|calls| calls.problem()) {
                faults.insert(Source::Calls, problem);
            }
            let (notes, queues, needs) = (role.notes, role.queues, role.needs);
            let checked = CheckedRole {
                faults,
                notes,
                queues,
                needs,
            };
            (name, checked)
        });
        Checked {
            phase,
            backends,
            checks: checks.into_iter().collect(),
            roles: roles.collect(),
            exposed,
            stopped_rollout,
        }
    }

    /// `/livez`, which asks nothing; `/readyz` of the process and `/readyz/{role}`, both with `?verbose` line by line.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/livez", get(|| async { "ok" }))
            .route("/readyz", get(readyz))
            .route("/readyz/{role}", get(role_readyz))
            .with_state(self.clone())
    }

    fn role(&self, name: &str, change: impl FnOnce(&mut Role)) {
        change(self.lock().roles.entry(name.to_owned()).or_default());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Checked {
    /// Whether every part works.
    pub fn is_ready(&self) -> bool {
        let works = |backend: &CheckedBackend| backend.answer.is_ok();
        self.phase == Phase::Serving
            && self.backends.iter().all(works)
            && self.checks.values().all(Option::is_none)
            && self.roles.keys().all(|role| self.fault(role).is_none())
    }

    /// A line for each part: `[+]embedded ok`, `[-]ingest.worker: …`, and `[!]` for a warning.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.phase_line().into_iter().collect();
        for backend in &self.backends {
            let name = backend.name;
            match &backend.answer {
                Ok(health) => {
                    lines.push(format!("[+]{name} ok"));
                    let refusal = backend
                        .refuses
                        .map(|reason| format!("{reason} is low: new messages are rejected"));
                    let warnings = health.warnings.iter().chain(&refusal);
                    lines.extend(warnings.map(|warning| format!("[!]{name}: {warning}")));
                }
                Err(problem) => lines.push(format!("[-]{name}: {problem}")),
            }
        }
        for (check, problem) in &self.checks {
            lines.push(line(check, problem.as_deref()));
        }
        for role in self.roles.keys() {
            if !self.checks.contains_key(role) {
                lines.push(line(role, self.fault(role).as_deref()));
            }
        }
        for (name, role) in &self.roles {
            lines.extend(role.notes.iter().map(|note| format!("[!]{name}: {note}")));
        }
        lines
    }

    /// Whether a role works, with a line for it and for each part that it needs; `None` when there is no such role.
    pub fn role(&self, name: &str) -> Option<(bool, Vec<String>)> {
        let role = self.roles.get(name)?;
        let mut lines: Vec<String> = self.phase_line().into_iter().collect();
        let mut is_ready = lines.is_empty();
        let fault = self.fault(name);
        is_ready &= fault.is_none();
        lines.push(line(name, fault.as_deref()));
        for (part, need) in &role.needs {
            let unmet = self.unmet(part, *need);
            is_ready &= unmet.is_none();
            lines.push(line(part, unmet.as_deref()));
        }
        lines.extend(role.notes.iter().map(|note| format!("[!]{name}: {note}")));
        Some((is_ready, lines))
    }

    /// The parts whose failure keeps a role from working.
    pub fn blocked_by(&self, name: &str) -> Vec<&str> {
        let needs = self.roles.get(name).map(|role| role.needs.as_slice());
        let needs = needs.unwrap_or_default().iter();
        let unmet = needs.filter(|(part, need)| self.unmet(part, *need).is_some());
        unmet.map(|(part, _)| part.as_str()).collect()
    }

    fn phase_line(&self) -> Option<String> {
        match self.phase {
            Phase::Starting => Some("[-]process: starting".to_owned()),
            Phase::Serving => None,
            Phase::Draining => Some("[-]process: draining".to_owned()),
        }
    }

    /// The fault of the role itself.
    pub fn fault(&self, name: &str) -> Option<String> {
        let role = self.roles.get(name)?;
        let refusing = role.needs.iter().find_map(|(part, need)| {
            let refuses = *need == Need::Accepts;
            refuses.then(|| self.refusal(part)).flatten()
        });
        role.faults.values().next().cloned().or(refusing)
    }

    fn refusal(&self, url: &str) -> Option<String> {
        let mut backends = self.backends.iter();
        let backend = backends.find(|backend| backend.url == url)?;
        let reason = backend.refuses?;
        Some(format!(
            "{} rejects new messages: {reason} is low",
            backend.name
        ))
    }

    /// Why the first of a role's needs that is not met is not.
    fn unmet_need(&self, name: &str) -> Option<String> {
        let mut needs = self.roles.get(name)?.needs.iter();
        needs.find_map(|(part, need)| self.unmet(part, *need))
    }

    /// Why a dependency of a role is unavailable.
    fn unmet(&self, part: &str, need: Need) -> Option<String> {
        let backend = self.backends.iter().find(|backend| backend.url == part);
        if let Some(backend) = backend {
            let refusal = match need {
                Need::Accepts => self.refusal(part),
                Need::Answers => None,
            };
            return backend.answer.as_ref().err().cloned().or(refusal);
        }
        match self.checks.get(part) {
            Some(check) => check.clone(),
            None => self.fault(part).or_else(|| self.unmet_need(part)),
        }
    }
}

fn line(part: &str, problem: Option<&str>) -> String {
    match problem {
        None => format!("[+]{part} ok"),
        Some(problem) => format!("[-]{part}: {problem}"),
    }
}

async fn readyz(State(health): State<Health>, RawQuery(query): RawQuery) -> Response {
    let checked = health.check().await;
    let mut lines = checked.lines();
    let problems = health.lock().problems.clone();
    lines.extend(problems.into_iter().map(|text| format!("[!]{text}")));
    answer(checked.is_ready(), &lines, query)
}

async fn role_readyz(
    State(health): State<Health>,
    Path(role): Path<String>,
    RawQuery(query): RawQuery,
) -> Response {
    let checked = health.check().await;
    match checked.role(&role) {
        Some((is_ready, lines)) => answer(is_ready, &lines, query),
        None => {
            let roles: Vec<&str> = checked.roles.keys().map(String::as_str).collect();
            let roles = roles.join(", ");
            let text = format!("no role `{role}` runs in this process; these do: {roles}");
            plain(StatusCode::NOT_FOUND, text)
        }
    }
}

fn answer(is_ready: bool, lines: &[String], query: Option<String>) -> Response {
    let (status, word) = match is_ready {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let is_verbose = query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part.split('=').next() == Some("verbose"))
    });
    match is_verbose {
        true => plain(status, format!("{}\n{word}", lines.join("\n"))),
        false => plain(status, word),
    }
}

#[cfg(test)]
mod tests {
    use towpath_core::Result;
    use towpath_core::backend::Lifecycle;

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
        let checked = health.check().await;
        assert!(!checked.is_ready());
        assert_eq!(checked.lines()[0], "[-]embedded: no answer within 2s");
        assert_eq!(began.elapsed(), DEADLINE);

        let (_, text) = Metrics::new()
            .render(&http::HeaderMap::new(), &[silent])
            .await;
        assert!(
            text.contains("towpath_backend_up{backend=\"embedded\"} 0\n"),
            "{text}"
        );
        assert_eq!(began.elapsed(), DEADLINE * 2);
        real.lifecycle.close().await.unwrap();
    }
}
