//! `POST /v1/doctor`: the process examines itself, with its own configuration, backends and folder.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Admin;
use super::routes::Answer;
use crate::doctor::{Check, CheckStatus};
use crate::http::extract::Json;
use crate::telemetry::Phase;

/// The findings of a process about itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DoctorReport {
    /// Version of the running process.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// Its roles.
    pub roles: Vec<String>,
    /// Its data folder.
    pub data: String,
    /// Every check, with its finding.
    pub checks: Vec<Check>,
}

/// Check the process that answers.
///
/// Checks its configuration, data folder, disk, clock, roles, backends and databases.
#[utoipa::path(post, path = "/v1/doctor", responses((status = 200, description = "Every check, with its finding", body = DoctorReport)))]
pub(super) async fn examine(State(admin): State<Admin>) -> Answer<DoctorReport> {
    let doctor = &admin.doctor;
    let mut checks = vec![
        doctor.configuration(),
        doctor.folder_takes_files().await,
        doctor.disk(),
    ];
    let checked = admin.health.check().await;
    let (working, others) = parts(&checked.lines());
    checks.push(working);
    // Those that do not work are among the problems, once the process serves.
    if checked.phase != Phase::Serving {
        checks.extend(others);
    }
    for backend in &checked.backends {
        // Why there are none is among the problems.
        if let Ok(health) = &backend.answer {
            let facts = health.facts.iter();
            let facts: Vec<String> = facts
                .map(|(name, fact)| format!("{name}: {fact}"))
                .collect();
            let url = backend.url.split('?').next().unwrap_or_default();
            let text = format!("{url} ({})", facts.join("; "));
            checks.push(Check::new("backend", CheckStatus::Ok, text));
        }
    }
    let problems = admin.problems.current().await;
    checks.extend(problems.into_iter().map(|problem| {
        let rule = problem.rule;
        let found = match rule.severity().as_str() {
            "page" => CheckStatus::Fail,
            _ => CheckStatus::Warn,
        };
        let (name, next) = (rule.name(), problem.next_step());
        let figure = problem
            .figure
            .map_or_else(String::new, |figure| format!(", {figure}"));
        let (subject, cause) = (problem.subject, problem.cause);
        let text = format!("{name}, {subject}{figure}: {cause}. Next: {next}");
        Check::new("problem", found, text)
    }));
    checks.extend(doctor.leftovers().await);
    checks.push(doctor.clock());
    Ok(Json(DoctorReport {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        roles: admin.roles.iter().map(|role| (*role).to_owned()).collect(),
        data: doctor.folder().display().to_string(),
        checks,
    }))
}

/// The lines of readiness as checks: one for the parts that work, and one for each other part.
fn parts(lines: &[String]) -> (Check, Vec<Check>) {
    let (mut working, mut others) = (Vec::new(), Vec::new());
    for line in lines {
        match (line.strip_prefix("[+]"), line.strip_prefix("[-]")) {
            (Some(part), _) => working.push(part.strip_suffix(" ok").unwrap_or(part)),
            (None, Some(part)) => others.push(Check::new("part", CheckStatus::Fail, part)),
            (None, None) => {
                let part = line.strip_prefix("[!]").unwrap_or(line);
                others.push(Check::new("part", CheckStatus::Warn, part));
            }
        }
    }
    let working = working.join(", ");
    (Check::new("working", CheckStatus::Ok, working), others)
}
