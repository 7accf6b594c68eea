//! Disks that do not answer: said once in the log, in health and in a metric.
//!
//! A call to a disk that hangs gets no error, so another task has to check.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use towpath_core::Result;
use towpath_core::backend::Backend;
use towpath_core::database::Waits;
use tracing::{error, info};

use super::process::Process;
use crate::telemetry::{Health, Metrics, STALLS};
use towpath::supervisor::{OnFailure, Stage, Stop};

/// Interval of checks.
const LOOK: Duration = Duration::from_millis(500);

/// Calls that may wait for a disk, by name.
#[derive(Default)]
pub(super) struct Stalls(Mutex<Vec<(String, Waits)>>);

impl Stalls {
    pub(super) fn add(&self, what: &str, path: &Path, waits: Waits) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.push((named(what, path), waits));
    }
}

impl Process<'_> {
    /// Watches the disks of these backends and of everything that was added.
    pub(super) fn watch_stalls(&mut self, backends: &[Backend]) {
        let mut disks = std::mem::take(&mut self.stalls)
            .0
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        for backend in backends {
            if let Some(folder) = backend.lifecycle.folder() {
                let lifecycle = Arc::clone(&backend.lifecycle);
                let name = named(backend.descriptor.name, folder);
                disks.push((name, Arc::new(move || lifecycle.stalled())));
            }
        }
        if disks.is_empty() {
            return;
        }
        let (health, metrics) = (self.health.clone(), self.metrics.clone());
        let timeout = self.config.disk_timeout;
        self.supervisor
            .start(STALLS, Stage::Observe, OnFailure::Restart, move |stop| {
                let disks: Vec<Disk> = disks.iter().map(Disk::of).collect();
                watch(disks, timeout, health.clone(), metrics.clone(), stop)
            });
    }
}

fn named(what: &str, path: &Path) -> String {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    format!("{what} `{}`", path.display())
}

struct Disk {
    name: String,
    waits: Waits,
    /// The longest that it was seen not to answer.
    stalled: Option<Duration>,
}

impl Disk {
    fn of((name, waits): &(String, Waits)) -> Self {
        Self {
            name: name.clone(),
            waits: Waits::clone(waits),
            stalled: None,
        }
    }

    /// Checks once, and logs changes.
    fn look(&mut self, timeout: Duration, metrics: &Metrics) {
        let stalled = (self.waits)().filter(|lasts| *lasts >= timeout);
        match (self.stalled, stalled) {
            (None, Some(_)) => error!(disk = self.name, ?timeout, "disk not responding"),
            (Some(lasted), None) => info!(disk = self.name, ?lasted, "disk responding again"),
            _ => {}
        }
        self.stalled = stalled;
        metrics.disk_stalled(&self.name, stalled.unwrap_or_default());
    }
}

async fn watch(
    mut disks: Vec<Disk>,
    timeout: Duration,
    health: Health,
    metrics: Metrics,
    stop: Stop,
) -> Result<()> {
    loop {
        for disk in &mut disks {
            disk.look(timeout, &metrics);
        }
        let stalled = disks.iter().find_map(|disk| {
            let lasts = disk.stalled?.as_secs();
            Some(format!("{} has not answered for {lasts} s", disk.name))
        });
        health.set(STALLS, stalled);
        if !stop.sleep(LOOK).await {
            return Ok(());
        }
    }
}
