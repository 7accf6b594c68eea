//! The commands and their options.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use towpath_server::cli::output::Format;

use crate::limit::Limit;
use crate::workload::Workload;

/// Measure throughput and latency of Towpath on this machine.
///
/// Every result is checked for lost and duplicate messages.
#[derive(Debug, Parser)]
#[command(name = "towpath-bench", version)]
pub(crate) struct Cli {
    /// Output format
    #[arg(
        long = "output",
        global = true,
        value_enum,
        default_value = "table",
        value_name = "FORMAT"
    )]
    pub(crate) format: Format,
    /// Print results only
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// A measurement, or the server.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Bench(BenchCommand),
    /// The command line of the server, for processes that a measurement starts
    #[command(hide = true, disable_help_flag = true)]
    Server {
        /// Arguments of `towpath`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// The measurements.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
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
pub(crate) struct Bound {
    /// Duration of each measurement
    #[arg(long, default_value_t = 2)]
    seconds: u64,
    /// Maximum messages, decisions or events of each measurement, in addition to its duration
    #[arg(long)]
    messages: Option<u64>,
}

impl Bound {
    pub(crate) fn limit(&self) -> Limit {
        Limit::new(Duration::from_secs(self.seconds), self.messages)
    }
}

/// Options of `towpath-bench queue`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  towpath-bench queue --messages 1000\n  towpath-bench queue --callers 64 --batch 16 --size 256 --output json"
)]
pub(crate) struct QueueArgs {
    /// Backend URL [default: a temporary embedded store, with and without fsync]
    #[arg(long)]
    pub(crate) backend: Option<String>,
    /// Folder for the temporary store; its disk is measured
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Concurrent callers, each with one batch in flight [default: 1, 64 and 1024]
    #[arg(long)]
    pub(crate) callers: Option<usize>,
    /// Messages per call [default: 1 and 100]
    #[arg(long)]
    pub(crate) batch: Option<usize>,
    /// Payload bytes
    #[arg(long, default_value_t = 100)]
    pub(crate) size: usize,
    #[command(flatten)]
    pub(crate) bound: Bound,
}

/// Options of `towpath-bench http`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  towpath-bench http --messages 1000\n  towpath-bench http --connections 64 --batch 100 --output json\n  towpath-bench http --connections 256 --rate 5000"
)]
pub(crate) struct HttpArgs {
    /// URL of a running API, for instance http://127.0.0.1:8080 [default: starts one on a temporary store]
    #[arg(long, conflicts_with = "backend")]
    pub(crate) target: Option<String>,
    /// Backend of the started API [default: a temporary embedded store, with and without fsync]
    #[arg(long)]
    pub(crate) backend: Option<String>,
    /// Folder for the temporary store
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Connections, each with one request in flight [default: 1 and 64]
    #[arg(long)]
    pub(crate) connections: Option<usize>,
    /// Messages in one request; over 1 goes to /enqueue/batch
    #[arg(long, default_value_t = 1)]
    pub(crate) batch: usize,
    /// Requests a second over all connections, sent whether or not answers come; latencies count from the moment that a
    /// request was due. Without it each connection sends the next request after the answer
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rate: Option<u32>,
    /// Give each request an idempotency key
    #[arg(long)]
    pub(crate) keyed: bool,
    /// Payload bytes
    #[arg(long, default_value_t = 100)]
    pub(crate) size: usize,
    #[command(flatten)]
    pub(crate) bound: Bound,
}

