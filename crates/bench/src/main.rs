//! `towpath-bench`: rates of this machine, durable and not, checked for loss and duplicates.
//!
//! Every run first measures the disk itself (a small write and `fdatasync`), because all
//! durable figures are ratios to that. Figures of two runs compare only as such ratios.

mod api;
mod args;
mod baseline;
mod compare;
mod decide;
mod disk;
mod fleet;
mod http;
mod limit;
mod line;
mod load;
mod measure;
mod orders;
mod outbox;
mod payload;
mod print;
mod queue;
mod relay;
mod workload;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tempfile::TempDir;
use towpath_core::backend::Backend;
use towpath_core::{Error, Result};
use towpath_server::cli;

use args::{Cli, Command};

/// The allocator of the server, so that its figures are those of a server.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let Cli {
        format,
        quiet,
        command,
    } = Cli::parse();
    let exit = match command {
        Command::Server { arguments } => {
            let name = std::iter::once("towpath".into());
            cli::Cli::run(name.chain(arguments).collect()).await
        }
        Command::Bench(command) => {
            let done = print::run(format, quiet, command).await;
            done.unwrap_or_else(cli::Failure::report)
        }
    };
    exit.into()
}

/// The meaning of the backend's acknowledgement, as it states itself.
async fn durability(backend: &Backend) -> Result<String> {
    let facts = backend.lifecycle.health().await?.facts;
    let mut stated: Vec<String> = facts
        .into_iter()
        .filter_map(|(name, value)| (name == "durability").then_some(value))
        .collect();
    stated.dedup();
    Ok(match stated.as_slice() {
        [] => "not stated".to_owned(),
        some => some.join("; "),
    })
}

/// A folder for temporary stores, removed in the end.
fn temporary(folder: &Path) -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("towpath-bench-")
        .tempdir_in(folder)
        .map_err(|error| {
            Error::unavailable("the folder for the temporary store cannot be made")
                .with_source(error)
        })
}

/// One row of a result.
#[derive(Debug, Clone, serde::Serialize)]
pub(crate) struct Row {
    /// The measured step: `enqueue`, `lease+ack`, `end to end`, `disk`.
    pub(crate) what: String,
    /// The durability of each answer.
    pub(crate) durability: String,
    /// Concurrent callers or connections.
    pub(crate) callers: usize,
    /// Messages in one call.
    pub(crate) batch: usize,
    /// Messages done.
    pub(crate) messages: u64,
    /// Messages a second.
    pub(crate) per_second: f64,
    /// Latency of a call at the median, in milliseconds.
    pub(crate) p50_ms: f64,
    /// At the 99th percentile.
    pub(crate) p99_ms: f64,
    /// At the 99.9th percentile.
    pub(crate) p999_ms: f64,
    /// The longest.
    pub(crate) max_ms: f64,
    /// CPU microseconds of this process per message, all threads.
    pub(crate) cpu_us: f64,
    /// Messages that were acknowledged and never delivered. Anything but 0 is a defect.
    pub(crate) lost: u64,
    /// Messages that were delivered more than once without a reason. Anything but 0 is a defect.
    pub(crate) duplicated: u64,
}

impl Row {
    /// Whether the run lost or doubled something.
    pub(crate) const fn is_defect(&self) -> bool {
        self.lost > 0 || self.duplicated > 0
    }
}
