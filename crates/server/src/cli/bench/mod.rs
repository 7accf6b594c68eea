//! `towpath bench`: rates of this machine, durable and not, checked for loss and duplicates.
//!
//! Every run first measures the disk itself (a small write and `fdatasync`), because all
//! durable figures are ratios to that. Figures of two runs compare only as such ratios.

mod compare;
mod decide;
mod disk;
mod fleet;
mod http;
mod limit;
mod line;
mod load;
mod measure;
mod outbox;
mod payload;
mod queue;

use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use tempfile::TempDir;
use towpath_core::backend::Backend;
use towpath_core::{Error, Result};

pub(in crate::cli) use compare::{Figure, Ratio, Report, Workload, run as run_compare};
pub(in crate::cli) use decide::run as run_limits;
pub(in crate::cli) use fleet::{FleetFigures, run as run_fleet};
pub(in crate::cli) use http::run as run_http;
use limit::Limit;
pub(in crate::cli) use outbox::run as run_outbox;
pub(in crate::cli) use queue::run as run_queue;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(super) enum BenchCommand {
    /// Measure enqueue, lease and ack of a backend
    Queue(QueueArgs),
    /// Measure `POST` to the ingest API
    Http(HttpArgs),
    /// Compare two or more targets in one run
    Compare(CompareArgs),
    /// Measure rate limits of a backend and of the API
    Limits(LimitsArgs),
    /// Measure outbox and relay
    Outbox(OutboxArgs),
    /// Measure the distribution of a configuration to waiting agents
    Fleet(FleetArgs),
}

/// When each measurement ends.
#[derive(Debug, Clone, Args)]
pub(super) struct Bound {
    /// Duration of each measurement
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Maximum messages, decisions or events of each measurement, in addition to its duration
    #[arg(long)]
    messages: Option<u64>,
}

impl Bound {
    fn limit(&self) -> Limit {
        Limit::new(Duration::from_secs(self.seconds), self.messages)
    }
}

/// Options of `bench queue`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  towpath bench queue --messages 1000\n  towpath bench queue --callers 64 --batch 16 --size 256 --output json"
)]
pub(super) struct QueueArgs {
    /// Backend URL [default: a temporary embedded store, with and without fsync]
    #[arg(long)]
    pub(super) backend: Option<String>,
    /// Folder for the temporary store; its disk is measured
    #[arg(long, default_value = ".")]
    pub(super) folder: std::path::PathBuf,
    /// Concurrent callers, each with one batch in flight [default: 1, 64 and 1024]
    #[arg(long)]
    pub(super) callers: Option<usize>,
    /// Messages per call [default: 1 and 100]
    #[arg(long)]
    pub(super) batch: Option<usize>,
    /// Payload bytes
    #[arg(long, default_value_t = 100)]
    pub(super) size: usize,
    #[command(flatten)]
    pub(super) bound: Bound,
}

/// Options of `bench http`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  towpath bench http --messages 1000\n  towpath bench http --connections 64 --batch 100 --output json\n  towpath bench http --connections 256 --rate 5000"
)]
pub(super) struct HttpArgs {
    /// URL of a running API, for instance http://127.0.0.1:8080 [default: starts one on a temporary store]
    #[arg(long, conflicts_with = "backend")]
    pub(super) target: Option<String>,
    /// Backend of the started API [default: a temporary embedded store, with and without fsync]
    #[arg(long)]
    pub(super) backend: Option<String>,
    /// Folder for the temporary store
    #[arg(long, default_value = ".")]
    pub(super) folder: std::path::PathBuf,
    /// Connections, each with one request in flight [default: 1 and 64]
    #[arg(long)]
    pub(super) connections: Option<usize>,
    /// Messages in one request; over 1 goes to /enqueue/batch
    #[arg(long, default_value_t = 1)]
    pub(super) batch: usize,
    /// Requests a second over all connections, sent whether or not answers come; latencies count from the moment that a
    /// request was due. Without it each connection sends the next request after the answer
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) rate: Option<u32>,
    /// Give each request an idempotency key
    #[arg(long)]
    pub(super) keyed: bool,
    /// Payload bytes
    #[arg(long, default_value_t = 100)]
    pub(super) size: usize,
    #[command(flatten)]
    pub(super) bound: Bound,
}

/// Options of `bench compare`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "A target is:\n  the URL of a backend; its queue `bench` is emptied and used\n  `embedded:` or `embedded:?durability=os`: a new store in `--folder`, deleted at the end\n  `orders:` and a target: the orders app on it, without HTTP; a publish accepts an order, a consume notifies its customer\n  `bare:` and the URL of a server: a plain program with the same client, without Towpath\n  `disk`: sync rate of `--folder`, times callers and batch, as if each caller had a disk of its own\n\nRatios are the first target by each other one, the median over the rounds.\nA `?` follows a ratio when the spread (between the quartiles) of a side is larger than the difference of the medians.\n\nWith Redis running:\n  towpath bench compare embedded: redis://localhost:6379 disk\n  towpath bench compare redis://localhost:6379 bare:redis://localhost:6379\n\nWith RabbitMQ running:\n  towpath bench compare amqp://guest:guest@localhost:5672 bare:amqp://guest:guest@localhost:5672\n  towpath bench compare orders:amqp://guest:guest@localhost:5672 bare:amqp://guest:guest@localhost:5672 --keys redis://localhost:6379\n\nExamples:\n  towpath bench compare embedded: disk --workload publish-64 --messages 1000\n  towpath bench compare embedded: 'embedded:?durability=os' --workload http-64\n  towpath bench compare orders:embedded: embedded: --workload publish-64,end-to-end --messages 1000"
)]
pub(super) struct CompareArgs {
    /// Targets; each is compared with the first
    #[arg(required = true, num_args = 2.., value_name = "TARGET")]
    pub(super) targets: Vec<String>,
    /// Backend for the keys of `orders:` targets whose broker has none
    #[arg(long, value_name = "URL")]
    pub(super) keys: Option<String>,
    /// Process whose CPU time counts as the server's, if the server does not report it; repeat for several
    #[arg(long, value_name = "PID")]
    pub(super) server_pid: Vec<u32>,
    /// Workloads, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(super) workload: Vec<Workload>,
    /// Rounds of each workload
    #[arg(long, default_value_t = 5, value_parser = rounds)]
    pub(super) rounds: usize,
    /// Publishing time of a round in seconds, for instance 0.5
    #[arg(long, default_value = "0.5", value_name = "SECONDS", value_parser = seconds)]
    pub(super) seconds: Duration,
    /// Maximum messages of a round, in addition to its duration
    #[arg(long)]
    pub(super) messages: Option<u64>,
    /// Payload bytes, 32 at least
    #[arg(long, default_value_t = 100)]
    pub(super) size: usize,
    /// Folder for temporary stores and for `disk`; its disk is measured
    #[arg(long, default_value = ".")]
    pub(super) folder: std::path::PathBuf,
}

