//! `towpath status`: the problems of the running processes.

use clap::Args;
use futures_util::future::join_all;
use jiff::Timestamp;
use serde::Serialize;
use towpath_core::units::{age, counted};

use super::client::{Client, Endpoint};
use super::output::Color;
use super::processes::in_words;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::CurrentProblem;

/// Options of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  towpath status\n  towpath status --output json")]
pub(super) struct StatusArgs {}

/// A problem and the process that has it.
#[derive(Serialize)]
struct Row<'a> {
    process: &'a str,
    #[serde(flatten)]
    problem: &'a CurrentProblem,
}

pub(super) async fn run(global: &Global, _: StatusArgs) -> Result<Exit, Failure> {
    let endpoints = Client::each(global, &[])?.into_iter().map(|one| Endpoint {
        client: one.client.prompt(),
        ..one
    });
    let endpoints: Vec<Endpoint> = endpoints.collect();
    let answers = endpoints.iter().map(|one| one.client.get("/v1/problems"));
    let answers: Vec<Result<Vec<CurrentProblem>, Failure>> = join_all(answers).await;
    let is_one = endpoints.len() == 1;
    let (mut exit, mut rows) = (Exit::Ok, Vec::new());
    let answers = endpoints.iter().zip(answers);
    let mut found = Vec::new();
    for (one, answer) in answers {
        match answer {
            Err(failure) if is_one => return Err(failure),
            Err(failure) => exit = failure.report(),
            Ok(problems) => found.push((one, problems)),
        }
    }
    for (one, problems) in &found {
        if !problems.is_empty() && exit == Exit::Ok {
            exit = Exit::Problems;
        }
        let process = one.client.address();
        rows.extend(problems.iter().map(|problem| Row { process, problem }));
        if global.format == Format::Table {
            let sum = match problems.len() {
                0 => "no problems".to_owned(),
                some => counted(some as u64, "problem"),
            };
            match (is_one, problems.is_empty()) {
                (false, _) => output::line(format!("{}: {sum}", title(one)))?,
                (true, true) => output::line(sum)?,
                (true, false) => {}
            }
            for problem in problems {
                show(problem)?;
            }
        }
    }
    if global.format == Format::Json {
        output::json(&rows)?;
    }
    Ok(exit)
}

/// `127.0.0.1:7070  pid 31030  ingest.worker`.
fn title(endpoint: &Endpoint) -> String {
    let address = endpoint.client.address();
    match &endpoint.process {
        Some(process) => {
            let roles = in_words(&process.roles);
            format!("{address}  pid {}  {roles}", process.pid)
        }
        None => address.to_owned(),
    }
}

fn show(problem: &CurrentProblem) -> std::io::Result<()> {
    let color = match problem.severity.as_str() {
        "page" => Color::Red,
        _ => Color::Yellow,
    };
    let name = output::paint(&std::io::stdout(), color, &problem.problem);
    let figure = problem.figure.as_ref();
    let figure = figure.map_or_else(String::new, |figure| format!("  {figure}"));
    output::line(format!("{name}  {}{figure}", problem.subject))?;
    for (label, text) in [
        ("  since  ", &since(&problem.since)),
        ("  cause  ", &problem.cause),
        ("  next   ", &problem.next_step),
    ] {
        output::wrapped(label, label.len(), text)?;
    }
    Ok(())
}

/// `2026-12-01T04:46:29Z (3m 20s ago)`.
#[expect(
    clippy::disallowed_methods,
    reason = "compared with the wall-clock time of another process"
)]
fn since(moment: &str) -> String {
    let Ok(at) = moment.parse::<Timestamp>() else {
        return moment.to_owned();
    };
    let lasted = Timestamp::now().duration_since(at);
    let lasted = age(lasted.try_into().unwrap_or_default());
    format!("{} ({lasted} ago)", at.strftime("%FT%TZ"))
}
