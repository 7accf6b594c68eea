//! Problems of the process and of its backends: one list, with causes and next steps.
//!
//! ```text
//! health, metrics, queues, streams, disks --observe--> Observation --evaluate--> problems --+--> GET /v1/problems, status, doctor
//!                                                                                           +--> towpath_problem, alerts, log
//! ```

#![expect(
    clippy::disallowed_methods,
    reason = "the machine's time is shown to people"
)]

mod deliveries;
mod evaluate;
mod observe;
mod rules;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use towpath_core::Result;
use tracing::{info, warn};

pub use rules::{Rule, Severity};

use crate::telemetry::{Health, Metrics};
use evaluate::History;
use observe::Observation;
use towpath::supervisor::Stop;

/// Interval of evaluations.
const OFTEN: Duration = Duration::from_secs(5);

/// Most problems in the list; more are counted in a last one.
const MOST: usize = 100;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// By which rule.
    pub rule: Rule,
    /// The queue, backend, role, disk … that it concerns.
    pub subject: String,
    /// When it was first seen.
    pub since: Timestamp,
    /// The measured figure with its unit, where there is one.
    pub figure: Option<String>,
    /// The cause. Free of payloads and secrets.
    pub cause: String,
}

impl Problem {
    /// What to do, with the names of this problem.
    pub fn next_step(&self) -> String {
        let stream = self.subject.split('/').next().unwrap_or_default();
        let text = self.rule.next_step().replace("STREAM", stream);
        text.replace("QUEUE", &self.subject)
    }

    /// `dead_letters messages: 3 dead letters: messages used up their attempts or were rejected`.
    fn line(&self) -> String {
        let (name, subject, cause) = (self.rule.name(), &self.subject, &self.cause);
        match &self.figure {
            Some(figure) => format!("{name} {subject}: {figure}: {cause}"),
            None => format!("{name} {subject}: {cause}"),
        }
    }
}

/// A problem before it is known since when.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    rule: Rule,
    subject: String,
    figure: Option<String>,
    cause: String,
}

/// The list of problems. A cheap handle.
#[derive(Clone)]
pub struct Problems(Arc<Inner>);

struct Inner {
    health: Health,
    metrics: Metrics,
    limits: Limits,
    state: tokio::sync::Mutex<History>,
    list: Mutex<BTreeMap<(Rule, String), Problem>>,
}

/// The bounds that the rules compare with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Free space under which the embedded store rejects writes.
    pub disk_reserve: u64,
}

impl Problems {
    /// Of the process with this health and these metrics.
    pub fn new(health: Health, metrics: Metrics, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            health,
            metrics,
            limits,
            state: tokio::sync::Mutex::default(),
            list: Mutex::default(),
        }))
    }

    /// Evaluates the rules now. The worst problems come first.
    pub async fn current(&self) -> Vec<Problem> {
        self.evaluate().await;
        self.known()
    }

    /// The problems of the last evaluation, the worst first.
    pub fn known(&self) -> Vec<Problem> {
        let list = self.0.list.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems: Vec<Problem> = list.values().cloned().collect();
        problems.sort_by_key(|problem| (problem.rule.severity(), problem.rule));
        problems
    }

    /// Evaluates the rules again and again: for the metric, for the log, and so that each problem has its beginning.
    ///
    /// # Errors
    /// Never.
    pub async fn run(&self, stop: &Stop) -> Result<()> {
        while !stop.is_requested() {
            self.evaluate().await;
            stop.sleep(OFTEN).await;
        }
        Ok(())
    }

    async fn evaluate(&self) {
        let inner = &self.0;
        // One at a time, so that the history has its order.
        let mut history = inner.state.lock().await;
        let observed = Observation::make(&inner.health, &inner.metrics).await;
        let mut found = evaluate::evaluate(&observed, &mut history, inner.limits);
        if found.len() > MOST {
            let left = found.split_off(MOST).len();
            found.push(Finding {
                rule: Rule::Warning,
                subject: "problems".to_owned(),
                figure: Some(left.to_string()),
                cause: format!("{left} more problems are not listed"),
            });
        }
        self.replace(found);
        let known = self.known();
        let named = known.iter();
        let named = named.map(|problem| (problem.rule.name(), problem.subject.as_str()));
        inner.metrics.problems(named);
        let others = known.iter().filter(|one| !one.rule.is_of_a_part());
        inner
            .health
            .set_problems(others.map(Problem::line).collect());
    }

    /// Replaces the list, and logs new and ended problems.
    fn replace(&self, found: Vec<Finding>) {
        let now = Timestamp::now();
        let mut list = self.0.list.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *list);
        for one in found {
            let key = (one.rule, one.subject.clone());
            let since = before.get(&key).map_or(now, |problem| problem.since);
            if !before.contains_key(&key) {
                let (problem, subject) = (one.rule.name(), &one.subject);
                let figure = one.figure.as_deref().unwrap_or_default();
                warn!(problem, subject, figure, cause = one.cause, "problem began");
            }
            let problem = Problem {
                rule: one.rule,
                subject: one.subject,
                since,
                figure: one.figure,
                cause: one.cause,
            };
            list.insert(key, problem);
        }
        for (key, problem) in before {
            if !list.contains_key(&key) {
                let lasted = now.duration_since(problem.since).as_secs();
                let (name, subject) = (problem.rule.name(), problem.subject);
                info!(
                    problem = name,
                    subject,
                    lasted_seconds = lasted,
                    "problem ended"
                );
            }
        }
    }
}
