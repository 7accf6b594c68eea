//! Checks of a process's environment: its folder, its disk, its clock, its databases.
//!
//! A running process examines itself, with its own configuration; the command line does it only where none runs.

#![expect(
    clippy::disallowed_methods,
    reason = "the machine's clock is examined here"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use towpath_core::units;
use utoipa::ToSchema;

use crate::config::{Config, Secret};
use crate::{leftovers, stores};

/// The finding of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// It works, and deserves a look.
    Warn,
    /// It does not work.
    Fail,
}

/// A check and its finding.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// The checked part: `disk`.
    pub check: String,
    /// Its status.
    pub found: CheckStatus,
    /// The finding in words, with the next step.
    pub detail: String,
}

impl Check {
    /// A finding.
    pub fn new(check: &str, found: CheckStatus, detail: impl Into<String>) -> Self {
        Self {
            check: check.to_owned(),
            found,
            detail: detail.into(),
        }
    }
}

/// A clock before this is wrong: the program did not exist.
const YEAR_2026: u64 = 1_767_225_600;

/// A difference between the clock and a file that file systems do not make.
const STEP: Duration = Duration::from_secs(5);

/// The database of the reference worker, unless `ASYNQ_DB` says another.
const LEFTOVERS: u32 = 1;

/// The self-checks of a process.
#[derive(Clone)]
pub struct Doctor {
    folder: PathBuf,
    reserve: u64,
    tasks: Secret,
    durability: String,
    warnings: Vec<String>,
}

impl Doctor {
    /// Examines a process with this configuration.
    pub fn new(config: &Config, warnings: Vec<String>) -> Self {
        Self {
            folder: config.data_dir.clone(),
            reserve: config.disk_reserve,
            tasks: config.fleet.backend.clone(),
            durability: config.durability.clone(),
            warnings,
        }
    }

    /// The data folder, absolute.
    pub fn folder(&self) -> PathBuf {
        std::path::absolute(&self.folder).unwrap_or_else(|_| self.folder.clone())
    }

    /// Whether the configuration has warnings.
    pub fn configuration(&self) -> Check {
        match self.warnings.as_slice() {
            [] => Check::new("configuration", CheckStatus::Ok, "valid"),
            warnings => Check::new("configuration", CheckStatus::Warn, warnings.join("; ")),
        }
    }

    /// Whether a new file can be made in the data folder.
    ///
    /// No other file is opened: a process that closes a file of its own SQLite database gives up its locks on it.
    pub async fn folder_takes_files(&self) -> Check {
        let folder = self.folder.clone();
        let probed = tokio::task::spawn_blocking(move || {
            let probe = tempfile::Builder::new()
                .prefix(".probe-")
                .tempfile_in(&folder);
            probe.map(drop)
        });
        let shown = self.folder.display();
        match probed.await {
            Ok(Ok(())) => Check::new(
                "data folder",
                CheckStatus::Ok,
                format!("`{shown}` takes files"),
            ),
            Ok(Err(error)) => {
                let text =
                    format!("`{shown}` takes no files ({error}); fix its permissions or its disk");
                Check::new("data folder", CheckStatus::Fail, text)
            }
            Err(error) => Check::new("data folder", CheckStatus::Fail, error.to_string()),
        }
    }

    /// The free space of the data folder's disk.
    pub fn disk(&self) -> Check {
        // The folder may not be there yet; its disk is that of the nearest one above that is.
        let mut folder = self.folder();
        while !folder.exists() && folder.pop() {}
        let held = fs::metadata(self.folder.join(stores::RESERVE)).map_or(0, |file| file.len());
        let free = rustix::fs::statvfs(&folder).map(|stat| {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            free.saturating_add(held)
        });
        let (found, text) = match free {
            Ok(free) => {
                let (shown, reserve) = (units::bytes(free), units::bytes(self.reserve));
                let reserve = format!("`embedded.disk_reserve` ({reserve})");
                match () {
                    () if free < self.reserve => (
                        CheckStatus::Fail,
                        format!(
                            "{shown} free, below {reserve}: new messages are rejected until space is freed"
                        ),
                    ),
                    () if free < self.reserve * 4 => {
                        (CheckStatus::Warn, format!("{shown} free, near {reserve}"))
                    }
                    () => (CheckStatus::Ok, format!("{shown} free")),
                }
            }
            Err(error) => (
                CheckStatus::Warn,
                format!("free space cannot be looked up: {error}"),
            ),
        };
        Check::new("disk", found, text)
    }

    /// The durability of the embedded store.
    pub fn durability(&self) -> Check {
        let (found, text) = match self.durability.as_str() {
            "fsync" => (
                CheckStatus::Ok,
                "fsync before every acknowledgement".to_owned(),
            ),
            other => (
                CheckStatus::Warn,
                format!("`{other}`: a power cut can lose acknowledged messages; `fsync` does not"),
            ),
        };
        Check::new("durability", found, text)
    }

    /// Whether the clock is plausible.
    pub fn clock(&self) -> Check {
        let now = SystemTime::now();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let ahead = newest(&self.folder)
            .and_then(|newest| newest.duration_since(now).ok())
            .unwrap_or_default();
        let (found, text) = if since.as_secs() < YEAR_2026 {
            let text =
                "the clock is years behind; delays and idempotency windows follow it: set it";
            (CheckStatus::Fail, text.to_owned())
        } else if ahead >= STEP {
            let (folder, ahead) = (self.folder.display(), units::age(ahead));
            let text = format!(
                "the clock was set back: the newest file in `{folder}` is {ahead} ahead of it; set it, or wait that long"
            );
            (CheckStatus::Warn, text)
        } else {
            (CheckStatus::Ok, "plausible".to_owned())
        };
        Check::new("clock", found, text)
    }

    /// Tasks that the worker of the reference system left in its own queue.
    pub async fn leftovers(&self) -> Option<Check> {
        let database = std::env::var("ASYNQ_DB").ok();
        let database = database.and_then(|text| text.parse().ok());
        let database = database.unwrap_or(LEFTOVERS);
        let counted = leftovers::count_leftovers(self.tasks.expose(), database).await;
        let text = match counted {
            Ok(0) => return None,
            Ok(count) => format!(
                "{count} tasks are left in the queue of the reference worker (database {database}); stop it and `towpath task adopt` adopts them"
            ),
            Err(error) => error.chain(),
        };
        Some(Check::new("tasks", CheckStatus::Warn, text))
    }
}

/// When a file in the folder or a folder of it was written to last.
fn newest(folder: &Path) -> Option<SystemTime> {
    let inner = ["log", "checkpoint"].map(|name| folder.join(name));
    let folders = std::iter::once(folder.to_owned()).chain(inner);
    let entries = folders
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten();
    entries
        .filter_map(|entry| entry.ok()?.metadata().ok()?.modified().ok())
        .max()
}
