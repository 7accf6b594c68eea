//! The `towpath` binary.

use std::process::ExitCode;

use towpath::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::run().await.into()
}
