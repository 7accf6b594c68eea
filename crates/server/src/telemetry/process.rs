//! Metrics of the operating system about the process, under the names that every dashboard expects.
//!
//! Source: Prometheus, "Writing client libraries", process metrics. Linux only; elsewhere unreadable values are left out.

use std::fs;
use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::metric::Metric;
use super::registry::add;

/// Ticks a second in `/proc`. Source: proc_pid_stat(5); fixed on every Linux that there is.
const TICKS: f64 = 100.0;

/// Adds the numbers of this moment.
pub(super) fn register(registry: &mut Registry) {
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    let counter = Counter::<f64, AtomicU64>::default();
    counter.inc_by(cpu);
    add(registry, Metric::ProcessCpu, counter);
    let mut gauge = |metric, value: Option<f64>| {
        if let Some(value) = value {
            let gauge = Gauge::<f64, AtomicU64>::default();
            gauge.set(value);
            add(registry, metric, gauge);
        }
    };
    gauge(Metric::ProcessMemory, resident_bytes());
    gauge(Metric::ProcessOpenFds, open_descriptors());
    let most = getrlimit(Resource::Nofile).current;
    gauge(
        Metric::ProcessMaxFds,
        Some(most.map_or(f64::INFINITY, |most| most as f64)),
    );
    gauge(Metric::ProcessStart, started_at());
}

/// Open files, and how many there may be; zero where that is not known.
pub(super) fn files() -> (u64, u64) {
    let open = open_descriptors().unwrap_or_default();
    let most = getrlimit(Resource::Nofile).current.unwrap_or_default();
    (open as u64, most)
}

fn resident_bytes() -> Option<f64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = pages.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as f64)
}

fn open_descriptors() -> Option<f64> {
    // One of them is the open folder itself.
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64 - 1.0)
}

fn started_at() -> Option<f64> {
    let process = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in parentheses, may hold anything; field 22 is the 20th behind it.
    let (_, fields) = process.rsplit_once(") ")?;
    let ticks: f64 = fields.split(' ').nth(19)?.parse().ok()?;
    let system = fs::read_to_string("/proc/stat").ok()?;
    let booted = system
        .lines()
        .find_map(|line| line.strip_prefix("btime "))?;
    Some(booted.parse::<f64>().ok()? + ticks / TICKS)
}
