//! `towpath job`: send jobs, and work on them with a program.

mod consumer;
mod worker;

use clap::{Args, Subcommand, value_parser};
use jiff::SignedDuration;

use super::queue::{QueueArgs, QueueCommand};
use super::send::SendArgs;
use super::{Exit, Failure, Global, queue, send};

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub(super) enum JobCommand {
    /// Send jobs to a queue
    Send(SendArgs),
    /// Run a program for each job of a queue
    #[command(
        after_help = "The program gets the payload on standard input and the job in `TOWPATH_MESSAGE_ID`, `_QUEUE`, `_ATTEMPT`, `_KEY` and `_HEADER_…`.\nExit 0 acks the job, 65 makes it a dead letter with the last line of standard error as the reason, any other code is a retry by the settings of the queue.\nLeases are renewed while a program runs; a worker that is killed returns its jobs when they expire.\nSIGTERM finishes running programs and releases the rest.\n\nExamples:\n  towpath job worker --queue emails --exec 'python3 job.py'\n  towpath job worker --queue thumbnails --exec ./resize.sh --concurrency 4 --timeout 5m"
    )]
    Worker(WorkerArgs),
    /// Show the statistics of a queue
    #[command(after_help = "Examples:\n  towpath job status emails")]
    Status(QueueArgs),
}

/// Options of `job worker`.
#[derive(Debug, Args)]
pub(super) struct WorkerArgs {
    /// Queue
    #[arg(long)]
    queue: String,
    /// Program and arguments, run by the shell
    #[arg(long, value_name = "COMMAND")]
    exec: String,
    /// Maximum programs that run at once, 1 to 1000
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..=1000))]
    concurrency: u16,
    /// Duration of a lease
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    lease: SignedDuration,
    /// Maximum duration of a program; it is then ended, and the job is retried
    #[arg(long, default_value = "1h", value_name = "DURATION")]
    timeout: SignedDuration,
}

pub(super) async fn run(global: &Global, command: JobCommand) -> Result<Exit, Failure> {
    match command {
        JobCommand::Send(args) => send::run(global, args).await,
        JobCommand::Worker(args) => worker::run(global, args).await,
        JobCommand::Status(named) => queue::run(global, QueueCommand::Show(named)).await,
    }
}
