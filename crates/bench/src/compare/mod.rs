//! Two or more targets in one run, a round of each in turn.
//!
//! Machines warm up, neighbours come and go: only figures of the same minutes
//! compare, so every round measures all targets and ratios are taken round by round.

mod report;
mod server;
mod target;

use std::sync::Arc;

use towpath_core::{Error, Result};

use crate::args::CompareArgs;
use crate::payload::Payloads;
use crate::workload::Workload;
use report::{Compared, Measured, Stated};
use target::{Options, Round, Target};

pub(crate) use report::{Figure, Ratio, Report};

/// Measures every target under every workload; `begin` gets the name of each workload.
///
/// # Errors
/// Those of opening a target or of a call to it; a loss or a duplicate is in the report.
pub(crate) async fn run(args: &CompareArgs, begin: impl Fn(&str)) -> Result<Report> {
    let folder = tempfile::Builder::new()
        .prefix("towpath-bench-")
        .tempdir_in(&args.folder)
        .map_err(|error| {
            Error::unavailable("the folder for temporary stores cannot be made").with_source(error)
        })?;
    let options = Options {
        keys: args.keys.as_deref(),
        server_pids: &args.server_pid,
    };
    let mut targets = Vec::new();
    for (number, text) in args.targets.iter().enumerate() {
        targets.push(Target::open(text, &options, folder.path(), number).await?);
    }
    let payloads = Arc::new(Payloads::new(args.size));
    let mut workloads = Vec::new();
    for workload in &args.workloads() {
        begin(&workload.name());
        workloads.push(compare(*workload, &targets, &payloads, args).await?);
    }
    let stated = targets.iter().map(|target| Stated {
        target: target.name.clone(),
        durability: target.durability.clone(),
    });
    let report = Report {
        rounds: args.rounds,
        targets: stated.collect(),
        workloads,
    };
    for target in targets {
        target.close().await?;
    }
    Ok(report)
}

async fn compare(
    workload: Workload,
    targets: &[Target],
    payloads: &Arc<Payloads>,
    args: &CompareArgs,
) -> Result<Compared> {
    let mut rounds: Vec<Vec<Round>> = targets.iter().map(|_| Vec::new()).collect();
    for _ in 0..args.rounds {
        for (target, rounds) in targets.iter().zip(&mut rounds) {
            rounds.extend(target.run(workload, payloads, || args.limit()).await?);
        }
    }
    let (_, callers, batch) = workload.shape();
    let all = targets.iter().zip(&rounds);
    let measured = all
        .enumerate()
        .filter(|(_, (_, rounds))| !rounds.is_empty())
        .map(|(number, (target, own))| {
            let first = rounds
                .first()
                .filter(|first| number > 0 && !first.is_empty());
            Measured::new(&target.name, own, first.map(Vec::as_slice))
        });
    Ok(Compared {
        workload: workload.name(),
        callers,
        batch,
        targets: measured.collect(),
    })
}
