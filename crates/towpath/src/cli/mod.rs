//! The command line.

mod backup;
mod bench;
mod bench_command;
mod client;
mod config_command;
mod dlq;
mod doctor;
mod exit;
mod failure;
mod fleet;
mod fleet_client;
mod global;
mod health;
mod help;
mod init;
mod key;
mod kv;
mod lines;
mod migrate;
mod notify;
mod orders;
mod outbox;
mod output;
mod queue;
#[cfg(test)]
mod reference;
mod send;
mod signals;
mod status;
mod stream;
mod task;
mod token_file;
mod up;
mod version;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

pub use exit::Exit;
use failure::Failure;
use global::Global;
use output::Format;

use crate::wiring::Role;

/// The asynchronous backbone of a backend in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "towpath",
    version = version::LINE,
    about,
    propagate_version = true,
    subcommand_required = true
)]
#[command(
    after_help = "Start:\n  towpath up\n  curl -d hello localhost:8080/enqueue\n  towpath queue ls\n\n`towpath COMMAND --help` shows a command's options and examples."
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start everything in this process, on the embedded store unless configured otherwise
    Up(up::UpArgs),
    /// Start some of the roles
    Run(up::RunArgs),
    /// List the roles
    #[command(after_help = "Examples:\n  towpath roles")]
    Roles,
    /// Send messages to a queue
    Send(send::SendArgs),
    /// Look at queues, stop and start them
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Look at streams, their groups and entries
    #[command(subcommand)]
    Stream(stream::StreamCommand),
    /// Look at dead letters, put them back or drop them
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Look at keys, set and change them
    #[command(subcommand)]
    Kv(kv::KvCommand),
    /// Move lines from file to file
    #[command(subcommand)]
    Lines(lines::LinesCommand),
    /// Check the books of the orders app
    #[command(subcommand)]
    Orders(orders::OrdersCommand),
    /// The configuration of agents, and who has which
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// Have the configured URL asked, and see what it said
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Look at the events of the outbox, send them again
    #[command(subcommand)]
    Outbox(outbox::OutboxCommand),
    /// Send a range of events again that were sent before
    Backfill(outbox::BackfillArgs),
    /// Back up the embedded store and SQLite databases, also while they are in use
    Backup(backup::BackupArgs),
    /// Put a backup into a data folder that does not exist or is empty
    Restore(backup::RestoreArgs),
    /// Read a backup or a data folder completely and name every fault
    Verify(backup::VerifyArgs),
    /// Write files to run Towpath with: Compose, Kubernetes, systemd, Prometheus, Grafana
    Init(init::InitArgs),
    /// Create, list, rotate and revoke API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Make the tables of the database, or take them back
    #[command(subcommand)]
    Migrate(migrate::MigrateCommand),
    /// Show what is wrong with the running process, and what to do
    Status(status::StatusArgs),
    /// Show how the running process is
    Health(health::HealthArgs),
    /// Check configuration, folder, disk, ports and the running process, and say what to do
    Doctor(doctor::DoctorArgs),
    /// Measure this machine
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Show version, commit, formats on disk, backends and roles
    #[command(after_help = "Examples:\n  towpath version\n  towpath version --output json")]
    Version,
    /// Check, show and make configuration
    #[command(subcommand)]
    Config(config_command::ConfigCommand),
    /// Print a completion script for a shell
    #[command(
        after_help = "bash: towpath completions bash > ~/.local/share/bash-completion/completions/towpath\nzsh:  towpath completions zsh > ~/.zfunc/_towpath, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc\nfish: towpath completions fish > ~/.config/fish/completions/towpath.fish\n\nExamples:\n  towpath completions bash\n  towpath completions zsh\n  towpath completions fish"
    )]
    Completions {
        /// Which shell
        shell: Shell,
    },
}

impl Cli {
    /// Runs the command that the arguments say.
    pub async fn run() -> Exit {
        let args = outbox::with_two_dashes(std::env::args_os().collect());
        let color = global::color_of(
            args.iter()
                .map(|argument| argument.to_string_lossy().into_owned()),
        );
        output::use_color(color);
        let mut command = Self::page().color(color);
        if args.len() < 2 {
            // Clap knows the stream; a closed one is not our problem.
            command.print_help().ok();
            return Exit::Ok;
        }
        let parsed = command
            .try_get_matches_from_mut(args)
            .and_then(|matches| Self::from_arg_matches(&matches));
        let cli = match parsed {
            Ok(cli) => cli,
            Err(error) => {
                error.print().ok();
                return match error.kind() {
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
                    _ => Exit::Usage,
                };
            }
        };
        cli.dispatch().await.unwrap_or_else(Failure::tell)
    }

    /// The command with its front page.
    fn page() -> clap::Command {
        help::grouped(Self::command())
    }

    async fn dispatch(mut self) -> Result<Exit, Failure> {
        if self.global.json {
            self.global.format = Format::Json;
        }
        let global = &self.global;
        match self.command {
            Command::Up(args) => up::up(global, args).await,
            Command::Run(args) => up::run(global, args).await,
            Command::Roles => roles(global),
            Command::Send(args) => send::run(global, args).await,
            Command::Queue(command) => queue::run(global, command).await,
            Command::Stream(command) => stream::run(global, command).await,
            Command::Dlq(command) => dlq::run(global, command).await,
            Command::Kv(command) => kv::run(global, command).await,
            Command::Lines(command) => lines::run(global, command).await,
            Command::Orders(command) => orders::run(global, command).await,
            Command::Fleet(command) => fleet::run(global, command).await,
            Command::Task(command) => task::run(global, command).await,
            Command::Outbox(command) => outbox::run(global, command).await,
            Command::Backfill(args) => outbox::backfill(global, args).await,
            Command::Backup(args) => backup::backup(global, args).await,
            Command::Restore(args) => backup::restore(global, args).await,
            Command::Verify(args) => backup::verify(global, args).await,
            Command::Init(args) => init::run(global, args),
            Command::Key(command) => key::run(global, command),
            Command::Migrate(command) => migrate::run(global, command).await,
            Command::Status(args) => status::run(global, args).await,
            Command::Health(args) => health::run(global, args).await,
            Command::Doctor(args) => doctor::run(global, args).await,
            Command::Bench(command) => bench_command::run(global, command).await,
            Command::Version => version::run(global),
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

fn roles(global: &Global) -> Result<Exit, Failure> {
    if global.format == Format::Json {
        let roles: Vec<_> = Role::all()
            .map(|role| serde_json::json!({"role": role.as_str(), "summary": role.summary()}))
            .collect();
        output::json(&roles)?;
    } else {
        let rows = Role::all().map(|role| vec![role.to_string(), role.summary().to_owned()]);
        output::table(&["ROLE", "WHAT IT DOES"], rows)?;
    }
    Ok(Exit::Ok)
}
