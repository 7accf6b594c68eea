//! The `towpath` binary.

use std::process::ExitCode;
use std::time::Duration;

use towpath_server::cli::Cli;
use towpath_server::cli::Exit;

/// Returns freed pages to the system, with threads of its own that purge them within ten seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// A disk or a pipe that hangs must not keep a process that is done.
const LAST_MOMENT: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Runtime::new();
    let runtime = runtime.expect("the system gives a process its first threads");
    let exit: Exit = runtime.block_on(Cli::run(std::env::args_os().collect()));
    runtime.shutdown_timeout(LAST_MOMENT);
    towpath_server::telemetry::flush_logs();
    exit.into()
}
