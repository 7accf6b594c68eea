//! `towpath status`: the problems of the running process.

use clap::Args;

use super::client::Client;
use super::output::Color;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::CurrentProblem;

/// Options of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  towpath status\n  towpath status --output json")]
pub(super) struct StatusArgs {}

pub(super) async fn run(global: &Global, _: StatusArgs) -> Result<Exit, Failure> {
    let problems: Vec<CurrentProblem> = Client::new(global)?.get("/v1/problems").await?;
    if global.format == Format::Json {
        output::json(&problems)?;
    } else if problems.is_empty() {
        output::line("no problems")?;
    }
    if global.format == Format::Table {
        for problem in &problems {
            show(problem)?;
        }
    }
    Ok(if problems.is_empty() {
        Exit::Ok
    } else {
        Exit::Problems
    })
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
    output::line(format!("  since  {}", problem.since))?;
    output::line(format!("  cause  {}", problem.cause))?;
    output::line(format!("  next   {}", problem.next_step))
}
