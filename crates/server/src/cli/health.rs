//! `towpath health`: how the running process is.

use clap::Args;

use super::client::Client;
use super::{Exit, Failure, Format, Global, output};
use crate::admin::HealthView;

/// Options of `health`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  towpath health")]
pub(super) struct HealthArgs {}

pub(super) async fn run(global: &Global, _: HealthArgs) -> Result<Exit, Failure> {
    let health: HealthView = Client::new(global)?.prompt().get("/v1/health").await?;
    if global.format == Format::Json {
        output::json(&health)?;
    } else {
        output::line(format!(
            "towpath {}: {}",
            health.version,
            if health.ready { "ready" } else { "not ready" }
        ))?;
        for line in parts(&health).chain(health.facts.iter().map(String::as_str)) {
            output::line(format!("  {line}"))?;
        }
    }
    Ok(if health.ready {
        Exit::Ok
    } else {
        Exit::Problems
    })
}

/// Health of each part: `embedded ok`, without the marks that probes want.
pub(super) fn parts(health: &HealthView) -> impl Iterator<Item = &str> {
    let marks = ["[+]", "[-]", "[!]"];
    health.checks.iter().map(move |line| {
        let bare = marks.iter().find_map(|mark| line.strip_prefix(mark));
        bare.unwrap_or(line)
    })
}
