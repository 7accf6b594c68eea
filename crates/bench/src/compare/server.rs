//! CPU time of the server behind a target.

use std::sync::Arc;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;

use crate::baseline::Baseline;

/// The source of the figure.
#[derive(Clone)]
pub(super) enum Server {
    /// The server itself.
    Itself(Arc<dyn Baseline>),
    /// The kernel, of these processes together.
    Processes(Vec<u32>),
}

impl Server {
    /// CPU time so far; nothing from a server that does not say it, or when a process is gone.
    pub(super) async fn used(&self) -> Option<Duration> {
        match self {
            Self::Itself(baseline) => baseline.server_cpu().await.ok(),
            Self::Processes(pids) => pids.iter().map(|pid| process(*pid)).sum(),
        }
    }
}

/// User and system time of a process, all threads, in the kernel's ticks (usually 10 ms).
fn process(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything; the third field begins behind its last parenthesis.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let ticks = ticks()? + ticks()?;
    Some(Duration::from_micros(
        ticks * 1_000_000 / clock_ticks_per_second(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_cpu_and_one_that_is_gone_says_nothing() {
        let before = process(std::process::id()).unwrap();
        let mut sum = 0u64;
        while process(std::process::id()).unwrap() < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum.wrapping_mul(31).wrapping_add(1));
        }
        assert_eq!(process(u32::MAX), None);
    }
}