/// Options of `bench limits`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  towpath bench limits --messages 1000\n  towpath bench limits --callers 64 --keys 1 --output json"
)]
pub(super) struct LimitsArgs {
    /// Backend URL [default: a temporary embedded store]
    #[arg(long)]
    pub(super) backend: Option<String>,
    /// Folder for the temporary store; its disk is measured
    #[arg(long, default_value = ".")]
    pub(super) folder: std::path::PathBuf,
    /// Concurrent callers, each with one decision in flight [default: 1 and 64]
    #[arg(long)]
    pub(super) callers: Option<usize>,
    /// Number of keys, over which the decisions are spread
    #[arg(long, default_value_t = 1_000)]
    pub(super) keys: u64,
    #[command(flatten)]
    pub(super) bound: Bound,
}

/// Options of `bench outbox`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Unsent events of the database are relayed too: use a separate database.\n\nWith PostgreSQL and Kafka running:\n  towpath bench outbox --database postgres://towpath@localhost/bench --backend kafka://localhost:9092\n\nExamples:\n  towpath bench outbox --messages 1000"
)]
pub(super) struct OutboxArgs {
    /// Database URL; its tables are created [default: a temporary SQLite database]
    #[arg(long)]
    pub(super) database: Option<String>,
    /// Backend URL of the broker [default: a temporary embedded store]
    #[arg(long)]
    pub(super) backend: Option<String>,
    /// Folder for the temporary database and store; its disk is measured
    #[arg(long, default_value = ".")]
    pub(super) folder: std::path::PathBuf,
    /// Payload bytes
    #[arg(long, default_value_t = 100)]
    pub(super) size: usize,
    #[command(flatten)]
    pub(super) bound: Bound,
}

/// Options of `bench fleet`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  towpath bench fleet --agents 20 --rounds 2")]
pub(super) struct FleetArgs {
    /// Number of waiting agents
    #[arg(long, default_value_t = 1_000, value_parser = agents)]
    pub(super) agents: usize,
    /// Number of published configurations
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) rounds: u16,
    /// Folder for the temporary database
    #[arg(long, default_value = ".")]
    pub(super) folder: std::path::PathBuf,
}

fn agents(text: &str) -> std::result::Result<usize, String> {
    let agents = text
        .parse()
        .ok()
        .filter(|agents| (1..=20_000).contains(agents));
    agents.ok_or_else(|| "1 to 20000 agents".to_owned())
}

/// Fewer say nothing about the spread.
fn rounds(text: &str) -> std::result::Result<usize, String> {
    let rounds = text.parse().ok().filter(|rounds| *rounds >= 5);
    rounds.ok_or_else(|| "a comparison takes 5 rounds or more".to_owned())
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| *seconds > 0.0);
    let length = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    length.ok_or_else(|| "expected e.g. 0.5".to_owned())
}

impl CompareArgs {
    fn limit(&self) -> Limit {
        Limit::new(self.seconds, self.messages)
    }

    fn workloads(&self) -> Vec<Workload> {
        match self.workload.as_slice() {
            [] => Workload::value_variants().to_vec(),
            some => some.to_vec(),
        }
    }
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
pub(super) struct Row {
    /// The measured step: `enqueue`, `lease+ack`, `end to end`, `disk`.
    pub(super) what: String,
    /// The durability of each answer.
    pub(super) durability: String,
    /// Concurrent callers or connections.
    pub(super) callers: usize,
    /// Messages in one call.
    pub(super) batch: usize,
    /// Messages done.
    pub(super) messages: u64,
    /// Messages a second.
    pub(super) per_second: f64,
    /// Latency of a call at the median, in milliseconds.
    pub(super) p50_ms: f64,
    /// At the 99th percentile.
    pub(super) p99_ms: f64,
    /// At the 99.9th percentile.
    pub(super) p999_ms: f64,
    /// The longest.
    pub(super) max_ms: f64,
    /// CPU microseconds of this process per message, all threads.
    pub(super) cpu_us: f64,
    /// Messages that were acknowledged and never delivered. Anything but 0 is a defect.
    pub(super) lost: u64,
    /// Messages that were delivered more than once without a reason. Anything but 0 is a defect.
    pub(super) duplicated: u64,
}

impl Row {
    /// Whether the run lost or doubled something.
    pub(super) const fn is_defect(&self) -> bool {
        self.lost > 0 || self.duplicated > 0
    }
}
