//! The command line.

mod audit;
mod backup;
mod banner;
mod canary;
mod client;
mod config_command;
mod credentials;
mod dashboard;
mod dlq;
mod doctor;
mod exit;
mod failure;
mod fleet;
mod fleet_client;
mod global;
mod guesses;
mod health;
mod help;
mod init;
mod job;
mod key;
mod kv;
mod lines;
mod migrate;
mod notify;
mod orders;
mod outbox;
pub mod output;
mod processes;
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

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use clap_complete::Shell;

pub use exit::Exit;
pub use failure::Failure;
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
    /// Start all roles in this process [default: on the embedded store]
    Up(up::UpArgs),
    /// Start selected roles
    Run(up::RunArgs),
    /// List the roles
    #[command(after_help = "Examples:\n  towpath roles")]
    Roles,
    /// Send messages to a queue
    Send(send::SendArgs),
    /// Send jobs and run a program for each
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Inspect, pause and resume queues
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Inspect streams, their groups and entries
    #[command(subcommand)]
    Stream(stream::StreamCommand),
    /// List, redrive or delete dead letters
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Read and change keys
    #[command(subcommand)]
    Kv(kv::KvCommand),
    /// Copy a file through a stream
    #[command(subcommand)]
    Lines(lines::LinesCommand),
    /// Reconcile order counts
    #[command(subcommand)]
    Orders(orders::OrdersCommand),
    /// Publish agent configuration and see which version each agent runs
    #[command(subcommand)]
    Fleet(fleet::FleetCommand),
    /// Run HTTP tasks and inspect their results
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// List the events of the outbox and send them again
    #[command(subcommand)]
    Outbox(outbox::OutboxCommand),
    /// Replay a range of sent outbox events
    Backfill(outbox::BackfillArgs),
    /// Back up the embedded store and SQLite databases, running or stopped
    Backup(backup::BackupArgs),
    /// Restore a backup into a new or empty data folder
    Restore(backup::RestoreArgs),
    /// Verify a backup or a data folder
    Verify(backup::VerifyArgs),
    /// Write deployment files: Compose, Kubernetes, systemd, Prometheus, Grafana
    Init(init::InitArgs),
    /// Create, list, rotate and revoke API keys
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Show the newest records of the audit trail: changes and refused credentials
    Audit(audit::AuditArgs),
    /// Apply or revert database migrations
    #[command(subcommand)]
    Migrate(migrate::MigrateCommand),
    /// List current problems with cause and next step
    Status(status::StatusArgs),
    /// Open the dashboard in a browser that is signed in
    Dashboard(dashboard::DashboardArgs),
    /// List the Towpath processes of this user on this machine
    Ps(processes::PsArgs),
    /// Check the health of the running process
    Health(health::HealthArgs),
    /// Check the running process and name the next steps; without one, check this configuration
    Doctor(doctor::DoctorArgs),
    /// Show version, commit, formats on disk, backends and roles
    #[command(after_help = "Examples:\n  towpath version\n  towpath version --output json")]
    Version,
    /// Check, show and create configuration
    #[command(subcommand)]
    Config(config_command::ConfigCommand),
    /// Print a completion script for a shell
    #[command(
        after_help = "bash: towpath completions bash > ~/.local/share/bash-completion/completions/towpath\nzsh:  towpath completions zsh > ~/.zfunc/_towpath, with `fpath+=~/.zfunc` before `compinit` in ~/.zshrc\nfish: towpath completions fish > ~/.config/fish/completions/towpath.fish\n\nExamples:\n  towpath completions bash\n  towpath completions zsh\n  towpath completions fish"
    )]
    Completions {
        /// Shell
        shell: Shell,
    },
}

impl Cli {
    /// Runs the command of the arguments, of which the first is the name of the program.
    pub async fn run(args: Vec<OsString>) -> Exit {
        let args = outbox::with_two_dashes(args);
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
        let mut words = args.iter().skip(1).filter_map(|word| word.to_str());
        let first = words.find(|word| !word.starts_with('-')).map(str::to_owned);
        let parsed = command
            .try_get_matches_from_mut(args)
            .and_then(|matches| Self::from_arg_matches(&matches));
        let cli = match parsed {
            Ok(cli) => cli,
            Err(mut error) => {
                guesses::add_tip(&mut error, first.as_deref().unwrap_or_default());
                error.print().ok();
                return match error.kind() {
                    ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok,
                    _ => Exit::Usage,
                };
            }
        };
        cli.dispatch().await.unwrap_or_else(Failure::report)
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
            Command::Job(command) => job::run(global, command).await,
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
            Command::Audit(args) => audit::run(global, args).await,
            Command::Migrate(command) => migrate::run(global, command).await,
            Command::Status(args) => status::run(global, args).await,
            Command::Dashboard(args) => dashboard::run(global, args).await,
            Command::Ps(args) => processes::list(global, args),
            Command::Health(args) => health::run(global, args).await,
            Command::Doctor(args) => doctor::run(global, args).await,
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
        output::table(&["ROLE", "DESCRIPTION"], rows)?;
    }
    Ok(Exit::Ok)
}
