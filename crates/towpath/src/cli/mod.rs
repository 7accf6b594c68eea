//! The command line.

mod bench;
mod bench_command;
mod client;
mod config_command;
mod dlq;
mod doctor;
mod exit;
mod health;
mod output;
mod queue;
#[cfg(test)]
mod reference;
mod send;
mod up;

use std::fmt;
use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use towpath_core::{Error, ErrorKind};

pub use exit::Exit;
pub use output::Format;

use crate::config::{Loaded, Problems, Sources, load};
use crate::wiring::{self, Role};

/// The asynchronous backbone of a backend in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "towpath",
    version,
    about,
    propagate_version = true,
    disable_help_subcommand = true
)]
#[command(after_help = "Start with `towpath up`, then: curl -d hello localhost:8080/enqueue")]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Configuration file; without it `./towpath.toml` if there is one
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Sets a key, over everything else: `--set ingest.queue=jobs`
    #[arg(long = "set", global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Data folder; the same as `--set data.dir=DIR`
    #[arg(long = "data", global = true, value_name = "DIR")]
    data: Option<String>,
    /// Admin API of the running process; without it the configured `server.admin`
    #[arg(long, global = true, env = "TOWPATH_URL")]
    url: Option<String>,
    /// Token of the admin API; without it the one in the data folder
    #[arg(long, global = true, env = "TOWPATH_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// How results are printed
    #[arg(long = "output", global = true, value_enum, default_value = "table")]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start every role in this process, on the embedded store unless configured otherwise
    Up(up::UpArgs),
    /// Start some roles: `towpath run ingest.api,ingest.worker`
    Run(up::RunArgs),
    /// Send messages to a queue
    Send(send::SendArgs),
    /// Look at queues, stop and start them
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Look at dead letters, put them back or drop them
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// List the roles
    Roles,
    /// Show how the running process is
    Health(health::HealthArgs),
    /// Check configuration, folder, disk, ports and the running process, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Measure this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Check, show and make configuration
    #[command(subcommand)]
    Config(config_command::ConfigCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Examples:\n  towpath completions bash")]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

impl Cli {
    /// Runs the command that the arguments say.
    pub async fn run() -> Exit {
        let cli = match Self::try_parse() {
            Ok(cli) => cli,
            Err(error) => {
                let exit = if error.use_stderr() {
                    Exit::Usage
                } else {
                    Exit::Ok
                };
                // Clap knows which stream; a closed one is not our problem.
                error.print().ok();
                return exit;
            }
        };
        match cli.dispatch().await {
            Ok(exit) => exit,
            Err(Failure::BrokenPipe) => Exit::Ok,
            Err(Failure::Said(exit, text)) => {
                output::note(text);
                exit
            }
        }
    }

    async fn dispatch(self) -> Result<Exit, Failure> {
        let global = &self.global;
        match self.command {
            Command::Up(args) => up::up(global, args).await,
            Command::Run(args) => up::run(global, args).await,
            Command::Send(args) => send::run(global, args).await,
            Command::Queue(command) => queue::run(global, command).await,
            Command::Dlq(command) => dlq::run(global, command).await,
            Command::Roles => {
                let rows =
                    Role::all().map(|role| vec![role.to_string(), role.summary().to_owned()]);
                output::table(&["ROLE", "WHAT IT DOES"], rows)?;
                Ok(Exit::Ok)
            }
            Command::Health(args) => health::run(global, args).await,
            Command::Doctor(args) => doctor::run(global, args).await,
            Command::Bench(command) => bench_command::run(global, command).await,
            Command::Config(command) => config_command::run(global, command),
            Command::Completions { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Self::command(), "towpath", &mut script);
                output::text(&String::from_utf8_lossy(&script))?;
                Ok(Exit::Ok)
            }
        }
    }
}

impl Global {
    /// Every source of configuration that this call has.
    fn sources(&self) -> Result<Sources, Failure> {
        let mut flags = Vec::new();
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                Failure::Said(Exit::Usage, format!("error: `--set {pair}` has no `=`; say for instance `--set ingest.queue=jobs`"))
            })?;
            flags.push((key.to_owned(), value.to_owned(), "--set".to_owned()));
        }
        if let Some(folder) = &self.data {
            flags.push(("data.dir".to_owned(), folder.clone(), "--data".to_owned()));
        }
        Ok(Sources::of_process(
            self.config.clone(),
            flags,
            wiring::BACKENDS,
        )?)
    }

    /// The configuration, or every problem with it.
    fn load(&self) -> Result<Loaded, Failure> {
        Ok(load(&self.sources()?)?)
    }
}

/// Why a command did not do what it was asked.
#[derive(Debug)]
enum Failure {
    /// Nobody reads any more, and that is fine.
    BrokenPipe,
    /// Something to say, and how to end.
    Said(Exit, String),
}

impl Failure {
    fn failed(text: impl fmt::Display) -> Self {
        Self::Said(Exit::Failed, format!("error: {text}"))
    }

    fn unreachable(text: impl fmt::Display) -> Self {
        Self::Said(Exit::Unreachable, format!("error: {text}"))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::BrokenPipe
        } else {
            Self::failed(error)
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::Unavailable => Exit::Unreachable,
            ErrorKind::Invalid | ErrorKind::Unsupported => Exit::Usage,
            ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Corrupt => Exit::Failed,
        };
        Self::Said(exit, format!("error: {}", error.chain()))
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Said(Exit::Config, format!("{problems}"))
    }
}