/// Options of `towpath-bench compare`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "A target is:\n  the URL of a backend; its queue `bench` is emptied and used\n  `embedded:` or `embedded:?durability=os`: a new store in `--folder`, deleted at the end\n  `orders:` and a target: the orders app on it, without HTTP; a publish accepts an order, a consume notifies its customer\n  `bare:` and the URL of a server: a plain program with the same client, without Towpath\n  `disk`: sync rate of `--folder`, times callers and batch, as if each caller had a disk of its own\n\nRatios are the first target by each other one, the median over the rounds.\nA `?` follows a ratio when the spread (between the quartiles) of a side is larger than the difference of the medians.\n\nWith Redis running:\n  towpath-bench compare embedded: redis://localhost:6379 disk\n  towpath-bench compare redis://localhost:6379 bare:redis://localhost:6379\n\nWith RabbitMQ running:\n  towpath-bench compare amqp://guest:guest@localhost:5672 bare:amqp://guest:guest@localhost:5672\n  towpath-bench compare orders:amqp://guest:guest@localhost:5672 bare:amqp://guest:guest@localhost:5672 --keys redis://localhost:6379\n\nExamples:\n  towpath-bench compare embedded: disk --workload publish-64 --messages 1000\n  towpath-bench compare embedded: 'embedded:?durability=os' --workload http-64\n  towpath-bench compare orders:embedded: embedded: --workload publish-64,end-to-end --messages 1000"
)]
pub(crate) struct CompareArgs {
    /// Targets; each is compared with the first
    #[arg(required = true, num_args = 2.., value_name = "TARGET")]
    pub(crate) targets: Vec<String>,
    /// Backend for the keys of `orders:` targets whose broker has none
    #[arg(long, value_name = "URL")]
    pub(crate) keys: Option<String>,
    /// Process whose CPU time counts as the server's, if the server does not report it; repeat for several
    #[arg(long, value_name = "PID")]
    pub(crate) server_pid: Vec<u32>,
    /// Workloads, separated by commas [default: all]
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) workload: Vec<Workload>,
    /// Rounds of each workload
    #[arg(long, default_value_t = 5, value_parser = rounds)]
    pub(crate) rounds: usize,
    /// Publishing time of a round in seconds, for instance 0.5
    #[arg(long, default_value = "0.5", value_name = "SECONDS", value_parser = seconds)]
    pub(crate) seconds: Duration,
    /// Maximum messages of a round, in addition to its duration
    #[arg(long)]
    pub(crate) messages: Option<u64>,
    /// Payload bytes, 32 at least
    #[arg(long, default_value_t = 100)]
    pub(crate) size: usize,
    /// Folder for temporary stores and for `disk`; its disk is measured
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
}

/// Options of `towpath-bench limits`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Examples:\n  towpath-bench limits --messages 1000\n  towpath-bench limits --callers 64 --keys 1 --output json"
)]
pub(crate) struct LimitsArgs {
    /// Backend URL [default: a temporary embedded store]
    #[arg(long)]
    pub(crate) backend: Option<String>,
    /// Folder for the temporary store; its disk is measured
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Concurrent callers, each with one decision in flight [default: 1 and 64]
    #[arg(long)]
    pub(crate) callers: Option<usize>,
    /// Number of keys, over which the decisions are spread
    #[arg(long, default_value_t = 1_000)]
    pub(crate) keys: u64,
    #[command(flatten)]
    pub(crate) bound: Bound,
}

/// Options of `towpath-bench outbox`.
#[derive(Debug, Clone, Args)]
#[command(
    after_help = "Unsent events of the database are relayed too: use a separate database.\n\nWith PostgreSQL and Kafka running:\n  towpath-bench outbox --database postgres://towpath@localhost/bench --backend kafka://localhost:9092\n\nExamples:\n  towpath-bench outbox --messages 1000"
)]
pub(crate) struct OutboxArgs {
    /// Database URL; its tables are created [default: a temporary SQLite database]
    #[arg(long)]
    pub(crate) database: Option<String>,
    /// Backend URL of the broker [default: a temporary embedded store]
    #[arg(long)]
    pub(crate) backend: Option<String>,
    /// Folder for the temporary database and store; its disk is measured
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Payload bytes
    #[arg(long, default_value_t = 100)]
    pub(crate) size: usize,
    #[command(flatten)]
    pub(crate) bound: Bound,
}

/// Options of `towpath-bench fleet`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  towpath-bench fleet --agents 20 --rounds 2")]
pub(crate) struct FleetArgs {
    /// Number of waiting agents
    #[arg(long, default_value_t = 1_000, value_parser = agents)]
    pub(crate) agents: usize,
    /// Number of published configurations
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) rounds: u16,
    /// Folder for the temporary database
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
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
    pub(crate) fn limit(&self) -> Limit {
        Limit::new(self.seconds, self.messages)
    }

    pub(crate) fn workloads(&self) -> Vec<Workload> {
        match self.workload.as_slice() {
            [] => Workload::value_variants().to_vec(),
            some => some.to_vec(),
        }
    }
}
